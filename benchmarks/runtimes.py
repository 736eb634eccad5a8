"""Runs a file of ONNX in the programs that people deploy on a CPU."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from turns import count_cores

Forward = Callable[[], np.ndarray]  # Returns the logits [B, K].
Runtime = Callable[[Path, np.ndarray, str], Forward]


class NotHereError(Exception):
  """A program, or the processor, does not have a dtype."""


def run_onnxruntime(path: Path, images: np.ndarray, dtype: str) -> Forward:
  """Returns the first output of a file in ONNX Runtime on the CPU.

  Args:
    path: a file with one input.
    images: what it takes, [B, ...].
    dtype: dtype of the computation; a file for "int8" is quantised.
  """
  import onnxruntime

  if dtype == "bfloat16":
    raise NotHereError("ONNX Runtime has no bfloat16 convolution on a CPU")
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = count_cores()
  options.add_free_dimension_override_by_name("batch", len(images))
  providers = ["CPUExecutionProvider"]
  session = onnxruntime.InferenceSession(path, options, providers=providers)
  feed = {session.get_inputs()[0].name: images}
  return lambda: session.run(None, feed)[0]


def run_openvino(path: Path, images: np.ndarray, dtype: str) -> Forward:
  """Returns the same in OpenVINO, in one stream on all cores."""
  import openvino

  core = openvino.Core()
  known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
  if dtype == "bfloat16" and "BF16" not in known:
    raise NotHereError("OpenVINO has no bfloat16 on this processor")
  model = core.read_model(path)
  model.reshape(list(images.shape))
  settings = {
    "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
    "INFERENCE_NUM_THREADS": count_cores(),
    "ENABLE_HYPER_THREADING": True,
    "NUM_STREAMS": 1,
  }
  compiled = core.compile_model(model, "CPU", settings)
  wanted = {"float32": "f32", "bfloat16": "bf16", "int8": "u8"}[dtype]
  if (used := convolutions_of(compiled)) != wanted:
    raise NotHereError(f"OpenVINO computes most of the convolutions in {used}")
  request = compiled.create_infer_request()
  # The function below holds the tensor, because the request does not keep its memory.
  tensor = openvino.Tensor(images, shared_memory=True)
  return lambda: request.infer([tensor], share_outputs=True)[0]


def convolutions_of(compiled) -> str:
  """Returns the dtype in which OpenVINO computes most convolutions."""
  nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
  return Counter(
    str(info["runtimePrecision"].astype(str))
    for info in nodes
    if info["layerType"].astype(str) == "Convolution"
  ).most_common(1)[0][0]
