"""Links within the documentation lead to files and headings that exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
  ROOT / "README.md",
  ROOT / "CONTRIBUTING.md",
  ROOT / "CHANGELOG.md",
  ROOT / "benchmarks" / "NOTES.md",
  *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1[`~]* *$", re.M | re.S)
CODE = re.compile(r"(`+)(?!`)((?!\n\n).)+?(?<!`)\1(?!`)", re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)
INLINE_LINK = re.compile(r"\]\(\s*(<[^<>]*>|[^\s()]+)[^()]*\)")
REFERENCE_LINK = re.compile(r"^ {0,3}\[[^]^]+\]:\s*(<[^<>]*>|\S+)", re.M)
HEADING = re.compile(r"^ {0,3}#{1,6} +(.*?)(?: +#+)? *$", re.M)


def prose(text: str) -> str:
  """Returns a page without its blocks of code and its comments."""
  return COMMENT.sub("", FENCE.sub("", text))


def anchors(text: str) -> list[str]:
  """Returns the anchors that GitHub gives to the headings of a page."""
  found: list[str] = []
  for heading in HEADING.findall(prose(text)):
    shown = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
    slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
    anchor, number = slug, 0
    while anchor in found:
      number += 1
      anchor = f"{slug}-{number}"
    found.append(anchor)
  return found


def links(text: str) -> Iterator[str]:
  """Yields the targets of a page's links, except URLs."""
  text = CODE.sub("code", prose(text))
  for target in INLINE_LINK.findall(text) + REFERENCE_LINK.findall(text):
    target = target.strip("<>")
    if not re.match(r"[a-zA-Z][\w+.-]*:", target):
      yield unquote(target)


def dead_links(page: Path) -> list[str]:
  """Returns the relative links of a page that lead nowhere."""
  dead = []
  for link in links(page.read_text(encoding="utf-8")):
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists() or (
      anchor
      and target.suffix == ".md"
      and anchor not in anchors(target.read_text(encoding="utf-8"))
    ):
      dead.append(link)
  return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
  assert dead_links(page) == []


def test_anchors_follow_the_rule_of_github():
  page = """
# Your own photos, and *ImageNet*
## `resnet-jax train`: a_b  C!
## Twice
## Twice ##
### [Twice](other.md)
## Über 9+9
```bash
# no heading
```
"""
  assert anchors(page) == [
    "your-own-photos-and-imagenet",
    "resnet-jax-train-a_b--c",
    "twice",
    "twice-1",
    "twice-2",
    "über-99",
  ]


def test_dead_links_are_found(tmp_path):
  (tmp_path / "other.md").write_text("# One\n")
  page = tmp_path / "page.md"
  page.write_text(
    "# Top\n[a](#top) [b](#gone) [two\nlines](other.md#one) [c](other.md#two)\n"
    "![d](gone.png 'title') `[e](code.md)` [`f`](gone.py) [g](https://h.org/#i)\n"
    "[j](<gone too.md>) <!-- [k](comment.md) --> [l][m]\n\n[m]: gone.md\n"
    "```\n[n](block.md)\n```\n"
  )
  assert dead_links(page) == [
    "#gone",
    "other.md#two",
    "gone.png",
    "gone.py",
    "gone too.md",
    "gone.md",
  ]
