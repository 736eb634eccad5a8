"""`resnet-jax lr-find`: its flags and its output."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_jax.cli.options import add_config, add_number, add_trust_code
from resnet_jax.cli.settings import load_config
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import plain, show

if TYPE_CHECKING:
  from resnet_jax.analysis.lr_find import Curve

TEXT = (
  "Find a learning rate: train briefly while it grows, until the loss explodes. Any "
  "setting is a flag: --config.PATH=VALUE."
)
EXAMPLES = (
  "resnet-jax lr-find --config=digits",
  "resnet-jax lr-find --config=digits --config.optim.name=adamw --out=rates.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  add_config(parser)
  add_trust_code(parser)
  for flag, default, text in (
    ("--lowest", 1e-5, "first learning rate, > 0 (default: %(default)s)"),
    ("--highest", 10.0, "last learning rate (default: %(default)s)"),
  ):
    parser.add_argument(flag, type=float, default=default, metavar="RATE", help=text)
  add_number(parser, "--steps", "largest number of steps, > 1 (default: 100)")
  parser.add_argument(
    "--out",
    metavar="FILE.png",
    help="picture of the loss at each learning rate; FILE.csv gets the numbers "
    "(default: nothing is written)",
  )


def run(args: argparse.Namespace) -> None:
  """Runs the test; `args.settings` are the --config.PATH flags."""
  steps = args.steps or 100
  if not 0 < args.lowest < args.highest < float("inf"):
    raise UserError(
      f"--lowest={args.lowest:g} must be > 0 and less than --highest={args.highest:g}"
    )
  if steps < 2:
    raise UserError(f"--steps={steps} must be at least 2")
  out = None if args.out is None else Path(args.out)
  if out is not None and (out.suffix != ".png" or not out.parent.is_dir()):
    raise UserError(f"--out={args.out} must be a .png file in an existing folder")
  config = load_config(args.config, args.settings, trust_code=args.trust_code)

  # JAX takes seconds to import.
  from rich.console import Console

  from resnet_jax.analysis import lr_find
  from resnet_jax.runtime.launchers import check_alone

  check_alone("lr-find")
  with Console().status(plain("training with growing learning rates")):
    curve = lr_find.find_learning_rate(
      config, lowest=args.lowest, highest=args.highest, steps=steps
    )
  show(*describe(curve))
  if out is not None:
    lr_find.draw(curve, out, f"{config.model.name} with {config.optim.name}")
    lr_find.write_csv(curve, out.with_suffix(".csv"))
    show(f"written: {out} and {out.with_suffix('.csv')}")


def describe(curve: "Curve") -> list[str]:
  """Describes a curve in a few lines."""
  if not curve.rates or curve.suggestion is None:
    return ["no suggestion: the loss never fell; try a smaller --lowest"]
  lines = [
    f"{len(curve.rates)} steps, from learning rate {curve.rates[0]:.2g} to "
    f"{curve.rates[-1]:.2g}; the smoothed loss fell from {curve.smoothed[0]:.3g} to "
    f"{min(curve.smoothed):.3g}",
    f"suggestion: --config.optim.learning_rate={curve.suggestion:.2g}, a tenth of the "
    "rate at the lowest smoothed loss",
  ]
  if not curve.has_exploded:
    lines.append("the loss did not explode; a larger --highest may suggest more")
  return lines
