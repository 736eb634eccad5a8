"""A run directory: its settings and class names, held by one run at a time.

It holds `config.json`, `run.json`, `classes.txt`, `lock`, and what `checkpoint.py` and
`metric_writer.py` put there. Several processes of one run share it; process 0 writes.
"""

import contextlib
import dataclasses
import errno
import importlib
import secrets
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from resnet_jax.config import serialization
from resnet_jax.config.factories import FACTORIES, check_trust
from resnet_jax.config.fields import flatten
from resnet_jax.config.schema import Config
from resnet_jax.runs.facts import RunFacts, describe_parts, read_facts, to_json
from resnet_jax.runtime.errors import NotFoundError, UserError

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None  # type: ignore[assignment]

# What epath and TensorBoard's files need for gs://; Orbax brings its own.
_FOR_GCS = ("gcsfs", "google.cloud.storage")
# No locks there, as on some network file systems.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


def new_workdir(name: str) -> str:
  """Returns the path of a new run directory, the same in all processes.

  It begins with the time; its end is drawn, so that runs of one second differ.
  """
  now = time.strftime("%Y%m%d-%H%M%S")
  return _of_first_process(f"runs/{name}-{now}-{secrets.token_hex(3)}")


def check_storage(workdir: str | Path) -> None:
  """Raises `ValueError` for storage that Orbax or this installation cannot use."""
  scheme, separator, _ = str(workdir).partition("://")
  if not separator:
    return
  if scheme != "gs":
    raise UserError(
      f"--workdir={workdir} must be a local path or begin with gs://, as Orbax saves "
      "nowhere else; mount other storage"
    )
  for package in _FOR_GCS:
    try:
      importlib.import_module(package)
    except ImportError as error:
      raise UserError(
        f"--workdir={workdir} needs {package}: pip install 'flax-resnet[gcs]'"
      ) from error


def read_config(workdir: str | Path) -> Config | None:
  """Returns the settings of the run in `workdir`; None if there is no run.

  They may name code of somebody else, see `load_run_config`.

  Raises:
    ValueError: the file is damaged.
  """
  check_storage(workdir)
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    run, step = split_checkpoint(str(workdir))
    if step and (epath.Path(run) / "config.json").exists():
      raise UserError(f"{workdir} is a checkpoint of the run {run}; name the run")
    return None
  try:
    return serialization.from_json(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is damaged: {error}") from error


def load_run_config(
  workdir: str | Path, trust_code: bool = False, used: Collection[str] = FACTORIES
) -> Config:
  """Returns the settings of the run in `workdir`.

  Args:
    workdir: the run directory.
    trust_code: whether code outside this package that they name may run.
    used: of the settings that can name code, those whose parts are used.

  Raises:
    NotFoundError: there is no run.
    UserError: the file is damaged, names code that is not trusted, or cannot name a
      part that was given as an object.
  """
  config = read_config(workdir)
  if config is None:
    raise NotFoundError(f"no run in {str(workdir)!r}: it has no config.json")
  if own := tuple(part for part in read_facts(workdir).own_parts if part in used):
    raise UserError(
      f"the run {str(workdir)!r} was trained by Experiment.create(config, "
      f"{describe_parts(own)}); its directory cannot name these objects, so it can "
      "only be used in Python"
    )
  check_trust(config, f"the run {str(workdir)!r}", trust_code, used=used)
  return config


def split_checkpoint(path: str) -> tuple[str, str]:
  """Splits RUN/checkpoints/STEP into (RUN, STEP), and RUN into (RUN, "")."""
  resolved = Path(path).resolve()
  if resolved.parent.name == "checkpoints" and resolved.name.isdecimal():
    return str(resolved.parents[1]), resolved.name
  return path, ""


def saved_steps(workdir: str | Path) -> list[int]:
  """Returns the steps saved in `workdir`, from the first.

  Raises:
    ValueError: as `check_storage`.
  """
  check_storage(workdir)
  path = epath.Path(workdir) / "checkpoints"
  return sorted(ocp.utils.checkpoint_steps(path)) if path.exists() else []


def latest_step(workdir: str | Path) -> int:
  """Returns the newest step saved in `workdir`; 0 if there is none.

  Raises:
    ValueError: as `check_storage`.
  """
  return max(saved_steps(workdir), default=0)


def load_class_names(workdir: str | Path) -> tuple[str, ...]:
  """Returns the names of the classes of a run, in order; () if they are not known."""
  path = epath.Path(workdir) / "classes.txt"
  return tuple(path.read_text().split("\n")[:-1]) if path.exists() else ()


def check_class_names(class_names: Sequence[str], workdir: str | Path) -> None:
  """Raises `ValueError` if data has other classes than the run in `workdir`."""
  saved = load_class_names(workdir)
  for i, (new, old) in enumerate(zip(class_names, saved, strict=False)):
    if new != old:
      raise UserError(
        f"class {i} of the data is {new!r}, but {old!r} in the run {workdir}; it must "
        "have the run's classes"
      )
  if saved and len(saved) != len(class_names):
    raise UserError(
      f"the data has {len(class_names)} classes, the run {workdir} {len(saved)}"
    )


@contextlib.contextmanager
def open_run(
  workdir: str | Path,
  config: Config,
  num_steps: int,
  class_names: Sequence[str] = (),
  facts: RunFacts | None = None,
) -> Iterator[None]:
  """Makes the run directory, or checks that its run may go on with these settings.

  Until the end of the context no other process can open it: see `hold`.

  Args:
    workdir: a directory that holds a run, or none.
    config: fully resolved; it is saved.
    num_steps: length of the run.
    class_names: in the order of the labels; saved too.
    facts: what the settings do not tell; saved too. None is what is true by default.

  Raises:
    ValueError: `workdir` is a file or in use, the run there has other settings or
      classes or is further than `num_steps`, a class name is no line of text, or
      the processes have other settings or do not see one directory.
  """
  check_storage(workdir)
  path = epath.Path(workdir)
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      for name in class_names:
        if "\n" in name or name != name.encode(errors="replace").decode():
          raise UserError(f"class {name!r} must be one line of UTF-8; rename it")
      # It makes the directory; nothing below refuses one that was not there.
      stack.enter_context(hold(workdir, f"--workdir={workdir}"))
      facts = facts or RunFacts()
      _check_resumable(workdir, config, num_steps, class_names, facts)
      if class_names:
        _write(path / "classes.txt", "".join(name + "\n" for name in class_names))
      _write(path / "run.json", to_json(facts))
      _write(path / "config.json", serialization.to_json(config))
    if jax.process_count() > 1:
      check_same_settings(config)  # Comes back once process 0 is ready.
      if not (path / "config.json").exists():
        raise UserError(
          f"--workdir={workdir} is not the directory of process 0; name one on storage "
          "that all processes share"
        )
    yield


@contextlib.contextmanager
def hold(directory: str | Path, name: str, patience_s: float = 0.0) -> Iterator[None]:
  """Keeps other processes from a directory until the end of the context.

  The lock is the operating system's, and goes with the process however that ends;
  there is none on remote storage, on file systems without locks, and on Windows.

  Args:
    directory: made if it is not there.
    name: what the user calls it, for the message.
    patience_s: how long to wait for another process that has it.

  Raises:
    ValueError: another process has it, or it is a file.
  """
  path = epath.Path(directory)
  if path.exists() and not path.is_dir():
    raise UserError(f"{name} is a file; name a directory")
  path.mkdir(parents=True, exist_ok=True)
  if fcntl is None or "://" in str(directory):
    yield
    return
  with Path(directory, "lock").open("a+") as file:
    end = time.monotonic() + patience_s
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if time.monotonic() < end:
          time.sleep(0.5)
          continue
        raise UserError(
          f"{name} is in use by another process that trains there; wait for its end or "
          "name another directory"
        ) from None
      except OSError as error:
        if error.errno not in _NO_LOCKS:
          raise
      break
    yield


def check_same_settings(config: Config) -> None:
  """Compares the settings of all processes; each waits for the others.

  Where the images are and how they are read may differ from host to host.

  Raises:
    UserError: this process has other settings than process 0. The others go on waiting.
  """
  data = dataclasses.replace(config.data, dir="", num_threads=0, num_workers=0)
  text = serialization.to_json(dataclasses.replace(config, data=data))
  own, first = (
    flatten(serialization.from_json(text)) for text in (text, _of_first_process(text))
  )
  for path, value in own.items():
    if value != first[path]:
      raise UserError(
        f"process {jax.process_index()} has config.{path}={value!r} and process 0 has "
        f"{first[path]!r}; start all with the same flags and configs"
      )
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("all have the same settings")


def _of_first_process(text: str) -> str:
  """Returns the text of process 0, in all processes."""
  data = np.frombuffer(text.encode(), np.uint8)
  size = multihost_utils.broadcast_one_to_all(np.array(len(data)))
  return bytes(multihost_utils.broadcast_one_to_all(np.resize(data, size))).decode()


def _check_resumable(
  workdir: str | Path,
  config: Config,
  num_steps: int,
  class_names: Sequence[str],
  facts: RunFacts,
) -> None:
  """Raises `UserError` if what is in `workdir` cannot go on as asked.

  A first try that ended before its first checkpoint leaves nothing to go on from, and
  may be followed by one with other settings.
  """
  old, steps = read_config(workdir), saved_steps(workdir)
  if not steps:
    return
  done = max(steps)
  if old is None:
    raise UserError(
      f"--workdir={workdir} has checkpoints but no config.json to check them by; put "
      "it back or use a new --workdir"
    )
  serialization.check_resumable(old, config)
  before = read_facts(workdir)
  if before.own_parts != facts.own_parts:
    own = before.own_parts or facts.own_parts
    which = "this run was" if before.own_parts else "this run was not"
    raise UserError(
      f"cannot resume: {which} trained by Experiment.create(config, "
      f"{describe_parts(own)}); give the same parts or use a new --workdir"
    )
  if before.kernels not in ("", facts.kernels):
    print(
      f"warning: this run was trained with {before.kernels} kernels and is resumed "
      f"with {facts.kernels} kernels, so the last digits will differ",
      file=sys.stderr,
    )
  if done > num_steps:
    raise UserError(
      f"--workdir={workdir} is at step {done}, past the {num_steps} steps asked for by "
      "config.num_steps or num_epochs; raise them or use a new --workdir"
    )
  check_class_names(class_names, workdir)


def _write(path: epath.Path, text: str) -> None:
  """Writes apart and then renames, so that a kill leaves the old file whole."""
  new = path.with_name(path.name + ".new")
  new.write_text(text)
  new.replace(path)
