"""Trained weights in and out: files of torchvision's and timm's names, no PyTorch.

variables = weights.load("resnet50-11ad3fa6.pth", create_model("resnet50"))
preprocessing = weights.read_preprocessing("resnet50-11ad3fa6.pth", model)
weights.save("mine.safetensors", model, variables, preprocessing)
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn

from resnet_jax.config.preprocessing import Preprocessing, from_dict, from_timm
from resnet_jax.models.resnet import as_resnet
from resnet_jax.models.scan_layout import to_named
from resnet_jax.models.stems import CifarStem
from resnet_jax.models.variables import Variables, abstract_variables
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.weights import torch_checkpoint
from resnet_jax.weights.torch_names import canonical, torch_names

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar")
# Their first names in WordNet (Princeton University), by ILSVRC's order of synsets.
_IMAGENET_CLASSES = Path(__file__).with_name("imagenet_classes.txt")
HF_FILES = ("model.safetensors", "pytorch_model.bin")

# torchvision's files with another preprocessing than its first ones, by the hash in
# their names (torchvision/models/resnet.py, `transforms` of each entry).
_RESIZED_TO_232 = {
  *("11ad3fa6", "cd907fc2", "f82ba261"),  # ResNet-50, 101, 152 IMAGENET1K_V2
  *("1a0047aa", "110c445d", "173b62eb"),  # ResNeXt-50 32x4d, 101 32x8d, 101 64x4d
  *("9ba9bcbe", "d733dc28"),  # Wide ResNet-50-2, 101-2 IMAGENET1K_V2
}


def load(path: str | Path, model: nn.Module, head: bool = True) -> Variables:
  """Reads trained weights for a model.

  Args:
    path: `.safetensors`; `.pth`, `.pt`, `.th` as `torch.save` writes them; or
      `hf://owner/name`, see `find`.
    model: with the architecture and the number of classes of the weights.
    head: False leaves the head out, whatever number of classes it has.

  Returns:
    {"params": ..., "batch_stats": ...} of float32 arrays in the named layout, which
    `model.apply` takes.

  Raises:
    ValueError: listing everything in the file that is not as the model needs it.
    FileNotFoundError: there is no such file.
  """
  model = as_resnet(model, "files of weights")
  path = find(path)
  arrays, problems = _read(path)
  tensors: dict[str, np.ndarray | None] = {}
  for name in list(arrays):
    if canonical(name) in tensors:
      problems.append(f"{canonical(name)} is there twice, once as {name}")
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
  for name, shape in shapes.items():
    array = tensors.get(name)
    if array is not None:
      problems += [f"{name} {problem}" for problem in _misfits(array, shape)]
  if missing:
    problems.append(f"missing: {', '.join(missing)}")
  if unused:
    problems.append(f"unused: {', '.join(unused)}")
  if problems:
    raise UserError(
      f"{path} does not fit the model: {'; '.join(problems)}. Needed is a state dict "
      "of float32 tensors for this architecture and number of classes"
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
) -> None:
  """Writes weights that PyTorch loads strictly.

  Args:
    path: a `.safetensors` file; replaced if it is there.
    model: that the weights are of.
    variables: {"params": ..., "batch_stats": ...} in either layout.
    preprocessing: kept in the file, for `read_preprocessing`.
    class_names: in the order of the logits; likewise, for `read_class_names`.

  Raises:
    ValueError: `path` ends differently, or there is no head.
  """
  model = as_resnet(model, "files of weights")
  if "head" not in variables["params"]:
    raise UserError("the variables have no head, which PyTorch's loading needs")
  path = Path(path)
  if path.suffix != ".safetensors":
    raise UserError(f"{path} must end in .safetensors")
  variables = jax.device_get(to_named(variables))
  tensors = {}
  for name, keys in torch_names(model, variables).items():
    tensors[name] = _to_torch(_at(variables, keys), as_conv=name != "fc.weight")
    if keys[-1] == "mean":
      counter = name.replace("running_mean", "num_batches_tracked")
      tensors[counter] = np.zeros((), np.int64)
  metadata = {"format": "pt"}
  if preprocessing is not None:
    metadata["preprocessing"] = json.dumps(dataclasses.asdict(preprocessing))
  if class_names:
    metadata["class_names"] = json.dumps(class_names)
  with replacing(str(path)) as part:
    Path(part).write_bytes(safetensors.numpy.save(tensors, metadata))


def read_preprocessing(path: str | Path, model: nn.Module) -> Preprocessing:
  """Returns the preprocessing that belongs to a file of weights.

  It is, where there is one: what `save` put in; that of timm's `config.json` beside
  the file; torchvision's second one for its files of that kind; and otherwise
  ImageNet's usual one, without resizing for a model with a stem for small images.

  Args:
    path: as for `load`.
    model: as for `load`.

  Raises:
    ValueError: the file or the one beside it is damaged.
    FileNotFoundError: there is no such file.
  """
  path = find(path)
  text = _metadata(path).get("preprocessing")
  try:
    if text is not None:
      return from_dict(json.loads(text))
    config = path.parent / "config.json"
    if config.exists():
      timm = json.loads(config.read_text()).get("pretrained_cfg")
      if timm is not None:
        return from_timm(timm)
  except Exception as error:  # JSON of any shape: all kinds.
    raise UserError(f"the preprocessing of {path} is damaged: {error!r}") from error
  if getattr(model, "stem_cls", None) is CifarStem:
    return Preprocessing(resize=0, crop=0)
  second = path.stem.rsplit("-", 1)[-1] in _RESIZED_TO_232
  return Preprocessing(resize=232 if second else 256)


def read_class_names(path: str | Path, num_classes: int) -> tuple[str, ...]:
  """Returns the names of the classes that a file of weights is for.

  Those that `save` put in; else ImageNet's, if there are 1,000; else "class 0" ...

  Args:
    path: as for `load`.
    num_classes: of the model.

  Raises:
    ValueError: the file is damaged.
    FileNotFoundError: there is no such file.
  """
  text = _metadata(find(path)).get("class_names")
  if text is not None:
    return all_class_names(json.loads(text), num_classes)
  if num_classes == 1000:
    return tuple(_IMAGENET_CLASSES.read_text().splitlines())
  return all_class_names((), num_classes)


def all_class_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
  """Returns a name for each logit: "class 7" where there is none."""
  return *names, *(f"class {i}" for i in range(len(names), num_classes))


def find(path: str | Path) -> Path:
  """Returns the local file of a path or of `hf://owner/name[/file][@revision]`.

  Those are fetched by huggingface_hub into its cache, `model.safetensors` first.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: not a file of weights, or `hf://` without huggingface_hub.
  """
  name = str(path)
  if name.startswith("hf://"):
    return _fetch(name)
  path = Path(path)
  if not path.is_file():
    raise NotFoundError(f"no file of weights at {name!r}")
  if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
    raise UserError(
      f"{name!r} must end in .safetensors, {', '.join(TORCH_SUFFIXES)}, or be "
      "hf://owner/name"
    )
  return path


def _fetch(name: str) -> Path:
  try:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
  except ModuleNotFoundError as error:
    raise UserError(
      f"{name} needs huggingface_hub: pip install 'flax-resnet[hf]'"
    ) from error
  path, _, revision = name.removeprefix("hf://").partition("@")
  owner, _, rest = path.partition("/")
  repo, _, file = rest.partition("/")
  if not owner or not repo:
    raise UserError(f"{name!r} must be hf://owner/name, or hf://owner/name/file")
  logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # Else each retry.
  reasons = []

  def fetch(file: str) -> Path:
    found = huggingface_hub.hf_hub_download(
      f"{owner}/{repo}", file, revision=revision or None
    )
    return Path(found)

  for candidate in [file] if file else HF_FILES:
    try:
      found = fetch(candidate)
    except (HfHubHTTPError, ValueError, OSError) as error:  # The name may be wrong.
      reasons.append(f"{candidate}: {str(error).splitlines()[0]}")
      continue
    with contextlib.suppress(EntryNotFoundError):
      fetch("config.json")  # timm's preprocessing; others have none.
    return found
  raise NotFoundError(f"{name} was not found: {'; '.join(reasons)}")


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
        except (TypeError, AttributeError):  # NumPy has no such numbers.
          arrays[name] = None
          problems.append(f"{name} has dtype {file.get_slice(name).get_dtype()}")
      return arrays, problems
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error


def _metadata(path: Path) -> dict[str, str]:
  if path.suffix != ".safetensors":
    return {}
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return file.metadata() or {}
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error


def _image_shape(tensors: dict[str, np.ndarray | None]) -> tuple[int, int, int]:
  """Any size, and as many channels as the weights' first convolution takes."""
  for name in ("conv1.weight", "conv1.0.weight", "stem.conv.weight"):
    kernel = tensors.get(name)
    # More channels would be no images, and the shapes that follow are made.
    if kernel is not None and kernel.ndim == 4 and 0 < kernel.shape[1] < 1000:
      return 32, 32, kernel.shape[1]
  return 32, 32, 3


def _at(tree: Any, keys: tuple[str, ...]) -> Any:
  for key in keys:
    tree = tree[key]
  return tree


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  return (shape[-1], *shape[-2:-1], *shape[:-2])


def _misfits(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[str]:
  """Yields why PyTorch's array cannot become ours of a shape."""
  if array.dtype != np.float32:
    yield f"has dtype {array.dtype}, not float32"
  needed = _torch_shape(shape)
  # A matrix may be stored as a 1x1 convolution: timm's squeeze-excite and heads.
  if array.shape != needed and (array.ndim != 4 or array.shape != (*needed, 1, 1)):
    yield f"has shape {array.shape}, not {needed}"


def _from_torch(array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
  """Returns [out, in, height, width] as [height, width, in, out], copied."""
  assert array is not None
  array = array.reshape(_torch_shape(shape))
  order = (2, 3, 1, 0) if len(shape) == 4 else tuple(reversed(range(len(shape))))
  return np.array(array.transpose(order), order="C")


def _to_torch(array: np.ndarray, as_conv: bool) -> np.ndarray:
  """Inverse of `_from_torch`; matrices become 1x1 convolutions if `as_conv`."""
  order = (3, 2, 0, 1) if array.ndim == 4 else tuple(reversed(range(array.ndim)))
  array = np.ascontiguousarray(array.transpose(order))
  return array[..., None, None] if as_conv and array.ndim == 2 else array
