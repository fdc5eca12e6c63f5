"""The render farm: many videos, each rendered exactly once in effect, on one machine or many."""
