"""Runs killed at random moments, saves included, end with the bits of one that was not.

`CHAOS_RUNS=30 pytest tests/chaos -n0 -s` takes some minutes; the suite does a few.
"""

import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
from killable import train

RUNS = int(os.environ.get("CHAOS_RUNS", "2"))
# Imports once what each process needs; nothing of JAX has started in it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["resnet_jax.trainer"])


def start(workdir: Path):
  process = CONTEXT.Process(target=train, args=(str(workdir),))
  process.start()
  return process


def wait_for(path: Path, process) -> None:
  while not path.exists() and process.is_alive():
    time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns (hash, seconds from where the run directory is open to the end)."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  for _ in range(2):  # The second one finds everything compiled.
    process = start(workdir)
    wait_for(workdir / "checkpoints", process)
    opened = time.monotonic()
    process.join()
    seconds = time.monotonic() - opened
    assert process.exitcode == 0
    result = (workdir / "final").read_text()
    workdir = workdir.with_name("again")
  assert (workdir.with_name("run") / "final").read_text() == result
  return result, seconds


@pytest.mark.chaos
def test_killed_runs_end_with_the_bits_of_one_that_was_not(whole, tmp_path):
  expected, seconds = whole
  rng = random.Random(0)
  killed, while_saving = 0, 0
  for i in range(RUNS):
    workdir = tmp_path / str(i)
    while not (workdir / "final").exists():
      process = start(workdir)
      if killed <= i:
        wait_for(workdir / "checkpoints", process)
        process.join(rng.uniform(0, seconds))
        if process.is_alive():
          killed += 1
          process.kill()
          left = workdir.glob("checkpoints/*tmp*")
          while_saving += any(left)
      process.join()
      assert process.exitcode in (0, -9)
    assert (workdir / "final").read_text() == expected
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == [4, 5, 8, 10, 12, 12]
    assert not any(workdir.glob("checkpoints/*tmp*"))
  print(f"{killed} kills in {RUNS} runs, {while_saving} of them while saving")
  assert killed == RUNS
