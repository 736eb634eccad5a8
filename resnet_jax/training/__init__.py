"""One run: the experiment, its trainer, evaluator, steps and state."""
