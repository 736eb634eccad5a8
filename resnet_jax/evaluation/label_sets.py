"""Images with several right labels each, and networks that choose among fewer classes.

ReaL (Beyer et al. 2020) and ObjectNet (Barbu et al. 2019) have several labels. For sets
with a part of ImageNet's classes, such as ImageNet-A, other classes are left out.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.evaluation.answers import Answers
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.weights import imagenet


def read_label_sets(path: str) -> dict[str, list[Any]]:
  """Reads the labels of images.

  Args:
    path: a JSON file: an object whose keys are names of files or folders and whose
      values are lists of labels, or ReaL's list for ImageNet's validation images.

  Raises:
    NotFoundError: there is no such file.
    UserError: it has another form.
  """
  try:
    found = json.loads(Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig"))
  except FileNotFoundError as error:
    raise NotFoundError(f"there is no file {path!r} of labels") from error
  except (ValueError, RecursionError, OSError) as error:
    raise UserError(f"{path!r} is no JSON file: {str(error)[:80]}") from error
  if isinstance(found, list):  # Image 1 of the validation split comes first.
    names = (f"ILSVRC2012_val_{i:08}" for i in range(1, len(found) + 1))
    found = dict(zip(names, found, strict=True))
  if not isinstance(found, dict) or not all(
    isinstance(labels, list) for labels in found.values()
  ):
    raise UserError(
      f"{path!r} must be a JSON object of lists of labels by the names of files or "
      'folders, such as {"a.jpg": ["cat", "dog"]}, or the list of ReaL'
    )
  return found


def class_indices(labels: Iterable[Any], class_names: Sequence[str]) -> list[int]:
  """Returns the classes that labels name: by name, number, or ImageNet's WordNet id.

  Raises:
    UserError: a label is none of these.
  """
  by_name = {name: i for i, name in reversed([*enumerate(class_names)])}
  if imagenet.are_classes(class_names):
    by_name |= {synset: i for i, synset in enumerate(imagenet.synsets())}
  found = []
  for label in labels:
    index = by_name.get(str(label))
    if index is None and str(label).isdecimal() and int(label) < len(class_names):
      index = int(label)
    if index is None:
      raise UserError(
        f"{label!r:.80} is not among the {len(class_names)} classes of the network, "
        f"such as {class_names[0]!r}"
      )
    found.append(index)
  return found


def read_classes(name: str, answers: Answers) -> list[int]:
  """Returns the classes that a file names, one on a line, or "present" ones.

  Args:
    name: path of a text file, or "present" for the classes of the images.
    answers: give the names of all classes, and the labels of the images.

  Raises:
    UserError: the file cannot be read, or names another class.
  """
  if name == "present":
    return sorted(set(answers.labels.tolist()))
  path = Path(os.path.expanduser(name))
  try:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f"the classes in {name!r} cannot be read: {error}") from error
  return class_indices(filter(None, map(str.strip, lines)), answers.class_names)


def restrict(answers: Answers, classes: Collection[int]) -> Answers:
  """Returns the answers of a network that can choose only among some classes.

  Raises:
    UserError: an image has another class.
  """
  if others := sorted(set(answers.labels.tolist()) - set(classes)):
    raise UserError(
      f"the images have the class {answers.class_names[others[0]]!r}, which is not "
      "among the given ones"
    )
  logits = np.full_like(answers.logits, -np.inf)
  chosen = sorted(classes)
  logits[:, chosen] = answers.logits[:, chosen]
  return answers.with_logits(logits)


def score_sets(answers: Answers, sets: Mapping[str, Sequence[Any]]) -> dict[str, float]:
  """Returns top-1, top-5 and the number of images that have labels.

  A prediction is right if it is one of the labels. Images without labels do not count,
  as in Beyer et al. 2020, section 4.

  Args:
    answers: their own labels are not used.
    sets: result of `read_label_sets`; an image is looked up by the name of its file,
      then by this name without the suffix, then by the name of its folder.

  Raises:
    UserError: no image has labels, or a label is not among the classes.
  """
  order = np.argsort(-answers.logits, axis=1, kind="stable")[:, :5]
  right = []
  for row, place in enumerate(answers.index):
    path = Path(answers.name(int(place)))
    keys = (path.name, path.stem, path.parent.name)
    labels = next((sets[key] for key in keys if key in sets), [])
    if labels:
      classes = class_indices(labels, answers.class_names)
      right.append(np.isin(order[row], classes))
  if not right:
    raise UserError(
      "no image has labels: the names of files and folders must be those of the file "
      f"of labels, such as {next(iter(sets), '')!r:.80}, not {path.name!r:.80}"
    )
  found = np.stack(right)
  scores = {"top1": float(found[:, 0].mean())}
  if answers.logits.shape[1] > 5:
    scores["top5"] = float(found.any(axis=1).mean())
  return scores | {"count": len(found)}
