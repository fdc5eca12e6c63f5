"""The two stages of Video-Foley, driven on a Triton server over gRPC."""
