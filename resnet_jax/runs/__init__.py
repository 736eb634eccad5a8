"""The run directory: settings, checkpoints, metrics, curves."""
