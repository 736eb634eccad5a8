"""Training one run: experiment, trainer, evaluator, steps and state."""
