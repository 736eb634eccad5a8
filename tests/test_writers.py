"""What a run says of itself on the way."""

import io
import json
import struct
import threading
import time

import jax.numpy as jnp
import pytest
from etils import epath
from rich.console import Console
from tensorboardX.proto import event_pb2

from resnet_jax.config import Config
from resnet_jax.config.plan import Plan
from resnet_jax.experiments.jobs import Job
from resnet_jax.runs.metric_writer import MetricWriter
from resnet_jax.runs.tensorboard import Board
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.clock import Clock


def four_seconds(share=0.0):
  """The devices wait for a share of each lap."""
  return lambda: (4.0, 4 * share)


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
  while data:  # Length, its check sum, the event, its check sum.
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
  """Of a call that the devices compute until `done`."""

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
    seconds, waited = map(sum, zip(*laps, strict=True))
    assert seconds >= 0.3
    # Nothing ran before the first images came.
    assert waited == 0 if busy else 0.15 <= waited <= seconds - 0.15
    clock.start()
    clock.dispatched(jnp.zeros(()))
    assert clock.lap()[1] == 0


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
