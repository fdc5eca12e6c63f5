"""Core of Video-Foley: envelopes, samplers, media files, and the contracts that all components share."""

__version__ = "0.1.0"
