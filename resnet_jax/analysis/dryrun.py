"""A training step rehearsed: compiled for devices that are not here, and looked at.

The step is the trainer's own, from the same settings. TPUs are described by libtpu
(`pip install 'flax-resnet[tpu]'`), which compiles for them on any Linux machine.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from resnet_jax.analysis.chips import CHIPS, HOP_S, Chip
from resnet_jax.analysis.collectives import Collective, count_collectives
from resnet_jax.config.schema import Config
from resnet_jax.data.pipelines.specs import create_abstract_dataset, open_resident
from resnet_jax.models.registry import create_model
from resnet_jax.runtime import compilation
from resnet_jax.runtime.errors import (
  UserError,
  is_out_of_memory,
  out_of_memory_reason,
)
from resnet_jax.runtime.mesh import check_batch_size, create_mesh
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.resolved_config import check_settings, with_num_classes

_EXAMPLES = "v4:2x2x2, v5e:4x4, v5p:2x2x1, v6e:16x16 or cpu:8"


@dataclasses.dataclass(frozen=True)
class Report:
  """What a step needs; of one chip unless said. None where the peaks are not known.

  Attributes:
    topology: as asked for.
    chips: their number.
    batch_size: over all chips.
    dtype: of the computation.
    fits: whether the compiler found room for it; if not, there is nothing after
      `problem` but zeros.
    problem: what it said if not.
    compile_s: wall time of compiling here.
    memory: bytes of "arguments", "temporaries", "code" and "peak", all of them.
    flops: a multiplication and an addition are two.
    memory_traffic: bytes read and written, as XLA estimates.
    collectives: of one step.
    compute_s, memory_s, network_s: what each would take at the chip's peak; float32
      convolutions and products run at bfloat16's rate on TPUs, by JAX's default.
    step_s: the largest of them: all overlap.
    bound: which that is.
    images_per_s: of all chips, by `step_s`.
  """

  topology: str
  chips: int
  batch_size: int
  dtype: str
  fits: bool
  problem: str = ""
  compile_s: float = 0.0
  memory: dict[str, int] = dataclasses.field(default_factory=dict)
  flops: float = 0.0
  memory_traffic: float = 0.0
  collectives: tuple[Collective, ...] = ()
  compute_s: float | None = None
  memory_s: float | None = None
  network_s: float | None = None
  step_s: float | None = None
  bound: str | None = None
  images_per_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices that are only described, or this machine's CPU as several.

  Attributes:
    name: as asked for.
    devices: one for each chip.
    shape: chips along each axis of the network.
    chip: peak rates; None for a CPU.
  """

  name: str
  devices: list[jax.Device]
  shape: tuple[int, ...]
  chip: Chip | None


def use_cpu_only(topologies: list[str]) -> None:
  """Makes JAX leave accelerators alone; to be called before its first use."""
  counts = [int(name[4:]) for name in topologies if re.fullmatch(r"cpu:\d+", name)]
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max([1, *counts]))
  # libtpu would ask Google's cloud where it is, and tell that it is not there.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # No chip is opened.
  os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
  os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def describe_topology(name: str) -> Topology:
  """Returns the devices of a topology such as "v5e:4x4" or "cpu:8".

  Raises:
    ValueError: it is unknown, or libtpu is not installed.
  """
  kind, _, shape = name.partition(":")
  if not re.fullmatch(r"\d+(x\d+)*", shape) or kind not in {"cpu", *CHIPS}:
    raise UserError(f"--topology {name!r} must be one such as {_EXAMPLES}")
  sizes = tuple(map(int, shape.split("x")))
  if kind == "cpu":
    devices = jax.devices("cpu")[: math.prod(sizes)]
    if len(sizes) > 1 or not len(devices) == sizes[0] > 0:
      raise UserError(f"--topology {name!r} must be one such as cpu:8")
    return Topology(name, devices, sizes, None)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"--topology {name!r} needs libtpu: pip install 'flax-resnet[tpu]', on Linux"
    )
  from jax.experimental import topologies

  # The two cores of a chip as one device, as they are used; v5p's are by default.
  options = {"chip_config_name": "megacore"} if kind == "v4" else {}
  try:
    described = topologies.get_topology_desc(name, "tpu", **options)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).split(": ", 1)[-1]
    raise UserError(
      f"--topology {name!r} must be one such as {_EXAMPLES}: {reason}"
    ) from None
  return Topology(name, described.devices, sizes, CHIPS[kind])


def rehearse(config: Config, topology: Topology) -> Report:
  """Compiles the step of an experiment for a topology.

  Args:
    config: the experiment.
    topology: from `describe_topology`.

  Raises:
    ValueError: settings that are wrong or do not fit the topology.
    FileNotFoundError: a data set that is to live on the devices is not there.
  """
  check_settings(config)
  mesh = create_mesh(topology.devices)
  check_batch_size(config.batch_size, mesh)
  platform = topology.devices[0].platform
  dtype = str(compilation.compute_dtype(config.model.dtype, platform))
  # The operations of the native kernels could not be counted.
  # Weights to start from change nothing here, and may not be there.
  config = dataclasses.replace(
    _with(config, "model", dtype=dtype), kernels="xla", init_from=""
  )
  source = open_resident(config.data)

  def lower(config: Config, on: Mesh) -> jax.stages.Lowered:
    data = create_abstract_dataset(config, source, on)
    classes = data.num_classes or config.model.num_classes
    if not classes and config.model.factory:
      raise UserError(
        "config.model.num_classes=0 must be > 0 for a network of your own, as the "
        "images are not opened here"
      )
    classes = classes or create_model(config.model.name).num_classes
    experiment = Experiment.create(
      with_num_classes(config, classes),
      devices=list(on.devices.flat),
      train_data=data,
    )
    init = experiment.state_init
    state = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      init.shapes,
      init.sharding(),
    )
    count = jax.ShapeDtypeStruct((), jnp.int32)
    chunk: Any = experiment.train_chunk
    traced = chunk.trace(state, data.feed, count)
    lowered: jax.stages.Lowered = traced.lower(lowering_platforms=(platform,))
    return lowered

  # XLA counts the body of a loop once, so the operations are counted without loops.
  unrolled = _with(_with(config, "model", scan=False), "optim", accumulate=1)
  # One device has no groups of batch norm; they change no operation that counts.
  unrolled = dataclasses.replace(unrolled, bn_scope="global")
  # Only a lowering for devices that are here can be counted.
  cost: Any = lower(unrolled, create_mesh(jax.devices()[:1])).cost_analysis()
  flops = cost["flops"] / len(topology.devices)

  report = Report(
    topology.name, len(topology.devices), config.batch_size, dtype, fits=False
  )
  start = time.monotonic()
  try:
    compiled: Any = lower(config, mesh).compile()
  except jax.errors.JaxRuntimeError as error:
    if not is_out_of_memory(error):
      raise
    return dataclasses.replace(report, problem=out_of_memory_reason(error))
  seconds = time.monotonic() - start
  cost = compiled.cost_analysis()
  traffic = cost["bytes accessed"]
  if config.model.scan or config.optim.accumulate > 1:
    traffic *= max(1.0, flops / cost["flops"])
  memory = compiled.memory_analysis()
  parts = {
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "code": memory.generated_code_size_in_bytes,
  }
  # The new state takes the place of the old one.
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  collectives = count_collectives(compiled.as_text(), len(topology.devices))
  return _add_roofline(
    dataclasses.replace(
      report,
      fits=True,
      compile_s=seconds,
      memory=parts | {"peak": sum(parts.values()) + new},
      flops=flops,
      memory_traffic=traffic,
      collectives=tuple(collectives),
    ),
    topology,
  )


def _with(config: Config, group: str, **values: Any) -> Config:
  changed = dataclasses.replace(getattr(config, group), **values)
  return dataclasses.replace(config, **{group: changed})


def _add_roofline(report: Report, topology: Topology) -> Report:
  """Adds the least times by the chip's peaks (Williams et al. 2009)."""
  if topology.chip is None:
    return report
  chip = topology.chip
  sent = sum(c.sent_bytes for c in report.collectives)
  # Along each axis a message goes half way round in both directions, there and back.
  around = sum(topology.shape)
  hops = sum(c.count * min(c.group, around) for c in report.collectives)
  seconds = {
    "compute": report.flops / chip.flops_per_s,
    "memory": report.memory_traffic / chip.memory_bytes_per_s,
    "network": sent / chip.network_bytes_per_s + hops * HOP_S,
  }
  bound = max(seconds, key=lambda name: seconds[name])
  return dataclasses.replace(
    report,
    compute_s=seconds["compute"],
    memory_s=seconds["memory"],
    network_s=seconds["network"],
    step_s=seconds[bound],
    bound=bound,
    images_per_s=report.batch_size / seconds[bound],
  )
