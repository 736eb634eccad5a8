"""The function that an export writes to a file: images in, answers out.

It resizes, crops and normalises like the evaluation, except for rounding. If no image
size is given, the caller must resize and crop.

Letters: B batch, H height, W width, C channels, K classes.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.data.batches.preprocess import to_grey_levels
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.inference.classifier import Classifier
from resnet_jax.inference.portable import ExportedFunction, portable
from resnet_jax.models.variables import Variables
from resnet_jax.runtime.arrays import Array, Float32, Num
from resnet_jax.runtime.errors import UserError


def exported_function(
  classifier: Classifier, image_size: tuple[int, int] | None = None
) -> ExportedFunction:
  """Returns a network's function for an export. It computes in float32.

  Args:
    classifier: the network.
    image_size: (H, W) of the images; None means images that are already cropped.

  Raises:
    UserError: the images are smaller than the crop.
  """
  size = classifier.preprocessing
  shape = *(image_size or (size.crop, size.crop)), classifier.channels
  if min(shape[:2]) < size.crop and not size.resize:
    raise UserError(f"images of {shape[:2]} are smaller than the crop, {size.crop}")
  model, variables = portable(classifier.model, classifier.variables)
  folded = dataclasses.replace(classifier, model=model, variables=variables)
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    matrices = None
    if image_size is not None:
      matrices = [_resizing(n, min(image_size), classifier) for n in image_size]

  def function(
    variables: Variables, images: Num[Array, "b h w c"]
  ) -> Float32[Array, "b ..."]:
    if matrices is not None:
      images = _resize(images, *matrices)
    return folded.answer_of(variables, images)

  return ExportedFunction(
    function,
    folded.variables,
    jax.ShapeDtypeStruct(shape, PixelFormat(max_value=size.max_value).dtype),
    (folded.answer,),
    _metadata(classifier, image_size is not None),
  )


def _metadata(classifier: Classifier, is_resized: bool) -> dict[str, str]:
  size = dataclasses.asdict(classifier.preprocessing)
  texts: dict[str, Any] = {
    "class_names": json.dumps(list(classifier.class_names)),
    "architecture": classifier.name,
    "preprocessing": json.dumps(size),
    "recipe": json.dumps(classifier.training),
  }
  if not is_resized:
    texts |= {name: size[name] for name in ("resize", "crop", "interpolation")}
  if size["max_value"]:
    texts["max_value"] = size["max_value"]
  if classifier.thresholds:
    texts["thresholds"] = json.dumps(classifier.thresholds)
  return {name: str(value) for name, value in texts.items()}


def _resize(
  images: Num[Array, "b h w c"], rows: Array, columns: Array
) -> Float32[Array, "b _ _ c"]:
  """Resizes by matrix products.

  It does not round the values: two programs could round a tie differently.
  """
  images = to_grey_levels(images).astype(jnp.float32)
  mixed = jnp.einsum("yh,bhwc,xw->byxc", rows, images, columns)
  return lax.clamp(0.0, mixed, 255.0)


def _resizing(
  old: int, short: int, classifier: Classifier
) -> Float32[Array, "_ {old}"]:
  """Returns the matrix that resizes and crops one axis, as `resize_and_crop` does.

  ONNX's operations for resizing have other borders than JAX's.
  """
  size = classifier.preprocessing
  new = old * (size.resize or short) // short
  method = {"bilinear": "linear", "bicubic": "cubic"}[size.interpolation]
  first = round((new - size.crop) / 2)
  matrix: Array = jax.image.resize(jnp.eye(old), (new, old), method)
  return matrix[first : first + size.crop]
