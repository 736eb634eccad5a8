"""Experiments of many runs: studies of the paper's claims, sweeps, and their jobs."""
