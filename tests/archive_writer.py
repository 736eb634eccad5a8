"""Writes small archives in the forms in which well-known data sets are published."""

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import cifar_writer
import cv2
import numpy as np
import scipy.io

# Number of images of each split.
SIZES = {"train": 10, "test": 4, "val": 4, "validation": 4, "extra": 3}
SYNSETS = ("n00000001", "n00000002", "n00000003")


def pixels(split: str, shape: tuple[int, ...], classes: int) -> tuple:
  """Returns random images [N, *shape] and labels [N] with the last class in them."""
  rng = np.random.default_rng(len(split))
  labels = rng.integers(0, classes, SIZES[split], np.uint8)
  labels[0] = classes - 1
  return rng.integers(0, 256, (SIZES[split], *shape), np.uint8), labels


def photos(split: str) -> list[bytes]:
  """Returns the content of JPEG files."""
  images, _ = pixels(split, (8, 8, 3), 3)
  return [cv2.imencode(".jpg", image)[1].tobytes() for image in images]


def tar(files: dict[str, bytes]) -> bytes:
  """Returns the content of an archive."""
  content = io.BytesIO()
  with tarfile.open(fileobj=content, mode="w") as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return content.getvalue()


def write_cifar(folder: Path, name: str, form: str) -> dict:
  classes = int(name[5:])
  found = {split: pixels(split, (32, 32, 3), classes) for split in ("train", "test")}
  names = [f"class {i}" if form == "python" else f"class{i}" for i in range(classes)]
  content = cifar_writer.files(name, form, **found, class_names=names)
  path = folder / cifar_writer.ARCHIVES[name, form]
  cifar_writer.pack(content, cifar_writer.FOLDERS[name, form], path)
  return found


def write_idx(folder: Path, packed: bool) -> dict:
  found = {split: pixels(split, (28, 28), 10) for split in ("train", "test")}
  for split, prefix in (("train", "train"), ("test", "t10k")):
    for array, kind in zip(found[split], ("images-idx3", "labels-idx1"), strict=True):
      header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
      content = header + array.tobytes()
      name = f"{prefix}-{kind}-ubyte"
      if packed:
        name, content = f"{name}.gz", gzip.compress(content)
      (folder / name).write_bytes(content)
  return found


def write_svhn(folder: Path, splits: tuple[str, ...]) -> dict:
  found = {split: pixels(split, (32, 32, 3), 10) for split in splits}
  for split, (images, labels) in found.items():
    stored = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    arrays = {"X": images.transpose(1, 2, 3, 0), "y": stored}
    scipy.io.savemat(folder / f"{split}_32x32.mat", arrays, do_compression=True)
  return found


def write_stl10(folder: Path) -> dict:
  found = {split: pixels(split, (96, 96, 3), 10) for split in ("train", "test")}
  files = {}
  for split, (images, labels) in found.items():
    # Each channel has its columns one after another.
    files[f"stl10_binary/{split}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()
    files[f"stl10_binary/{split}_y.bin"] = (labels + 1).tobytes()
  files["stl10_binary/unlabeled_X.bin"] = bytes(96 * 96 * 3)
  (folder / "stl10_binary.tar.gz").write_bytes(gzip.compress(tar(files), 1))
  return found


def write_tiny_imagenet(folder: Path) -> dict:
  root = "tiny-imagenet-200"
  labels = {split: pixels(split, (8, 8, 3), 3)[1] for split in ("train", "val")}
  found = {split: (photos(split), labels[split]) for split in labels}
  with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
    archive.writestr(f"{root}/wnids.txt", "\n".join(reversed(SYNSETS)))
    words = ("n00000001\tcat, tom", "n00000003\tdog", "n00000009\tcar")
    archive.writestr(f"{root}/words.txt", "\n".join(words))
    for i, (photo, label) in enumerate(zip(*found["train"], strict=True)):
      name = f"{root}/train/{SYNSETS[label]}/images/{SYNSETS[label]}_{i}.JPEG"
      archive.writestr(name, photo)
    archive.writestr(f"{root}/train/n00000001/n00000001_boxes.txt", "n_0.JPEG\t0")
    lines = [f"val_{i}.JPEG\t{SYNSETS[x]}\t0\t0" for i, x in enumerate(labels["val"])]
    archive.writestr(f"{root}/val/val_annotations.txt", "\n".join(lines))
    for i, photo in enumerate(found["val"][0]):
      archive.writestr(f"{root}/val/images/val_{i}.JPEG", photo)
    archive.writestr(f"{root}/test/images/test_0.JPEG", photo)
  return found


def write_imagenet(folder: Path) -> dict:
  """Writes three classes and a group of classes, whose numbers are in another order."""
  found = {}
  labels = np.sort(pixels("train", (8, 8, 3), 3)[1])
  found["train"] = photos("train"), labels
  tars = {}
  for label, synset in enumerate(SYNSETS):
    chosen = np.flatnonzero(labels == label)
    images = {f"{synset}_{i}.JPEG": found["train"][0][i] for i in chosen}
    tars[f"{synset}.tar"] = tar(images)
  (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(tars))

  number = {synset: i for i, synset in enumerate(reversed(SYNSETS), 1)}
  photo, labels = photos("validation"), pixels("validation", (8, 8, 3), 3)[1]
  order = np.arange(len(photo))[::-1]  # The last image is the first in the archive.
  images = {f"ILSVRC2012_val_{i + 1:08}.JPEG": photo[i] for i in order}
  (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(images))
  found["validation"] = [photo[i] for i in order], labels[order]

  fields = [
    ("ILSVRC2012_ID", "O"),
    ("WNID", "O"),
    ("words", "O"),
    ("num_children", "O"),
  ]
  rows = [(i, synset, "a word", 0) for synset, i in number.items()]
  table = np.array([*rows, (4, "n00000000", "a group", 3)], fields)
  meta = io.BytesIO()
  scipy.io.savemat(meta, {"synsets": table[:, None]})
  lines = "".join(f"{number[SYNSETS[label]]}\n" for label in labels)
  kit = {
    "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": lines.encode(),
  }
  path = folder / "ILSVRC2012_devkit_t12.tar.gz"
  path.write_bytes(gzip.compress(tar(kit)))
  return found
