"""Lays the model repository out for a target, and launches and supervises Triton."""
