"""Reads Tiny-ImageNet from its zip archive. Its test images have no labels."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from resnet_jax.data.archives.rows import Files, Row, Split, check, reading

_ROOT = "tiny-imagenet-200"
_IMAGES = {
  "train": re.compile(rf"{_ROOT}/train/(n\d{{8}})/images/([^/]+\.JPEG)"),
  "val": re.compile(rf"{_ROOT}/val/()images/([^/]+\.JPEG)"),
}
_MAX_BYTES = 20_000_000  # Of a file. The largest is words.txt, with 3 MB.


def read(files: Files, split: str) -> Split:
  """Reads "train" or "val", with classes in the order of their WordNet ids."""
  path = files["archive"]
  with reading(path), zipfile.ZipFile(path) as archive:
    synsets = sorted(_text(archive, "wnids.txt").split())
    lines = _text(archive, "words.txt").splitlines()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
  names = tuple(words.get(synset, synset) for synset in synsets)
  label = {synset: index for index, synset in enumerate(synsets)}
  return Split(names, _rows(path, split, label))


def _rows(path: Path, split: str, label: dict[str, int]) -> Iterator[Row]:
  with reading(path), zipfile.ZipFile(path) as archive:
    synset_of = {}
    if split == "val":
      for line in _text(archive, "val/val_annotations.txt").splitlines():
        name, synset_of[name], *_ = line.split("\t")
    for member in archive.infolist():
      if found := _IMAGES[split].fullmatch(member.filename):
        synset, name = found.groups()
        synset = synset or synset_of.get(name, "")
        check(synset in label, f"{name} has no class")
        yield Row(_content(archive, member), label[synset], name)


def _text(archive: zipfile.ZipFile, name: str) -> str:
  return _content(archive, archive.getinfo(f"{_ROOT}/{name}")).decode()


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
  check(member.file_size <= _MAX_BYTES, f"{member.filename} is too large")
  return archive.read(member)
