"""Trains Video-Foley's networks at small scale on procedurally generated clips; see `training/README.md`."""

from foley import __version__ as __version__
