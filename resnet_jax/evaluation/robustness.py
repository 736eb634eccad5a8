"""The top-1 error of a network on corrupted images."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.evaluation.answers import Answers
from resnet_jax.evaluation.corruptions import STRENGTHS, Corrupt, corrupt_batch
from resnet_jax.evaluation.pictures import draw_corruptions
from resnet_jax.runtime.tables import write_table

FILE = "corruptions"  # .csv, .md and .png in the folder of a report.
EXPLANATION = (
  "The share of wrong predictions when the images are corrupted. Strength 1 is the "
  "mildest, strength 5 the strongest."
)


@dataclasses.dataclass(frozen=True)
class Robustness:
  """Top-1 errors, as fractions.

  Attributes:
    clean: of the images as they are.
    errors: of each corruption, for the strengths from 1 to 5.
  """

  clean: float
  errors: Mapping[str, Sequence[float]]

  @property
  def mean(self) -> float:
    """Mean of all corruptions and strengths."""
    return float(np.mean([*self.errors.values()]))

  def rows(self) -> list[list[str]]:
    """Returns a table in %, the header first: one row for each corruption."""
    means = np.mean([*self.errors.values()], axis=0)
    rows = [["top-1 error, %", *map(str, STRENGTHS), "mean"]]
    rows.append(["no corruption", *[""] * len(STRENGTHS), f"{100 * self.clean:.2f}"])
    for name, errors in [*self.errors.items(), ("mean", means)]:
      rows.append([name, *(f"{100 * x:.2f}" for x in (*errors, np.mean(errors)))])
    return rows

  def as_json(self) -> dict[str, Any]:
    """Returns the errors, as fractions, for JSON."""
    errors = {name: [*values] for name, values in self.errors.items()}
    return {"clean_error": self.clean, "mean_error": self.mean, "errors": errors}


def measure(
  clean: Answers, answer: Callable[[Corrupt], Answers], names: Sequence[str]
) -> Robustness:
  """Evaluates a network on corrupted images.

  Args:
    clean: the answers for the images as they are.
    answer: computes the answers for corrupted images, such as `collector` returns.
    names: of the corruptions, keys of `CORRUPTIONS`.
  """

  def error(answers: Answers) -> float:
    return float((answers.ranks > 0).mean())

  errors = {
    name: [error(answer(corrupt_batch(name, strength))) for strength in STRENGTHS]
    for name in names
  }
  return Robustness(error(clean), errors)


def write_robustness(folder: str | Path, found: Robustness | None) -> None:
  """Writes corruptions.csv, .md and .png; None removes those of an old report.

  Only the first process writes.
  """
  if jax.process_index() > 0:
    return
  path = Path(os.path.expanduser(folder)) / FILE
  if found:
    write_table(path, found.rows())
    draw_corruptions(path.with_suffix(".png"), found.clean, found.errors)
    return
  for ending in (".csv", ".md", ".png"):
    path.with_suffix(ending).unlink(missing_ok=True)
