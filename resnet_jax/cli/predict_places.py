"""What `resnet-jax predict` does with a network that finds places: masks or boxes.

The class of such a network has `predict(files, batch_size=, images=)`. It yields
objects with `file`, `error`, `lines(names)`, `as_json(names)` and `pictures(names)`.
"""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_jax.cli.photos import Meter
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.data.sources.file_list import FileList

BATCH_SIZE = 8


def predict_places(args: argparse.Namespace, network: Any, files: "FileList") -> None:
  """Prints what a network finds in each image, and writes it into --out.

  Raises:
    UserError: --out is a file, or two images would have the same file in it.
  """
  names, out = network.class_names, args.out
  stems = _check_out(out, files) if out is not None else []
  size = args.batch_size or BATCH_SIZE
  meter = Meter(len(files), size)
  # Set when the reader of the output, such as `| head`, has ended.
  closed: BrokenPipeError | None = None
  with meter.progress:
    every = network.predict(files, batch_size=size, images=out is not None)
    for place, found in enumerate(every):
      if not found.error and out is not None:
        _write(Path(out), f"{stems[place]}.png", found.pictures(names))
      errors = [f"{found.file}: {found.error}"] if found.error else []
      meter.advance(not errors, errors)
      try:
        if closed is None and args.json:
          answer = {"error": found.error} if errors else found.as_json(names)
          print(json.dumps({"file": found.file, **answer}))
        elif closed is None and not errors:
          show(f"{found.file}: {'; '.join(found.lines(names)) or 'nothing'}")
      except BrokenPipeError as error:
        closed = error
      if closed and out is None:
        break
  if closed:
    raise closed
  meter.finish()


def _check_out(out: str, files: "FileList") -> list[str]:
  """Returns the name of each image without its suffix."""
  if os.path.exists(out) and not os.path.isdir(out):
    raise UserError(f"--out {out!r} must be a folder, and is a file")
  first: dict[str, str] = {}
  for index in range(len(files)):
    name = files.name(index)
    other = first.setdefault(Path(name).stem, name)
    if other != name:
      raise UserError(
        f"{other!r} and {name!r} would be written into the same file of --out {out!r}; "
        "give them other names, or predict them into different folders"
      )
  return [Path(files.name(index)).stem for index in range(len(files))]


def _write(out: Path, name: str, pictures: dict[str, bytes]) -> None:
  from resnet_jax.runtime.atomic_files import replacing

  for folder, content in pictures.items():
    (out / folder).mkdir(parents=True, exist_ok=True)
    with replacing(str(out / folder / name)) as part:
      Path(part).write_bytes(content)
