"""Lays out a model repository, and starts and supervises a Triton server for it."""
