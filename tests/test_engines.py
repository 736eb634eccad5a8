"""ONNX Runtime and OpenVINO compute what JAX computes, or end with one line."""

import dataclasses
import functools
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import pixels, variables_of
from flax import linen as nn
from PIL import Image

from resnet_jax import ResNet, load
from resnet_jax.cli.main import main
from resnet_jax.config import Config, ModelConfig
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.data.sources.built_in import load_digits
from resnet_jax.evaluation.answers import collect
from resnet_jax.evaluation.passes import evaluate
from resnet_jax.evaluation.views import Views
from resnet_jax.inference.classifier import Classifier
from resnet_jax.inference.embed import extract
from resnet_jax.inference.onnx import build as build_module
from resnet_jax.inference.predict import predict
from resnet_jax.models.stems import CifarStem
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn_once
from resnet_jax.training.evaluator import prepare_weights

ENGINES = [
  pytest.param(
    name,
    marks=pytest.mark.skipif(
      importlib.util.find_spec(name) is None, reason=f"needs {name}"
    ),
  )
  for name in ("onnxruntime", "openvino")
]
DIGITS = "resnet8_digits"
every_engine = pytest.mark.parametrize("engine", ENGINES)


def small(**changes) -> Classifier:
  """Returns a network for photos with two stages."""
  model = ResNet((1, 1), num_classes=7, features=8, stem_cls=CifarStem)
  variables = variables_of(model, jnp.zeros((1, 16, 16, 3)), spread=0.3)
  size = Preprocessing(resize=20, crop=16, mean=(0.4, 0.5, 0.6), std=(0.2,))
  found = Classifier("net", model, variables, size, tuple("abcdefg"))
  return dataclasses.replace(found, **changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
  """Five photos; with two an update, the last batch is not full."""
  folder = tmp_path_factory.mktemp("photos")
  for i in range(5):
    image = np.asarray(pixels(24 + i, 30, 3, seed=i))
    Image.fromarray(image).save(folder / f"{i}.png")
  return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def digits():
  config = Config(
    batch_size=64, model=ModelConfig(name="resnet8", num_classes=10, dtype="float32")
  )
  return prepare_weights(config, DIGITS)


def assert_same(found, wanted):
  for a, b in zip(found, wanted, strict=True):
    assert (a.file, a.classes) == (b.file, b.classes)
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)
    if b.heat is not None:
      np.testing.assert_allclose(a.heat, b.heat, atol=1e-4)


@every_engine
@pytest.mark.parametrize("net", [small, functools.partial(load, DIGITS)])
def test_predictions_are_those_of_jax(files, engine, net):
  classifier = net()
  run = functools.partial(predict, files=files, batch_size=2, num_pictures=3)
  wanted = list(run(classifier))
  assert_same(run(classifier.with_engine(engine)), wanted)
  assert len(wanted) == 5 and wanted[2].heat is not None


@every_engine
@pytest.mark.parametrize("layer", ["pooled", "c2"])
def test_features_are_those_of_jax(tmp_path, engine, layer):
  found = []
  for name in ("jax", engine):
    path = str(tmp_path / f"{name}.npz")
    images = load_digits("test")
    few = dataclasses.replace(
      images, images=images.images[:5], labels=images.labels[:5]
    )
    net = load(DIGITS).with_engine(name)
    assert extract(net, few, path, layer=layer, batch_size=2) == 5
    found.append(np.load(path)["features"])
  np.testing.assert_allclose(*found, atol=1e-5)


@every_engine
@pytest.mark.parametrize("labels", ["class", "classes", "numbers"])
def test_a_call_returns_all_outputs(engine, labels):
  """Grey images too, which a network for colour repeats."""
  net = small(labels=labels, mean=(3.0,), std=(5.0,))
  images = pixels(3, 16, 16, 1)
  wanted, found = net(images), net.with_engine(engine)(images)
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    np.testing.assert_allclose(found[name], array, atol=1e-4)


@every_engine
def test_metrics_are_those_of_jax(digits, engine):
  wanted, found = digits.evaluate(), evaluate(digits, engine)
  del wanted["images_per_s"], found["images_per_s"]
  assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
  ("views", "corrupt"),
  [
    (Views(scales=(6, 8)), None),
    (Views(flip=True), lambda images, first: 255 - images),
  ],
)
def test_views_and_corrupted_images_are_those_of_jax(digits, views, corrupt):
  wanted = collect(digits, views, corrupt)
  found = collect(digits, views, corrupt, "onnxruntime")
  np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-4)
  np.testing.assert_array_equal(found.labels, wanted.labels)


@every_engine
def test_a_network_in_bfloat16_says_if_the_engine_takes_float32(engine, capsys):
  warn_once.cache_clear()
  net = small()
  half = dataclasses.replace(net, model=net.model.clone(dtype=jnp.bfloat16))
  images = pixels(2, 16, 16, 3)
  found = half.with_engine(engine)(images)["probabilities"]
  in_float32 = np.allclose(found, net(images)["probabilities"], atol=1e-5)
  said = "has no bfloat16 on this processor" in capsys.readouterr().err
  assert said == in_float32


def test_other_networks_in_bfloat16_are_refused():
  class Net(nn.Module):
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x, train=False):
      return nn.Dense(7, dtype=self.dtype)(x.mean((1, 2))).astype(jnp.float32)

  net = small(
    model=Net(), variables=Net().init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
  )
  with pytest.raises(UserError, match="cannot run a Net in bfloat16; use the engine"):
    net.with_engine("onnxruntime")(pixels(1, 16, 16, 3))


@every_engine
def test_a_graph_with_other_outputs_is_an_error(engine, monkeypatch, files, capsys):
  true_build = build_module.build

  def tampered(exported):
    exported = dataclasses.replace(
      exported, variables=jax.tree.map(lambda x: x * 1.1, exported.variables)
    )
    return true_build(exported)

  monkeypatch.setattr(build_module, "build", tampered)
  with pytest.raises(SystemExit, match="2"):
    main(["predict", *files, "--weights", DIGITS, "--engine", engine])
  out, error = capsys.readouterr()
  assert not out and error.count("\n") == 1
  assert f"the engine {engine} is wrong for this network" in error


@pytest.mark.parametrize("command", ["predict", "evaluate", "features"])
def test_a_missing_library_is_one_line(command, files, monkeypatch, capsys, tmp_path):
  monkeypatch.setitem(sys.modules, "openvino", None)
  more = {
    "predict": files,
    "evaluate": ["--dataset", "digits"],
    "features": [str(Path(files[0]).parent), "--out", str(tmp_path / "f.npz")],
  }
  words = ["--weights", DIGITS, "--engine", "openvino"]
  with pytest.raises(SystemExit, match="2"):
    main([command, *more[command], *words])
  assert capsys.readouterr().err == (
    "error: the engine openvino needs openvino: pip install 'flax-resnet[openvino]'\n"
  )


def test_an_unknown_engine_is_one_line(files, capsys):
  with pytest.raises(SystemExit, match="2"):
    main(["predict", *files, "--weights", DIGITS, "--engine", "tensorrt"])
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "'tensorrt'" in error and "openvino" in error
  with pytest.raises(UserError, match="engine='tensorrt' is unknown"):
    small().with_engine("tensorrt")


def test_the_commands_print_the_same(files, capsys):
  found = []
  for engine in ("jax", "onnxruntime"):
    main(["evaluate", "--weights", DIGITS, "--dataset=digits", f"--engine={engine}"])
    main(["predict", *files, "--weights", DIGITS, f"--engine={engine}"])
    found.append(capsys.readouterr().out)
  assert found[0] == found[1]
