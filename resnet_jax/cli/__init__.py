"""The commands of `resnet-jax`. Each takes flags, and prints one line or a table."""
