"""Random changes to whole batches, on the device."""
