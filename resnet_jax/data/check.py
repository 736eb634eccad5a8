"""What a data set holds and what is wrong with it, before a run finds out.

Every image is read and decoded once, as training does. Letters: N images of a split.
"""

import dataclasses
import functools
import hashlib
import os
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.progress import Progress

from resnet_jax.config import DataConfig
from resnet_jax.data.decode import decode, open_image, upright_size
from resnet_jax.data.files import SUFFIXES, FileList, list_images, list_splits
from resnet_jax.data.image_ops import EvalTransform
from resnet_jax.data.loader import count_threads
from resnet_jax.data.sources import TfdsImages, load_tfds

# All that is kept of an image, so that a million fit in memory. Those that cannot be
# read have no format.
_FOUND = np.dtype(
  [
    ("digest", "S16"),
    ("label", np.int32),
    ("width", np.int32),
    ("height", np.int32),
    ("mode", "S8"),
    ("format", "S4"),
  ]
)
_FORMAT_OF = {suffix: suffix[1:].upper() for suffix in SUFFIXES} | {".jpg": "JPEG"}
# What one thread does before it hears that it shall stop.
_CHUNK = 32
_SIDE, _GAP, _COLUMNS, _ROWS = 96, 4, 8, 10  # Of the contact sheet.


@dataclasses.dataclass(frozen=True)
class SplitReport:
  """What a split holds.

  Attributes:
    images: N, with those that cannot be read.
    classes: images of each class.
    sizes: "width" and "height" in pixels, upright, each [smallest, median, largest],
      and "frequent", the images of the 5 most frequent sizes; empty if none is read.
    modes, formats: images of each, as Pillow names them.
  """

  images: int
  classes: dict[str, int]
  sizes: dict[str, list[float] | dict[str, int]]
  modes: dict[str, int]
  formats: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Report:
  """What a data set holds and what is wrong with it.

  Attributes:
    source: its folder, table or name.
    splits: by name.
    skipped: why, for the splits without images or labels.
    unreadable: "file" and "reason" of images, and of folders of splits.
    duplicates: groups of equal files, those that are in several splits first.
    across_splits: how many groups are in several splits.
    different_labels: the groups whose files are not of one class.
    missing_classes: those of which a split has no image.
    misnamed: "file" and "format" of images whose suffix says another one.
    ignored: files below the folder that are no images by their suffix, for each.
    unlisted: images below the folder that are in no class of a split.
    picture: path of the contact sheet, or "".
  """

  source: str
  splits: dict[str, SplitReport]
  skipped: dict[str, str]
  unreadable: list[dict[str, str]]
  duplicates: list[list[str]]
  across_splits: int
  different_labels: list[list[str]]
  missing_classes: dict[str, list[str]]
  misnamed: list[dict[str, str]]
  ignored: dict[str, int]
  unlisted: int
  picture: str

  @property
  def ok(self) -> bool:
    """Whether all can be read and nothing is in two splits."""
    return not self.unreadable and not self.across_splits


def scan(
  config: DataConfig, picture: str = "", progress: Progress | None = None
) -> Report:
  """Looks at every image of every split.

  Args:
    config: `name` ("folder" or a TFDS set), `dir`, `val_share`, `max_pixels` and
      `num_threads` are used.
    picture: a .png file to write some training images to; "" writes none.
    progress: shows how far it is.

  Raises:
    ValueError, FileNotFoundError: see `list_images` and `load_tfds`.
  """
  sources, skipped, unreadable = _open_splits(config)
  found, misnamed = {}, []
  with progress or Progress(disable=True) as bar:
    for split, source in sources.items():
      rows, errors, others = _look(source, config, bar, split)
      found[split] = rows
      unreadable += [{"file": source.name(i), "reason": text} for i, text in errors]
      misnamed += [{"file": source.name(i), "format": text} for i, text in others]
  splits = {split: _sum_up(sources[split], rows) for split, rows in found.items()}
  missing = {
    split: [name for name, count in report.classes.items() if not count]
    for split, report in splits.items()
  }
  ignored: dict[str, int] = {}
  images = 0
  root = Path(config.dir).expanduser()
  if config.name == "folder" and root.is_dir():
    ignored, images = _count_files(root)
  first = next(iter(sources))
  if picture:
    picture = _write_contact_sheet(sources[first], found[first], picture, config)
  return Report(
    source=config.dir if config.name == "folder" else config.name,
    splits=splits,
    skipped=skipped,
    unreadable=unreadable,
    **_find_duplicates(sources, found),
    missing_classes={split: names for split, names in missing.items() if names},
    misnamed=misnamed,
    ignored=ignored,
    unlisted=max(0, images - sum(map(len, sources.values()))),
    picture=picture,
  )


def _open_splits(
  config: DataConfig,
) -> tuple[dict[str, FileList | TfdsImages], dict[str, str], list[dict[str, str]]]:
  """Returns the splits, why others are skipped, and those that are refused."""
  opened: dict[str, FileList | TfdsImages] = {}
  skipped, refused = {}, []
  if config.name == "folder":
    root = Path(config.dir).expanduser()
    for split in list_splits(root):
      try:
        files = list_images(root, split, config.val_share)
      except (ValueError, OSError) as error:
        if not opened:
          raise
        refused.append({"file": str(root / split), "reason": str(error)})
        continue
      if len(files):
        opened[split] = files
      else:
        skipped[split] = "it has no images"
    return opened, skipped, refused
  if config.name in ("digits", "synthetic"):
    raise ValueError(
      f"config.data.name={config.name!r} is built in; name a folder, a .csv file or a "
      "TFDS set to check"
    )
  whole = load_tfds(config.name, config.dir, "all", stream=True)
  assert isinstance(whole, TfdsImages)
  for split, info in whole.records.dataset_info.splits.items():
    if not info.num_examples:
      skipped[split] = "it has no images"
      continue
    records = load_tfds(config.name, config.dir, split, stream=True)
    assert isinstance(records, TfdsImages)
    if _has_labels(records):
      opened[split] = records
    else:
      skipped[split] = "its images have no labels"
  if not opened:
    raise ValueError(f"config.data.name={config.name!r} has no split with labels")
  return opened, skipped, refused


def _has_labels(source: TfdsImages) -> bool:
  try:
    return source.records[0]["label"] >= 0
  except Exception:  # The scan says what is wrong with it.
    return True


def _look(
  source: FileList | TfdsImages, config: DataConfig, bar: Progress, split: str
) -> tuple[np.ndarray, list[tuple[int, str]], list[tuple[int, str]]]:
  """Returns [N] `_FOUND`, (index, reason) of the unreadable, (index, format)."""
  found = np.zeros(len(source), _FOUND)
  found["label"] = source.labels if isinstance(source, FileList) else -1
  errors, misnamed = [], []
  task = bar.add_task(split, total=len(source))
  pool = ThreadPoolExecutor(config.num_threads or count_threads(), "check")
  look = functools.partial(_look_at_some, source, config.max_pixels, found)
  try:
    for start, (some, others) in zip(
      range(0, len(source), _CHUNK),
      pool.map(look, range(0, len(source), _CHUNK)),
      strict=True,
    ):
      errors += some
      misnamed += others
      bar.update(task, completed=start + _CHUNK)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
  return found, errors, misnamed


def _look_at_some(
  source: FileList | TfdsImages, max_pixels: int, found: np.ndarray, start: int
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
  """Fills in rows from `start` on; returns what `_look` returns of them."""
  errors, misnamed = [], []
  for index in range(start, min(start + _CHUNK, len(source))):
    try:
      data, label = source[index]
      found["label"][index] = label
      image = open_image(data, max_pixels)
      size, mode, kind = upright_size(image), image.mode, image.format or ""
      decode(data, image)
    except Exception as error:  # Whatever a damaged file does to a library.
      errors.append((index, str(error)))
      continue
    digest = hashlib.blake2b(data, digest_size=16).digest()
    found[index] = (digest, label, *size, mode, kind)
    suffix = os.path.splitext(source.name(index))[1].lower()
    expected = _FORMAT_OF.get(suffix, kind)
    # MPO is a JPEG file with more pictures in it.
    if expected != {"MPO": "JPEG"}.get(kind, kind):
      misnamed.append((index, kind))
  return errors, misnamed


def _sum_up(source: FileList | TfdsImages, found: np.ndarray) -> SplitReport:
  labels = found["label"][found["label"] >= 0]
  counts = np.bincount(labels, minlength=len(source.class_names)).tolist()
  good = found[found["format"] != b""]
  sizes: dict = {}
  if len(good):
    for side in ("width", "height"):
      low, high = good[side].min().item(), good[side].max().item()
      sizes[side] = [low, np.median(good[side]).item(), high]
    pairs, times = np.unique(good[["width", "height"]], return_counts=True)
    top = np.argsort(-times, kind="stable")[:5]
    names = ("x".join(map(str, pair)) for pair in pairs[top])
    sizes["frequent"] = dict(zip(names, times[top].tolist(), strict=True))
  return SplitReport(
    images=len(found),
    classes=dict(zip(source.class_names, counts, strict=True)),
    sizes=sizes,
    modes=_count(good["mode"]),
    formats=_count(good["format"]),
  )


def _count(values: np.ndarray) -> dict[str, int]:
  """Returns how often each text is there, the most frequent first."""
  names, times = np.unique(values, return_counts=True)
  order = np.argsort(-times, kind="stable")
  return {names[i].decode(): times[i].item() for i in order}


def _find_duplicates(
  sources: dict[str, FileList | TfdsImages], found: dict[str, np.ndarray]
) -> dict:
  """Returns the fields of `Report` that are about equal files."""
  every = np.concatenate(list(found.values()))
  places = [(split, i) for split, rows in found.items() for i in range(len(rows))]
  _, digest, times = np.unique(
    every["digest"], return_inverse=True, return_counts=True
  )
  groups = defaultdict(list)
  for i in np.flatnonzero((every["format"] != b"") & (times[digest] > 1)):
    groups[digest[i]].append(i)

  def names(group: Iterable[int]) -> list[str]:
    return [sources[split].name(i) for split, i in (places[n] for n in group)]

  across = [len({places[i][0] for i in group}) > 1 for group in groups.values()]
  order = np.argsort(np.logical_not(across), kind="stable")
  ordered = [list(groups.values())[i] for i in order]
  return {
    "duplicates": [names(group) for group in ordered],
    "across_splits": sum(across),
    "different_labels": [
      names(group) for group in ordered if len(set(every["label"][group])) > 1
    ],
  }


def _count_files(root: Path) -> tuple[dict[str, int], int]:
  """Returns how many files have which other suffix, and how many an image's."""
  suffixes: Counter[str] = Counter()
  for _, folders, files in os.walk(root):
    folders[:] = [name for name in folders if not name.startswith(".")]
    for name in files:
      if not name.startswith("."):
        suffixes[os.path.splitext(name)[1].lower()] += 1
  images = sum(suffixes.pop(suffix, 0) for suffix in SUFFIXES)
  return dict(suffixes.most_common()), images


def _write_contact_sheet(
  source: FileList | TfdsImages, found: np.ndarray, path: str, config: DataConfig
) -> str:
  """Draws some images of some classes; returns `path`, or "" if there are none."""
  rng = np.random.default_rng(0)
  good = found["format"] != b""
  labels = np.unique(found["label"][good])
  labels = np.sort(rng.permutation(labels)[:_ROWS])
  if not len(labels):
    return ""
  font = ImageFont.load_default(14)
  texts = [
    "\n".join(textwrap.wrap(printable(source.class_names[label]), 20)[:5])
    for label in labels
  ]
  measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
  boxes = [measure.multiline_textbbox((0, 0), text, font) for text in texts]
  left = int(max(box[2] for box in boxes)) + 3 * _GAP
  step = _SIDE + _GAP
  size = (left + _COLUMNS * step, _GAP + len(labels) * step)
  sheet = Image.new("RGB", size, "white")
  draw = ImageDraw.Draw(sheet)
  transform = EvalTransform(_SIDE, _SIDE, "bilinear", config.max_pixels)
  for row, (label, text) in enumerate(zip(labels, texts, strict=True)):
    top = _GAP + row * step
    middle = (left - 2 * _GAP, top + _SIDE / 2)
    draw.multiline_text(middle, text, "black", font, anchor="rm", align="right")
    index = np.flatnonzero(good & (found["label"] == label))
    for column, i in enumerate(rng.permutation(index)[:_COLUMNS]):
      image = Image.fromarray(transform(source[i][0], rng))
      sheet.paste(image, (left + column * step, top))
  # A reader never sees half a picture.
  sheet.save(f"{path}.part", "png")
  os.replace(f"{path}.part", path)
  return path


def printable(text: str) -> str:
  """Replaces what a terminal would obey or refuse, as names of files may hold."""
  return "".join(c if c.isprintable() else "?" for c in text)


def describe(report: Report) -> str:
  """Puts a report in words."""
  lines = [report.source]
  for split, part in report.splits.items():
    present = sum(count > 0 for count in part.classes.values())
    lines += ["", f"{split}: {part.images:,} images of {present:,} classes"]
    for side in ("width", "height"):
      if part.sizes:
        low, median, high = part.sizes[side]
        lines.append(f"  {side:8}{low} to {high}, median {median:g}")
    for name, counts in (
      ("sizes", part.sizes.get("frequent", {})),
      ("modes", part.modes),
      ("formats", part.formats),
    ):
      assert isinstance(counts, dict)
      lines.append(f"  {name:8}{_join(counts.items())}")
    if len(part.classes) > 20:
      lines += _class_lines(part.classes)
  lines += _class_table(report.splits)
  lines += [""]
  lines += [f"split {name} skipped: {why}" for name, why in report.skipped.items()]
  for split, names in report.missing_classes.items():
    lines += _section(f"classes missing in {split}", names)
  if report.ignored:
    lines.append(f"files ignored for their suffix: {_join(report.ignored.items())}")
  if report.unlisted:
    lines.append(f"images in no class of a split, ignored: {report.unlisted:,}")
  lines += _section(
    "suffix is not the format (no error)",
    [f"{one['file']}: {one['format']}" for one in report.misnamed],
  )
  head = f"groups of equal files ({report.across_splits:,} across splits)"
  lines += _section(head, list(map(_equation, report.duplicates)))
  head = "groups of equal files of different classes"
  lines += _section(head, list(map(_equation, report.different_labels)))
  texts = [f"{one['file']}: {one['reason']}" for one in report.unreadable]
  lines += _section("unreadable", texts, len(texts))
  if report.picture:
    lines.append(f"some images: {report.picture}")
  lines.append("ok" if report.ok else "not ok")
  return "\n".join(map(printable, lines))
