"""The paper's CIFAR-10 ResNet-20 in PyTorch, to compare its accuracy with ours.

Command: python benchmarks/cifar10_torch.py DIR --steps 600. It needs the extra `torch`.
It uses the recipe of `configs/cifar10_resnet20.py` with other random numbers. It prints
the same lines as `resnet-jax train`: training metrics every 100 steps, then the test
accuracy.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from resnet_jax.data.sources.tfds import load_tfds

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Block(nn.Module):
  """Two 3x3 convolutions and an option A shortcut."""

  def __init__(self, inputs: int, features: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.stride, self.padding = stride, (features - inputs) // 2

  def forward(self, x):
    y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
    x = x[:, :, :: self.stride, :: self.stride]
    x = functional.pad(x, (0, 0, 0, 0, self.padding, self.padding))
    return functional.relu(x + y)


def resnet20() -> nn.Module:
  layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
  inputs = 16
  for features, stride in ((16, 1), (32, 2), (64, 2)):
    for i in range(3):
      layers.append(Block(inputs, features, stride if i == 0 else 1))
      inputs = features
  model = nn.Sequential(
    *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
  )
  for module in model.modules():
    if isinstance(module, nn.Conv2d):
      nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
  return model.to(memory_format=torch.channels_last)


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
  out = np.empty_like(images)
  for i, (y, x, flip) in enumerate(rng.integers(0, (9, 9, 2), (len(images), 3))):
    crop = padded[i, y : y + 32, x : x + 32]
    out[i] = crop[:, ::-1] if flip else crop
  return out


def to_tensor(images: np.ndarray) -> torch.Tensor:
  scaled = (images / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
  return torch.from_numpy(scaled).permute(0, 3, 1, 2)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("dir")
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  torch.manual_seed(args.seed)
  rng = np.random.default_rng(args.seed)
  train, test = (load_tfds("cifar10", args.dir, s) for s in ("train", "test"))
  model = resnet20()
  optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4)
  schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [32_000, 48_000])
  losses, hits, start = [], 0, time.monotonic()
  for step in range(args.steps):
    if step % 390 == 0:
      order = rng.permutation(len(train.labels))
    index = order[step % 390 * 128 :][:128]
    images = to_tensor(augment(train.images[index], rng))
    labels = torch.from_numpy(train.labels[index].astype(np.int64))
    logits = model(images)
    loss = functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    hits += (logits.argmax(1) == labels).sum().item()
    if (step + 1) % 100 == 0:
      seconds = time.monotonic() - start
      print(
        f"step {step + 1}/{args.steps}  train  loss {np.mean(losses):.4f}  "
        f"top-1 {hits / 128:.2f} %  {12800 / seconds:.0f} images/s",
        flush=True,
      )
      losses, hits, start = [], 0, time.monotonic()
  model.eval()
  hits = 0
  with torch.no_grad():
    for i in range(0, 10_000, 500):
      logits = model(to_tensor(test.images[i : i + 500])).numpy()
      hits += int((logits.argmax(1) == test.labels[i : i + 500]).sum())
  print(f"done: top-1 {hits / 100:.2f} % on 10,000 images after {args.steps} steps")


if __name__ == "__main__":
  main()
