"""The public gRPC API, served in front of Triton."""
