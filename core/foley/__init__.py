"""Video-Foley's domain: envelopes, samplers, media, and the contracts that everything shares."""

__version__ = "0.1.0"
