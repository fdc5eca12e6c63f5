"""The procedural data set: what happens in a clip, and how that looks, sounds and reads."""
