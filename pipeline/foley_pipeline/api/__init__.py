"""The public API, in Python: messages, errors, and what they stand for."""
