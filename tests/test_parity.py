"""Compares networks and their weight files with PyTorch's, in both directions."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from resnet_jax import create_model, weights
from resnet_jax.models.resnet import Stage

torch = pytest.importorskip("torch")
import safetensors.torch  # noqa: E402 - after the line that skips this file
import torch_resnet  # noqa: E402

# Test files run two at a time; more threads would wait for each other.
torch.set_num_threads(1)

BOTTLENECK = {"bottleneck": True}
CIFAR = {"stem": "cifar", "features": 16}
# Name and shortcut, the options of `torch_resnet.ResNet`, blocks per stage.
NETS = {
  "resnet18": ({}, (2, 2, 2, 2)),
  "resnet34": ({}, (3, 4, 6, 3)),
  "resnet50": (BOTTLENECK, (3, 4, 6, 3)),
  "resnet101": (BOTTLENECK, (3, 4, 23, 3)),
  "resnet152": (BOTTLENECK, (3, 8, 36, 3)),
  "resnet20 A": (CIFAR | {"shortcut": "A"}, (3, 3, 3)),
  "resnet20 B": (CIFAR | {"shortcut": "B"}, (3, 3, 3)),
  "resnet56 A": (CIFAR | {"shortcut": "A"}, (9, 9, 9)),
  "resnet56 B": (CIFAR | {"shortcut": "B"}, (9, 9, 9)),
}
# These networks repeat their blocks like those above, so a few blocks are enough.
FEW = (1, 2, 1, 1)
NETS |= {
  "resnetv1_50": (BOTTLENECK | {"stride_on_1x1": True}, FEW),
  "resnext50_32x4d": (BOTTLENECK | {"groups": 32, "base_width": 4}, FEW),
  "wide_resnet50_2": (BOTTLENECK | {"base_width": 128}, FEW),
  "seresnet50": (BOTTLENECK | {"se": True}, FEW),
  "resnet50d": (BOTTLENECK | {"stem": "deep", "shortcut": "D"}, FEW),
  "resnetv2_50": (BOTTLENECK | {"preact": True}, FEW),
}
SCANNED = ("resnet101", "resnet152", "resnet56 A", "resnet56 B")
# Each program runs once; without optimisation, it compiles in half the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make_model(name, fields, **kwargs):
  name, _, shortcut = name.partition(" ")
  return create_model(name, 10, shortcut=shortcut, **kwargs).clone(**fields)


def make_torch_net(sizes, options):
  torch.manual_seed(0)
  return torch_resnet.draw(torch_resnet.ResNet(sizes, **options))


def make_images(count, size):
  rng = np.random.default_rng(0)
  return rng.standard_normal((count, 3, size, size), dtype=np.float32)


@partial(jit, static_argnums=0)
def evaluate(model, variables, images):
  """Returns the outputs of the stages and the logits."""
  logits, state = model.apply(
    variables,
    images.transpose(0, 2, 3, 1),
    capture_intermediates=lambda module, _: isinstance(module, Stage),
    mutable=["intermediates"],
  )
  stages = state["intermediates"]
  numbers = range(1, len(model.stage_sizes) + 1)
  return [stages[f"stage{n}"]["__call__"][0] for n in numbers], logits


@torch.no_grad()
def evaluate_torch(net, images):
  outputs, logits = net.eval()(torch.from_numpy(images))
  return [output.permute(0, 2, 3, 1).numpy() for output in outputs], logits.numpy()


@partial(jit, static_argnums=0)
def differentiate(model, variables, images, labels):
  """Returns the loss, and its gradients in place of the parameters."""

  def loss_of(params):
    logits, updates = model.apply(
      variables | {"params": params},
      images.transpose(0, 2, 3, 1),
      train=True,
      mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), updates

  grad = jax.value_and_grad(loss_of, has_aux=True)
  (loss, updates), grads = grad(variables["params"])
  return loss, updates | {"params": grads}


def assert_close(ours, theirs, tolerance=1e-4):
  """Asserts that differences are small relative to the largest value of each array."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  pairs = zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
  for (path, a), b in pairs:
    name = jax.tree_util.keystr(path)
    assert np.shape(a) == np.shape(b), name
    error = np.abs(a - b).max() / np.abs(b).max()
    assert error < tolerance, name


@pytest.mark.parametrize("name", NETS)
def test_stages_and_logits_equal_pytorch_with_its_weights_and_with_ours(name, tmp_path):
  options, sizes = NETS[name]
  fields = {"stage_sizes": sizes} if sizes == FEW else {}
  model = make_model(name, fields, scan=name in SCANNED)
  net = make_torch_net(sizes, options)
  # Sizes that are odd at some strides and even at others.
  images = make_images(2, 31 if "cifar" in options.values() else 75)

  as_pickle = list(NETS).index(name) % 2
  path = tmp_path / ("theirs.pth" if as_pickle else "theirs.safetensors")
  write = torch.save if as_pickle else safetensors.torch.save_file
  write(net.state_dict(), path)
  variables = weights.load(path, model)
  path.unlink()  # pytest would keep up to 240 MB.
  assert_close(evaluate(model, variables, images), evaluate_torch(net, images))

  variables = jax.tree.map(np.flip, jax.device_get(variables))  # Other random weights.
  path = tmp_path / "ours.safetensors"
  weights.save(path, model, variables)
  net.load_state_dict(safetensors.torch.load_file(path), strict=True)
  path.unlink()
  assert_close(evaluate(model, variables, images), evaluate_torch(net, images))


@pytest.mark.parametrize(
  ("name", "sizes", "features"),
  [
    ("resnet20 A", (1, 1, 1), 16),
    ("resnet50", (1, 1, 1), 8),
    ("resnext50_32x4d", (1, 1), 16),
    ("resnet50d", (1, 1), 8),
  ],
)
def test_gradients_and_running_statistics_equal_pytorch(
  name, sizes, features, tmp_path
):
  fields = {"stage_sizes": sizes, "features": features}
  model = make_model(name, fields, norm="unbiased_batch")
  net = make_torch_net(sizes, NETS[name][0] | {"features": features})
  images, labels = make_images(8, 32), np.arange(8)
  path = tmp_path / "net.safetensors"
  safetensors.torch.save_file(net.state_dict(), path)
  ours = differentiate(model, weights.load(path, model), images, labels)

  _, logits = net.train()(torch.from_numpy(images))
  loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
  loss.backward()
  # Save the gradients under the names of the weights: loading then converts them too.
  grads = {name: parameter.grad for name, parameter in net.named_parameters()}
  safetensors.torch.save_file(dict(net.named_buffers()) | grads, path)
  assert_close(ours, (loss.item(), weights.load(path, model)))
