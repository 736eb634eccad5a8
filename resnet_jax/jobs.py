"""Training runs in processes of their own, several at once, watched by their metrics.

A run's directory then also has `log.txt`, what the run printed, and `result.json`,
written once it is done.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from rich import progress
from rich.console import Console

from resnet_jax import saved_config
from resnet_jax.config import Config

_POLL_S = 0.5
INTERRUPTED = "interrupted; what ran is saved, and the same command goes on"
# After this a process that was asked to save and end is killed.
_PATIENCE_S = 120


@dataclasses.dataclass(eq=False)
class Job:
  """One training run, in a process of its own once it is started.

  Attributes:
    name: shown to the person who watches.
    config: of the run.
    workdir: of the run; it goes on with what is there.
    measure: what to measure when it is trained: see `worker.py`; "" is nothing.
  """

  name: str
  config: Config
  workdir: Path
  measure: str = ""
  _process: subprocess.Popen | None = dataclasses.field(default=None, init=False)
  _log_start: int = dataclasses.field(default=0, init=False)

  @property
  def request(self) -> dict[str, Any]:
    """What `worker.py` is asked for, but for the directory."""
    config = json.loads(saved_config.to_json(self.config))
    return {"config": config, "measure": self.measure}

  def start(self, environment: dict[str, str]) -> None:
    """Starts the process; its standard input stays open as long as this one lives."""
    self.workdir.mkdir(parents=True, exist_ok=True)
    with (self.workdir / "log.txt").open("a") as log:
      self._log_start = log.tell()
      self._process = subprocess.Popen(
        [sys.executable, "-m", "resnet_jax.worker"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        text=True,
        env=os.environ | environment,
        start_new_session=True,  # Ctrl-C comes here, and is passed on once.
      )
    stdin = self._process.stdin
    assert stdin is not None
    try:
      stdin.write(json.dumps(self.request | {"workdir": str(self.workdir)}) + "\n")
      stdin.flush()
    except BrokenPipeError:  # It ended at once; its log says why.
      pass

  @property
  def is_running(self) -> bool:
    """Whether the process is there."""
    return self._process is not None and self._process.poll() is None

  def stop(self) -> None:
    """Asks the process to save and end; `wait` waits for that."""
    if self.is_running:
      assert self._process is not None
      self._process.terminate()

  def wait(self) -> None:
    """Waits for the process's end."""
    if self._process is None:
      return
    try:
      self._process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def metrics(self) -> list[dict[str, Any]]:
    """Returns the whole lines of `metrics.jsonl`, so far."""
    try:
      *lines, _ = (self.workdir / "metrics.jsonl").read_text().split("\n")
      return [json.loads(line) for line in lines]
    except (FileNotFoundError, ValueError):
      return []

  def result(self) -> dict[str, Any] | None:
    """Returns what the run ended with, if it did, as it is asked for here."""
    try:
      found = json.loads((self.workdir / "result.json").read_text())
    except (FileNotFoundError, ValueError):
      return None
    return found if found.pop("request", None) == self.request else None

  def error(self) -> str:
    """Returns why the process ended without a result, in a line."""
    with (self.workdir / "log.txt").open("rb") as log:
      log.seek(self._log_start)  # What is above is of earlier tries.
      text = log.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    text = (errors or lines or [""])[-1].removeprefix("error: ")
    status = self._process.returncode if self._process is not None else None
    if not errors and status is not None and status < 0:
      text = f"killed by signal {-status}; {text}"
    return text or f"it ended with status {status}"


def run_at_once(jobs: Iterable[Job], limit: int) -> Generator[tuple[Job, bool]]:
  """Runs jobs, `limit` at a time.

  A job is taken from `jobs` when there is room for it. What still runs when the
  generator is closed is asked to save and end, and waited for.

  Args:
    jobs: not started.
    limit: of processes.

  Yields:
    Those that run, in turn, and whether they have ended: once, as the last.
  """
  environment = _environment(limit)
  queue = iter(jobs)
  running: list[Job] = []
  try:
    while True:
      while len(running) < limit:
        if (job := next(queue, None)) is None:
          break
        running.append(job)  # Before it starts: it must end if we do.
        job.start(environment)
      if not running:
        return
      time.sleep(_POLL_S)
      for job in list(running):
        has_ended = not job.is_running
        if has_ended:
          running.remove(job)
        yield job, has_ended
  finally:
    for job in running:
      job.stop()
    for job in running:
      job.wait()


def _environment(limit: int) -> dict[str, str]:
  """What processes that share a machine need, unless the user has said it."""
  if limit == 1:
    return {}
  names = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # New and old.
  if any(name in os.environ for name in names):
    return {}
  return {names[0]: f"{0.9 / limit:.3f}"}


class Display:
  """Shows the runs: a bar for all and one for each on a terminal, else lines.

  A context manager.
  """

  def __init__(self, total: int, console: Console):
    """Nothing is shown yet.

    Args:
      total: number of runs.
      console: where to show.
    """
    self._console, self._total = console, total
    self._done = 0
    self._bar = progress.Progress(
      progress.TextColumn("{task.description}"),
      progress.BarColumn(bar_width=16),
      progress.TaskProgressColumn(),
      progress.TextColumn("{task.fields[text]}"),
      console=console,
      disable=not console.is_terminal,
      transient=True,
    )
    self._all = self._bar.add_task("runs", total=total, text="")
    self._tasks: dict[Job, progress.TaskID] = {}

  def __enter__(self) -> "Display":
    self._bar.start()
    return self

  def __exit__(self, *exc_info) -> None:
    self._bar.stop()

  def update(self, job: Job) -> None:
    """Shows how far a job is that runs."""
    if job not in self._tasks:
      self._tasks[job] = self._bar.add_task(job.name, total=1.0, text="starting")
    if records := job.metrics():
      config, last = job.config, records[-1]
      done = last["step"] / config.num_steps if config.num_steps else 0.0
      done = done or last["epoch"] / config.num_epochs
      text = f"{last['split']} error {100 * (1 - last['top1']):.1f} %"
      self._bar.update(self._tasks[job], completed=done, text=text)

  def end(self, job: Job, text: str) -> None:
    """Says how a job ended."""
    if job in self._tasks:
      self._bar.remove_task(self._tasks.pop(job))
    self._done += 1
    self._bar.update(self._all, completed=self._done)
    self._console.print(
      f"[{self._done}/{self._total}] {job.name}: {text}",
      highlight=False,
      markup=False,
      soft_wrap=True,
    )
