"""Turns the labels that a file of records holds into arrays. N records, K classes."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_jax.runtime.errors import UserError

_MAX_CLASSES = 100_000


class UnlabelledError(UserError):
  """The images have no labels."""


def class_names_of(values: Sequence[Any], kind: str) -> tuple[str, ...]:
  """Returns the names of the classes that occur.

  Words are sorted by the alphabet, and words that are all whole numbers by their size.
  For class indices, the names are the numbers from 0 to the largest index.

  Args:
    values: the labels: indices or words, or for several classes lists of these.
    kind: "class" or "classes", see `DataConfig.labels`.
  """
  # `encode` refuses the labels that are not of this kind.
  lists = [value for value in values if isinstance(value, list)]
  single = [] if lists else values
  every = list(itertools.chain(*lists)) if kind == "classes" else single
  words = {value for value in every if isinstance(value, str)}
  if words:
    are_numbers = all(word.isdecimal() for word in words)
    return tuple(sorted(words, key=(lambda x: (int(x), x)) if are_numbers else None))
  highest = max((value for value in every if isinstance(value, int)), default=-1)
  return tuple(map(str, range(min(highest, _MAX_CLASSES) + 1)))


def encode(
  values: Sequence[Any],
  kind: str,
  class_names: Sequence[str],
  where: str,
  stored_names: Sequence[str] = (),
) -> np.ndarray:
  """Returns the labels of N records as an array, see `LabelSpec`.

  Args:
    values: the labels: for "class" indices or names, for "classes" lists of these, for
      "numbers" numbers or lists of numbers.
    kind: see `DataConfig.labels`.
    class_names: names of the classes, in the order of the result.
    where: name of the file or data set, for messages.
    stored_names: names of the classes in the order of the stored indices; () if that is
      the order of `class_names`.

  Raises:
    UnlabelledError: a label says that the image has none.
    UserError: a label is not of this kind, or is no known class.
  """
  if kind == "numbers":
    return _numbers(values, where)
  number: dict[Any, int] = {name: i for i, name in enumerate(class_names)}
  if not stored_names or tuple(stored_names) == tuple(class_names):
    number |= {i: i for i in range(len(class_names))}
  else:
    _check_unique(stored_names, where)
    _check_unique(class_names, where)
    number |= {i: number[x] for i, x in enumerate(stored_names) if x in number}
  places = enumerate(values)
  try:
    if kind == "class":
      return np.array([number[value] for _, value in places], np.int32)
    labels = np.zeros((len(values), len(class_names)), bool)
    for place, value in places:
      if not isinstance(value, list):
        raise TypeError
      labels[place, [number[one] for one in value]] = True
    return labels
  except (KeyError, TypeError):
    place = next(places, (len(values), None))[0] - 1
    value = values[place]
  if value is None or value == -1:
    raise UnlabelledError(f"{where}, record {place}: the image has no label")
  if isinstance(value, int) and 0 <= value < len(stored_names):
    value = stored_names[value]
  raise UserError(f"{where}, record {place}: {_fault(value, kind, class_names)}")


def _check_unique(names: Sequence[str], where: str) -> None:
  twice = next((name for name, count in Counter(names).items() if count > 1), None)
  if twice is not None:
    raise UserError(
      f"{where}: its classes have another order than those of the network or of the "
      f"training images, and two of them are called {twice!r}; rename one"
    )


def _fault(value: Any, kind: str, class_names: Sequence[str]) -> str:
  text = f"label {str(value)[:60]!r}"
  is_list = isinstance(value, list)
  if is_list and kind == "class":
    return f"{text} is a list; config.data.labels=classes takes several classes"
  if not is_list and kind == "classes":
    return f"{text} is no list; config.data.labels=class takes one class"
  if isinstance(value, float):
    return (
      f"{text} is no class index, which must be an integer; "
      "config.data.labels=numbers predicts numbers"
    )
  one = next(iter(value), "") if is_list else value
  if not isinstance(one, str | int):
    return f"{text} is of the type {type(one).__name__}; give whole numbers or words"
  shown = ", ".join(map(repr, class_names[:3]))
  return f"{text} is none of the {len(class_names)} classes {shown} ..."


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
  """Returns made-up names for the numbers of a label, as the files name none."""
  return ("value",) if count == 1 else tuple(f"value {i + 1}" for i in range(count))
