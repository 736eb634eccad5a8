"""The report of an evaluation: a folder with a page, tables and pictures."""

import base64
import dataclasses
import importlib.resources
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jinja2
import numpy as np

from resnet_jax import __version__
from resnet_jax.config.factories import part_name
from resnet_jax.config.preprocessing import preprocessing_of
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.pipelines.single_pass import read_image
from resnet_jax.evaluation import mistakes, pictures
from resnet_jax.evaluation.answers import Answers
from resnet_jax.evaluation.intervals import LEVEL, intervals
from resnet_jax.evaluation.scores import Counts, score, score_rows
from resnet_jax.inference.image_grid import Picture, draw_grid
from resnet_jax.runtime.atomic_files import write_text
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.figure_style import RIGHT, WRONG
from resnet_jax.runtime.page_style import STYLE
from resnet_jax.runtime.tables import as_csv, markdown
from resnet_jax.training.evaluator import Prepared

PAGE = "report.html"
_MOST_PICTURES = 24
_COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class _Picture:
  """A picture of the page, in `name`.png; there is no file if `text` says why."""

  name: str
  title: str
  text: str
  data: str = ""
  is_chart: bool = False


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
  folder: str | Path, prepared: Prepared, answers: Answers, title: str
) -> dict[str, float]:
  """Writes report.html, report.md, metrics.json, four tables and the pictures.

  An old report in the folder is replaced. Only the first process writes.

  Args:
    folder: see `check_folder`.
    prepared: gives the images.
    answers: of one network, or of several averaged.
    title: of the page.

  Returns:
    The result of `score`.

  Raises:
    UserError: the folder has other files.
  """
  found = score(answers)
  if jax.process_index() > 0:
    return found
  path = check_folder(folder)
  path.mkdir(parents=True, exist_ok=True)
  ranges = intervals(answers)
  rows = score_rows(found, ranges)
  shown = _draw(path, prepared, answers)
  facts = (
    f"{found['count']:,} images of {len(set(answers.labels.tolist())):,} classes from "
    f"{data_name(prepared)}"
  )
  note = (
    f"The intervals hold {LEVEL} % of 1,000 resamples of the images (bootstrap): they "
    "say how the scores would vary with other images of the same kind."
  )
  origin = f"Written by flax-resnet {__version__}, JAX {jax.__version__}."
  kept = {name: [round(x, 9) for x in ends] for name, ends in ranges.items()}
  metrics = {"scores": found, f"intervals_{LEVEL}": kept}
  write_text(path / "metrics.json", json.dumps(metrics, indent=2) + "\n")
  write_text(path / "predictions.csv", as_csv(_predictions(answers)))
  write_text(path / "per_class.csv", as_csv(_per_class(answers)))
  write_text(path / "confusion.csv", as_csv(_confusion(answers)))
  text = [f"# {title}\n\n{facts}\n\n", markdown(rows), f"\n{note}\n"]
  for picture in shown:
    image = f"\n![{picture.title}]({picture.name}.png)\n" if picture.data else ""
    text.append(f"\n## {picture.title}\n\n{picture.text}\n{image}")
  write_text(path / "report.md", "".join([*text, f"\n{origin}\n"]))
  page = _template().render(
    title=title,
    facts=facts,
    scores=rows,
    note=note,
    pictures=shown,
    origin=origin,
    style=STYLE,
  )
  write_text(path / PAGE, page)
  return found


def data_name(prepared: Prepared) -> str:
  """Returns the name of the images: a data set, a folder or the user's function."""
  data = prepared.experiment.config.data
  if data.name == "folder" and not data.factory:
    return os.path.basename(os.path.abspath(data.dir))
  return part_name(data.factory, data.name)


def _template() -> jinja2.Template:
  text = importlib.resources.files(__package__).joinpath(PAGE).read_text("utf-8")
  return jinja2.Environment(autoescape=True).from_string(text)


def _predictions(answers: Answers) -> list[list[str]]:
  predictions = answers.predictions
  logs, margins = answers.log_probabilities, mistakes.margins(answers)
  names = answers.class_names
  header = ["path", "label", "prediction", "probability", "margin"]
  return [header] + [
    [
      *(answers.name(int(place)), names[label], names[found]),
      *(f"{math.exp(logs[row, found]):.6f}", f"{margins[row]:.6f}"),
    ]
    for row, (place, label, found) in enumerate(
      zip(answers.index, answers.labels, predictions, strict=True)
    )
  ]


def _per_class(answers: Answers) -> list[list[str]]:
  counts = Counts.of(answers)
  header = ["class", "images", "predicted", "right", "precision", "recall", "f1"]
  return [header] + [
    [
      name,
      *(f"{int(x[i])}" for x in (counts.labelled, counts.predicted, counts.right)),
      *(f"{x[i]:.6f}" for x in (counts.precision, counts.recall, counts.f1)),
    ]
    for i, name in enumerate(answers.class_names)
  ]


def _confusion(answers: Answers) -> list[list[str]]:
  names, right = answers.class_names, Counts.of(answers).right
  rows = [(i, i, int(times)) for i, times in enumerate(right) if times]
  rows = sorted([*rows, *pictures.confused_pairs(answers)])
  return [["label", "prediction", "images"]] + [
    [names[label], names[found], f"{times}"] for label, found, times in rows
  ]


def _draw(path: Path, prepared: Prepared, answers: Answers) -> list[_Picture]:
  count = len(answers.class_names)
  pairs = pictures.confused_pairs(answers)
  confusion = "Rows are labels, columns are predictions; a row's colours add up to 1."
  if count > pictures.MOST_CELLS:
    confusion = "The pairs of label → prediction with the most mistakes."
  if not pairs:
    confusion = "No image is confused with another class."
  fewer = f"the {pictures.MOST_ROWS} classes with the lowest F1"
  few_classes = np.count_nonzero(np.bincount(answers.labels)) <= pictures.MOST_ROWS
  charts = [
    ("confusion", "Confusion", confusion, pictures.draw_confusion),
    (
      *("classes", "Classes"),
      f"Precision, recall and F1 of {'each class' if few_classes else fewer}.",
      pictures.draw_classes,
    ),
    (
      *("reliability", "Reliability"),
      "How often predictions of a confidence are right. Above the line, the network is "
      "too cautious; below it, too sure.",
      pictures.draw_reliability,
    ),
  ]
  shown = []
  for name, title, text, draw in charts:
    if name == "confusion" and not pairs and count > pictures.MOST_CELLS:
      shown.append(_Picture(name, title, text))
      continue
    draw(path / f"{name}.png", answers)
    shown.append(_Picture(name, title, text, _encode(path / f"{name}.png"), True))
  grids = [
    (
      *("mistakes", "Worst mistakes"),
      "Wrong predictions; the least probable labels come first.",
      mistakes.worst(answers),
    ),
    (
      *("unsure", "Least sure"),
      "The two most probable classes are nearly as probable.",
      mistakes.least_sure(answers),
    ),
    (
      *("labels", "Likely wrong labels"),
      "The network is as sure of another class as it usually is of that class's own "
      "images (confident learning, Northcutt et al. 2021). Look at these labels.",
      mistakes.likely_wrong_labels(answers),
    ),
  ]
  for name, title, text, rows in grids:
    file = path / f"{name}.png"
    file.unlink(missing_ok=True)  # Of an old report.
    cells = _cells(prepared, answers, rows)
    if cells:
      draw_grid(str(file), cells, _COLUMNS)
      text = f"{text} {len(cells)} of {len(rows):,}."
      shown.append(_Picture(name, title, text, _encode(file)))
    else:
      shown.append(_Picture(name, title, "There is no such image."))
  return shown


def _cells(
  prepared: Prepared, answers: Answers, rows: Sequence[int] | np.ndarray
) -> list[Picture]:
  data, names = prepared.experiment.config.data, answers.class_names
  cells = []
  for row in rows[:_MOST_PICTURES]:
    place = int(answers.index[row])
    try:
      image = read_image(
        prepared.source, place, preprocessing_of(data), data.max_pixels
      )
    except ImageError:  # It was removed in the meantime.
      continue
    label = int(answers.labels[row])
    probabilities = np.exp(answers.log_probabilities[row])
    best = np.argsort(-answers.logits[row], kind="stable")[:2]
    is_right = best[0] == label
    sign = "✓" if is_right else "✗"
    cells.append(
      Picture(
        image,
        [os.path.basename(answers.name(place)), f"{sign} label: {names[label]}"],
        RIGHT if is_right else WRONG,
        [(names[i], float(probabilities[i])) for i in best],
      )
    )
  return cells


def _encode(path: Path) -> str:
  return base64.b64encode(path.read_bytes()).decode()
