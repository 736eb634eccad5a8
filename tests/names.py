"""A name that programs would obey instead of showing it, and how it must be shown."""

# Markup and an emoji of rich, escape codes of a terminal, the bell, a newline, the mark
# that reverses the direction of text, a valid and an invalid formula of Matplotlib, and
# a byte that is not UTF-8.
NAME = "[red]:cat:\x1b[31m\x1b]0;title\x07\n\u202e$x^$ $ \udcff"
SHOWN = "[red]:cat:?[31m?]0;title???$x^$ $ ?"


def assert_text(*outputs: str) -> None:
  """Asserts that the outputs contain no commands to a terminal."""
  for output in outputs:
    assert all(line.isprintable() for line in output.split("\n")), repr(output)
