"""`foley-bench gpu`: every network of a bundle on a GPU, in every installed backend."""
