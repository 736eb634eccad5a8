"""Studies: a grid of configs over the same trainer, and what its runs show."""
