"""Loads and saves trained weights with torchvision's and timm's names, without PyTorch.

variables = weights.load("resnet50-11ad3fa6.pth", create_model("resnet50"))
preprocessing = weights.read_preprocessing("resnet50-11ad3fa6.pth", model)
weights.save("mine.safetensors", model, variables, preprocessing)
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn
from flax import traverse_util

from resnet_jax.config.allowed import check_choice
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.models.detection import RetinaNet
from resnet_jax.models.resnet import ResNet, as_resnet, init_head
from resnet_jax.models.scan_layout import to_named
from resnet_jax.models.segmentation import Segmenter
from resnet_jax.models.variables import Variables
from resnet_jax.runtime.arrays import PRNGKeyArray
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn
from resnet_jax.weights import config_files
from resnet_jax.weights.architecture import check_named, check_same, describe
from resnet_jax.weights.fitting import (
  count_logits,
  describe_detector,
  describe_segmenter,
  fitting,
  is_detector,
)
from resnet_jax.weights.foreign_names import to_detector, to_segmenter, to_timm
from resnet_jax.weights.from_torch import as_dtype, find_problems, to_variables
from resnet_jax.weights.location import find
from resnet_jax.weights.metadata import read_name_pattern, read_network
from resnet_jax.weights.tensors import (
  COUNTERS,
  Tensors,
  Translate,
  at,
  few,
  read_names,
  read_tensors,
  wanted_by,
)
from resnet_jax.weights.torch_names import torch_names

# Dtypes of the tensors that `save` writes.
DTYPES = ("float32", "float16")


def load(
  path: str | Path,
  model: nn.Module,
  head: bool = True,
  *,
  ema: bool | None = None,
  new_head: bool = False,
) -> Variables:
  """Reads trained weights for a model.

  Args:
    path: a `.safetensors` file; a `.pth`, `.pt` or `.th` file of `torch.save`; a `.h5`
      or `.keras` file of Keras; a name of weights in the package, a folder or
      `hf://owner/name`, see `find`.
    model: must have the architecture and the number of classes of the weights. It is a
      `ResNet`, or for torchvision's weights a `Segmenter` or a `RetinaNet`.
    head: False leaves out the head, so that its number of classes does not matter. The
      heads of a `Segmenter` lack only their last layers then, which are named "head". A
      `RetinaNet` lacks only the last layer for the classes.
    ema: whether to take the exponential moving average, if a checkpoint has two sets of
      weights.
    new_head: make new parameters for the head, whatever the file has, and say so. They
      are the same at each call, and have to be trained.

  Returns:
    {"params": ..., "batch_stats": ...} of float32 arrays in the named layout, which
    `model.apply` takes. Tensors of float16, bfloat16 and float64 are converted.

  Raises:
    ValueError: the file does not fit the model, or says that it was saved from another
      network. The message names the differences.
    FileNotFoundError: there is no such file.
  """
  path = find(path)
  kind = _kind_of(model)
  if isinstance(model, Segmenter | RetinaNet):
    as_resnet(model.net, kind.purpose)
  else:
    model = as_resnet(model, kind.purpose)
    _check_architecture(path, model)
  tensors, problems = read_tensors(path, ema, translate=kind.translate)
  all_tensors = dict(tensors)
  wanted, names = wanted_by(model, tensors)
  left_out = {}
  if not head or new_head:
    end = slice(-1 - len(kind.last), -1)
    left_out = {name: keys for name, keys in names.items() if keys[end] == kind.last}
    for name in left_out:
      names.pop(name)
      tensors.pop(name, None)
  problems = [*few(problems), *find_problems(tensors, wanted, names)]
  if problems:
    problems += kind.advise(all_tensors, model, head)
    raise UserError(
      f"{path} does not fit the model: {'; '.join(problems)}. It must be a state dict "
      f"of floating-point tensors for this {kind.what} and number of classes"
    )
  variables = to_variables(tensors, wanted, names)
  if new_head:
    warn(f"the {kind.layer} for {model.num_classes} classes is new, and not trained")
    for i, (*parents, layer) in enumerate(sorted({k[:-1] for k in left_out.values()})):
      shape = at(wanted, (*parents, layer))["kernel"].shape
      new = kind.init_last(model, jax.random.key(i), shape)
      at(variables, tuple(parents))[layer] = new
  return variables


def _advise(tensors: Tensors, model: Any, head: bool) -> list[str]:
  """Returns what to do with a file that does not fit, perhaps nothing."""
  names = fitting(tensors)
  if names and describe(model)["name"] not in names:
    return [f"it fits {', '.join(few(names))}"]
  if not head or (size := count_logits(tensors)) == model.num_classes:
    return []
  found = f"its head has {size} classes, not {model.num_classes}"
  return [
    f"{found if size else 'it has no head'}: new_head=True makes a new head, as "
    "--num-classes and config.init_from without config.init_head do"
  ]


def _advise_on_segmenter(tensors: Tensors, model: Any, head: bool) -> list[str]:
  del head
  size, call = describe_segmenter(tensors)
  advice = [f"the file is for {call}"] if call else []
  if size not in (0, model.num_classes):
    advice.append("new_head=True makes new last layers for other classes")
  return advice


def _advise_on_detector(tensors: Tensors, model: Any, head: bool) -> list[str]:
  del head
  size, names = describe_detector(tensors)
  if not is_detector(model, tensors):
    return [f"it fits {', '.join(names)}"] if names else []
  if size == model.num_classes:
    return []
  return [
    f"its head has {size} classes, not {model.num_classes}: new_head=True makes a new "
    "last layer for them"
  ]


def _init_dense(model: Any, key: PRNGKeyArray, shape: tuple[int, ...]) -> Any:
  return init_head(key, shape[0], model.num_classes)


def _init_convolution(model: Any, key: PRNGKeyArray, shape: tuple[int, ...]) -> Any:
  del shape
  return model.init_head(key)


class _Kind(NamedTuple):
  """What `load` does with a kind of network.

  Attributes:
    purpose: see `as_resnet`.
    translate: see `read_tensors`.
    what: what a file must be for, in a message.
    layer: name of the layers that depend on the number of classes, in a message.
    last: the end of the paths of these layers.
    init_last: (model, key, shape of the kernel) -> new parameters of such a layer.
    advise: (tensors, model, head) -> what to do with a file that does not fit.
  """

  purpose: str
  translate: Translate
  what: str
  layer: str
  last: tuple[str, ...]
  init_last: Callable[[Any, PRNGKeyArray, tuple[int, ...]], Any]
  advise: Callable[[Tensors, Any, bool], list[str]]


_CLASSIFIER = _Kind(
  *("files of weights", to_timm, "architecture", "head"),
  *(("head",), _init_dense, _advise),
)
_SEGMENTER = _Kind(
  *("segmenters", to_segmenter, "architecture", "head"),
  *(("head",), _init_dense, _advise_on_segmenter),
)
_DETECTOR = _Kind(
  *("detectors", to_detector, "detector", "last layer"),
  *(RetinaNet.HEAD, _init_convolution, _advise_on_detector),
)


def _kind_of(model: nn.Module) -> _Kind:
  if isinstance(model, Segmenter):
    return _SEGMENTER
  return _DETECTOR if isinstance(model, RetinaNet) else _CLASSIFIER


def is_dense(path: str | Path) -> bool:
  """Whether a file of weights has the heads of a segmenter or a detector.

  Raises:
    NotFoundError: there is no such file.
    UserError: the file is damaged.
  """
  names = read_names(find(path))
  for kind in (_SEGMENTER, _DETECTOR):
    with contextlib.suppress(UserError):  # The names are others.
      kind.translate(names, None)
      return True
  return False


def last_layers(model: nn.Module, tree: Any) -> set[tuple[str, ...]]:
  """Returns the paths of the layers that depend on the number of classes.

  Args:
    model: the network.
    tree: its parameters in the named layout.
  """
  last = _kind_of(model).last
  layers = {path[:-1] for path in traverse_util.flatten_dict(tree)}
  return {path for path in layers if path[-len(last) :] == last}


def save(
  path: str | Path,
  model: nn.Module,
  variables: Variables,
  preprocessing: Preprocessing | None = None,
  class_names: Sequence[str] = (),
  *,
  dtype: str = "float32",
  training: Mapping[str, Any] | None = None,
) -> None:
  """Writes weights that PyTorch loads with `strict=True`.

  Args:
    path: a `.safetensors` file; replaced if it exists.
    model: the network of the weights.
    variables: {"params": ..., "batch_stats": ...} in either layout.
    preprocessing: stored in the file for `read_preprocessing`.
    class_names: names in the order of the logits, stored for `read_class_names`.
    dtype: dtype of the tensors, "float32" or "float16".
    training: how the weights were trained, as JSON values, stored for `read_training`.

  Raises:
    ValueError: `path` has another suffix, there is no head, there are more names than
      logits, or a value is too large for `dtype`.
  """
  path = Path(path)
  if path.suffix != ".safetensors":
    raise UserError(f"{path} must end in .safetensors")
  data = to_bytes(model, variables, preprocessing, class_names, dtype, training)
  with replacing(str(path)) as part:
    Path(part).write_bytes(data)


def to_bytes(
  model: nn.Module,
  variables: Variables,
  preprocessing: Preprocessing | None,
  class_names: Sequence[str],
  dtype: str,
  training: Mapping[str, Any] | None,
  rename: Callable[[str], str] | None = None,
) -> bytes:
  """Returns the content of a file of weights.

  `rename` gives each tensor another name; the other arguments are those of `save`.
  """
  check_choice("dtype", dtype, DTYPES)
  model = as_resnet(model, "files of weights")
  if "head" not in variables["params"]:
    raise UserError("the variables have no head, which PyTorch's loading needs")
  if len(class_names) > model.num_classes:
    raise UserError(f"{len(class_names)} class names for {model.num_classes} classes")
  variables = jax.device_get(to_named(variables))
  tensors = {}
  for name, keys in torch_names(model, variables).items():
    array = _to_torch(at(variables, keys), as_conv=name != "fc.weight")
    tensors[name] = as_dtype(array, dtype)
    if dtype != "float32" and not np.isfinite(tensors[name]).all():
      raise UserError(f"{name} has values too large for {dtype}; save it as float32")
    if keys[-1] == "mean":
      counter = name.replace("running_mean", COUNTERS[0])
      tensors[counter] = np.zeros((), np.int64)
  if rename is not None:
    tensors = {rename(name): array for name, array in tensors.items()}
  metadata = {"format": "pt", "resnet_jax_network": json.dumps(describe(model))}
  if preprocessing is not None:
    metadata["preprocessing"] = json.dumps(dataclasses.asdict(preprocessing))
  if class_names:
    metadata["class_names"] = json.dumps(list(class_names))
  if training:
    metadata["training"] = json.dumps(training)
  return safetensors.numpy.save(tensors, metadata)


def _check_architecture(path: Path, model: ResNet) -> None:
  """Raises `UserError` if the network that a file names is not the model."""
  saved = read_network(path)
  if saved is not None:
    check_same(saved, model, str(path))
  elif named := config_files.read_architecture(path.parent):
    check_named(named, model, str(path.parent / config_files.NAMES[0]))
  elif pattern := read_name_pattern(path):
    name = describe(model)["name"]
    if name and not re.fullmatch(pattern, name):
      such = pattern.replace(r"\d+", "50").replace(r"\d", "1").replace("|", " or ")
      raise UserError(
        f"{path}: the weights are of a network such as {such}, not of {name}; leave "
        "out --model, or name that architecture"
      )


def _to_torch(array: np.ndarray, as_conv: bool) -> np.ndarray:
  """Inverse of `_from_torch`; matrices become 1x1 convolutions if `as_conv`."""
  order = (3, 2, 0, 1) if array.ndim == 4 else tuple(reversed(range(array.ndim)))
  array = np.ascontiguousarray(array.transpose(order))
  return array[..., None, None] if as_conv and array.ndim == 2 else array
