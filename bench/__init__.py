"""Benchmark of the service and of other implementations of its API: see bench/README.md."""
