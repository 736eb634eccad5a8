"""Weights in files of Keras."""

import functools
import json
import sys
import zipfile

import h5py
import jax
import keras_writer
import ml_dtypes
import numpy as np
import pytest
from arrays import normal

from resnet_jax import create_model, load, weights
from resnet_jax.config.schema import ModelConfig
from resnet_jax.runtime.errors import UserError
from resnet_jax.weights import keras_file

MODELS = {
  is_v2: create_model(name, keras_writer.CLASSES).clone(features=keras_writer.FEATURES)
  for is_v2, name in ((False, "resnetv1_50"), (True, "resnetv2_50_keras"))
}
LAYERS = {is_v2: keras_writer.make(is_v2) for is_v2 in (False, True)}
LAYOUTS = {
  "weights.h5": keras_writer.numbered,
  "keras": keras_writer.numbered,
  "h5": keras_writer.named,
}
versions = pytest.mark.parametrize("is_v2", [False, True], ids=["v1", "v2"])


@functools.cache
def expected(is_v2: bool, side: int) -> tuple[np.ndarray, np.ndarray]:
  images = normal(2, side, side, 3)
  run = jax.jit(functools.partial(keras_writer.apply, LAYERS[is_v2]))
  return images, np.asarray(run(images))


def read(tmp_path, datasets):
  path = tmp_path / "x.h5"
  keras_writer.write(path, datasets)
  return keras_file.read(path)


def assert_logits(path, is_v2, side=64):
  variables = weights.load(path, MODELS[is_v2])
  images, logits = expected(is_v2, side)
  found = jax.jit(MODELS[is_v2].apply)(variables, images)
  np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@versions
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_gives_the_logits_of_keras(layout, is_v2, tmp_path):
  path = tmp_path / f"x.{layout}"
  keras_writer.write(path, LAYOUTS[layout](LAYERS[is_v2]))
  assert_logits(path, is_v2)


@versions
def test_images_of_odd_sides_give_the_logits_of_keras(is_v2, tmp_path):
  # The stride is in the last block of a stage in Keras, and in the next stage here.
  keras_writer.write(tmp_path / "x.h5", keras_writer.named(LAYERS[is_v2]))
  assert_logits(tmp_path / "x.h5", is_v2, side=75)


@versions
@pytest.mark.parametrize("layout", ["weights.h5", "h5"])
def test_the_network_in_a_users_model_is_read(layout, is_v2, tmp_path, capsys):
  """A user's model has it as one layer, and an optimiser beside it."""
  layers = dict(LAYERS[is_v2])
  *_, last = layers
  head = {last: layers.pop(last)}
  if layout == "h5":
    found = keras_writer.named(layers, "resnet50/") | keras_writer.named(head)
  else:
    found = keras_writer.numbered(layers, "layers/functional/layers")
    found |= keras_writer.numbered(head)
  found["optimizer/vars/1"] = np.zeros(7)
  found["layers/random_flip/seed_generator/vars/0"] = np.zeros(2, np.uint32)
  keras_writer.write(tmp_path / f"x.{layout}", found)
  assert_logits(tmp_path / f"x.{layout}", is_v2)
  said = capsys.readouterr().err
  assert "only the ResNet is read, not layers/random_flip/seed_generator" in said
  assert "optimizer" not in said


@pytest.mark.parametrize("layout", ["weights.h5", "h5"])
def test_a_file_without_a_head_starts_a_training(layout, tmp_path):
  layers = {name: LAYERS[True][name] for name in LAYERS[True] if name != "predictions"}
  path = tmp_path / f"x.{layout}"
  keras_writer.write(path, LAYOUTS[layout](layers))
  assert "head" not in weights.load(path, MODELS[True], head=False)["params"]
  with pytest.raises(UserError, match=r"missing: head\.fc\.bias, head\.fc\.weight"):
    weights.load(path, MODELS[True])


def test_two_linear_layers_are_no_head(tmp_path, capsys):
  # Between them the user's model has an activation that nothing tells of.
  found = keras_writer.numbered(LAYERS[False])
  found["layers/dense_1/vars/0"] = np.zeros((5, 2))
  assert not any(name.startswith("fc.") for name in read(tmp_path, found))
  assert "not layers/dense/vars/0, layers/dense/vars/1" in capsys.readouterr().err


def test_a_linear_layer_of_any_name_is_the_head(tmp_path):
  """A subclass of `keras.Model` names a layer by its attribute."""
  layers = dict(LAYERS[False])
  kernel, bias = layers.pop("predictions")
  found = keras_writer.numbered(layers, "backbone/layers")
  found |= {"fc/vars/0": kernel, "fc/vars/1": bias}
  keras_writer.write(tmp_path / "x.weights.h5", found)
  assert_logits(tmp_path / "x.weights.h5", is_v2=False)
  del found["fc/vars/1"]  # use_bias=False
  assert not read(tmp_path, found)["fc.bias"].any()


def test_a_linear_layer_after_a_norm_is_no_head(tmp_path, capsys):
  found = keras_writer.numbered(LAYERS[False], "layers/functional/layers")
  found["layers/batch_normalization/vars/0"] = np.zeros(128)
  assert not any(name.startswith("fc.") for name in read(tmp_path, found))
  assert "not layers/batch_normalization/vars/0" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_without_weights_that_change_the_outputs_are_named(
  suffix, tmp_path, capsys
):
  path = tmp_path / f"x{suffix}"
  layout = LAYOUTS[suffix[1:]]
  for kind, has_head in (("Rescaling", True), ("GlobalMaxPooling2D", False)):
    config = json.dumps({"class_name": kind})
    keras_writer.write(path, layout(LAYERS[False]), config)
    assert ("fc.weight" in keras_file.read(path)) == has_head
    assert f"only the ResNet is read, not {kind}" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_are_read(dtype, tmp_path):
  path = tmp_path / "x.h5"
  with h5py.File(path, "w") as file:
    for name, array in keras_writer.named(LAYERS[False]).items():
      array = array.astype(dtype)
      is_brain = dtype == ml_dtypes.bfloat16
      file[name] = array.view("V2") if is_brain else array
  found = keras_file.read(path)
  kernel = LAYERS[False]["conv1_conv"][0].astype(dtype)
  np.testing.assert_array_equal(
    found["conv1.weight"], kernel.astype(found["conv1.weight"].dtype).T.swapaxes(2, 3)
  )
  weights.load(path, MODELS[False])


@versions
def test_the_preprocessing_is_that_of_keras(is_v2, tmp_path, capsys):
  path = tmp_path / "x.h5"
  keras_writer.write(path, keras_writer.named(LAYERS[is_v2]))
  found = weights.read_preprocessing(path, MODELS[is_v2])
  assert "preprocess_input is assumed" in capsys.readouterr().err
  pixels = np.asarray(normal(2, 8, 8, 3) * 50 + 100)
  if is_v2:
    wanted = pixels / 127.5 - 1
  else:
    wanted = pixels[..., ::-1] - np.array([103.939, 116.779, 123.68])
  from resnet_jax.data.batches.preprocess import normalize

  ours = normalize(
    jax.numpy.asarray(pixels), found.mean, found.std, found.channel_order
  )
  np.testing.assert_allclose(ours, wanted, atol=1e-3)


def test_another_architecture_is_refused(tmp_path):
  path = tmp_path / "x.h5"
  keras_writer.write(path, keras_writer.named(LAYERS[False]))
  model = create_model("resnet50", keras_writer.CLASSES).clone(features=4)
  with pytest.raises(UserError, match="such as resnetv1_50 or resnetv2_50_keras, not"):
    weights.load(path, model)


def remove(found):
  del found["conv3_block2_2_conv/conv3_block2_2_conv/bias:0"]


def rename(found):
  found["a/conv1_conv/kernel:0"] = found["conv1_conv/conv1_conv/kernel:0"]


def integers(found):
  found["conv1_bn/conv1_bn/gamma:0"] = np.ones(4, np.int32)


def other_shape(found):
  found["conv1_bn/conv1_bn/moving_mean:0"] = np.ones((4, 3))


def old(found):
  found["res2a_branch2a/res2a_branch2a/kernel:0"] = np.ones((1, 1, 4, 4))


def fewer(found):
  for name in [name for name in found if "conv5_block3" in name]:
    del found[name]


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (remove, "it has no bias"),
    (rename, "it has two layers conv1_conv"),
    (integers, "/conv1_bn/conv1_bn/gamma:0 has dtype int32"),
    (other_shape, "it is cut off or of another format"),
    (old, "it is the ResNet50 of an older Keras"),
    (fewer, "it has 50 convolutions; ResNet50, 101 and 152 have 53, 104 and 155"),
    (dict.clear, "it has 0 convolutions"),
  ],
)
def test_what_is_wrong_is_said(change, said, tmp_path):
  found = keras_writer.named(LAYERS[False])
  change(found)
  with pytest.raises(UserError, match=r"holds no ResNet of keras.applications") as info:
    read(tmp_path, found)
  assert said in str(info.value)


def test_numbers_outside_of_the_file_are_refused(tmp_path):
  path, outside = tmp_path / "x.h5", tmp_path / "secret"
  outside.write_bytes(bytes(100))
  first = "conv1_bn/conv1_bn/gamma:0"
  for change, said in (
    (lambda file: file.create_dataset(first, 4, "f4", external=str(outside)), "not in"),
    (lambda file: file.create_dataset(first, 4, "f4"), "not in the file"),
    (
      lambda file: file.create_dataset(first, 4, "f4", compression="gzip"),
      "compressed",
    ),
    (lambda file: file.create_dataset(first, (2**40,), "f4"), "not in the file"),
    (lambda file: file.create_dataset(first, data=h5py.Empty("f4")), "is empty"),
    (
      lambda file: file.__setitem__(first, h5py.ExternalLink("secret", "/")),
      "no gamma",
    ),
    (lambda file: file.__setitem__(first, h5py.SoftLink("/nowhere")), "no gamma"),
  ):
    keras_writer.write(path, keras_writer.named(LAYERS[False]))
    with h5py.File(path, "a") as file:
      del file[first]
      change(file)
    with pytest.raises(UserError, match=said):
      keras_file.read(path)


def test_groups_within_themselves_end(tmp_path):
  path = tmp_path / "x.h5"
  keras_writer.write(path, keras_writer.named(LAYERS[False]))
  with h5py.File(path, "a") as file:
    file["again"] = file["/"]
  keras_file.read(path)


@pytest.mark.parametrize("name", ["x.h5", "x.keras"])
def test_bytes_that_are_no_file_are_refused(name, tmp_path):
  (tmp_path / name).write_bytes(b"hello")
  with pytest.raises(UserError, match="it is cut off or of another format"):
    keras_file.read(tmp_path / name)


def test_a_compressed_archive_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("model.weights.h5", bytes(1000))
  with pytest.raises(UserError, match=r"model.weights.h5 is compressed"):
    keras_file.read(tmp_path / "x.keras")


def test_the_package_to_install_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "h5py", None)
  with pytest.raises(UserError, match=r"pip install 'flax-resnet\[keras\]'"):
    keras_file.read(tmp_path / "x.h5")


@jax.numpy_rank_promotion("allow")  # For Keras.
@pytest.mark.parametrize("name", ["ResNet50", "ResNet50V2"])
def test_keras_itself_agrees(name, tmp_path, monkeypatch):
  monkeypatch.setenv("KERAS_BACKEND", "jax")
  applications = pytest.importorskip("keras").applications
  network = getattr(applications, name)(
    weights=None, classes=7, classifier_activation=None, input_shape=(64, 64, 3)
  )
  random = np.random.default_rng(0)
  network.set_weights(
    [
      random.uniform(0.5, 1.5, x.shape)
      if x.path.endswith(("gamma", "variance"))
      else random.normal(size=x.shape) * (2 / np.prod(x.shape[:-1])) ** 0.5
      for x in network.weights
    ]
  )
  images = normal(2, 64, 64, 3)
  logits = np.asarray(network(images))
  path = tmp_path / "x.weights.h5"
  network.save_weights(path)
  classifier = load(str(path))
  assert len(classifier.class_names) == 7
  found = classifier.model.apply(classifier.variables, images)
  np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4 * np.abs(logits).max())
  config = weights.complete_model(path, ModelConfig(name=""))
  assert config.name == {"ResNet50": "resnetv1_50"}.get(name, "resnetv2_50_keras")


def test_one_output_becomes_two_classes(tmp_path):
  layers = LAYERS[False] | {
    "predictions": [x[..., :1] for x in LAYERS[False]["predictions"]]
  }
  path = tmp_path / "x.h5"
  keras_writer.write(path, keras_writer.named(layers))
  model = MODELS[False].clone(num_classes=2)
  images, logits = expected(False, 64)
  found = jax.jit(model.apply)(weights.load(path, model), images)
  np.testing.assert_allclose(
    jax.nn.softmax(found)[:, 1], jax.nn.sigmoid(logits[:, 0]), atol=1e-5
  )
