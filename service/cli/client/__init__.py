"""The commands `list`, `get` and `health`, which call the API."""
