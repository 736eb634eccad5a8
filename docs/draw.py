"""Draws the figures of docs/residual_learning.md, and most of docs/studies.md.

`python docs/draw.py` writes docs/images/*.png and takes a minute on a CPU;
`python docs/draw.py FOLDER` writes into another folder.
The shapes come from the networks and the learning rates from the config. Lengths are in
inches.
"""

import argparse
import contextlib
import json
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from sklearn.datasets import load_digits

from resnet_jax import Backbone, create_model
from resnet_jax.analysis.layer_responses import layer_gradients
from resnet_jax.config.plan import Plan
from resnet_jax.experiments.studies.published import PAPER_ERRORS
from resnet_jax.runtime.figure_style import (
  BOLD,
  FAINT_TEXT,
  OTHERS,
  PLAIN,
  RESIDUAL,
  TEXT,
  depth_styles,
  styled_figure,
)
from resnet_jax.training.optimizer import create_schedule

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
PALE, DARKER, HEAD = "#F1F2F4", "#DFE2E7", "#FFFFFF"  # faces of boxes
IDENTITY = {"color": RESIDUAL, "linestyle": "-", "linewidth": BOLD}
ZEROS = {"color": OTHERS[1], "linestyle": ":", "linewidth": BOLD}
PROJECTION = {"color": OTHERS[0], "linestyle": "--", "linewidth": BOLD}


@contextlib.contextmanager
def plot(
  path: Path, columns: int = 1, height: float = 3.2, **kwargs
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
  """Opens a figure with panels side by side; it is saved at the end."""
  with styled_figure(7.5, height, layout="constrained") as figure:
    yield figure, figure.subplots(1, columns, squeeze=False, **kwargs)[0]
    figure.savefig(path, dpi=160)


@contextlib.contextmanager
def sheet(path: Path, height: float) -> Iterator[Axes]:
  """Opens a figure to draw on, without axes; it is saved at the end."""
  with styled_figure(7.5, height) as figure:
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.5), ylim=(0, height))
    axes.axis("off")
    yield axes
    figure.savefig(path, dpi=160)


def write(axes: Axes, x: float, y: float, text: str, size: float = 10, **kwargs):
  axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": size} | kwargs)


def box(axes: Axes, x: float, y: float, text: str, width=1.0, height=0.5, **kwargs):
  look = {"facecolor": PALE, "edgecolor": TEXT} | kwargs
  axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, **look))
  write(axes, x, y, text)


def arrow(axes: Axes, start: tuple, end: tuple, **kwargs) -> None:
  look = {"arrowstyle": "-|>", "color": TEXT, "linewidth": 1.2, "shrinkA": 0}
  axes.annotate("", end, start, arrowprops=look | {"shrinkB": 0} | kwargs)


def bypass(axes: Axes, start: float, end: float, y: float, top: float, **look) -> None:
  """Draws a shortcut from (start, y) over `top` to where it is added, at (end, y)."""
  axes.plot([start, start, end], [y, top, top], **look)
  arrow(axes, (end, top), (end, y + 0.14), **look)
  axes.add_patch(Circle((end, y), 0.14, facecolor="white", edgecolor=TEXT))
  write(axes, end, y, "+", 13)


def chain(axes: Axes, y: float, ends, layers, shortcut="", last="") -> None:
  """Draws layers, each (text, note), and a shortcut around them if it has a name."""
  centres = {2: (2.2, 4.6), 3: (1.85, 3.4, 4.95)}[len(layers)]
  write(axes, 0.42, y, ends[0])
  write(axes, 7.1, y, ends[1])
  starts = 0.82, *(x + 0.5 for x in centres)
  stops = *(x - 0.5 for x in centres), 5.96 if shortcut else 6.7
  for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
    arrow(axes, (start, y), (stop, y))
    if 0 < i < len(layers):
      write(axes, (start + stop) / 2, y + 0.13, "ReLU", 8.5)
  for x, (text, note) in zip(centres, layers, strict=True):
    box(axes, x, y, text)
    write(axes, x, y - 0.4, note, 9)
  if shortcut:
    bypass(axes, 1.0, 6.1, y, y + 0.55, **IDENTITY)
    write(axes, 3.4, y + 0.7, shortcut, color=IDENTITY["color"])
    arrow(axes, (6.24, y), (6.7, y))
    write(axes, 6.46, y + 0.13, last, 8.5)


def draw_degradation(folder: Path) -> None:
  """Plain and residual networks by depth, from the paper's tables 2 and 6."""
  depths = "20", "32", "44", "56", "110", "1202"
  places = (20, 0), (14, 6), (4, 8), (6, 8), (0, -16), (-7, 8)
  known = PAPER_ERRORS["paper"] | PAPER_ERRORS["imagenet"]
  plain = {"color": PLAIN, "marker": "s", "label": "plain"}
  residual = {"color": RESIDUAL, "marker": "o", "label": "residual"}
  points = {"linestyle": "none", "markersize": 8}  # Two depths make no curve.
  with plot(folder / "degradation.png", 2) as (_, (left, right)):
    for axes, names, shift, offsets, look in (
      (left, ("plain18", "plain34"), -0.07, ((0, 9), (0, 9)), plain | points),
      (
        left,
        ("resnet18, A", "resnet34, A"),
        0.07,
        ((0, -17), (0, 9)),
        residual | points,
      ),
      (right, [f"resnet{depth}" for depth in depths], 0, places, residual),
    ):
      errors = [float(known[name]) for name in names]
      layers = [i + shift for i in range(len(errors))]
      axes.plot(layers, errors, **({"linewidth": BOLD} | look))
      for i, offset in enumerate(offsets):
        where = {"xytext": offset, "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{errors[i]:.2f}", (layers[i], errors[i]), **where)
    left.set(title="ImageNet", xticks=[0, 1], xticklabels=["18", "34"])
    left.set(xlabel="layers", ylabel="validation error (%)")
    left.set(xlim=(-0.4, 1.4), ylim=(24, 30))
    left.legend(loc="lower left")
    right.set(title="CIFAR-10, residual networks", xlabel="layers")
    right.set(xticks=range(len(depths)), xticklabels=depths, ylim=(6, 9.5))
    right.set(ylabel="test error (%)")


def draw_degradation_medium(folder: Path) -> None:
  """Error of the runs in benchmarks/results over a quarter of the paper's schedule."""
  styles = depth_styles([20, 56])
  path = folder / "degradation_medium.png"
  with plot(path, 2, 3.4, sharey=True) as (figure, panels):
    for kind, text, color in (
      ("plain", "plain", PLAIN),
      ("resnet", "residual", RESIDUAL),
    ):
      for depth in (20, 56):
        run = ROOT / f"benchmarks/results/cifar10/medium-{kind}{depth}"
        lines = (run / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        look = {"color": color, "linestyle": styles[depth], "linewidth": 1.6}
        for axes, split, every in zip(panels, ("train", "eval"), (4, 1), strict=True):
          # The mean of four logs: the training error of 100 updates is noisy.
          chosen = [row for row in rows if row["split"] == split]
          groups = [chosen[i : i + every] for i in range(0, len(chosen), every)]
          steps = [group[-1]["step"] for group in groups]
          errors = [100 - 100 * sum(r["top1"] for r in g) / len(g) for g in groups]
          axes.plot(steps, errors, label=f"{text}, {depth} layers", **look)
    for axes, title in zip(panels, ("training", "test"), strict=True):
      for step in (8000, 12_000):
        axes.axvline(step, color=FAINT_TEXT, linewidth=0.8, linestyle=":")
      axes.set(title=f"{title} error (%)", ylim=(0, 60), xticks=range(0, 16_001, 4000))
      axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.supxlabel("updates", fontsize=9)
    panels[1].legend(loc="upper right")


def draw_responses(folder: Path) -> None:
  """Layer responses after 64,000 updates, from the runs in benchmarks/results."""
  styles = depth_styles([20, 56])
  with plot(folder / "responses_trained.png", 2, 3.2, sharey=True) as (figure, panels):
    for depth, seed in ((20, 1), (56, 0)):
      run = ROOT / f"benchmarks/results/cifar10/resnet{depth}-seed{seed}"
      values = [*json.loads((run / "responses.json").read_text()).values()]
      look = {"color": RESIDUAL, "linestyle": styles[depth], "linewidth": 1.6}
      layers = range(1, len(values) + 1)
      panels[0].plot(layers, values, label=f"resnet{depth}", **look)
      panels[1].plot(layers, sorted(values, reverse=True), **look)
    panels[0].set(title="in order", xlabel="layer")
    panels[0].set_ylabel("standard deviation of the response")
    panels[0].set_ylim(bottom=0)
    panels[1].set(title="sorted by size", xlabel="layer")
    figure.legend(loc="outside lower center", ncols=2)


def draw_idea(folder: Path) -> None:
  """The same two layers, without and with a shortcut around them."""
  with sheet(folder / "idea.png", 2.7) as axes:
    write(
      axes, 0.1, 2.55, "plain: the layers make all of H(x)", ha="left", weight="bold"
    )
    chain(axes, 2.05, ("x", "H(x)"), [("layer", "")] * 2)
    write(axes, 0.1, 1.45, "residual: the layers make F(x)", ha="left", weight="bold")
    chain(axes, 0.4, ("x", "x + F(x)"), [("layer", "")] * 2, "x as it is")


def draw_blocks(folder: Path) -> None:
  """The two blocks with an identity shortcut, and the weights of each convolution."""
  with sheet(folder / "blocks.png", 3.9) as axes:
    rows = (
      ("basic block (ResNet-18, 34)", 64, ((3, 64), (3, 64))),
      ("bottleneck block (ResNet-50, 101, 152)", 256, ((1, 64), (3, 64), (1, 256))),
    )
    for y, (title, channels, convolutions) in zip((2.5, 0.55), rows, strict=True):
      layers, total, width = [], 0, channels
      for size, features in convolutions:
        count = size * size * width * features
        layers.append((f"{size}x{size}, {features}", f"{count:,} weights"))
        total, width = total + count, features
      write(axes, 0.1, y + 1.1, f"{title}: {total:,} weights", ha="left", weight="bold")
      chain(axes, y, (f"{channels}\nchannels",) * 2, layers, "identity", "ReLU")


def draw_shortcuts(folder: Path) -> None:
  """Four blocks with each shortcut option; the third block halves the resolution."""
  with sheet(folder / "shortcuts.png", 3.7) as axes:
    names = "identity", "identity, zeros in new channels", "1x1 convolution"
    styles = IDENTITY, ZEROS, PROJECTION
    for x, name, look in zip((0.5, 2.0, 5.1), names, styles, strict=True):
      axes.plot([x, x + 0.45], [3.45, 3.45], **look)
      write(axes, x + 0.55, 3.45, name, ha="left")
    sizes = ("56x56, 64", PALE), ("28x28, 128", DARKER)
    for y, option in zip((2.45, 1.4, 0.35), "ABC", strict=True):
      write(axes, 0.25, y, option, 15, weight="bold")
      for i in range(4):
        x, (size, color) = 1.3 + 1.65 * i, sizes[i // 2]
        changed = ZEROS if option == "A" else PROJECTION
        look = changed if i == 2 or option == "C" else IDENTITY
        arrow(axes, (x - 0.79, y), (x - 0.5, y))
        arrow(axes, (x + 0.5, y), (x + 0.58, y), arrowstyle="-")
        bypass(axes, x - 0.66, x + 0.72, y, y + 0.45, **look)
        box(axes, x, y, size, facecolor=color)
      arrow(axes, (7.11, y), (7.4, y))


def part_outputs(name: str, side: int) -> list[tuple[int, str]]:
  """Returns the height and a label of the output of the stem and of each stage."""
  model, image = create_model(name), jnp.zeros((1, side, side, 3))
  maps, _ = jax.eval_shape(Backbone(model).init_with_output, jax.random.key(0), image)
  first = side // model.stem_cls.STRIDE
  layers = "3x3 conv" if first == side else "7x7 conv\nmax-pool"
  outputs = [(first, f"{layers}\n{first}x{first}x{model.features}")]
  for blocks, found in zip(model.stage_sizes, maps.values(), strict=True):
    _, height, width, channels = found.shape
    outputs.append((height, f"{blocks} blocks\n{height}x{width}\nx{channels}"))
  return outputs


def draw_network(folder: Path) -> None:
  """The output size of each part of three networks."""
  with sheet(folder / "network.png", 4.2) as axes:
    for i, part in enumerate(("stem", *(f"stage {n}" for n in range(1, 5)), "head")):
      write(axes, 1.48 + 1.1 * i, 4.0, part, 11, weight="bold")
    rows = ("34", "basic", 224, 1000), ("50", "bottleneck", 224, 1000)
    rows = *rows, ("20", "basic", 32, 10)
    for y, (depth, block, side, classes) in zip((3.25, 1.95, 0.65), rows, strict=True):
      write(axes, 0.42, y + 0.2, f"ResNet-{depth}", weight="bold")
      write(axes, 0.42, y - 0.1, f"{block}\n{side}x{side}x3", 9)
      for i, (size, text) in enumerate(part_outputs(f"resnet{depth}", side)):
        x = 1.48 + 1.1 * i
        arrow(axes, (x - 0.64, y), (x - 0.46, y))
        box(axes, x, y, text, 0.92, 0.1 + 0.15 * size.bit_length())
      arrow(axes, (x + 0.46, y), (6.52, y))
      box(axes, 6.98, y, f"mean\n{classes}\nclasses", 0.92, 0.6, facecolor=HEAD)


def draw_gradients(folder: Path, depth: int = 56) -> None:
  """Gradients before training, by layer, on 64 of scikit-learn's digits."""
  digits = load_digits()
  images, labels = digits.images[:64, ..., None], jnp.asarray(digits.target[:64])
  images = jnp.asarray((images - images.mean()) / images.std(), jnp.float32)
  batch = {"image": images, "label": labels, "mask": jnp.ones(64, bool)}
  nets = (
    ("resnet", "batch", RESIDUAL),
    ("plain", "batch", PLAIN),
    ("plain", "none", OTHERS[0]),
  )
  with plot(folder / "gradients.png") as (_, (axes,)):
    for kind, norm, color in nets:
      name = f"{kind}{depth}"
      model = create_model(name, norm=norm)
      variables = jax.jit(model.init)(jax.random.key(0), images[:1])
      values = layer_gradients(model, variables, batch).values()
      label = f"{name}, {'no' if norm == 'none' else norm} norm"
      axes.plot(range(1, len(values) + 1), values, label=label, color=color)
    axes.set(xlabel="layer", ylabel="norm of the gradient", yscale="log")
    axes.legend(loc="center left")


def draw_schedule(folder: Path) -> None:
  """The learning rates of two of the paper's CIFAR-10 networks, from the config."""
  made = runpy.run_path(str(ROOT / "configs/cifar10_resnet20.py"))
  styles = depth_styles([20, 110])
  # The rates differ only in the first updates, so one line is wide.
  wide, narrow = {"linewidth": 6, "alpha": 0.35}, {"linewidth": 1.6}
  with plot(folder / "schedule.png", 2, 2.9, sharey=True) as (figure, panels):
    for depth, look in ((110, wide), (20, narrow)):
      name = f"resnet{depth}"
      config = made["get_config"](name)
      plan = Plan.create(config, num_train_examples=50_000)
      schedule = create_schedule(config.optim, plan, config.batch_size)
      rates = jax.vmap(schedule)(jnp.arange(plan.num_steps))
      look |= {"label": name, "color": RESIDUAL, "linestyle": styles[depth]}
      for axes, steps in zip(panels, (1000, plan.num_steps), strict=True):
        axes.plot(rates[:steps], **look)
    panels[0].set(title="the first 1,000 updates", ylabel="learning rate")
    panels[0].set(yscale="log", ylim=(7e-4, 0.15))
    panels[1].set(title="all 64,000 updates", xticks=range(0, 64_001, 16_000))
    panels[1].xaxis.set_major_formatter("{x:,.0f}")
    figure.supxlabel("updates", fontsize=9)
    panels[0].legend(loc="lower right")


def draw_all(out_dir: Path = IMAGES, gradient_depth: int = 56) -> None:
  """Draws every figure.

  Args:
    out_dir: the folder for the pictures; it is created if it does not exist.
    gradient_depth: number of layers of the networks whose gradients are drawn. The
      other figures are quick.
  """
  out_dir.mkdir(parents=True, exist_ok=True)
  schemes = draw_idea, draw_blocks, draw_shortcuts, draw_network
  curves = draw_degradation, draw_degradation_medium, draw_responses, draw_schedule
  for draw in (*curves, *schemes):
    draw(out_dir)
  draw_gradients(out_dir, gradient_depth)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  text = "the folder for the pictures (docs/images)"
  parser.add_argument("out_dir", nargs="?", type=Path, default=IMAGES, help=text)
  draw_all(parser.parse_args().out_dir)
