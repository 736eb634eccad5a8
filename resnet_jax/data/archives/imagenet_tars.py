"""Reads ImageNet (ILSVRC 2012) from the archives of its web page.

The training archive has one archive for each class. The classes of the validation
images are in the development kit.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from resnet_jax.data.archives.rows import Files, Row, Split, check, reading

_NUM_CLASSES = 1000
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_MAX_BYTES = 100_000_000  # Of an image; the largest has 15 MB.


class _Kit(NamedTuple):
  """The development kit.

  Attributes:
    synsets: WordNet ids of the classes, sorted, as in the weights of all libraries.
    val_labels: the class of each validation image, in the order of their numbers.
  """

  synsets: tuple[str, ...]
  val_labels: list[int]


def read(files: Files, split: str) -> Split:
  """Reads "train" or "validation"; the names of the classes are WordNet ids."""
  kit = _read_kit(files["devkit"])
  rows = _train_rows if split == "train" else _validation_rows
  return Split(kit.synsets, rows(files[split], kit))


def _read_kit(path: Path) -> _Kit:
  import scipy.io

  with reading(path), tarfile.open(path) as archive:
    content = {}
    for member in archive:
      name = member.name.rpartition("/")[2]
      if name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
        content[name] = _content(archive, member)
    table = scipy.io.loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)
    # The others are groups of classes.
    leaves = [row for row in table["synsets"] if row["num_children"] == 0]
    synset_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    synsets = tuple(sorted(synset_of.values()))
    check(
      len(set(synsets)) == _NUM_CLASSES,
      f"it has {len(set(synsets))} classes, not {_NUM_CLASSES}",
    )
    label = {synset: index for index, synset in enumerate(synsets)}
    numbers = content["ILSVRC2012_validation_ground_truth.txt"].split()
    return _Kit(synsets, [label[synset_of[int(number)]] for number in numbers])


def _train_rows(path: Path, kit: _Kit) -> Iterator[Row]:
  label = {f"{synset}.tar": index for index, synset in enumerate(kit.synsets)}
  with reading(path), tarfile.open(path) as archive:
    for member in archive:
      check(member.name in label, f"{member.name} is not among its classes")
      with tarfile.open(fileobj=archive.extractfile(member)) as images:
        for image in images:
          yield Row(_content(images, image), label[member.name], image.name)


def _validation_rows(path: Path, kit: _Kit) -> Iterator[Row]:
  with reading(path), tarfile.open(path) as archive:
    for member in archive:
      found = _VAL_NAME.fullmatch(member.name)
      index = int(found[1]) - 1 if found else -1
      check(0 <= index < len(kit.val_labels), f"{member.name} has no class")
      yield Row(_content(archive, member), kit.val_labels[index], member.name)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
  check(
    member.isfile() and member.size <= _MAX_BYTES,
    f"{member.name} is too large or not a file",
  )
  file = archive.extractfile(member)
  assert file
  return file.read()
