"""Trains one run on request of another process.

`jobs.py` starts it as `python -m resnet_jax.experiments.worker`. The first line of
standard input is the request, a JSON object with `config`, `workdir`, and `measure`,
which is one of `layer_responses.MEASUREMENTS` or "". When standard input ends, the
requesting process is gone; the run then saves and ends as after SIGTERM.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from resnet_jax.config import serialization
from resnet_jax.experiments.jobs import PATIENCE_S, read_result
from resnet_jax.runs.lock import hold
from resnet_jax.runs.run_dir import load_run_config
from resnet_jax.runtime import compilation, errors
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.terminal import escape_unknown_letters


def main() -> None:
  """Runs the request. Exit status: see `runtime/errors.py`, or 3 if it was stopped."""
  escape_unknown_letters()
  compilation.keep_freed_memory()
  with errors.clean_errors():
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch, daemon=True).start()
    run(request)


def _watch() -> None:
  sys.stdin.read()
  os.kill(os.getpid(), signal.SIGTERM)


def run(request: dict[str, Any]) -> None:
  """Trains, measures, and writes `result.json`.

  If the loss is no longer finite, the run ends, and its result has the reason in
  `diverged`.

  Args:
    request: see the module docstring.
  """
  from resnet_jax.analysis import layer_responses
  from resnet_jax.runtime.signals import Stopped
  from resnet_jax.training.experiment import Experiment
  from resnet_jax.training.trainer import train

  config = serialization.from_json(json.dumps(request["config"]))
  workdir = Path(request.pop("workdir"))
  # An earlier worker, whose parent was killed, may still be saving there.
  with hold(str(workdir), str(workdir), PATIENCE_S):
    known = read_result(workdir, request["config"])
  # Runs that differ only in their seed reuse the compiled programs.
  compilation.keep_compiled()
  start = time.monotonic()
  result: dict[str, Any] = known | {"request": request}
  console = Console(file=sys.stdout, force_terminal=False)
  try:
    state, results = train(Experiment.create(config), str(workdir), console=console)
  except FloatingPointError as error:
    classes = load_run_config(str(workdir), trust_code=True).model.num_classes
    result |= {"diverged": str(error), "num_classes": classes}
  except Stopped:
    sys.exit(3)
  else:
    result |= results | {
      "steps": int(state.step),
      "params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }
    if request["measure"]:
      measure = layer_responses.MEASUREMENTS[request["measure"]]
      result[request["measure"]] = measure(str(workdir), True)
  seconds = known.get("seconds", 0) + time.monotonic() - start
  result["seconds"] = round(seconds, 1)
  device = jax.devices()[0]
  result["device"] = f"{jax.device_count()} {device.device_kind}"
  with replacing(str(workdir / "result.json")) as part:
    Path(part).write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
  main()
