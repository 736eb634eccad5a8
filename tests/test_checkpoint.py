"""Checkpoints: states are restored, the right ones are kept, wrong ones are refused."""

import resource
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from resnet_jax.models.registry import create_model
from resnet_jax.models.scan_layout import is_scanned, to_named
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.facts import RunFacts, to_json
from resnet_jax.runs.run_dir import latest_step
from resnet_jax.runs.workdir import check_storage
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import create_mesh, replicated
from resnet_jax.training.state import StateInit

MODEL = create_model("resnet8", 3)
SHAPE = (8, 8, 3)


def make_state(devices=1, step=0, model=MODEL):
  sharding = replicated(create_mesh(jax.devices()[:devices]))
  tx = optax.sgd(0.1, 0.9)
  state = StateInit(model, tx, SHAPE, sharding)(jax.random.key(step))
  return state.replace(step=state.step + step)


def assert_equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)


def test_state_comes_back_to_the_bit_on_another_number_of_devices(tmp_path):
  state = make_state(devices=8, step=5)
  with CheckpointStore(tmp_path) as store:
    store.save(5, state)
  with CheckpointStore(tmp_path) as store:
    restored = store.restore_latest(make_state(devices=2))
  assert_equal(restored, state)
  assert len(restored.step.sharding.device_set) == 2


def test_reading_warns_of_nothing(tmp_path, caplog):
  verbosity = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.WARNING)  # As in a program of a user.
  try:
    with CheckpointStore(tmp_path) as store:
      store.save(1, make_state())
    with CheckpointStore(tmp_path) as store:
      store.restore_latest(make_state())
      store.restore_model("latest")
    assert absl.logging.get_verbosity() == absl.logging.WARNING
  finally:
    absl.logging.set_verbosity(verbosity)
  assert not [record.message for record in caplog.records if record.name == "absl"]


def test_without_a_checkpoint_the_state_is_itself(tmp_path):
  state = make_state()
  with CheckpointStore(tmp_path) as store:
    assert store.restore_latest(state) is state


def test_newest_and_best_are_kept(tmp_path):
  state = make_state()
  with CheckpointStore(tmp_path, keep=2) as store:
    for step, top1 in [(1, 0.5), (2, 0.9), (3, 0.7), (4, None), (5, 0.6), (6, None)]:
      store.save(step, state)
      if top1 is not None:
        store.add_evaluation(step, {"top1": top1})
  kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
  assert kept == {2, 5, 6}


def test_what_is_saved_is_what_was_given_though_the_buffers_are_reused(tmp_path):
  def add_one(state):
    return jax.tree.map(lambda x: x + 1, state)

  update = jax.jit(add_one, donate_argnums=0)
  tree = make_state().replace(key=jnp.uint32(0))
  expected = {}
  with CheckpointStore(tmp_path, keep=9) as store:
    for step in range(1, 5):
      expected[str(step)] = jax.tree.map(np.array, tree.variables)
      store.save(step, tree)
      tree = update(tree)
  with CheckpointStore(tmp_path) as store:
    for step, variables in expected.items():
      restored = store.restore_model(step, replicated(create_mesh()))
      assert_equal(restored[1], variables)


def test_best_and_latest_by_name(tmp_path):
  state = make_state()
  sharding = replicated(create_mesh())
  with CheckpointStore(tmp_path, keep=3) as store:
    for step, top1 in ((1, 0.9), (2, 0.1)):
      store.save(step, state)
      store.add_evaluation(step, {"top1": top1})
  with CheckpointStore(tmp_path) as store:
    assert store.restore_model("best", sharding)[0] == 1
    assert store.restore_model("latest", sharding)[0] == 2
    for wrong in ("7", "newest", "-1"):
      with pytest.raises(FileNotFoundError, match=f"{wrong}.*there are: 1, 2"):
        store.restore_model(wrong, sharding)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
  ("damage", "item"), [(flip, "model"), (truncate, "training"), (Path.unlink, "model")]
)
def test_a_damaged_newest_is_named_set_aside_and_the_one_before_used(
  tmp_path, damage, item
):
  state = make_state()
  states = {step: state.replace(step=state.step + step) for step in (4, 5, 6)}
  with CheckpointStore(tmp_path, keep=3) as store:
    for step in states:
      store.save(step, states[step])
  for step in (5, 6):
    files = list(tmp_path.glob(f"checkpoints/{step}/{item}/**/*"))
    damage(max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size))
  with CheckpointStore(tmp_path, keep=3) as store:
    with pytest.raises(OSError, match=rf"checkpoints/6 is damaged: {item}/"):
      store.restore_model("6", replicated(create_mesh()))
    said = []
    assert_equal(store.restore_latest(state, said.append), states[4])
    store.save(5, states[5])
  for text, step in zip(said, (6, 5), strict=True):
    assert text.startswith(f"checkpoint {step} is damaged: {item}/")
  assert len(list((tmp_path / "damaged").iterdir())) == 2
  with CheckpointStore(tmp_path, keep=3) as store:
    assert_equal(store.restore_latest(state, said.append), states[5])


@pytest.fixture(scope="module")
def two_evaluated(tmp_path_factory):
  """Returns a run directory with checkpoints 4 and 5, and the state in both."""
  workdir, state = tmp_path_factory.mktemp("run"), make_state(step=4)
  with CheckpointStore(workdir, keep=3) as store:
    for step in (4, 5):
      store.save(step, state)
      store.add_evaluation(step, {"top1": step / 10})
  return workdir, state


def empty(path):
  path.write_bytes(b"")


def nest(path):
  path.write_text("[" * 200_000)


def write_latin_1(path):
  path.write_bytes(b'{"top1": "\xe9"}')


def make_empty_directory(path):
  shutil.rmtree(path)
  path.mkdir()


@pytest.mark.parametrize(
  ("damage", "file"),
  [
    *((damage, "metrics/metrics") for damage in (flip, empty, write_latin_1)),
    *((damage, "digests.json") for damage in (Path.unlink, empty, nest)),
    (empty, "_CHECKPOINT_METADATA"),
    (make_empty_directory, ""),
  ],
)
def test_damage_is_found_before_orbax_reads_a_checkpoint(
  two_evaluated, tmp_path, damage, file
):
  workdir, state = two_evaluated
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  damage(tmp_path / "checkpoints" / "5" / file)
  with CheckpointStore(tmp_path) as store:
    assert_equal(store.restore_model("4")[1], to_named(state.variables))
    for which in ("5", "latest", "best"):
      with pytest.raises(OSError, match=r"/5 is damaged: .*; name another"):
        store.restore_model(which)
    said = []
    assert_equal(store.restore_latest(state, said.append), state)
    assert store.save(5, state)
  (line,) = said
  assert line.startswith("checkpoint 5 is damaged: ")


def test_damaged_metrics_of_an_older_checkpoint_stop_nothing(two_evaluated, tmp_path):
  workdir, state = two_evaluated
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  flip(tmp_path / "checkpoints" / "4" / "metrics" / "metrics")
  said = []
  with CheckpointStore(tmp_path) as store:
    assert store.restore_model("latest")[0] == 5
    assert_equal(store.restore_latest(state, said.append), state)
    store.save(6, state)
  assert len(said) == 1 and "checkpoint 4 is damaged: metrics/metrics" in said[0]
  assert latest_step(tmp_path) == 6


def test_a_state_may_be_evaluated_again(two_evaluated, tmp_path):
  workdir, state = two_evaluated
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  with CheckpointStore(tmp_path) as store:
    for top1 in (0.1, 0.2):
      store.add_evaluation(5, {"top1": top1}, state.variables)
    assert_equal(store.restore_model("5")[1], to_named(state.variables))
    assert store.restore_model("best")[0] == 4


def test_runs_saved_before_there_were_digests_are_read(two_evaluated, tmp_path):
  workdir, state = two_evaluated
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  for path in tmp_path.glob("checkpoints/*/digests.json"):
    path.unlink()
  with CheckpointStore(tmp_path) as store:
    assert_equal(store.restore_latest(state), state)
  facts = RunFacts(has_digests=True)  # As `open_run` writes it for a new run.
  (tmp_path / "run.json").write_text(to_json(facts))
  store = CheckpointStore(tmp_path)
  with pytest.raises(OSError, match=r"4 is damaged: digests\.json is gone"):
    store.restore_model("4")


@pytest.mark.parametrize(
  "name",
  [
    "run[seed=1]",
    "[!a]/b[/c]",
    "a*b?{1,2}",
    " lr=0.1,bs=32 %20#~:|&$HOME\"'",
    "--ü日e\u0301\x1b[31m\n",
    "5.orbax-checkpoint-tmp",
  ],
)
def test_a_run_may_have_any_name(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  # One of the names would match this directory if it were read as a pattern.
  (tmp_path / "axby{1,2}" / "checkpoints" / "7").mkdir(parents=True)
  state = make_state(step=2)
  check_storage(name)
  with CheckpointStore(name) as store:
    store.save(2, state)
    store.add_evaluation(2, {"top1": 0.5}, state.variables)
  unfinished = Path(name, "checkpoints", f"3{TMP_DIR_SUFFIX}")
  unfinished.mkdir()
  with CheckpointStore(name) as store:
    assert_equal(store.restore_latest(state.replace(step=state.step - 2)), state)
    assert_equal(store.restore_model("best")[1], to_named(state.variables))
  assert not unfinished.exists()
  assert Path(name, "checkpoints", "2", "digests.json").exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_full_disk_is_told_and_leaves_the_older_checkpoint(
  tmp_path, monkeypatch, known
):
  """If `known`, the system reports the full disk before a save; else a write fails."""
  state = make_state(step=1)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with CheckpointStore(tmp_path) as store:
    store.save(1, state)
  reason = r"takes 0\.6 MB and 0\.0 MB are free" if known else "File too large"
  text = f"checkpoint 2 cannot be saved.*: .*{reason}; 1 is the newest"
  try:
    with pytest.raises(OSError, match=text), CheckpointStore(tmp_path) as store:
      if known:
        free = SimpleNamespace(free=0)
        monkeypatch.setattr("shutil.disk_usage", lambda path: free)
      else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
      store.save(2, state)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
  with CheckpointStore(tmp_path) as store:
    assert_equal(store.restore_latest(make_state()), state)


def test_a_save_outlives_a_jump_of_the_clock(tmp_path, monkeypatch):
  """The clock jumps if a laptop sleeps while the arrays are written."""
  state, jump, now = make_state(step=1), 0, time.time
  monkeypatch.setattr("time.time", lambda: now() + jump)
  with CheckpointStore(tmp_path) as store:
    store.save(1, state)
    while not any(tmp_path.glob("checkpoints/1*/training*/*")):
      time.sleep(0.001)
    jump = 100_000
  with CheckpointStore(tmp_path) as store:
    assert_equal(store.restore_latest(state.replace(step=state.step - 1)), state)


def test_a_checkpoint_of_another_model_stays_where_it_is(tmp_path):
  with CheckpointStore(tmp_path) as store:
    store.save(5, make_state())
  other = create_model("resnet8", 4)
  wrong = pytest.raises(
    UserError,
    match=r"params/head/bias is \[3\] in it and \[4\] in this run",
  )
  with CheckpointStore(tmp_path) as store, wrong:
    store.restore_latest(make_state(model=other))
  assert latest_step(tmp_path) == 5


def test_weights_alone_are_no_state_to_go_on_from(tmp_path):
  state = make_state()
  with CheckpointStore(tmp_path) as store:
    store.save_weights(state.variables)
  with CheckpointStore(tmp_path) as store:
    step, variables = store.restore_model("latest", replicated(create_mesh()))
    assert step == 0
    assert_equal(variables, state.variables)
    with pytest.raises(ValueError, match="no training state to resume from"):
      store.restore_latest(state)


def test_scanned_and_unrolled_runs_share_their_checkpoints(tmp_path):
  model = create_model("resnet14", 3)
  scanned = make_state(model=model.clone(scan=True))
  assert is_scanned(scanned.params) and is_scanned(scanned.opt_state)
  with CheckpointStore(tmp_path) as store:
    store.save(3, scanned)
  with CheckpointStore(tmp_path) as store:
    named = store.restore_latest(make_state(model=model))
    again = store.restore_latest(scanned)
  assert not is_scanned(named.opt_state)
  assert_equal(to_named(scanned.params), named.params)
  assert_equal(to_named(scanned.opt_state), named.opt_state)
  assert_equal(scanned.variables, again.variables)
  assert_equal(scanned.opt_state, again.opt_state)
