"""gRPC servers on addresses: how they accept calls, and their certificates."""
