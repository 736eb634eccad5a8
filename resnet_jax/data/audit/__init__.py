"""A data set read once and reported on, before training on it."""
