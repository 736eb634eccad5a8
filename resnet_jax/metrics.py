"""Loss and accuracy of a batch, as sums that add up over batches and devices.

`Metrics` is {name: float32 sum over valid examples, "count": how many}. Sums are
added with `jax.tree.map` and divided once, on the host, by `summarize`.

Shapes: B batch, K classes.
"""

import operator

import chex
import jax
import jax.numpy as jnp
import optax

# image [B, H, W, C] uint8; label [B] int32 in [0, K); mask [B] bool, False for padding.
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def compute_metrics(
  logits: jax.Array,
  batch: Batch,
  label_smoothing: float = 0.0,
  targets: jax.Array | None = None,
) -> Metrics:
  """Sums over the valid examples of a batch.

  Args:
    logits: [B, K] float32.
    batch: `label` and `mask` are used.
    label_smoothing: probability spread evenly over all classes (Szegedy et al.
      2015, section 7).
    targets: [B, K] float32, probabilities that the loss is against; None is the
      labels'.

  Returns:
    "loss": cross-entropy in nats; "top1" and, for K > 5, "top5": number of hits;
    "count": number of valid examples.
  """
  labels, mask = batch["label"], batch["mask"]
  chex.assert_rank([logits, labels, mask], [2, 1, 1])
  chex.assert_equal_shape_prefix([logits, labels, mask], 1)
  chex.assert_type([logits, labels, mask], [jnp.float32, int, bool])
  classes = logits.shape[-1]
  if targets is None:
    targets = jax.nn.one_hot(labels, classes)
  targets = optax.smooth_labels(targets, label_smoothing)
  values = {
    "loss": optax.softmax_cross_entropy(logits, targets),
    "top1": logits.argmax(-1) == labels,
    "count": jnp.ones_like(mask),
  }
  if classes > 5:
    # By comparisons, as `top_k` would gather all logits on all devices; the first of
    # equals comes first, as there.
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(classes) < labels[:, None]
    better = (logits > own) | ((logits == own) & earlier)
    values["top5"] = better.sum(-1) < 5
  return {name: jnp.sum(v, where=mask, dtype=jnp.float32) for name, v in values.items()}


def zero_metrics(num_classes: int) -> Metrics:
  """The metrics of no examples."""
  names = ["loss", "top1", "count"] + ["top5"] * (num_classes > 5)
  return {name: jnp.zeros((), jnp.float32) for name in names}


def add_metrics(a: Metrics, b: Metrics) -> Metrics:
  """Sums of two disjoint sets of examples together."""
  return jax.tree.map(operator.add, a, b)


def summarize(metrics: Metrics) -> dict[str, float]:
  """Means over the examples, and "count" as an int. Waits for the device."""
  sums = {name: float(value) for name, value in jax.device_get(metrics).items()}
  count = sums.pop("count")
  return {name: value / count for name, value in sums.items()} | {"count": int(count)}
