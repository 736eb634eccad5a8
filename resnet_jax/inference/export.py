"""Exports a trained network to files that run without this package.

The formats are StableHLO, ONNX and OpenVINO. The exported network takes `images`
[batch, H, W, C] of any batch size, and returns `probabilities` [batch, K] float32, or
[batch, H, W, K] for a segmenter, or `values` if the network predicts numbers. See
`exported_function.py` for the details.

Letters: B batch, H height, W width, C channels, K classes.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.export
import numpy as np

from resnet_jax import __version__
from resnet_jax.config.allowed import check_choice
from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.inference.classifier import Classifier, check_finite
from resnet_jax.inference.exported_function import exported_function
from resnet_jax.inference.portable import ExportedFunction
from resnet_jax.inference.run_images import RunImages
from resnet_jax.runtime.errors import UserError

FORMATS = "stablehlo", "onnx", "openvino"
PLATFORMS = "cpu", "cuda", "tpu"
# Largest allowed difference to this package's answers, at these batch sizes. Answers
# above 1, which are numbers, are compared relative to the largest one.
TOLERANCE = 1e-4
_BATCHES = 1, 3, 16  # The largest is left out where the images are large.
# The same if the weights are rounded to these types.
_ROUNDED_TOLERANCES = {"float16": 0.02, "bfloat16": 0.2}
PRECISIONS = "float32", "float16", "bfloat16", "int8"

Run = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Int8:
  """What an export to 8-bit integers needs.

  Attributes:
    images: calibrates and evaluates the network.
    number: number of images that calibrate, > 0.
    max_loss: largest loss of accuracy that is allowed, in percentage points.
  """

  images: RunImages
  number: int = 512
  max_loss: float = 1.0


def export(
  classifier: Classifier,
  path: str,
  form: str,
  image_size: tuple[int, int] | None = None,
  precision: str = "float32",
  int8: Int8 | None = None,
) -> float:
  """Exports a network, reads the file again, and compares outputs on random images.

  The comparison runs on the CPU.

  Args:
    classifier: the network.
    path: the file; an existing one is replaced if the comparison succeeds. OpenVINO's
      ends in .xml, and its weights are in a second file, which ends in .bin.
    form: "stablehlo", for `jax.export.deserialize` on CPU, CUDA and TPU; "onnx"; or
      "openvino".
    image_size: (H, W) of the exported network's input images; None means images that
      are already cropped.
    precision: "float32"; or "float16" or "bfloat16", the type in which the weights are
      stored, while the computation stays in float32; or "int8", which needs `int8`.
      The accuracies before and after are written to `path` + ".json".
    int8: for the precision "int8".

  Returns:
    The largest difference between two answers, see `TOLERANCE`; with "int8", the loss
    of accuracy in percentage points.

  Raises:
    UserError: the form or precision is unknown, they do not go together, the images are
      smaller than the crop, a package is missing, ONNX lacks an operation of the
      network, or the precision changes the answers too much.
    FloatingPointError: the outputs of the original network are not finite.
    RuntimeError: the outputs of the exported network differ.
  """
  check_choice("format", form, FORMATS)
  check_choice("precision", precision, PRECISIONS)
  if form == "stablehlo" and precision != "float32":
    raise UserError(f"--precision {precision} needs --format onnx or openvino")
  if precision == "int8" and (int8 is None or image_size is not None):
    raise UserError(
      "--precision int8 needs --workdir RUN, whose training images calibrate it, and "
      "no --photo-size"
    )
  exported = exported_function(classifier, image_size)
  target = Path(os.path.expanduser(path))
  cpu = jax.local_devices(backend="cpu")[0]
  with (
    tempfile.TemporaryDirectory(".part", f"{target.name}.", target.parent) as folder,
    jax.default_device(cpu),
  ):
    part = Path(folder) / target.name
    if form == "stablehlo":
      run = _write_stablehlo(exported, part)
    else:
      run = _write_onnx(exported, part, form, precision, int8)
    if int8 is not None and precision == "int8":
      result = _loss(exported, run, int8, part)
    else:
      batches = _BATCHES[:2] if classifier.labels in DENSE_LABELS else _BATCHES
      result = max(_difference(exported, run, batch) for batch in batches)
      _check_difference(result, precision)
    # The file with the name that was given comes last.
    for file in sorted(Path(folder).iterdir(), key=lambda file: file == part):
      os.replace(file, target.parent / file.name)
  return result


def _difference(exported: ExportedFunction, run: Run, batch: int) -> float:
  generator, image = np.random.default_rng(batch), exported.image
  top, shape = np.iinfo(image.dtype).max, (batch, *image.shape)
  images = generator.integers(0, top, shape, image.dtype, endpoint=True)
  expected = np.asarray(jax.jit(exported.function)(exported.variables, images))
  check_finite(expected, "random images")
  scale = max(1.0, float(np.abs(expected).max()))
  return float(np.abs(run(images) - expected).max()) / scale


def _check_difference(difference: float, precision: str) -> None:
  limit = _ROUNDED_TOLERANCES.get(precision)
  if limit is not None and not difference <= limit:
    raise UserError(
      f"an answer of the network changes by {difference:.1g} if its weights are "
      f"{precision}, more than {limit}; nothing is written. Use --precision float32"
    )
  if limit is None and not difference <= TOLERANCE:
    raise RuntimeError(  # A bug, here or in the exporter.
      f"the exported network differs by {difference:.1g} in an answer, more than "
      f"{TOLERANCE}; nothing is written"
    )


def _loss(exported: ExportedFunction, run: Run, int8: Int8, part: Path) -> float:
  """Returns the loss of accuracy, and writes both accuracies beside the file."""
  function = jax.jit(partial(exported.function, exported.variables))
  before, after = int8.images.accuracy(lambda x: np.asarray(function(x)), run)
  if not before - after <= int8.max_loss:
    raise UserError(
      f"the accuracy falls from {before:.2f}% to {after:.2f}% in int8, by more than "
      f"--max-loss={int8.max_loss} points; nothing is written. Use --precision "
      "float16, more --calibration-images, or a larger --max-loss"
    )
  accuracies = {"float32": before, "int8": after}
  text = json.dumps(
    {"top1_percent": accuracies, "evaluation_images": len(int8.images.evaluation)}
  )
  part.with_name(part.name + ".json").write_text(text + "\n")
  return before - after


def _write_stablehlo(exported: ExportedFunction, part: Path) -> Run:
  batch = jax.export.symbolic_shape("batch")
  shape = (*batch, *exported.image.shape)
  images = jax.ShapeDtypeStruct(shape, exported.image.dtype)
  function = jax.jit(partial(exported.function, exported.variables))
  content = bytes(jax.export.export(function, platforms=PLATFORMS)(images).serialize())
  part.write_bytes(content)
  again = jax.export.deserialize(bytearray(content))
  return lambda images: np.asarray(again.call(images))


def _write_onnx(
  exported: ExportedFunction, part: Path, form: str, precision: str, int8: Int8 | None
) -> Run:
  """Writes ONNX's or OpenVINO's files."""
  from resnet_jax.inference.onnx import openvino_file

  try:
    import onnx  # noqa: F401
    import onnxruntime

    if form == "openvino":
      openvino_file.import_openvino()
  except ModuleNotFoundError as error:
    raise UserError(
      f"--format {form} needs {error.name}: pip install 'flax-resnet[{form}]'"
    ) from error
  from resnet_jax.inference.onnx.build import build

  model = build(exported, precision)
  model.producer_version = __version__
  if int8 is not None and precision == "int8":
    from resnet_jax.inference.onnx.quantize import quantize

    model = quantize(model, int8.images.calibration(int8.number))
  if form == "openvino":
    return openvino_file.write(model, part, exported.metadata)
  content = model.SerializeToString()
  part.write_bytes(content)
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # Only errors.
  session = onnxruntime.InferenceSession(
    content, options, providers=["CPUExecutionProvider"]
  )
  return lambda images: session.run(None, {"images": images})[0]
