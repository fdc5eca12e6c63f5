"""Trains Video-Foley's networks at small scale, on clips that are made here: see `training/README.md`."""

from foley import __version__ as __version__
