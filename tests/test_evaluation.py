"""Answers, scores, intervals, views and reports of evaluations."""

import csv
import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal, variables_of
from PIL import Image
from scipy.special import softmax as softmax_of
from sklearn import metrics

from resnet_jax import create_model, load, weights
from resnet_jax.cli.main import main
from resnet_jax.config import Config, DataConfig, ModelConfig
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.data.batches.preprocess import normalize
from resnet_jax.data.sources.built_in import load_digits
from resnet_jax.evaluation import mistakes, report
from resnet_jax.evaluation.answers import Answers, average, collect
from resnet_jax.evaluation.classification import intervals
from resnet_jax.evaluation.label_sets import restrict, score_sets
from resnet_jax.evaluation.pictures import confused_pairs
from resnet_jax.evaluation.scores import TEXTS, calibration, score, score_rows
from resnet_jax.evaluation.temperature import fit_temperature
from resnet_jax.evaluation.views import Views
from resnet_jax.training.evaluator import prepare_weights

WEIGHTS = "resnet8_digits"


def make_answers(count=300, classes=7, seed=0, missing=(), sharpness=2.0) -> Answers:
  """Random answers that are right more often than by chance."""
  random = np.random.default_rng(seed)
  labels = random.integers(0, classes, count)
  labels[np.isin(labels, missing)] = 0
  logits = random.normal(size=(count, classes)).astype(np.float32)
  logits[np.arange(count), labels] += sharpness
  names = tuple(f"class{i}" for i in range(classes))
  return Answers(logits, labels, np.arange(count), names, lambda i: f"image {i}")


def softmax(logits):
  return softmax_of(np.asarray(logits, np.float64), axis=1)


@pytest.fixture(scope="module")
def digits():
  config = Config(
    batch_size=64, model=ModelConfig(name="resnet8", num_classes=10, dtype="float32")
  )
  return prepare_weights(config, WEIGHTS)


CASES = [
  make_answers(),
  make_answers(classes=2),
  make_answers(classes=12, missing=(3, 11)),
  make_answers(count=40, classes=20),
  make_answers(sharpness=20.0),
]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("answers", CASES, ids=range(len(CASES)))
def test_scores_are_those_of_scikit_learn(answers):
  labels, predictions = answers.labels, answers.logits.argmax(1)
  classes = range(answers.logits.shape[1])
  probabilities = softmax(answers.logits)
  expected = {
    "top1": metrics.accuracy_score(labels, predictions),
    "balanced_accuracy": metrics.balanced_accuracy_score(labels, predictions),
    "kappa": metrics.cohen_kappa_score(labels, predictions),
    "loss": metrics.log_loss(labels, probabilities, labels=classes),
    "count": len(labels),
  }
  if len(classes) > 5:
    top5 = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
    expected["top5"] = top5
  one_hot = np.eye(len(classes))[labels]
  expected["brier"] = np.square(probabilities - one_hot).sum(1).mean()
  for kind in ("macro", "weighted"):
    values = metrics.precision_recall_fscore_support(
      labels, predictions, average=kind, zero_division=0
    )
    for name, value in zip(("precision", "recall", "f1"), values, strict=False):
      expected[f"{kind}_{name}"] = value
  seen = np.unique(labels)
  for name, function in (
    ("auroc", metrics.roc_auc_score),
    ("average_precision", metrics.average_precision_score),
  ):
    expected[name] = np.mean([function(labels == i, probabilities[:, i]) for i in seen])
  found = score(answers)
  assert found.keys() == expected.keys() | {"calibration_error"}
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)
  assert [row[0] for row in score_rows(found)[1:]] == [
    TEXTS[name] for name in TEXTS if name in found
  ]


def test_the_calibration_error_is_its_definition():
  answers = make_answers()
  confidence = softmax(answers.logits).max(1)
  is_right = answers.logits.argmax(1) == answers.labels
  error = 0.0
  for low in np.arange(15) / 15:
    inside = (confidence > low) & (confidence <= low + 1 / 15)
    if inside.any():
      gap = abs(confidence[inside].mean() - is_right[inside].mean())
      error += gap * inside.sum() / len(inside)
  np.testing.assert_allclose(calibration(answers).error, error, atol=1e-9)
  sure = answers.with_logits(np.eye(7, dtype=np.float32)[answers.labels] * 1000)
  assert calibration(sure).error == 0


def test_intervals_are_those_of_a_mean():
  answers = make_answers(count=2000)
  found, values = intervals(answers), score(answers)
  assert found == intervals(answers) != intervals(answers, seed=1)
  assert found.keys() < values.keys() and "kappa" in found
  for name, (low, high) in found.items():
    assert low < values[name] < high, name
  low, high = found["top1"]
  p = values["top1"]
  half = 1.96 * (p * (1 - p) / 2000) ** 0.5  # The normal approximation.
  np.testing.assert_allclose([low, high], [p - half, p + half], atol=0.15 * half)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_overconfident_logits_is_found(temperature):
  random = np.random.default_rng(0)
  logits = random.normal(size=(20_000, 5)) * 2
  labels = (logits + random.gumbel(size=logits.shape)).argmax(1)  # From the softmax.
  answers = dataclasses.replace(
    make_answers(count=20_000, classes=5),
    logits=(logits * temperature).astype(np.float32),
    labels=labels,
  )
  np.testing.assert_allclose(fit_temperature(answers), temperature, rtol=0.03)
  right = answers.with_logits(np.eye(5, dtype=np.float32)[labels])
  with pytest.raises(ValueError, match="all 20000 predictions are right"):
    fit_temperature(right)


def test_planted_wrong_labels_are_found():
  answers = make_answers(count=500, sharpness=8.0)
  labels = answers.labels.copy()
  wrong = [3, 77, 400]
  answers.logits[wrong] *= 3  # The network is sure of these.
  labels[wrong] = (labels[wrong] + 1) % 7
  planted = dataclasses.replace(answers, labels=labels)
  assert set(mistakes.likely_wrong_labels(planted)[:3]) == set(wrong)
  assert set(mistakes.worst(planted)[:3]) == set(wrong)
  assert set(mistakes.worst(planted)) == set(np.flatnonzero(planted.ranks))
  order = mistakes.least_sure(answers)
  top = np.sort(softmax(answers.logits), axis=1)
  np.testing.assert_allclose(
    mistakes.margins(answers)[order], np.sort(top[:, -1] - top[:, -2]), atol=1e-9
  )


def test_confused_pairs_are_counted():
  answers = make_answers()
  matrix = metrics.confusion_matrix(answers.labels, answers.logits.argmax(1))
  pairs = confused_pairs(answers)
  assert {pair[:2]: pair[2] for pair in pairs} == {
    (i, j): n for (i, j), n in np.ndenumerate(matrix) if n and i != j
  }
  assert [n for *_, n in pairs] == sorted((n for *_, n in pairs), reverse=True)


def test_answers_give_the_results_of_an_evaluation(digits):
  """Padded batches, the place of each image, and ties are as in `evaluate`."""
  answers = collect(digits)
  exact, found = digits.evaluate(), score(answers)
  for name in ("top1", "top5", "count"):
    assert found[name] == pytest.approx(exact[name], abs=1e-7)
  np.testing.assert_allclose(found["loss"], exact["loss"], rtol=1e-5)
  test = load_digits("test")
  np.testing.assert_array_equal(answers.labels, test.labels)
  np.testing.assert_array_equal(answers.index, np.arange(360))
  assert answers.class_names == test.class_names and answers.name(3) == "image 3"


def direct(digits, images) -> np.ndarray:
  """Probabilities by the plain network."""
  data, experiment = digits.experiment.config.data, digits.experiment
  x = normalize(jnp.asarray(images), data.mean, data.std)
  return softmax(np.asarray(experiment.model.apply(digits.variables, x, train=False)))


def assert_averages(digits, views, probabilities):
  found = softmax(collect(digits, views).logits)
  np.testing.assert_allclose(found, np.mean(probabilities, axis=0), atol=2e-5)


def test_a_mirror_image_is_averaged(digits):
  images = load_digits("test").images
  both = [direct(digits, images), direct(digits, images[:, :, ::-1])]
  assert_averages(digits, Views(flip=True), both)
  assert not np.allclose(*both, atol=0.1)


@pytest.mark.parametrize("crops", [5, 10])
def test_crops_are_the_middle_the_corners_and_their_mirror_images(digits, crops):
  config = dataclasses.replace(digits.experiment.config)
  config.data = dataclasses.replace(config.data, eval_resize=8, eval_crop=6)
  smaller = prepare_weights(config, WEIGHTS)
  images = load_digits("test").images
  parts = [
    images[:, top : top + 6, left : left + 6]
    for top, left in ((1, 1), (0, 0), (0, 2), (2, 0), (2, 2))
  ]
  if crops == 10:
    parts += [part[:, :, ::-1] for part in parts]
  assert_averages(smaller, Views(crops), [direct(digits, part) for part in parts])


def test_scales_are_averaged(digits):
  images = load_digits("test").images.astype(np.float32)
  passes = []
  for side in (8, 12):
    resized = jax.image.resize(images, (len(images), side, side, 1), "linear")
    resized = jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
    passes.append(direct(digits, resized))
  assert_averages(digits, Views(scales=(8, 12)), passes)


def test_probabilities_are_averaged_not_logits():
  a, b = (make_answers(seed=seed) for seed in (0, 1))
  expected = (softmax(a.logits) + softmax(b.logits)) / 2
  np.testing.assert_allclose(softmax(average([a, b]).logits), expected, atol=1e-6)
  assert average([a]) is a


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"crops": 3}, "crops=3 must be one of"),
    ({"crops": 5, "scales": (8,)}, "do not go together"),
  ],
)
def test_wrong_views_are_refused(options, said):
  with pytest.raises(ValueError, match=said):
    Views(**options)


def test_crops_need_larger_images(digits):
  with pytest.raises(ValueError, match="crops=5 needs images that are resized to more"):
    collect(digits, Views(5))


NAMES = ("<b>cat", "=1+2", "$x_1$ dog")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Weights, and photos of three classes with difficult names; one is unreadable."""
  folder = tmp_path_factory.mktemp("photos")
  model = create_model("resnet8", 3)
  variables = variables_of(model, normal(1, 16, 16, 3), spread=0.1)
  size = Preprocessing((0.5,), (0.25,), 20, 16)
  weights.save(folder / "x.safetensors", model, variables, size, NAMES)
  random = np.random.default_rng(0)
  for i in range(18):
    place = folder / "images" / NAMES[i % 3]
    place.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (24 + i, 30, 3), np.uint8)
    Image.fromarray(pixels).save(place / f"{i:02}.png")
  return folder


def evaluate(photos, *flags):
  source = [f"--weights={photos / 'x.safetensors'}", f"--dataset={photos / 'images'}"]
  main(["evaluate", *source, "--batch-size=8", *map(str, flags)])


def test_the_report_of_photos(photos, tmp_path, capsys):
  folder = tmp_path / "report"
  evaluate(photos, f"--report={folder}")
  assert f"report: {folder}/report.html" in capsys.readouterr().out
  found = json.loads((folder / "metrics.json").read_text())
  with open(folder / "predictions.csv") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == found["scores"]["count"] == 18
  right = [row["label"] == row["prediction"] for row in rows]
  np.testing.assert_allclose(np.mean(right), found["scores"]["top1"])
  for row in rows:  # The path, the label and the prediction belong together.
    assert row["path"].split("/")[-2] == row["label"].removeprefix("'")
  assert {row["label"] for row in rows} == {"<b>cat", "'=1+2", "$x_1$ dog"}
  with open(folder / "per_class.csv") as file:
    assert [int(row["images"]) for row in csv.DictReader(file)] == [6, 6, 6]
  with open(folder / "confusion.csv") as file:
    assert sum(int(row["images"]) for row in csv.DictReader(file)) == 18
  page = (folder / "report.html").read_text()
  assert "<b>cat" not in page and "resnet8 on images" in page
  sources = re.findall(r"(?:src|href)=\"([^\"]{0,30})", page)
  assert sources and all(x.startswith(("#", "data:image/png;base64")) for x in sources)
  assert "<script" not in page
  text = (folder / "report.md").read_text()
  for name in re.findall(r"\]\((\w+\.png)\)", text):
    with Image.open(folder / name) as picture:
      assert min(picture.size) > 100
  old = (folder / "metrics.json").stat().st_mtime_ns
  evaluate(photos, f"--report={folder}", "--flip")  # Replaces the old report.
  assert (folder / "metrics.json").stat().st_mtime_ns > old


def test_an_unreadable_photo_is_named(photos, tmp_path, capsys):
  bad = photos / "images" / NAMES[0] / "bad.png"
  bad.write_bytes(b"x")
  try:
    with pytest.raises(SystemExit):
      evaluate(photos, f"--report={tmp_path / 'x'}")
  finally:
    bad.unlink()
  assert "bad.png" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_perfect_network_has_no_mistakes(tmp_path, digits):
  answers = make_answers(count=360, classes=10, sharpness=1000.0)
  folder = tmp_path / "x"
  found = report.write_report(folder, digits, answers, "perfect")
  assert found["top1"] == 1 and found["loss"] == 0
  assert not (folder / "mistakes.png").exists()
  assert "There is no such image." in (folder / "report.md").read_text()


def test_many_classes_are_shown_as_pairs(tmp_path, digits):
  answers = make_answers(count=360, classes=1000)
  report.write_report(tmp_path / "x", digits, answers, "many")
  text = (tmp_path / "x" / "report.md").read_text()
  assert "with the most mistakes" in text and "30 classes with the lowest F1" in text
  with Image.open(tmp_path / "x" / "confusion.png") as picture:
    assert max(picture.size) < 2000


def test_an_ensemble_of_a_network_with_itself_is_the_network(photos, capsys):
  def results(*flags):
    main(["evaluate", *map(str, flags), f"--dataset={photos / 'images'}", "--json"])
    return json.loads(capsys.readouterr().out)

  file = photos / "x.safetensors"
  alone = results(f"--weights={file}", "--scales=16")
  for members in (
    ["--ensemble", file, file],
    [f"--weights={file}", "--ensemble", file],
  ):
    found = results(*members)
    assert found.keys() == alone.keys()
    assert found["top1"] == alone["top1"]
  for wrong, said in (
    ([f"--ensemble={file}", "--report=/etc"], "must be a new or an empty folder"),
    ([f"--weights={file}", "--report=gs://a/b"], "needs a folder on this machine, not"),
    (["--ensemble", file, WEIGHTS], "which is not among the 10 classes of"),
    (["--ensemble", "nothing"], "there is no --ensemble 'nothing'"),
    ([f"--weights={file}", "--scales=0,8"], "must be pixels, such as 224,256,384"),
  ):
    with pytest.raises(SystemExit) as info:
      results(*wrong)
    assert info.value.code == 2 and said in capsys.readouterr().err


def run_json(capsys, *flags):
  capsys.readouterr()
  main(["evaluate", *map(str, flags), "--json"])
  return json.loads(capsys.readouterr().out)


def test_a_network_may_choose_among_fewer_classes(photos, tmp_path, capsys):
  answers = make_answers(count=200, classes=6)
  chosen = [0, 2, 5]
  rows = np.isin(answers.labels, chosen)
  part = dataclasses.replace(
    answers,
    logits=answers.logits[rows],
    labels=answers.labels[rows],
    index=answers.index[rows],
  )
  found = score(restrict(part, chosen))
  small = part.logits[:, chosen]
  labels = np.searchsorted(chosen, part.labels)
  assert found["top1"] == (small.argmax(1) == labels).mean()
  expected = metrics.log_loss(labels, softmax(small))
  np.testing.assert_allclose(found["loss"], expected)
  with pytest.raises(ValueError, match="have the class 'class1', which is not among"):
    restrict(answers, chosen)
  # By the command: two of the three folders, and the network must choose between them.
  images = tmp_path / "images"
  for name in NAMES[:2]:
    shutil.copytree(photos / "images" / name, images / name)
  source = [f"--weights={photos / 'x.safetensors'}", f"--dataset={images}"]
  whole, present = (run_json(capsys, *source, *x) for x in ([], ["--classes=present"]))
  assert present["top1"] >= whole["top1"] and present["count"] == 12
  (tmp_path / "names.txt").write_text(f"{NAMES[0]}\n1\n")
  assert run_json(capsys, *source, f"--classes={tmp_path / 'names.txt'}") == present


def test_images_with_several_labels(photos, tmp_path, capsys):
  answers = make_answers(count=6, classes=7)
  order = np.argsort(-answers.logits, axis=1)
  first, sixth = order[:, 0], order[:, 5]
  names = answers.class_names
  sets = {
    "image 0": [names[first[0]], names[sixth[0]]],
    "image 1": [int(order[1, 4])],
    "image 2": [],
    "image 3": [names[sixth[3]]],
  }
  expected = {"top1": 1 / 3, "top5": 2 / 3, "count": 3}
  assert score_sets(answers, sets) == pytest.approx(expected)
  with pytest.raises(ValueError, match="no image has labels: the names of files"):
    score_sets(answers, {"other.jpg": ["class1"]})
  with pytest.raises(ValueError, match="'tiger' is not among the 7 classes"):
    score_sets(answers, {"image 0": ["tiger"]})
  # ReaL's list, and files in a folder without classes.
  flat, real = tmp_path / "flat", tmp_path / "real.json"
  flat.mkdir()
  for i, path in enumerate(sorted((photos / "images").rglob("*.png"))[:4], 1):
    shutil.copy(path, flat / f"ILSVRC2012_val_{i:08}.png")
  real.write_text(json.dumps([[0, 1, 2], [], [0, 1, 2], []]))
  source = [f"--weights={photos / 'x.safetensors'}", f"--dataset={flat}"]
  found = run_json(capsys, *source, f"--label-sets={real}")
  assert found == {"top1": 1.0, "count": 2}
  for text, said in (
    ("[3", "is no JSON file"),
    ('{"a": 3}', "must be a JSON object of"),
  ):
    real.write_text(text)
    with pytest.raises(SystemExit):
      run_json(capsys, *source, f"--label-sets={real}")
    assert said in capsys.readouterr().err


@pytest.mark.several_devices
def test_answers_are_the_same_on_any_number_of_devices(digits):
  config = digits.experiment.config
  one = prepare_weights(config, WEIGHTS, devices=jax.devices()[:1])
  found, expected = collect(digits), collect(one)
  np.testing.assert_array_equal(found.index, expected.index)
  np.testing.assert_array_equal(found.labels, expected.labels)
  np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)


def test_tasks_of_other_kinds_have_no_report(digits):
  class Own:
    num_classes = 10
    best_metric = "x"
    targets = loss = metrics = lambda *_: None

  other = dataclasses.replace(digits.experiment, task=Own())
  with pytest.raises(ValueError, match="needs a task of this package, not Own"):
    collect(dataclasses.replace(digits, experiment=other))


def test_the_settings_of_other_passes_change_only_the_size():
  data = DataConfig(eval_resize=256, eval_crop=224)
  (crops,) = Views(10).data_of_passes(data)
  assert crops == dataclasses.replace(data, eval_crop=256)
  _, second = Views(scales=(224, 320)).data_of_passes(data)
  assert second == dataclasses.replace(data, eval_resize=320, eval_crop=320)
  assert Views().data_of_passes(data) == [data]


def test_a_temperature_is_stored_with_the_run_and_used_when_asked(tmp_path, capsys):
  run = tmp_path / "run"
  main(["convert", f"--weights={WEIGHTS}", f"--out={run}"])
  config = json.loads((run / "config.json").read_text())
  config["data"]["name"] = "digits"
  (run / "config.json").write_text(json.dumps(config))
  source = [f"--workdir={run}"]

  def refused(*flags) -> str:
    with pytest.raises(SystemExit) as info:
      run_json(capsys, *flags)
    assert info.value.code in (1, 2)
    return capsys.readouterr().err

  assert "has no temperature; fit one" in refused(*source, "--calibrated")
  for split in ([], ["--split=test"], ["--split=train"]):
    said = refused(*source, "--fit-temperature", *split)
    assert "neither the training images nor those of the evaluation" in said
  assert "all 120 predictions are right" in refused(
    *source, "--fit-temperature", "--split=test[:120]"
  )
  part = "--split=test[120:]"  # The others would be the evaluation.
  fitted = run_json(capsys, *source, "--fit-temperature", part)
  assert fitted["count"] == 240 and fitted["loss"] <= fitted["loss_before"]
  kept = json.loads((run / "temperature.json").read_text())
  assert kept["temperature"] == fitted["temperature"] and kept["step"] == 0
  rest = [*source, "--split=test[:120]"]
  plain, calibrated = (run_json(capsys, *rest, *x) for x in ([], ["--calibrated"]))
  assert calibrated["top1"] == plain["top1"]
  images = load_digits("test").images[:5]
  hot, cold = (load(str(run), calibrated=x) for x in (True, False))
  assert hot.temperature == kept["temperature"] and cold.temperature == 1
  logs = np.log(cold(images)["probabilities"]) / kept["temperature"]
  np.testing.assert_allclose(hot(images)["probabilities"], softmax(logs), atol=1e-5)
  (run / "temperature.json").write_text('{"temperature": -1, "step": 0}')
  assert "is damaged" in refused(*rest, "--calibrated")
  (run / "temperature.json").write_text('{"temperature": 2, "step": 7}')
  assert "is for step 7, not for step 0" in refused(*rest, "--calibrated")
  assert "needs --workdir RUN" in refused(
    f"--weights={WEIGHTS}", "--dataset=digits", "--fit-temperature"
  )
