"""Scans a data set for problems before training.

Every image is read and decoded once, as in training. N is the number of images of a
split.
"""

import dataclasses
import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from resnet_jax.config.data_settings import KINDS_OF_FILES
from resnet_jax.config.schema import DataConfig
from resnet_jax.data import count_classes, known_labels
from resnet_jax.data.audit.contact_sheet import draw_contact_sheet
from resnet_jax.data.audit.near_duplicates import (
  find_similar,
  look_same,
  perceptual_hash,
  read_small,
  shrink,
)
from resnet_jax.data.audit.report import Report, SplitReport
from resnet_jax.data.audit.splits import Images, open_splits
from resnet_jax.data.images.decode import open_image, upright_size
from resnet_jax.data.images.errors import ImageError, UnfitError
from resnet_jax.data.images.formats import KNOWN, READABLE
from resnet_jax.data.images.pixels import PixelFormat, to_pixels
from resnet_jax.data.pipelines.host_batches import count_threads
from resnet_jax.data.sources.file_list import (
  count_other_suffixes,
  files_below,
)
from resnet_jax.data.sources.folder import find_root
from resnet_jax.runtime.errors import UserError, map_with_flags

# Only these facts are kept per image, so that a set of millions fits in
# memory. An unreadable image has no format.
_FACTS = np.dtype("S16, i4, i4, i4, S12, S5, u8, ?")
_FACTS.names = (
  *("digest", "label", "width", "height", "mode", "format"),
  *("hash", "is_turned"),
)
_FORMAT_OF = {suffix: name for name in READABLE for suffix in KNOWN[name].suffixes}
_CHUNK = 32  # Images per task. A thread that is told to stop finishes its task.
# Similar images of two splits that are decoded again and compared. More would take
# hours, if most images are empty pages, for example.
_MOST_PAIRS = 10_000
_FEW = 10  # Fewer training images of a class are reported.


def scan(
  config: DataConfig, picture: str = "", progress: Progress | None = None
) -> Report:
  """Reads and checks every image of every split.

  Args:
    config: only `name`, `dir`, `labels`, the columns, `val_share`, `channels`,
      `max_value`, `max_pixels` and `num_threads` are used. The images that are built in
      cannot be checked.
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
  opened, skipped, unreadable = open_splits(config)
  ignored: dict[str, int] = {}
  in_folder = 0
  if config.name == "folder" and (root := find_root(config.dir)).is_dir():
    ignored, in_folder = _count_files(root)
  facts: dict[str, np.ndarray] = {}
  misnamed: list[dict[str, str]] = []
  unfit: list[dict[str, str]] = []
  highest: list[int] = []
  with progress or Progress(disable=True) as bar:
    for split, source in opened.items():
      found = _look(source, config, split, bar)
      facts[split] = found.facts
      highest += found.highest
      for reports, key, texts in (
        (unreadable, "reason", found.errors),
        (unfit, "reason", found.unfit),
        (misnamed, "format", found.misnamed),
      ):
        reports += [{"file": source.name(i), key: text} for i, text in sorted(texts)]
  splits = {split: _sum_up(opened[split], rows) for split, rows in facts.items()}
  missing = {
    split: [name for name, count in part.classes.items() if not count]
    for split, part in splits.items()
  }
  first = "train" if "train" in opened else next(iter(opened))
  if picture and (facts[first]["format"] != b"").any():
    draw_contact_sheet(opened[first], facts[first], picture, config.max_pixels)
  else:
    picture = ""
  return Report(
    source=config.dir if config.name in KINDS_OF_FILES else config.name,
    splits=splits,
    skipped=skipped,
    unreadable=unreadable,
    unfit=unfit,
    **_find_duplicates(opened, facts),
    near_duplicates=_find_near_duplicates(opened, facts, config.max_pixels),
    missing_classes={split: names for split, names in missing.items() if names},
    few_images={
      name: count
      for name, count in splits[first].classes.items()
      if first == "train" and 0 < count < _FEW
    },
    misnamed=misnamed,
    turned=sum(int(rows["is_turned"].sum()) for rows in facts.values()),
    ignored=ignored,
    unlisted=max(0, in_folder - sum(map(len, opened.values()))),
    sixteen_bits=len(highest),
    highest_value=max(highest, default=0),
    picture=picture,
  )


def _count_files(root: Path) -> tuple[dict[str, int], int]:
  """Returns the number of files per non-image suffix, and the number of images."""
  paths = files_below(root)
  others = count_other_suffixes(paths)
  return dict(sorted(others.items())), len(paths) - others.total()


@dataclasses.dataclass
class _Findings:
  """What is found in a split.

  Attributes:
    facts: [N] `_FACTS`.
    errors: (index, reason) of each unreadable image.
    unfit: (index, reason) of each image that does not fit the settings.
    misnamed: (index, format) of each misnamed file.
    highest: the highest value of each 16-bit image.
  """

  facts: np.ndarray
  errors: list[tuple[int, str]] = dataclasses.field(default_factory=list)
  unfit: list[tuple[int, str]] = dataclasses.field(default_factory=list)
  misnamed: list[tuple[int, str]] = dataclasses.field(default_factory=list)
  highest: list[int] = dataclasses.field(default_factory=list)


def _look(source: Images, config: DataConfig, split: str, bar: Progress) -> _Findings:
  """Reads all images of a split."""
  found = _Findings(facts := np.zeros(len(source), _FACTS))
  labels = known_labels(source)
  facts["label"] = -1 if labels is None or labels.ndim > 1 else labels
  pixels = PixelFormat(config.channels, config.max_value)

  def read(start: int) -> None:
    for i in range(start, min(start + _CHUNK, len(source))):
      try:
        data, label = source[i]
        # Several classes are counted by `_sum_up`.
        number = label if np.ndim(label) == 0 else -1
        facts["label"][i] = number
        image = open_image(data, config.max_pixels)
        size = upright_size(image)
        mode, kind = image.mode, str(image.format)
        stored = read_small(data, image)
        if stored.top == 65535:
          found.highest.append(int(stored.colors.max()))
      except Exception as error:  # Libraries raise errors of many types.
        text = str(error) if isinstance(error, ImageError) else repr(error)
        found.errors.append((i, text))
        continue
      try:
        to_pixels(stored, pixels)
      except UnfitError as error:
        found.unfit.append((i, str(error)))
      digest = hashlib.blake2b(data, digest_size=16).digest()
      look = perceptual_hash(shrink(stored.colors))
      is_turned = image.orientation > 1
      facts[i] = (digest, number, *size, mode, kind, look, is_turned)
      suffix = os.path.splitext(source.name(i))[1].lower()
      # MPO is a JPEG that is followed by more pictures.
      if _FORMAT_OF.get(suffix, kind) != kind.replace("MPO", "JPEG"):
        found.misnamed.append((i, kind))

  task = bar.add_task(split, total=len(source))
  pool = ThreadPoolExecutor(config.num_threads or count_threads(), "check")
  try:
    starts = range(0, len(source), _CHUNK)
    for _ in map_with_flags(pool, read, starts):
      bar.advance(task, _CHUNK)
  finally:
    # After Ctrl-C, a million images may still wait to be read.
    pool.shutdown(wait=False, cancel_futures=True)
  return found


def _sum_up(source: Images, facts: np.ndarray) -> SplitReport:
  known = known_labels(source)
  counts: Sequence[int]
  if known is not None and known.ndim > 1:
    counts = count_classes(source)
  else:
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
    classes=dict(zip(source.class_names if counts else (), counts, strict=True)),
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


def _find_near_duplicates(
  opened: dict[str, Images], facts: dict[str, np.ndarray], max_pixels: int
) -> list[list[str]]:
  """Returns the names of each two images of different splits that look the same."""

  def small(source: Images, index: int) -> np.ndarray:
    data = source[index][0]
    return shrink(read_small(data, open_image(data, max_pixels)).colors)

  found = []
  for names in itertools.combinations(opened, 2):
    first, second = (opened[name] for name in names)
    rows, others = (facts[name] for name in names)
    good, also = (np.flatnonzero(x["format"] != b"") for x in (rows, others))
    pairs = find_similar(rows["hash"][good], others["hash"][also])
    for a, b in pairs[:_MOST_PAIRS]:
      i, j = int(good[a]), int(also[b])
      if rows["digest"][i] != others["digest"][j] and look_same(
        small(first, i), small(second, j)
      ):
        found.append([first.name(i), second.name(j)])
  return found
