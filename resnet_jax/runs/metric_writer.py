"""Sends the metrics of a run to files and trackers, and shows them to the user.

The run directory gets `metrics.jsonl` (one JSON object per line), TensorBoard files and
`curves.png`. A terminal shows a live progress bar, other outputs show plain lines.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console
from rich.live import Live

from resnet_jax.config.plan import Plan
from resnet_jax.runs.learning_curves import draw_curves
from resnet_jax.runs.metric_lines import MetricLines
from resnet_jax.runs.metrics import (
  HostMetrics,
  Metrics,
  add_metrics,
  summarize,
  to_host,
)
from resnet_jax.runs.outbox import Outbox
from resnet_jax.runs.progress_line import ProgressLine
from resnet_jax.runs.tensorboard import Board
from resnet_jax.runs.time_shares import KEYS, Lap, TimeShares, describe_time
from resnet_jax.runs.trackers.tracker import MetricSink
from resnet_jax.runtime.errors import naming
from resnet_jax.runtime.terminal import show

DIVERGENCE_ADVICE = (
  "try a lower config.optim.learning_rate, a longer warmup or config.optim.clip_norm"
)

# Completed updates -> learning rate of the next update.
LearningRate = Callable[[int], float]
# Called with the step, the split and its values.
Tell = Callable[[int, str, dict[str, float]], None]
# Returns the time of the oldest call that is not reported yet; see `Clock.lap`.
GetLap = Callable[[], Lap]
# Steps after a call -> seconds that the operations of one of its images take at the
# peak rate of all devices; 0 if the rate is not known.
SecondsAtPeak = Callable[[int], float]
Summarize = Callable[[HostMetrics], dict[str, float]]
# Draws the lines of `metrics.jsonl` into a PNG file.
Draw = Callable[[list[dict[str, Any]], epath.Path], None]
_DRAW_AT_MOST = 0.02  # Fraction of the run's time.


class MetricWriter:
  """Writes and shows the metrics of a run; a context manager."""

  def __init__(
    self,
    workdir: str,
    plan: Plan,
    learning_rate: LearningRate | None,
    start_step: int,
    console: Console,
    lap: GetLap,
    skipped: Sequence[Mapping[int, str]] = (),
    tell: Tell = lambda *_: None,
    evaluates_first: bool = False,
    draw: Draw = draw_curves,
    trackers: Sequence[MetricSink] = (),
    seconds_at_peak: SecondsAtPeak = lambda _: 0.0,
    summarize: Summarize = summarize,
  ):
    """Opens the files; drops lines that an earlier try wrote after `start_step`.

    Args:
      workdir: the run directory.
      plan: when to write.
      learning_rate: step -> learning rate of the next update; None if it is not known.
      start_step: completed updates.
      console: console for the output.
      lap: see `GetLap`.
      skipped: for each data set, the images that it skipped so far, with the reasons.
      tell: called with (step, split, values) after they are written.
      evaluates_first: whether the run starts with the evaluation of `start_step`; lines
        that an earlier try wrote about it are then dropped too.
      draw: draws `curves.png`.
      trackers: where the metrics go in addition. They get the lines of an earlier try
        again, from which they take what they lack. They stay open.
      seconds_at_peak: see `SecondsAtPeak`.
      summarize: makes values of the sums of metrics.
    """
    self._lap, self._all_skipped, self._tell = lap, skipped, tell
    self._plan, self._learning_rate, self._console = plan, learning_rate, console
    self._draw, self._seconds_at_peak = draw, seconds_at_peak
    self._summarize = summarize
    # The first drawing imports matplotlib, which takes about a second.
    self._drawn_at, self._draw_seconds = time.monotonic(), 1.0
    self._writes = jax.process_index() == 0
    self._records: list[dict[str, Any]] = []
    self._sinks: list[MetricSink] = []
    self._files = contextlib.ExitStack()
    if self._writes:  # With several processes, only the first one writes.
      self._outbox = Outbox(workdir, "metrics.jsonl")
      self._workdir = self._outbox.folder
      start = plan.steps_per_epoch, start_step, evaluates_first
      lines = self._files.enter_context(MetricLines(self._workdir, *start))
      board = self._files.enter_context(
        Board(self._workdir / "tensorboard", start_step)
      )
      self._records, self._sinks = lines.records, [lines, board, *trackers]
      for earlier in lines.logged():
        for tracker in trackers:
          tracker.log(*earlier)
    self._pending: tuple[int, Metrics] | None = None
    self._sums: HostMetrics | None = None
    self._time = TimeShares()
    self._skipped: set[str] = set()
    self._line = ProgressLine(plan, start_step)
    self._live = Live(self._line, console=console, refresh_per_second=10)

  def __enter__(self) -> "MetricWriter":
    if self._console.is_terminal:
      self._live.start()
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._line.end()
    self._live.stop()
    self._show_skipped()  # Too many of them may have ended the run.
    # The error that ended the run says more than a later error of the same disk.
    hidden = (OSError,) if exc_info[0] else ()
    if self._writes:
      with self._outbox, contextlib.suppress(*hidden), naming(self._workdir):
        self._files.close()
        self._draw_now()
        self._outbox.send()

  def train(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a new call, and shows those of the call before it.

    The device never waits for this: it already works on the new call.

    Args:
      step: completed updates after the call.
      metrics: the metric sums of the call, still being computed.

    Raises:
      FloatingPointError: the loss of the earlier call is not finite.
    """
    self.flush()
    self._pending = step, metrics
    self._line.begin_training()

  def flush(self) -> None:
    """Waits for the last call given to `train`; raises the same errors as `train`."""
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    sums = to_host(metrics)
    lap = self._lap()
    self._time.add(lap, float(sums["count"]) * self._seconds_at_peak(step))
    self._line.trained(step, lap.seconds)
    self._check_finite(step, float(sums["loss"]))
    self._sums = add_metrics(self._sums, sums) if self._sums else sums
    if self._plan.log_at(step):
      skipped = int(self._sums.pop("skipped_updates"))
      if not self._sums["count"]:
        self._check_finite(step, math.nan)
      values = self._summarize(self._sums)
      if skipped:
        values["skipped_updates"] = skipped
      values |= self._time.take(values.pop("count"))
      self._sums = None
      self._write(step, "train", values)
      if estimate := self._line.estimate():
        show(estimate, console=self._console)

  def begin_evaluation(self) -> None:
    """Shows that the run evaluates from now on, until it trains again."""
    self._line.activity = "evaluating"

  def evaluation(self, step: int, values: dict[str, float], name: str = "eval") -> None:
    """Writes and shows an evaluation after `step` updates.

    Args:
      step: completed updates.
      values: from `evaluate`.
      name: what was evaluated: "eval", or "ema" for the average of the parameters.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    self._check_finite(step, values["loss"])
    self._line.evaluated()
    self._write(step, name, values)

  def draw_curves(self) -> None:
    """Draws `curves.png`, unless drawing takes more than 2 % of the run's time."""
    late = self._draw_seconds <= _DRAW_AT_MOST * (time.monotonic() - self._drawn_at)
    if self._writes and late:
      with naming(self._workdir):
        self._draw_now()

  def _draw_now(self) -> None:
    began = time.monotonic()
    self._draw(self._records, self._workdir / "curves.png")
    self._drawn_at = time.monotonic()
    self._draw_seconds = self._drawn_at - began

  def send(self) -> None:
    """Copies all lines so far to the bucket of the run, if it is in one.

    It is called before each checkpoint: a resumed run continues the lines before its
    first step.
    """
    if self._writes:
      self._outbox.send()

  @property
  def records(self) -> Sequence[Mapping[str, Any]]:
    """The lines of `metrics.jsonl`; none in processes that do not write."""
    return self._records

  def describe_rate(self, step: int) -> str:
    """Returns ", at learning rate ..." of the update to `step`; "" if not known."""
    if self._learning_rate is None:
      return ""
    return f", at learning rate {self._learning_rate(step - 1):.3g}"

  def _check_finite(self, step: int, loss: float) -> None:
    if not math.isfinite(loss):
      raise FloatingPointError(
        f"the loss became {loss} by step {step}{self.describe_rate(step)}; "
        f"{DIVERGENCE_ADVICE}"
      )

  def _show_skipped(self) -> None:
    skipped = [text for images in self._all_skipped for text in images.values()]
    for text in dict.fromkeys(skipped):
      if text not in self._skipped:
        # Only the process that reads an image knows that it was skipped. The consoles
        # of all processes but the first print nothing, so these use standard error.
        console = self._console if self._writes else Console(stderr=True)
        show(f"skipped {text}", console=console)
    self._skipped.update(skipped)

  def _write(self, step: int, split: str, values: dict[str, float]) -> None:
    self._show_skipped()
    if self._skipped:
      values = values | {"skipped": len(self._skipped)}
    if self._learning_rate is not None:
      self._line.learning_rate = float(self._learning_rate(step - 1))
      values = values | {"learning_rate": self._line.learning_rate}
    if self._writes:
      self._record(step, split, values)
    self._tell(step, split, values)  # Last: user code may fail.

  def _record(self, step: int, split: str, values: dict[str, float]) -> None:
    for sink in self._sinks:
      sink.log(step, split, values)
    self._outbox.send(may_wait=split == "train")
    total, rate = f"/{self._plan.num_steps}", ""
    if (lr := values.get("learning_rate")) is not None:
      rate = f"  lr {lr:.3g}"
    if self._console.is_terminal:  # The progress line has both; 80 columns are few.
      total = rate = ""
    place = f"step {step}{total}  epoch {step / self._plan.steps_per_epoch:.1f}"
    show(f"{place}  {split:5}  {_describe(values)}{rate}", console=self._console)


# Metrics with their own format, or not shown.
_KNOWN = {
  *("loss", "top1", "top5", "count", "learning_rate", "skipped", "skipped_updates"),
  *KEYS,
}


def _describe(values: dict[str, float]) -> str:
  top1 = f" top-1 {100 * values['top1']:6.2f} %" if "top1" in values else ""
  others = "".join(f" {k} {v:.4g}" for k, v in values.items() if k not in _KNOWN)
  return (
    f"loss {values['loss']:.4f}{top1}{others} "
    f"{values['images_per_s']:.0f} images/s{describe_time(values)}"
    + (f", {n} updates skipped" if (n := values.get("skipped_updates")) else "")
  )
