"""Tables as text."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.runtime.atomic_files import write_text


def markdown(table: Sequence[Sequence[str]]) -> str:
  """Returns a table in GitHub's Markdown.

  Args:
    table: rows of equal length, the header first; no cell has a line's end.
  """
  cells = ([cell.replace("|", r"\|") for cell in row] for row in table)
  header, *lines = (f"| {' | '.join(row)} |\n" for row in cells)
  return header + "|---" * len(table[0]) + "|\n" + "".join(lines)


def write_table(path: Path, table: Sequence[Sequence[str]]) -> None:
  """Writes a table, as for `markdown`, to `path` with .md and with .csv behind it."""
  write_text(path.with_name(f"{path.name}.md"), markdown(table))
  buffer = io.StringIO()
  csv.writer(buffer).writerows(table)
  write_text(path.with_name(f"{path.name}.csv"), buffer.getvalue())
