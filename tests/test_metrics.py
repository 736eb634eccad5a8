"""Loss and accuracy as sums over valid examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from resnet_jax.runs.metrics import add_metrics, summarize
from resnet_jax.training.task_metrics import compute_metrics, zero_metrics
from resnet_jax.training.tasks import Classification

TASK = Classification(7)


def make_batch(size, classes=7):
  label = jnp.asarray(np.random.default_rng(1).integers(0, classes, size))
  return normal(size, classes), {"label": label, "mask": jnp.ones(size, bool)}


def test_padding_counts_for_nothing():
  logits, batch = make_batch(9)
  padded = {
    "label": jnp.pad(batch["label"], (0, 3)),
    "mask": jnp.pad(batch["mask"], (0, 3)),
  }
  # NaN in the padding must not affect the sums either.
  more = jnp.pad(logits, ((0, 3), (0, 0)), constant_values=jnp.nan)
  a, b = (compute_metrics(TASK, *pair) for pair in ((logits, batch), (more, padded)))
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-6)


def test_parts_add_up_to_the_whole():
  logits, batch = make_batch(10)
  whole = compute_metrics(TASK, logits, batch)
  total = zero_metrics(TASK)
  for part in (slice(0, 3), slice(3, 10)):
    rows = {name: values[part] for name, values in batch.items()}
    total = add_metrics(total, compute_metrics(TASK, logits[part], rows))
  assert total.keys() == whole.keys()
  for name in whole:
    np.testing.assert_allclose(total[name], whole[name], rtol=1e-6)


def test_top1_and_top5_by_hand():
  logits = jnp.array([[6.0, 5, 4, 3, 2, 1]] * 3)
  batch = {"label": jnp.array([0, 4, 5]), "mask": jnp.ones(3, bool)}
  metrics = summarize(compute_metrics(Classification(6), logits, batch))
  assert metrics["top1"] == pytest.approx(1 / 3)
  assert metrics["top5"] == pytest.approx(2 / 3)
  assert metrics["count"] == 3


def test_top5_is_what_top_k_finds_among_equals_too():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.integers(0, 4, (200, 12)), jnp.float32)
  batch = {"label": jnp.asarray(rng.integers(0, 12, 200)), "mask": jnp.ones(200, bool)}
  best = jax.lax.top_k(logits, 5)[1]
  expected = (best == batch["label"][:, None]).any(-1).sum()
  assert 20 < expected < 180
  assert compute_metrics(Classification(12), logits, batch)["top5"] == expected


def test_no_top5_of_five_classes():
  logits, batch = make_batch(4, classes=5)
  task = Classification(5)
  assert "top5" not in compute_metrics(task, logits, batch)
  assert "top5" not in zero_metrics(task)


def test_loss_of_uniform_logits_is_log_classes_with_any_smoothing():
  _, batch = make_batch(4)
  for smoothing in (0.0, 0.1):
    task = Classification(7, smoothing)
    metrics = compute_metrics(task, jnp.zeros((4, 7)), batch, train=True)
    assert summarize(metrics)["loss"] == pytest.approx(np.log(7))


def test_label_smoothing_by_hand_in_training_only():
  logits, batch = make_batch(1)
  log_p = jax.nn.log_softmax(logits[0])
  label = int(batch["label"][0])
  expected = -(0.9 * log_p[label] + 0.1 * log_p.mean())
  task = Classification(7, label_smoothing=0.1)
  loss = compute_metrics(task, logits, batch, train=True)["loss"]
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  loss = compute_metrics(task, logits, batch)["loss"]
  np.testing.assert_allclose(loss, -log_p[label], rtol=1e-6)


def test_targets_that_are_given_are_those_of_the_loss():
  logits, batch = make_batch(3)
  targets = jax.nn.softmax(normal(3, 7, seed=5))
  metrics = compute_metrics(TASK, logits, batch, targets)
  expected = -(targets * jax.nn.log_softmax(logits)).sum()
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
  assert metrics["top1"] == compute_metrics(TASK, logits, batch)["top1"]
