"""Every network of a bundle on a GPU, in all the ways that are installed, beside the official way and a floor."""
