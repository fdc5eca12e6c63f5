"""The public API in front of Triton."""
