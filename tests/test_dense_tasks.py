"""Masks and boxes in training: exact counts, labels that move with their images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import create_model, weights
from resnet_jax.config.schema import Config
from resnet_jax.data import ImageArrays, LabelSpec
from resnet_jax.data.batches import moved_labels
from resnet_jax.data.batches.preprocess import preprocess
from resnet_jax.models.dense_heads import FCNHead
from resnet_jax.models.segmentation import Segmenter
from resnet_jax.runs.metrics import add_metrics, to_host
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.dense_tasks import Segmentation
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.task_metrics import (
  compute_metrics,
  results_of,
  zero_metrics,
)
from resnet_jax.training.transfer import load_start, start_from

NAMES = ("nothing", "left", "right")
KEY = jax.random.key(3)


def masks(count, side=12, seed=0):
  values = np.random.default_rng(seed).choice([0, 1, 2, 255], (count, side, side))
  return values.astype(np.uint8)


def small_segmenter(net="resnet8", aux=True):
  return Segmenter(create_model(net), 3, FCNHead, aux=aux, output_stride=None)


def experiment(model=None, **changes):
  config = Config(batch_size=8, num_epochs=1, seed=5)
  config.data.name, config.data.labels = "", "mask"
  config.model.num_classes = 3
  for name, value in changes.items():
    setattr(config, name, value)
  images = np.random.default_rng(1).integers(0, 256, (16, 12, 12, 3), np.uint8)
  data = ImageArrays(images, masks(16), NAMES)
  model = model or small_segmenter()
  return Experiment.create(config, model=model, train_data=data, eval_data=data)


def test_counts_are_exact_and_leave_out_padding_and_ignored_pixels():
  task, labels = Segmentation(3), masks(4)
  logits = {"out": jax.random.normal(KEY, (4, 12, 12, 3))}
  mask = np.array([True, False, True, True])
  batch = {"label": jnp.array(labels), "mask": jnp.array(mask)}
  sums = compute_metrics(task, logits, batch)
  found = np.asarray(logits["out"].argmax(-1))
  expected = np.zeros((3, 3), int)
  kept = mask[:, None, None] & (labels < 3)
  np.add.at(expected, (labels[kept], found[kept]), 1)
  assert sums["confusion"].dtype == jnp.int32
  np.testing.assert_array_equal(sums["confusion"], expected)
  zeros = zero_metrics(task)
  assert zeros.keys() == sums.keys()
  assert jax.tree.map(lambda x: (x.shape, x.dtype), zeros) == jax.tree.map(
    lambda x: (x.shape, x.dtype), sums
  )


@pytest.mark.parametrize("count", [2, 17, 21, 150, 255])
def test_perfect_predictions_have_a_mean_iou_of_1(count):
  task, rng = Segmentation(count), np.random.default_rng(0)
  labels = rng.integers(0, count, (3, 40, 40)).astype(np.uint8)
  logits = {"out": jax.nn.one_hot(labels, count)}
  batch = {"label": jnp.array(labels), "mask": jnp.ones(3, bool)}
  results = results_of(task, compute_metrics(task, logits, batch))
  assert results["mean_iou"] == results["pixel_accuracy"] == 1


def test_pixels_that_are_all_ignored_have_no_mean_iou():
  zeros = zero_metrics(Segmentation(3)) | {"count": jnp.ones(())}
  assert "mean_iou" not in results_of(Segmentation(3), zeros)
  ignored = np.full((16, 12, 12), 255, np.uint8)
  data = ImageArrays(np.zeros((16, 12, 12, 3), np.uint8), ignored, NAMES)
  config = experiment().config
  with pytest.raises(UserError, match="all pixels of the images are 255"):
    _ = Experiment.create(config, model=small_segmenter(), train_data=data).train_data


def test_more_pixels_than_int32_holds_are_counted():
  most = {"confusion": jnp.full((2, 2), 2**31 - 1, jnp.int32), "count": jnp.ones(())}
  total = add_metrics(to_host(most), to_host(most))
  assert (total["confusion"] == 2**32 - 2).all()
  total["loss"] = np.float32(1)
  results = results_of(Segmentation(2), total)
  assert results == {
    "loss": 1.0 / 2,
    "count": 2,
    "mean_iou": pytest.approx(1 / 3),
    "pixel_accuracy": 0.5,
  }


def test_the_loss_is_the_mean_of_the_labelled_pixels_and_has_the_auxiliary_head():
  labels = jnp.array([[[0, 1], [255, 2]]], jnp.uint8)
  out, aux = jax.random.normal(KEY, (2, 1, 2, 2, 3))
  logs = jax.nn.log_softmax(jnp.stack([out, aux]))[:, 0]
  plain = -(logs[:, 0, 0, 0] + logs[:, 0, 1, 1] + logs[:, 1, 1, 2]) / 3
  task, both = Segmentation(3), {"out": out, "aux": aux}
  np.testing.assert_allclose(task.loss(both, labels, False), plain[:1], rtol=1e-6)
  expected = plain[:1] + 0.5 * plain[1:]
  np.testing.assert_allclose(task.loss(both, labels, True), expected, rtol=1e-6)
  assert task.loss({"out": out}, jnp.full_like(labels, 255), True) == 0


def test_masks_move_with_their_images():
  labels = masks(32) % 3 + 1
  settings = {"padding": 3, "flip": True}
  images = np.repeat(labels[..., None] * 50, 3, axis=-1).astype(np.uint8)
  moved = preprocess(jnp.array(images), KEY, **settings, mean=(0.0,), std=(1.0,))
  found = moved_labels.move_masks(jnp.array(labels), KEY, **settings)
  classes = np.round(np.asarray(moved[..., 0]) * 255 / 50)
  np.testing.assert_array_equal(np.where(found == 255, 0, found), classes)
  assert (found != labels).any()


def test_boxes_move_with_their_images():
  rng, side = np.random.default_rng(0), 16
  images = np.zeros((64, side, side, 1), np.uint8)
  boxes = np.zeros((64, 2, 6), np.float32)
  boxes[:, 1, 4] = -1
  for image, rows in zip(images, boxes, strict=True):
    x, y = rng.integers(0, side - 4, 2)
    width, height = rng.integers(1, 5, 2)
    image[y : y + height, x : x + width] = 255
    rows[0] = x, y, x + width, y + height, 2, 0
  settings = {"padding": 4, "flip": True}
  moved = preprocess(jnp.array(images), KEY, **settings, mean=(0.0,), std=(1.0,))
  found = moved_labels.move_boxes(
    jnp.array(boxes), KEY, image_size=(side, side), **settings
  )
  for image, (row, padding) in zip(np.asarray(moved), np.asarray(found), strict=True):
    rows, columns = np.nonzero(image[..., 0])
    if not len(rows):  # Shifted out of the image.
      assert row[4] == -1
      continue
    corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert row.tolist() == [*corners, 2, 0]
    assert padding[4] == -1
  assert {2, -1} == set(found[:, 0, 4].tolist())


def test_a_backbone_starts_from_weights_of_classification():
  net = create_model("resnet8", 10)
  trained = weights.load("resnet8_digits", net)
  images = np.zeros((16, 12, 12, 1), np.uint8)
  data = ImageArrays(images, masks(16), NAMES)
  config = Config(batch_size=8, num_epochs=1, init_from="resnet8_digits")
  config.data.name, config.data.labels = "", "mask"
  config.model.num_classes = 3
  run = Experiment.create(
    config, model=small_segmenter(), train_data=data, eval_data=data
  )
  start = load_start("resnet8_digits", run.model, (12, 12, 1), config.data)
  state = start_from(run.initial_state(), start)
  found = state.params["backbone"]
  expected = {k: v for k, v in trained["params"].items() if k != "head"}
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert {"head", "aux_head"} < state.params.keys()
  with pytest.raises(UserError, match="init_head=True needs the weights of a whole"):
    load_start("resnet8_digits", run.model, (12, 12, 1), config.data, head=True)


def test_frozen_groups_of_a_backbone_stay():
  run = experiment(freeze=("stem", "stage1"))
  state = run.initial_state()
  before = jax.tree.map(np.array, (state.params, state.batch_stats))
  _, feed, count = next(run.train_data.train_chunks(run.data_key, 0, run.plan))
  state, _ = run.train_chunk(state, feed, count)
  for old, new in zip(before, (state.params, state.batch_stats), strict=True):
    for group in ("stem", "stage1"):
      pair = old["backbone"][group], new["backbone"][group]
      jax.tree.map(np.testing.assert_array_equal, *pair)
    changed = jax.tree.map(
      lambda a, b: bool((a != b).any()),
      old["backbone"]["stage2"],
      new["backbone"]["stage2"],
    )
    assert any(jax.tree.leaves(changed))


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    (np.zeros((2, 8, 9), np.uint8), r"masks, uint8 \[2, 8, 8\], or boxes"),
    (np.full((2, 8, 8), 3, np.uint8), r"the class 3, which must be .* \[0, 3\)"),
    (np.full((2, 4, 6), np.nan), r"the box \[nan"),
    (np.tile([1, 1, 3, 3, 1.5, 0], (2, 4, 1)), r"the class 1\.5"),
  ],
)
def test_wrong_masks_and_boxes_are_refused(labels, message):
  with pytest.raises(UserError, match=message):
    ImageArrays(np.zeros((2, 8, 8, 3), np.uint8), labels, NAMES)


@pytest.mark.parametrize("kind", ["class", "classes", "numbers", "mask", "boxes"])
def test_each_kind_of_label_is_known_by_its_array(kind):
  spec = LabelSpec.of(kind, 3)
  assert spec.kind == kind
  assert spec.fits(tuple(size or 5 for size in spec.shape))
  assert not spec.fits((2,) * (len(spec.shape) + 1))


def test_settings_without_meaning_are_refused():
  config = Config()
  config.data.labels, config.augment.mixup = "mask", 0.2
  with pytest.raises(UserError, match=r"augment\.mixup=0\.2 has no meaning"):
    experiment(augment=config.augment)
  with pytest.raises(UserError, match=r"returns float32.*the task needs logits"):
    run = experiment(create_model("resnet8", 3))
    _ = run.state_init
  config = Config()
  config.data.labels, config.model.num_classes = "boxes", 3
  with pytest.raises(UserError, match="must be retinanet_resnet50_fpn or"):
    Experiment.create(config)
