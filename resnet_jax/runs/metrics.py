"""Metrics as sums: added over batches and devices, divided once on the host."""

import operator
from typing import TypeVar

import jax
import numpy as np

from resnet_jax.runtime.arrays import Array, Float32

Metrics = dict[str, Float32[Array, ""]]  # On the devices.
HostMetrics = dict[str, np.float32]
AnyMetrics = TypeVar("AnyMetrics", Metrics, HostMetrics)


def add_metrics(a: AnyMetrics, b: AnyMetrics) -> AnyMetrics:
  """Adds the sums of two disjoint sets of examples."""
  sums: AnyMetrics = jax.tree.map(operator.add, a, b)
  return sums


def to_host(metrics: Metrics) -> HostMetrics:
  """Copies metrics to the host. Waits for the device."""
  return {name: np.float32(value) for name, value in jax.device_get(metrics).items()}


def summarize(metrics: Metrics | HostMetrics) -> dict[str, float]:
  """Returns means over the examples, and "count" as an int. Waits for the device."""
  sums = {name: float(value) for name, value in jax.device_get(metrics).items()}
  count = sums.pop("count")
  return {name: value / count for name, value in sums.items()} | {"count": int(count)}
