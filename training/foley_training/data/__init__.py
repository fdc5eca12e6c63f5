"""The procedural data set: scenes and their frames, sounds and captions."""
