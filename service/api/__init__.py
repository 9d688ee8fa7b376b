"""What clients see: all of gRPC but the server object."""
