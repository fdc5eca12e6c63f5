"""The studio: the page on which the loudness curve is an instrument, and the HTTP that it talks."""
