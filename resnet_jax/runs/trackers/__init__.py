"""Experiment trackers: metrics and files of a run, sent to servers of other programs."""
