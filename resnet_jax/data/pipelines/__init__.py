"""Batches of a split: kept on the devices, or read while they compute."""
