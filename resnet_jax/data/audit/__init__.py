"""Checks a data set before training and reports what is wrong."""
