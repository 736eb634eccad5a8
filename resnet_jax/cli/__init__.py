"""The commands of `resnet-jax`: flags in, one line or a table out."""
