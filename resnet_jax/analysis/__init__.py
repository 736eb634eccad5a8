"""Analysis without training: the dry run, and the responses of layers."""
