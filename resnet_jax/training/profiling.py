"""Traces some updates of a run with the profiler of JAX: `train(..., profile=...)`.

Process 0 traces its own devices and its host. The trace goes to RUN/profile/, in the
layout of TensorBoard and XProf.
"""

import contextlib
import dataclasses
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath
from rich.console import Console

from resnet_jax.config.plan import Plan
from resnet_jax.runs.metric_writer import MetricWriter
from resnet_jax.runtime.buckets import storage_path
from resnet_jax.runtime.errors import UserError, describe_error, naming
from resnet_jax.runtime.tables import aligned
from resnet_jax.runtime.terminal import show, warn
from resnet_jax.training.clock import Clock
from resnet_jax.training.state import TrainState
from resnet_jax.training.trace import Operation, list_operations

# A number of updates, or the steps before the first and after the last of them.
Updates = int | tuple[int, int]
WARM_UP = 10  # Updates before the traced ones, if only their number is given.
_MOST = 10  # Rows of the table.


def check_profile(profile: Updates | None, num_steps: int) -> None:
  """Raises `UserError` if the updates to trace are none, or not in the run.

  Args:
    profile: see `train`; None traces nothing.
    num_steps: length of the run.
  """
  if profile is None:
    return
  begin, end = _range(profile, 0)
  name = _name(profile)
  if isinstance(profile, int):
    if profile < 1:
      raise UserError(f"{name} must be > 0")
    if end > num_steps:
      raise UserError(
        f"{name} needs a run of at least {end} steps, as the first {WARM_UP} are not "
        f"traced; this run has {num_steps}; trace fewer, or --profile=0:{num_steps}"
      )
  elif not 0 <= begin < end <= num_steps:
    raise UserError(
      f"{name} must be FIRST:LAST with 0 <= FIRST < LAST <= {num_steps}, the last step "
      "of the run"
    )


def _range(profile: Updates, first: int) -> tuple[int, int]:
  if isinstance(profile, int):
    return first + WARM_UP, first + WARM_UP + profile
  return profile


def _name(profile: Updates) -> str:
  if isinstance(profile, int):
    return f"--profile={profile}"
  return f"--profile={profile[0]}:{profile[1]}"


class Profiler:
  """Traces the updates of `profile`, and prints what they spent their time on.

  A context manager. The training loop calls `begin_at` before each call of the compiled
  step and `end_at` after it.

  Attributes:
    plan: the plan of the run, in which a call begins and ends with the trace.
  """

  def __init__(
    self,
    profile: Updates | None,
    first: int,
    plan: Plan,
    workdir: str,
    writer: MetricWriter,
    clock: Clock,
    console: Console,
  ):
    """Says so if the run goes on after the beginning of the updates to trace.

    Args:
      profile: see `train`.
      first: completed updates.
      plan: the plan of the run.
      workdir: the run directory.
      writer: has the metrics of the last call.
      clock: does not count the time of the profiler as training.
      console: where the result is printed.
    """
    self._writer, self._clock, self._console = writer, clock, console
    self._folder = storage_path(workdir) / "profile"
    self._began: float | None = None
    self._temporary: tempfile.TemporaryDirectory[str] | None = None
    self._step, self._ends, self.plan = first, None, plan
    if profile is None:
      return
    begin, end = _range(profile, first)
    self._name = _name(profile)
    if begin < first or end > plan.num_steps:
      self._say_nothing(f"the run goes on from step {first} of {plan.num_steps}")
      return
    self._ends = begin, end
    self.plan = dataclasses.replace(plan, call_ends=(begin, end))

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *exc_info: object) -> None:
    if self._temporary:
      with contextlib.suppress(Exception):  # It would hide the error of the run.
        jax.profiler.stop_trace()
      self._temporary.cleanup()
    if self._ends:
      self._say_nothing(f"the run ended at step {self._step}, before {self._ends[1]}")

  def _say_nothing(self, reason: str) -> None:
    show(f"{self._name}: nothing was traced, as {reason}", console=self._console)

  def begin_at(self, step: int, state: TrainState) -> None:
    """Begins the trace, if it begins after `step` updates.

    Args:
      step: completed updates.
      state: the state after them; the trace begins when it is computed.
    """
    if self._ends is None or step != self._ends[0]:
      return
    self._wait(state)
    if jax.process_index() == 0:
      with self._surviving():
        self._temporary = _start()
    self._began = time.monotonic()
    self._clock.start()

  def end_at(self, step: int, state: TrainState) -> None:
    """Ends the trace and prints its table, if it ends after `step` updates.

    Args:
      step: completed updates.
      state: the state after them; the trace ends when it is computed.
    """
    self._step = step
    if self._ends is None or step != self._ends[1]:
      return
    self._wait(state)
    assert self._began is not None
    seconds, (begin, end) = time.monotonic() - self._began, self._ends
    self._ends = None
    if self._temporary:
      folder, self._temporary = self._temporary, None
      with self._surviving(), folder:
        jax.profiler.stop_trace()
        _copy(Path(folder.name), self._folder)
        (path,) = Path(folder.name).rglob("*.xplane.pb")
        title = f"traced steps {begin} to {end} in {seconds:.2f} s"
        lines = _describe(list_operations(path.read_bytes()), title)
        lines += [_describe_memory(), *self._how_to_open()]
        show(*lines, console=self._console)
    self._clock.start()

  @contextlib.contextmanager
  def _surviving(self) -> Iterator[None]:
    """Turns all errors of the profiler into a warning: a trace ends no run."""
    try:
      yield
    except Exception as error:  # JAX's profiler, protobuf and buckets have all kinds.
      warn(
        f"{self._name}: the trace failed and training continues; "
        f"{describe_error(error)}"
      )

  def _wait(self, state: TrainState) -> None:
    self._writer.flush()
    jax.block_until_ready(state)

  def _how_to_open(self) -> list[str]:
    folder = shlex.quote(str(self._folder))
    return [
      f"trace: {self._folder}",
      f"  XProf:    pip install xprof && xprof --logdir={folder}",
      "  Perfetto: open its perfetto_trace.json.gz on https://ui.perfetto.dev",
    ]


def _start() -> tempfile.TemporaryDirectory[str]:
  """Begins a trace, and returns the folder to which JAX will write it."""
  folder = tempfile.TemporaryDirectory(
    prefix="resnet_jax_profile_", ignore_cleanup_errors=True
  )
  options = jax.profiler.ProfileOptions()
  # Calls of Python functions slow the run down, and are most of a trace.
  options.python_tracer_level = 0
  try:
    jax.profiler.start_trace(
      folder.name, create_perfetto_trace=True, profiler_options=options
    )
  except Exception:
    folder.cleanup()
    raise
  return folder


def _copy(source: Path, target: epath.Path) -> None:
  """Copies all files below a folder to another one, which may be in a bucket."""
  copied = []
  try:
    for path in filter(Path.is_file, source.rglob("*")):
      copied.append(to := target / path.relative_to(source))
      with naming(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
  except Exception:
    for to in copied:  # A part of a trace is of no use.
      with contextlib.suppress(Exception):
        to.unlink(missing_ok=True)
    raise


def _describe(operations: list[Operation], title: str) -> list[str]:
  """Returns a title and the table of the most expensive operations."""
  total = sum(operation.seconds for operation in operations)
  if not total:
    return [f"{title}; the profiler of this device recorded no operations"]
  header = ["operation", "times", "ms", "share"]
  rows = [
    [
      operation.name,
      f"{operation.count:,}",
      f"{1e3 * operation.seconds:,.2f}",
      f"{100 * operation.seconds / total:.1f} %",
    ]
    for operation in operations[:_MOST]
  ]
  return [f"{title}; the most expensive operations:", *aligned([header, *rows], 52)]


def _describe_memory() -> str:
  peaks = [
    stats["peak_bytes_in_use"]
    for device in jax.local_devices()
    if (stats := device.memory_stats())
  ]
  if peaks:
    return f"peak memory of a device: {max(peaks) / 2**30:.2f} GiB"
  if sys.platform == "win32":  # It has no module `resource`.
    return "peak memory: not known"
  import resource

  unit = 1 if sys.platform == "darwin" else 2**10
  peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return f"peak memory of this process, without accelerator: {peak / 2**30:.2f} GiB"
