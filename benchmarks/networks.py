"""A network with seeded weights, in files from which all programs read it.

`inference.py` starts this command, in the interpreter that has PyTorch:
python benchmarks/networks.py FOLDER NAME COUNT [onnx] [int8]
It writes the weights, COUNT images, the answers for them, and the files of ONNX that
are asked for.

Letters: B batch, S side of the images in pixels, K classes.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from turns import read_processor_flags

# Blocks per stage, whether they are bottlenecks, side of the images in pixels.
MODELS = {
  "resnet18": ((2, 2, 2, 2), False, 224),
  "resnet34": ((3, 4, 6, 3), False, 224),
  "resnet50": ((3, 4, 6, 3), True, 224),
  "resnet101": ((3, 4, 23, 3), True, 224),
  "resnet20": ((3, 3, 3), False, 32),
  "resnet56": ((9, 9, 9), False, 32),
  "resnet110": ((18, 18, 18), False, 32),
}
MEAN, STD = 0.5, 0.25  # Of pixels between 0 and 1.
# Batch statistics are those of so many images, and static quantisation sees so many.
EXAMPLES = 32


def classes_of(size: int) -> int:
  return 10 if size == 32 else 1000


def side_of(name: str) -> int:
  return MODELS[name][2] if name in MODELS else 32


def parse_case(text: str) -> tuple[str, int]:
  """Returns the network and the batch size of a case such as "resnet50:16"."""
  name, _, batch = text.partition(":")
  if name not in MODELS or not batch.isdecimal() or int(batch) < 1:
    raise argparse.ArgumentTypeError(
      f"{text!r} must be NETWORK:BATCH, such as resnet50:16, with one of the networks "
      f"{', '.join(MODELS)}"
    )
  return name, int(batch)


def make_images(count: int, size: int, seed: int) -> np.ndarray:
  """Returns random images [count, size, size, 3] of uint8.

  Each has a tint, coarse squares and noise. Noise alone would look the same to a
  network in all images, and its answers would hardly differ.
  """
  rng = np.random.default_rng(seed)
  tint = rng.normal(128, 30, (count, 1, 1, 3))
  squares = rng.normal(0, 50, (count, 8, 8, 3)).repeat(size // 8, 1)
  noise = rng.normal(0, 20, (count, size, size, 3))
  pixels = tint + squares.repeat(size // 8, 2) + noise
  return pixels.clip(0, 255).astype(np.uint8)


def normalise(images: np.ndarray) -> np.ndarray:
  """Maps uint8 to the float32 that a network takes."""
  return ((images / np.float32(255) - MEAN) / STD).astype(np.float32)


def channels_first(images: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


@dataclasses.dataclass(frozen=True)
class Network:
  """A folder that this file's command wrote.

  Attributes:
    folder: the folder.
    name: name of the network.
  """

  folder: Path
  name: str

  @property
  def weights(self) -> Path:
    """The state dict, with torchvision's names."""
    return self.folder / "weights.pth"

  def onnx(self, dtype: str) -> Path:
    """The file that PyTorch exported, or the quantised one for "int8"."""
    return self.folder / ("int8.onnx" if dtype == "int8" else "float32.onnx")

  @functools.cached_property
  def pixels(self) -> np.ndarray:
    """All images, [COUNT, S, S, 3] uint8."""
    return np.load(self.folder / "images.npy")

  def images(self, batch: int) -> np.ndarray:
    """The first images [batch, S, S, 3] as the float32 that the network takes."""
    return normalise(self.pixels[:batch])

  def deviation(self, logits: np.ndarray) -> float:
    """Returns how far a program's answers for the first images are from PyTorch's.

    Args:
      logits: [B, K]. A number that is added to all logits of an image does not count,
        so the logarithms of probabilities will do.

    Returns:
      The root mean square error of the logits, divided by their standard deviation over
      the images. So the part that all images have in common does not count: it would
      make any two programs look alike.
    """
    expected = np.load(self.folder / "logits.npy")
    expected = expected - expected.mean(1, keepdims=True)
    spread = np.sqrt(np.square(expected - expected.mean(0)).mean())
    given = logits - logits.mean(1, keepdims=True)
    error = np.sqrt(np.square(given - expected[: len(given)]).mean())
    return float(error / spread)


def create_torch(name: str):
  """Returns PyTorch's network, which maps [B, 3, S, S] to logits [B, K]."""
  sys.path.append(str(Path(__file__).parents[1] / "tests"))
  from torch_resnet import ResNet

  class Logits(ResNet):
    def forward(self, x):
      return super().forward(x)[1]

  sizes, bottleneck, size = MODELS[name]
  small = {"features": 16, "stem": "cifar", "shortcut": "A"} if size == 32 else {}
  return Logits(sizes, classes_of(size), bottleneck=bottleneck, **small)


def _draw(model, images) -> None:
  """Draws the weights, and takes the batch statistics of some images.

  Blocks add little to their shortcut, as in a trained network. Otherwise each would
  enlarge the rounding of all before it, and int8 would say nothing after 50 layers.
  """
  import torch
  from torch_resnet import Block

  torch.manual_seed(0)
  with torch.no_grad():
    for module in model.modules():
      if isinstance(module, torch.nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
      elif isinstance(module, torch.nn.BatchNorm2d):
        module.weight.uniform_(0.5, 1.5)
        module.bias.normal_(0, 0.1)
        module.momentum = 1.0  # One batch decides.
    for module in model.modules():
      if isinstance(module, Block):
        module.pairs[-1][1].weight.mul_(0.2)
    model.train()(images)
  model.eval()


def has_int8_products() -> bool:
  """Whether the processor sums products of 8 bits in 32 bits.

  Without VNNI, x86 sums pairs of them in 16 bits. That overflows, so the programs'
  manuals advise weights of 7 bits there.
  """
  return bool(read_processor_flags() & {"avx512_vnni", "avx_vnni", "asimddp"})


def quantise(source: Path, target: Path, images: np.ndarray) -> None:
  """Writes a file of ONNX with operations in int8, by ONNX Runtime's static method.

  The scales are per channel for weights, and those of `images` for activations.

  Args:
    source: a file with one input.
    target: the file to write.
    images: what the network takes, [N, ...].
  """
  import onnx
  from onnxruntime import quantization
  from onnxruntime.quantization.shape_inference import quant_pre_process

  class Reader(quantization.CalibrationDataReader):
    def __init__(self):
      self._batches = iter(np.split(images, len(images) // 4))

    def get_next(self):
      batch = next(self._batches, None)
      return None if batch is None else {name: batch}

  ready = target.with_suffix(".ready")
  quant_pre_process(source, ready, skip_symbolic_shape=True)  # Folds batch norm.
  graph = onnx.load(ready).graph
  name = graph.input[0].name
  quantization.quantize_static(
    ready,
    target,
    Reader(),
    quant_format=quantization.QuantFormat.QDQ,
    per_channel=True,
    # Small probabilities would be zero in 8 bits.
    nodes_to_exclude=[node.name for node in graph.node if node.op_type == "Softmax"],
    reduce_range=not has_int8_products(),
    activation_type=quantization.QuantType.QUInt8,
    weight_type=quantization.QuantType.QInt8,
  )


def write(network: Network, count: int, formats: Iterable[str] = ()) -> None:
  """Writes the files of a network.

  Args:
    network: its folder must exist.
    count: number of images with answers.
    formats: "onnx", and "int8" too.
  """
  import torch

  size = side_of(network.name)
  examples = normalise(make_images(EXAMPLES, size, seed=1))
  model = create_torch(network.name)
  _draw(model, torch.from_numpy(channels_first(examples)))
  torch.save(model.state_dict(), network.weights)
  np.save(network.folder / "images.npy", make_images(count, size, seed=2))
  images = torch.from_numpy(channels_first(network.images(count)))
  with torch.inference_mode():
    logits = torch.cat([model(part) for part in images.split(16)])
  np.save(network.folder / "logits.npy", logits.numpy())
  if "onnx" in formats:
    torch.onnx.export(
      model,
      (images[:2],),
      network.onnx("float32"),
      input_names=["images"],
      output_names=["logits"],
      dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
      external_data=False,
    )
  if "int8" in formats:
    quantise(network.onnx("float32"), network.onnx("int8"), channels_first(examples))


def main() -> None:
  folder, name, count, *formats = sys.argv[1:]
  write(Network(Path(folder), name), int(count), formats)


if __name__ == "__main__":
  main()
