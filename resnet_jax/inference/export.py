"""Exports a trained network to a file that runs without this package.

The formats are StableHLO and ONNX. The exported network takes `images` [batch, H, W, C]
uint8 of any batch size (uint16 if `Preprocessing.max_value` is set), and returns
`probabilities` [batch, K] float32, or `values` if the network predicts numbers. It
resizes, crops and normalises like the evaluation,
except for rounding. If no image size is given at export, the caller must resize and
crop; the metadata of an ONNX file say how. They also have the names of the classes, and
`max_value`, which 65535 stands for in the images.

Letters: B batch, H height, W width, C channels, K classes.
"""

import contextlib
import dataclasses
import json
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
from resnet_jax.data.batches.preprocess import to_grey_levels
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.inference.classifier import Classifier, check_finite
from resnet_jax.models.resnet import ResNet
from resnet_jax.runtime.arrays import Array, Float32, Num
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError

PLATFORMS = "cpu", "cuda", "tpu"
OPSET = 17
# Group norm with a scale per channel, and sums over axes that are inputs.
_NEWER, _NEWER_OPSET = {"GroupNormalization", "ReduceSumSquare"}, 21
# Largest allowed difference to this package's answers, at these batch sizes. Answers
# above 1, which are numbers, are compared relative to the largest one.
TOLERANCE = 1e-4
_BATCHES = 1, 3, 16

Run = Callable[[np.ndarray], np.ndarray]
Function = Callable[[Array], Array]  # Images -> probabilities or values.
# The class names as JSON, and how images must be resized and cropped.
Metadata = dict[str, str | int]


def export(
  classifier: Classifier,
  path: str,
  form: str,
  image_size: tuple[int, int] | None = None,
) -> float:
  """Exports a network, reads the file again, and compares outputs on random images.

  The exported network computes in float32. The comparison runs on the CPU.

  Args:
    classifier: the network.
    path: the file; an existing one is replaced if the comparison succeeds.
    form: "stablehlo", for `jax.export.deserialize` on CPU, CUDA and TPU; or "onnx".
    image_size: (H, W) of the exported network's input images; None means images that
      are already cropped.

  Returns:
    The largest difference between two answers, see `TOLERANCE`.

  Raises:
    UserError: the form is unknown, the images are smaller than the crop, or a package
      is missing.
    FloatingPointError: the outputs of the original network are not finite.
    RuntimeError: the outputs of the exported network differ.
  """
  check_choice("format", form, ["stablehlo", "onnx"])
  crop = classifier.preprocessing.crop
  shape = *(image_size or (crop, crop)), classifier.channels
  if min(shape[:2]) < crop and not classifier.preprocessing.resize:
    raise UserError(f"images of {shape[:2]} are smaller than the crop, {crop}")
  # The CPU computes in full float32; accelerators multiply with fewer bits.
  cpu = jax.local_devices(backend="cpu")[0]
  variables = jax.device_put(classifier.variables, cpu)
  function = _create_function(
    dataclasses.replace(classifier, variables=variables), image_size
  )
  metadata: Metadata = {"class_names": json.dumps(list(classifier.class_names))}
  if image_size is None:
    size = dataclasses.asdict(classifier.preprocessing)
    metadata |= {name: size[name] for name in ("resize", "crop", "interpolation")}
  if top := classifier.preprocessing.max_value:
    metadata["max_value"] = top
  with replacing(path) as part, jax.default_device(cpu):
    image = jax.ShapeDtypeStruct(shape, _dtype(classifier))
    content, run = _WRITERS[form](function, image, metadata, classifier.answer)
    difference = max(_difference(function, run, batch, image) for batch in _BATCHES)
    if not difference <= TOLERANCE:
      raise RuntimeError(  # A bug, here or in the exporter.
        f"the exported network differs by {difference:.1g} in an answer, more than "
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
    return classifier.apply(classifier.variables, images)[classifier.answer]

  return function


def _dtype(classifier: Classifier) -> np.dtype[Any]:
  """Returns the dtype of the images that the exported network takes."""
  return PixelFormat(max_value=classifier.preprocessing.max_value).dtype


def _resize(
  images: Num[Array, "b h w c"], rows: Array, columns: Array
) -> Float32[Array, "b _ _ c"]:
  """Resizes by matrix products.

  It does not round the values: two programs could round a tie differently.
  """
  images = to_grey_levels(images).astype(jnp.float32)
  mixed = jnp.einsum("yh,bhwc,xw->byxc", rows, images, columns)
  return lax.max(lax.min(mixed, 255.0), 0.0)  # jax2onnx fails on `lax.clamp`.


def _resizing(
  old: int, short: int, classifier: Classifier
) -> Float32[Array, "_ {old}"]:
  """Returns the matrix that resizes and crops one axis, as `resize_and_crop` does.

  The matrix is needed because jax2onnx cannot resize a batch of unknown size.
  """
  size = classifier.preprocessing
  new = old * (size.resize or short) // short
  method = {"bilinear": "linear", "bicubic": "cubic"}[size.interpolation]
  first = round((new - size.crop) / 2)
  matrix: Array = jax.image.resize(jnp.eye(old), (new, old), method)
  return matrix[first : first + size.crop]


def _difference(
  function: Function, run: Run, batch: int, image: jax.ShapeDtypeStruct
) -> float:
  generator = np.random.default_rng(batch)
  top, shape = np.iinfo(image.dtype).max, (batch, *image.shape)
  images = generator.integers(0, top, shape, image.dtype, endpoint=True)
  expected = np.asarray(jax.jit(function)(images))
  check_finite(expected, "random images")
  scale = max(1.0, float(np.abs(expected).max()))
  return float(np.abs(run(images) - expected).max()) / scale


def _to_stablehlo(
  function: Function, image: jax.ShapeDtypeStruct, metadata: Metadata, answer: str
) -> tuple[bytes, Run]:
  del metadata, answer  # StableHLO has neither metadata nor names.
  batch = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((*batch, *image.shape), image.dtype)
  exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(images)
  content = bytes(exported.serialize())
  again = jax.export.deserialize(bytearray(content))
  return content, lambda images: np.asarray(again.call(images))


def _to_onnx(
  function: Function, image: jax.ShapeDtypeStruct, metadata: Metadata, answer: str
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
      [jax.ShapeDtypeStruct(("batch", *image.shape), image.dtype)],
      model_name="resnet_jax",
      opset=opset,
      input_names=["images"],
      output_names=[answer],
    )

  with _without_warnings("jax2onnx.plugins.plugin_system", "onnx_ir.serde"):
    try:
      model = convert(OPSET)
      if any(node.op_type in _NEWER for node in model.graph.node):
        model = convert(_NEWER_OPSET)
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
  except Exception as error:  # ONNX Runtime raises errors of many types.
    reason = str(error).splitlines()[0]
    raise UserError(
      f"ONNX Runtime refuses the exported network; use --format stablehlo ({reason})"
    ) from error
  return content, lambda images: session.run(None, {"images": images})[0]


@contextlib.contextmanager
def _without_warnings(*names: str) -> Iterator[None]:
  """Makes loggers show errors only.

  Some plugins of jax2onnx are for functions that the installed JAX no longer has.
  jax2onnx shows a warning and a traceback for each of them. onnx_ir warns about each
  array whose type it does not write to the file. Neither warning matters, because the
  file is compared with the network.
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
