"""The studio: a web page for editing loudness curves, and its HTTP API."""
