"""Test harnesses: soak, fault injection and fuzzing, in short in the suite, in full by `python -m harness`."""
