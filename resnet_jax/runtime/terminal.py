"""Prints text for people, in which names cannot act as terminal commands.

Names of files and classes, and errors that quote them, may contain terminal control
codes, markup of rich, or letters that the terminal's encoding lacks. The addresses of
servers may contain passwords.
"""

import functools
import io
import re
import sys
import textwrap

from rich.console import Console
from rich.text import Text

# The user and the password, or the token, in https://USER:PASSWORD@HOST.
_SECRET = re.compile(r"(?<=://)[^/?#\s]+(?=@)")


def printable(text: str) -> str:
  """Returns a text that can be shown.

  Each character that is not printable, and each line end, becomes "?". What precedes
  the host in a URL, such as USER:PASSWORD@, becomes "***@".
  """
  text = "".join(c if c.isprintable() else "?" for c in text)
  return _SECRET.sub("***", text)


def plain(text: str) -> Text:
  """Returns one line for rich, which would read brackets in a `str` as markup."""
  return Text(printable(text))


def show(*lines: str, console: Console | None = None) -> None:
  """Prints lines without markup, to standard output or above a console's bars."""
  for line in lines:
    if console is None:
      print(printable(line))
    else:
      text = printable(line)
      if console.is_terminal:  # rich would break lines within words.
        text = textwrap.fill(
          text, console.width, break_long_words=False, break_on_hyphens=False
        )
      console.print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
  """Prints a line to standard error, in the first process only."""
  import jax  # The import takes seconds; `--help` need not wait.

  if jax.process_index() == 0:
    print(f"warning: {printable(text)}", file=sys.stderr)


@functools.cache
def warn_once(text: str) -> None:
  """Calls `warn`, unless this process has already given the same warning."""
  warn(text)


def escape_unknown_letters() -> None:
  r"""Makes standard output write \xe9 for é if its encoding lacks this letter.

  Standard error does this by default; standard output would raise `UnicodeEncodeError`.
  """
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")
