"""docs/draw.py still draws every figure of docs/residual_learning.md."""

import re
import runpy
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"


def test_every_figure_of_the_page_is_drawn(tmp_path):
  page = (DOCS / "residual_learning.md").read_text()
  shown = set(re.findall(r"!\[[^]]*\]\(images/([\w.]+)\)", page))
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
