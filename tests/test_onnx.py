"""An ONNX file computes what the network computes, with one node for each layer."""

import dataclasses
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import pixels, variables_of
from flax import linen as nn

from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.data import ImageArrays
from resnet_jax.inference.classifier import Classifier
from resnet_jax.inference.export import Int8, export
from resnet_jax.inference.exported_function import exported_function
from resnet_jax.inference.onnx import build as build_module
from resnet_jax.inference.onnx.build import build
from resnet_jax.inference.onnx.openvino_file import import_openvino
from resnet_jax.inference.portable import ExportedFunction
from resnet_jax.inference.run_images import RunImages
from resnet_jax.models.dense_heads import DeepLabV3Head, FCNHead
from resnet_jax.models.detection import RetinaNet
from resnet_jax.models.norms import GroupNorm, NoNorm
from resnet_jax.models.registry import MODELS, create_model
from resnet_jax.models.scan_layout import to_named
from resnet_jax.models.segmentation import Segmenter
from resnet_jax.runtime.errors import UserError

SIZE = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2,), resize=0, crop=32)
# One row for each kind of block, stem, shortcut, norm, attention and pool.
ROWS = (
  *("resnet8", "resnet50", "plain18", "highway8", "resnext50_32x4d", "resnet50s"),
  *("seresnet50t", "ecaresnet50d", "resnetaa50d", "resnetblur18", "resnetrs50"),
  *("senet154", "resnetv1_50", "resnetv2_18", "resnetv2_50d_gn", "resnetv2_50d_evos"),
  *("resnetv2_50d_frn", "resnetv2_50x1_bit", "resnetv2_50_keras", "wide_resnet16_8"),
)


def classifier(model: nn.Module, size: Preprocessing = SIZE) -> Classifier:
  """Returns a network with random variables; its answers are the logits."""
  images = jnp.zeros((1, size.crop, size.crop, 3))
  variables = to_named(variables_of(model, images, spread=0.3))
  names = tuple("abcdefg")
  variables = {"batch_stats": {}} | variables
  return Classifier("net", model, variables, size, names, labels="numbers")


def small(name: str, **changes) -> Classifier:
  """Returns a narrow network with the parts of an architecture, and few blocks."""
  model = create_model(name, 7, **changes)
  sizes = [min(1 + (i == 1), n) for i, n in enumerate(model.stage_sizes[:2])]
  return classifier(model.clone(features=32, stage_sizes=tuple(sizes)))


def run(model, images) -> np.ndarray:
  import onnxruntime

  content = model.SerializeToString()
  session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
  return session.run(None, {"images": np.asarray(images)})[0]


def assert_same(trained: Classifier, batches=(1, 3)) -> None:
  exported = exported_function(trained)
  model, apply = build(exported), jax.jit(trained.apply)
  for batch in batches:
    images = pixels(batch, *exported.image.shape, seed=batch)
    wanted = apply(trained.variables, images)["values"]
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(run(model, images), wanted, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ROWS)
def test_a_network_of_each_kind_is_written(name):
  assert_same(small(name))


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "retinanet", "retinanet_v2"])
def test_networks_for_places_in_an_image_are_written(head):
  """The ONNX writer needs nothing that is only for them."""
  net = create_model("resnet8")
  if head.startswith("retinanet"):
    norm = GroupNorm if head.endswith("v2") else NoNorm
    model = RetinaNet(net, 3, head_norm_cls=norm, features=32)
  else:
    head_cls = FCNHead if head == "fcn" else DeepLabV3Head
    model = Segmenter(net, 3, head_cls, output_stride=2)
  variables = variables_of(model, jnp.zeros((1, 32, 40, 3)), spread=0.1)
  image = jax.ShapeDtypeStruct((32, 40, 3), np.uint8)
  for name in jax.eval_shape(lambda: model.apply(variables, jnp.zeros((1, 32, 40, 3)))):

    @jax.jit
    def function(variables, images, name=name):
      return model.apply(variables, images.astype(jnp.float32) / 255)[name]

    exported = ExportedFunction(
      function, variables, image, (name,), {"architecture": head}
    )
    written = build(exported)
    for batch in (1, 3):
      images = pixels(batch, *image.shape, seed=batch)
      wanted = function(variables, images)
      scale = float(jnp.abs(wanted).max())
      np.testing.assert_allclose(run(written, images), wanted, atol=1e-4 * scale)


@pytest.mark.slow
def test_each_architecture_is_written():
  """Those that differ only in depth or width are written once; `ROWS` are above."""
  seen = {}
  for name in (*ROWS, *MODELS):
    model = create_model(name, 7).clone(features=32, stage_sizes=(1, 2))
    seen.setdefault(repr(model), name)
  for name in set(seen.values()).difference(ROWS):
    assert_same(small(name), [2])


def test_frozen_norms_are_folded():
  trained = small("resnet18", norm="frozen")
  assert_same(trained)
  nodes = build(exported_function(trained)).graph.node
  assert not {"BatchNormalization", "Div"} & {node.op_type for node in nodes}


@pytest.mark.parametrize("batch", [1, 64])
def test_openvino_and_the_reference_agree(batch, tmp_path):
  try:
    openvino = import_openvino()
  except ModuleNotFoundError:
    pytest.skip("no OpenVINO")
  import onnx
  from onnx.reference import ReferenceEvaluator

  trained = small("seresnet18")
  content = build(exported_function(trained))
  images = np.asarray(pixels(batch, 32, 32, 3))
  wanted = np.asarray(trained(images)["values"])
  hint = {"INFERENCE_PRECISION_HINT": "f32"}
  onnx.save(content, tmp_path / "net.onnx")
  net = openvino.compile_model(str(tmp_path / "net.onnx"), "CPU", hint)
  found = [net([images])[0], ReferenceEvaluator(content).run(None, {"images": images})]
  for answer in (found[0], found[1][0]):
    np.testing.assert_allclose(answer, wanted, atol=1e-4 * np.abs(wanted).max())


def test_each_layer_is_one_node():
  nodes = build(exported_function(small("resnet18"))).graph.node
  assert Counter(node.op_type for node in nodes) == {
    # The images are uint8 and NHWC; they become normalised and NCHW.
    **{"Transpose": 1, "Cast": 1, "Mul": 1, "Sub": 1},
    # The stem, three blocks of two convolutions, and one shortcut with a convolution.
    **{"Conv": 8, "Relu": 7, "Add": 3, "MaxPool": 1},
    **{"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1},
  }
  assert all(len(node.input) == 3 for node in nodes if node.op_type == "Conv")


def test_pre_activation_norms_are_one_node():
  nodes = build(exported_function(small("resnetv2_18"))).graph.node
  assert Counter(node.op_type for node in nodes)["Mul"] == 1  # Of the images.


def test_the_file_says_what_it_is(tmp_path):
  import onnx

  trained = small("resnet8")
  export(trained, str(tmp_path / "net.onnx"), "onnx")
  model = onnx.load(tmp_path / "net.onnx")
  onnx.checker.check_model(model, full_check=True)
  saved = {entry.key: entry.value for entry in model.metadata_props}
  assert json.loads(saved["class_names"]) == list("abcdefg")
  assert Preprocessing(**_tuples(json.loads(saved["preprocessing"]))) == SIZE
  assert json.loads(saved["recipe"]) == {} and saved["architecture"] == "net"
  (images,), (values,) = model.graph.input, model.graph.output
  assert images.type.tensor_type.shape.dim[0].dim_param == "batch"
  assert (images.name, values.name) == ("images", "values")


def _tuples(values: dict) -> dict:
  return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


class Own(nn.Module):
  """Layers of Flax, which the writer knows by their operations."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = nn.gelu(nn.Conv(8, (3, 3), strides=2)(x))
    x = nn.max_pool(nn.BatchNorm(use_running_average=True)(x), (2, 2), (2, 2))
    x = nn.leaky_relu(nn.GroupNorm(2)(nn.Conv(8, (3, 3), feature_group_count=2)(x)))
    x = nn.avg_pool(nn.LayerNorm()(x), (2, 2), (2, 2))
    x = x.reshape(len(x), -1, 8)  # Four pixels become tokens.
    mixed = nn.softmax(x @ x.swapaxes(1, 2)) @ x
    return nn.Dense(7)(nn.silu(x + mixed).reshape(len(x), -1))


def test_a_network_of_flax_layers_is_written():
  assert_same(classifier(Own(), Preprocessing(resize=0, crop=16)))


class Unknown(nn.Module):
  """Sorts, which the writer does not know."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    return nn.Dense(7, name="head")(Sorting(name="sorting")(x.mean((1, 2))))


class Sorting(nn.Module):
  """Sorts the channels."""

  def __call__(self, x):
    return jnp.sort(x)


def test_an_unknown_operation_is_one_line_that_names_its_module(tmp_path):
  with pytest.raises(UserError, match=r"'sort'.* Unknown/sorting uses; use --format"):
    export(classifier(Unknown()), str(tmp_path / "net.onnx"), "onnx")
  assert not list(tmp_path.iterdir())


def test_a_network_that_is_too_large_is_one_line(monkeypatch, tmp_path):
  monkeypatch.setattr(build_module, "_MOST_BYTES", 10)
  with pytest.raises(UserError, match=r"GB of weights, and an ONNX file holds at most"):
    export(small("resnet8"), str(tmp_path / "net.onnx"), "onnx")
  assert not list(tmp_path.iterdir())


FUNCTIONS = {
  "flatten": lambda x: x.reshape(len(x), -1),
  "split an axis": lambda x: x.reshape(len(x), 2, 2, 6, 4).mean((1, 4)),
  "merge axes": lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1, 6),
  "reverse": lambda x: x[:, ::-1, 1:, ::2],
  "take": lambda x: x[:, jnp.array([3, 0, 2])] + x[:, 1][:, None],
  "split and join": lambda x: jnp.concatenate(jnp.split(x, 2, axis=3)[::-1], axis=1),
  "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (3, 0)), constant_values=2),
  "choose": lambda x: jnp.where(x > 0.5, jnp.clip(x, 0.6, 0.9), -x),
  "repeat": lambda x: jnp.broadcast_to(x.mean((1, 2))[:, None], (len(x), 5, 4)) ** 3,
  "spread": lambda x: jax.lax.rsqrt(x.var((1, 2)) + 1) * jnp.log1p(x.max((1, 2))),
  "product": lambda x: jnp.einsum("bhwc,yh->bywc", x, jnp.arange(8.0).reshape(2, 4)),
  "columns": lambda x: jnp.einsum("xw,bhwc->bhxc", jnp.arange(12.0).reshape(2, 6), x),
  "channels": lambda x: x @ jnp.arange(8.0).reshape(4, 2),
  "two tensors": lambda x: jnp.einsum("bhwc,bhvc->bwv", x, 1 - x),
  "constants": lambda x: x + jnp.arange(4.0)[None, None, None] * jnp.ones_like(x) / 3,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_operations_of_jax_are_written(function):
  """The sides of the images differ, so that no axis can be mistaken for another."""

  def whole(variables, images):
    return function(images.astype(jnp.float32) / 255)

  image = jax.ShapeDtypeStruct((4, 6, 4), jnp.uint8)
  metadata = {"architecture": "function"}
  model = build(ExportedFunction(whole, {}, image, ("values",), metadata))
  images = np.asarray(pixels(3, *image.shape))
  wanted = whole({}, jnp.asarray(images))
  np.testing.assert_allclose(run(model, images), wanted, rtol=1e-4, atol=1e-5)


class FewImages:
  """Random images, whose labels are those that a network gives them."""

  def __init__(self, net: Classifier) -> None:
    self.images = np.asarray(pixels(40, 32, 32, 3))
    self.labels = np.asarray(net(self.images)[net.answer]).argmax(-1)
    self.net = net

  def open(self) -> RunImages:
    data = ImageArrays(self.images, self.labels.astype(np.int32), self.net.class_names)
    return RunImages(data, data, self.net)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_smaller_weights_make_a_smaller_file(form, precision, tmp_path):
  try:
    import_openvino()
  except ModuleNotFoundError:
    pytest.skip("no OpenVINO")
  net = small("resnet8")
  suffix = {"onnx": "onnx", "openvino": "xml"}[form]
  sizes = []
  for kind in ("float32", precision):
    folder = tmp_path / kind
    folder.mkdir()
    int8 = Int8(FewImages(net).open(), max_loss=100) if kind == "int8" else None
    export(net, str(folder / f"net.{suffix}"), form, precision=kind, int8=int8)
    names = {file.name for file in folder.iterdir()}
    more = {"net.bin"} if form == "openvino" else set()
    more |= {f"net.{suffix}.json"} if int8 else set()
    assert names == {f"net.{suffix}"} | more
    weights = folder / ("net.bin" if form == "openvino" else "net.onnx")
    sizes.append(weights.stat().st_size)
  assert sizes[1] < 0.6 * sizes[0]


def test_int8_that_loses_too_much_is_one_line(tmp_path):
  net = small("resnet8")
  images = FewImages(net).open()
  with pytest.raises(UserError, match=r"falls from .* --max-loss=-101 points"):
    export(
      *(net, str(tmp_path / "net.onnx"), "onnx"),
      precision="int8",
      int8=Int8(images, number=8, max_loss=-101),
    )
  assert not list(tmp_path.iterdir())


def test_calibration_sees_only_training_images():
  net = small("resnet8")
  few = FewImages(net)
  others = ImageArrays(few.images[::-1] // 2, few.labels, net.class_names)
  images = dataclasses.replace(few.open(), evaluation=others)
  batches = [*images.calibration(33)]
  assert [len(batch) for batch in batches] == [32, 1]
  known = {image.tobytes() for image in few.images}
  seen = {image.tobytes() for batch in batches for image in batch}
  assert seen <= known and len(seen) == 33
  assert sum(map(len, images.calibration(1000))) == 40


def test_weights_too_large_for_float16_are_one_line(tmp_path):
  net = small("resnet8")
  net.variables["params"]["head"]["kernel"] *= 1e9
  with pytest.raises(UserError, match=r"head/kernel has values .* use --precision bfl"):
    export(net, str(tmp_path / "net.onnx"), "onnx", precision="float16")
