"""Finds the trackers of a run, starts them, and ends them with the run."""

import contextlib
import importlib.util
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
from etils import epath

from resnet_jax.config.factories import call_factory, import_path
from resnet_jax.config.schema import Config
from resnet_jax.runs.run_dir import latest_step, write_file
from resnet_jax.runs.trackers.background import BackgroundTracker, finish_all
from resnet_jax.runs.trackers.mlflow import MlflowTracker
from resnet_jax.runs.trackers.progress import Progress
from resnet_jax.runs.trackers.tracker import (
  MetricSink,
  Status,
  TrackedRun,
  Tracker,
  TrackerFactory,
)
from resnet_jax.runs.trackers.wandb import WandbTracker
from resnet_jax.runtime.buckets import is_remote, storage_path
from resnet_jax.runtime.errors import UserError, setting_name
from resnet_jax.runtime.interruption import before_exit
from resnet_jax.runtime.signals import Stopped

# A tracker's name is also that of the package that it needs, and of our extra.
TRACKERS: dict[str, TrackerFactory] = {"mlflow": MlflowTracker, "wandb": WandbTracker}

_FOLDER = "trackers"  # In the run directory.
# A process that must end at once, as another one failed, waits no longer for trackers.
_LAST_PATIENCE_S = 4.0
# What a finished run uploads, with its newest checkpoint.
_FILES = (
  *("config.json", "run.json", "classes.txt", "metrics.jsonl", "curves.png"),
  "report",
)


def find_trackers(names: Sequence[str]) -> dict[str, TrackerFactory]:
  """Returns {name: factory}, without starting anything.

  Args:
    names: the setting `config.trackers`.

  Raises:
    UserError: a package or the user's own function does not exist.
  """
  found: dict[str, TrackerFactory] = {}
  for name in names:
    if name in TRACKERS:
      _check_installed(name)
      found[name] = partial(_start_known, name)
    else:
      import_path(name, "trackers")
      found[name] = partial(call_factory, name, "trackers", returns=(Tracker,))
  return found


def _check_installed(name: str) -> None:
  spec = importlib.util.find_spec(name)
  # A folder of that name, such as W&B's own ./wandb, has no origin.
  if spec is None or spec.origin is None:
    raise UserError(
      f"{setting_name('trackers')}={name} needs the package {name}: "
      f"pip install 'flax-resnet[{name}]'",
      setting="trackers",
      value=name,
    )


def _start_known(name: str, run: TrackedRun) -> Tracker:
  try:
    return TRACKERS[name](run)
  except Exception as error:  # Each package has its own kinds of errors.
    raise UserError(
      f"{setting_name('trackers')}={name} does not start: {error}",
      setting="trackers",
      value=name,
    ) from error


@contextlib.contextmanager
def open_trackers(
  workdir: str, config: Config, num_steps: int, own: Sequence[TrackerFactory] = ()
) -> Iterator[Sequence[MetricSink]]:
  """Starts the trackers of a run; at the end of the context, they finish.

  Only process 0 has trackers. The context must hold the lock of the run directory.

  Args:
    workdir: the run directory, which exists.
    config: the settings.
    num_steps: length of the run.
    own: trackers that the user gave as objects.

  Raises:
    UserError: a tracker does not start.
  """
  factories = _named(find_trackers(config.trackers), own)
  if jax.process_index() > 0 or not factories:
    yield ()
    return
  folder, start_step = storage_path(workdir) / _FOLDER, latest_step(workdir)
  if not start_step and folder.exists():  # There is nothing to resume.
    folder.rmtree()
  name = os.path.basename(os.path.normpath(workdir))
  run = TrackedRun(_read_id(folder), name, workdir, config, start_step, num_steps)
  opened: list[BackgroundTracker] = []
  status: Status = "failed"
  files: Mapping[str, Path] = {}

  def leave(was_stopped: bool) -> None:
    how: Status = "stopped" if was_stopped else "failed"
    finish_all(opened, how, {}, _LAST_PATIENCE_S)

  with contextlib.ExitStack() as stack:
    stack.enter_context(before_exit(leave))
    try:
      for name, start in factories.items():
        progress = Progress(folder / f"{_file_name(name)}.json")
        opened.append(BackgroundTracker(name, start, run, progress))
      yield opened
      files = stack.enter_context(_local_files(workdir))
      status = "finished"
    except (Stopped, KeyboardInterrupt):
      status = "stopped"
      raise
    finally:
      finish_all(opened, status, files)


def _named(
  found: Mapping[str, TrackerFactory], own: Sequence[TrackerFactory]
) -> dict[str, TrackerFactory]:
  """Returns the factories of a run, each by a name whose file no other one has.

  Of several trackers with one name, the second is NAME-2, and so on in their order.
  """
  named: dict[str, TrackerFactory] = {}
  taken: set[str] = set()
  given = [(_name_of(start), start) for start in own]
  for base, start in [*found.items(), *given]:
    name, count = base, 1
    while _file_name(name).casefold() in taken:
      count += 1
      name = f"{base}-{count}"
    taken.add(_file_name(name).casefold())
    named[name] = start
  return named


def _name_of(start: TrackerFactory) -> str:
  """Returns the name of a class, of a function or of that in a `functools.partial`."""
  while isinstance(start, partial):
    start = start.func
  return str(getattr(start, "__name__", type(start).__name__))


def _file_name(name: str) -> str:
  return re.sub(r"[^\w.-]", ".", name)


def _read_id(folder: epath.Path) -> str:
  """Returns the id of the run; creates one if it has none."""
  path = folder / "id.txt"
  if not path.exists():
    folder.mkdir(exist_ok=True)
    write_file(path, secrets.token_hex(16) + "\n")
  made = str(path.read_text()).strip()
  if not re.fullmatch(r"[0-9a-f]{32}", made):
    raise UserError(
      f"{path} is damaged: {made!r:.50} must be 32 characters of 0-9 and a-f; delete "
      f"{folder} to begin new runs in the trackers"
    )
  return made


@contextlib.contextmanager
def _local_files(workdir: str) -> Iterator[dict[str, Path]]:
  """Yields the files to upload; those of a remote directory are copied for a while."""
  root = storage_path(workdir)
  found: list[str] = []
  for name in (*_FILES, f"checkpoints/{latest_step(workdir)}"):
    found += _list_files(root / name, name)
  if not is_remote(workdir):
    yield {name: Path(workdir, name) for name in found}
    return
  with tempfile.TemporaryDirectory() as folder:
    for name in found:
      Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
      Path(folder, name).write_bytes((root / name).read_bytes())
    yield {name: Path(folder, name) for name in found}


def _list_files(path: epath.Path, name: str) -> Iterator[str]:
  if path.is_dir():
    for child in sorted(path.iterdir()):
      yield from _list_files(child, f"{name}/{child.name}")
  elif path.exists():
    yield name
