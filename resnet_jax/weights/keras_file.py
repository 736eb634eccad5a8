"""Reads the ResNets of `keras.applications`, with h5py and without Keras.

Three kinds of files are read: `.weights.h5` of Keras 3, `.keras`, which contains one,
and `.h5` of all versions. The outputs of the network stay the same, although Keras's
convolutions have biases and its batch norms another epsilon: a bias is subtracted from
the mean of the next batch norm, and the difference of epsilon is added to the variance.
"""

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn
from resnet_jax.weights.state_dict import few

# A pattern for the names of these networks in this package.
ARCHITECTURES = r"resnetv1_\d+|resnetv2_\d+_keras"
# What `preprocess_input` of `keras.applications` does for ResNet50 and for ResNet50V2,
# by whether the network is pre-activated.
PREPROCESSING = {
  False: Preprocessing(
    mean=(103.939 / 255, 116.779 / 255, 123.68 / 255),
    std=(1 / 255,),
    channel_order="bgr",
  ),
  True: Preprocessing(mean=(0.5,), std=(0.5,)),
}

# Layer -> variable -> array, by their names in Keras 2; but the last layer is "head".
_Layers = dict[str, dict[str, np.ndarray]]
# Path of a data set -> its layer and variable.
_Names = dict[str, tuple[str, str]]
_Tensors = Iterator[tuple[str, np.ndarray]]

_EXTRA_EPSILON = 1e-8  # Keras's ResNets have an epsilon of 1.001e-5.
_ZERO = np.zeros((), np.float32)
_MOST_OBJECTS = 10_000  # ResNet-152 has about 1,900 groups and data sets.
_FLOATS = ("float16", "float32", "float64", "bfloat16")
# Keras 3 numbers the layers of each class, in the order in which the network has them.
_NUMBERED = re.compile(r"(.*?)(conv2d|batch_normalization)(?:_(\d{1,4}))?/vars/([0-3])")
_VARIABLES = {
  "conv2d": ("kernel", "bias"),
  "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
_NAMED = re.compile(r"(?:.*/)?([^/]+)/([a-z_]+)(?::0)?")
_LINEAR = re.compile(r"(.+)/(?:vars/([01])|(kernel|bias)(?::0)?)")
# Layers of a user's model that are left out, although they change the outputs.
_OTHERS = re.compile(r'"class_name": "(Rescaling|Normalization|GlobalMaxPooling2D)"')
_LAYER = re.compile(r"(conv1|post|conv[2-5]_block\d{1,2}_(\d|preact))_(conv|bn)")
# Blocks of each stage, by the number of convolutions.
_STAGE_SIZES = {53: (3, 4, 6, 3), 104: (3, 4, 23, 3), 155: (3, 8, 36, 3)}


def read(path: Path, only_shapes: bool = False) -> dict[str, np.ndarray]:
  """Returns the tensors of a network by their names in timm, with timm's axes.

  Args:
    path: a file with one of `KERAS_SUFFIXES`.
    only_shapes: do not read the numbers, and do not warn. The arrays then have the
      right shapes, and any numbers.

  Raises:
    UserError: h5py is not installed, the file is damaged, or it holds no ResNet of
      `keras.applications`.
  """
  try:
    import h5py
  except ModuleNotFoundError as error:
    raise UserError(f"{path} needs h5py: pip install 'flax-resnet[keras]'") from error
  try:
    if path.suffix == ".keras":
      with (
        zipfile.ZipFile(path) as archive,
        _open_stored(archive, "model.weights.h5") as content,
        _open_stored(archive, "config.json") as config,
      ):
        return _read(h5py.File(content, "r"), config.read(), path, only_shapes)
    with h5py.File(path, "r") as file:
      return _read(file, file.attrs.get("model_config", ""), path, only_shapes)
  except Exception as error:  # Damaged bytes raise errors of many types in h5py.
    reason = "it is cut off or of another format"
    if isinstance(error, UserError):
      reason = str(error)
    elif isinstance(error, KeyError):
      reason = f"it has no {error.args[0]!s:.80}"
    raise UserError(
      f"{path} is damaged, or holds no ResNet of keras.applications: {reason}"
    ) from error


def _open_stored(archive: zipfile.ZipFile, name: str) -> Any:
  info = archive.getinfo(name)
  if info.compress_type != zipfile.ZIP_STORED:
    raise UserError(f"its {name} is compressed")
  return archive.open(info)


def _read(
  file: Any, config: str | bytes, path: Path, only_shapes: bool
) -> dict[str, np.ndarray]:
  datasets = _find_datasets(file)
  names = _from_numbers(datasets) or _from_names(datasets)
  others = {*_OTHERS.findall(str(config))}
  if "GlobalMaxPooling2D" not in others:
    names |= _find_head(datasets, names)
  layers: _Layers = defaultdict(dict)
  for name, (layer, variable) in names.items():
    if variable in layers[layer]:
      raise UserError(f"it has two layers {layer}")
    layers[layer][variable] = _to_array(datasets[name], only_shapes)
  beside = sorted(datasets.keys() - names.keys() | others)
  if beside and not only_shapes:
    warn(f"{path}: only the ResNet is read, not {', '.join(few(beside, 5))}")
  convert = _convert_v2 if "post_bn" in layers else _convert_v1
  blocks = _blocks(sum(layer.endswith("_conv") for layer in layers))
  with np.errstate(all="ignore"):  # What reads the tensors refuses infinity and NaN.
    return dict(convert(dict(layers), blocks))


def _find_datasets(file: Any) -> dict[str, Any]:
  """Returns the data sets of a file by their paths, without those of an optimiser."""
  import h5py

  datasets: dict[str, Any] = {}
  left = iter(range(_MOST_OBJECTS))

  def add(name: str, item: Any) -> None:
    if next(left, None) is None:
      raise UserError(f"it has more than {_MOST_OBJECTS} groups and data sets")
    if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
      datasets[name] = item

  file.visititems(add)  # This follows no link to another file, and no loop.
  left_bytes = file.id.get_filesize()
  for name, item in datasets.items():
    layout = item.id.get_create_plist().get_layout()
    if item.shape is None or layout != h5py.h5d.CONTIGUOUS:
      raise UserError(f"{name:.80} is empty or compressed")
    left_bytes -= item.nbytes
    is_here = not item.external and item.id.get_storage_size() == item.nbytes
    if not is_here or left_bytes < 0:
      raise UserError(f"the numbers of {name:.80} are not in the file")
  return datasets


def _to_array(dataset: Any, only_shapes: bool) -> np.ndarray:
  """Returns the numbers of a data set as float32 or float64."""
  if only_shapes:
    return np.broadcast_to(np.float32(0), dataset.shape)
  array = dataset[()]
  if array.dtype == "V2":  # bfloat16; some files have no attribute that says so.
    array = array.view(ml_dtypes.bfloat16)
  if array.dtype.name not in _FLOATS:
    raise UserError(f"{dataset.name:.80} has dtype {array.dtype!s:.40}")
  return np.asarray(array, np.result_type(array.dtype, np.float32))


def _from_numbers(paths: Iterable[str]) -> _Names:
  """Names the data sets of Keras 3; {} for another version of Keras."""
  found = {path: match for path in paths if (match := _NUMBERED.fullmatch(path))}
  kinds: dict[tuple[str, str], set[int]] = defaultdict(set)
  for match in found.values():
    kinds[match[1], match[2]].add(int(match[3] or 0))
  # A model of the user's may have the ResNet as one of its layers.
  sizes = {group: len(kinds[group, kind]) for group, kind in kinds if kind == "conv2d"}
  if not sizes:
    return {}
  group = max(sizes, key=sizes.__getitem__)
  orders = _orders(sizes[group], len(kinds[group, "batch_normalization"]))
  layers = {
    (group, kind, number): layer
    for kind, order in orders.items()
    for number, layer in zip(sorted(kinds[group, kind]), order, strict=True)
  }
  return {
    path: (layers[key], _VARIABLES[match[2]][int(match[4])])
    for path, match in found.items()
    if (key := (match[1], match[2], int(match[3] or 0))) in layers
  }


def _orders(num_convs: int, num_norms: int) -> dict[str, list[str]]:
  """Returns the names of the layers of each class in Keras's order.

  Raises:
    UserError: no network has so many layers.
  """
  convs, norms_v1, norms_v2 = ["conv1_conv"], ["conv1_bn"], []
  for block, is_first in _blocks(num_convs):
    parts = ["1", "2", "0", "3"] if is_first else ["1", "2", "3"]
    convs += [f"{block}_{part}_conv" for part in parts]
    norms_v1 += [f"{block}_{part}_bn" for part in parts]
    norms_v2 += [f"{block}_{part}_bn" for part in ("preact", "1", "2")]
  norms_v2.append("post_bn")
  for norms in (norms_v1, norms_v2):
    if len(norms) == num_norms:
      return {"conv2d": convs, "batch_normalization": norms}
  raise UserError(f"it has {num_convs} convolutions and {num_norms} batch norms")


def _from_names(paths: Iterable[str]) -> _Names:
  """Names the data sets of a version of Keras whose files have the layers' names."""
  matches = {path: match for path in paths if (match := _NAMED.fullmatch(path))}
  if any(match[1] == "res2a_branch2a" for match in matches.values()):
    raise UserError("it is the ResNet50 of an older Keras, another network")
  return {
    path: (match[1], match[2])
    for path, match in matches.items()
    if _LAYER.fullmatch(match[1])
  }


def _find_head(datasets: dict[str, Any], network: _Names) -> _Names:
  """Names the data sets of the head, which is the only linear layer.

  The result is {} if there are several, or if another layer of the user's, such as a
  batch norm, has one number for each input of the linear layer and so may precede it.
  """
  found = {path: match for path in datasets if (match := _LINEAR.fullmatch(path))}
  variables = {
    path: match[3] or ("kernel", "bias")[int(match[2])] for path, match in found.items()
  }
  kernels = [
    path
    for path, variable in variables.items()
    if variable == "kernel" and len(datasets[path].shape) == 2
  ]
  if len(kernels) != 1:
    return {}
  layer = found[kernels[0]][1]
  head = {
    path: ("head", variables[path])
    for path, match in found.items()
    if match[1] == layer
  }
  beside = datasets.keys() - network.keys() - head.keys()
  inputs = datasets[kernels[0]].shape[:1]
  return {} if any(datasets[path].shape == inputs for path in beside) else head


def _blocks(num_convs: int) -> list[tuple[str, bool]]:
  """Returns the name of each block, and whether it is the first one of a stage."""
  if num_convs not in _STAGE_SIZES:
    raise UserError(
      f"it has {num_convs} convolutions; ResNet50, 101 and 152 have 53, 104 and 155"
    )
  return [
    (f"conv{stage}_block{block}", block == 1)
    for stage, size in enumerate(_STAGE_SIZES[num_convs], start=2)
    for block in range(1, size + 1)
  ]


def _convert_v1(layers: _Layers, blocks: list[tuple[str, bool]]) -> _Tensors:
  names = {"conv1": ("conv1", "bn1")}
  for block, is_first in blocks:
    stage, number = _numbers(block)
    own = f"layer{stage}.{number}"
    names |= {f"{block}_{i}": (f"{own}.conv{i}", f"{own}.bn{i}") for i in (1, 2, 3)}
    if is_first:
      names[f"{block}_0"] = f"{own}.downsample.0", f"{own}.downsample.1"
  for name, (conv_name, norm_name) in names.items():
    conv = layers[f"{name}_conv"]
    yield from _conv(conv_name, conv)
    yield from _norm(norm_name, layers[f"{name}_bn"], conv["bias"])
  yield from _head("fc", layers)


def _convert_v2(layers: _Layers, blocks: list[tuple[str, bool]]) -> _Tensors:
  """Yields the tensors of a pre-activation network.

  The biases at the end of blocks add up until the next shortcut with a convolution.
  """
  yield from _conv("stem.conv", layers["conv1_conv"])
  # The max-pool takes zeros outside of the image, so that this bias has to stay.
  yield "stem.bias", layers["conv1_conv"]["bias"]
  offset = _ZERO
  for block, is_first in blocks:
    stage, number = _numbers(block)
    own = f"stages.{stage - 1}.blocks.{number}"
    yield from _norm(f"{own}.norm1", layers[f"{block}_preact_bn"], offset)
    for i in (1, 2):
      yield from _norm(f"{own}.norm{i + 1}", layers[f"{block}_{i}_bn"])
    for i in (1, 2, 3):
      yield from _conv(f"{own}.conv{i}", layers[f"{block}_{i}_conv"])
    if is_first:
      shortcut = layers[f"{block}_0_conv"]
      yield from _conv(f"{own}.downsample.conv", shortcut)
      offset = shortcut["bias"]
    offset = offset + layers[f"{block}_3_conv"]["bias"]
  yield from _norm("norm", layers["post_bn"], offset)
  yield from _head("head.fc", layers)


def _numbers(block: str) -> tuple[int, int]:
  """Returns (1, 0) for "conv2_block1"."""
  stage, number = re.findall(r"\d+", block)
  return int(stage) - 1, int(number) - 1


def _conv(name: str, layer: dict[str, np.ndarray]) -> _Tensors:
  yield f"{name}.weight", layer["kernel"].transpose(3, 2, 0, 1)


def _norm(
  name: str, layer: dict[str, np.ndarray], offset: np.ndarray = _ZERO
) -> _Tensors:
  yield f"{name}.weight", layer["gamma"]
  yield f"{name}.bias", layer["beta"]
  yield f"{name}.running_mean", layer["moving_mean"] - offset
  yield f"{name}.running_var", layer["moving_variance"] + np.float32(_EXTRA_EPSILON)


def _head(name: str, layers: _Layers) -> _Tensors:
  if head := layers.get("head"):
    kernel = head["kernel"].T
    # Some linear layers have no bias.
    bias = head.get("bias", np.zeros(len(kernel), kernel.dtype))
    if len(kernel) == 1:  # sigmoid(z) is the second value of softmax(0, z).
      kernel, bias = (np.concatenate([np.zeros_like(x), x]) for x in (kernel, bias))
    yield f"{name}.weight", kernel
    yield f"{name}.bias", bias
