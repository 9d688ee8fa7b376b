"""The gRPC API: listeners, the interceptor and the services."""
