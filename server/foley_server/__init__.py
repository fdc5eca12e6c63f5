"""Lays the model repository out for a target, and launches and supervises Triton."""

from foley import __version__ as __version__
