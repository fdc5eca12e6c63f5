"""Models of the Python backend: this code runs inside Triton."""
