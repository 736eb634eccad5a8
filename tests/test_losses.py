"""The losses of a classification, and what weights and adjustments do."""

import dataclasses
import io
import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from running import train_config
from scipy.special import expit, log_softmax
from sklearn.utils.class_weight import compute_class_weight

from resnet_jax.config import Config
from resnet_jax.config.schema import LossConfig
from resnet_jax.data import ImageArrays
from resnet_jax.data.pipelines.sampling import BalancedOrder, balanced_shares
from resnet_jax.data.sources.built_in import load_digits
from resnet_jax.runs.run_dir import load_run_config
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.tasks import create_task

LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 3
LABELS = np.array([0, 1, 2, 3, 1, 1])
HARD = np.eye(4, dtype=np.float32)[LABELS]
MIXED = 0.7 * HARD + 0.3 * HARD[::-1]
COUNTS = (70, 20, 9, 1)


def task_of(smoothing=0.0, **loss):
  config = Config(loss=LossConfig(**loss))
  config.model.num_classes = 4
  config.optim.label_smoothing = smoothing
  return create_task(config)


def losses(task, targets, train=True):
  return np.asarray(task.loss(jnp.asarray(LOGITS), jnp.asarray(targets), train))


def cross_entropy(logits, targets):
  return -(targets * log_softmax(logits.astype(np.float64), axis=1)).sum(1)


@pytest.mark.parametrize("targets", [HARD, MIXED], ids=["hard", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_loss_is_its_formula(targets, smoothing):
  smooth = targets * (1 - smoothing) + smoothing / 4
  p = np.exp(log_softmax(LOGITS.astype(np.float64), axis=1))
  s = expit(LOGITS.astype(np.float64))
  binary = -(smooth * np.log(s) + (1 - smooth) * np.log(1 - s)).mean(1)
  focal = -(smooth * (1 - p) ** 1.5 * np.log(p)).sum(1)
  for name, options, expected in (
    ("softmax", {}, cross_entropy(LOGITS, smooth)),
    ("bce", {}, binary),
    ("focal", {"focal_gamma": 1.5}, focal),
    ("focal", {"focal_gamma": 0.0}, cross_entropy(LOGITS, smooth)),
  ):
    found = losses(task_of(smoothing, name=name, **options), targets)
    np.testing.assert_allclose(found, expected, rtol=2e-5, err_msg=name)


def test_targets_above_the_threshold_are_1():
  hard = (MIXED > 0.4).astype(np.float32)
  found = losses(task_of(name="bce", bce_threshold=0.4), MIXED)
  np.testing.assert_allclose(found, losses(task_of(name="bce"), hard))
  assert not np.allclose(found, losses(task_of(name="bce"), MIXED))


@pytest.mark.parametrize("name", ["softmax", "bce", "focal"])
def test_classes_have_weights(name):
  weights = (0.5, 1.0, 2.0, 4.0)
  plain, weighted = task_of(name=name), task_of(name=name, class_weights=weights)
  for targets in (HARD, MIXED):
    factors = targets @ np.array(weights)
    np.testing.assert_allclose(
      losses(weighted, targets), factors * losses(plain, targets), rtol=1e-6
    )
  balanced = task_of(class_weighting="balanced", class_counts=COUNTS)
  labels = np.repeat(range(4), COUNTS)
  expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
  np.testing.assert_allclose(balanced.class_weights, expected)


def test_logits_are_adjusted_by_the_frequency_of_the_classes():
  task = task_of(logit_adjustment=1.0, class_counts=COUNTS)
  adjusted = LOGITS + np.log(np.array(COUNTS) / 100)
  np.testing.assert_allclose(
    losses(task, HARD), cross_entropy(adjusted, HARD), rtol=1e-5
  )


@pytest.mark.parametrize(
  "loss",
  [
    {"name": "bce"},
    {"name": "focal"},
    {"class_weights": (1.0, 2.0, 3.0, 4.0)},
    {"logit_adjustment": 1.0, "class_counts": COUNTS},
  ],
  ids=["bce", "focal", "weights", "adjusted"],
)
def test_an_evaluation_reports_the_cross_entropy(loss):
  found = losses(task_of(0.1, **loss), HARD, train=False)
  np.testing.assert_allclose(found, cross_entropy(LOGITS, HARD), rtol=1e-5)


def test_the_loss_of_a_sure_prediction_has_a_gradient():
  import jax

  task = task_of(name="focal", focal_gamma=0.5)
  sure = jnp.array([[200.0, 0.0, 0.0, 0.0]])
  loss = lambda x: task.loss(x, jnp.asarray(HARD[:1]), True).sum()  # noqa: E731
  assert np.isfinite(jax.grad(loss)(sure)).all()


@pytest.mark.parametrize(
  ("loss", "said"),
  [
    ({"class_weights": (1.0, 2.0)}, r"class_weights has 2 values, but there are 4"),
    ({"class_counts": (1,) * 5}, r"class_counts has 5 values, but there are 4"),
  ],
)
def test_numbers_for_other_classes_are_refused(loss, said):
  with pytest.raises(ValueError, match=said):
    task_of(**loss)


@pytest.mark.parametrize(
  ("path", "value"),
  [("class_weights", (-1.0,)), ("class_counts", (0, 3)), ("name", "hinge")],
)
def test_wrong_settings_are_refused(path, value):
  config = Config(loss=dataclasses.replace(LossConfig(), **{path: value}))
  with pytest.raises(ValueError, match=rf"config\.loss\.{path}="):
    Experiment.create(config)


def config_of(**loss) -> Config:
  config = Config(num_steps=4, batch_size=64, loss=LossConfig(**loss))
  config.model.name = "resnet8"
  return config


def test_the_classes_are_counted_once_and_kept_with_the_run(tmp_path):
  config = config_of(name="focal", class_weighting="balanced", logit_adjustment=0.5)
  whole, _ = train_config(config, tmp_path / "whole")
  labels = load_digits("train").labels
  saved = load_run_config(tmp_path / "whole")
  assert saved.loss.class_counts == tuple(np.bincount(labels))
  config.num_steps = 2
  train_config(config, tmp_path / "part")
  resumed = dataclasses.replace(load_run_config(tmp_path / "part"), num_steps=4)
  found, _ = train_config(resumed, tmp_path / "part")
  np.testing.assert_array_equal(
    found.params["head"]["kernel"], whole.params["head"]["kernel"]
  )
  assert json.loads((tmp_path / "part" / "config.json").read_text())["loss"]


def test_labels_that_are_not_known_must_be_counted_by_the_user():
  class Hidden:
    class_names = tuple(map(str, range(10)))

    def __len__(self):
      return 10

    def __getitem__(self, index):
      raise AssertionError

    def name(self, index):
      return ""

  config = config_of(class_weighting="balanced")
  config.data.train_crop = "random_resized"
  config.data.eval_resize = config.data.eval_crop = 8
  config.data.image_size = 8
  with pytest.raises(ValueError, match="does not tell the labels before its images"):
    Experiment.create(config, train_data=Hidden(), eval_data=Hidden())
  config.loss.class_counts = (1,) * 10
  Experiment.create(config, train_data=Hidden(), eval_data=Hidden())


def test_a_class_without_images_has_no_weight():
  digits = load_digits("train")
  some = np.flatnonzero(digits.labels != 3)
  part = dataclasses.replace(
    digits, images=digits.images[some], labels=digits.labels[some]
  )
  with pytest.raises(ValueError, match="but 1 of the classes have no training image"):
    Experiment.create(
      config_of(class_weighting="balanced"), train_data=part, eval_data=part
    )


LONG_TAIL = np.repeat([0, 1, 2, 5], [500, 60, 7, 1])


def test_balanced_orders_draw_each_class_equally_often():
  order = BalancedOrder(LONG_TAIL, seed=3)
  drawn = np.array([order[i] for i in range(4000)])
  counts = np.bincount(LONG_TAIL[drawn], minlength=6)[[0, 1, 2, 5]]
  assert abs(counts - 1000).max() < 120  # Four standard deviations.
  assert len({*drawn[LONG_TAIL[drawn] == 1]}) == 60  # All images of a class.
  again = pickle.loads(pickle.dumps(order))
  assert [again[i] for i in (7, 3, 3999)] == drawn[[7, 3, 3999]].tolist()
  assert [BalancedOrder(LONG_TAIL, 4)[i] for i in range(9)] != drawn[:9].tolist()
  shares = balanced_shares(LONG_TAIL)
  sums = np.bincount(LONG_TAIL, shares, 6)
  np.testing.assert_allclose(sums, [0.25, 0.25, 0.25, 0, 0, 0.25])


def long_tail() -> ImageArrays:
  """Digits with few images of all but two classes."""
  digits = load_digits("train")
  kept = np.concatenate(
    [np.flatnonzero(digits.labels == i)[: 140 if i < 2 else 6] for i in range(10)]
  )
  return dataclasses.replace(
    digits, images=digits.images[kept], labels=digits.labels[kept]
  )


class Encoded:
  """Images of a source as files, so that they are read while training runs."""

  def __init__(self, arrays: ImageArrays):
    self.arrays, self.labels = arrays, arrays.labels
    self.class_names = arrays.class_names

  def __len__(self):
    return len(self.arrays)

  def __getitem__(self, index):
    image = self.arrays.images[index].repeat(3, axis=-1)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue(), int(self.labels[index])

  def name(self, index):
    return f"image {index}"


def labels_from(experiment, step: int, last: int) -> list:
  """Returns the labels of batches `step` to `last`."""
  data, found = experiment.train_data, []
  for end, feed, count in data.train_chunks(experiment.data_key, step, experiment.plan):
    for number in range(end - count, end):
      found.append(np.asarray(data.take_batch(feed, number)["label"]))
    if end >= last:
      break
  return found


def placed(config, source, streamed):
  """Returns the images, in memory or as files."""
  if not streamed:
    return source
  config.data.train_crop, config.data.image_size = "random_resized", 8
  config.data.eval_resize = config.data.eval_crop = 8
  return Encoded(source)


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
def test_images_are_repeated_in_a_batch(streamed):
  """A set whose labels are the numbers of its images."""
  config = config_of()
  config.data.repeats, config.batch_size = 3, 16
  digits = load_digits("train")
  count = 50
  numbers = dataclasses.replace(
    digits,
    images=digits.images[:count],
    labels=np.arange(count, dtype=np.int32),
    class_names=tuple(map(str, range(count))),
  )
  source = placed(config, numbers, streamed)
  experiment = Experiment.create(config, train_data=source, eval_data=source)
  found = np.concatenate(labels_from(experiment, 0, 3))  # An epoch of 48 images.
  np.testing.assert_array_equal(found[::3], found[1::3])
  np.testing.assert_array_equal(found[::3], found[2::3])
  assert len({*found}) == 16
  again = np.concatenate(labels_from(experiment, 2, 3))
  np.testing.assert_array_equal(again, found[32:])


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
def test_balanced_batches_are_the_same_after_a_resume(streamed):
  config = config_of()
  config.data.sampling = "balanced"
  source = placed(config, long_tail(), streamed)
  experiment = Experiment.create(config, train_data=source, eval_data=source)
  whole = labels_from(experiment, 0, 4)
  np.testing.assert_array_equal(whole[2:], labels_from(experiment, 2, 4))
  counts = np.bincount(np.concatenate(whole), minlength=10)
  assert counts.min() > 8 and counts.max() < 50  # 256 images, about 26 of each.
  assert np.bincount(source.labels)[5] == 6
