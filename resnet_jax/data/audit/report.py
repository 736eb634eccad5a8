"""The report on a data set, and its text. N is the number of images of a split."""

import dataclasses
import statistics
from collections import defaultdict
from typing import Any

from resnet_jax.data.images.formats import needed_package
from resnet_jax.runtime.terminal import printable


@dataclasses.dataclass(frozen=True)
class SplitReport:
  """What a split holds.

  Attributes:
    images: N, including unreadable images.
    classes: number of images per class; {} if the labels are numbers.
    sizes: "width" and "height" of the upright images in pixels, each with "min",
      "median" and "max". "frequent" has the number of images of each of the 5 most
      frequent sizes. Empty if no image can be read.
    modes, formats: number of images per mode and per format, by Pillow's names.
  """

  images: int
  classes: dict[str, int]
  sizes: dict[str, dict[str, Any]]
  modes: dict[str, int]
  formats: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Report:
  """What a data set holds and what is wrong with it.

  Attributes:
    source: folder, table or name of the data set.
    splits: the report on each split, by name.
    skipped: splits without images or labels, with the reason.
    unreadable: "file" and "reason" of each unreadable image or folder of a split.
    unfit: "file" and "reason" of each readable image that does not fit the number of
      channels or the range of values that training expects.
    duplicates: groups of identical files; groups across splits come first.
    across_splits: number of groups across splits.
    different_labels: the groups whose files belong to several classes.
    near_duplicates: the names of each two images of different splits that look almost
      the same, though their files differ.
    missing_classes: the classes without images, per split.
    few_images: the number of images of each class that has fewer than 10 in "train".
    misnamed: "file" and true "format" of images whose suffix names another format.
    turned: number of images that EXIF asks to turn or mirror, which is done.
    ignored: number of files in the folder per non-image suffix.
    unlisted: number of images in the folder that are in no class of a split.
    sixteen_bits: number of images with 16 bits per channel.
    highest_value: highest value in images with 16 bits per channel, such as 4095 of
      65535; 0 if no image has 16 bits.
    picture: path of the contact sheet, or "".
  """

  source: str
  splits: dict[str, SplitReport]
  skipped: dict[str, str]
  unreadable: list[dict[str, str]]
  unfit: list[dict[str, str]]
  duplicates: list[list[str]]
  across_splits: int
  different_labels: list[list[str]]
  near_duplicates: list[list[str]]
  missing_classes: dict[str, list[str]]
  few_images: dict[str, int]
  misnamed: list[dict[str, str]]
  turned: int
  ignored: dict[str, int]
  unlisted: int
  sixteen_bits: int
  highest_value: int
  picture: str

  @property
  def ok(self) -> bool:
    """Whether training can use all images, and no file is in two splits.

    Training can use them if they are readable and fit the settings, and if "train" has
    images of every class.
    """
    is_whole = "train" not in self.missing_classes
    bad = self.unreadable or self.unfit
    return is_whole and not bad and not self.across_splits


def describe(report: Report) -> str:
  """Returns the report as text."""
  lines = [report.source]
  for split, part in report.splits.items():
    ranked = sorted((-count, name) for name, count in part.classes.items() if count)
    of_classes = f" of {len(ranked):,} classes" if part.classes else ""
    lines += ["", f"{split}: {part.images:,} images{of_classes}"]
    for side in ("width", "height") if part.sizes else ():
      text = "{min} to {max}, median {median:g}".format(**part.sizes[side])
      lines.append(f"  {side:8} {text}")
    for name, counts in (
      ("sizes", part.sizes.get("frequent", {})),
      ("modes", part.modes),
      ("formats", part.formats),
    ):
      lines.append(f"  {name:8} {_join_counts(counts)}")
    if part.classes:
      lines.append("  images of each class")
    shown = [f"  {-count:8,} {name}" for count, name in ranked]
    if len(shown) > 20:
      median = statistics.median(-count for count, _ in ranked)
      shown[5:-5] = [f"       ... the median is {median:g}"]
    lines += shown
  lines.append("")
  for split, why in report.skipped.items():
    lines.append(f"split {split} is left out: {why}")
  for split, names in report.missing_classes.items():
    lines += _list_some(f"classes missing in {split}", names)
  few = [f"{name}: {count}" for name, count in report.few_images.items()]
  lines += _list_some("classes with fewer than 10 training images", few)
  if report.turned:
    lines.append(
      f"images that EXIF turns or mirrors: {report.turned:,}; training turns them too, "
      "but other programs may not"
    )
  if report.ignored:
    lines.append(f"files ignored for their suffix: {_join_counts(report.ignored)}")
    for suffix in report.ignored:
      if package := needed_package(suffix):
        lines.append(f"  to read {suffix} files: `pip install {package}`")
  if report.unlisted:
    lines.append(
      f"images ignored because they belong to no class of a split: {report.unlisted:,}"
    )
  if report.sixteen_bits:
    highest = report.highest_value
    lines.append(f"images of 16 bits a channel: {report.sixteen_bits:,}")
    lines.append(f"  values up to {highest:,} of 65,535")
    if (bits := highest.bit_length()) < 16:
      lines.append(
        f"  only {bits} bits are in use: set config.data.max_value={2**bits - 1}"
      )
  misnamed = [f"{one['file']} is {one['format']}" for one in report.misnamed]
  lines += _list_some("files whose suffix names another format (no error)", misnamed)
  across = report.duplicates[: report.across_splits]
  for text, groups in (
    ("equal files across splits", across),
    ("equal files within a split", report.duplicates[len(across) :]),
    ("equal files of different classes", report.different_labels),
  ):
    lines += _list_some(text, [" = ".join(group) for group in groups])
  near = [" ~ ".join(pair) for pair in report.near_duplicates]
  lines += _list_some("images that look the same across splits (no error)", near)
  if report.unfit:
    lines += _describe_unfit(report.unfit)
  bad = [f"{one['file']}: {one['reason']}" for one in report.unreadable]
  lines += _list_some("unreadable", bad, most=len(bad))
  if report.picture:
    lines.append(f"picture of some images: {report.picture}")
  return "\n".join(map(printable, lines))


def _describe_unfit(unfit: list[dict[str, str]]) -> list[str]:
  """Returns one line for each reason, however many images have it."""
  files = defaultdict(list)
  for one in unfit:
    files[one["reason"]].append(one["file"])
  texts = [
    f"{names[0]}{f' and {len(names) - 1:,} more' if names[1:] else ''}: {reason}"
    for reason, names in files.items()
  ]
  title = f"images that do not fit the settings: {len(unfit):,}"
  return [title, *_list_some("", texts)[1:]]


def _join_counts(counts: dict[str, int]) -> str:
  return ", ".join(f"{name or 'none'} {count:,}" for name, count in counts.items())


def _list_some(title: str, items: list[str], most: int = 10) -> list[str]:
  more = [f"  and {len(items) - most:,} more"] if len(items) > most else []
  return [f"{title}: {len(items):,}", *(f"  {item}" for item in items[:most]), *more]
