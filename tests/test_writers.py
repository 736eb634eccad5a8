"""What a run reports while it trains."""

import io
import json
import struct
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from rich.console import Console
from rich.measure import Measurement
from tensorboardX.proto import event_pb2

from resnet_jax.config import Config
from resnet_jax.config.plan import Plan
from resnet_jax.experiments.jobs import Job
from resnet_jax.runs.learning_curves import draw_curves, plot_curves
from resnet_jax.runs.metric_writer import MetricWriter
from resnet_jax.runs.progress_line import ProgressLine, in_words
from resnet_jax.runs.tensorboard import Board
from resnet_jax.runs.time_shares import Lap
from resnet_jax.runtime import figure_style
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import show
from resnet_jax.training.clock import Clock


def four_seconds(share=0.0):
  """Returns a lap of 4 s, of which the devices wait for the fraction `share`."""
  return lambda: Lap(4.0, 4 * share, {})


SUMS = {"loss": 20.0, "top1": 5, "count": 10, "skipped_updates": 0}


@pytest.mark.parametrize(
  ("share", "text"), [(0.0, ""), (0.02, ""), (0.5, ", input-bound: waits 50 %")]
)
def test_a_line_says_when_and_by_how_much_a_run_is_input_bound(tmp_path, share, text):
  console = Console(file=io.StringIO(), width=200)
  plan = Plan.create(Config(num_steps=8, batch_size=10, log_every_steps=4), 100)
  with MetricWriter(
    str(tmp_path),
    plan,
    lambda _: 0.1,
    0,
    console,
    four_seconds(share),
    [{}, {}],
  ) as writer:
    for step in range(1, 9):
      writer.train(step, {name: jnp.float32(value) for name, value in SUMS.items()})
    writer.flush()
  *_, shown = console.file.getvalue().splitlines()
  assert shown.startswith("step 8/8 ") and f" 2 images/s{text}  lr" in shown
  *_, line = (tmp_path / "metrics.jsonl").open()
  assert json.loads(line).get("input_wait", 0) == pytest.approx(share)


def test_tensorboard_is_told_the_numbers_and_what_of_an_earlier_try_to_hide(tmp_path):
  with Board(epath.Path(tmp_path), 3) as board:
    board.add_scalar("train/loss", 0.25, 4)
  (path,) = tmp_path.glob("events.out.tfevents.*")
  data, events = path.read_bytes(), []
  while data:  # Length, its checksum, the event, its checksum.
    (length,) = struct.unpack("<Q", data[:8])
    events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  version, start, number = events
  assert version.file_version == "brain.Event:2"
  assert start.session_log.status == event_pb2.SessionLog.START and start.step == 4
  (value,) = number.summary.value
  assert (number.step, value.tag, value.simple_value) == (4, "train/loss", 0.25)


@pytest.mark.parametrize(
  ("line", "shown"),
  [(b"x", "'x'"), (b"\xff", "'\ufffd'"), (b"[" * 200_000, r"'\[{40}'"), (b"1", "'1'")],
)
def test_a_damaged_line_of_the_metrics_is_named(tmp_path, line, shown):
  (tmp_path / "metrics.jsonl").write_bytes(line + b"\n")
  plan, console = Plan.create(Config(num_steps=8), 200), Console(quiet=True)
  with pytest.raises(UserError, match=rf"metrics\.jsonl .* line 1, {shown}; delete"):
    MetricWriter(str(tmp_path), plan, None, 0, console, four_seconds())


class Result:
  """The result of a call; the devices compute it until `done` is set."""

  def __init__(self):
    self.done = threading.Event()

  def block_until_ready(self):
    self.done.wait()


@pytest.mark.parametrize("busy", [False, True])
def test_the_devices_wait_only_while_they_have_nothing_to_do(busy):
  def load():
    for _ in range(3):
      time.sleep(0.1)
      yield

  with Clock() as clock:
    for _ in clock.waiting(load()):
      result = Result()
      clock.dispatched(result)
      if not busy:
        result.done.set()
        time.sleep(0.05)
      else:
        threading.Timer(0.2, result.done.set).start()
    laps = [clock.lap() for _ in range(3)]
    seconds, waited, _ = zip(*laps, strict=True)
    seconds, waited = sum(seconds), sum(waited)
    assert seconds >= 0.3
    # Nothing ran before the first images came.
    assert waited == 0 if busy else 0.15 <= waited <= seconds - 0.15
    clock.start()
    clock.dispatched(jnp.zeros(()))
    assert clock.lap().waited == 0


def test_skipped_updates_are_told_and_end_a_run_that_has_no_others(tmp_path):
  console = Console(file=io.StringIO(), width=200)
  plan = Plan.create(Config(num_steps=8, batch_size=10, log_every_steps=4), 100)
  nothing = dict.fromkeys(SUMS, 0.0) | {"skipped_updates": 1}
  ends = pytest.raises(FloatingPointError, match="loss became nan by step 8")
  with (
    ends,
    MetricWriter(
      str(tmp_path), plan, lambda _: 0.1, 0, console, four_seconds()
    ) as writer,
  ):
    for step, sums in enumerate([SUMS, *[nothing] * 7], start=1):
      writer.train(step, {name: jnp.float32(value) for name, value in sums.items()})
    writer.flush()
  assert ", 3 updates skipped  lr" in console.file.getvalue()
  (line,) = map(json.loads, (tmp_path / "metrics.jsonl").open())
  assert (line["step"], line["loss"], line["skipped_updates"]) == (4, 2.0, 3)


GOOD = {"step": 1, "epoch": 0.5, "split": "eval", "loss": 1, "top1": 0.5}


@pytest.mark.parametrize(
  "line",
  [
    *("", "[]", "3", "{", "[" * 10**5, "\udcff"),
    json.dumps({"step": 1, "split": "eval"}),
    *(json.dumps(GOOD | {name: "1"}) for name in GOOD if name != "split"),
    *(json.dumps(GOOD | {name: None}) for name in GOOD),
    json.dumps(GOOD | {"step": 1.5}),
  ],
)
def test_a_line_that_is_no_record_is_refused_by_its_number(line, tmp_path):
  path = tmp_path / "metrics.jsonl"
  text = json.dumps(GOOD) + "\n" + line + "\n"
  path.write_bytes(text.encode(errors="surrogateescape"))
  message = r"/metrics\.jsonl is damaged in line 2, .*; delete the line"
  with pytest.raises(UserError, match=message):
    Job("", Config(), tmp_path).metrics()
  plan = Plan.create(Config(num_steps=8, batch_size=10), 100)
  with pytest.raises(UserError, match=message):
    console = Console(file=io.StringIO())
    MetricWriter(str(tmp_path), plan, None, 5, console, four_seconds())


@pytest.mark.parametrize("found", [[], 3, None, {}, {"request": 3}, {"request": []}])
def test_a_result_of_another_structure_is_none(found, tmp_path):
  (tmp_path / "result.json").write_text(json.dumps(found))
  assert Job("", Config(), tmp_path).result() is None


class Time:
  """A clock that a test moves forward."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: self.now)


def sums():
  return {name: jnp.float32(value) for name, value in SUMS.items()}


def test_a_terminal_keeps_the_training_lines_and_ends_with_the_total_time(tmp_path):
  console = Console(file=io.StringIO(), force_terminal=True, width=80)
  plan = Plan.create(Config(num_steps=8, batch_size=10, log_every_steps=4), 100)
  with MetricWriter(
    str(tmp_path), plan, lambda _: 0.1, 0, console, four_seconds()
  ) as writer:
    assert "compiling 0:00:00" in _last_line(console, writer)
    for step in range(1, 9):
      writer.train(step, sums())
    assert "7/8 epoch 0.7 lr 0.1 0:00:00, 0:00:04 left" in _last_line(console, writer)
    writer.begin_evaluation()
    assert " evaluating 0:00:00" in _last_line(console, writer)
    writer.flush()
    writer.evaluation(8, {"loss": 2.0, "top1": 0.5, "images_per_s": 1.0})
  shown = console.file.getvalue()
  for text in ("step 4  epoch 0.4  train", "step 8  epoch 0.8  train", "0.8  eval"):
    assert text in shown
  last = next(line for line in reversed(shown.splitlines()) if "8/8" in line)
  assert "100 % 8/8 epoch 0.8 lr 0.1 0:00:00 in all" in last


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_breaks_lines_between_words_and_a_file_keeps_them(terminal):
  console = Console(file=io.StringIO(), force_terminal=terminal, width=12)
  line = "10 images of  2 classes in well-known/folders"
  show(line, console=console)
  broken = "10 images of\n2 classes in\nwell-known/folders"
  assert console.file.getvalue() == (broken if terminal else line) + "\n"


def _last_line(console, writer):
  with console.capture() as capture:
    writer._live.refresh()
  return capture.get().splitlines()[-1]


@pytest.mark.parametrize("activity", ["", "compiling", "evaluating"])
def test_the_progress_line_fits_into_80_columns(activity, monkeypatch):
  clock = Time(monkeypatch)
  plan = Plan.create(Config(num_steps=450_360, batch_size=10), 27_450)
  line = ProgressLine(plan, 0)
  line.begin_training()
  line.activity, line.learning_rate = activity, 1.234e-05
  clock.now += 99 * 3600
  line.trained(450_359, 1e9)  # More than 99 hours an update.
  console = Console(width=200)
  assert Measurement.get(console, console.options, line).maximum <= 80


@pytest.mark.parametrize(
  ("start", "eval_every", "text"),
  [
    # 900 steps of 1 s each, after 10 s of compilation and the first 100 steps.
    (0, 1000, "estimate: 16 min 50 s for the whole run, without the 1 evaluation"),
    # An evaluation of 20 s every 50 steps; 2 of 20 are done.
    (0, 50, "estimate: 23 min 30 s for the whole run, evaluations included"),
    (500, 1000, "estimate: 6 min 40 s for the rest of the run, without the 1 eval"),
  ],
)
def test_the_whole_time_is_estimated_once_after_100_steps(
  start, eval_every, text, monkeypatch
):
  clock = Time(monkeypatch)
  config = Config(num_steps=1000, batch_size=10, eval_every_steps=eval_every)
  line, lines = ProgressLine(Plan.create(config, 100), start), []
  clock.now += 10
  line.begin_training()
  for step in range(start + 25, start + 150, 25):
    clock.now += 25
    line.trained(step, 25)
    if step % eval_every == 0:
      clock.now += 20
      line.evaluated()
    lines.append((step - start, line.estimate()))
  assert [(step, found) for step, found in lines if found] == [(100, lines[3][1])]
  assert lines[3][1].startswith(text)


def test_the_last_evaluation_is_left_until_it_has_ended(monkeypatch):
  clock = Time(monkeypatch)
  line = ProgressLine(Plan.create(Config(num_steps=8, eval_every_steps=4), 200), 0)
  line.begin_training()
  for step, left in ((4, 4 + 20), (8, 20)):
    clock.now += 4
    line.trained(step, 4)
    if step == 8:
      assert line.seconds_left() == left
    clock.now += 20
    line.evaluated()
    assert line.seconds_left() == (left if step == 4 else 0)


def test_times_in_words():
  assert list(map(in_words, (0.4, 59.6, 3599, 3600, 90_000))) == [
    *("0 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 0 min")
  ]


@pytest.mark.parametrize(
  ("draw_seconds", "drawn"), [(0.1, [1, 2, 3, 3]), (2.0, [1, 3, 3])]
)
def test_curves_are_drawn_at_evaluations_and_take_little_time(
  tmp_path, monkeypatch, draw_seconds, drawn
):
  clock, found = Time(monkeypatch), []

  def draw(records, path):
    found.append(len(records))
    clock.now += draw_seconds

  plan, console = Plan.create(Config(num_steps=8), 200), Console(quiet=True)
  with MetricWriter(
    str(tmp_path), plan, None, 0, console, four_seconds(), draw=draw
  ) as writer:
    writer.draw_curves()  # Too early: it would take longer than the run so far.
    for step in range(1, 4):
      clock.now += 60
      writer.evaluation(step, {"loss": 2.0, "images_per_s": 1.0})
      writer.draw_curves()
  assert found == drawn


def record(step, split, top1, loss=1.0):
  return {"step": step, "epoch": step / 10, "split": split, "loss": loss, "top1": top1}


@pytest.mark.parametrize(("error", "scale"), [(0.4, "linear"), (0.02, "log")])
def test_curves_have_a_log_axis_for_small_errors_and_mark_what_happened(error, scale):
  records = [
    record(10, "train", 0.1),
    record(20, "eval", 1 - error),
    record(40, "train", 1 - error),
    record(40, "eval", 1 - 1.5 * error),
  ]
  with figure_style.styled_figure(4, 4) as figure:
    marks = {"decays": [3, 9], "smoothed": True, "distilled": True}
    plot_curves(figure, records, "net on $data", **marks)
    loss, top1 = figure.axes
    texts = [text.get_text() for text in figure.texts]
  assert loss.get_yscale() == "linear" and top1.get_yscale() == scale
  _, evaluation, drop, best = (line.get_xydata() for line in top1.lines)
  np.testing.assert_allclose(evaluation, [[2, 100 * error], [4, 150 * error]])
  # A later drop of the learning rate is not drawn.
  np.testing.assert_array_equal(drop, [[3, 0], [3, 1]])
  np.testing.assert_allclose(best, [[2, 100 * error]])
  said = f"best evaluation: top-1 {100 * (1 - error):.2f} % at step 20 (circle)"
  assert texts[0] == f"net on $data\n{said}"
  for part in ("smoothed labels", "includes the teacher", "Dotted lines"):
    assert part in " ".join(texts[1].split())


def test_curves_have_no_empty_axes(tmp_path):
  path = epath.Path(tmp_path) / "curves.png"
  draw_curves([], path)
  assert not path.exists()
  own = [{"step": 1, "epoch": 0.1, "split": "train", "loss": -2.0}]
  with figure_style.styled_figure(4, 4) as figure:
    plot_curves(figure, own)
    (axes,) = figure.axes
    assert axes.get_ylim()[0] < -2
  draw_curves(own, path)
  assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
