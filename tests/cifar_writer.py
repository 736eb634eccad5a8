"""Writes CIFAR-10 and CIFAR-100 in the two forms that their authors publish."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np

FOLDERS = {
  ("cifar10", "python"): "cifar-10-batches-py",
  ("cifar10", "binary"): "cifar-10-batches-bin",
  ("cifar100", "python"): "cifar-100-python",
  ("cifar100", "binary"): "cifar-100-binary",
}
ARCHIVES = {(name, form): f"cifar-{name[5:]}-{form}.tar.gz" for name, form in FOLDERS}


def pickled(value: object) -> bytes:
  """Returns the pickle that Python 2 makes of dictionaries, lists, texts and arrays."""
  return b"\x80\x02" + _instructions(value) + b"."


def _instructions(value: object) -> bytes:
  if isinstance(value, dict):
    items = b"".join(_instructions(x) for pair in value.items() for x in pair)
    return b"}q\x01(" + items + b"u"
  if isinstance(value, list):
    return b"]q\x02(" + b"".join(map(_instructions, value)) + b"e"
  if isinstance(value, tuple):
    return b"(" + b"".join(map(_instructions, value)) + b"t"
  if isinstance(value, np.ndarray):
    assert value.dtype == np.uint8
    dtype = b"cnumpy\ndtype\n" + _instructions(("u1", 0, 1)) + b"R"
    dtype += _instructions((3, "|", None, None, None, -1, -1, 0)) + b"b"
    empty = b"(cnumpy\nndarray\n" + _instructions((0,)) + _instructions("b") + b"t"
    content = _instructions(1) + _instructions(value.shape) + dtype
    is_fortran = not value.flags.c_contiguous
    order = "F" if is_fortran else "C"
    content += b"\x88" if is_fortran else b"\x89"
    content += _instructions(value.tobytes(order))
    return b"cnumpy.core.multiarray\n_reconstruct\n" + empty + b"R(" + content + b"tb"
  if isinstance(value, int):
    return b"J" + struct.pack("<i", value)
  if value is None:
    return b"N"
  assert isinstance(value, str | bytes)
  text = value.encode() if isinstance(value, str) else value
  return b"T" + struct.pack("<I", len(text)) + text


def files(
  name: str, form: str, train: tuple, test: tuple, class_names: list[str]
) -> dict[str, bytes]:
  """Returns the content of each file.

  Args:
    name: "cifar10" or "cifar100".
    form: "python" or "binary".
    train: images [N, 32, 32, 3] uint8 and labels [N]; N is a multiple of 5.
    test: images and labels of the test split, in the same form.
    class_names: the name of every label.
  """
  parts = {"train": train, "test": test}
  if name == "cifar10":
    size = len(train[1]) // 5
    parts = {
      f"data_batch_{i + 1}": tuple(x[i * size : (i + 1) * size] for x in train)
      for i in range(5)
    } | {"test_batch": test}
  content = {}
  for file, (images, labels) in parts.items():
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    numbers = [int(label) for label in labels]
    if form == "binary":
      labels = np.array([numbers], np.uint8).T
      labels = labels if name == "cifar10" else np.hstack([labels // 5, labels])
      content[f"{file}.bin"] = np.hstack([labels, pixels]).tobytes()
      continue
    found: dict = {"batch_label": "one of many", "data": pixels}
    if name == "cifar10":
      found["labels"] = numbers
    else:
      found |= {"coarse_labels": [n // 5 for n in numbers], "fine_labels": numbers}
    found["filenames"] = [f"{i}.png" for i in range(len(numbers))]
    content[file] = pickled(found)
  if form == "binary":
    meta = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    content[meta] = ("\n".join(class_names) + "\n\n").encode()
  elif name == "cifar10":
    meta = {"num_cases_per_batch": 10_000, "label_names": class_names, "num_vis": 3072}
    content["batches.meta"] = pickled(meta)
  else:
    coarse = [f"coarse {i}" for i in range(20)]
    meta = {"fine_label_names": class_names, "coarse_label_names": coarse}
    content["meta"] = pickled(meta)
  content["readme.html"] = b"<html>"
  return content


def unpack(content: dict[str, bytes], folder: Path) -> Path:
  """Writes the files into a new folder."""
  folder.mkdir(parents=True)
  for name, data in content.items():
    (folder / name).write_bytes(data)
  return folder


def pack(content: dict[str, bytes], folder: str, path: Path) -> Path:
  """Writes an archive of a folder with the files; the file of class names is first."""
  with tarfile.open(path, "w:gz") as archive:
    member = tarfile.TarInfo(folder)
    member.type = tarfile.DIRTYPE
    archive.addfile(member)
    for name, data in sorted(content.items()):
      member = tarfile.TarInfo(f"{folder}/{name}")
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return path
