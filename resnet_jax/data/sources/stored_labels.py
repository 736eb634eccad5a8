"""Turns the labels that a file of records holds into arrays. N records, K classes."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_jax.runtime.errors import UserError

_MAX_CLASSES = 100_000


def class_names_of(values: Sequence[Any], kind: str) -> tuple[str, ...]:
  """Returns the names of the classes that occur: sorted, or numbers from 0.

  Args:
    values: the labels: numbers or texts, or for several classes lists of these.
    kind: "class" or "classes", see `DataConfig.labels`.
  """
  # A label of another kind has no name here, and is refused by `encode`.
  lists = [value for value in values if _is_list(value)]
  single = [] if lists else values
  every = set(itertools.chain(*lists) if kind == "classes" else single)
  texts = {value for value in every if isinstance(value, str)}
  if texts:
    return tuple(sorted(texts))
  highest = max((value for value in every if _is_whole(value)), default=-1)
  return tuple(map(str, range(min(highest, _MAX_CLASSES) + 1)))


def encode(
  values: Sequence[Any], kind: str, class_names: Sequence[str], where: str
) -> np.ndarray:
  """Returns the labels of N records as an array, see `LabelSpec`.

  Args:
    values: the labels: of "class" indices or names, of "classes" lists of these, of
      "numbers" numbers or lists of numbers.
    kind: see `DataConfig.labels`.
    class_names: names of the classes; not used for numbers.
    where: name of the file or data set, for messages.

  Raises:
    UserError: a label is not of this kind, or is no known class.
  """
  if kind == "numbers":
    return _numbers(values, where)
  number: dict[Any, int] = {name: i for i, name in enumerate(class_names)}
  number |= {i: i for i in range(len(class_names))}
  places = enumerate(values)
  try:
    if kind == "class":
      return np.array([number[value] for _, value in places], np.int32)
    labels = np.zeros((len(values), len(class_names)), bool)
    for place, value in places:
      if not _is_list(value):
        raise TypeError
      labels[place, [number[one] for one in value]] = True
    return labels
  except (KeyError, TypeError):
    place = next(places, (len(values), None))[0] - 1
    value = values[place]
  raise UserError(f"{where}, record {place}: {_fault(value, kind, class_names)}")


def _fault(value: Any, kind: str, class_names: Sequence[str]) -> str:
  text = f"label {str(value)[:60]!r}"
  is_list = _is_list(value)
  if is_list and kind == "class":
    return f"{text} is a list; config.data.labels=classes takes several classes"
  if not is_list and kind == "classes":
    return f"{text} is no list; config.data.labels=class takes one class"
  if value is None or value == -1:
    return f"{text} means that it has none; name a split with labels"
  return (
    f"{text} is none of the {len(class_names)} classes "
    f"{', '.join(map(repr, class_names[:3]))} ..."
  )


def _numbers(values: Sequence[Any], where: str) -> np.ndarray:
  labels = np.zeros(0, np.float32)
  with contextlib.suppress(TypeError, ValueError):  # Texts, or lists of many lengths.
    labels = np.array(values, np.float32)
  if labels.ndim not in (1, 2) or not len(labels) or not np.isfinite(labels).all():
    raise UserError(
      f"{where}: each label must be a finite number, or a list of as many numbers as "
      "the others"
    )
  return labels.reshape(len(labels), -1)


def number_names(count: int) -> tuple[str, ...]:
  """Returns names of the numbers of a label, which have none where they are stored."""
  return ("value",) if count == 1 else tuple(f"value {i + 1}" for i in range(count))


def _is_list(value: Any) -> bool:
  return hasattr(value, "__iter__") and not isinstance(value, str)


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)
