"""The exported networks, one file each."""
