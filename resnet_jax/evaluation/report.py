"""The report of an evaluation: a folder with a page, tables and pictures."""

import base64
import dataclasses
import importlib.resources
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jinja2

from resnet_jax import __version__
from resnet_jax.config.data_settings import KINDS_OF_FILES
from resnet_jax.config.factories import part_name
from resnet_jax.config.preprocessing import preprocessing_of
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.pipelines.single_pass import read_image
from resnet_jax.evaluation import (
  classification,
  detection,
  multi_label,
  regression,
  scores,
  segmentation,
)
from resnet_jax.evaluation.answers import Answers, NumberAnswers, Outputs, SetAnswers
from resnet_jax.evaluation.contents import Contents, Grid
from resnet_jax.evaluation.intervals import LEVEL
from resnet_jax.evaluation.places import (
  MOST_EXAMPLES,
  BoxAnswers,
  MaskAnswers,
  PlaceAnswers,
)
from resnet_jax.evaluation.robustness import EXPLANATION, Robustness
from resnet_jax.evaluation.scores import score_rows
from resnet_jax.inference.image_grid import Picture, draw_grid
from resnet_jax.runtime.atomic_files import write_text
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.page_style import STYLE
from resnet_jax.runtime.tables import as_csv, markdown
from resnet_jax.training.evaluator import Prepared

PAGE = "report.html"
_MOST_PICTURES = 24
_COLUMNS, _COLUMNS_OF_PAIRS = 6, 2
_SIDE_OF_PAIRS = 3.0  # Inches.


class _Kind(NamedTuple):
  """How the answers of a task are scored and shown."""

  score: Callable[[Any], dict[str, float]]
  contents: Callable[[Any], Contents]


_KINDS: dict[type[Outputs | PlaceAnswers], _Kind] = {
  Answers: _Kind(scores.score, classification.contents),
  SetAnswers: _Kind(multi_label.score, multi_label.contents),
  NumberAnswers: _Kind(regression.score, regression.contents),
  MaskAnswers: _Kind(segmentation.score, segmentation.contents),
  BoxAnswers: _Kind(detection.score, detection.contents),
}


@dataclasses.dataclass(frozen=True)
class _Picture:
  """A picture of the page, in `name`.png; there is no file if `text` says why."""

  name: str
  title: str
  text: str
  data: str = ""
  is_chart: bool = False


def score(answers: Outputs | PlaceAnswers) -> dict[str, float]:
  """Returns all scores of the answers of any task, a part of `TEXTS`, and "count"."""
  return _KINDS[type(answers)].score(answers)


def check_folder(folder: str | Path) -> Path:
  """Returns the path of a folder for a report.

  Raises:
    UserError: it is a file, or a folder with other files than those of a report, or it
      is not on this machine.
  """
  if "://" in str(folder):
    raise UserError(f"a report needs a folder on this machine, not {str(folder)!r}")
  path = Path(os.path.expanduser(folder))
  if path.exists() and (
    not path.is_dir() or (any(path.iterdir()) and not (path / PAGE).is_file())
  ):
    raise UserError(
      f"{str(folder)!r} must be a new or an empty folder, or one with an old {PAGE}"
    )
  return path


def write_report(
  folder: str | Path,
  prepared: Prepared,
  answers: Outputs | PlaceAnswers,
  title: str,
  robustness: Robustness | None = None,
) -> dict[str, float]:
  """Writes report.html, report.md, metrics.json, the tables and the pictures.

  An old report in the folder is replaced. Only the first process writes.

  Args:
    folder: see `check_folder`.
    prepared: gives the images.
    answers: of one network, or of several averaged.
    title: of the page.
    robustness: the errors on corrupted images, for a table below the scores.

  Returns:
    The result of `score`.

  Raises:
    UserError: the folder has other files.
  """
  if jax.process_index() > 0:
    return score(answers)
  found = _KINDS[type(answers)].contents(answers)
  path = check_folder(folder)
  path.mkdir(parents=True, exist_ok=True)
  rows = score_rows(found.scores, found.intervals)
  if not found.intervals:
    rows = [row[:2] for row in rows]
  shown = _draw(path, prepared, answers, found)
  facts = (
    f"{found.scores['count']:,} images of {found.labels} from {_data_name(prepared)}"
  )
  note = ""
  if found.intervals:
    note = (
      f"The intervals hold {LEVEL} % of 1,000 resamples of the images (bootstrap): "
      "they say how the scores would vary with other images of the same kind."
    )
  origin = f"Written by flax-resnet {__version__}, JAX {jax.__version__}."
  kept = {name: [round(x, 9) for x in ends] for name, ends in found.intervals.items()}
  metrics = {"scores": found.scores, f"intervals_{LEVEL}": kept}
  write_text(path / "metrics.json", json.dumps(metrics, indent=2) + "\n")
  for name, table in found.tables.items():
    write_text(path / f"{name}.csv", as_csv(table))
  text = [f"# {title}\n\n{facts}\n\n", markdown(rows), note and f"\n{note}\n"]
  corrupted = robustness.rows() if robustness else []
  if corrupted:
    text.append(f"\n## Corrupted images\n\n{EXPLANATION}\n\n{markdown(corrupted)}")
  for picture in shown:
    image = f"\n![{picture.title}]({picture.name}.png)\n" if picture.data else ""
    text.append(f"\n## {picture.title}\n\n{picture.text}\n{image}")
  write_text(path / "report.md", "".join([*text, f"\n{origin}\n"]))
  page = _template().render(
    title=title,
    facts=facts,
    scores=rows,
    note=note,
    corrupted=corrupted,
    explanation=EXPLANATION,
    pictures=shown,
    origin=origin,
    style=STYLE,
  )
  write_text(path / PAGE, page)
  return dict(found.scores)


def title_of(prepared: Prepared, networks: int = 1) -> str:
  """Returns the title of a report, such as "resnet20 on cifar10"."""
  who = prepared.experiment.model_name if networks == 1 else f"{networks} networks"
  return f"{who} on {_data_name(prepared)}"


def _data_name(prepared: Prepared) -> str:
  """Returns the name of the images: a data set, a folder or the user's function."""
  data = prepared.experiment.config.data
  if data.name in KINDS_OF_FILES and not data.factory:
    return os.path.basename(data.dir.rstrip("/") or os.path.abspath(data.dir))
  return part_name(data.factory, data.name)


def _template() -> jinja2.Template:
  text = importlib.resources.files(__package__).joinpath(PAGE).read_text("utf-8")
  return jinja2.Environment(autoescape=True).from_string(text)


def _draw(
  path: Path, prepared: Prepared, answers: Outputs | PlaceAnswers, found: Contents
) -> list[_Picture]:
  shown = []
  for chart in found.charts:
    file, data = path / f"{chart.name}.png", ""
    file.unlink(missing_ok=True)  # Of an old report.
    if chart.draw:
      chart.draw(file)
      data = _encode(file)
    shown.append(_Picture(chart.name, chart.title, chart.text, data, True))
  for grid in found.grids:
    file, text, data = path / f"{grid.name}.png", "There is no such image.", ""
    file.unlink(missing_ok=True)
    if cells := _cells(prepared, answers, found, grid):
      if found.images:
        draw_grid(str(file), cells, _COLUMNS_OF_PAIRS, _SIDE_OF_PAIRS)
      else:
        draw_grid(str(file), cells, _COLUMNS)
      text = f"{grid.text} {len(cells)} of {len(grid.rows):,}."
      data = _encode(file)
    shown.append(_Picture(grid.name, grid.title, text, data))
  return shown


def _cells(
  prepared: Prepared, answers: Outputs | PlaceAnswers, found: Contents, grid: Grid
) -> list[Picture]:
  data = prepared.experiment.config.data
  cells = []
  for row in grid.rows[: MOST_EXAMPLES if found.images else _MOST_PICTURES]:
    place = int(answers.index[row])
    second = None
    if found.images:
      image, second = found.images(int(row))
    else:
      try:
        image = read_image(
          prepared.source,
          place,
          preprocessing_of(data),
          data.max_pixels,
          data.channels,
        )
      except ImageError:  # It was removed in the meantime.
        continue
    lines, color, bars, colors = found.caption(int(row))
    name = os.path.basename(answers.name(place))
    title = ""
    if second is not None:
      name, title = f"label of {name}", "prediction"
    cells.append(Picture(image, [name, *lines], color, bars, second, title, colors))
  return cells


def _encode(path: Path) -> str:
  return base64.b64encode(path.read_bytes()).decode()
