"""Turns published archives into a folder of parquet files."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

from resnet_jax.config.allowed import check_choice
from resnet_jax.data.archives.known_sets import KNOWN_SETS, KnownSet
from resnet_jax.data.archives.parquet_writer import write_split
from resnet_jax.data.archives.rows import Row, Split, check, reading
from resnet_jax.runtime.atomic_files import new_folder
from resnet_jax.runtime.errors import NotFoundError, UserError, naming

# Lists the sums as `sha256sum` does, which checks the files.
SUMS = "SHA256SUMS"


class Prepared(NamedTuple):
  """What was written.

  Attributes:
    folder: path of the data set.
    counts: number of images of each split.
    num_classes: number of classes.
    left_out: what was not written, such as "the split extra"; "" if nothing.
    unchecked: names of the files that have no published sum.
  """

  folder: str
  counts: dict[str, int]
  num_classes: int
  left_out: str
  unchecked: list[str]


def prepare(
  name: str,
  sources: Sequence[str],
  folder: str = "",
  progress: Progress | None = None,
) -> Prepared:
  """Writes the images of a well-known data set as parquet files.

  The folder gets `data/SPLIT-00000-of-00001.parquet` and the sums of all files. After
  an error, nothing is left.

  Args:
    name: one of `KNOWN_SETS`.
    sources: paths of the published files, or of folders that hold them.
    folder: a new or empty folder; "" is the name of the data set.
    progress: displays the progress.

  Raises:
    UserError: a file is missing, damaged or another one; the folder is not empty.
    NotFoundError: a source does not exist.
  """
  check_choice("NAME", name, KNOWN_SETS)
  known = KNOWN_SETS[name]
  folder = os.path.expanduser(folder or name)
  if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
    raise UserError(f"--out {folder!r} must be a new or an empty folder")
  files = _find_files(name, known, [Path(os.path.expanduser(s)) for s in sources])
  skipped = [s for s in known.optional if s not in files]
  counts = {split: n for split, n in known.splits.items() if split not in skipped}
  left_out = [f"the split {split}" for split in skipped]
  left_out += [known.left_out] if known.left_out else []
  num_classes = 0
  # The folder is made first: a mistake in its name is found before hours of work.
  with progress or Progress(disable=True) as bar, new_folder(folder) as new:
    sums = _check_files(known, files, bar)
    with naming(folder):
      (new / "data").mkdir()
      for split, count in counts.items():
        read = known.read(files, split)
        num_classes = len(read.class_names)
        task = bar.add_task(f"Writing {split}", total=count)
        rows = bar.track(
          _checked_rows(read, count, files, split), total=count, task_id=task
        )
        write_split(read._replace(rows=rows), split, new / "data")
      written = _sum_files(sorted((new / "data").iterdir()), bar, "Writing the sums")
      lines = [f"# made from {file} {value}" for file, value in sums.items()]
      lines += [f"{value}  data/{file}" for file, value in written.items()]
      (new / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")
  unchecked = [path.name for path in files.values() if not _published(known, path.name)]
  return Prepared(folder, counts, num_classes, " and ".join(left_out), unchecked)


def _find_files(name: str, known: KnownSet, sources: Sequence[Path]) -> dict[str, Path]:
  """Returns the path of each part."""
  names = [file for part in known.parts.values() for file in part]
  found: dict[str, Path] = {}
  for source in sources:
    if not source.exists():
      raise NotFoundError(f"--from: there is no file or folder {str(source)!r}")
    if source.is_dir():
      found |= {file: source / file for file in names if (source / file).is_file()}
    elif source.name in names:
      found[source.name] = source
    else:
      raise UserError(
        f"--from {str(source)!r} is no file of {name}, which are: {', '.join(names)}"
      )
  files = {
    part: next(found[file] for file in choices if file in found)
    for part, choices in known.parts.items()
    if found.keys() & choices.keys()
  }
  missing = [
    " or ".join(choices)
    for part, choices in known.parts.items()
    if part not in files and part not in known.optional
  ]
  if missing:
    raise UserError(
      f"--from has no {', no '.join(missing)}, which {name} needs; download it from "
      f"{known.url}"
    )
  return files


def _published(known: KnownSet, file: str) -> str:
  """Returns the published sum of a file, or ""."""
  return next((part[file] for part in known.parts.values() if file in part), "")


def _check_files(
  known: KnownSet, files: Mapping[str, Path], bar: Progress
) -> dict[str, str]:
  """Returns the sum of each file by its name; raises `UserError` if one differs."""
  sums = _sum_files([*files.values()], bar, "Checking the files")
  for path in files.values():
    found, expected = sums[path.name], _published(known, path.name)
    if expected and found != expected:
      raise UserError(
        f"{str(path)!r} is damaged, or another file: its SHA-256 sum is {found}, not "
        f"{expected}; download it again from {known.url}"
      )
  return sums


def _sum_files(paths: Sequence[Path], bar: Progress, text: str) -> dict[str, str]:
  """Returns the SHA-256 sum of each file by its name."""
  sums = {}
  task = bar.add_task(text, total=sum(path.stat().st_size for path in paths))
  for path in paths:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
      while chunk := file.read(2**20):
        digest.update(chunk)
        bar.advance(task, len(chunk))
    sums[path.name] = digest.hexdigest()
  return sums


def _checked_rows(
  read: Split, count: int, files: Mapping[str, Path], split: str
) -> Iterator[Row]:
  """Yields the rows; raises `UserError` unless there are `count` with right labels."""
  path = next(
    (path for part, path in files.items() if part.startswith(split)),
    next(iter(files.values())),
  )
  found = 0
  with reading(path):
    for row in read.rows:
      check(
        0 <= row.label < len(read.class_names),
        f"image {found} of {split} has the label {row.label}",
      )
      found += 1
      yield row
    check(found == count, f"{split} has {found:,} images, not {count:,}")
