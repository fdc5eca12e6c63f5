"""The baseline: the official implementation's work on a clip, in eager PyTorch and float32.

Weights are a bundle's, and layers this project's, which compute the same numbers. The order of the work is the official
one, with everything that it computes more often than necessary.
"""
