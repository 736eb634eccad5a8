"""Runs several trainings in parallel, each in its own process, and shows their metrics.

Each run directory also gets `log.txt`, the output of the run, and `result.json`, which
is written when the run is done.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from rich import progress
from rich.console import Console

from resnet_jax.config import serialization
from resnet_jax.config.schema import Config
from resnet_jax.runtime.terminal import show

_POLL_S = 0.5
INTERRUPTED = "interrupted; the runs are saved, and the same command resumes them"
# Errors from reading a file that is not JSON, or has another structure.
_DAMAGE = AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError
# A process that was asked to save and end is killed after this time.
PATIENCE_S = 120


@dataclasses.dataclass(eq=False)
class Job:
  """One training run, which `start` runs in its own process.

  Attributes:
    name: name to show to the user.
    config: settings of the run.
    workdir: directory of the run; an existing run is resumed.
    measure: what to measure after training, see `worker.py`; "" is nothing.
  """

  name: str
  config: Config
  workdir: Path
  measure: str = ""
  _process: subprocess.Popen[str] | None = dataclasses.field(default=None, init=False)
  _log_start: int = dataclasses.field(default=0, init=False)

  @property
  def request(self) -> dict[str, Any]:
    """The request to `worker.py`, without the directory."""
    config = json.loads(serialization.to_json(self.config))
    return {"config": config, "measure": self.measure}

  def start(self, environment: dict[str, str]) -> None:
    """Starts the process. Its standard input closes when the current process ends."""
    self.workdir.mkdir(parents=True, exist_ok=True)
    with (self.workdir / "log.txt").open("a") as log:
      self._log_start = log.tell()
      self._process = subprocess.Popen(
        [sys.executable, "-m", "resnet_jax.experiments.worker"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        text=True,
        env=os.environ | environment,
        start_new_session=True,  # Ctrl-C reaches only us; we signal the run once.
      )
    stdin = self._process.stdin
    assert stdin is not None
    try:
      stdin.write(json.dumps(self.request | {"workdir": str(self.workdir)}) + "\n")
      stdin.flush()
    except BrokenPipeError:  # It ended immediately; its log says why.
      pass

  @property
  def is_running(self) -> bool:
    """Whether the process is running."""
    return self._process is not None and self._process.poll() is None

  def stop(self) -> None:
    """Asks the process to save and end, without waiting for it; see `wait`."""
    if self.is_running:
      assert self._process is not None
      self._process.terminate()

  def wait(self) -> None:
    """Waits for the end of the process; kills it after `PATIENCE_S` seconds."""
    if self._process is None:
      return
    try:
      self._process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def metrics(self) -> list[dict[str, Any]]:
    """Returns the records in the complete lines of `metrics.jsonl` so far.

    Raises:
      UserError: a line is damaged.
    """
    # Its import takes seconds, for which `--help` need not wait.
    from resnet_jax.runs.metric_lines import read_records

    return read_records(self.workdir)

  def result(self) -> dict[str, Any] | None:
    """Returns the result of this config and measurement; None if there is none."""
    found = read_result(self.workdir, self.request["config"])
    # Studies that share a run may measure different things.
    is_measured = not self.measure or self.measure in found or "diverged" in found
    return found if found and is_measured else None

  def error(self) -> str:
    """Returns in one line why the process ended without a result."""
    with (self.workdir / "log.txt").open("rb") as log:
      log.seek(self._log_start)  # The text before it is from earlier tries.
      text = log.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    text = (errors or lines or [""])[-1].removeprefix("error: ")
    status = self._process.returncode if self._process is not None else None
    if not errors and status is not None and status < 0:
      text = f"killed by signal {-status}; {text}"
    return text or f"it ended with status {status}"


def read_result(workdir: Path, config: dict[str, Any]) -> dict[str, Any]:
  """Returns the result of the run in `workdir`; {} if it has none for `config`.

  Args:
    workdir: directory of the run.
    config: the settings, as JSON values.
  """
  try:
    found = json.loads((workdir / "result.json").read_text())
    is_of_config = found.pop("request")["config"] == config
  except (FileNotFoundError, NotADirectoryError, *_DAMAGE):
    return {}
  return found if is_of_config else {}


def run_at_once(jobs: Iterable[Job], limit: int) -> Generator[tuple[Job, bool]]:
  """Runs jobs, `limit` at a time.

  The next job is taken from `jobs` when fewer than `limit` run. If the generator is
  closed, it asks the running jobs to save and end, and waits for them.

  Args:
    jobs: jobs that are not started.
    limit: largest number of processes.

  Yields:
    (job, whether it has ended), for all running jobs in turn. The last pair of each job
    says that it has ended.
  """
  environments = _environments(limit)
  queue = iter(jobs)
  running: dict[Job, dict[str, str]] = {}
  try:
    while True:
      while len(running) < limit:
        if (job := next(queue, None)) is None:
          break
        # The job is added before it starts, so that `finally` always ends it.
        running[job] = environments.pop(0)
        job.start(running[job])
      if not running:
        return
      time.sleep(_POLL_S)
      for job in list(running):
        has_ended = not job.is_running
        if has_ended:
          environments.append(running.pop(job))
        yield job, has_ended
  finally:
    for job in running:
      job.stop()
    for job in running:
      job.wait()


def _environments(limit: int) -> list[dict[str, str]]:
  """Returns environment variables by which `limit` processes share the local GPUs.

  If there are at least as many GPUs as processes, each process gets its own GPUs.
  Otherwise several processes share a GPU and its memory. The memory is divided equally,
  unless the user has set how much a process may use.
  """
  gpus = _gpus()
  if limit == 1 or not gpus:
    return [{} for _ in range(limit)]
  own = [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i::limit])} for i in range(limit)]
  if limit <= len(gpus):
    return own
  share = {"XLA_CLIENT_MEM_FRACTION": f"{0.9 / math.ceil(limit / len(gpus)):.3f}"}
  # JAX has a new and an old name of this variable.
  if {*share, "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
    share = {}
  return [share | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(limit)]


def _gpus() -> list[str]:
  """Returns the usable NVIDIA GPUs. Asking JAX for them would occupy them."""
  said = os.environ.get("CUDA_VISIBLE_DEVICES")
  if said is not None:
    return [gpu for gpu in said.split(",") if gpu]
  try:
    listed = subprocess.run(
      ["nvidia-smi", "-L"], capture_output=True, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    return []
  return [str(i) for i, _ in enumerate(re.findall("^GPU ", listed.stdout, re.M))]


class Display:
  """Shows the runs. A context manager.

  A terminal shows one progress bar for all runs and one per run. Other outputs show
  lines.
  """

  def __init__(self, total: int, console: Console):
    """Shows nothing yet.

    Args:
      total: number of runs.
      console: console for the output.
    """
    self._console, self._total = console, total
    self._done = 0
    self._bar = progress.Progress(
      progress.TextColumn("{task.description}", markup=False),
      progress.BarColumn(bar_width=16),
      progress.TaskProgressColumn(),
      progress.TextColumn("{task.fields[text]}", markup=False),
      console=console,
      disable=not console.is_terminal,
      transient=True,
    )
    self._all = self._bar.add_task("runs", total=total, text="")
    self._tasks: dict[Job, progress.TaskID] = {}

  def __enter__(self) -> "Display":
    self._bar.start()
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._bar.stop()

  def update(self, job: Job) -> None:
    """Shows the progress of a running job."""
    if job not in self._tasks:
      self._tasks[job] = self._bar.add_task(job.name, total=1.0, text="starting")
    if records := job.metrics():
      config, last = job.config, records[-1]
      done = last["step"] / config.num_steps if config.num_steps else 0.0
      done = done or last["epoch"] / config.num_epochs
      text = f"{last['split']} loss {last['loss']:.4f}"
      if "top1" in last:
        text = f"{last['split']} error {100 * (1 - last['top1']):.1f} %"
      self._bar.update(self._tasks[job], completed=done, text=text)

  def end(self, job: Job, text: str) -> None:
    """Shows how a job ended."""
    if job in self._tasks:
      self._bar.remove_task(self._tasks.pop(job))
    self._done += 1
    self._bar.update(self._all, completed=self._done)
    line = f"[{self._done}/{self._total}] {job.name}: {text}"
    show(line, console=self._console)
