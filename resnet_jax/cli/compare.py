"""`resnet-jax compare`: compares runs."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_jax.cli.options import add_json
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:  # Its imports take seconds; `--help` need not wait.
  from resnet_jax.evaluation.compare import Disagreement

TEXT = (
  "Compare runs: the settings that differ, their scores and curves, and the images on "
  "which they disagree. Scores and predictions are read from RUN/report/."
)
EXAMPLES = (
  "resnet-jax compare RUN OTHER",
  "resnet-jax compare RUN OTHER --out FOLDER",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of a run")
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="write the tables and curves.png into this folder (default: none)",
  )
  add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.evaluation import compare
  from resnet_jax.runtime.tables import aligned, write_table

  runs = compare.read_runs(args.runs)
  settings, scores = compare.settings_table(runs), compare.scores_table(runs)
  pairs = {other.name: compare.disagreement(runs[0], other) for other in runs[1:]}
  if args.out:
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
      raise UserError(f"--out={args.out} must be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "settings", settings)
    write_table(folder / "scores", scores)
    for i, pair in enumerate(pairs.values(), start=2):
      if pair:
        header = ["path", "label", "prediction of 1", f"prediction of {i}"]
        write_table(folder / f"disagreements_1_{i}", [header, *pair.images])
    compare.draw(folder / "curves.png", runs)
  if args.json:
    found = {
      "settings": {path: values for path, *values in settings[1:]},
      "scores": [run.scores for run in runs],
      "disagreements": {
        name: pair and {**vars(pair), "images": len(pair.images)}
        for name, pair in pairs.items()
      },
    }
    print(json.dumps(found))
    return
  show(*aligned(settings), "", *aligned(scores))
  for name, pair in pairs.items():
    show("", *_describe(runs[0].name, name, pair))
  if args.out:
    show("", f"tables and curves: {args.out}")


def _describe(first: str, second: str, pair: "Disagreement | None") -> list[str]:
  if pair is None:
    return [
      f"{first} and {second}: no predictions to compare; `resnet-jax evaluate "
      "--workdir RUN --report RUN/report` writes them"
    ]
  return [
    f"{first} and {second}: both right on {pair.both:,} images, both wrong on "
    f"{pair.neither:,}; only the first right on {pair.first:,}, only the second on "
    f"{pair.second:,} (McNemar's exact test: p = {pair.p_value:.2g})",
  ]
