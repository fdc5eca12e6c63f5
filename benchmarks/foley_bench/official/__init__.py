"""What the official implementation does with a clip of 10 s, step by step, in eager PyTorch and float32.

The weights are a bundle's and the layers this project's, with the same numbers as a result; the order of the work is
the official one, waste included. It is what `foley-bench compare` compares with.
"""
