"""Folders of weights for timm, torchvision and transformers."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import safetensors.numpy
from arrays import normal, variables_of
from test_weights import transformers_name

from resnet_jax import MODELS, create_model, load, weights
from resnet_jax.cli.main import main
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.inference.classifier import Classifier
from resnet_jax.models.architectures import in_timm
from resnet_jax.runtime.compilation import jit_once
from resnet_jax.runtime.errors import UserError
from resnet_jax.weights.folders import FORMS

PREPROCESSING = Preprocessing((0.5,), (0.25,), 73, 64, "bicubic")
NAMES = ["cat", "dog", "mouse"]
TRAINING = {
  "data": "cifar10",
  "steps": 7,
  "evaluation": {"top1": 0.5},
  "settings": {"batch_size": 32},
}
IMAGES = normal(2, 64, 64, 3)


def make(name: str, channels: int = 3):
  model = create_model(name, 3)
  # Tracing is quicker for the scanned layout; the values do not matter.
  return model, variables_of(model, IMAGES[:1, :32, :32, :channels], spread=0.05)


@pytest.fixture(scope="module")
def resnet10():
  return make("resnet10t")


def save(folder, form, model, variables, **kwargs):
  weights.save_folder(
    folder, form, model, variables, PREPROCESSING, NAMES, training=TRAINING, **kwargs
  )
  assert sorted(path.name for path in folder.glob("*.part")) == []


def assert_loaded_again(folder, model, variables):
  back = load(str(folder))
  jax.tree.map(np.testing.assert_array_equal, back.variables, variables)
  assert back.class_names == tuple(NAMES)
  mean = PREPROCESSING.mean * back.channels
  assert back.preprocessing in (
    PREPROCESSING,
    Preprocessing(mean, PREPROCESSING.std * back.channels, 73, 64, "bicubic"),
  )


def test_a_folder_for_timm(resnet10, tmp_path):
  model, variables = resnet10
  folder = tmp_path / "new"
  save(folder, "timm", model, variables, license_name="mit")
  config = json.loads((folder / "config.json").read_text())
  assert config["architecture"] == "resnet10t" and config["label_names"] == NAMES
  cfg = config["pretrained_cfg"]
  assert math.floor(cfg["input_size"][-1] / cfg["crop_pct"]) == PREPROCESSING.resize
  assert cfg["mean"] == 3 * [0.5] and cfg["first_conv"] == "conv1.0"
  card = (folder / "README.md").read_text()
  assert card.startswith("---\nlibrary_name: timm\n") and "license: mit" in card
  assert "| top1 | 0.5 |" in card and "| `batch_size` | `32` |" in card
  assert_loaded_again(folder, model, variables)
  # Also without what this package writes into the file.
  path = folder / "model.safetensors"
  safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)
  assert_loaded_again(folder, model, variables)


def test_a_file_becomes_a_folder_by_the_command(resnet10, tmp_path, capsys):
  model, variables = resnet10
  path, folder = tmp_path / "x.safetensors", tmp_path / "folder"
  weights.save(path, model, variables, PREPROCESSING, NAMES)
  command = ["convert", f"--weights={path}", "--format=timm", f"--out={folder}"]
  main([*command, "--license=mit"])
  assert f"resnet10t of {path} -> {folder}" in capsys.readouterr().out
  assert "license: mit" in (folder / "README.md").read_text()
  assert_loaded_again(folder, model, variables)
  plain = ["convert", f"--weights={path}", f"--out={tmp_path / 'b'}"]
  for wrong, said in (
    (command, "must be a new or an empty directory"),
    ([*plain, "--format=transformers"], "transformers has no resnet10t"),
    ([*plain, "--license=mit"], "--license is for the model card"),
  ):
    with pytest.raises(SystemExit) as exit_info:
      main(wrong)
    assert exit_info.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_for_this_package_has_any_preprocessing(resnet10, tmp_path):
  model, variables = resnet10
  preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.25,), 0, 0, channel_order="bgr")
  weights.save_folder(tmp_path / "x", "flax-resnet", model, variables, preprocessing)
  assert load(str(tmp_path / "x")).preprocessing == preprocessing
  with pytest.raises(UserError, match="needs images that are resized and cropped"):
    weights.save_folder(tmp_path / "y", "timm", model, variables, preprocessing)


def test_other_libraries_get_networks_for_rgb(resnet10, tmp_path):
  model, variables = resnet10
  blue_first = Preprocessing((0.1, 0.2, 0.3), (0.25,), 73, 64, channel_order="bgr")
  weights.save_folder(tmp_path / "x", "timm", model, variables, blue_first)
  found = load(str(tmp_path / "x"))
  assert found.preprocessing.channel_order == "rgb"
  pixels = jax.random.randint(jax.random.key(0), (2, 64, 64, 3), 0, 256, "uint8")
  own = Classifier("x", model, variables, blue_first, ())
  np.testing.assert_allclose(
    found(pixels)["probabilities"], own(pixels)["probabilities"], atol=1e-5
  )
  flipped = dataclasses.replace(own, preprocessing=PREPROCESSING)
  assert not np.allclose(flipped(pixels)["probabilities"], own(pixels)["probabilities"])


def test_the_crop_fraction_gives_every_size_back(resnet10, tmp_path):
  model, variables = resnet10
  from resnet_jax.weights import folders

  for resize in range(64, 520):
    size = Preprocessing(resize=resize, crop=64)
    files, _ = folders._timm(folders._Net(model, variables, size, []))
    fraction = files["config.json"]["pretrained_cfg"]["crop_pct"]
    assert math.floor(64 / fraction) == resize


def test_a_folder_for_transformers(tmp_path):
  model = create_model("resnet50", 3).clone(stage_sizes=(1, 2), features=8)
  variables = variables_of(model, IMAGES[:1], spread=0.05)
  save(tmp_path, "transformers", model, variables)
  config = json.loads((tmp_path / "config.json").read_text())
  assert config["hidden_sizes"] == [32, 64] and config["depths"] == [1, 2]
  assert config["embedding_size"] == 8 and config["layer_type"] == "bottleneck"
  assert config["id2label"] == {"0": "cat", "1": "dog", "2": "mouse"}
  names = set(safetensors.numpy.load_file(tmp_path / "model.safetensors"))
  weights.save(tmp_path / "x.safetensors", model, variables)
  theirs = set(safetensors.numpy.load_file(tmp_path / "x.safetensors"))
  assert names == {transformers_name(name) for name in theirs}
  (tmp_path / "x.safetensors").unlink()
  found = weights.load(tmp_path, model)
  jax.tree.map(np.testing.assert_array_equal, found, variables)


REFUSED = {
  "timm": ["resnet20", "plain18", "resnetv1_50", "resnetv2_200"],
  "torchvision": ["resnet50d", "resnet20"],
  "transformers": ["resnet18d", "resnext50_32x4d", "resnetv2_18", "resnet50_gn"],
}


@pytest.mark.parametrize(
  ("form", "name"), [(form, name) for form in REFUSED for name in REFUSED[form]]
)
def test_a_network_that_the_library_lacks_is_refused(form, name, tmp_path):
  model = create_model(name, 3)
  kernel = {"conv": {"kernel": np.zeros((3, 3, 3, 4))}}
  with pytest.raises(UserError, match=f"{form} has no {name}"):
    save(tmp_path / "new", form, model, {"params": {"stem": kernel}})
  assert not (tmp_path / "new").exists()


def test_nothing_is_written_where_something_is(resnet10, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="must be a new or an empty directory"):
    save(tmp_path, "timm", *resnet10)
  with pytest.raises(UserError, match="needs images that are resized and cropped"):
    none = Preprocessing(resize=0, crop=0)
    weights.save_folder(tmp_path / "new", "timm", *resnet10, none)
  with pytest.raises(UserError, match=r"form='keras' is unknown; choose from timm"):
    save(tmp_path / "new", "keras", *resnet10)
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_networks_of_timm_are_known():
  here = {name for name in MODELS if in_timm(name)}
  from test_timm import ALL

  assert here == set(ALL)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "channels"), [("resnet18", 3), ("seresnet18", 1)])
def test_the_library_itself_computes_the_same(form, name, channels, tmp_path):
  torch = pytest.importorskip("torch")
  library = pytest.importorskip(form)
  if name != "resnet18" and form != "timm":
    pytest.skip("it has no such network")
  model, variables = make(name, channels)
  save(tmp_path, form, model, variables)
  if form == "timm":
    network = library.create_model(f"local-dir:{tmp_path}", pretrained=True)
  elif form == "transformers":
    network = library.ResNetForImageClassification.from_pretrained(tmp_path)
  else:
    network = library.models.get_model(name, num_classes=3)
    arrays = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    network.load_state_dict({k: torch.tensor(x) for k, x in arrays.items()})
  images = IMAGES[..., :channels]
  with torch.no_grad():
    theirs = network.eval()(torch.tensor(images.transpose(0, 3, 1, 2)))
  theirs = np.asarray(getattr(theirs, "logits", theirs))
  ours = jit_once(model.apply)(variables, images)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
