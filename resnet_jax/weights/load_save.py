"""Loads and saves trained weights with torchvision's and timm's names, without PyTorch.

variables = weights.load("resnet50-11ad3fa6.pth", create_model("resnet50"))
preprocessing = weights.read_preprocessing("resnet50-11ad3fa6.pth", model)
weights.save("mine.safetensors", model, variables, preprocessing)
"""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn

from resnet_jax.config.allowed import check_choice
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.models.resnet import ResNet, as_resnet
from resnet_jax.models.scan_layout import to_named
from resnet_jax.models.variables import Variables, abstract_variables
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError
from resnet_jax.weights import config_files, torch_checkpoint
from resnet_jax.weights.architecture import check_named, check_same, describe
from resnet_jax.weights.location import find
from resnet_jax.weights.metadata import read_network
from resnet_jax.weights.torch_names import canonical, torch_names

_FEW = 5  # The largest number of names of one kind in a message.
# Dtypes of the tensors that `save` writes.
DTYPES = ("float32", "float16")
# Dtypes of the tensors that `load` reads.
_FLOATS = ("float32", "float16", "bfloat16", "float64")


def load(path: str | Path, model: nn.Module, head: bool = True) -> Variables:
  """Reads trained weights for a model.

  Args:
    path: a `.safetensors` file; a `.pth`, `.pt` or `.th` file of `torch.save`; a name
      of weights in the package, a folder or `hf://owner/name`, see `find`.
    model: must have the architecture and the number of classes of the weights.
    head: False leaves out the head, so that its number of classes does not matter.

  Returns:
    {"params": ..., "batch_stats": ...} of float32 arrays in the named layout, which
    `model.apply` takes. Tensors of float16, bfloat16 and float64 are converted.

  Raises:
    ValueError: the file does not fit the model, or says that it was saved from another
      network. The message names the differences.
    FileNotFoundError: there is no such file.
  """
  model = as_resnet(model, "files of weights")
  path = find(path)
  _check_architecture(path, model)
  arrays, problems = _read(path)
  tensors: dict[str, np.ndarray | None] = {}
  for name in list(arrays):
    if canonical(name) in tensors:
      problems.append(f"{canonical(name)} appears twice, once as {name}")
    tensors[canonical(name)] = arrays.pop(name)
  shape = _image_shape(tensors)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = abstract_variables(model, shape, device)
  names = torch_names(model, wanted)
  if not head:
    for name in [name for name, keys in names.items() if keys[1] == "head"]:
      names.pop(name)
      tensors.pop(name, None)
  unused = [
    name
    for name in tensors
    if name not in names and not name.endswith("num_batches_tracked")
  ]
  missing = [name for name in names if name not in tensors]
  shapes = {name: _at(wanted, keys).shape for name, keys in names.items()}
  misfits = [
    f"{name} {problem}"
    for name, shape in shapes.items()
    if (array := tensors.get(name)) is not None
    for problem in _misfits(name, array, shape)
  ]
  problems = [*_few(problems), *_few(misfits)]
  if missing:
    problems.append(f"missing: {', '.join(_few(missing))}")
  if unused:
    problems.append(f"unused: {', '.join(_few(unused))}")
  if missing and (prefix := _prefix(tensors)):
    problems.append(f"all names begin with {prefix!r}")
  if problems:
    raise UserError(
      f"{path} does not fit the model: {'; '.join(problems)}. It must be a state dict "
      "of floating-point tensors for this architecture and number of classes"
    )
  variables: Variables = {collection: {} for collection in wanted}
  for name, (*parents, leaf) in names.items():
    node = variables
    for key in parents:
      node = node.setdefault(key, {})
    node[leaf] = jnp.asarray(_from_torch(tensors.pop(name), shapes[name]))
  return variables


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
  check_choice("dtype", dtype, DTYPES)
  model = as_resnet(model, "files of weights")
  if "head" not in variables["params"]:
    raise UserError("the variables have no head, which PyTorch's loading needs")
  path = Path(path)
  if path.suffix != ".safetensors":
    raise UserError(f"{path} must end in .safetensors")
  if len(class_names) > model.num_classes:
    raise UserError(f"{len(class_names)} class names for {model.num_classes} classes")
  variables = jax.device_get(to_named(variables))
  tensors = {}
  for name, keys in torch_names(model, variables).items():
    array = _to_torch(_at(variables, keys), as_conv=name != "fc.weight")
    tensors[name] = _as_dtype(array, dtype)
    if dtype != "float32" and not np.isfinite(tensors[name]).all():
      raise UserError(f"{name} has values too large for {dtype}; save it as float32")
    if keys[-1] == "mean":
      counter = name.replace("running_mean", "num_batches_tracked")
      tensors[counter] = np.zeros((), np.int64)
  metadata = {"format": "pt", "resnet_jax_network": json.dumps(describe(model))}
  if preprocessing is not None:
    metadata["preprocessing"] = json.dumps(dataclasses.asdict(preprocessing))
  if class_names:
    metadata["class_names"] = json.dumps(list(class_names))
  if training:
    metadata["training"] = json.dumps(training)
  with replacing(str(path)) as part:
    Path(part).write_bytes(safetensors.numpy.save(tensors, metadata))


def _read(path: Path) -> tuple[dict[str, np.ndarray | None], list[str]]:
  if path.suffix != ".safetensors":
    return torch_checkpoint.read(path)
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      arrays: dict[str, np.ndarray | None] = {}
      problems = []
      for name in file.keys():  # noqa: SIM118
        try:
          arrays[name] = file.get_tensor(name)
        except (TypeError, AttributeError):  # NumPy has no such dtype.
          arrays[name] = None
          problems.append(f"{name} has dtype {file.get_slice(name).get_dtype()}")
      return arrays, problems
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error


def _check_architecture(path: Path, model: ResNet) -> None:
  """Raises `UserError` if the network that a file names is not the model."""
  saved = read_network(path)
  if saved is not None:
    check_same(saved, model, str(path))
  elif named := config_files.read_architecture(path.parent):
    check_named(named, model, str(path.parent / config_files.NAMES[0]))


def _few(names: list[str]) -> list[str]:
  """Returns the first names and the number of other names, for a message."""
  more = [f"and {len(names) - _FEW} more"] if len(names) > _FEW else []
  return [f"{name:.200}" for name in names[:_FEW]] + more


def _prefix(tensors: Collection[str]) -> str:
  """Returns the common prefix of all names, up to a dot; "" if there is none."""
  first, last = min(tensors, default=""), max(tensors, default="")
  same = [a == b for a, b in zip(first, last, strict=False)]
  common = first[: [*same, False].index(False)]
  return common[: common.rfind(".") + 1]


def _image_shape(tensors: dict[str, np.ndarray | None]) -> tuple[int, int, int]:
  """Returns (H, W, C): any height and width, and the first convolution's channels."""
  for name in ("conv1.weight", "conv1.0.weight", "stem.conv.weight"):
    kernel = tensors.get(name)
    # Images have few channels. A huge number would make other shapes huge too.
    if kernel is not None and kernel.ndim == 4 and 0 < kernel.shape[1] < 1000:
      return 32, 32, kernel.shape[1]
  return 32, 32, 3


def _at(tree: Any, keys: tuple[str, ...]) -> Any:
  for key in keys:
    tree = tree[key]
  return tree


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape in PyTorch of a parameter with our `shape`."""
  return (shape[-1], *shape[-2:-1], *shape[:-2])


def _misfits(name: str, array: np.ndarray, shape: tuple[int, ...]) -> Iterator[str]:
  """Yields the reasons why PyTorch's array cannot be converted to our `shape`."""
  if array.dtype.name not in _FLOATS:
    yield f"has dtype {array.dtype}, not one of {', '.join(_FLOATS)}"
  elif not np.isfinite(_as_dtype(array, "float32")).all():
    yield "has values that are not finite in float32"
  elif name.endswith("running_var") and (array < 0).any():
    yield "has negative values"
  needed = torch_shape(shape)
  # A matrix may be stored as a 1x1 convolution, as in timm's squeeze-excite and heads.
  if array.shape != needed and (array.ndim != 4 or array.shape != (*needed, 1, 1)):
    yield f"has shape {array.shape}, not {needed}"


def _from_torch(array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
  """Returns [out, in, height, width] as float32 [height, width, in, out], copied."""
  assert array is not None
  array = array.reshape(torch_shape(shape))
  order = (2, 3, 1, 0) if len(shape) == 4 else tuple(reversed(range(len(shape))))
  return np.array(array.transpose(order), np.float32, order="C")


def _as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
  """Returns an array in another dtype; values that are too large become infinite."""
  with np.errstate(over="ignore"):
    return array.astype(dtype, copy=False)


def _to_torch(array: np.ndarray, as_conv: bool) -> np.ndarray:
  """Inverse of `_from_torch`; matrices become 1x1 convolutions if `as_conv`."""
  order = (3, 2, 0, 1) if array.ndim == 4 else tuple(reversed(range(array.ndim)))
  array = np.ascontiguousarray(array.transpose(order))
  return array[..., None, None] if as_conv and array.ndim == 2 else array
