"""Test harnesses: soak, fault injection and fuzzing. The suite runs them briefly, `python -m harness` in full."""
