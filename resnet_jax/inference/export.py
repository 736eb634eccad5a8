"""A trained network as one file that runs without this package: StableHLO or ONNX.

Either takes `images` [batch, H, W, C] uint8 of any batch size, resizes, crops and
normalises them as evaluation does, but for rounding, and gives `probabilities`
[batch, K] float32. Without a size of images it leaves resizing and cropping to whoever
calls it; an ONNX file says in its metadata how.

Letters: B batch, H height, W width, C channels, K classes.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnet_jax.config.allowed import check_choice
from resnet_jax.inference.classifier import Classifier, check_finite
from resnet_jax.models.resnet import ResNet
from resnet_jax.runtime.arrays import Array, Float32, Num
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError

PLATFORMS = "cpu", "cuda", "tpu"
OPSET = 17
_GROUP_NORM_OPSET = 21  # The first whose group norm has a scale for each channel.
# Largest difference to this package's own probabilities, at these batch sizes.
TOLERANCE = 1e-4
_BATCHES = 1, 3, 16

Run = Callable[[np.ndarray], np.ndarray]
Function = Callable[[Array], Array]  # From images to probabilities.
Metadata = dict[str, str | int]  # How images must be resized and cropped.


def export(
  classifier: Classifier,
  path: str,
  form: str,
  image_size: tuple[int, int] | None = None,
) -> float:
  """Writes a network, reads it again and compares what it says of random images.

  All is computed in float32, and compared on the CPU.

  Args:
    classifier: the network.
    path: of the file; replaced if it is there, once all is well.
    form: "stablehlo", what `jax.export.deserialize` reads, for CPU, CUDA and TPU; or
      "onnx".
    image_size: (H, W) of the images that it will be given; None is the crop, which
      they then are.

  Returns:
    The largest difference of a probability.

  Raises:
    UserError: an unknown form, images smaller than the crop, or a package that is
      missing.
    FloatingPointError: the network's own outputs are not finite.
    RuntimeError: the network comes back different.
  """
  check_choice("format", form, ["stablehlo", "onnx"])
  crop = classifier.preprocessing.crop
  shape = *(image_size or (crop, crop)), classifier.channels
  if min(shape[:2]) < crop and not classifier.preprocessing.resize:
    raise UserError(f"images of {shape[:2]} are smaller than the crop, {crop}")
  # Where float32 is float32: accelerators multiply with fewer bits.
  cpu = jax.local_devices(backend="cpu")[0]
  variables = jax.device_put(classifier.variables, cpu)
  function = _create_function(
    dataclasses.replace(classifier, variables=variables), image_size
  )
  metadata: Metadata = {}
  if image_size is None:
    size = dataclasses.asdict(classifier.preprocessing)
    metadata = {name: size[name] for name in ("resize", "crop", "interpolation")}
  with replacing(path) as part, jax.default_device(cpu):
    content, run = _WRITERS[form](function, shape, metadata)
    difference = max(_difference(function, run, batch, shape) for batch in _BATCHES)
    if not difference <= TOLERANCE:
      raise RuntimeError(  # A bug, here or in the exporter.
        f"the exported network differs by {difference:.1g} in a probability, more than "
        f"{TOLERANCE}; nothing is written"
      )
    Path(part).write_bytes(content)
  return difference


def _create_function(
  classifier: Classifier, image_size: tuple[int, int] | None
) -> Function:
  model = classifier.model
  if isinstance(model, ResNet):
    model = model.clone(dtype=jnp.float32, scan=False, remat=False)
  classifier = dataclasses.replace(classifier, model=model).folded
  matrices = None
  if image_size is not None:
    matrices = [_resizing(n, min(image_size), classifier) for n in image_size]

  def function(images: Num[Array, "b h w c"]) -> Float32[Array, "b k"]:
    if matrices is not None:
      images = _resize(images, *matrices)
    return classifier.apply(classifier.variables, images)["probabilities"]

  return function


def _resize(
  images: Num[Array, "b h w c"], rows: Array, columns: Array
) -> Float32[Array, "b _ _ c"]:
  """Mixes rows and columns; not rounded, as ties would fall this way or that."""
  images = images.astype(jnp.float32)
  mixed = jnp.einsum("yh,bhwc,xw->byxc", rows, images, columns)
  return lax.max(lax.min(mixed, 255.0), 0.0)  # In jax2onnx `lax.clamp` fails.


def _resizing(
  old: int, short: int, classifier: Classifier
) -> Float32[Array, "_ {old}"]:
  """How `resize_and_crop` makes the lines that it keeps.

  By a matrix, made here, as jax2onnx resizes no batch of unknown size.
  """
  size = classifier.preprocessing
  new = old * (size.resize or short) // short
  method = {"bilinear": "linear", "bicubic": "cubic"}[size.interpolation]
  first = round((new - size.crop) / 2)
  matrix: Array = jax.image.resize(jnp.eye(old), (new, old), method)
  return matrix[first : first + size.crop]


def _difference(
  function: Function, run: Run, batch: int, shape: tuple[int, ...]
) -> float:
  generator = np.random.default_rng(batch)
  images = generator.integers(0, 256, (batch, *shape), np.uint8)
  expected = np.asarray(jax.jit(function)(images))
  check_finite(expected, "random images")
  return float(np.abs(run(images) - expected).max())


def _to_stablehlo(
  function: Function, shape: tuple[int, ...], metadata: Metadata
) -> tuple[bytes, Run]:
  del metadata  # It has no place for them.
  batch = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((*batch, *shape), jnp.uint8)
  exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(images)
  content = bytes(exported.serialize())
  again = jax.export.deserialize(bytearray(content))
  return content, lambda images: np.asarray(again.call(images))


def _to_onnx(
  function: Function, shape: tuple[int, ...], metadata: Metadata
) -> tuple[bytes, Run]:
  try:
    import jax2onnx
    import onnxruntime
  except ModuleNotFoundError as error:
    raise UserError(
      f"--format onnx needs {error.name}: pip install 'flax-resnet[onnx]'"
    ) from error

  def convert(opset: int) -> Any:
    return jax2onnx.to_onnx(
      function,
      [jax.ShapeDtypeStruct(("batch", *shape), jnp.uint8)],
      model_name="resnet_jax",
      opset=opset,
      input_names=["images"],
      output_names=["probabilities"],
    )

  with _without_warnings("jax2onnx.plugins.plugin_system", "onnx_ir.serde"):
    try:
      model = convert(OPSET)
      if any(node.op_type == "GroupNormalization" for node in model.graph.node):
        model = convert(_GROUP_NORM_OPSET)
    except NotImplementedError as error:
      raise UserError(
        f"jax2onnx lacks an operation; use --format stablehlo ({error})"
      ) from error
  for key, value in metadata.items():
    model.metadata_props.add(key=key, value=str(value))
  content = model.SerializeToString()
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  try:
    session = onnxruntime.InferenceSession(
      content, options, providers=["CPUExecutionProvider"]
    )
  except Exception as error:  # ONNX Runtime raises all kinds.
    reason = str(error).splitlines()[0]
    raise UserError(
      f"ONNX Runtime refuses the exported network; use --format stablehlo ({reason})"
    ) from error
  return content, lambda images: session.run(None, {"images": images})[0]


@contextlib.contextmanager
def _without_warnings(*names: str) -> Iterator[None]:
  """Has loggers show errors only.

  jax2onnx warns, with a traceback, of each of its plugins for what the installed JAX no
  longer has, and onnx_ir of each array whose type it leaves out of the file. Neither
  matters: the file is compared with the network.
  """
  levels = {logger: logger.level for logger in map(logging.getLogger, names)}
  for logger in levels:
    logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    for logger, level in levels.items():
      logger.setLevel(level)


_WRITERS = {"stablehlo": _to_stablehlo, "onnx": _to_onnx}
