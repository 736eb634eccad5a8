"""Residual networks as Flax linen modules; `resnet_jax` exports the public names."""
