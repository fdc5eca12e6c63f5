"""The training tasks, one module per stage or pair of related stages."""
