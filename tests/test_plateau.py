"""Decrease at a plateau and early stopping: definitions, and exactness on resume."""

import dataclasses
import io
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal
from own_parts import task
from rich.console import Console
from running import train_config

from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from resnet_jax.config.plan import Plan
from resnet_jax.config.serialization import check_resumable
from resnet_jax.config.validation import validate
from resnet_jax.experiments import worker
from resnet_jax.experiments.jobs import Job
from resnet_jax.experiments.studies.outcomes import row_of
from resnet_jax.experiments.studies.study import Variant
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.metric_lines import read_records
from resnet_jax.runtime import compilation
from resnet_jax.runtime.errors import UserError
from resnet_jax.training import keeper
from resnet_jax.training.optimizer import create_optimizer
from resnet_jax.training.plateau import Plateau, create_plateau
from resnet_jax.training.state import TrainState

PLAN = Plan(
  num_steps=1000,
  steps_per_epoch=10,
  steps_per_call=1,
  warmup_steps=0,
  decay_steps=(),
  log_every=1,
  eval_every=1,
  save_every=0,
)


def follow(values, plan=PLAN, **settings) -> Plateau:
  plateau = Plateau(plan, "top1", **settings)
  for step, value in enumerate(values, 1):
    plateau.add(step, {"top1": value})
  return plateau


@pytest.mark.parametrize("seed", range(8))
def test_the_scale_is_that_of_pytorch(seed):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(seed)
  settings = {"factor": rng.choice([0.1, 0.5, 0.3]), "patience": int(rng.integers(4))}
  delta = float(rng.choice([0.0, 0.05]))
  optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
  reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
    optimizer, "max", threshold=delta, threshold_mode="abs", eps=0.0, **settings
  )
  plateau = Plateau(PLAN, "top1", min_delta=delta, **settings)
  # Few different values, so that ties occur.
  for step, value in enumerate(rng.integers(0, 20, 60) / 20, 1):
    reference.step(float(value))
    plateau.add(step, {"top1": float(value)})
    assert plateau.scale == optimizer.param_groups[0]["lr"]
  assert plateau.decay_steps
  assert not plateau.should_stop


def test_a_run_stops_after_so_many_evaluations_without_a_new_best():
  values = [0.1, 0.3, 0.2, 0.3, 0.4, 0.4, 0.1, 0.4]
  stops = [follow(values[:i], stop_patience=3).should_stop for i in range(9)]
  assert stops == [False] * 8 + [True]
  # A decrease of the learning rate does not start its count again.
  both = follow(values, stop_patience=3, patience=1)
  assert both.should_stop
  assert both.decay_steps == [4, 7]
  assert (both.best, both.best_step) == (0.4, 5)


def test_evaluations_in_warmup_and_an_irregular_last_one_do_not_count():
  plan = dataclasses.replace(PLAN, num_steps=9, warmup_steps=4, eval_every=2)
  plateau = follow([0.9, 0.9, 0.9, 0.9, 0.5, 0.5, 0.9, 0.1, 0.1], plan, patience=0)
  assert (plateau.best, plateau.best_step) == (0.5, 6)
  assert plateau.decay_steps == [8]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars", "lamb", "muon"])
def test_a_plateau_changes_an_optimiser_as_a_step_decay_does(name):
  drop, rate = 3, 0.1
  config = OptimConfig(
    name=name, nesterov=True, learning_rate_multipliers={"stem": 0.5}, clip_norm=1.0
  )
  stepped = optax.piecewise_constant_schedule(rate, {drop: config.decay_factor})
  flat = optax.constant_schedule(rate)
  start = {
    "stem": {"kernel": normal(3, 3, 2, 4)},
    "head": {"kernel": normal(4, 5), "bias": normal(5)},
  }
  ends = []
  plateau = Plateau(PLAN, "top1", patience=0)
  for schedule, kind in ((stepped, "step"), (flat, "plateau")):
    tx = create_optimizer(dataclasses.replace(config, schedule=kind), schedule)
    state = TrainState.create(
      apply_fn=None, tx=tx, params=start, batch_stats={}, key=jax.random.key(0)
    )
    update = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    for step in range(6):
      state = update(state, jax.tree.map(lambda x, i=step: jnp.sin(i + x), start))
      if kind == "plateau":
        plateau.scale = config.decay_factor if step + 1 >= drop else 1.0
        state = plateau.apply(state)
    ends.append(state.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), *ends)


def make_config(num_steps=12, **optim) -> Config:
  """After the first evaluation, none can be better by more than 1."""
  return Config(
    num_steps=num_steps,
    batch_size=16,
    steps_per_call=3,
    log_every_steps=5,
    eval_every_steps=2,
    model=ModelConfig(factory="own_parts:normed_network"),
    data=DataConfig(name="synthetic", image_size=8, num_examples=70),
    optim=OptimConfig(learning_rate=0.2, min_delta=1.0, **optim),
  )


# Decreases at steps 6 and 10.
DROPPING = make_config(
  name="lars",
  schedule="plateau",
  plateau_patience=1,
  ema_decay=0.5,
  accumulate=2,
  shard_state=True,
  learning_rate_multipliers={"conv": 0.5},
)


def run(config, workdir, count=1, console=None):
  console = console or Console(quiet=True)
  return train_config(config, workdir, jax.devices()[:count], console)


def die_in_evaluation(config, workdir, number, monkeypatch, count=1):
  """Trains, and fails in the evaluation of the given number, after the save."""
  with monkeypatch.context() as patch:
    calls = iter([*[False] * (number - 1), True])

    def evaluate(*args):
      if next(calls):
        raise ZeroDivisionError
      return trainer_evaluate(*args)

    trainer_evaluate = keeper.evaluate
    patch.setattr(keeper, "evaluate", evaluate)
    with pytest.raises(ZeroDivisionError):
      run(config, workdir, count)


def assert_equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def rates(workdir) -> dict[tuple[int, str], float]:
  return {(r["step"], r["split"]): r["learning_rate"] for r in read_records(workdir)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, run(DROPPING, workdir, 2)


def test_the_log_has_the_real_learning_rate(whole):
  scale = {
    step: 1.0 if step <= 6 else 0.1 if step <= 10 else 0.01 for step in range(13)
  }
  logged = rates(whole[0])
  assert len(logged) == 6 + 6 + 3
  for (step, _), rate in logged.items():
    assert rate == pytest.approx(0.2 * scale[step], rel=1e-6)


def assert_same_end(result, expected):
  for part in ("opt_state", "variables", "ema"):
    assert_equal(getattr(result.state, part), getattr(expected.state, part))
  assert result.metrics["loss"] == expected.metrics["loss"]


@pytest.mark.several_devices
def test_a_run_that_is_lengthened_is_the_same_to_the_bit(whole, tmp_path):
  run(dataclasses.replace(DROPPING, num_steps=7), tmp_path, 2)
  assert_same_end(run(DROPPING, tmp_path, 2), whole[1])
  own = {key: rate for key, rate in rates(tmp_path).items() if key[0] != 7}
  assert own == {key: rate for key, rate in rates(whole[0]).items() if key in own}


def test_a_lost_evaluation_is_refused():
  lines = [{"step": step, "split": "ema", "top1": 0.5} for step in (1, 3)]
  plateau = Plateau(PLAN, "top1", patience=0)
  with pytest.raises(UserError, match=r"no line of split 'ema' for step 2, .*init_"):
    plateau.replay(lines, "ema", 3, is_due=False)
  Plateau(PLAN, "top1").replay([], "ema", 3, is_due=False)  # Nothing depends on them.


STOPPING = dataclasses.replace(
  DROPPING, optim=dataclasses.replace(DROPPING.optim, early_stopping_patience=2)
)


@pytest.mark.several_devices
def test_a_stop_survives_a_kill_and_more_patience_goes_on(whole, tmp_path, monkeypatch):
  """The kill comes in the evaluation of step 6, which decides to stop the run."""
  die_in_evaluation(STOPPING, tmp_path, 6, monkeypatch, 2)
  shown = io.StringIO()
  state, _ = run(STOPPING, tmp_path, 2, Console(file=shown, width=200))
  assert state.step == 6
  assert re.search(
    r"had stopped early at step 6: since step 2, 2 evaluations in a row did not exceed "
    r"its top1 of 0\.\d+ by more than 1\nnothing is left to train",
    shown.getvalue(),
  )
  assert_same_end(run(DROPPING, tmp_path, 2), whole[1])


@pytest.mark.usefixtures("one_device")
def test_an_early_stop_is_the_end_of_a_run(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(compilation, "keep_compiled", lambda: None)
  job = Job("run", STOPPING, tmp_path / "run")
  worker.run(job.request | {"workdir": str(job.workdir)})
  assert (
    "\nstopped early at step 6: since step 2, 2 evaluations" in capsys.readouterr().out
  )
  records = job.metrics()
  # The end of training is logged, although the period is 5.
  assert [r["step"] for r in records if r["split"] == "train"] == [2, 4, 5, 6]
  with CheckpointStore(job.workdir) as store:
    assert store.restore_model("latest")[0] == 6
    assert store.restore_model("best")[0] in (2, 4, 6)
  assert (job.workdir / "curves.png").exists()
  # Sweeps and studies see it as finished.
  result = job.result()
  assert result is not None
  assert result["steps"] == 6
  row = row_of(job, Variant(label="run", series="", depth=1, settings={}), 0)
  assert math.isfinite(row["train_error"])

  state, again = run(STOPPING, job.workdir)
  assert state.step == 6
  assert again["loss"] == result["loss"]
  assert job.metrics() == records


@pytest.mark.parametrize(
  ("optim", "text"),
  [
    ({"schedule": "plateau", "decay_steps": (5,)}, "'plateau' has none"),
    ({"plateau_patience": 3}, "patience=3 belongs to .*'plateau', not 'step'"),
    ({"min_delta": 0.1}, "min_delta=0.1 belongs to"),
    ({"schedule": "plateau", "name": "schedule_free_sgd"}, "schedule='plateau' must"),
  ],
)
def test_settings_without_effect_are_refused(optim, text):
  with pytest.raises(UserError, match=text):
    validate(Config(optim=OptimConfig(**optim)))


def test_the_evaluations_that_decide_cannot_change_on_resume():
  for optim in (DROPPING.optim, STOPPING.optim):
    old = Config(optim=optim)
    with pytest.raises(UserError, match="eval_every_steps was 0 and is now 3"):
      check_resumable(old, dataclasses.replace(old, eval_every_steps=3))
  new = dataclasses.replace(STOPPING.optim, early_stopping_patience=0)
  check_resumable(STOPPING, dataclasses.replace(STOPPING, optim=new))


def test_a_part_that_cannot_follow_a_plateau_is_refused():
  config = make_config(schedule="plateau")
  with pytest.raises(UserError, match=r"given as an object; name .*\.factory"):
    create_optimizer(config.optim, None, own=optax.sgd(0.1))
  config.model.num_classes = 10
  wrong = dataclasses.replace(task(config), best_metric="accuracy")
  with pytest.raises(UserError, match=r"'accuracy', but its metrics are .*top1"):
    create_plateau(config.optim, PLAN, wrong)


def test_a_factory_gets_the_schedule_with_the_scale():
  optim = OptimConfig(schedule="plateau", factory="own_parts:optimizer")
  tx = create_optimizer(optim, optax.constant_schedule(0.5))
  params = {"head": {"kernel": jnp.ones(3)}}
  state = TrainState.create(
    apply_fn=None, tx=tx, params=params, batch_stats={}, key=jax.random.key(0)
  )
  state = Plateau(PLAN, "top1", patience=1, scale=0.5).apply(state)
  updates, _ = tx.update(params, state.opt_state, params)
  np.testing.assert_allclose(updates["head"]["kernel"], -0.25, rtol=1e-6)
