"""Training and evaluation of detectors: targets, average precision, whole runs."""

import csv
import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal, variables_of
from PIL import Image
from running import run_killed, train_config
from small_detector import NAMES, bright_boxes, tiny_detector

from resnet_jax.cli.train import _write_report
from resnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig
from resnet_jax.data import ImageArrays
from resnet_jax.data.batches.moved_labels import move_boxes
from resnet_jax.data.batches.preprocess import preprocess
from resnet_jax.evaluation.places import mistakes
from resnet_jax.models.boxes import box_iou, encode_boxes
from resnet_jax.models.building import build_model
from resnet_jax.models.norms import FrozenBatchNorm
from resnet_jax.runs.run_dir import latest_step
from resnet_jax.runtime.compilation import jit_once
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.average_precision import match
from resnet_jax.training.dense_tasks import Detection
from resnet_jax.training.detection_losses import detection_losses
from resnet_jax.training.evaluator import evaluate, evaluate_run
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.resolved_config import with_num_classes
from resnet_jax.training.task_metrics import compute_metrics, results_of

SIZE = (32, 48)  # Not square.
K = len(NAMES)


def task(size=SIZE, num_classes=K) -> Detection:
  return Detection(num_classes, tiny_detector().anchors(size), size)


def random_outputs(task, count):
  shapes = {name: (count, *shape) for name, shape in task.outputs.items()}
  return {name: normal(*shape, seed=3) for name, shape in shapes.items()}


def perfect_outputs(task, labels):
  """Returns outputs that say for each box that it is at the nearest anchor."""
  anchors = np.concatenate(task.anchors)
  scores = np.full((len(labels), len(anchors), K), -20, np.float32)
  boxes = np.zeros((len(labels), len(anchors), 4), np.float32)
  for rows, logits, deltas in zip(labels, scores, boxes, strict=True):
    rows = rows[(rows[:, 4] >= 0) & (rows[:, 5] == 0)]
    overlaps = np.array(box_iou(rows[:, :4], anchors))
    for row, overlap in zip(rows, overlaps, strict=True):
      place = overlap.argmax()
      overlaps[:, place] = -1  # An anchor for each.
      logits[place, int(row[4])] = 20
      deltas[place] = encode_boxes(row[:4], anchors[place])
  return {"scores": jnp.asarray(scores), "boxes": jnp.asarray(boxes)}


def test_loss_is_the_sum_of_the_detection_losses():
  labels = jnp.asarray(bright_boxes(4, SIZE).labels)
  outputs, mask = random_outputs(task(), 4), jnp.array([True, True, False, True])
  batch = {"label": labels, "mask": mask}
  ours = results_of(task(), jit_once(partial(compute_metrics, task()))(outputs, batch))
  expected = detection_losses(
    outputs,
    task().anchors,
    labels[..., :4],
    labels[..., 4].astype(jnp.int32),
    labels[..., 4] >= 0,
    mask,
  )
  assert ours["count"] == expected["count"] == 3
  for name in ("class_loss", "box_loss"):
    assert ours[name] == pytest.approx(float(expected[name]) / 3, rel=1e-5)
  assert ours["loss"] == pytest.approx(ours["class_loss"] + ours["box_loss"], rel=1e-5)


def test_crowds_and_padding_are_no_targets():
  labels = bright_boxes(4, SIZE, most=2).labels
  others = np.zeros((4, 2, 6), np.float32)
  others[:, 0] = 1, 2, 30, 31, 1, 1  # A crowd.
  others[:, 1] = 3, 3, 20, 20, -1, 0
  more = np.concatenate([others[:, :1], labels, others[:, 1:]], axis=1)
  loss = jit_once(partial(task().loss, train=True))
  outputs = random_outputs(task(), 4)
  assert (labels[..., 4] >= 0).any(axis=1).all()
  np.testing.assert_allclose(
    loss(outputs, jnp.asarray(more)), loss(outputs, jnp.asarray(labels)), rtol=1e-6
  )


def test_perfect_outputs_have_an_average_precision_of_1():
  labels = bright_boxes(6, SIZE).labels
  labels[0, :, 4] = -1  # An image without objects.
  found = jit_once(task().found)(perfect_outputs(task(), labels), jnp.asarray(labels))
  found = jax.device_get(found)
  assert task().results({}, found) == {"ap": 1, "ap50": 1, "ap75": 1}
  assert (found["classes"] >= 0).sum() == (labels[..., 4] >= 0).sum()
  found["classes"] = np.where(found["classes"] >= 0, 1 - found["classes"], -1)
  assert task().results({}, found)["ap"] == 0
  assert task().results({}, None) == {}  # In training.


def test_boxes_stay_on_their_objects():
  images = bright_boxes(32, SIZE, seed=5)
  key, how = jax.random.key(1), {"padding": 9, "flip": True}
  moved = np.array(move_boxes(jnp.asarray(images.labels), key, image_size=SIZE, **how))
  shown = preprocess(jnp.asarray(images.images), key, mean=(0.0,), std=(1.0,), **how)
  shown = np.rint(np.array(shown[..., 0]) * 255)
  lost = 0
  for image, rows, before in zip(shown, moved, images.labels, strict=True):
    for i, row in enumerate(rows):
      y, x = np.nonzero(image == 100 + i)
      if before[i, 4] < 0 or not len(y):
        assert row[4] == -1
        lost += before[i, 4] >= 0
        continue
      seen = [x.min(), y.min(), x.max() + 1, y.max() + 1]
      np.testing.assert_array_equal(row, [*seen, *before[i, 4:]])
  assert lost  # Some boxes were moved out of their image.


def make_config(**changes) -> Config:
  config = Config(
    num_steps=8,
    batch_size=8,
    steps_per_call=2,
    log_every_steps=2,
    kernels="xla",  # Another process may choose the native ones.
    eval_every_steps=4,
    model=ModelConfig(factory="small_detector:create_network"),
    data=DataConfig(factory="small_detector:open_images", labels="boxes"),
    augment=AugmentConfig(padding=2, flip=True),
  )
  config.optim.learning_rate = 0.01
  return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, train_config(make_config(), workdir, jax.devices()[:1])


def test_images_in_memory_need_not_be_square():
  # `data.image_size` is 32.
  config = make_config()
  config.data.factory = ""
  config.model.factory = ""
  train, test = bright_boxes(8, SIZE), bright_boxes(8, SIZE, seed=1)
  create = partial(Experiment.create, config, model=tiny_detector(), train_data=train)
  experiment = create(eval_data=test)
  assert experiment.task.image_size == SIZE
  result = evaluate(experiment, experiment.initial_state().variables)
  assert result["count"] == 8 and 0 <= result["ap"] <= 1
  with pytest.raises(UserError, match=r"have 32x32 pixels \(height x width\), but the"):
    _ = create(eval_data=bright_boxes(8)).eval_data


@pytest.mark.several_devices
def test_devices_find_the_same_objects():
  variables = variables_of(tiny_detector(), jnp.zeros((1, 32, 32, 1)), spread=0.5)
  results, found = zip(*(evaluate_on(n, variables) for n in (1, 8)), strict=True)
  assert (found[0]["classes"] >= 0).any() and results[0]["count"] == 10
  for name in ("count", "ap", "ap50", "ap75"):
    assert results[0][name] == pytest.approx(results[1][name], abs=1e-6)
  for name, value in found[0].items():
    np.testing.assert_allclose(value, found[1][name], rtol=1e-4, atol=1e-4)


def evaluate_on(count, variables):
  """Returns the results of an evaluation, and what the devices found."""
  devices, found = jax.devices()[:count], {}
  experiment = Experiment.create(make_config(), devices=devices)

  class Kept(Detection):
    def results(self, sums, found_by_devices):
      found.update(found_by_devices)
      return super().results(sums, found_by_devices)

  values = dataclasses.asdict(experiment.task)
  experiment.task = Kept(**values)
  return evaluate(experiment, variables), found


def run(workdir, hooks=()):
  return train_config(make_config(), workdir, jax.devices()[:1], hooks=hooks)


def test_a_killed_run_goes_on_to_the_same_bits(trained, tmp_path):
  run_killed("test_detection_task", "run", str(tmp_path))
  assert latest_step(tmp_path) == 4
  state, results = run(tmp_path)
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(state.variables),
    jax.device_get(trained[1].state.variables),
  )
  for name in ("loss", "ap", "ap50", "ap75", "class_loss", "box_loss"):
    assert results[name] == trained[1].metrics[name]


def test_average_precision_chooses_the_best_state(tmp_path, monkeypatch):
  values = iter([0.25, 0.75, 0.5])

  def scores(self, sums, found):
    return {} if found is None else {"ap": next(values), "ap50": 0.0, "ap75": 0.0}

  monkeypatch.setattr(Detection, "results", scores)
  config = make_config(num_steps=6, eval_every_steps=2)
  train_config(config, tmp_path, jax.devices()[:1])
  monkeypatch.undo()
  step, _ = evaluate_run(config, str(tmp_path), "best", jax.devices()[:1], True)
  assert step == 4


def test_the_report_has_the_results_of_the_run(trained, tmp_path):
  workdir, (_, results) = trained
  assert _write_report(Experiment.create(make_config()), str(workdir))
  report = workdir / "report"
  found = json.loads((report / "metrics.json").read_text())["scores"]
  for name in ("ap", "ap50", "ap75", "class_loss", "box_loss", "count"):
    assert found[name] == pytest.approx(results[name], abs=1e-6)
  with open(report / "per_class.csv") as file:
    rows = list(csv.DictReader(file))
  assert np.nanmean([float(row["ap"]) for row in rows]) == pytest.approx(
    results["ap"], abs=1e-6
  )
  with open(report / "predictions.csv") as file:
    images = list(csv.DictReader(file))
  objects = sum(int(row["objects"]) for row in images)
  assert objects == sum(int(row["objects"]) for row in rows) > 0
  assert len(images) == results["count"]
  with Image.open(report / "mistakes.png") as picture:
    assert picture.size[0] > 1000


def test_mistakes_are_missed_objects_and_sure_detections_of_nothing():
  truth = np.array([[0, 0, 10, 10, 0, 0], [20, 0, 30, 10, 1, 0], [0, 20, 30, 30, 1, 1]])
  boxes = np.array(
    [[0, 0, 10, 9], [20, 0, 30, 10], [0, 20, 9, 30], [20, 0, 30, 10], [40, 40, 50, 50]]
  )
  scores = np.array([0.9, 0.8, 0.7, 0.6, 0.4], np.float32)
  # Right, the wrong class, in a crowd, right, too unsure to be a mistake.
  classes = np.array([0, 0, 1, 1, 0])
  assert mistakes(match(boxes, scores, classes, truth)) == (0, 1)
  assert mistakes(match(boxes[:3], scores[:3], classes[:3], truth)) == (1, 1)


def write_coco(folder, split, images):
  """Writes images and their boxes as COCO has them."""
  (folder / split).mkdir(parents=True)
  annotations, listed = [], []
  for i, (image, rows) in enumerate(zip(images.images, images.labels, strict=True)):
    Image.fromarray(image[..., 0]).save(folder / split / f"{i}.png")
    height, width = image.shape[:2]
    file = {"file_name": f"{i}.png", "width": width, "height": height}
    listed.append({"id": i, **file})
    for x0, y0, x1, y1, number, crowd in rows[rows[:, 4] >= 0].tolist():
      ids = {"id": len(annotations) + 1, "image_id": i, "category_id": int(number)}
      box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(crowd)}
      annotations.append(ids | box)
  names = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
  content = {"images": listed, "annotations": annotations, "categories": names}
  (folder / "annotations").mkdir(exist_ok=True)
  path = folder / "annotations" / f"instances_{split}.json"
  path.write_text(json.dumps(content))
  return path


def test_a_folder_of_coco_trains_and_is_evaluated(tmp_path):
  data = tmp_path / "data"
  write_coco(data, "train", bright_boxes(10, (20, 40)))
  path = write_coco(data, "val", bright_boxes(5, (40, 24), seed=1))
  config = make_config(num_steps=2, eval_every_steps=0)
  config.data = DataConfig(
    name="folder", dir=str(data), labels="boxes", image_size=32, channels=1
  )
  workdir = tmp_path / "run"
  state, results = train_config(config, workdir, jax.devices()[:1])
  assert int(state.step) == 2 and results["count"] == 5
  assert np.isfinite([results[x] for x in ("loss", "ap", "ap50", "ap75")]).all()
  assert (workdir / "classes.txt").read_text() == "small\nlarge\n"
  assert (
    evaluate_run(config, str(workdir), "latest", jax.devices()[:1], True)[1]["ap"]
    == (results["ap"])
  )
  content = json.loads(path.read_text())
  content["annotations"] = [x | {"iscrowd": 1} for x in content["annotations"]]
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match="has no boxes with an area, apart from crowds"):
    _ = Experiment.create(config, devices=jax.devices()[:1]).eval_data


def test_images_without_objects_are_refused():
  images = bright_boxes(4)
  labels = images.labels.copy()
  labels[..., 5] = 1
  crowds = dataclasses.replace(images, labels=labels)
  config = make_config()
  config.data.factory = config.model.factory = ""
  with pytest.raises(UserError, match="has no box that is no crowd"):
    Experiment.create(config, model=tiny_detector(), train_data=crowds)
  found = {
    "boxes": np.zeros((4, 1, 4), np.float32),
    "scores": np.zeros((4, 1), np.float32),
    "classes": np.full((4, 1), -1),
    "true": labels,
  }
  with pytest.raises(UserError, match="none of the 4 images for evaluation has a box"):
    task().results({}, found)


@pytest.mark.parametrize(
  "row",
  [
    [3, 0, 3, 8, 0, 0],  # No area.
    [0, 0, 33, 8, 0, 0],
    [-1, 0, 3, 8, 0, 0],
    [0, 0, float("nan"), 8, 0, 0],
    [0, 0, 4, 8, 0, 2],
  ],
)
def test_boxes_in_memory_are_within_their_images(row):
  images = np.zeros((1, 32, 32, 1), np.uint8)
  with pytest.raises(UserError, match=r"must have an area and be in the 32x32 pixels"):
    ImageArrays(images, np.float32([[row]]), NAMES)
  ImageArrays(images, np.float32([[[*row[:4], -1, 0]]]), NAMES)


@pytest.mark.parametrize(("norm", "epsilon"), [("", 0.0), ("frozen", 1e-5)])
def test_settings_build_the_detector_that_they_name(norm, epsilon):
  config = Config(model=ModelConfig(name="retinanet_resnet50_fpn", norm=norm))
  config.data.labels = "boxes"
  norm = build_model(with_num_classes(config, 2)).net.norm_cls()
  assert isinstance(norm, FrozenBatchNorm) and norm.epsilon == epsilon
