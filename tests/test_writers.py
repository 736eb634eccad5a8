"""What a run says of itself on the way."""

import io
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from resnet_jax.config import Config
from resnet_jax.config.plan import Plan
from resnet_jax.runs.metric_writer import MetricWriter

SUMS = {"loss": 20.0, "top1": 5, "count": 10, "skipped_updates": 0}


@pytest.mark.parametrize(
  ("share", "text"), [(0.0, ""), (0.02, ""), (0.5, ", input-bound: waits 50 %")]
)
def test_a_line_says_when_and_by_how_much_a_run_is_input_bound(
  tmp_path, monkeypatch, share, text
):
  monkeypatch.setattr(time, "monotonic", lambda: now)
  now, console = 100.0, Console(file=io.StringIO(), width=200)
  plan = Plan.create(Config(num_steps=8, batch_size=10, log_every_steps=4), 100)
  train_set = SimpleNamespace(waited_s=7.0, skipped={})
  eval_set = SimpleNamespace(skipped={})
  with MetricWriter(
    str(tmp_path), plan, lambda _: 0.1, 0, console, train_set, eval_set
  ) as writer:
    writer.start_clock()
    for step in range(1, 9):
      now += 4
      train_set.waited_s += 4 * share
      writer.train(step, {name: np.array(value) for name, value in SUMS.items()})
    now += 4
    writer.flush()
  *_, shown = console.file.getvalue().splitlines()
  assert shown.startswith("step 8/8 ") and f" 2 images/s{text}  lr" in shown
  *_, line = (tmp_path / "metrics.jsonl").open()
  assert json.loads(line).get("input_wait", 0) == pytest.approx(share)


def test_skipped_updates_are_told_and_end_a_run_that_has_no_others(tmp_path):
  console = Console(file=io.StringIO(), width=200)
  plan = Plan.create(Config(num_steps=8, batch_size=10, log_every_steps=4), 100)
  data = SimpleNamespace(waited_s=0.0, skipped={})
  nothing = dict.fromkeys(SUMS, 0.0) | {"skipped_updates": 1}
  ends = pytest.raises(FloatingPointError, match="loss became nan by step 8")
  with (
    ends,
    MetricWriter(str(tmp_path), plan, lambda _: 0.1, 0, console, data, data) as writer,
  ):
    for step, sums in enumerate([SUMS, *[nothing] * 7], start=1):
      writer.train(step, {name: np.array(value) for name, value in sums.items()})
    writer.flush()
  assert ", 3 updates skipped  lr" in console.file.getvalue()
  (line,) = map(json.loads, (tmp_path / "metrics.jsonl").open())
  assert (line["step"], line["loss"], line["skipped_updates"]) == (4, 2.0, 3)
