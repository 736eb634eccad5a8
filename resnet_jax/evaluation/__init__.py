"""Evaluation of a trained network in detail: answers, scores, intervals, reports."""
