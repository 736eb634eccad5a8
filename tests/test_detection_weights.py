"""RetinaNet with the weights of PyTorch, in the names of torchvision."""

import re

import jax
import numpy as np
import pytest
from arrays import normal

from resnet_jax import weights
from resnet_jax.models.boxes import decode_boxes
from resnet_jax.models.detection import create_detector
from resnet_jax.runtime.compilation import jit_once
from resnet_jax.runtime.errors import UserError
from resnet_jax.weights import load_save
from resnet_jax.weights.tensors import at, torch_shape
from resnet_jax.weights.torch_names import torch_names

torch = pytest.importorskip("torch")
import torch_retinanet  # noqa: E402 - after the line that skips this file

torch.set_num_threads(1)

V1, V2 = "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"
CLASSES, WIDTH, FEATURES = 5, 8, 32


def create(name, num_classes=CLASSES):
  """Returns a detector with one block a stage and few channels."""
  model = create_detector(name, num_classes)
  net = model.net.clone(stage_sizes=(1, 1, 1, 1), features=WIDTH)
  return model.clone(net=net, features=FEATURES)


def create_torch(name, num_classes=CLASSES):
  """Draws weights and statistics that keep the outputs of all levels of order 1."""
  torch.manual_seed(0)
  net = torch_retinanet.RetinaNet(num_classes, WIDTH, FEATURES, name == V2)
  with torch.no_grad():
    for module in net.modules():
      if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
        module.weight.uniform_(0.5, 1.5)
        module.bias.normal_(0, 0.1)
      if isinstance(module, torch.nn.BatchNorm2d):
        module.running_var.uniform_(0.5, 1.5)
        module.running_mean.normal_(0, 0.1)
      elif isinstance(module, torch.nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
          module.bias.normal_(0, 0.1)
    net.head.regression_head.bbox_reg.weight.mul_(0.01)
  return net.eval()


def old_names(state):
  """Returns a state dict with the names of the published weights of V1."""

  def rename(name):
    name = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name)
    old = lambda match: f"_head.conv.{2 * int(match[1])}."  # noqa: E731
    return re.sub(r"_head\.conv\.(\d)\.0\.", old, name)

  return {rename(name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", [V1, V2])
def test_outputs_equal_pytorch(name, tmp_path):
  net, model, path = create_torch(name), create(name), tmp_path / "weights.pth"
  state = net.state_dict()
  torch.save({"model": old_names(state)} if name == V1 else state, path)
  variables = weights.load(path, model)
  images = normal(2, 75, 49, 3)  # Sizes that are odd at some strides.
  ours = jit_once(model.apply)(variables, images)
  with torch.no_grad():
    tensor = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2))
    theirs = [x.numpy() for x in net(tensor)]
  anchors = model.anchors((75, 49))
  for a, b in zip((ours["scores"], ours["boxes"]), theirs, strict=True):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())
  flat = np.concatenate(anchors)
  boxes = [np.asarray(decode_boxes(x[0], flat)) for x in (ours["boxes"], theirs[1])]
  np.testing.assert_allclose(*boxes, rtol=1e-5, atol=1e-3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "weights.pth"
  torch.save(create_torch(V1).state_dict(), path)
  return path


def test_other_networks_are_refused(path, tmp_path):
  wrong = r"has shape \(45, 32, 3, 3\), not .* 5 classes, not 4: new_head=True makes"
  with pytest.raises(UserError, match=wrong):
    weights.load(path, create(V1, 4))
  with pytest.raises(UserError, match=r"missing: head\.\w+\.conv\.0\.1\."):
    weights.load(path, create(V2))
  with pytest.raises(UserError, match="files of weights need a ResNet"):
    weights.save(tmp_path / "x.safetensors", create(V1), {})
  state = torch.load(path)
  body = {k.removeprefix("backbone.body."): x for k, x in state.items() if "body" in k}
  torch.save(body, tmp_path / "body.pth")
  with pytest.raises(UserError, match="holds no detector, whose tensors have names"):
    weights.load(tmp_path / "body.pth", create(V1))


def test_a_file_of_another_detector_is_named():
  model = create_detector(V1, 7)
  shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), "f"))
  tensors = {
    name: np.broadcast_to(np.float32(0), torch_shape(at(shapes, keys).shape))
    for name, keys in torch_names(model, shapes).items()
  }
  advice = load_save._advise_on_detector(tensors, create_detector(V2), head=True)
  assert advice == [f"it fits {V1}"]


def test_new_classes_take_all_but_the_last_layer(path, capsys):
  whole = weights.load(path, create(V1))
  model = create(V1, 3)
  without, new = (
    weights.load(path, model, head=False),
    weights.load(path, model, new_head=True),
  )
  assert "the last layer for 3 classes is new" in capsys.readouterr().err
  made = new["params"]["head"]["classes"].pop("output")
  jax.tree.map(np.testing.assert_array_equal, made, model.init_head(jax.random.key(0)))
  del whole["params"]["head"]["classes"]["output"]
  for variables in (without, new):
    jax.tree.map(np.testing.assert_array_equal, variables, whole)
