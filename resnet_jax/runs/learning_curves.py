"""The picture of a run: loss and error over epochs."""

from typing import Any

from etils import epath


def draw_curves(records: list[dict[str, Any]], path: epath.Path) -> None:
  """Draws training (thin) and evaluation (bold) curves, as the paper's figures do.

  Label smoothing and augmentation are in the training loss and not in the other.

  Args:
    records: lines of `metrics.jsonl`; "epoch", "split", "loss" and "top1" are used.
    path: of the PNG file.
  """
  # A figure of its own: pyplot would want a display, and keep it for ever.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4))
  # Fixed margins: fitting them to the labels would take longer than drawing.
  figure.subplots_adjust(left=0.07, right=0.98, bottom=0.13, top=0.91, wspace=0.18)
  left, right = figure.subplots(1, 2)
  # Colours that the colour-blind tell apart (Okabe and Ito 2008).
  styles = {
    "train": {"linewidth": 1, "color": "#0072B2"},
    "eval": {"linewidth": 2.5, "color": "#D55E00"},
    "ema": {"linewidth": 2.5, "color": "#009E73"},
  }
  for split, style in styles.items():
    rows = [record for record in records if record["split"] == split]
    if not rows:
      continue
    # A single point has no line.
    style |= {"label": split, "marker": "o" if len(rows) == 1 else None}
    left.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], **style)
    if rows := [row for row in rows if "top1" in row]:  # Of classification.
      errors = [100 * (1 - row["top1"]) for row in rows]
      right.plot([row["epoch"] for row in rows], errors, **style)
  left.set(title="Loss", xlabel="epoch", ylabel="loss (nats)")
  right.set(title="Top-1 error", xlabel="epoch", ylabel="error (%)")
  for axes in (left, right):
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend()
  with path.open("wb") as file:
    figure.savefig(file, format="png", dpi=120)
