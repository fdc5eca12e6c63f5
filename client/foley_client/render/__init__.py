"""Render farm: renders many videos on one or more machines, each effectively once."""
