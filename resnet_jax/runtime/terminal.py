"""What a person reads: text in which no name is a command.

Names of files and classes, and errors that quote them, may hold codes that a terminal
obeys, markup of rich, or letters that the terminal's encoding lacks.
"""

import io
import sys
import textwrap

from rich.console import Console
from rich.text import Text


def printable(text: str) -> str:
  """Replaces what a terminal would obey or refuse, the ends of lines too, by "?"."""
  return "".join(c if c.isprintable() else "?" for c in text)


def plain(text: str) -> Text:
  """Returns one line for rich, which takes the brackets of a `str` for markup."""
  return Text(printable(text))


def show(*lines: str, console: Console | None = None) -> None:
  """Prints lines as they are, to standard output or above the bars of a console."""
  for line in lines:
    if console is None:
      print(printable(line))
    else:
      text = printable(line)
      if console.is_terminal:  # It would break lines within words.
        text = textwrap.fill(
          text, console.width, break_long_words=False, break_on_hyphens=False
        )
      console.print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
  """Prints a line to standard error, in the first process."""
  import jax  # It takes seconds, for which `--help` need not wait.

  if jax.process_index() == 0:
    print(f"warning: {printable(text)}", file=sys.stderr)


def escape_unknown_letters() -> None:
  r"""Has standard output write \xe9 for é where its encoding lacks it.

  Standard error does so by default; standard output would raise `UnicodeEncodeError`.
  """
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")
