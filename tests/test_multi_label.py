"""Images with several classes, and images with numbers."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit
from sklearn import metrics

from resnet_jax import load
from resnet_jax.cli.main import main
from resnet_jax.config import Config
from resnet_jax.config.validation import validate
from resnet_jax.data import ImageArrays, count_classes
from resnet_jax.data.sources.folder import list_images
from resnet_jax.evaluation import multi_label, regression
from resnet_jax.evaluation.answers import NumberAnswers, SetAnswers, average
from resnet_jax.training import losses
from resnet_jax.training.class_pairing import pair_classes
from resnet_jax.training.tasks import MultiLabel, Regression

NAMES = tuple("abcdefg")


def make_sets(count=200, seed=0) -> SetAnswers:
  random = np.random.default_rng(seed)
  labels = random.random((count, 7)) < 0.3
  labels[:, 6] = False  # A class without images.
  logits = (random.normal(size=(count, 7)) + 2 * labels - 1).astype(np.float32)
  return SetAnswers(logits, labels, np.arange(count), NAMES, str)


def make_numbers(count=200) -> NumberAnswers:
  random = np.random.default_rng(0)
  labels = (random.normal(size=(count, 2)) * [3, 0.1] + [50, 0]).astype(np.float32)
  logits = ((labels - [50, 0]) / [3, 0.1]).astype(np.float32)
  logits += random.normal(size=logits.shape).astype(np.float32) / 3
  names = ("height", "width")
  return NumberAnswers(
    logits, labels, np.arange(count), names, str, mean=(50.0, 0.0), std=(3.0, 0.1)
  )


@pytest.mark.parametrize("thresholds", [(), (0.2, 0.8, 0.5, 0.4, 0.6, 0.3, 0.1)])
def test_scores_of_sets_are_those_of_scikit_learn(thresholds):
  answers = make_sets().calibrated(thresholds=thresholds)
  labels, probabilities = answers.labels, expit(answers.logits.astype(np.float64))
  found = probabilities >= np.array(thresholds or 0.5)
  expected = {
    "exact": metrics.accuracy_score(labels, found),
    "hamming": metrics.hamming_loss(labels, found),
    "sample_f1": metrics.f1_score(labels, found, average="samples", zero_division=1.0),
    "loss": np.mean(
      [
        metrics.log_loss(x, p, labels=[0, 1])
        for x, p in zip(labels.T, probabilities.T, strict=True)
      ]
    ),
    "auroc": metrics.roc_auc_score(labels[:, :6], probabilities[:, :6]),
    "average_precision": metrics.average_precision_score(
      labels[:, :6], probabilities[:, :6]
    ),
    "count": 200,
  }
  for kind in ("micro", "macro"):
    for name in ("precision", "recall", "f1"):
      score = getattr(metrics, f"{name}_score")
      expected[f"{kind}_{name}"] = score(labels, found, average=kind, zero_division=0)
  assert multi_label.score(answers) == pytest.approx(expected, abs=1e-6)


def test_thresholds_have_the_highest_f1_of_all():
  answers = make_sets()
  found = multi_label.fit_thresholds(answers)
  for k, threshold in enumerate(found):
    label, p = answers.labels[:, k], answers.probabilities[:, k]
    if not label.any():
      assert threshold == 0.5
      continue
    every = [metrics.f1_score(label, p >= x) for x in np.append(np.unique(p), 2.0)]
    assert metrics.f1_score(label, p >= threshold) == pytest.approx(max(every))


def test_equal_probabilities_are_predicted_together():
  logits = np.zeros((4, 1), np.float32)
  labels = np.array([[True], [False], [False], [False]])
  answers = SetAnswers(logits, labels, np.arange(4), ("a",), str)
  (threshold,) = multi_label.fit_thresholds(answers)
  assert threshold <= 0.5


def test_scores_of_numbers_are_those_of_scikit_learn():
  answers = make_numbers()
  labels, found = answers.labels, answers.predictions
  score = regression.score(answers)
  assert score["r2"] == pytest.approx(metrics.r2_score(labels, found), abs=1e-6)
  mae = metrics.mean_absolute_error(labels, found)
  assert score["mae"] == pytest.approx(mae, abs=1e-6)
  rmse = metrics.root_mean_squared_error(labels, found)
  assert score["rmse"] == pytest.approx(rmse, abs=1e-6)
  low, high = regression.contents(answers).intervals["r2"]
  assert low < score["r2"] < high


def test_metrics_of_training_are_the_scores_of_a_report():
  answers = make_sets()
  task = MultiLabel(7)
  logits, labels = jnp.asarray(answers.logits), jnp.asarray(answers.labels)
  found = task.metrics(logits, labels)
  score = multi_label.score(answers)
  for name, values in found.items():
    assert float(values.mean()) == pytest.approx(score[name], abs=1e-6)
  loss = task.loss(logits, task.targets(labels), False)
  assert float(loss.mean()) == pytest.approx(score["loss"], abs=1e-6)
  numbers = make_numbers()
  task = Regression(2, numbers.mean, numbers.std)
  values = task.metrics(jnp.asarray(numbers.logits), jnp.asarray(numbers.labels))
  mae = regression.score(numbers)["mae"]
  assert float(values["mae"].mean()) == pytest.approx(mae, rel=1e-5)
  constant = task.metrics(jnp.zeros((200, 2)), jnp.asarray(numbers.labels))
  assert abs(float(constant["skill"].mean())) < 0.1
  labels = jnp.asarray(numbers.labels)
  right = task.metrics(task.targets(labels), labels)
  assert float(right["skill"].mean()) == 1


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_loss_of_sets_against_a_direct_computation(gamma):
  answers = make_sets(20)
  weights = tuple(np.linspace(0.5, 3, 7).tolist())
  p, y = expit(answers.logits.astype(np.float64)), answers.labels
  direct = np.where(
    y, -np.array(weights) * (1 - p) ** gamma * np.log(p), -(p**gamma) * np.log(1 - p)
  )
  found = losses.several_binary(
    jnp.asarray(answers.logits), jnp.asarray(y, jnp.float32), gamma, weights
  )
  np.testing.assert_allclose(found, direct.mean(axis=1), rtol=1e-5)


def test_averages_are_those_of_the_answers():
  a, b = make_sets(seed=0), make_sets(seed=1)
  expected = (a.probabilities + b.probabilities) / 2
  np.testing.assert_allclose(average([a, b]).probabilities, expected, atol=1e-6)


def write_csv(path, rows):
  with open(path, "w", newline="") as file:
    csv.writer(file).writerows([("path", "label", "split"), *rows])
  return path


def test_a_table_has_several_classes_in_a_cell(tmp_path):
  rows = [("1.png", "cat; outdoor"), ("2.png", ""), ("3.png", "dog;dog")]
  path = write_csv(tmp_path / "a.csv", [(*row, "train") for row in rows])
  files = list_images(path, "train", 0.1, kind="classes")
  assert files.class_names == ("cat", "dog", "outdoor")
  assert files.labels.astype(int).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
  assert count_classes(files) == (1, 1, 1)
  network = ("outdoor", "bird", "dog", "cat")
  paired = pair_classes(files, network, 4, "it", False)
  assert paired.labels.astype(int).tolist() == [[1, 0, 0, 1], [0] * 4, [0, 0, 1, 0]]
  with pytest.raises(ValueError, match="classes that training does not have: dog"):
    list_images(path, "train", 0.1, ("cat", "outdoor"), "classes")
  with pytest.raises(ValueError, match=r"line 3: '2.png,,train' must be"):
    list_images(path, "train", 0.1)


@pytest.mark.parametrize(
  ("label", "message"),
  [
    ("x", "'x' must be one or several finite numbers"),
    ("nan", "'nan' must be one or several finite numbers"),
    ("1e99", "'1e99' must be one or several finite numbers"),
    ("1;2;3", "are 3 numbers, and line 2 has 2"),
  ],
)
def test_a_table_of_numbers_names_the_wrong_line(tmp_path, label, message):
  rows = [("1.png", "0.5;-2", "train"), ("2.png", label, "train")]
  path = write_csv(tmp_path / "a.csv", rows)
  with pytest.raises(ValueError, match=f"line 3: .*{message}"):
    list_images(path, "train", 0.1, kind="numbers")


def test_arrays_of_labels_are_checked():
  images, names = np.zeros((3, 4, 4, 1), np.uint8), ("a", "b")
  ints = ImageArrays(images, np.array([[0, 1], [1, 1], [0, 0]]), names)
  assert ints.labels.dtype == bool
  floats = ImageArrays(images, np.array([0.5, 1, 2]), ("a",))
  assert floats.labels.dtype == np.float32 and floats.labels.shape == (3, 1)
  for labels in ([[0, 2]] * 3, [[np.nan, 0.0]] * 3, [[0, 1, 1]] * 3, [0.5, 1, 2]):
    with pytest.raises(ValueError, match="labels"):
      ImageArrays(images, np.array(labels), names)


@pytest.mark.parametrize(
  ("labels", "setting", "value", "message"),
  [
    ("classes", "name", "softmax", "must be 'bce' or 'focal' with"),
    ("numbers", "name", "bce", "must be 'mse' or 'mae' or 'huber' with"),
    ("class", "name", "huber", "must be 'softmax' or 'bce' or 'focal' with"),
    ("classes", "logit_adjustment", 1.0, "has no meaning with"),
    ("numbers", "class_weighting", "balanced", "has no meaning with"),
  ],
)
def test_losses_that_do_not_fit_the_labels_are_refused(labels, setting, value, message):
  config = Config()
  config.data.labels = labels
  setattr(config.loss, setting, value)
  with pytest.raises(ValueError, match=message):
    validate(config)


FLAGS = [
  *("--config=digits", "--config.model.name=resnet8", "--config.batch_size=8"),
  *("--config.data.name=folder", "--config.data.train_crop=random"),
  *("--config.data.train_resize=8", "--config.data.image_size=8"),
  *("--config.data.eval_resize=8", "--config.data.eval_crop=8"),
  *("--config.optim.label_smoothing=0", "--config.augment.padding=0"),
  *("--config.optim.warmup_epochs=0", "--config.num_epochs=1"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Photos whose brightness is their number, and whose classes are its bits."""
  folder = tmp_path_factory.mktemp("photos")
  random = np.random.default_rng(0)
  rows = {"classes": [], "numbers": []}
  for i in range(40):
    value = int(random.integers(1, 4))
    Image.new("RGB", (8, 8), (80 * value,) * 3).save(folder / f"{i}.png")
    split = ("train", "val", "train", "test")[i % 4]
    names = [name for bit, name in enumerate(("one", "two")) if value >> bit & 1]
    rows["classes"].append((f"{i}.png", ";".join(names), split))
    rows["numbers"].append((f"{i}.png", f"{value};{-100 * value}", split))
  return {
    kind: (folder, write_csv(folder / f"{kind}.csv", table))
    for kind, table in rows.items()
  }


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_a_run_from_photos_to_predictions(photos, kind, tmp_path, capsys):
  folder, table = photos[kind]
  run = str(tmp_path / "run")
  main(
    [
      *("train", *FLAGS, f"--config.data.dir={table}"),
      *(f"--config.data.labels={kind}", f"--workdir={run}"),
    ]
  )
  names = {"classes": "per_class", "numbers": "per_number"}
  for name in ("report.html", "predictions.csv", f"{names[kind]}.csv"):
    assert (tmp_path / "run" / "report" / name).is_file()
  capsys.readouterr()
  main(["evaluate", f"--workdir={run}", "--flip", "--json"])
  said = json.loads(capsys.readouterr().out)
  assert said["count"] == 10
  assert ("average_precision" if kind == "classes" else "r2") in said
  photo = str(folder / "0.png")
  weights = str(tmp_path / "weights.safetensors")
  main(["convert", run, weights])
  classifiers = load(run), load(weights)
  image = np.asarray(Image.open(photo))[None]
  mine, theirs = (np.asarray(x(image)[x.answer]) for x in classifiers)
  np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
  capsys.readouterr()
  main(["predict", photo, f"--workdir={run}", "--json"])
  answer = json.loads(capsys.readouterr().out)
  with pytest.raises(SystemExit):
    main(["evaluate", f"--workdir={run}", "--fit-temperature", "--split=test"])
  assert "--fit-temperature needs a network with" in capsys.readouterr().err
  if kind == "numbers":
    assert list(answer["values"].values()) == pytest.approx(mine[0].tolist(), rel=1e-4)
    return
  expected = {n for n, p in zip(("one", "two"), mine[0], strict=True) if p >= 0.5}
  assert {x["label"] for x in answer["labels"]} == expected
  fit = ["evaluate", f"--workdir={run}", f"--dataset={table}", "--split=test"]
  main([*fit, "--fit-thresholds"])
  main(["convert", run, weights])
  fitted = load(run, calibrated=True).thresholds
  assert len(fitted) == 2 and fitted == load(weights, calibrated=True).thresholds
