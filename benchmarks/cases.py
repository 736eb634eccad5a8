"""Runs one network, ours or a peer's, as a process that `turns.py` times.

`train_step.py` and `inference.py` start it with this command:
python benchmarks/cases.py PEER TASK MODEL BATCH DTYPE
It reads from stdin how often to run. The images are random, and they are on the device
from the start.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from turns import count_cores, serve

# Blocks per stage, whether they are bottlenecks, side of the images in pixels.
MODELS = {
  "resnet18": ((2, 2, 2, 2), False, 224),
  "resnet34": ((3, 4, 6, 3), False, 224),
  "resnet50": ((3, 4, 6, 3), True, 224),
  "resnet20": ((3, 3, 3), False, 32),
  "resnet56": ((9, 9, 9), False, 32),
  "resnet110": ((18, 18, 18), False, 32),
}
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4


def classes_of(size: int) -> int:
  return 10 if size == 32 else 1000


def side_of(name: str) -> int:
  return MODELS[name][2] if name in MODELS else 32


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


def ours_infer(name: str, batch: int, dtype: str) -> Callable[[int], None]:
  """Returns the forward pass of evaluation, as users run it.

  Batch norm is folded, and the package chooses the kernels.
  """
  from resnet_jax.runtime import compilation

  compilation.keep_freed_memory()
  import jax
  import jax.numpy as jnp

  from resnet_jax import create_model, kernels
  from resnet_jax.models.folding import fold_batch_norm, pack_kernels

  size = side_of(name)
  model = create_model(name, classes_of(size), dtype=jnp.dtype(dtype))
  images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
  variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
  model, variables = fold_batch_norm(model, variables)
  choice = kernels.resolve("auto")
  variables = kernels.traced_with(choice, pack_kernels)(model, variables, images.shape)
  forward = compilation.jit(
    kernels.traced_with(choice, partial(model.apply, train=False)), dtype=dtype
  )

  def run(count: int) -> None:
    for _ in range(count):
      jax.block_until_ready(forward(variables, images))

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


def stock_infer(name: str, batch: int, dtype: str) -> Callable[[int], None]:
  """`jax.jit` of the forward pass."""
  import jax

  model, variables, size = stock_flax(name, dtype)
  images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
  forward = jax.jit(model.apply)

  def run(count: int) -> None:
    for _ in range(count):
      jax.block_until_ready(forward(variables, images))

  return run


def torch_model(name: str, compiled: bool):
  """Returns a channels-last model, its device, and the side of its images."""
  import torch
  from torch import nn

  torch.set_num_threads(count_cores())
  sizes, bottleneck, size = MODELS[name]
  small = size == 32
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.backends.cudnn.benchmark = True  # Picks the fastest kernels, as XLA does.
  if device == "cuda" and not small:
    import torchvision

    model = torchvision.models.get_model(name)
  else:  # An equal network. torchvision has none for CIFAR, and may be missing.
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from torch_resnet import ResNet

    class Logits(ResNet):
      def forward(self, x):
        return super().forward(x)[1]

    options = {"features": 16, "stem": "cifar", "shortcut": "A"} if small else {}
    model = Logits(sizes, classes_of(size), bottleneck=bottleneck, **options)
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


def torch_infer(
  name: str, batch: int, dtype: str, compiled: bool = False
) -> Callable[[int], None]:
  """The forward pass in inference mode."""
  import torch

  model, device, size = torch_model(name, compiled)
  model.eval()
  images = torch.randn(batch, 3, size, size, device=device)
  images = images.to(memory_format=torch.channels_last)

  def run(count: int) -> None:
    with torch.inference_mode():
      for _ in range(count):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
          logits = model(images)
        logits.sum().item()

  return run


CASES = {
  ("ours", "train"): ours_train,
  ("ours scanned", "train"): partial(ours_train, scan=True),
  ("ours", "infer"): ours_infer,
  ("stock flax", "train"): stock_train,
  ("stock flax", "infer"): stock_infer,
  ("torch", "train"): torch_train,
  ("torch", "infer"): torch_infer,
  ("torch.compile", "train"): partial(torch_train, compiled=True),
  ("torch.compile", "infer"): partial(torch_infer, compiled=True),
}


def main() -> None:
  peer, task, model, batch, dtype = sys.argv[1:]
  serve(CASES[peer, task](model, int(batch), dtype))


if __name__ == "__main__":
  main()
