"""A name that is a command to whatever shows it, and how it must be shown."""

# Markup of rich, an emoji of rich, codes that a terminal obeys, the bell, an end of
# line, the mark that turns the direction of text, a formula of Matplotlib and a wrong
# one, and a byte that is no UTF-8.
NAME = "[red]:cat:\x1b[31m\x1b]0;title\x07\n\u202e$x^$ $ \udcff"
SHOWN = "[red]:cat:?[31m?]0;title???$x^$ $ ?"


def assert_text(*outputs: str) -> None:
  """Asserts that nothing that was printed is a command to a terminal."""
  for output in outputs:
    assert all(line.isprintable() for line in output.split("\n")), repr(output)
