"""A search for settings with Optuna."""
