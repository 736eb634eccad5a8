"""A run directory: its settings and class names. One run at a time uses it.

It contains `config.json`, `run.json`, `classes.txt`, `lock`, and the files of
`checkpoint.py` and `metric_writer.py`. Several processes of one run share the
directory; process 0 writes.
"""

import contextlib
import dataclasses
import secrets
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from resnet_jax.config import serialization
from resnet_jax.config.factories import FACTORIES, check_trust
from resnet_jax.config.schema import Config
from resnet_jax.data import describe_change
from resnet_jax.runs.agreement import check_same_settings
from resnet_jax.runs.bucket_checkpoints import complete_steps
from resnet_jax.runs.facts import RunFacts, describe_parts, read_facts, to_json
from resnet_jax.runs.lock import Check, hold, no_check
from resnet_jax.runs.workdir import check_storage
from resnet_jax.runtime.buckets import BucketPath, is_remote, storage_path
from resnet_jax.runtime.errors import NotFoundError, UserError, naming
from resnet_jax.runtime.mesh import of_first_process
from resnet_jax.runtime.terminal import printable


def read_config(workdir: str | Path) -> Config | None:
  """Returns the settings of the run in `workdir`; None if there is no run.

  The settings may name somebody else's code, see `load_run_config`.

  Raises:
    ValueError: the file is damaged.
  """
  check_storage(workdir)
  path = storage_path(workdir) / "config.json"
  if not path.exists():
    run, step = split_checkpoint(str(workdir))
    if step and (storage_path(run) / "config.json").exists():
      raise UserError(f"{workdir} is a checkpoint of the run {run}; name the run")
    return None
  try:
    return serialization.from_json(path.read_text())
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged: {error}") from error


def load_run_config(
  workdir: str | Path, trust_code: bool = False, used: Collection[str] = FACTORIES
) -> Config:
  """Returns the settings of the run in `workdir`.

  Args:
    workdir: the run directory.
    trust_code: whether to allow code outside this package that the settings name.
    used: settings whose code the caller runs; only these are checked.

  Raises:
    NotFoundError: there is no run.
    UserError: the file is damaged or names code that is not trusted, or a part was
      given as an object, which the file cannot name.
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
  if is_remote(path):
    run, _, step = path.rstrip("/").rpartition("/checkpoints/")
    return (run, step) if run and step.isdecimal() else (path, "")
  resolved = Path(path).resolve()
  if resolved.parent.name == "checkpoints" and resolved.name.isdecimal():
    return str(resolved.parents[1]), resolved.name
  return path, ""


def saved_steps(workdir: str | Path) -> list[int]:
  """Returns the steps saved in `workdir`, in increasing order.

  Raises:
    ValueError: as in `check_storage`.
  """
  check_storage(workdir)
  path = storage_path(workdir) / "checkpoints"
  if isinstance(path, BucketPath):
    return complete_steps(path)
  return sorted(ocp.utils.checkpoint_steps(path)) if path.exists() else []


def latest_step(workdir: str | Path) -> int:
  """Returns the newest step saved in `workdir`; 0 if there is none.

  Raises:
    ValueError: as in `check_storage`.
  """
  return max(saved_steps(workdir), default=0)


@contextlib.contextmanager
def last_checkpoint_in_errors(workdir: str | Path) -> Iterator[None]:
  """Adds the last good checkpoint to the error of a run that diverged."""
  try:
    yield
  except FloatingPointError as error:
    step = latest_step(workdir)
    last = f"the last good checkpoint is of step {step}" if step else "nothing is saved"
    raise FloatingPointError(f"{error}; {last}") from None


def load_class_names(workdir: str | Path) -> tuple[str, ...]:
  """Returns the names of the classes of a run, in order; () if they are not known.

  Raises:
    UserError: the file is damaged.
  """
  path = storage_path(workdir) / "classes.txt"
  if not path.exists():
    return ()
  try:
    return tuple(path.read_text().split("\n")[:-1])
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is damaged: {error}") from error


def check_class_names(class_names: Sequence[str], workdir: str | Path) -> None:
  """Raises `ValueError` if data has other classes than the run in `workdir`."""
  saved = load_class_names(workdir)
  for i, (new, old) in enumerate(zip(class_names, saved, strict=False)):
    if new != old:
      raise UserError(
        f"class {i} of the data is {new!r}, but {old!r} in the run {workdir}; the "
        "data must have the classes of the run"
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
) -> Iterator[Check]:
  """Creates the run directory, or checks that its run can resume with these settings.

  Until the end of the context no other process can open it: see `hold`.

  Args:
    workdir: the run directory; it may be new.
    config: fully resolved settings; they are saved.
    num_steps: length of the run.
    class_names: in the order of the labels; they are saved.
    facts: facts that are not in the settings; they are saved. None is the defaults.

  Yields:
    A function that raises `OSError` if another process has taken the directory.

  Raises:
    ValueError: `workdir` is a file or in use; the run there has other settings or
      classes, or is past `num_steps`; a class name is not one line of text; or the
      processes have different settings or do not share one directory.
  """
  check_storage(workdir)
  path = storage_path(workdir)
  check = no_check
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      for name in class_names:
        if "\n" in name or name != name.encode(errors="replace").decode():
          raise UserError(f"class {name!r} must be one line of UTF-8; rename it")
      # `hold` creates the directory; no check below refuses a new one.
      check = stack.enter_context(hold(workdir, f"--workdir={workdir}"))
      facts = facts or RunFacts()
      _check_resumable(workdir, config, num_steps, class_names, facts)
      is_early = saved_steps(workdir) and not read_facts(workdir).has_digests
      facts = dataclasses.replace(facts, has_digests=not is_early)
      if class_names:
        write_file(path / "classes.txt", "".join(name + "\n" for name in class_names))
      write_file(path / "run.json", to_json(facts))
      write_file(path / "config.json", serialization.to_json(config))
    if jax.process_count() > 1:
      # A new name each time: a network file system may cache the state of an old one.
      sign = path / of_first_process(f".of-process-0-{secrets.token_hex(8)}")
      if jax.process_index() == 0:
        sign.touch()
      check_same_settings(config)  # Returns once process 0 is ready.
      if not sign.exists():
        raise UserError(
          f"--workdir={workdir} is not the directory of process 0; name one on storage "
          "that all processes share"
        )
      multihost_utils.sync_global_devices("all have the same directory")
      if jax.process_index() == 0:
        sign.unlink()
    yield check


def _check_resumable(
  workdir: str | Path,
  config: Config,
  num_steps: int,
  class_names: Sequence[str],
  facts: RunFacts,
) -> None:
  """Raises `UserError` if the run in `workdir` cannot resume with these settings.

  A run without a checkpoint has nothing to resume; it may start again with other
  settings.
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
  _check_same_images(before, facts, workdir)
  if before.teacher_digest != facts.teacher_digest:
    raise UserError(
      f"cannot resume: config.distill.teacher={config.distill.teacher!r} has other "
      "weights than when this run began; put the old ones back or use a new --workdir"
    )
  if before.kernels not in ("", facts.kernels):
    print(
      f"warning: this run was trained with {printable(before.kernels)} kernels and is "
      f"resumed with {facts.kernels} kernels, so the last digits will differ",
      file=sys.stderr,
    )
  if done > num_steps:
    raise UserError(
      f"--workdir={workdir} is at step {done}, past the {num_steps} steps asked for by "
      "config.num_steps or num_epochs; raise them or use a new --workdir"
    )
  check_class_names(class_names, workdir)


def _check_same_images(before: RunFacts, facts: RunFacts, workdir: str | Path) -> None:
  """Raises `UserError` if a run would be resumed with other training images.

  They would shift everything that is counted in epochs, such as the learning rate.
  """
  if change := describe_change(before.images, facts.images):
    raise UserError(
      f"cannot resume: the run {workdir} was trained on {before.num_train_images:,} "
      f"images, and now {change}; put the old ones back, or begin a new run from its "
      f"weights with config.init_from={workdir}"
    )


def write_file(path: epath.Path, text: str) -> None:
  """Writes a new file, then renames it: a kill leaves the old file or the new one."""
  if is_remote(path):  # A bucket does this for each file.
    path.write_text(text)
    return
  new = path.with_name(path.name + ".new")
  with naming(path):
    new.write_text(text)
  new.replace(path)
