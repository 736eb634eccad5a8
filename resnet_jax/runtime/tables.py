"""Writes tables as Markdown, CSV and aligned text."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.runtime.atomic_files import write_text
from resnet_jax.runtime.terminal import printable

Table = list[list[str]]  # Rows of equal length, the header first.
# Characters that end a cell in Markdown, or begin a tag, a link or an image.
_ENTITIES = str.maketrans({c: f"&#{ord(c)};" for c in "&<|["})

# Characters that begin a formula; in Japanese settings, their wide forms do too.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def markdown(table: Sequence[Sequence[str]]) -> str:
  """Returns a table in GitHub's Markdown. Cells are escaped, to be shown as plain text.

  Args:
    table: rows of equal length, the header first.
  """
  cells = ([printable(cell).translate(_ENTITIES) for cell in row] for row in table)
  header, *lines = (f"| {' | '.join(row)} |\n" for row in cells)
  return header + "|---" * len(table[0]) + "|\n" + "".join(lines)


def aligned(table: Sequence[Sequence[str]], longest: int = 60) -> list[str]:
  """Returns a table as lines of text; all columns but the first end at the right.

  Args:
    table: rows of equal length, the header first.
    longest: longer cells are cut to so many letters.
  """
  cut = [
    [c if len(c) <= longest else f"{c[: longest - 1]}…" for c in row] for row in table
  ]
  first, *others = (max(map(len, column)) for column in zip(*cut, strict=True))
  return [
    "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in cut
  ]


def as_csv(table: Sequence[Sequence[str]]) -> str:
  """Returns a table as CSV, without formulas for spreadsheets.

  Args:
    table: as in `markdown`. A cell that begins like a formula and is not a number gets
      a "'" before it, by which spreadsheets mark text.
  """
  buffer = io.StringIO()
  csv.writer(buffer).writerows([_as_text(printable(c)) for c in row] for row in table)
  return buffer.getvalue()


def _as_text(cell: str) -> str:
  try:
    float(cell)
  except ValueError:
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) else cell
  return cell


def write_table(path: Path, table: Sequence[Sequence[str]]) -> None:
  """Writes a table, as in `markdown`, to `path`.md and `path`.csv."""
  write_text(path.with_name(f"{path.name}.md"), markdown(table))
  write_text(path.with_name(f"{path.name}.csv"), as_csv(table))
