"""`resnet-jax info`: prints what a bug report needs."""

import argparse
import importlib.metadata
import json
import os
import platform
from typing import Any

from resnet_jax.cli.options import add_json
from resnet_jax.runtime.terminal import show

TEXT = (
  "Print versions, devices, the kernels and image decoders in use and why, and the "
  "cache folders: what a bug report needs."
)
EXAMPLES = ("resnet-jax info", "resnet-jax info --json")
_PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
  *("tensorflow-datasets", "array_record", "opencv-python-headless", "pillow"),
  *("PyTurboJPEG", "safetensors", "onnx", "onnxruntime", "optuna", "torch"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  found = collect()
  if args.json:
    print(json.dumps(found))
    return
  for title, value in found.items():
    if isinstance(value, dict):
      value = ", ".join(f"{k} {v}" for k, v in value.items())
    show(f"{title + ':':10} {value}")


def collect() -> dict[str, Any]:
  """Returns the values that the command prints, by title."""
  import jax

  from resnet_jax import __version__
  from resnet_jax.data.images import turbojpeg
  from resnet_jax.kernels import choice
  from resnet_jax.runtime.private_folder import cache_dir

  reason = choice.why_not_native()
  kernels = f"xla, as {reason}" if reason else "native"
  jpeg = f"libjpeg-turbo 3, {turbojpeg.library_name()}"
  if reason := turbojpeg.why_not():
    jpeg = f"OpenCV, as {reason}"
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = "none"
  devices = jax.devices()
  return {
    "resnet_jax": __version__,
    "python": f"{platform.python_version()} on {platform.platform()}",
    "devices": f"{len(devices)} {devices[0].device_kind} ({devices[0].platform})",
    "cores": str(os.cpu_count()),
    "kernels": kernels,
    "jpeg": jpeg,
    "caches": {
      "kernels": str(cache_dir()),
      "compiled": str(
        getattr(jax.config, "jax_compilation_cache_dir", None) or cache_dir()
      ),
    },
    "packages": versions,
  }
