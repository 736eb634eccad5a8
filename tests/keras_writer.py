"""Writes files of weights as Keras does, and computes what its networks compute."""

import zipfile
from collections import Counter
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np

STAGE_SIZES = (3, 4, 6, 3)
FEATURES = 4  # Keras has 64.
CLASSES = 5

Layers = dict[str, list[np.ndarray]]


def make(is_v2: bool, features: int = FEATURES) -> Layers:
  """Returns the variables of a narrow ResNet50 or ResNet50V2, in Keras 3's order."""
  random = np.random.default_rng(0)
  layers: Layers = {}

  def conv(name, size, inputs, outputs, has_bias=True):
    scale = (2 / (size * size * inputs)) ** 0.5
    kernel = scale * random.normal(size=(size, size, inputs, outputs))
    bias = [0.3 * random.normal(size=outputs)] if has_bias else []
    layers[f"{name}_conv"] = [kernel, *bias]

  def norm(name, channels, scale=1.0):
    shift, mean = 0.3 * random.normal(size=(2, channels))
    gamma, variance = random.uniform(0.5, 1.5, (2, channels))
    layers[f"{name}_bn"] = [scale * gamma, shift, mean, variance]

  conv("conv1", 7, 3, features)
  if not is_v2:
    norm("conv1", features)
  given = features
  for stage, size in enumerate(STAGE_SIZES):
    width = features * 2**stage
    for number in range(size):
      name = f"conv{stage + 2}_block{number + 1}"
      wide = 4 * width
      if is_v2:
        norm(f"{name}_preact", given)
      conv(f"{name}_1", 1, given, width, not is_v2)
      norm(f"{name}_1", width)
      conv(f"{name}_2", 3, width, width, not is_v2)
      norm(f"{name}_2", width)
      if number == 0:
        conv(f"{name}_0", 1, given, wide)
        if not is_v2:
          norm(f"{name}_0", wide)
      conv(f"{name}_3", 1, width, wide)
      if not is_v2:
        norm(f"{name}_3", wide, 0.3)
      given = wide
  if is_v2:
    norm("post", given)
  kernel = random.normal(size=(given, CLASSES)) / given**0.5
  layers["predictions"] = [kernel, random.normal(size=CLASSES)]
  return {
    name: [np.asarray(array, np.float32) for array in arrays]
    for name, arrays in layers.items()
  }


@jax.numpy_rank_promotion("allow")
def apply(layers: Layers, images: jax.Array) -> jax.Array:
  """Returns logits, computed in the order of keras.applications' source code."""
  is_v2 = "post_bn" in layers

  def conv(name, x, stride=1, padding="VALID"):
    kernel, *bias = layers[f"{name}_conv"]
    y = jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + bias[0] if bias else y

  def norm(name, x):
    gamma, beta, mean, variance = layers[f"{name}_bn"]
    return gamma * (x - mean) / jnp.sqrt(variance + 1.001e-5) + beta

  def norm_relu(name, x):
    return jax.nn.relu(norm(name, x))

  def block_v1(x, name, stride, is_first):
    shortcut = norm(f"{name}_0", conv(f"{name}_0", x, stride)) if is_first else x
    y = norm_relu(f"{name}_1", conv(f"{name}_1", x, stride))
    y = norm_relu(f"{name}_2", conv(f"{name}_2", y, 1, "SAME"))
    return jax.nn.relu(shortcut + norm(f"{name}_3", conv(f"{name}_3", y)))

  def block_v2(x, name, stride, is_first):
    active = norm_relu(f"{name}_preact", x)
    shortcut = conv(f"{name}_0", active) if is_first else x[:, ::stride, ::stride]
    y = norm_relu(f"{name}_1", conv(f"{name}_1", active))
    y = conv(f"{name}_2", y, stride, ((1, 1), (1, 1)))
    return shortcut + conv(f"{name}_3", norm_relu(f"{name}_2", y))

  x = conv("conv1", images, 2, ((3, 3), (3, 3)))
  if not is_v2:
    x = norm_relu("conv1", x)
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  x = jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
  )
  for stage, size in enumerate(STAGE_SIZES):
    for number in range(size):
      name = f"conv{stage + 2}_block{number + 1}"
      if is_v2:  # The last block of each stage but the last one has the stride.
        stride = 2 if number == size - 1 and stage < 3 else 1
        x = block_v2(x, name, stride, number == 0)
      else:
        stride = 2 if number == 0 and stage > 0 else 1
        x = block_v1(x, name, stride, number == 0)
  if is_v2:
    x = norm_relu("post", x)
  kernel, bias = layers["predictions"]
  return x.mean(axis=(1, 2)) @ kernel + bias


CLASSES_OF_LAYERS = {"v": "conv2d", "n": "batch_normalization", "s": "dense"}
VARIABLES = {
  "v": ("kernel", "bias"),
  "n": ("gamma", "beta", "moving_mean", "moving_variance"),
  "s": ("kernel", "bias"),
}


def numbered(layers: Layers, group: str = "layers") -> dict[str, np.ndarray]:
  """Returns the data sets of Keras 3, where the layers of each class are numbered."""
  found, counts = {}, Counter()
  for name, arrays in layers.items():
    kind = CLASSES_OF_LAYERS[name[-1]]
    number = f"_{counts[kind]}" if counts[kind] else ""
    counts[kind] += 1
    for i, array in enumerate(arrays):
      found[f"{group}/{kind}{number}/vars/{i}"] = array
  return found


def named(layers: Layers, group: str = "") -> dict[str, np.ndarray]:
  """Returns the data sets of Keras 1 and 2, where layers and variables have names."""
  return {
    f"{group}{name}/{name}/{variable}:0": array
    for name, arrays in layers.items()
    for variable, array in zip(VARIABLES[name[-1]], arrays, strict=False)
  }


def write(path: Path, datasets: dict[str, np.ndarray], config: str = "{}") -> None:
  """Writes a `.h5` file, or a `.keras` file with one inside, and the model's config."""
  with h5py.File(path.with_suffix(".h5"), "w") as file:
    for name, array in datasets.items():
      file[name] = array
    file.attrs["model_config"] = config
  if path.suffix == ".keras":
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("config.json", config)
      archive.write(path.with_suffix(".h5"), "model.weights.h5")
