"""Runs killed at random moments, even during a save, resume to bit-identical results.

`CHAOS_RUNS=30 pytest tests/chaos -n0 -s` takes some minutes; the suite does two runs.
"""

import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
from killable import STEPS, train

RUNS = int(os.environ.get("CHAOS_RUNS", "2"))
# The fork server imports the modules once for all processes; it does not start JAX.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["resnet_jax.training.trainer"])


def start(workdir: Path):
  process = CONTEXT.Process(target=train, args=(str(workdir),))
  process.start()
  return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns the hash of a run that was not killed."""
  workdir = tmp_path_factory.mktemp("whole")
  process = start(workdir)
  process.join()
  assert process.exitcode == 0
  return (workdir / "final").read_text()


def kill_at_a_random_moment(process, workdir: Path, rng: random.Random) -> bool:
  """Kills near the start of some save; returns False if the run ended before."""
  saves = rng.randrange(STEPS)
  while len(list(workdir.glob("checkpoints/*"))) < min(saves, 2):
    if not process.is_alive():
      return False
    time.sleep(0.005)
  process.join(rng.uniform(0, 0.2 * (STEPS - min(saves, 2))))
  if not process.is_alive():
    return False
  process.kill()
  process.join()
  return True


@pytest.mark.chaos
def test_killed_runs_end_with_the_bits_of_one_that_was_not(whole, tmp_path):
  rng = random.Random(0)
  killed = while_saving = 0
  while killed < RUNS:
    workdir = tmp_path / str(time.monotonic_ns())
    if not kill_at_a_random_moment(start(workdir), workdir, rng):
      continue
    killed += 1
    while_saving += any(workdir.glob("checkpoints/*tmp*"))
    process = start(workdir)
    process.join()
    assert process.exitcode == 0
    assert (workdir / "final").read_text() == whole
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == [4, 5, 8, 8]
    assert not any(workdir.glob("checkpoints/*tmp*"))
  print(f"{killed} runs killed, {while_saving} of them while saving")
