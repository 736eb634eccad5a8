"""Tiny-ImageNet in the layout of its download."""

from pathlib import Path

from resnet_jax.data.sources.file_list import FileList, _list_folder, _read_lines
from resnet_jax.runtime.errors import UserError


def _list_tiny_imagenet(root: Path, split: str, folder: str) -> FileList:
  """Lists a split of Tiny-ImageNet, with classes in the order of their WordNet ids."""
  classes = sorted(_read_lines(root / "wnids.txt"))
  label = {wnid: i for i, wnid in enumerate(classes)}
  words = {}
  if (root / "words.txt").is_file():
    lines = (
      (root / "words.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    )
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
  names = [words.get(wnid, wnid) for wnid in classes]
  table = root / folder / "val_annotations.txt"
  if split != "val" or not table.is_file():  # Many users sort it into folders.
    files = _list_folder(root / folder, classes)
    files.class_names = tuple(names)
    return files
  rows = [
    line.split("\t")
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines()
    if line
  ]
  wrong = [row for row in rows if len(row) < 2 or row[1] not in label]
  if wrong:
    raise UserError(f"{table}: {wrong[0]} must be a file and a name in wnids.txt")
  paths = [row[0] for row in rows]
  return FileList(root / folder / "images", paths, [label[r[1]] for r in rows], names)
