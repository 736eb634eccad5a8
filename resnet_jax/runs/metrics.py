"""Metrics as sums: added over batches and devices, divided once on the host."""

import operator
from typing import Any, TypeVar

import jax
import numpy as np

from resnet_jax.runtime.arrays import Array, Float32, Int32

# A sum for each name, on the devices; of counts of several numbers int32, else float32.
Metrics = dict[str, Float32[Array, "..."] | Int32[Array, "..."]]
HostMetrics = dict[str, Any]  # float32; int64 for int32.
AnyMetrics = TypeVar("AnyMetrics", Metrics, HostMetrics)


def add_metrics(a: AnyMetrics, b: AnyMetrics) -> AnyMetrics:
  """Adds the sums of two disjoint sets of examples."""
  sums: AnyMetrics = jax.tree.map(operator.add, a, b)
  return sums


def to_host(metrics: Metrics) -> HostMetrics:
  """Copies metrics to the host. Waits for the device."""
  host: HostMetrics = jax.device_get(metrics)
  # Counts of many batches can be more than int32 holds.
  dtypes = {"i": np.int64, "f": np.float32}
  return {
    name: np.asarray(value, dtypes[value.dtype.kind])[()]
    for name, value in host.items()
  }


def summarize(metrics: Metrics | HostMetrics) -> dict[str, float]:
  """Returns means over the examples, and "count" as an int. Waits for the device."""
  sums = {name: float(value) for name, value in jax.device_get(metrics).items()}
  count = sums.pop("count")
  return {name: value / count for name, value in sums.items()} | {"count": int(count)}
