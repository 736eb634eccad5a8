"""A run that fails or is killed in any system call resumes to bit-identical results.

The n-th call that opens, writes, syncs, renames or makes something in the run directory
fails, or the process is killed there. `CHAOS_EVERY=1 pytest tests/chaos/test_faults.py`
tests every call in turn, which takes hours; CHAOS_EVERY=10 tests every tenth call.
Without CHAOS_EVERY, three calls are tested.
"""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

from resnet_jax.runs.checksums import digest_arrays
from resnet_jax.runs.time_shares import KEYS

HERE = Path(__file__).parent
pytestmark = [
  pytest.mark.chaos,
  pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs LD_PRELOAD and cc"
  ),
]
EVERY = int(os.environ.get("CHAOS_EVERY", "0"))
SETTINGS = {
  "model.factory": "own_parts:normed_network",
  "num_steps": 4,
  "batch_size": 16,
  "log_every_steps": 2,
  "eval_every_steps": 2,
  "data.name": "synthetic",
  "data.image_size": 8,
  "data.num_examples": 40,
  "checkpoint.every_steps": 2,
  "optim.ema_decay": 0.5,
  "precise_bn_batches": 1,
  "kernels": "xla",
}
TRAIN = [f"--config.{name}={value}" for name, value in SETTINGS.items()]


class Runs:
  """Trains one run at a time, with or without a fault."""

  def __init__(self, folder: Path):
    library = folder / "faults.so"
    build = ["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"]
    subprocess.run(build, check=True)
    self._log = folder / "log"
    self._process = subprocess.Popen(
      [sys.executable, HERE / "forks.py"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(HERE.parent)},
    )

  def train(self, workdir: Path, **fault: str) -> tuple[int, str]:
    """Returns the exit status, and what was printed."""
    argv = ["train", f"--workdir={workdir}", *TRAIN]
    request = {"argv": argv, "environment": fault, "log": str(self._log)}
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    return int(self._process.stdout.readline()), self._log.read_text()

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  runs = Runs(tmp_path_factory.mktemp("runs"))
  yield runs
  runs.close()


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
  """Returns the `result` of a run without a fault."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  status, said = runs.train(workdir)
  assert status == 0, said
  return result(workdir)


def result(workdir: Path) -> tuple[dict[str, str], list[dict]]:
  """Returns a digest of each part of each checkpoint, and the metrics."""
  digests = {}
  with ocp.StandardCheckpointer() as checkpointer:
    for path in workdir.glob("checkpoints/*/*/manifest.ocdbt"):
      name = str(path.parent.relative_to(workdir))
      digests[name] = digest_arrays(checkpointer.restore(path.parent))
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
  for record in records:
    for key in KEYS:
      record.pop(key, None)
  return digests, records


def fail_and_resume(runs, whole, folder, call, how, n) -> tuple[int, str] | None:
  """Returns the exit status and what was wrong; None if there is no n-th call."""
  workdir, hit = folder / f"run{n}", folder / f"hit{n}"
  fault = {
    "FAULT_CALL": call,
    "FAULT_BELOW": str(workdir),
    "FAULT_N": str(n),
    "FAULT_ERRNO": {"killed": "0", "once": str(errno.EIO)}.get(how, str(errno.ENOSPC)),
    "FAULT_HIT": str(hit),
  }
  if how == "onwards":
    fault["FAULT_ALL"] = "1"
  status, said = runs.train(workdir, **fault)
  if not hit.exists():
    return None
  problem = ""
  allowed = (-9,) if how == "killed" else (0, 1)
  lines = [line for line in said.splitlines() if line.startswith("error: ")]
  named = all(str(workdir) in line for line in lines)
  is_told = len(lines) == (status == 1) and named and "Traceback" not in said
  if status not in allowed or not is_told:
    problem += f"{call} {n}: status {status}: {said}\n"
  again, said = runs.train(workdir)
  if again:
    problem += f"{call} {n}: resumed with status {again}: {said}\n"
  elif (found := result(workdir)) != whole:
    problem += f"{call} {n}: {found}, not {whole}\n"
  shutil.rmtree(workdir)
  return status, problem


@pytest.mark.parametrize(
  ("call", "how", "n"),
  [
    ("rename", "killed", 20),
    ("fsync", "once", 30),
    ("write", "onwards", 30),
  ],
)
def test_a_fault_is_one_line_and_the_resumed_run_has_the_same_bits(
  runs, whole, tmp_path, call, how, n
):
  status, problem = fail_and_resume(runs, whole, tmp_path, call, how, n)
  assert status and not problem


@pytest.mark.skipif(not EVERY, reason="takes hours: set CHAOS_EVERY=1")
@pytest.mark.parametrize("how", ["killed", "once", "onwards"])
@pytest.mark.parametrize("call", ["rename", "mkdir", "fsync", "write", "open"])
def test_a_fault_at_every_call(runs, whole, tmp_path, call, how):
  ended, problems = {"done": 0, "failed": 0}, []
  for n in itertools.count(1, EVERY):
    outcome = fail_and_resume(runs, whole, tmp_path, call, how, n)
    if outcome is None:
      break
    status, problem = outcome
    ended["failed" if status else "done"] += 1
    problems += [problem] * bool(problem)
  print(f"{call}, {how}: {ended}, below {n}, {len(problems)} problems")
  assert not problems, "\n".join(problems)
