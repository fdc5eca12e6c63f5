"""Trains Video-Foley's networks at small scale, on clips that are made here: see `training/README.md`."""
