"""docs/draw.py still draws the figures of the pages."""

import re
import runpy
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"


def figures(page: str) -> set[str]:
  """The names of the figures that a page shows."""
  text = (DOCS / page).read_text()
  return set(re.findall(r"!\[[^]]*\]\(images/([\w.]+)\)", text))


def test_every_figure_of_the_pages_is_drawn(tmp_path):
  learning, studies = figures("residual_learning.md"), figures("studies.md")
  # These two are figures of the reports of studies.
  shown = (learning | studies) - {"warmup_smoke.png", "gradients_smoke.png"}
  draw_all = runpy.run_path(str(DOCS / "draw.py"))["draw_all"]
  folder = tmp_path / "new" / "images"
  draw_all(folder, gradient_depth=8)  # 56 layers compile for half a minute.
  assert {path.name for path in folder.iterdir()} == shown
  for name in shown:
    with Image.open(folder / name) as drawn, Image.open(DOCS / "images" / name) as kept:
      assert (drawn.format, drawn.size) == ("PNG", kept.size)
      darkest, brightest = drawn.convert("L").getextrema()
      assert darkest < 64 and brightest == 255, f"{name} is empty"


def test_the_pictures_go_to_docs_if_no_folder_is_given():
  drawing = runpy.run_path(str(DOCS / "draw.py"))
  assert drawing["draw_all"].__defaults__[0] == DOCS / "images"
