"""Runs the training step of one network, ours or a peer's, as a process that is timed.

`train_step.py` starts it with this command: python benchmarks/cases.py PEER MODEL BATCH
DTYPE. It reads from stdin how often to run. The images are random, and they are on the
device from the start. `engines.py` is the same for inference.
"""

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

from networks import MODELS, classes_of, create_torch, side_of
from turns import count_cores, serve

RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4


def create_experiment(name: str, batch: int, dtype: str = "float32", **options: bool):
  """Returns an experiment on random images, and the feed of its `train_chunk`.

  Args:
    name: name of the network.
    batch: images per step.
    dtype: dtype of the computation.
    **options: options of the network: `scan`, `remat`.
  """
  from resnet_jax.runtime import compilation

  compilation.keep_freed_memory()  # As `resnet-jax train` does.
  import jax
  import jax.numpy as jnp

  from resnet_jax import Experiment
  from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig

  size = side_of(name)
  config = Config(
    batch_size=batch,
    model=ModelConfig(name, num_classes=classes_of(size), dtype=dtype, **options),
    data=DataConfig(mean=(0.5,), std=(0.25,)),
    optim=OptimConfig(learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY),
  )
  one_batch = SimpleNamespace(  # The part of a `Dataset` that a step uses.
    num_examples=batch,
    image_shape=(size, size, 3),
    take_batch=lambda feed, step: feed,
  )
  experiment = Experiment.create(
    config, devices=jax.devices()[:1], train_data=one_batch
  )
  key = jax.random.key(1)
  feed = {
    "image": jax.random.randint(key, (batch, size, size, 3), 0, 256).astype(jnp.uint8),
    "label": jax.random.randint(key, (batch,), 0, classes_of(size)),
    "mask": jnp.ones(batch, bool),
  }
  return experiment, feed


def ours_train(
  name: str, batch: int, dtype: str, scan: bool = False
) -> Callable[[int], None]:
  """Returns a function that runs the trainer's step `count` times in one call.

  The step normalises the uint8 images itself.
  """
  experiment, feed = create_experiment(name, batch, dtype, scan=scan)
  import jax

  state = experiment.initial_state()

  def run(count: int) -> None:
    nonlocal state
    state, metrics = experiment.train_chunk(state, feed, count)
    jax.block_until_ready((state, metrics))

  return run


def stock_flax(name: str, dtype: str):
  """Returns the stock model, its variables, and the side of its images.

  Its shortcuts are projections where shapes change, on CIFAR too. On CIFAR, the other
  networks have shortcuts with zero padding, as in the paper. That is 1 % less work.
  """
  import jax
  import jax.numpy as jnp
  from stock_flax import ResNet

  sizes, bottleneck, size = MODELS[name]
  small = size == 32
  model = ResNet(
    sizes, 16 if small else 64, bottleneck, small, classes_of(size), jnp.dtype(dtype)
  )
  images = jnp.zeros((1, size, size, 3))
  return model, jax.jit(model.init)(jax.random.key(1), images), size


def stock_train(name: str, batch: int, dtype: str) -> Callable[[int], None]:
  """`jax.jit` of one step, with donation."""
  import jax
  import optax

  model, variables, size = stock_flax(name, dtype)
  tx = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, MOMENTUM))
  images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
  labels = jax.random.randint(jax.random.key(1), (batch,), 0, classes_of(size))

  @partial(jax.jit, donate_argnums=0)
  def step(state):
    variables, opt_state = state

    def loss_fn(params):
      logits, updates = model.apply(
        variables | {"params": params}, images, train=True, mutable=["batch_stats"]
      )
      cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return cross_entropy.mean(), updates

    grads, updates = jax.grad(loss_fn, has_aux=True)(variables["params"])
    changes, opt_state = tx.update(grads, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], changes)
    return {"params": params, **updates}, opt_state

  state = variables, tx.init(variables["params"])

  def run(count: int) -> None:
    nonlocal state
    for _ in range(count):
      state = step(state)
    jax.block_until_ready(state)

  return run


def torch_model(name: str, compiled: bool):
  """Returns a channels-last model, its device, and the side of its images."""
  import torch
  from torch import nn

  torch.set_num_threads(count_cores())
  size = side_of(name)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.backends.cudnn.benchmark = True  # Picks the fastest kernels, as XLA does.
  if device == "cuda" and size > 32:
    import torchvision

    model = torchvision.models.get_model(name)
  else:  # An equal network. torchvision has none for CIFAR, and may be missing.
    model = create_torch(name)
  model = model.to(device, memory_format=torch.channels_last)
  wrapped: nn.Module = torch.compile(model) if compiled else model
  return wrapped, device, size


def torch_train(
  name: str, batch: int, dtype: str, compiled: bool = False
) -> Callable[[int], None]:
  """A step with SGD; autocast for bfloat16."""
  import torch
  from torch.nn import functional

  model, device, size = torch_model(name, compiled)
  images = torch.randn(batch, 3, size, size, device=device)
  images = images.to(memory_format=torch.channels_last)
  labels = torch.randint(classes_of(size), (batch,), device=device)
  optimizer = torch.optim.SGD(
    model.parameters(), RATE, MOMENTUM, weight_decay=DECAY, foreach=True
  )

  def run(count: int) -> None:
    for _ in range(count):
      with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = functional.cross_entropy(model(images), labels)
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      optimizer.step()
    loss.item()

  return run


CASES = {
  "ours": ours_train,
  "ours scanned": partial(ours_train, scan=True),
  "stock flax": stock_train,
  "torch": torch_train,
  "torch.compile": partial(torch_train, compiled=True),
}


def main() -> None:
  peer, model, batch, dtype = sys.argv[1:]
  serve(CASES[peer](model, int(batch), dtype))


if __name__ == "__main__":
  main()
