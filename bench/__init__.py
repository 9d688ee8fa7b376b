"""What a call costs, beside other ways of writing the same service: see bench/README.md."""
