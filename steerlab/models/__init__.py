"""A model you can look into: loading, layout, encoding, positions, and the engines that carry out plans."""
