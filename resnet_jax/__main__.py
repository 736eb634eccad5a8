"""`python -m resnet_jax` is `resnet-jax`."""

from resnet_jax.cli.main import main

main()
