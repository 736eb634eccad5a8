"""Writes a split as parquet files, as data sets lie on the Hugging Face hub.

The columns are `image` (the content of an image file and its name) and `label`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.archives.rows import Row, Split
from resnet_jax.data.images.png import encode_png

# A reader of one image reads its whole group of rows, so groups are small.
_GROUP_ROWS = 100
_GROUP_BYTES = 2**20
# The Hugging Face hub has files of this size too.
_FILE_BYTES = 500_000_000


def write_split(split: Split, name: str, folder: Path) -> None:
  """Writes a split as `NAME-00000-of-00002.parquet` and so on.

  Args:
    split: its images. Pixels are written as PNG files, which lose nothing.
    name: its name.
    folder: an existing folder.
  """
  import pyarrow as pa
  from pyarrow import parquet

  schema = _schema(split.class_names)
  groups = _groups(split.rows)
  group = next(groups, None)
  files: list[Path] = []
  while group:
    files.append(folder / f"{name}-{len(files):05}")
    written = 0
    # Images are compressed already, and their smallest and largest bytes mean nothing.
    with parquet.ParquetWriter(
      files[-1],
      schema,
      compression="none",
      use_dictionary=False,
      write_statistics=False,
    ) as writer:
      while group and written < _FILE_BYTES:
        images = [
          {"bytes": image, "path": row_name or None} for image, _, row_name in group
        ]
        labels = [label for _, label, _ in group]
        arrays = [
          pa.array(images, schema.field("image").type),
          pa.array(labels, schema.field("label").type),
        ]
        writer.write_table(pa.table(arrays, schema=schema))
        written += sum(len(image) for image, *_ in group)
        group = next(groups, None)
  for file in files:
    file.rename(f"{file}-of-{len(files):05}.parquet")


def _schema(class_names: tuple[str, ...]) -> Any:
  import pyarrow as pa

  label = {"names": list(class_names), "_type": "ClassLabel"}
  features = {"image": {"_type": "Image"}, "label": label}
  return pa.schema(
    [
      ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
      ("label", pa.int64()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": features}})},
  )


def _groups(rows: Iterable[Row]) -> Iterator[list[tuple[bytes, int, str]]]:
  """Yields the rows in groups, with all images as content of files."""
  group: list[tuple[bytes, int, str]] = []
  size = 0
  for image, label, name in rows:
    content = encode_png(image) if isinstance(image, np.ndarray) else image
    if group and (len(group) == _GROUP_ROWS or size + len(content) > _GROUP_BYTES):
      yield group
      group, size = [], 0
    group.append((content, label, name))
    size += len(content)
  if group:
    yield group
