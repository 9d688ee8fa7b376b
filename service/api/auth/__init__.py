"""The caller of a call: tokens, signing keys, and names of client certificates."""
