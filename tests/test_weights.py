"""Weights: saved ones come back, others' names are read, wrong files are refused."""

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from arrays import normal
from flax import linen as nn
from torch_writer import CONTAINERS, Call, Global, View, members, pack, write

from resnet_jax import create_model, weights
from resnet_jax import load as load_classifier
from resnet_jax.cli.main import main
from resnet_jax.config import ModelConfig
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.models.architectures import MODELS
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.norms import BatchNorm, GroupNorm
from resnet_jax.models.scan_layout import is_scanned, to_named
from resnet_jax.models.variables import image_channels
from resnet_jax.runtime.terminal import warn_once
from resnet_jax.weights import imagenet, location, torch_checkpoint
from resnet_jax.weights.architecture import (
  check_named,
  check_same,
  describe,
  find_settings,
)
from resnet_jax.weights.metadata import read_network

ROOT = Path(__file__).parents[1]
MODEL = create_model("resnet8", 10)
# A network with every kind of tensor that `save` writes, also those of projections.
PROJECTED = create_model("resnet8", 10, shortcut="B")


def make_variables(model, channels=3):
  """Random numbers everywhere, in the model's own layout."""
  images = jnp.zeros((1, 32, 32, channels))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
  rng = np.random.default_rng(0)

  def random(path, x):
    values = rng.normal(size=x.shape)
    is_var = path[-1].key == "var"
    return jnp.asarray(abs(values) if is_var else values, x.dtype)

  return jax.tree_util.tree_map_with_path(random, shapes)


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y, strict=True)


def small(name, features=8):
  return create_model(name, 10).clone(features=features, stage_sizes=(1, 1, 1, 1))


@pytest.fixture
def path(tmp_path):
  return tmp_path / "x.safetensors"


def named_tensors(path, model=PROJECTED):
  """Saves random variables; returns them and the tensors of the file."""
  variables = make_variables(model)
  weights.save(path, model, variables)
  return variables, safetensors.numpy.load_file(path)


@pytest.mark.parametrize(
  "model",
  [
    MODEL,
    PROJECTED,
    create_model("resnet20", scan=True),
    create_model("resnet8", norm="group"),
    create_model("resnet8", norm="frozen"),
    create_model("highway20", scan=True),
    create_model("wide_resnet16_8").clone(features=8),
    create_model("resnetv2_164", scan=True).clone(stage_sizes=(1, 2, 3)),
    small("resnet50d"),
    small("seresnet18"),
    small("resnetv2_18"),
    small("resnext50_32x4d", features=16),
  ],
  ids=range(12),
)
def test_what_is_saved_comes_back_exactly_in_the_named_layout(model, path):
  variables = make_variables(model)
  assert is_scanned(variables) == (model.scan and max(model.stage_sizes) > 1)
  weights.save(path, model, variables)
  assert_equal(weights.load(path, model), {"batch_stats": {}} | to_named(variables))


def test_one_channel_of_weights_is_one_channel_of_images(path):
  for model in (MODEL, small("resnet50d"), small("resnetv2_18")):
    variables = make_variables(model, channels=1)
    weights.save(path, model, variables)
    assert_equal(weights.load(path, model), variables)


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "resnetv2_18"])
def test_the_first_kernel_is_adapted_to_other_channels_as_timm_does(name):
  model = create_model(name, 3).clone(stage_sizes=(1, 1), features=8)
  variables = make_variables(model)
  assert weights.with_channels(variables, 3) is variables
  grey = normal(2, 16, 16, 1)
  three = model.apply(variables, jnp.concatenate(3 * [grey], -1))
  for channels in (1, 2, 6, 7):
    adapted = weights.with_channels(variables, channels)
    assert image_channels(adapted) == channels
    stem = adapted["params"]["stem"]
    kernel = stem["conv1" if name == "resnet18d" else "conv"]["kernel"]
    theirs = timm_adapted(variables, kernel.shape[2])
    np.testing.assert_allclose(kernel, theirs, rtol=1e-6, atol=0)
    if channels in (1, 6):  # Equal channels give what grey images of 3 channels do.
      ours = model.apply(adapted, jnp.concatenate(channels * [grey], -1))
      np.testing.assert_allclose(ours, three, rtol=0, atol=1e-5 * abs(three).max())
  with pytest.raises(ValueError, match="images of 1 channels cannot be adapted to 2"):
    weights.with_channels(weights.with_channels(variables, 1), 2)


def timm_adapted(variables, channels):
  """The rule of `adapt_input_conv` in timm 1.0.31, written with NumPy."""
  stem = variables["params"]["stem"]
  kernel = np.asarray(stem[min(key for key in stem if "kernel" in stem[key])]["kernel"])
  if channels == 1:
    return kernel.sum(2, keepdims=True)
  return np.concatenate(3 * [kernel], 2)[:, :, :channels] * 3 / channels


def test_a_torch_module_of_the_same_names_loads_it_strictly(path):
  torch = pytest.importorskip("torch")
  _, tensors = named_tensors(path)
  conv = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
  module = torch.nn.ModuleDict(
    {"conv1": conv, "bn1": torch.nn.BatchNorm2d(16), "fc": torch.nn.Linear(64, 10)}
  )
  keep = {k: torch.tensor(x) for k, x in tensors.items() if k.split(".")[0] in module}
  module.load_state_dict(keep, strict=True)


def test_the_head_of_a_resnetv2_is_the_convolution_that_timm_has(path):
  model = small("resnetv2_18")
  _, tensors = named_tensors(path, model)
  assert tensors["head.fc.weight"].shape == (10, 64, 1, 1)


def transformers_name(name):
  """The name in `ResNetForImageClassification` of transformers 4 and 5."""
  kinds = {"conv": "convolution", "bn": "normalization"}
  match re.split(r"[.]", name):
    case ["fc", leaf]:
      return f"classifier.1.{leaf}"
    case ["conv1" | "bn1" as part, leaf]:
      return f"resnet.embedder.embedder.{kinds[part[:-1]]}.{leaf}"
    case [stage, block, "downsample", number, leaf]:
      rest = f"shortcut.{[*kinds.values()][int(number)]}.{leaf}"
    case [stage, block, part, leaf]:
      rest = f"layer.{int(part[-1]) - 1}.{kinds[part[:-1]]}.{leaf}"
  return f"resnet.encoder.stages.{int(stage[5:]) - 1}.layers.{block}.{rest}"


def detectron_name(name):
  """The name in Detectron2's `build_resnet_backbone`, with a head."""
  match re.split(r"[.]", name):
    case ["fc", leaf]:
      return f"backbone.linear.{leaf}"
    case ["conv1" | "bn1" as part, leaf]:
      return f"backbone.stem.conv1.{'norm.' if part == 'bn1' else ''}{leaf}"
    case [stage, block, "downsample", number, leaf]:
      rest = f"shortcut.{'norm.' if number == '1' else ''}{leaf}"
    case [stage, block, part, leaf]:
      rest = f"conv{part[-1]}.{'norm.' if part[:2] == 'bn' else ''}{leaf}"
  return f"backbone.res{int(stage[5:]) + 1}.{block}.{rest}"


RENAMED = {
  "module.": lambda name: f"module.{name}",
  "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
  "model.": lambda name: f"model.{name}",
  "backbone.": lambda name: f"backbone.{name}",
  "fc.1.": lambda name: name.replace("fc.", "fc.1."),
  "linear": lambda name: name.replace("fc.", "linear."),
  "shortcut": lambda name: name.replace(".downsample.", ".shortcut."),
  "torch.compile": lambda name: f"_orig_mod.{name}",
  "prefix": lambda name: f"model.net.{name}",
  "MMPretrain": lambda name: (
    name.replace("fc.", "head.fc.") if name.startswith("fc.") else f"backbone.{name}"
  ),
  "transformers": lambda name: transformers_name(name),
  "Detectron2": lambda name: detectron_name(name),
  "all": lambda name: (
    "module." + name.replace("fc.", "linear.").replace(".downsample.", ".shortcut.")
  ),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("names", RENAMED)
def test_names_of_other_sources_load_the_same(names, container, path):
  variables, tensors = named_tensors(path)
  renamed = {RENAMED[names](name): array for name, array in tensors.items()}
  assert set(renamed) != set(tensors)
  other = path.with_name("x.pth")
  other.write_bytes(write(renamed, container))
  assert_equal(weights.load(other, PROJECTED), variables)
  safetensors.numpy.save_file(renamed, path)
  assert_equal(weights.load(path, PROJECTED), variables)


@pytest.mark.parametrize("suffix", location.TORCH_SUFFIXES)
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "ema"])
def test_wrapped_tensors_load_the_same(wrapper, suffix, path):
  variables, tensors = named_tensors(path)
  other = path.with_suffix(suffix)
  other.write_bytes(write({"epoch": 3, wrapper: tensors}, "zip"))
  assert_equal(weights.load(other, PROJECTED), variables)


def test_the_names_of_bottlenecks_in_transformers_load_the_same(path):
  model = small("resnet50")
  variables, tensors = named_tensors(path, model)
  renamed = {transformers_name(name): array for name, array in tensors.items()}
  safetensors.numpy.save_file(renamed, path)
  assert_equal(weights.load(path, model), variables)


def bit_name(name):
  """The name in transformers' `BitForImageClassification`."""
  name = re.sub(r"^stages\.(\d)\.blocks", r"bit.encoder.stages.\1.layers", name)
  name = re.sub(r"^stem\.conv", "bit.embedder.convolution", name)
  return re.sub(r"^norm", "bit.norm", re.sub(r"^head\.fc", "classifier.1", name))


def test_the_names_of_bit_in_transformers_load_the_same(path):
  model = small("resnetv2_50x1_bit", features=32)
  variables, tensors = named_tensors(path, model)
  tensors["head.fc.weight"] = tensors["head.fc.weight"][..., 0, 0]
  tensors = {bit_name(name): array for name, array in tensors.items()}
  safetensors.numpy.save_file(tensors, path)
  beside(path, {"model_type": "bit", "layer_type": "preactivation"})
  assert_equal(weights.load(path, model)["params"], variables["params"])


@pytest.mark.parametrize(
  ("kind", "key", "value"),
  [
    ("bit", "global_padding", "SAME"),
    ("bit", "embedding_dynamic_padding", True),
    ("bit", "output_stride", 16),
    ("bit", "hidden_act", "gelu"),
    ("resnet", "hidden_act", "gelu"),
    ("resnet", "downsample_in_first_stage", True),
  ],
)
def test_options_of_transformers_that_shapes_do_not_show_are_refused(
  kind, key, value, path
):
  model = small("resnetv2_50x1_bit" if kind == "bit" else "resnet50", features=32)
  safetensors.numpy.save_file(named_tensors(path, model)[1], path)  # No metadata.
  beside(path, {"model_type": kind, key: value})
  with pytest.raises(ValueError, match=f"says {key}={value!r}, which this package"):
    weights.load(path, model)


def test_one_of_two_networks_must_be_chosen(path):
  first, tensors = named_tensors(path)
  second = {name: np.asarray(array / 2, array.dtype) for name, array in tensors.items()}
  other = path.with_name("x.pth")
  other.write_bytes(write({"state_dict": tensors, "state_dict_ema": second}, "zip"))
  said = "2 networks, under 'state_dict.', 'state_dict_ema.'; choose .* by --ema"
  with pytest.raises(ValueError, match=said):
    weights.load(other, PROJECTED)
  assert_equal(weights.load(other, PROJECTED, ema=False), first)
  halved = jax.tree.map(lambda x: x / 2, first)
  assert_equal(weights.load(other, PROJECTED, ema=True), halved)
  # The same under prefixes, as Lightning stores them.
  both = {f"model.{k}": x for k, x in tensors.items()}
  both |= {f"ema_model.module.{k}": x for k, x in second.items()}
  safetensors.numpy.save_file(both, path)
  with pytest.raises(ValueError, match=r"under 'ema_model\.module\.', 'model\.'"):
    weights.load(path, PROJECTED)
  assert_equal(weights.load(path, PROJECTED, ema=True), halved)
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(ValueError, match="no network with EMA"):
    weights.load(path, PROJECTED, ema=True)


def test_names_of_strangers_take_no_time_and_give_one_error(path):
  one = np.zeros((), np.float32)
  networks = {f"a{i}.conv1.weight": one for i in range(20_000)}
  digits = 5000 * "9"
  long = {
    f"encoder.stages.{digits}.layers.0.layer.0.convolution.weight": one,
    f"layer{digits}.0.conv1.weight": one,
    f"backbone.res2.{digits}.conv1.weight": one,
  }
  for tensors, said in ((networks, "more than 100 networks"), (long, "missing: ")):
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match=said) as error:
      weights.load(path, PROJECTED)
    assert len(str(error.value)) < 3000
    with pytest.raises(ValueError, match=r"networks|does not say which network"):
      weights.complete_model(path, ModelConfig(name=""))


def test_tensors_beside_a_network_with_a_prefix_are_left_out(path, capsys):
  variables, tensors = named_tensors(path)
  renamed = {f"model.{k}": x for k, x in tensors.items()}
  renamed["loss.weight"] = np.ones(3, np.float32)
  safetensors.numpy.save_file(renamed, path)
  assert_equal(weights.load(path, PROJECTED), variables)
  assert "under 'model.' are used, not loss.weight" in capsys.readouterr().err
  weights.complete_model(path, ModelConfig(name="resnet8"))
  assert capsys.readouterr().err == ""  # Said once, when the tensors are used.


def test_a_checkpoint_within_itself_is_refused(path):
  content = {"epoch": 3}
  content["model"] = content
  other = path.with_name("x.pth")
  with zipfile.ZipFile(other, "w") as archive:
    archive.writestr("x/data.pkl", pickle.dumps(content, 2))
  with pytest.raises(ValueError, match="holds no tensors"):
    weights.load(other, PROJECTED)


@pytest.mark.parametrize("prefix", ["backbone.", "module.encoder_q.", "model.net."])
@pytest.mark.parametrize("names", RENAMED)
def test_the_prefix_of_a_module_around_the_network_is_taken_away(names, prefix, path):
  variables, tensors = named_tensors(path)
  renamed = {prefix + RENAMED[names](name): array for name, array in tensors.items()}
  safetensors.numpy.save_file(renamed, path)
  assert_equal(weights.load(path, PROJECTED), variables)


FITTING = {
  "resnet18": ["resnet18", "resnetblur18"],
  "seresnet50": ["seresnet50"],
  "resnetv2_18": ["resnetv2_18"],
  "resnet20": ["resnet20", "plain20"],
}


@pytest.mark.parametrize("name", FITTING)
def test_the_architecture_of_a_file_is_found_by_its_parameters(name, path):
  model = create_model(name, 7)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  weights.save(path, model, variables)
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(tensors, path)  # Without the name of the network.
  fitting = ", ".join(FITTING[name])
  with pytest.raises(ValueError, match=f"; it fits {fitting}\\. It must"):
    weights.load(path, create_model("resnet34", 7))
  with pytest.raises(ValueError, match="does not fit") as error:
    weights.load(path, create_model(name, 8))
  assert "it fits" not in str(error.value)  # Only the head differs.
  unknown = ModelConfig(name="")
  if FITTING[name] == [name]:
    assert weights.complete_model(path, unknown) == ModelConfig(name, num_classes=7)
  else:
    with pytest.raises(ValueError, match=f"it is for, and may be for {fitting}; name"):
      weights.complete_model(path, unknown)
  torchvisions = path.rename(path.with_name(f"{name}-0123abcd.safetensors"))
  found = weights.complete_model(torchvisions, unknown)
  assert (found.name, found.num_classes) == (name, 7)
  (path.parent / "config.json").write_text(
    json.dumps({"architecture": f"{name}.a1_in1k"})
  )
  torchvisions.rename(path)
  assert weights.complete_model(path, unknown).name == name


@pytest.mark.parametrize("name", ["resnet50", "resnetv1_50"])
def test_the_config_of_transformers_chooses_between_equal_shapes(name, path):
  model = create_model(name, 3)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  folder = path.parent / "theirs"
  weights.save_folder(folder, "transformers", model, variables, Preprocessing())
  path = folder / "model.safetensors"
  safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)
  assert weights.complete_model(folder, ModelConfig(name="")).name == name
  other = "resnetv1_50" if name == "resnet50" else "resnet50"
  with pytest.raises(ValueError, match=f"a network such as {name}, not of {other}"):
    weights.load(folder, create_model(other, 3))


def test_weights_in_several_files_are_read(path):
  variables, tensors = named_tensors(path)
  path.unlink()
  folder, names = path.parent, sorted(tensors)
  files = {"a.safetensors": names[:5], "b-2.safetensors": names[5:]}
  for file, part in files.items():
    safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
  weight_map = {name: file for file, part in files.items() for name in part}
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  for source in (folder, index):
    assert_equal(weights.load(source, PROJECTED), variables)
  safetensors.numpy.save_file(tensors, folder / "a.safetensors")
  with pytest.raises(ValueError, match="is in two files"):
    weights.load(folder, PROJECTED)
  for wrong in ("", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../x"}}'):
    index.write_text(wrong)
    with pytest.raises(ValueError, match="must be a JSON object whose weight_map"):
      weights.load(folder, PROJECTED)
  index.write_text('{"weight_map": {"a": "gone.safetensors"}}')
  with pytest.raises(ValueError, match=r"gone\.safetensors is no safetensors file"):
    weights.load(folder, PROJECTED)


def test_a_1x1_convolution_is_a_head(path):
  variables, tensors = named_tensors(path)
  tensors["fc.weight"] = tensors["fc.weight"][..., None, None]
  safetensors.numpy.save_file(tensors, path)
  assert_equal(weights.load(path, PROJECTED), variables)


@pytest.mark.parametrize("container", CONTAINERS)
def test_everything_wrong_is_in_one_message(container, path):
  _, tensors = named_tensors(path)
  tensors["bn1.bias"] = tensors["bn1.bias"].astype(np.int16)
  tensors["fc.weight"] = tensors["fc.weight"].T
  tensors["bn1.weight"] = View(np.zeros(16, np.float32), 1, (16,), (1,))
  del tensors["fc.bias"], tensors["conv1.weight"]
  tensors |= {"extra": np.zeros(1), "another": np.zeros(1)}
  namespace = Call(Global("argparse", "Namespace"))
  history = Call(Global("collections", "deque"), [])
  content = {"args": namespace, "state_dict": tensors, "history": history}
  other = path.with_name("x.pth")
  other.write_bytes(write(content, container))
  with pytest.raises(ValueError) as error:
    weights.load(other, PROJECTED)
  said = str(error.value)
  assert "\n" not in said
  for part in [
    *("argparse.Namespace", "collections.deque"),
    *("bn1.bias has dtype int16", r"fc.weight has shape \(64, 10\)", "bn1.weight"),
    *("missing: fc.bias, conv1.weight", "unused: extra, another"),
  ]:
    assert re.search(part, said), part


@pytest.mark.parametrize(
  ("dtype", "size"), [("I16", 2), ("I64", 8), ("BOOL", 1), ("F8_E4M3", 1)]
)
def test_every_wrong_dtype_in_safetensors_is_named(dtype, size, path):
  _, tensors = named_tensors(path)
  safetensors.numpy.save_file(tensors | {"extra": np.zeros(1)}, path)
  data = path.read_bytes()
  end = 8 + int.from_bytes(data[:8], "little")
  header = json.loads(data[8:end])
  for name in ("bn1.bias", "fc.bias"):
    first, last = header[name]["data_offsets"]
    header[name] |= {"dtype": dtype, "shape": [(last - first) // size]}
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
  with pytest.raises(ValueError) as error:
    weights.load(path, PROJECTED)
  for part in ("fc.bias has dtype", "bn1.bias has dtype", "unused: extra"):
    assert part in str(error.value)


def write_file(tensors, path):
  if path.suffix == ".safetensors":
    safetensors.numpy.save_file(tensors, path)
  else:
    path.write_bytes(write(tensors, "zip"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float64"])
def test_other_floats_are_read_as_float32(dtype, suffix, path):
  variables, tensors = named_tensors(path)
  is_float = {name: array.dtype == np.float32 for name, array in tensors.items()}
  others = {k: x.astype(dtype) if is_float[k] else x for k, x in tensors.items()}
  path = path.with_suffix(suffix)
  write_file(others, path)
  expected = jax.tree.map(
    lambda x: jnp.asarray(np.asarray(x).astype(dtype).astype(np.float32)), variables
  )
  assert_equal(weights.load(path, PROJECTED), expected)
  for value, said in ((np.inf, "conv1.weight"), (np.nan, "fc.bias")):
    others[said].flat[1] = value
    write_file(others, path)
    with pytest.raises(ValueError, match=f"{said} has values that are not finite in"):
      weights.load(path, PROJECTED)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_numbers_beyond_float32_are_refused(suffix, path):
  _, tensors = named_tensors(path)
  tensors["fc.bias"] = tensors["fc.bias"].astype(np.float64)
  tensors["fc.bias"][3] = -1e39
  path = path.with_suffix(suffix)
  write_file(tensors, path)
  with pytest.raises(ValueError, match=r"fc\.bias has values that are not finite in"):
    weights.load(path, PROJECTED)


def test_float16_takes_half_the_bytes_and_refuses_what_it_cannot_hold(path):
  variables = make_variables(PROJECTED)
  weights.save(path, PROJECTED, variables)
  size = path.stat().st_size
  weights.save(path, PROJECTED, variables, dtype="float16")
  assert path.stat().st_size < 0.6 * size
  tensors = safetensors.numpy.load_file(path)
  dtypes = {str(x.dtype) for k, x in tensors.items() if "batches_tracked" not in k}
  assert dtypes == {"float16"}
  rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), variables)
  assert_equal(weights.load(path, PROJECTED), rounded)
  with pytest.raises(ValueError, match="dtype='float8' is unknown; did you mean float"):
    weights.save(path, PROJECTED, variables, dtype="float8")
  variables["params"]["head"]["bias"] += 1e5
  before = path.read_bytes()
  with pytest.raises(ValueError, match=r"fc\.bias has values too large for float16"):
    weights.save(path, PROJECTED, variables, dtype="float16")
  assert path.read_bytes() == before


def test_a_file_without_the_numbers_of_its_tensors_is_refused(path):
  _, tensors = named_tensors(path)
  parts = members(tensors, "legacy") | {"keys": pickle.dumps([]), "numbers": b""}
  other = path.with_name("x.pth")
  other.write_bytes(pack(parts, "legacy"))
  with pytest.raises(ValueError):
    weights.load(other, PROJECTED)


def test_two_tensors_of_one_name_are_refused(path):
  _, tensors = named_tensors(path)
  tensors["module.fc.bias"] = tensors["fc.bias"]
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(ValueError, match=r"fc\.bias appears twice, once as module\.fc"):
    weights.load(path, PROJECTED)


def test_a_file_for_another_number_of_classes_is_refused(path):
  named_tensors(path)
  with pytest.raises(ValueError, match=r"fc\.weight has shape \(10, 64\), not \(7, 64"):
    weights.load(path, create_model("resnet8", 7, shortcut="B"))
  with pytest.raises(ValueError, match="its head has 10 classes, not 7: new_head=True"):
    weights.load(path, create_model("resnet8", 7, shortcut="B"))


@pytest.mark.parametrize("has_head", [True, False])
def test_a_new_head_is_made_where_it_is_asked_for(has_head, path, capsys):
  variables, tensors = named_tensors(path)
  if not has_head:
    del tensors["fc.weight"], tensors["fc.bias"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match="it has no head: new_head=True makes a new"):
      weights.load(path, PROJECTED)
  model = create_model("resnet8", 7, shortcut="B")
  found = weights.load(path, model, new_head=True)
  assert "the head for 7 classes is new, and not trained" in capsys.readouterr().err
  head = found["params"].pop("head")
  assert head["kernel"].shape == (64, 7) and not head["bias"].any()
  assert 0.9 < jnp.abs(head["kernel"]).max() * 8 <= 1.0001  # PyTorch's default.
  variables["params"].pop("head")
  assert_equal(found, variables)


def test_another_number_of_classes_is_a_new_head(path, tmp_path, capsys):
  names = [f"name{i}" for i in range(10)]
  weights.save(path, MODEL, make_variables(MODEL), None, names, training={"steps": 3})
  found = load_classifier(str(path), num_classes=12)
  assert found.class_names == tuple(f"class {i}" for i in range(12))
  assert found.variables["params"]["head"]["kernel"].shape == (64, 12)
  for target in (tmp_path / "new.safetensors", tmp_path / "run"):
    main(["convert", f"--weights={path}", "--num-classes=12", f"--out={target}"])
    assert "head for 12 classes is new" in capsys.readouterr().err
    again = load_classifier(str(target))
    assert again.class_names == tuple(f"class {i}" for i in range(12))
    assert_equal(again.variables, found.variables)
  assert weights.read_training(tmp_path / "new.safetensors") == {}
  same = load_classifier(str(path), num_classes=10)
  assert same.class_names == tuple(names) and not capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.pth", "x", "x.safetensors.gz"])
def test_another_suffix_is_refused_before_anything_is_written(name, tmp_path):
  with pytest.raises(ValueError, match=r"must end in \.safetensors"):
    weights.save(tmp_path / name, MODEL, make_variables(MODEL))
  assert not list(tmp_path.iterdir())


def test_nothing_half_written_stays(path, monkeypatch):
  variables, _ = named_tensors(path)
  before = path.read_bytes()

  write = Path.write_bytes

  def fail(file, data):
    write(file, data[: len(data) // 2])
    raise OSError("no space")

  monkeypatch.setattr(Path, "write_bytes", fail)
  with pytest.raises(OSError, match="no space"):
    weights.save(path, PROJECTED, variables)
  assert path.read_bytes() == before
  assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
  ("name", "value", "said"),
  [
    ("conv1.weight", np.nan, "conv1.weight has values that are not finite"),
    ("fc.bias", np.inf, "fc.bias has values that are not finite"),
    ("bn1.running_mean", -np.inf, "bn1.running_mean has values that are not finite"),
    ("layer1.0.bn2.running_var", np.nan, "bn2.running_var has values that are not"),
    ("layer1.0.bn2.running_var", -1, "layer1.0.bn2.running_var has negative values"),
  ],
)
def test_values_that_are_not_finite_are_refused(name, value, said, suffix, path):
  _, tensors = named_tensors(path)
  tensors[name].flat[1] = value
  path = path.with_name(f"other{suffix}")
  write_file(tensors, path)
  with pytest.raises(ValueError, match=re.escape(said)) as error:
    weights.load(path, PROJECTED)
  assert str(error.value).count("has ") == 1


def test_many_names_that_do_not_fit_are_a_short_message(path):
  _, tensors = named_tensors(path, create_model("resnet20", shortcut="B"))
  safetensors.numpy.save_file({f"x_{k}": x for k, x in tensors.items()}, path)
  with pytest.raises(ValueError) as error:
    weights.load(path, PROJECTED)
  said = str(error.value)
  assert len(said) < 800
  assert "missing: " in said and "unused: " in said
  assert said.count(" more") == 2
  whole = {name: array.astype(np.int16) for name, array in tensors.items()}
  safetensors.numpy.save_file(whole, path)
  with pytest.raises(ValueError) as error:
    weights.load(path, create_model("resnet20", shortcut="B"))
  said = str(error.value)
  assert said.count("has dtype int16") == 5 and len(said) < 800


def test_the_counter_of_averaged_weights_is_ignored(path):
  variables, tensors = named_tensors(path)
  averaged = {f"module.{name}": array for name, array in tensors.items()}
  safetensors.numpy.save_file(averaged | {"n_averaged": np.array(3)}, path)
  assert_equal(weights.load(path, PROJECTED), variables)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_read_like_a_repository(name, path):
  variables, tensors = named_tensors(path)
  folder = path.parent / "copy"
  folder.mkdir()
  assert weights.is_run(folder) and not weights.is_run(path)
  with pytest.raises(FileNotFoundError, match=r"'.*copy' holds no weights: no mod"):
    weights.load(folder, PROJECTED)
  if name.endswith(".bin"):
    (folder / name).write_bytes(write(tensors, "zip"))
  else:
    path.rename(folder / name)
  beside(folder / name, {"pretrained_cfg": TIMM, "label_names": [*"abcdefghij"]})
  assert not weights.is_run(folder)
  assert_equal(weights.load(folder, PROJECTED), variables)
  assert weights.read_preprocessing(folder, PROJECTED).mean == (0.5, 0.4, 0.3)
  assert weights.read_class_names(folder, 10) == tuple("abcdefghij")
  (folder / "checkpoints").mkdir()  # Weights of a run, in its own directory.
  assert weights.is_run(folder)


@pytest.mark.parametrize("name", ["x.npz", "x", "x.hdf5"])
def test_files_of_another_kind_are_refused(name, tmp_path):
  (tmp_path / name).write_bytes(b"x")
  for function in (weights.load, weights.read_preprocessing):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
      function(tmp_path / name, MODEL)


@pytest.mark.parametrize("function", [weights.load, weights.read_preprocessing])
def test_a_missing_file_is_named(function, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no file of weights at .*no\.pth"):
    function(tmp_path / "no.pth", MODEL)


# Preprocessing.

TIMM = {
  "input_size": [3, 224, 224],
  "mean": [0.5, 0.4, 0.3],
  "std": [0.1, 0.2, 0.3],
  "crop_pct": 0.95,
  "interpolation": "bicubic",
}


def test_preprocessing_that_was_saved_comes_back(path):
  saved = Preprocessing((0.1,), (0.2,), 40, 32, "bicubic")
  weights.save(path, MODEL, make_variables(MODEL), saved)
  (path.parent / "config.json").write_text(json.dumps({"pretrained_cfg": TIMM}))
  assert weights.read_preprocessing(path, MODEL) == saved


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_preprocessing_of_timm_is_read_beside_the_file(name, path):
  named_tensors(path)
  path = path.rename(path.with_name(name))
  (path.parent / "config.json").write_text(json.dumps({"pretrained_cfg": TIMM}))
  expected = Preprocessing((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 235, 224, "bicubic")
  assert weights.read_preprocessing(path, MODEL) == expected


@pytest.mark.parametrize(
  ("name", "model", "resize", "crop"),
  [
    ("resnet50-11ad3fa6.pth", "resnet50", 232, 224),
    ("wide_resnet101_2-d733dc28.pth", "wide_resnet101_2", 232, 224),
    ("resnext101_64x4d-173b62eb.pth", "resnext101_64x4d", 232, 224),
    ("resnet50-0676ba61.pth", "resnet50", 256, 224),
    ("resnet18-f37072fd.pth", "resnet18", 256, 224),
    ("resnet20-12fca82f.th", "resnet20", 0, 0),
  ],
)
def test_preprocessing_without_a_word_in_the_file(name, model, resize, crop, tmp_path):
  (tmp_path / name).write_bytes(b"x")
  (tmp_path / "config.json").write_text("{}")  # Of another library.
  expected = Preprocessing(resize=resize, crop=crop)
  assert weights.read_preprocessing(tmp_path / name, create_model(model)) == expected


LARGER = TIMM | {"test_input_size": [3, 288, 288]}
MEAN = Preprocessing.mean


def beside(path, config, name="config.json"):
  """Writes a config beside a file of weights; returns the file."""
  text = config if isinstance(config, str) else json.dumps(config)
  (path.parent / name).write_text(text, "latin-1")
  if not path.exists():
    safetensors.numpy.save_file({"a": np.zeros(1)}, path)
  return path


@pytest.mark.parametrize(
  ("config", "resize", "crop", "interpolation", "mean"),
  [
    ({"architecture": "resnet8", **TIMM}, 235, 224, "bicubic", (0.5, 0.4, 0.3)),
    ({"pretrained_cfg": {"mean": [0.5]}}, 256, 224, "bicubic", (0.5,)),
    ({"pretrained_cfg": {"crop_pct": None, "std": [0.5]}}, 256, 224, "bicubic", MEAN),
    (
      {"pretrained_cfg": LARGER | {"test_crop_pct": 1.0}},
      *(288, 288, "bicubic", (0.5, 0.4, 0.3)),
    ),
    ({"pretrained_cfg": LARGER}, 303, 288, "bicubic", (0.5, 0.4, 0.3)),
  ],
  ids=["first form", "defaults", "null", "test size and share", "test size"],
)
def test_every_form_of_timms_config_is_read(
  config, resize, crop, interpolation, mean, path, capsys
):
  found = weights.read_preprocessing(beside(path, config), create_model("resnet18"))
  size = found.resize, found.crop, found.interpolation
  assert size == (resize, crop, interpolation) and found.mean == mean
  assert ("its test size of 288 pixels" in capsys.readouterr().err) == (crop == 288)


@pytest.mark.parametrize(
  ("change", "expected", "said"),
  [
    ({"crop_mode": "squash"}, (235, 224, "bicubic"), "crop_mode='squash'"),
    ({"crop_mode": "border"}, (235, 224, "bicubic"), "crop_mode='border'"),
    ({"input_size": [3, 192, 256]}, (202, 192, "bicubic"), "images of 192 x 256"),
    ({"interpolation": "lanczos"}, (235, 224, "bicubic"), "interpolation='lanczos'"),
    ({"interpolation": "random"}, (235, 224, "bicubic"), "interpolation='random'"),
  ],
)
def test_what_is_not_available_of_timms_preprocessing_is_said(
  change, expected, said, path, capsys
):
  beside(path, {"pretrained_cfg": TIMM | change})
  found = weights.read_preprocessing(path, MODEL)
  assert (found.resize, found.crop, found.interpolation) == expected
  (line,) = capsys.readouterr().err.splitlines()
  assert said in line and "config.json" in line and line.startswith("warning: ")


TRANSFORMERS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize(
  ("values", "expected", "said"),
  [
    ({"size": 224, "crop_pct": 0.875, "resample": 3}, (256, 224, "bicubic"), ""),
    (
      {"size": {"shortest_edge": 224}, "crop_pct": 0.95, "resample": 2},
      *((235, 224, "bilinear"), ""),
    ),
    (
      {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "resample": 2,
      },
      *((256, 224, "bilinear"), ""),
    ),
    ({"size": {"height": 224, "width": 224}}, (224, 224, "bicubic"), "whole images"),
    ({"size": 384, "crop_pct": 1.0}, (384, 384, "bicubic"), "whole images"),
    ({"size": 224, "crop_size": 224, "resample": 1}, (224, 224, "bicubic"), "lanczos"),
  ],
)
def test_preprocessing_of_transformers_is_read(values, expected, said, path, capsys):
  beside(path, {"id2label": {"0": "a"}})
  beside(path, TRANSFORMERS | values, "preprocessor_config.json")
  found = weights.read_preprocessing(path, MODEL)
  assert found == Preprocessing((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), *expected)
  assert said in capsys.readouterr().err


def test_pixels_that_transformers_does_not_normalise(path):
  beside(path, TRANSFORMERS | {"do_normalize": False}, "preprocessor_config.json")
  found = weights.read_preprocessing(path, MODEL)
  assert (found.mean, found.std) == ((0.0,), (1.0,))


DEEP = "[" * 100_000


@pytest.mark.parametrize(
  "config",
  ["", "{", "[]", "3", "\xff", DEEP, '{"a": 1} // comment', "\xef\xbb\xbf[]"],
  ids=range(8),
)
def test_a_config_of_something_else_is_ignored_with_a_word(config, path, capsys):
  beside(path, config)
  assert weights.read_preprocessing(path, MODEL) == Preprocessing(resize=0, crop=0)
  assert weights.read_class_names(path, 2) == ("class 0", "class 1")
  (line,) = capsys.readouterr().err.splitlines()
  assert line == f"warning: {path.parent}/config.json is no JSON object, and is ignored"


def test_a_config_with_a_byte_order_mark_is_read(path):
  beside(path, "\xef\xbb\xbf" + json.dumps({"pretrained_cfg": TIMM}))
  assert weights.read_preprocessing(path, MODEL).resize == 235


@pytest.mark.parametrize(
  "config",
  [
    *('{"pretrained_cfg": 3}', '{"pretrained_cfg": {}} // comment'),
    *(
      json.dumps({"pretrained_cfg": TIMM | change})
      for change in (
        *({"crop_pct": 0}, {"crop_pct": "x"}, {"crop_pct": float("nan")}),
        *({"input_size": []}, {"input_size": [float("inf")]}, {"input_size": ["x"]}),
        *({"mean": 3}, {"std": 3}, {"mean": "abc"}, {"interpolation": 3}),
        *({"input_size": [3, 30000, 30000]}, {"mean": [124]}, {"std": [58]}),
      )
    ),
  ],
  ids=range(15),
)
def test_a_damaged_config_of_timm_is_named(config, path):
  beside(path, config)
  with pytest.raises(ValueError, match=r"/config\.json"):
    weights.read_preprocessing(path, MODEL)


@pytest.mark.parametrize(
  "kept",
  [
    *("{", "[]", "3", "null", DEEP, "{}", '{"mean": [0], "std": [1], "other": 1}'),
    '{"mean": "abc", "std": [1]}',
    '{"mean": [0], "std": [1], "interpolation": 3}',
    '{"mean": [124], "std": [1]}',
    '{"mean": [0], "std": [58]}',
    '{"mean": [true], "std": [1]}',
    *(
      f'{{"mean": [0], "std": [1], "resize": 0, "crop": {crop}}}'
      for crop in ('"x"', "30000", "10000000", "true", "-1", "32.5", "null", "1e3")
    ),
  ],
  ids=range(20),
)
def test_damaged_preprocessing_in_the_file_is_named(kept, path):
  safetensors.numpy.save_file({"a": np.zeros(1)}, path, {"preprocessing": kept})
  with pytest.raises(ValueError, match=r"preprocessing of .* is damaged") as error:
    weights.read_preprocessing(path, MODEL)
  assert len(str(error.value)) < 500


def test_a_mean_of_pixels_up_to_255_is_refused():
  for mean, std in (((124.0,), (0.2,)), ((0.5,), (58.0,)), ((-0.1,), (1.0,))):
    with pytest.raises(ValueError, match=r"as pixels are scaled to \[0, 1\]"):
      Preprocessing(mean, std)
  Preprocessing((0.0,), (1.0,))


def test_preprocessing_of_a_damaged_file_is_refused(path):
  path.write_bytes(b"x" * 99)
  with pytest.raises(ValueError, match="is no safetensors file, or damaged"):
    weights.read_preprocessing(path, MODEL)


# Class names.


@pytest.mark.parametrize(
  "config",
  [
    {"architecture": "x", "pretrained_cfg": {}, "label_names": ["n0", "n1", "n2"]},
    {"pretrained_cfg": {"label_names": ["n0", "n1", "n2"]}},
    {"architecture": "x", "labels": ["n0", "n1", "n2"]},
    {"pretrained_cfg": {}, "label_names": {"2": "n2", "0": "n0", "1": "n1"}},
    {"id2label": {"0": "n0", "1": "n1", "2": "n2"}},
  ],
  ids=["timm", "inner", "first form", "numbered", "transformers"],
)
def test_class_names_are_read_beside_the_file(config, path):
  beside(path, config)
  assert weights.read_class_names(path, 3) == ("n0", "n1", "n2")


def test_names_that_timm_leaves_out_are_numbers(path):
  beside(path, {"pretrained_cfg": {}, "label_names": {"0": "a", "2": "c"}})
  assert weights.read_class_names(path, 3) == ("a", "class 1", "c")


def test_imagenets_names_are_for_weights_of_which_nothing_else_is_said(path, capsys):
  nameless = {"id2label": {str(i): f"LABEL_{i}" for i in range(1000)}}
  for config in ({"pretrained_cfg": {}}, {}, nameless):
    assert weights.read_class_names(beside(path, config), 1000)[281] == "tabby"
  own = {"pretrained_cfg": {}, "label_names": [f"n{i}" for i in range(1000)]}
  assert weights.read_class_names(beside(path, own), 1000)[281] == "n281"
  assert capsys.readouterr().err == ""
  own["label_names"] = own["label_names"][:7]
  assert weights.read_class_names(beside(path, own), 1000)[281] == "class 281"
  assert "names 7 classes, not 1000: they are ignored" in capsys.readouterr().err


def test_imagenets_ids_are_in_the_order_of_its_names():
  ids, names = imagenet.synsets(), imagenet.class_names()
  assert list(ids) == sorted(set(ids)) and len(ids) == len(set(names)) == 1000
  # WordNet's names of the first class, the last one, and some in between.
  known = {"n01440764": "tench", "n15075141": "toilet tissue", "n02123045": "tabby"}
  known |= {"n02979186": "cassette player", "n03417042": "garbage truck"}
  assert {synset: names[ids.index(synset)] for synset in known} == known


@pytest.mark.parametrize(
  "kept",
  [
    *("[1", "null", DEEP, "1", '"abc"', "{}", '{"0": "a"}', '["a", 1, "c"]'),
    *('[["a"], ["b"], ["c"]]', "[true, false, null]", json.dumps([*"abcdefghi"])),
  ],
  ids=range(11),
)
def test_class_names_that_are_none_are_refused(kept, path):
  safetensors.numpy.save_file({"a": np.zeros(1)}, path, {"class_names": kept})
  with pytest.raises(ValueError, match=r"class_names .*x\.safetensors") as error:
    weights.read_class_names(path, 3)
  assert len(str(error.value)) < 500


def test_runs_with_more_logits_than_classes_have_some_names(path):
  weights.save(path, MODEL, make_variables(MODEL), class_names=("a", "b"))
  assert weights.read_class_names(path, 10)[:3] == ("a", "b", "class 2")
  assert weights.known_class_names(path, 10) == ("a", "b")
  with pytest.raises(ValueError, match="11 class names for 10 classes"):
    weights.save(path, MODEL, make_variables(MODEL), class_names=[*"abcdefghijk"])


@pytest.mark.parametrize("names", [{"0": 1}, 3, [1, 2, 3], "abc"])
def test_names_beside_the_file_that_are_none_are_refused(names, path):
  beside(path, {"pretrained_cfg": {}, "label_names": names})
  with pytest.raises(ValueError, match=r"label_names in .*config\.json must name"):
    weights.read_class_names(path, 3)


# The architecture.


class OwnBlock(BasicBlock):
  pass


@pytest.mark.parametrize(
  ("saved", "other", "said"),
  [
    ("plain20", "resnet20", "from plain20, not from resnet20: its shortcut is 'none'"),
    ("resnet20", "plain20", "from resnet20, not from plain20"),
    ("resnetv1_50", "resnet50", "from resnetv1_50, not from resnet50: its block is"),
    (
      create_model("resnet18").clone(norm_cls=partial(BatchNorm, epsilon=1e-3)),
      *("resnet18", "from an unnamed network, not from resnet18: its norm is 'BatchN"),
    ),
    ("resnet8", create_model("resnet8").clone(block_cls=OwnBlock), "not 'OwnBlock'"),
    (
      create_model("resnet8").clone(norm_cls=partial(GroupNorm, num_groups=4)),
      *(create_model("resnet8", norm="group"), r"num_groups=4\)', not 'group'"),
    ),
  ],
  ids=["plain", "residual", "stride", "epsilon", "own block", "groups"],
)
def test_another_network_with_the_same_parameters_is_refused(saved, other, said):
  saved, other = (
    create_model(model) if isinstance(model, str) else model for model in (saved, other)
  )
  # As a file stores it.
  description = json.loads(json.dumps(describe(saved)))
  check_same(description, saved, "x")
  with pytest.raises(ValueError, match=said):
    check_same(description, other, "x")


def test_what_changes_training_only_is_no_other_network():
  model = create_model("resnet18")
  for other in (
    create_model("resnet18", 7, norm="frozen", dtype=jnp.bfloat16),
    create_model("resnet18", norm="unbiased_batch", scan=True, zero_init_residual=True),
    model.clone(norm_cls=partial(BatchNorm, momentum=0.99, epsilon=1e-5), dropout=0.3),
    model.clone(norm_cls=partial(nn.BatchNorm, momentum=0.9), features=32),
    model.clone(norm_cls=partial(BatchNorm, axis_name="batch", dtype=jnp.bfloat16)),
    model.clone(block_cls=partial(BasicBlock, expansion=1), frozen=("stem",)),
  ):
    check_same(describe(model), other, "x")
    check_same(describe(other), model, "x")


def test_every_architecture_is_described_by_itself():
  names = [describe(create_model(name))["name"] for name in MODELS]
  assert names == list(MODELS)


def test_a_file_is_loaded_as_the_network_it_was_saved_from(path):
  plain = create_model("plain8")
  _, tensors = named_tensors(path, plain)
  for head in (True, False):
    with pytest.raises(ValueError, match=r"x\.safetensors was saved from plain8, not"):
      weights.load(path, create_model("resnet8"), head)
  safetensors.numpy.save_file(tensors, path)  # As older versions did.
  weights.load(path, create_model("resnet8"))


@pytest.mark.parametrize("kept", ["[", "null", "[]", "3", DEEP])
def test_a_damaged_name_of_the_network_is_refused(kept, path):
  _, tensors = named_tensors(path, MODEL)
  safetensors.numpy.save_file(tensors, path, {"resnet_jax_network": kept})
  with pytest.raises(ValueError, match=r"resnet_jax_network of .* is damaged"):
    weights.load(path, MODEL)
  safetensors.numpy.save_file(tensors, path, {"resnet_jax_network": '{"norm": 3}'})
  with pytest.raises(ValueError, match="not from resnet8: its norm is 3"):
    weights.load(path, MODEL)


@pytest.mark.parametrize(
  ("config", "said"),
  [
    (
      {"architecture": "ecaresnet50d_pruned"},
      "of 'ecaresnet50d_pruned', which is not among",
    ),
    ({"architecture": "resnest50d", **TIMM}, "of 'resnest50d', which is not among"),
    (
      {"architecture": "resnet20", "pretrained_cfg": TIMM},
      "of 'resnet20', not of resnet8",
    ),
    ({"pretrained_cfg": TIMM | {"architecture": "resnet50"}}, "of 'resnet50', not of"),
    ({"architecture": "resnet8", "model_args": {"act_layer": "silu"}}, "act_layer"),
    ({"architecture": "resnet8", "model_args": 3}, "was made with 3"),
    ({"architecture": "resnet8", "global_pool": "max"}, "global_pool"),
  ],
  ids=range(7),
)
def test_another_architecture_than_timm_names_is_refused(config, said, path):
  named_tensors(path, MODEL)
  other = path.with_name("x.pth")
  other.write_bytes(write(safetensors.numpy.load_file(path), "zip"))
  beside(other, config)
  with pytest.raises(ValueError, match=rf"/config\.json says that the .*{said}"):
    weights.load(other, MODEL)
  weights.load(path, MODEL)  # This file itself names its network.
  harmless = {"drop_rate": 0.1, "num_classes": 10, "global_pool": "avg"}
  beside(other, {"architecture": "resnet8.tag", "model_args": harmless})
  weights.load(other, MODEL)


@pytest.mark.parametrize(
  ("name", "own"),
  [
    *(("tv_resnet50", "resnet50"), ("ssl_resnext50_32x4d", "resnext50_32x4d")),
    *(("gluon_resnet50_v1b", "resnet50"), ("gluon_resnet101_v1d", "resnet101d")),
    ("gluon_resnet50_v1c", "resnet50c"),
  ],
)
def test_timms_former_names_are_known(name, own):
  check_named(name, create_model(own), "x")
  with pytest.raises(ValueError, match=f"of {name!r}, not of resnet18"):
    check_named(name, create_model("resnet18"), "x")


def test_shapes_tell_of_another_stem_than_timms():
  check_named("resnet18", create_model("resnet18", 10, stem="cifar"), "x")


# The network that a file names.


@pytest.mark.parametrize(
  ("model", "settings"),
  [
    (create_model("plain20", 7), {"name": "plain20"}),
    (create_model("resnetv2_18", 5), {"name": "resnetv2_18"}),
    (
      create_model("resnet8", 3, shortcut="B", norm="group"),
      {"name": "resnet8", "shortcut": "B", "norm": "group"},
    ),
    (create_model("resnet18", 4, stem="cifar"), {"name": "resnet18", "stem": "cifar"}),
    (create_model("resnet8", norm="frozen"), {"name": "resnet8"}),
  ],
  ids=["plain", "other head", "shortcut and norm", "stem", "training only"],
)
def test_the_network_of_a_file_is_known(model, settings, path):
  model = model.clone(features=8)  # Quicker; the next test covers the sizes.
  weights.save(path, model, make_variables(model))
  found = weights.complete_model(path, ModelConfig(name=""))
  assert found == ModelConfig(num_classes=model.num_classes, **settings)
  given = ModelConfig(name="resnet50", num_classes=9, dtype="float32")
  assert weights.complete_model(path, given) == given


def test_every_architecture_is_found_by_what_it_computes():
  for name in MODELS:
    described = json.loads(json.dumps(describe(create_model(name))))
    assert find_settings(described) == {"name": name}
    # For example, plain20 is found as resnet20 without shortcuts, and resnet50s as
    # resnet50c, whose stem is narrower.
    unnamed = find_settings(described | {"name": ""})
    assert describe(create_model(**unnamed)) | {"name": name} == described


@pytest.mark.parametrize(
  "kept",
  [
    *({}, {"name": "resnet8"}, {"name": ["resnet8"]}, describe(MODEL) | {"stem": []}),
    describe(MODEL) | {"block": "OwnBlock"},
    describe(MODEL) | {"stage_sizes": [1, 1]},
    describe(MODEL) | {"norm": {"a": 1}},
  ],
  ids=range(7),
)
def test_a_file_of_no_network_of_the_package_needs_the_model(kept, path):
  _, tensors = named_tensors(path, MODEL)
  safetensors.numpy.save_file(tensors, path, {"resnet_jax_network": json.dumps(kept)})
  with pytest.raises(ValueError, match=r"x\.safetensors does not say which .*--model"):
    load_classifier(str(path))


@pytest.mark.parametrize("shape", [(), (2, 5), (0,)])
def test_a_damaged_head_is_no_number_of_classes(shape, path):
  _, tensors = named_tensors(path, MODEL)
  tensors["fc.bias"] = np.zeros(shape, np.float32)
  network = {"resnet_jax_network": json.dumps(describe(MODEL))}
  safetensors.numpy.save_file(tensors, path, network)
  with pytest.raises(ValueError, match=r"fc\.bias has shape"):
    load_classifier(str(path))


# The weights in the package.


@pytest.mark.parametrize("name", weights.names())
def test_weights_of_the_package_say_what_they_are(name):
  file = weights.find(name)
  assert file.stem == name and file.parent.name == "trained"
  assert file.stat().st_size < 700_000
  with safetensors.safe_open(file, framework="numpy") as content:
    metadata, keys = content.metadata(), list(content.keys())
    dtypes = {content.get_slice(key).get_dtype() for key in keys}
  assert set(metadata) == {
    *("format", "resnet_jax_network", "preprocessing", "class_names", "training"),
  }
  assert dtypes == {"F16", "I64"}
  training = weights.read_training(name)
  assert set(training) == {
    *("config", "commit", "data", "seed", "steps", "evaluation", "settings"),
    "converted_by",
  }
  assert re.fullmatch("[0-9a-f]{40}", training["commit"])
  assert set(training["evaluation"]) == {"loss", "top1", "top5", "count"}
  network, data = name.split("_")
  assert training["data"] == data and read_network(file)["name"] == network
  # The path of the data must stay private.
  assert "data.dir" not in training["settings"] and "/" not in metadata["training"]
  net = load_classifier(name)
  assert net.name == network and len(net.class_names) == 10
  assert net.preprocessing.crop in (8, 32)


def test_the_package_has_the_weights_that_the_docs_name():
  assert weights.names() == ["resnet20_cifar10", "resnet8_digits"]
  text = (ROOT / "docs" / "pretrained.md").read_text()
  for name in weights.names():
    evaluation = weights.read_training(name)["evaluation"]
    (row,) = [x for x in text.splitlines() if x.startswith(f"| `{name}` |")]
    assert f"{100 * evaluation['top1']:.2f} %" in row
    assert f"{evaluation['count']:,}" in row


def test_a_name_is_the_package_and_a_path_is_the_file(path, monkeypatch, capsys):
  monkeypatch.chdir(path.parent)
  variables = make_variables(MODEL)
  Path("resnet8_digits").mkdir()
  for file in ("resnet8_digits.safetensors", "resnet8_digits/model.safetensors"):
    weights.save(file, MODEL, variables)
  warn_once.cache_clear()
  packaged = weights.find("resnet8_digits")
  assert packaged.parent.name == "trained" and not weights.is_run("resnet8_digits")
  assert "write './resnet8_digits' for the file or folder" in capsys.readouterr().err
  for own in ("resnet8_digits.safetensors", "./resnet8_digits", Path("resnet8_digits")):
    assert_equal(weights.load(own, MODEL), variables)
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  ("name", "advice"),
  [
    ("resnet20_cifar", "; the package has resnet20_cifar10"),
    ("mine", "; the package has resnet20_cifar10, resnet8_digits"),
    ("ResNet8-digits", "; the package has resnet8_digits"),
    ("resnet20_cifar10.pth", "; the package has resnet20_cifar10"),
    ("./resnet20_cifar10", ""),
    ("folder/resnet20_cifar10", ""),
  ],
)
def test_a_name_that_is_none_is_told_the_nearest(name, advice, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for function in (weights.find, weights.check_exists, load_classifier):
    with pytest.raises(FileNotFoundError) as error:
      function(name)
    said = str(error.value)
    assert repr(name) in said and said.endswith(advice)
    assert ("the package has" in said) == bool(advice)


# In another process.


def run(code: str, *arguments, **environment: str) -> dict:
  """Returns what a new process, which runs the code, prints as JSON."""
  command = [sys.executable, "-c", code, *map(str, arguments)]
  environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=120, env=environment
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_weights_load_where_there_is_no_torch(path):
  variables, tensors = named_tensors(path)
  files = [path]
  for container in CONTAINERS:
    files.append(path.with_name(f"{container}.pth"))
    files[-1].write_bytes(write(tensors, container))
  code = """
import json, sys
sys.modules["torch"] = None  # Importing it fails.
from resnet_jax import create_model, weights
model = create_model("resnet8", 10, shortcut="B")
loaded = [weights.load(path, model) for path in sys.argv[1:]]
print(json.dumps([float(x["params"]["head"]["bias"][3]) for x in loaded]))
"""
  expected = float(variables["params"]["head"]["bias"][3])
  assert run(code, *files) == [expected] * len(files)


HUB = """
import json, sys
from resnet_jax import create_model, weights
model = create_model("resnet8", 10)

def describe(name):
  try:
    loaded = weights.load(name, model)
    resize = weights.read_preprocessing(name, model).resize
    return [float(loaded["params"]["head"]["bias"][3]), resize]
  except Exception as error:
    return [type(error).__name__, str(error)]

found = {name: describe(name) for name in sys.argv[1:]}
print(json.dumps(found | {"torch": "torch" in sys.modules}))
"""


# The hub refuses these names with errors of many kinds.
WRONG_NAMES = [
  *("hf://owner/plain/../x.pth", "hf://owner/plain/a/../../x.pth"),
  *("hf://owner/plain//etc/passwd", "hf://owner/plain@../../x", "hf://owner/pl ain"),
  *("hf://owner/plain.git", "hf://owner/..", "hf://owner/--", "hf://öwner/plain"),
  *("hf://owner/plain/a\\b.pth", "hf://owner/plain@a@b", f"hf://owner/{'x' * 300}"),
  *(f"hf://owner/plain/{'x' * 300}.pth", "hf://owner/plain/?.pth", "hf://o/p/\x1b.pth"),
]


def test_weights_load_from_the_hubs_cache_without_network_or_torch(path, tmp_path):
  pytest.importorskip("huggingface_hub")
  sha = "0123456789abcdef0123456789abcdef01234567"
  cache = tmp_path / "hub"
  variables, tensors = named_tensors(path, MODEL)

  def put(repo: str, file: str, content: bytes):
    folder = cache / f"models--owner--{repo}"
    blob = folder / "blobs" / file
    link = folder / "snapshots" / sha / file
    for parent in (blob.parent, link.parent, folder / "refs"):
      parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(sha)
    blob.write_bytes(content)
    link.symlink_to(blob)

  put("timm", "model.safetensors", path.read_bytes())
  put("timm", "config.json", json.dumps({"pretrained_cfg": TIMM}).encode())
  other = json.dumps(TRANSFORMERS | {"size": 30, "crop_pct": 0.5}).encode()
  put("pickled", "preprocessor_config.json", other)
  put("plain", "model.safetensors", path.read_bytes())
  put("pickled", "pytorch_model.bin", write(tensors, "zip"))
  put("other", "mine.safetensors", path.read_bytes())
  names = [
    *("timm", f"timm@{sha}", "plain", "pickled", "other/mine.safetensors"),
    *("other", "missing", "plain@v2", "plain/no.safetensors"),
  ]
  found = run(
    HUB,
    *(f"hf://owner/{name}" for name in names),
    *("hf://", "hf://owner", "hf:///plain", "hf://../../etc/passwd", *WRONG_NAMES),
    HF_HUB_CACHE=str(cache),
    HF_HUB_OFFLINE="1",
  )
  assert found.pop("torch") is False
  bias = float(variables["params"]["head"]["bias"][3])
  for name, resize in zip(names[:5], [235, 235, 0, 60, 0], strict=True):
    assert found.pop(f"hf://owner/{name}") == [bias, resize]
  assert "the Hub cannot be reached, and its cache" in found["hf://owner/missing"][1]
  for name, (error, said) in found.items():
    nameless = name.count("/") < 3 or name == "hf:///plain"
    assert error == ("UserError" if nameless else "NotFoundError"), (name, said)
    assert "\n" not in said and name in said


def test_an_impossible_number_of_channels_is_refused(path):
  """Runs in its own process, because too large shapes make XLA end the process."""
  _, tensors = named_tensors(path, MODEL)
  files = []
  for channels in (0, 10**5, 2**40, 2**55):
    files.append(path.with_name(f"{channels}.safetensors"))
    kernel = np.zeros((0, channels, 3, 3), np.float32)
    safetensors.numpy.save_file(tensors | {"conv1.weight": kernel}, files[-1])
  code = """
import json, resource, sys
from resnet_jax import create_model, weights
model = create_model("resnet8", 10)
weights.load(sys.argv[1], model)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = {}
for path in sys.argv[2:]:
  try:
    weights.load(path, model)
  except ValueError as error:
    said[path] = str(error)
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([said, more]))
"""
  said, more = run(code, path, *files)
  assert all("conv1.weight has shape" in said[str(file)] for file in files)
  assert more < 100_000  # kB


# Files as they are published.


def published(name: str) -> Path:
  path = ROOT.parent / "shared" / "data" / "weights" / name
  if not path.exists():
    pytest.skip(f"{path} is not there: weights of akamaster/pytorch_resnet_cifar10")
  return path


@pytest.mark.parametrize(
  ("name", "model", "count"),
  [("resnet20-12fca82f.th", "resnet20", 97), ("resnet44-014dd654.th", "resnet44", 217)],
)
def test_published_weights_are_read(name, model, count):
  path = published(name)
  arrays, problems = torch_checkpoint.read(path)
  assert not problems
  loaded = weights.load(path, create_model(model))
  params, stats = loaded["params"], loaded["batch_stats"]
  block = {"params": params["stage2"]["block1"], "stats": stats["stage2"]["block1"]}
  for key, array in {
    "conv1.weight": params["stem"]["conv"]["kernel"].transpose(3, 2, 0, 1),
    "linear.weight": params["head"]["kernel"].T,
    "linear.bias": params["head"]["bias"],
    "layer2.0.conv2.weight": block["params"]["conv2"]["kernel"].transpose(3, 2, 0, 1),
    "layer2.0.bn2.weight": block["params"]["bn2"]["scale"],
    "layer2.0.bn2.running_var": block["stats"]["bn2"]["var"],
  }.items():
    np.testing.assert_array_equal(arrays[f"module.{key}"], array, strict=True)
  leaves = len(jax.tree.leaves(loaded))
  assert len(arrays) == count
  assert leaves == len([x for x in arrays if "num_batches_tracked" not in x])


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet44-014dd654.th"])
def test_published_weights_are_what_torch_reads(name):
  torch = pytest.importorskip("torch")
  path = published(name)
  arrays, _ = torch_checkpoint.read(path)
  content = torch.load(path, map_location="cpu", weights_only=True)
  assert list(content["state_dict"]) == list(arrays)
  for key, tensor in content["state_dict"].items():
    np.testing.assert_array_equal(arrays[key], tensor.numpy(), strict=True)
