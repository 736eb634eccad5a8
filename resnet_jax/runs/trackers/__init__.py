"""Experiment trackers: metrics and files of a run, sent to other programs."""
