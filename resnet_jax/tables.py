"""Tables as text."""

from collections.abc import Sequence


def markdown(table: Sequence[Sequence[str]]) -> str:
  """Returns a table in GitHub's Markdown.

  Args:
    table: rows of equal length, the header first; no cell has a line's end.
  """
  cells = ([cell.replace("|", r"\|") for cell in row] for row in table)
  header, *lines = (f"| {' | '.join(row)} |\n" for row in cells)
  return header + "|---" * len(table[0]) + "|\n" + "".join(lines)
