"""A run looked into without training it: the dry run, the responses of layers."""
