"""Who calls: tokens, signing keys, and names of client certificates."""
