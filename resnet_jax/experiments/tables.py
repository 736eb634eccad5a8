"""Tables as text."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.runtime.atomic_files import write_text
from resnet_jax.runtime.terminal import printable

# What would end a cell of Markdown, or begin a tag, a link or an image in it.
_ENTITIES = str.maketrans({c: f"&#{ord(c)};" for c in "&<|["})

# What begins a formula; in Japanese settings, its wide form does too.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def markdown(table: Sequence[Sequence[str]]) -> str:
  """Returns a table in GitHub's Markdown, in which cells are text and nothing else.

  Args:
    table: rows of equal length, the header first.
  """
  cells = ([printable(cell).translate(_ENTITIES) for cell in row] for row in table)
  header, *lines = (f"| {' | '.join(row)} |\n" for row in cells)
  return header + "|---" * len(table[0]) + "|\n" + "".join(lines)


def as_csv(table: Sequence[Sequence[str]]) -> str:
  """Returns a table as CSV, in which a spreadsheet finds no formula.

  Args:
    table: as for `markdown`. A cell that begins like a formula and is no number gets a
      "'" before it, which spreadsheets take for the sign of text.
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
  """Writes a table, as for `markdown`, to `path` with .md and with .csv behind it."""
  write_text(path.with_name(f"{path.name}.md"), markdown(table))
  write_text(path.with_name(f"{path.name}.csv"), as_csv(table))
