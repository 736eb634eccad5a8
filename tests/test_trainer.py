"""A run from end to end: resumed equals uninterrupted; the files that it writes."""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from running import train_config

from resnet_jax.config import (
  AugmentConfig,
  CheckpointConfig,
  Config,
  DataConfig,
  ModelConfig,
  OptimConfig,
)
from resnet_jax.data.pipelines.resident import ResidentDataset
from resnet_jax.data.sources.built_in import load_synthetic
from resnet_jax.models.building import build_model
from resnet_jax.runs import checksums
from resnet_jax.runs.run_dir import latest_step, read_config
from resnet_jax.runs.time_shares import KEYS
from resnet_jax.runtime.signals import Stopped
from resnet_jax.training.evaluator import evaluate_run
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.hooks import Hook
from resnet_jax.training.trainer import train


def make_config(**changes) -> Config:
  config = Config(
    num_steps=11,
    batch_size=16,
    steps_per_call=3,
    log_every_steps=4,
    eval_every_steps=6,
    model=ModelConfig(factory="own_parts:normed_network"),
    data=DataConfig(name="synthetic", image_size=8, num_examples=70),
    augment=AugmentConfig(padding=1, flip=True),
    optim=OptimConfig(learning_rate=0.05, decay_steps=(8,)),
  )
  return dataclasses.replace(config, **changes)


def run(config, workdir, devices=1, hooks=(), draws=False):
  console = Console(file=io.StringIO(), width=200)
  state, results = train_config(
    config, workdir, jax.devices()[:devices], console, hooks, draws
  )
  return state, results, console.file.getvalue()


def records(workdir) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, *run(make_config(), workdir, draws=True)


def assert_states_equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)


# An epoch has 4 steps, so step 7 is inside one. Calls of 2 steps do not end at it.
@pytest.mark.parametrize(("stop", "steps_per_call"), [(7, 3), (7, 2), (4, 3)])
def test_resumed_equals_uninterrupted_to_the_bit(whole, tmp_path, stop, steps_per_call):
  run(make_config(num_steps=stop, steps_per_call=steps_per_call), tmp_path)
  state, results, shown = run(make_config(), tmp_path)
  assert f"{stop} of them done" in shown
  assert_states_equal(state, whole[1])
  drop = {"images_per_s"}
  assert {k: v for k, v in results.items() if k not in drop} == {
    k: v for k, v in whole[2].items() if k not in drop
  }


def die_after_saving(last, config, workdir, devices=1):
  """Runs until the state of step `last` is saved, then fails."""

  class Die(Hook):
    def on_checkpoint(self, step, state):
      if step == last:
        raise RuntimeError("killed")

  with pytest.raises(RuntimeError, match="killed"):
    run(config, workdir, devices, [Die()])


def test_a_run_that_died_after_a_save_goes_on_to_the_same_bits(whole, tmp_path):
  config = make_config(checkpoint=CheckpointConfig(every_steps=5))
  die_after_saving(5, config, tmp_path)
  assert latest_step(tmp_path) == 5
  assert_states_equal(run(config, tmp_path)[0], whole[1])


def test_a_signal_ends_a_run_between_calls_with_nothing_lost(whole, tmp_path):
  class Signal(Hook):
    def on_log(self, step, values):
      if step == 4:  # The call of step 5 has begun.
        signal.raise_signal(signal.SIGTERM)

  with pytest.raises(Stopped) as stopped:
    run(make_config(steps_per_call=1), tmp_path, hooks=[Signal()])
  assert stopped.value.step == latest_step(tmp_path) == 5
  assert_states_equal(run(make_config(), tmp_path)[0], whole[1])
  lines, expected = records(tmp_path), records(whole[0])
  assert [line["step"] for line in lines] == [line["step"] for line in expected]


@pytest.mark.parametrize("last", [0, 5])
def test_a_signal_before_the_first_step_ends_a_run_at_once(
  whole, last, tmp_path, monkeypatch
):
  """The first state of a large network takes long to compute."""
  config = make_config(checkpoint=CheckpointConfig(every_steps=5))
  if last:
    die_after_saving(last, config, tmp_path)

  def compute(self):
    signal.raise_signal(signal.SIGTERM)
    pytest.fail("the run goes on")

  with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
    patch.setattr(Experiment, "initial_state", compute)
    run(config, tmp_path)
  assert stopped.value.step == latest_step(tmp_path) == last
  assert_states_equal(run(config, tmp_path)[0], whole[1])


def test_a_signal_while_the_last_save_is_written_loses_nothing(
  whole, tmp_path, monkeypatch
):
  write, slowed = checksums.write_digests, []

  def write_slowly(directory, *args):
    if directory.name.startswith("11"):
      slowed.append(directory)
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(1)
    return write(directory, *args)

  monkeypatch.setattr(checksums, "write_digests", write_slowly)
  with contextlib.suppress(Stopped):  # The signal may come in an evaluation.
    run(make_config(), tmp_path)
  assert len(slowed) == 1 and latest_step(tmp_path) == 11
  state, _, shown = run(make_config(), tmp_path)
  assert "11 of them done" in shown and "damaged" not in shown
  assert_states_equal(state, whole[1])
  assert [line["step"] for line in records(tmp_path)] == [
    line["step"] for line in records(whole[0])
  ]


AVERAGED = make_config(
  precise_bn_batches=3,
  log_every_steps=3,
  optim=OptimConfig(learning_rate=0.05, ema_decay=0.9),
)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("averaged") / "run"
  return workdir, run(AVERAGED, workdir)


@pytest.mark.parametrize("last", [6, 11])
def test_a_signal_in_an_evaluation_loses_nothing_and_the_resumed_run_makes_up_for_it(
  averaged, tmp_path, last
):
  class Signal(Hook):
    def on_checkpoint(self, step, state):
      if step == last:  # Its evaluation comes next.
        signal.raise_signal(signal.SIGTERM)

  (whole, expected), stopped = averaged, tmp_path / "stopped"
  with pytest.raises(Stopped) as error:
    run(AVERAGED, stopped, hooks=[Signal()])
  assert error.value.step == latest_step(stopped) == last
  assert [line["split"] for line in records(stopped) if line["step"] == last] == [
    "train"
  ]
  assert_states_equal(run(AVERAGED, stopped)[0], expected[0])
  ours, theirs = (
    [{k: v for k, v in line.items() if k not in KEYS} for line in records(place)]
    for place in (stopped, whole)
  )
  assert ours == theirs
  for which in ("best", "latest"):
    evaluated = [
      evaluate_run(AVERAGED, str(place), which, trust_code=True)
      for place in (stopped, whole)
    ]
    assert evaluated[0][0] == evaluated[1][0]
    assert evaluated[0][1]["loss"] == evaluated[1][1]["loss"]


@pytest.mark.parametrize("last", [4, 0])
def test_an_error_of_the_input_saves_what_was_reached(whole, tmp_path, last):
  class Failing(ResidentDataset):
    def __init__(self, data):
      vars(self).update(vars(data))

    def train_chunks(self, key, step, plan):
      for end, feed, count in super().train_chunks(key, step, plan):
        if end > last:
          raise OSError("the disk is gone")
        yield end, feed, count

  experiment = Experiment.create(make_config(), devices=jax.devices()[:1])
  vars(experiment)["train_data"] = Failing(experiment.train_data)
  with pytest.raises(OSError, match="the disk is gone"):
    train(experiment, str(tmp_path), console=Console(quiet=True))
  assert latest_step(tmp_path) == last
  assert_states_equal(run(make_config(), tmp_path)[0], whole[1])


def test_more_classes_than_logits_are_refused_in_evaluation(whole, monkeypatch):
  source = load_synthetic("test", 8, 20)
  many = dataclasses.replace(source, class_names=tuple(map(str, range(11))))
  monkeypatch.setattr("resnet_jax.data.pipelines.opening.open_source", lambda *_: many)
  experiment = Experiment.create(read_config(whole[0]), class_names=())
  with pytest.raises(ValueError, match=r"num_classes=10 must be .* at least 11"):
    experiment.eval_data  # noqa: B018


def test_classes_that_the_run_does_not_have_are_refused_in_evaluation(
  whole, monkeypatch
):
  source = load_synthetic("test", 8, 20)
  names = tuple(map(str, range(11)))
  more = dataclasses.replace(source, labels=source.labels + 1, class_names=names)
  monkeypatch.setattr("resnet_jax.training.evaluator.open_source", lambda *_: more)
  with pytest.raises(ValueError, match=r"the class '10', which is not among the 10"):
    evaluate_run(read_config(whole[0]), str(whole[0]), trust_code=True)


def test_metrics_after_a_resume_have_each_step_once(whole, tmp_path):
  config = make_config(checkpoint=CheckpointConfig(every_steps=5))
  run(dataclasses.replace(config, num_steps=6), tmp_path)
  # As if the run was killed in the middle of a line, after the last checkpoint.
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 8, "epoch": 2, "split": "train", "loss": 9, "top1": 0}\n')
    file.write('{"step": 9, "sp')
  run(config, tmp_path)
  lines = records(tmp_path)
  evals = [line["step"] for line in lines if line["split"] == "eval"]
  trains = [line["step"] for line in lines if line["split"] == "train"]
  assert evals == [6, 11] and trains == [4, 6, 8, 11]
  ours = {line["step"]: line["loss"] for line in lines if line["split"] == "eval"}
  assert ours == {
    line["step"]: line["loss"] for line in records(whole[0]) if line["split"] == "eval"
  }


def test_metrics_file(whole):
  lines = records(whole[0])
  assert [(line["step"], line["split"]) for line in lines] == [
    (4, "train"),
    (6, "eval"),
    (8, "train"),
    (11, "train"),
    (11, "eval"),
  ]
  for line in lines:
    assert {"step", "split", "loss", "top1", "top5"} <= line.keys()
    assert {"images_per_s", "learning_rate"} <= line.keys()
    assert line["images_per_s"] > 0 and 0 <= line["top1"] <= line["top5"] <= 1
  # Each line has the rate of its last update. The update after step 8 has a tenth.
  rates = [line["learning_rate"] for line in lines if line["split"] == "train"]
  np.testing.assert_allclose(rates, [0.05, 0.05, 0.005], rtol=1e-6)
  assert lines[-1]["count"] == 70 == whole[2]["count"]


def test_a_run_leaves_its_picture_and_board(whole):
  assert Image.open(whole[0] / "curves.png").size[0] > 500
  assert any((whole[0] / "tensorboard").iterdir())


def test_saved_settings_rebuild_the_model(whole):
  workdir, state, *_ = whole
  model = build_model(read_config(workdir))
  apply = partial(model.apply, train=False)
  logits = jax.eval_shape(apply, state.variables, jnp.zeros((2, 8, 8, 3)))
  assert logits.shape == (2, 10)


def test_a_finished_run_is_only_evaluated(whole):
  workdir, state, results, _ = whole
  before = (workdir / "metrics.jsonl").read_text()
  again, same, _ = run(make_config(), workdir)
  assert_states_equal(again, state)
  assert same["loss"] == results["loss"]
  assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.several_devices
def test_evaluating_a_run_gives_its_last_result(whole):
  workdir, _, results, _ = whole
  for devices, batch_size in ((1, 16), (8, 16), (8, 9)):
    config = dataclasses.replace(read_config(workdir), batch_size=batch_size)
    step, again = evaluate_run(
      config, str(workdir), devices=jax.devices()[:devices], trust_code=True
    )
    assert step == 11
    assert again["top1"] == results["top1"] and again["count"] == 70
    assert again["loss"] == pytest.approx(results["loss"], rel=1e-5)


@pytest.mark.parametrize(
  "periods",
  [{}, {"eval_every_steps": 1}, {"checkpoint": CheckpointConfig(every_steps=1)}],
)
def test_a_run_that_diverges_ends_before_it_is_saved(tmp_path, periods):
  config = make_config(optim=OptimConfig(learning_rate=1e30), **periods)
  with pytest.raises(FloatingPointError, match=r"loss became|no longer fin") as error:
    run(config, tmp_path)
  saved = latest_step(tmp_path)
  expected = f"last good checkpoint is of step {saved}" if saved else "nothing is saved"
  assert expected in str(error.value)
  assert re.search(r"step \d+, at learning rate 1e\+30", str(error.value))
  # After one step, the parameters are huge but finite.
  assert latest_step(tmp_path) <= (1 if periods else 0)
  lines = (tmp_path / "metrics.jsonl").read_text()
  assert (tmp_path / "curves.png").exists() == bool(lines)
  assert "NaN" not in lines


def test_too_few_logits_are_refused_before_anything_is_made(tmp_path):
  config = make_config(model=ModelConfig(name="resnet8", num_classes=9))
  with pytest.raises(ValueError, match=r"num_classes=9.*at least 10"):
    run(config, tmp_path / "new")
  assert not (tmp_path / "new").exists()


def test_a_missing_data_set_leaves_nothing_behind(tmp_path):
  config = make_config(data=DataConfig(name="cifar10", dir=str(tmp_path / "none")))
  with pytest.raises(FileNotFoundError, match="tfds build cifar10"):
    run(config, tmp_path / "new")
  assert not (tmp_path / "new").exists()


@pytest.mark.several_devices
def test_all_options_together_resume_to_the_bit_and_evaluate_alike(tmp_path):
  config = make_config(
    num_steps=6,
    precise_bn_batches=2,
    augment=AugmentConfig(flip=True, brightness=0.2, erasing=0.2, mixup=0.2, cutmix=1),
    optim=OptimConfig(
      name="adamw",
      learning_rate=1e-3,
      schedule="cosine",
      warmup_steps=2,
      clip_norm=1.0,
      accumulate=2,
      ema_decay=0.9,
    ),
    checkpoint=CheckpointConfig(every_steps=4),
  )
  state, results, shown = run(config, tmp_path / "whole", devices=2)
  assert "2 cpu devices" in shown and len(state.step.sharding.device_set) == 2
  die_after_saving(4, config, tmp_path / "cut", devices=2)
  assert_states_equal(run(config, tmp_path / "cut", devices=2)[0], state)
  # The parameters and their average are evaluated; the average is the result.
  last = {record["split"]: record for record in records(tmp_path / "whole")[-2:]}
  assert set(last) == {"eval", "ema"} and "ema" in shown
  assert last["ema"]["loss"] == results["loss"] != last["eval"]["loss"]
  workdir = tmp_path / "whole"
  _, again = evaluate_run(
    read_config(workdir), str(workdir), devices=jax.devices()[:2], trust_code=True
  )
  assert again["loss"] == pytest.approx(results["loss"], rel=1e-6)
