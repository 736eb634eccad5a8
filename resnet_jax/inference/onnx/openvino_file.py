"""Writes an ONNX model as OpenVINO's two files."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def import_openvino() -> Any:
  """Returns the package OpenVINO, without its telemetry.

  The telemetry forks the process at the import, which can block a process that uses
  JAX, and sends data about the use.

  Raises:
    ModuleNotFoundError: it is not installed.
  """
  name = "openvino_telemetry"
  before = {name: sys.modules[name]} if name in sys.modules else {}
  # An import of None fails. OpenVINO then goes on without telemetry.
  sys.modules[name] = None  # type: ignore[assignment]
  try:
    import openvino
  finally:
    del sys.modules[name]
    sys.modules.update(before)
  return openvino


def write(
  model: Any, path: Path, metadata: Mapping[str, str]
) -> Callable[[np.ndarray], np.ndarray]:
  """Writes the graph to `path`, and its constants to a file that ends in .bin.

  Args:
    model: an `onnx.ModelProto`.
    path: ends in .xml.
    metadata: stored in the graph's file, as `rt_info` under "flax_resnet".

  Returns:
    A function that runs the files on the CPU, in float32: images -> answers.
  """
  import onnx

  openvino = import_openvino()
  given = path.with_suffix(".onnx")
  onnx.save(model, given)
  net = openvino.Core().read_model(given)
  for key, value in metadata.items():
    net.set_rt_info(value, ["flax_resnet", key])
  openvino.serialize(net, path, path.with_suffix(".bin"))
  given.unlink()
  # Otherwise OpenVINO computes in bfloat16 on processors that have it.
  hint = {"INFERENCE_PRECISION_HINT": "f32"}
  compiled = openvino.Core().compile_model(path, "CPU", hint)

  def run(images: np.ndarray) -> np.ndarray:
    answers: np.ndarray = compiled([images])[0]
    return answers

  return run
