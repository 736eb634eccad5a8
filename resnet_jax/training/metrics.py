"""Loss and accuracy of a batch, as sums that add up over batches and devices.

`Metrics` is {name: float32 sum over valid examples, "count": how many}. Sums are
added with `jax.tree.map` and divided once, on the host, by `summarize`.

Shapes: B batch, K classes.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from resnet_jax.data.batch import Batch
from resnet_jax.runs.metrics import Metrics


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
