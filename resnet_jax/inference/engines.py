"""Runs the forward pass of a network in another engine: ONNX Runtime or OpenVINO.

The engine gets the graph that `onnx/build.py` writes, in memory. It computes on all
cores that this process may use. Its outputs for the first batch of each shape are
compared with JAX's.

Letters: B batch, H height, W width, C channels.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_jax import kernels
from resnet_jax.config.allowed import check_choice
from resnet_jax.data.pipelines.host_batches import count_threads
from resnet_jax.inference.onnx.openvino_file import import_openvino
from resnet_jax.inference.portable import ExportedFunction, portable
from resnet_jax.models.folding import folded_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn_once

# Largest allowed difference to JAX's outputs, relative to the largest value of the
# output, by the dtype of the network.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}

Outputs = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Outputs]  # Takes images [B, H, W, C].
# (network, its variables, images) -> outputs by name; JAX traces it.
Forward = Callable[[nn.Module, Variables, Array], dict[str, Array]]
# A file of ONNX, the shape of the images, and the dtype of the network -> a function
# of images that returns the outputs in the order of the file.
_Start = Callable[[bytes, tuple[int, ...], str], Callable[[np.ndarray], list[Any]]]


class _Engine(NamedTuple):
  """Another engine: its name, the extra that installs it, and how it is imported."""

  title: str
  extra: str
  load: Callable[[], Any]
  start: _Start


def _start_onnxruntime(
  content: bytes, shape: tuple[int, ...], dtype: str
) -> Callable[[np.ndarray], list[Any]]:
  import onnxruntime

  if dtype != "float32":
    _warn_of_float32("onnxruntime", dtype)
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = count_threads()
  options.add_free_dimension_override_by_name("batch", shape[0])
  options.log_severity_level = 3  # Warnings are about its own optimisations.
  providers = ["CPUExecutionProvider"]
  session = onnxruntime.InferenceSession(content, options, providers=providers)

  def run(images: np.ndarray) -> list[Any]:
    return list(session.run(None, {"images": images}))

  return run


def _start_openvino(
  content: bytes, shape: tuple[int, ...], dtype: str
) -> Callable[[np.ndarray], list[Any]]:
  core = import_openvino().Core()
  model = core.read_model(content)
  model.reshape(list(shape))
  hint = {"float32": "f32", "bfloat16": "bf16"}[dtype]
  settings = {
    "INFERENCE_PRECISION_HINT": hint,
    "INFERENCE_NUM_THREADS": count_threads(),
    "ENABLE_HYPER_THREADING": True,
    "NUM_STREAMS": 1,
  }
  compiled = core.compile_model(model, "CPU", settings)
  # On a processor without bfloat16, OpenVINO takes float32 without a word.
  used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
  if used != hint:
    assert used == "f32", used
    _warn_of_float32("openvino", dtype)

  def run(images: np.ndarray) -> list[Any]:
    found = compiled([images])
    return [found[place] for place in range(len(compiled.outputs))]

  return run


ENGINES = {
  "onnxruntime": _Engine(
    "ONNX Runtime",
    "onnx",
    functools.partial(importlib.import_module, "onnxruntime"),
    _start_onnxruntime,
  ),
  "openvino": _Engine("OpenVINO", "openvino", import_openvino, _start_openvino),
}
NAMES = ("jax", *ENGINES)


def _warn_of_float32(name: str, dtype: str) -> None:
  title = ENGINES[name].title
  warn_once(
    f"{title} has no {dtype} on this processor, and computes the network in float32"
  )


def check_engine(name: str) -> None:
  """Raises `UserError` unless an engine exists and its libraries are installed.

  Args:
    name: one of `NAMES`.
  """
  check_choice("engine", name, NAMES)
  if name == "jax":
    return
  if jax.process_count() > 1:
    raise UserError(
      f"the engine {name} works in one process, not in {jax.process_count()}; use the "
      "engine jax"
    )
  try:
    importlib.import_module("onnx")
    ENGINES[name].load()
  except ModuleNotFoundError as error:
    raise UserError(
      f"the engine {name} needs {error.name}: pip install "
      f"'flax-resnet[{ENGINES[name].extra}]'"
    ) from error


def create_run(
  name: str,
  model: nn.Module,
  variables: Variables,
  forward: Forward,
  *,
  dtype: Any = jnp.float32,
  unit: float = 0.0,
) -> Run:
  """Returns a function of images that runs a network in another engine.

  For each new shape of the images, it writes the graph, starts the engine and compares
  the outputs with JAX's.

  Args:
    name: "onnxruntime" or "openvino".
    model: the network.
    variables: {"params": ..., "batch_stats": ...} in the named layout.
    forward: calls the network and returns the wanted outputs.
    dtype: in which the network computes, float32 or bfloat16.
    unit: a difference is relative to the largest value of an output, or to this if it
      is larger.

  Returns:
    Images [B, H, W, C] uint8 or uint16 -> outputs by name.

  Raises:
    UserError: see `check_engine`. The returned function raises it if the engine lacks
      an operation of the network, or if its outputs differ from JAX's.
  """
  check_engine(name)
  dtype = jnp.dtype(dtype).name
  if dtype not in TOLERANCES or not (dtype == "float32" or isinstance(model, ResNet)):
    raise UserError(
      f"the engine {name} cannot run a {type(model).__name__} in {dtype}; use the "
      "engine jax"
    )
  network, folded = portable(model, variables)
  in_jax = compilation.jit(
    kernels.traced_with("xla", functools.partial(forward, folded_model(model))),
    "cpu",
    dtype=dtype,
  )

  @functools.lru_cache(maxsize=2)
  def start(shape: tuple[int, ...], kind: Any) -> Run:
    images = jax.ShapeDtypeStruct(shape, kind)
    of_network = functools.partial(forward, network)
    names = sorted(jax.eval_shape(of_network, folded, images))
    content = _write(of_network, folded, images, names)
    run = ENGINES[name].start(content, shape, dtype)
    return lambda images: dict(zip(names, run(images), strict=True))

  compared = set()

  def run(images: np.ndarray) -> Outputs:
    images = np.ascontiguousarray(images)
    key = images.shape, images.dtype
    found = start(*key)(images)
    if key not in compared:
      with jax.default_device(jax.local_devices(backend="cpu")[0]):
        _compare(name, found, jax.device_get(in_jax(folded, images)), dtype, unit)
      compared.add(key)
    return found

  return run


def _write(
  function: Callable[[Variables, Array], dict[str, Array]],
  variables: Variables,
  images: jax.ShapeDtypeStruct,
  names: list[str],
) -> bytes:
  """Returns a network as a file of ONNX, whose outputs have these names."""
  from resnet_jax.inference.onnx.build import build

  image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
  metadata = {"architecture": "network"}
  exported = ExportedFunction(function, variables, image, tuple(names), metadata)
  content: bytes = build(exported).SerializeToString()
  return content


def _compare(
  name: str, found: Outputs, expected: Outputs, dtype: str, unit: float
) -> None:
  limit = TOLERANCES[dtype]
  for output, wanted in expected.items():
    wanted = wanted.astype(np.float32)
    if not np.isfinite(wanted).all():
      raise FloatingPointError(
        "the network's outputs are not finite; check its weights, and the mean and "
        "std of the images"
      )
    scale = max(float(np.abs(wanted).max()), unit)
    difference = float(np.abs(found[output] - wanted).max())
    if not difference <= limit * scale:
      raise UserError(
        f"the engine {name} is wrong for this network: its {output} differ from JAX's "
        f"by {difference / scale if scale else difference:.1g} of the largest value, "
        f"more than {limit}; use the engine jax"
      )
