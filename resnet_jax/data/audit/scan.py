"""Scans a data set for problems before training.

Every image is read and decoded once, as in training. N is the number of images of a
split.
"""

import hashlib
import os
import textwrap
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.progress import Progress

from resnet_jax.config.schema import DataConfig
from resnet_jax.data.audit.report import Report, SplitReport
from resnet_jax.data.images.crops import resize_exactly, resized_box
from resnet_jax.data.images.decode import open_image, read_stored, upright_size
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.formats import KNOWN, READABLE
from resnet_jax.data.pipelines.host_batches import count_threads
from resnet_jax.data.sources.base import SPLITS
from resnet_jax.data.sources.cifar import EncodedImages, find_cifar, load_cifar
from resnet_jax.data.sources.file_list import (
  FileList,
  count_other_suffixes,
  files_below,
)
from resnet_jax.data.sources.folder import find_root, list_images, list_splits
from resnet_jax.data.sources.tfds import TfdsImages, load_tfds
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError, setting_name
from resnet_jax.runtime.terminal import printable

Images = FileList | TfdsImages | EncodedImages
# Only these facts are kept per image, so that a set of millions fits in
# memory. An unreadable image has no format.
_FACTS = np.dtype("S16, i4, i4, i4, S12, S5")
_FACTS.names = ("digest", "label", "width", "height", "mode", "format")
_FORMAT_OF = {suffix: name for name in READABLE for suffix in KNOWN[name].suffixes}
_CHUNK = 32  # Images per task. A thread that is told to stop finishes its task.
_SIDE, _GAP, _COLUMNS, _ROWS = 96, 4, 8, 10  # Sizes of the contact sheet.


def scan(
  config: DataConfig, picture: str = "", progress: Progress | None = None
) -> Report:
  """Reads and checks every image of every split.

  Args:
    config: only `name` ("folder" or a TFDS set), `dir`, `val_share`, `max_pixels` and
      `num_threads` are used.
    picture: path of a .png file to write, with some training images of some classes; ""
      writes none.
    progress: displays the progress.

  Raises:
    ValueError: `picture` is no valid .png path; see also `list_images` and `load_tfds`.
    FileNotFoundError: the data set does not exist.
  """
  sheet = Path(picture)
  if picture and (
    sheet.suffix != ".png" or sheet.is_dir() or not sheet.parent.is_dir()
  ):
    raise UserError(f"--figure {picture!r} must be a .png file in an existing folder")
  opened, skipped, unreadable = _open_splits(config)
  ignored: dict[str, int] = {}
  in_folder = 0
  if config.name == "folder" and (root := find_root(config.dir)).is_dir():
    ignored, in_folder = _count_files(root)
  facts, misnamed, highest = {}, [], []
  with progress or Progress(disable=True) as bar:
    for split, source in opened.items():
      facts[split], errors, others, values = _look(source, config, split, bar)
      highest += values
      unreadable += [{"file": source.name(i), "reason": text} for i, text in errors]
      misnamed += [{"file": source.name(i), "format": text} for i, text in others]
  splits = {split: _sum_up(opened[split], rows) for split, rows in facts.items()}
  missing = {
    split: [name for name, count in part.classes.items() if not count]
    for split, part in splits.items()
  }
  first = "train" if "train" in opened else next(iter(opened))
  if picture and (facts[first]["format"] != b"").any():
    _draw_some(opened[first], facts[first], picture, config.max_pixels)
  else:
    picture = ""
  return Report(
    source=config.dir if config.name == "folder" else config.name,
    splits=splits,
    skipped=skipped,
    unreadable=unreadable,
    **_find_duplicates(opened, facts),
    missing_classes={split: names for split, names in missing.items() if names},
    misnamed=misnamed,
    ignored=ignored,
    unlisted=max(0, in_folder - sum(map(len, opened.values()))),
    sixteen_bits=len(highest),
    highest_value=max(highest, default=0),
    picture=picture,
  )


def _open_splits(
  config: DataConfig,
) -> tuple[dict[str, Images], dict[str, str], list[dict[str, str]]]:
  """Returns the opened splits, the skipped ones, and those that cannot be listed."""
  opened: dict[str, Images] = {}
  skipped, refused = {}, []
  if config.name == "folder":
    root = find_root(config.dir)
    for split in list_splits(root):
      try:
        opened[split] = list_images(root, split, config.val_share)
      except (ValueError, OSError) as error:
        if not opened:
          raise
        refused.append({"file": str(root / split), "reason": str(error)})
  elif config.name in ("digits", "synthetic"):
    raise UserError(
      f"{setting_name('data.name')}={config.name!r} is built in: nothing to check"
    )
  elif path := find_cifar(config.name, config.dir):
    for split in SPLITS:
      images = load_cifar(config.name, path, split, stream=True)
      assert isinstance(images, EncodedImages)
      opened[split] = images
  else:
    whole = load_tfds(config.name, config.dir, "all", stream=True)
    assert isinstance(whole, TfdsImages)
    for split, info in whole.records.dataset_info.splits.items():
      if not info.num_examples:  # TFDS cannot open it.
        skipped[split] = "it has no images"
        continue
      records = load_tfds(config.name, config.dir, split, stream=True)
      assert isinstance(records, TfdsImages)
      opened[split] = records
  for split in list(opened):
    if why := _why_skipped(opened[split]):
      skipped[split] = why
      del opened[split]
  if not opened:
    raise UserError(
      f"{setting_name('data.name')}={config.name!r} has no images with labels"
    )
  return opened, skipped, refused


def _why_skipped(source: Images) -> str:
  if not len(source):
    return "it has no images"
  if isinstance(source, TfdsImages):
    try:
      if source.records[0]["label"] < 0:
        return "its images have no labels"
    except Exception:  # The scan will say what is wrong with it.
      pass
  return ""


def _count_files(root: Path) -> tuple[dict[str, int], int]:
  """Returns the number of files per non-image suffix, and the number of images."""
  paths = files_below(root)
  others = count_other_suffixes(paths)
  return dict(sorted(others.items())), len(paths) - others.total()


def _look(
  source: Images, config: DataConfig, split: str, bar: Progress
) -> tuple[np.ndarray, list[tuple[int, str]], list[tuple[int, str]], list[int]]:
  """Reads a split and returns [N] `_FACTS` and three lists.

  The lists hold (index, reason) of errors, (index, format) of misnamed files, and the
  highest value of each 16-bit image.
  """
  facts = np.zeros(len(source), _FACTS)
  facts["label"] = source.labels if isinstance(source, FileList) else -1
  errors, misnamed, highest = [], [], []

  def look(start: int) -> None:
    for i in range(start, min(start + _CHUNK, len(source))):
      try:
        data, label = source[i]
        facts["label"][i] = label
        image = open_image(data, config.max_pixels)
        size = upright_size(image)
        mode, kind = image.mode, str(image.format)
        # Reads all bytes, but computes a JPEG only at an eighth of its size.
        stored = read_stored(data, image, 8)
        if stored.top == 65535:
          highest.append(int(stored.colors.max()))
      except Exception as error:  # Libraries raise errors of many types.
        errors.append((i, str(error) if isinstance(error, ImageError) else repr(error)))
        continue
      digest = hashlib.blake2b(data, digest_size=16).digest()
      facts[i] = (digest, label, *size, mode, kind)
      suffix = os.path.splitext(source.name(i))[1].lower()
      # MPO is a JPEG that is followed by more pictures.
      if _FORMAT_OF.get(suffix, kind) != kind.replace("MPO", "JPEG"):
        misnamed.append((i, kind))

  task = bar.add_task(split, total=len(source))
  pool = ThreadPoolExecutor(config.num_threads or count_threads(), "check")
  try:
    for _ in pool.map(look, range(0, len(source), _CHUNK)):
      bar.advance(task, _CHUNK)
  finally:
    # After Ctrl-C, a million images may still wait to be read.
    pool.shutdown(wait=False, cancel_futures=True)
  return facts, sorted(errors), sorted(misnamed), highest


def _sum_up(source: Images, facts: np.ndarray) -> SplitReport:
  labels = facts["label"][facts["label"] >= 0]
  counts = np.bincount(labels, minlength=len(source.class_names)).tolist()
  good = facts[facts["format"] != b""]
  sizes: dict[str, dict[str, Any]] = {}
  if len(good):
    width, height = good["width"], good["height"]
    for side, values in (("width", width), ("height", height)):
      numbers = {"min": values.min(), "median": np.median(values), "max": values.max()}
      sizes[side] = {name: number.item() for name, number in numbers.items()}
    pairs = Counter(zip(width.tolist(), height.tolist(), strict=True))
    sizes["frequent"] = {f"{w}x{h}": times for (w, h), times in pairs.most_common(5)}
  return SplitReport(
    images=len(facts),
    classes=dict(zip(source.class_names, counts, strict=True)),
    sizes=sizes,
    modes=dict(Counter(good["mode"].astype(str).tolist()).most_common()),
    formats=dict(Counter(good["format"].astype(str).tolist()).most_common()),
  )


def _find_duplicates(
  opened: dict[str, Images], facts: dict[str, np.ndarray]
) -> dict[str, Any]:
  """Returns the fields of `Report` about identical files."""
  every = np.concatenate(list(facts.values()))
  sources = list(opened.values())
  lengths = [len(source) for source in sources]
  split = np.repeat(np.arange(len(sources)), lengths)
  index = np.concatenate([np.arange(length) for length in lengths])
  _, number, times = np.unique(every["digest"], return_inverse=True, return_counts=True)
  groups: dict[int, list[int]] = defaultdict(list)
  for i in np.flatnonzero((every["format"] != b"") & (times[number] > 1)).tolist():
    groups[number[i]].append(i)

  def names(group: list[int]) -> list[str]:
    return [sources[split[i]].name(int(index[i])) for i in group]

  across = [group for group in groups.values() if len(set(split[group])) > 1]
  within = [group for group in groups.values() if len(set(split[group])) == 1]
  labels = every["label"]
  return {
    "duplicates": [names(group) for group in across + within],
    "across_splits": len(across),
    "different_labels": [
      names(group) for group in across + within if len(set(labels[group])) > 1
    ],
  }


def _draw_some(source: Images, facts: np.ndarray, path: str, max_pixels: int) -> None:
  """Writes a contact sheet with some classes, one row of square images per class."""
  rng = np.random.default_rng(0)
  good = facts["format"] != b""
  labels = np.sort(rng.permutation(np.unique(facts["label"][good]))[:_ROWS])
  counts = np.bincount(facts["label"][facts["label"] >= 0])
  texts = []
  for label in labels.tolist():
    name = printable(source.class_names[label])
    lines = textwrap.wrap(name, 20, max_lines=4)
    count = int(counts[label])
    texts.append("\n".join([*lines, f"{count:,} image{'s' * (count != 1)}"]))
  font = ImageFont.load_default(14)
  ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
  widths = [ruler.multiline_textbbox((0, 0), text, font)[2] for text in texts]
  left, step = int(max(widths)) + 4 * _GAP, _SIDE + _GAP
  sheet = Image.new("RGB", (left + _COLUMNS * step, _GAP + len(labels) * step), "white")
  draw = ImageDraw.Draw(sheet)
  for row, (label, text) in enumerate(zip(labels, texts, strict=True)):
    top = _GAP + row * step
    middle = (2 * _GAP, top + _SIDE / 2)
    draw.multiline_text(middle, text, "black", font, anchor="lm")
    chosen = rng.permutation(np.flatnonzero(good & (facts["label"] == label)))
    for column, i in enumerate(chosen[:_COLUMNS].tolist()):
      image = Image.fromarray(_square(source[i][0], max_pixels))
      sheet.paste(image, (left + column * step, top))
  with replacing(path) as part:
    sheet.save(part, "png")


def _square(data: bytes, max_pixels: int) -> np.ndarray:
  """Returns the middle of an image, [S, S, 3] uint8, whatever it stores.

  Values that are not 8-bit are stretched, so that the highest one is white. The first
  three channels are shown in colour; of two channels, the first is shown as grey.
  """
  head = open_image(data, max_pixels)
  values = read_stored(data, head).colors
  values = values[..., : 3 if values.shape[2] >= 3 else 1]
  if values.dtype != np.uint8:
    white = float(values.max()) or 1.0
    values = np.nan_to_num(values * (255 / white)).clip(0, 255).astype(np.uint8)
  rgb = np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
  box = resized_box(*upright_size(head), _SIDE, _SIDE)
  return resize_exactly(rgb, box, _SIDE, "bilinear")
