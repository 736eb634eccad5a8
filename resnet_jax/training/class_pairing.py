"""Matches the classes of images with the classes of a network, by name."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from resnet_jax import weights
from resnet_jax.data import (
  ImageSource,
  Source,
  count_classes,
  is_in_memory,
  known_labels,
  label_spec,
)
from resnet_jax.data.sources.base import is_number, plain_number
from resnet_jax.runtime.arrays import Bool
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn
from resnet_jax.weights import imagenet


@dataclasses.dataclass(frozen=True)
class Relabelled:
  """Images with a network's labels in place of their own.

  Attributes:
    source: the images.
    places: class of an image -> class of the network.
    class_names: the network's class names.
  """

  source: ImageSource
  places: Mapping[int, int]
  class_names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    content, label = self.source[index]
    return content, self.places.get(int(label), -1)  # The reader refuses -1.

  def name(self, index: int) -> str:
    return self.source.name(index)


@dataclasses.dataclass(frozen=True)
class RelabelledSets:
  """Images with several classes each, as bool [K] of the network's classes.

  Attributes:
    source: the images.
    labels: bool [N, K].
    class_names: the network's class names.
  """

  source: ImageSource
  labels: Bool[np.ndarray, "n k"]
  class_names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> tuple[bytes, np.ndarray]:
    return self.source[index][0], self.labels[index]

  def name(self, index: int) -> str:
    return self.source.name(index)


def pair_classes(
  source: Source,
  class_names: Sequence[str],
  num_classes: int,
  owner: str,
  in_order: bool,
) -> Source:
  """Relabels images with a network's class indices.

  Classes with identical names match. A class name that is a whole number is the index
  of a class, unless the network's class names are numbers. ImageNet's classes may also
  be named by their WordNet ids.

  Args:
    source: the images.
    class_names: the network's class names, in order; () if they are not known.
    num_classes: K, the network's number of classes.
    owner: the name of the network in messages.
    in_order: whether the order of the images' classes has a meaning. If so, and the
      network's class names are not known, its classes are taken to be in that order.

  Returns:
    The images with labels in [0, K).

  Raises:
    UserError: the network has no class with the name of a class of the images.
  """
  names, kind = source.class_names, label_spec(source).kind
  first = class_names[: len(names)] if kind == "class" else class_names
  if kind == "numbers" or tuple(names) == tuple(first):
    return source
  used: Sequence[int] = range(len(names))
  if known_labels(source) is not None:
    # If labels in a .csv file are numbers, unused numbers between them have names too.
    used = np.flatnonzero(count_classes(source)).tolist()
  numbers = _numbers(class_names, num_classes)
  look_ups = (
    _unique(class_names).get,
    lambda name: numbers.get(plain_number(name)),
    _synsets(class_names).get,
  )
  for look_up in look_ups:
    found = {i: new for i in used if (new := look_up(names[i])) is not None}
    if len(set(found.values())) == len(used):
      whole = weights.all_class_names(class_names, num_classes)
      return _relabel(source, found, whole)
  if not class_names and in_order and len(names) == num_classes:
    warn(
      f"{owner} does not name its {num_classes} classes; they are assumed to be the "
      f"classes of the images in the same order, beginning with {names[0]!r}"
    )
    return source
  other = next(
    (names[i] for i in used if all(look(names[i]) is None for look in look_ups)),
    names[used[0]],
  )
  theirs = f"such as {class_names[0]!r}" if class_names else "which have no names"
  raise UserError(
    f"the images have the class {other!r}, which is not among the {num_classes} "
    f"classes of {owner}, {theirs}; name the folders, or the labels in a .csv file of "
    f"path,label, by the network's class names or by numbers, 0 to {num_classes - 1}"
  )


def order_classes(
  names: Sequence[str], class_names: Sequence[str]
) -> tuple[int, ...] | None:
  """Returns the index of a network's class for each class of the images.

  Classes with identical names match. ImageNet's may also be named by their WordNet ids.

  Args:
    names: names of all classes of the images, in order.
    class_names: the network's class names, in order.

  Returns:
    An index for each of `names`, all different; None if the two sets of classes differ.
  """
  if tuple(names) == tuple(class_names):
    return (*range(len(names)),)
  for known in (_unique(class_names), _synsets(class_names)):
    if sorted(known) == sorted(names) and len(known) == len(class_names):
      return tuple(known[name] for name in names)
  return None


def _relabel(
  source: Source, labels: Mapping[int, int], class_names: tuple[str, ...]
) -> Source:
  if label_spec(source).kind == "classes":
    every = known_labels(source)
    assert every is not None  # `label_spec` read them.
    new = np.zeros((len(source), len(class_names)), bool)
    for old, place in labels.items():
      new[:, place] = every[:, old]
    if not is_in_memory(source):
      return RelabelledSets(source, new, class_names)
  elif not is_in_memory(source):
    return Relabelled(source, labels, class_names)
  else:
    new = np.array([labels[label] for label in source.labels.tolist()])
  return dataclasses.replace(source, labels=new, class_names=class_names)


def _unique(names: Sequence[str]) -> dict[str, int]:
  """Returns the indices of the names that occur once."""
  counts = Counter(names)
  return {name: i for i, name in enumerate(names) if counts[name] == 1}


def _numbers(class_names: Sequence[str], num_classes: int) -> dict[str, int]:
  """Returns the class index of each whole number that may name a class."""
  if class_names and all(name.isdecimal() for name in class_names):
    return _unique([*map(plain_number, class_names)])
  if any(map(is_number, class_names)):  # A number could be a name or an index.
    return {}
  return {str(i): i for i in range(num_classes)}


def _synsets(class_names: Sequence[str]) -> dict[str, int]:
  """Returns the class index of each WordNet id, if the classes are ImageNet's."""
  if not imagenet.are_classes(class_names):
    return {}
  return {synset: i for i, synset in enumerate(imagenet.synsets())}
