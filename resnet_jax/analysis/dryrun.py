"""Dry run: compiles a training step for devices that this machine does not have.

The trainer would compile the same step from these settings, except that kernels are
always XLA's here. For TPUs, libtpu (`pip install 'flax-resnet[tpu]'`) describes the
devices and compiles for them on any Linux machine.
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

from resnet_jax.analysis.collectives import Collective, count_collectives
from resnet_jax.config.schema import Config
from resnet_jax.data.pipelines.specs import create_abstract_dataset, open_resident
from resnet_jax.models.registry import create_model
from resnet_jax.runtime import compilation
from resnet_jax.runtime.chips import CHIPS, HOP_S, Chip
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
  """The needs of one step, per chip unless stated. Estimated times are None on CPUs.

  Attributes:
    topology: the requested topology.
    chips: number of chips.
    batch_size: number of images over all chips.
    dtype: dtype of the computation.
    fits: whether the step fits in memory. If not, the fields after `problem` are empty.
    problem: the compiler's message if the step does not fit.
    compile_s: wall time of compiling on this machine.
    memory: bytes of "arguments", "temporaries" and "code", and the "peak" of all.
    flops: a multiplication and an addition count as two.
    memory_traffic: bytes read and written, as estimated by XLA.
    collectives: the collectives of one step.
    compute_s, memory_s, network_s: times that the operations, the memory traffic and
      the collectives take at the peak rates of the chip; None on CPUs. On TPUs, float32
      convolutions and products run at the rate of bfloat16, JAX's default.
    step_s: the largest of these times, as if they overlapped perfectly.
    bound: which of the three is the largest.
    images_per_s: images per second of all chips, from `step_s`.
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
  """Devices that libtpu describes, or this machine's CPU as several devices.

  Attributes:
    name: the requested topology.
    devices: one device per chip.
    shape: number of chips along each axis of the network between the chips.
    chip: peak rates of a chip; None for a CPU.
  """

  name: str
  devices: list[jax.Device]
  shape: tuple[int, ...]
  chip: Chip | None


def use_cpu_only(topologies: list[str]) -> None:
  """Makes JAX use only the CPU. Call it before the first use of JAX."""
  counts = [int(name[4:]) for name in topologies if re.fullmatch(r"cpu:\d+", name)]
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max([1, *counts]))
  # Otherwise libtpu asks Google's cloud for its location, and reports a failure.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # No chip is opened.
  os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
  os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def describe_topology(name: str) -> Topology:
  """Returns the devices of a topology such as "v5e:4x4" or "cpu:8".

  Raises:
    ValueError: the topology is unknown, or libtpu is not installed.
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

  # Training uses the two cores of a chip as one device, which is v5p's default.
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
    ValueError: the settings are wrong or do not fit the topology.
    FileNotFoundError: the data set does not exist. Streamed images are not opened.
  """
  check_settings(config)
  mesh = create_mesh(topology.devices)
  check_batch_size(config.batch_size, mesh)
  platform = topology.devices[0].platform
  dtype = str(compilation.compute_dtype(config.model.dtype, platform))
  # XLA cannot count the operations of the native kernels. The weights in `init_from` do
  # not change the step, and they may not exist on this machine.
  config = dataclasses.replace(
    _with(config, "model", dtype=dtype), kernels="xla", init_from="", init_head=False
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
    # The last images are the largest.
    traced = chunk.trace(state, data.feed, count, experiment.plan.sizes[-1])
    lowered: jax.stages.Lowered = traced.lower(lowering_platforms=(platform,))
    return lowered

  # XLA counts the body of a loop once, so the operations are counted without loops.
  unrolled = _with(_with(config, "model", scan=False), "optim", accumulate=1)
  # One device has no batch-norm groups; groups do not change the counted operations.
  unrolled = dataclasses.replace(unrolled, bn_scope="global")
  # XLA can count operations only for devices that this machine has.
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
  # The new state reuses the memory of the old one.
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
  """Adds lower bounds of the times, from the chip's peaks (Williams et al. 2009)."""
  if topology.chip is None:
    return report
  chip = topology.chip
  sent = sum(c.sent_bytes for c in report.collectives)
  # An axis of n chips is a ring. Messages go round it in both directions, so the
  # farthest chip is n / 2 hops away. A collective needs the way there and back.
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
