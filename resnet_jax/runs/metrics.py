"""Metrics as sums that add up over batches and devices, divided once on the host."""

import operator

import jax

Metrics = dict[str, jax.Array]


def add_metrics(a: Metrics, b: Metrics) -> Metrics:
  """Sums of two disjoint sets of examples together."""
  sums: Metrics = jax.tree.map(operator.add, a, b)
  return sums


def summarize(metrics: Metrics) -> dict[str, float]:
  """Means over the examples, and "count" as an int. Waits for the device."""
  sums = {name: float(value) for name, value in jax.device_get(metrics).items()}
  count = sums.pop("count")
  return {name: value / count for name, value in sums.items()} | {"count": int(count)}
