"""Exports a trained network to a file that runs without this package.

The formats are StableHLO and ONNX. The exported network takes `images` [batch, H, W, C]
of any batch size, and returns `probabilities` [batch, K] float32, or `values` if the
network predicts numbers. See `exported_function.py` for the details.

Letters: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.export
import numpy as np

from resnet_jax.config.allowed import check_choice
from resnet_jax.inference.classifier import Classifier, check_finite
from resnet_jax.inference.exported_function import exported_function
from resnet_jax.inference.portable import ExportedFunction
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError

PLATFORMS = "cpu", "cuda", "tpu"
# Largest allowed difference to this package's answers, at these batch sizes. Answers
# above 1, which are numbers, are compared relative to the largest one.
TOLERANCE = 1e-4
_BATCHES = 1, 3, 16

Run = Callable[[np.ndarray], np.ndarray]


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
    UserError: the form is unknown, the images are smaller than the crop, a package
      is missing, or ONNX lacks an operation of the network.
    FloatingPointError: the outputs of the original network are not finite.
    RuntimeError: the outputs of the exported network differ.
  """
  check_choice("format", form, _WRITERS)
  exported = exported_function(classifier, image_size)
  cpu = jax.local_devices(backend="cpu")[0]
  with replacing(path) as part, jax.default_device(cpu):
    content, run = _WRITERS[form](exported)
    difference = max(_difference(exported, run, batch) for batch in _BATCHES)
    if not difference <= TOLERANCE:
      raise RuntimeError(  # A bug, here or in the exporter.
        f"the exported network differs by {difference:.1g} in an answer, more than "
        f"{TOLERANCE}; nothing is written"
      )
    Path(part).write_bytes(content)
  return difference


def _difference(exported: ExportedFunction, run: Run, batch: int) -> float:
  generator, image = np.random.default_rng(batch), exported.image
  top, shape = np.iinfo(image.dtype).max, (batch, *image.shape)
  images = generator.integers(0, top, shape, image.dtype, endpoint=True)
  expected = np.asarray(jax.jit(exported.function)(exported.variables, images))
  check_finite(expected, "random images")
  scale = max(1.0, float(np.abs(expected).max()))
  return float(np.abs(run(images) - expected).max()) / scale


def _to_stablehlo(exported: ExportedFunction) -> tuple[bytes, Run]:
  batch = jax.export.symbolic_shape("batch")
  shape = (*batch, *exported.image.shape)
  images = jax.ShapeDtypeStruct(shape, exported.image.dtype)
  function = jax.jit(partial(exported.function, exported.variables))
  content = bytes(jax.export.export(function, platforms=PLATFORMS)(images).serialize())
  again = jax.export.deserialize(bytearray(content))
  return content, lambda images: np.asarray(again.call(images))


def _to_onnx(exported: ExportedFunction) -> tuple[bytes, Run]:
  try:
    import onnx  # noqa: F401
    import onnxruntime
  except ModuleNotFoundError as error:
    raise UserError(
      f"--format onnx needs {error.name}: pip install 'flax-resnet[onnx]'"
    ) from error
  from resnet_jax.inference.onnx.build import build

  content = build(exported).SerializeToString()
  session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
  return content, lambda images: session.run(None, {"images": images})[0]


_WRITERS = {"stablehlo": _to_stablehlo, "onnx": _to_onnx}
