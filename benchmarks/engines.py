"""Runs the forward pass of one network in one program, as a process that is timed.

`inference.py` starts it with this command: python benchmarks/engines.py PEER FOLDER
NAME BATCH DTYPE, where `networks.py` wrote FOLDER. Before it is timed, the program's
answers are compared with PyTorch's in float32. It uses all cores, and the images are on
the device from the start.

A dtype that a program or the processor does not have ends in `NotHereError`. Some
programs would compute in another dtype without a word, and their time would mislead.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from networks import (
  EXAMPLES,
  MEAN,
  STD,
  Network,
  channels_first,
  classes_of,
  create_torch,
  has_int8_products,
  make_images,
  normalise,
  quantise,
  side_of,
)
from runtimes import Forward, NotHereError, Runtime, run_onnxruntime, run_openvino
from turns import count_cores, read_processor_flags, serve

DTYPES = "float32", "bfloat16", "int8"
# Largest `Network.deviation` of a dtype. On a GPU, convolutions of float32 are TF32.
BOUNDS = {"float32": 1e-4, "TF32": 2e-2, "bfloat16": 0.1, "int8": 0.5}
# A stock Flax network pads otherwise at stride 2, so it has no such weights.
UNCHECKED = ("stock flax",)


def check_bfloat16(dtype: str) -> None:
  """Refuses to emulate bfloat16 on a processor without instructions for it."""
  names = {"avx512_bf16", "amx_bf16", "bf16"}
  if dtype == "bfloat16" and not read_processor_flags() & names:
    raise NotHereError("the processor has neither AVX512_BF16 nor AMX for bfloat16")


def forward_ours(model, variables, images) -> Forward:
  """Returns the forward pass of evaluation, as users run it.

  Batch norm is folded, and the package chooses and packs the kernels.

  Args:
    model: the network.
    variables: its variables.
    images: [B, S, S, 3] float32.
  """
  import jax

  from resnet_jax import kernels
  from resnet_jax.models.folding import fold_batch_norm, pack_kernels
  from resnet_jax.runtime import compilation

  images = jax.device_put(images)
  model, variables = fold_batch_norm(model, variables)
  choice = kernels.resolve_for_inference(model.dtype)
  variables = kernels.traced_with(choice, pack_kernels)(model, variables, images.shape)
  apply = kernels.traced_with(choice, partial(model.apply, train=False))
  jit = partial(compilation.jit, dtype=model.dtype)
  if compilation.are_constants(variables):  # As in `Classifier`.
    constant = jit(partial(apply, variables))
    return lambda: np.asarray(constant(images))
  forward = jit(apply)
  return lambda: np.asarray(forward(variables, images))


def ours(network: Network, batch: int, dtype: str) -> Forward:
  """This package."""
  from resnet_jax.runtime import compilation

  compilation.keep_freed_memory()  # As the commands do, before JAX starts.
  import jax
  import jax.numpy as jnp

  from resnet_jax import create_model, weights

  if dtype == "int8":
    raise NotHereError("this package does not compute in int8")
  if jax.default_backend() == "cpu":
    check_bfloat16(dtype)
  size = side_of(network.name)
  model = create_model(network.name, classes_of(size), dtype=jnp.dtype(dtype))
  variables = weights.load(network.weights, model)
  return forward_ours(model, variables, network.images(batch))


def stock_flax(network: Network, batch: int, dtype: str) -> Forward:
  """A stock Flax network with weights of its own, by `jax.jit`."""
  import jax
  from cases import stock_flax as create

  if dtype == "int8":
    raise NotHereError("Flax does not compute in int8")
  if jax.default_backend() == "cpu":
    check_bfloat16(dtype)
  model, variables, _ = create(network.name, dtype)
  images = jax.device_put(network.images(batch))
  forward = jax.jit(model.apply)
  return lambda: np.asarray(forward(variables, images))


def torch(network: Network, batch: int, dtype: str, how: str = "eager") -> Forward:
  """PyTorch in inference mode, channels last, with autocast for bfloat16.

  Args:
    network: the network.
    batch: images per forward pass.
    dtype: dtype of the computation.
    how: "eager", "compile", or "freeze", where inductor takes weights as constants.
  """
  import torch

  torch.set_num_threads(count_cores())
  device = "cuda" if torch.cuda.is_available() else "cpu"
  if device == "cpu":
    check_bfloat16(dtype)
  torch.backends.cudnn.benchmark = True  # Picks the fastest kernels, as XLA does.
  model = create_torch(network.name)
  model.load_state_dict(torch.load(network.weights))
  model = model.eval().to(device, memory_format=torch.channels_last)
  # The array is NHWC, so that the view is channels last without a copy.
  images = torch.from_numpy(network.images(batch)).permute(0, 3, 1, 2).to(device)
  if dtype == "int8":
    if how != "freeze" or device != "cpu":
      raise NotHereError("PyTorch's int8 for networks is inductor's, frozen, on a CPU")
    pixels = make_images(EXAMPLES, side_of(network.name), seed=1)
    model = quantise_torch(model, torch.from_numpy(channels_first(normalise(pixels))))
  if how == "freeze":
    import torch._inductor.config

    torch._inductor.config.freezing = True
  forward = model if how == "eager" else torch.compile(model)

  def run() -> np.ndarray:
    with (
      torch.inference_mode(),
      torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
      return forward(images).float().cpu().numpy()

  return run


def quantise_torch(model, examples):
  """Returns the model in int8: per channel, calibrated, as inductor's tutorial does.

  Args:
    model: PyTorch's network.
    examples: images [N, 3, S, S] for the scales of activations.
  """
  import torch
  from torchao.quantization.pt2e import quantize_pt2e
  from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

  quantizer = x86.X86InductorQuantizer()
  settings = x86.get_default_x86_inductor_quantization_config(
    reduce_range=not has_int8_products()
  )
  quantizer.set_global(settings)
  with torch.no_grad():
    shapes = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(model, (examples,), dynamic_shapes=shapes)
    prepared = quantize_pt2e.prepare_pt2e(exported.module(), quantizer)
    for part in examples.split(4):
      prepared(part)
    return quantize_pt2e.convert_pt2e(prepared)


def peer_file(network: Network, batch: int, dtype: str, run: Runtime) -> Forward:
  """PyTorch's export in a runtime."""
  images = channels_first(network.images(batch))
  return run(network.onnx(dtype), images, dtype)


def our_file(network: Network, batch: int, dtype: str, run: Runtime) -> Forward:
  """This package's export in a runtime; it takes uint8, and gives probabilities."""
  path = network.folder / "ours.onnx"
  if not path.exists():
    export_ours(network, path)
  if dtype == "int8":
    source, path = path, path.with_name("ours_int8.onnx")
    if not path.exists():
      examples = make_images(EXAMPLES, side_of(network.name), seed=1)
      quantise(source, path, examples)
  forward = run(path, network.pixels[:batch], dtype)
  return lambda: np.log(forward())


def export_ours(network: Network, path: Path) -> None:
  """Writes the file that `resnet-jax export` makes of the network."""
  from resnet_jax import Classifier, create_model, weights
  from resnet_jax.config.preprocessing import Preprocessing
  from resnet_jax.inference.export import export

  size = side_of(network.name)
  model = create_model(network.name, classes_of(size))
  preprocessing = Preprocessing((MEAN,), (STD,), resize=0, crop=size)
  variables = weights.load(network.weights, model)
  names = tuple(map(str, range(classes_of(size))))
  classifier = Classifier(network.name, model, variables, preprocessing, names)
  export(classifier, str(path), "onnx")


CASES: dict[str, Callable[[Network, int, str], Forward]] = {
  "ours": ours,
  "stock flax": stock_flax,
  "torch": torch,
  "torch.compile": partial(torch, how="compile"),
  "torch frozen": partial(torch, how="freeze"),
  "onnxruntime": partial(peer_file, run=run_onnxruntime),
  "openvino": partial(peer_file, run=run_openvino),
  "ours in onnxruntime": partial(our_file, run=run_onnxruntime),
  "ours in openvino": partial(our_file, run=run_openvino),
}


def is_on_gpu() -> bool:
  """Whether the program of this process computes on a GPU."""
  jax, torch = map(sys.modules.get, ("jax", "torch"))
  if jax is not None:
    return jax.default_backend() == "gpu"
  return torch is not None and torch.cuda.is_available()


def main() -> None:
  peer, folder, name, batch, dtype = sys.argv[1:]
  network = Network(Path(folder), name)
  try:
    forward = CASES[peer](network, int(batch), dtype)
  except NotHereError as reason:
    sys.exit(f"not here: {reason}")
  if peer not in UNCHECKED:
    bound = BOUNDS["TF32" if dtype == "float32" and is_on_gpu() else dtype]
    if not (deviation := network.deviation(forward())) <= bound:
      sys.exit(f"its answers are off by {deviation:.2g}, more than {bound:g}")

  def run(count: int) -> None:
    for _ in range(count):
      forward()

  serve(run)


if __name__ == "__main__":
  main()
