"""Images that are worth a look: mistakes, unsure predictions, likely wrong labels."""

import numpy as np

from resnet_jax.evaluation.answers import Answers
from resnet_jax.runtime.arrays import Float64, Int


def margins(answers: Answers) -> Float64[np.ndarray, " n"]:
  """Returns the highest probability minus the second highest, of each image."""
  if answers.logits.shape[1] == 1:
    return np.ones(len(answers.labels))
  two = np.sort(answers.log_probabilities, axis=1)[:, -2:]
  found: np.ndarray = np.exp(two[:, 1]) - np.exp(two[:, 0])
  return found


def worst(answers: Answers) -> Int[np.ndarray, " _"]:
  """Returns the rows of wrong predictions; the highest loss comes first."""
  logs = answers.log_probabilities
  own = np.take_along_axis(logs, answers.labels[:, None], axis=1)[:, 0]
  wrong = np.flatnonzero(answers.ranks > 0)
  found: np.ndarray = wrong[np.argsort(own[wrong], kind="stable")]
  return found


def least_sure(answers: Answers) -> Int[np.ndarray, " n"]:
  """Returns the rows of all images; the smallest margin comes first."""
  found: np.ndarray = np.argsort(margins(answers), kind="stable")
  return found


def likely_wrong_labels(answers: Answers) -> Int[np.ndarray, " _"]:
  """Returns the rows whose labels are probably wrong, the most certain first.

  Confident learning (Northcutt et al. 2021, section 3.1): the network is at least as
  sure of another class as it is, on average, of that class's own images. The first row
  is the one whose other class is the most probable, compared with its label.
  """
  probabilities = np.exp(answers.log_probabilities)
  rows = np.arange(len(answers.labels))
  own = probabilities[rows, answers.labels]
  count = answers.logits.shape[1]
  images = np.bincount(answers.labels, minlength=count)
  sums = np.bincount(answers.labels, own, minlength=count)
  # A class without images has no threshold that a probability reaches.
  thresholds = np.where(images > 0, sums / np.maximum(1, images), np.inf)
  others = np.where(probabilities >= thresholds, probabilities, -1)
  others[rows, answers.labels] = -1
  best = others.max(axis=1)
  found = np.flatnonzero((best >= 0) & (best > own))
  ordered: np.ndarray = found[np.argsort(own[found] - best[found], kind="stable")]
  return ordered
