"""A segmenter in use: trained, killed, resumed, evaluated, loaded and applied."""

import csv
import dataclasses
import io
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import own_parts
import pytest
from PIL import Image
from rich.console import Console
from running import run_killed, train_config
from sklearn import metrics

import resnet_jax
from resnet_jax import weights
from resnet_jax.cli.main import main
from resnet_jax.config import CheckpointConfig, Config, DataConfig, ModelConfig
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.config.schema import AugmentConfig
from resnet_jax.data.images.masked_images import (
  MaskedEvalTransform,
  decode_mask,
  to_original,
)
from resnet_jax.data.sources.masks import list_masked_images
from resnet_jax.evaluation import segmentation
from resnet_jax.evaluation.places import Example, MaskAnswers
from resnet_jax.inference.export import export
from resnet_jax.inference.segmentation import PixelClassifier, overlay, palette
from resnet_jax.runs.checksums import digest_arrays
from resnet_jax.runs.run_dir import load_run_config
from resnet_jax.runtime.errors import UserError
from resnet_jax.training import transfer
from resnet_jax.training.dense_tasks import Segmentation
from resnet_jax.training.evaluator import USED, prepare_run
from resnet_jax.training.task_metrics import results_of

TESTS = Path(__file__).parent
NAMES = ("low", "middle", "high")
SHAPES = ((40, 30), (33, 47), (32, 32), (20, 60))


def write_folder(root: Path) -> None:
  """Writes twelve images whose brightness tells the class of each pixel."""
  rng = np.random.default_rng(0)
  for split, count in (("train", 8), ("val", 4)):
    for folder in ("images", "masks"):
      (root / split / folder).mkdir(parents=True)
    for i in range(count):
      height, width = SHAPES[i % 4]
      mask = rng.integers(0, 3, (6, 6)).repeat(10, 0).repeat(10, 1)[:height, :width]
      image = (mask * 100 + rng.integers(0, 50))[..., None].repeat(3, 2)
      mask[:, :3] = 255
      for folder, array in (("images", image), ("masks", mask)):
        file = root / split / folder / f"{i}.png"
        Image.fromarray(array.astype(np.uint8)).save(file)
  (root / "classes.txt").write_text("\n".join(NAMES))


def make_config(folder: str) -> Config:
  config = Config(
    num_steps=6,
    batch_size=4,
    steps_per_call=2,
    log_every_steps=2,
    eval_every_steps=4,
    model=ModelConfig(factory="own_parts:segmenter"),
    data=DataConfig(name="folder", dir=folder, labels="mask", train_resize=40),
    augment=AugmentConfig(flip=True, padding=2, brightness=0.2),
    checkpoint=CheckpointConfig(every_steps=2),
  )
  config.optim.learning_rate = 0.05
  return config


def run(folder: str, workdir, hooks=()):
  console = Console(file=io.StringIO())
  config = make_config(folder)
  return train_config(config, workdir, jax.devices()[:1], console, hooks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("masked")
  write_folder(root)
  return root


@pytest.fixture(scope="module")
def trained(folder):
  """A run that nothing interrupted, and its result."""
  workdir = folder / "run"
  return workdir, run(str(folder), workdir)


def test_a_killed_run_resumes_to_the_bits_of_one_that_was_not(
  folder, trained, tmp_path
):
  workdir = tmp_path / "run"
  run_killed("test_segmenting", "run", str(folder), str(workdir))
  assert "4" in os.listdir(workdir / "checkpoints")
  state, results = run(str(folder), workdir)
  _, (expected, last) = trained
  assert digest_arrays(state) == digest_arrays(expected)
  assert results["mean_iou"] == last["mean_iou"]


def predictions(trained, folder):
  """Returns true and predicted classes of all labelled pixels of the evaluation."""
  network = resnet_jax.load(str(trained[0]), trust_code=True)
  source = list_masked_images(folder, "val", 0.1)
  transform = MaskedEvalTransform(32, 3, "bilinear", 10**6)
  rng = np.random.default_rng(0)
  pairs = [transform.pair(*source[i], rng) for i in range(len(source))]
  images, masks = (np.stack(x) for x in zip(*pairs, strict=True))
  found = np.asarray(network(images)["classes"])
  return masks[masks < 3], found[masks < 3]


def test_mean_iou_is_that_of_scikit_learn(trained, folder):
  truth, found = predictions(trained, folder)
  _, results = trained[1]
  expected = metrics.jaccard_score(truth, found, average="macro")
  assert results["mean_iou"] == pytest.approx(expected, abs=1e-6)
  assert results["pixel_accuracy"] == pytest.approx((truth == found).mean(), abs=1e-6)
  assert results["count"] == 4


def sums_on(trained, devices):
  """Returns the sums of an evaluation on some devices."""
  config = load_run_config(str(trained[0]), True, USED)
  prepared = prepare_run(config, str(trained[0]), devices=devices, trust_code=True)
  experiment, total = prepared.experiment, None
  variables = experiment.fold(prepared.variables)
  for feed, count in experiment.eval_data.eval_chunks():
    sums = jax.device_get(experiment.eval_chunk(variables, feed, count))
    total = sums if total is None else jax.tree.map(np.add, total, sums)
  return total


@pytest.mark.several_devices
def test_eight_devices_count_the_same_pixels_as_one(trained):
  one, all_of_them = (sums_on(trained, jax.devices()[:n]) for n in (1, 8))
  np.testing.assert_array_equal(one["confusion"], all_of_them["confusion"])
  assert one["confusion"].sum() > 0
  results = results_of(Segmentation(3), one)
  assert results["mean_iou"] == pytest.approx(trained[1][1]["mean_iou"], abs=1e-6)


def test_evaluate_gives_the_last_result_of_the_run(trained, capsys):
  _, results = trained[1]
  main(["evaluate", "--workdir", str(trained[0]), "--trust-code", "--json"])
  found = json.loads(capsys.readouterr().out)
  for name in ("loss", "mean_iou", "pixel_accuracy", "count"):
    assert found[name] == pytest.approx(results[name], rel=1e-6)


def test_masks_are_predicted_in_the_size_of_each_file(trained, folder, tmp_path):
  network = resnet_jax.load(str(trained[0]), trust_code=True)
  assert isinstance(network, PixelClassifier) and network.class_names == NAMES
  source = list_masked_images(folder, "val", 0.1)
  files = [str(folder / source.name(i)) for i in range(len(source))]
  missing = tmp_path / "text.jpg"
  missing.write_text("no image")
  found = list(network.predict([*files, str(missing)], batch_size=3, images=True))
  assert [x.file for x in found] == [*files, str(missing)]
  assert found[-1].classes is None and "none of JPEG" in found[-1].error
  transform = MaskedEvalTransform(32, 3, "bilinear", 10**6)
  for i, one in enumerate(found[:-1]):
    height, width = SHAPES[i]
    square = transform(source[i][0], np.random.default_rng(0))
    outputs = network(square[None])
    np.testing.assert_allclose(outputs["probabilities"].sum(-1), 1, atol=1e-5)
    classes = to_original(np.asarray(outputs["classes"])[0], width, height)
    # Batches of other sizes may round a pixel's probabilities in another way.
    assert (one.classes == classes).mean() > 0.99
    assert one.image.shape == (height, width, 3)
    assert sum(share for _, share in one.shares) == pytest.approx(1)
    for label, share in one.shares:
      assert share == pytest.approx((one.classes == label).mean())


def test_the_palette_is_that_of_pascal_voc():
  colors = palette()
  assert len({*map(tuple, colors.tolist())}) == 256
  first = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
  assert [tuple(color) for color in colors[:5].tolist()] == first
  assert colors[[15, 20, 255]].tolist() == [
    [192, 128, 128],
    [0, 64, 128],
    [224, 224, 192],
  ]
  image, classes = np.full((1, 2, 1), 200, np.uint8), np.array([[0, 1]], np.uint8)
  assert overlay(image, classes).tolist() == [[[100] * 3, [164, 100, 100]]]


def test_predict_writes_masks_and_pictures(trained, folder, tmp_path, capsys):
  out = tmp_path / "out"
  images = folder / "val" / "images"
  command = ["predict", "--workdir", str(trained[0]), "--trust-code"]
  main([*command, str(images), "--out", str(out)])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 and lines[0].startswith(f"{images / '0.png'}: ")
  for i, (height, width) in enumerate(SHAPES):
    with Image.open(out / "masks" / f"{i}.png") as mask:
      classes = np.asarray(mask)
      assert mask.mode == "P" and classes.shape == (height, width)
      assert mask.getpalette()[3:6] == [128, 0, 0]
    content = (out / "masks" / f"{i}.png").read_bytes()  # Usable in training.
    np.testing.assert_array_equal(decode_mask(content, 3, 10**6), classes)
    for label in np.unique(classes):
      text = f"{NAMES[label]} {100 * (classes == label).mean():.1f} %"
      assert text in lines[i]
    with Image.open(out / "pictures" / f"{i}.png") as picture:
      assert picture.mode == "RGB" and picture.size == (width, height)
  main([*command, str(images / "0.png"), "--json"])
  found = json.loads(capsys.readouterr().out)
  assert sum(row["share"] for row in found["labels"]) == pytest.approx(1)
  assert {row["label"] for row in found["labels"]} <= {*NAMES}


def test_the_report_has_the_scores_of_scikit_learn(trained, folder, tmp_path, capsys):
  report = tmp_path / "report"
  command = ["evaluate", "--workdir", str(trained[0]), "--trust-code"]
  main([*command, "--report", str(report)])
  assert f"report: {report}/report.html" in capsys.readouterr().out
  found = json.loads((report / "metrics.json").read_text())
  _, results = trained[1]
  for name in ("loss", "mean_iou", "pixel_accuracy", "count"):
    assert found["scores"][name] == pytest.approx(results[name], abs=1e-6)
  low, high = found["intervals_95"]["mean_iou"]
  assert low <= results["mean_iou"] <= high
  truth, classes = predictions(trained, folder)
  expected = metrics.jaccard_score(truth, classes, average=None)
  with open(report / "per_class.csv") as file:
    rows = list(csv.DictReader(file))
  assert [row["class"] for row in rows] == list(NAMES)
  assert [float(row["iou"]) for row in rows] == pytest.approx(expected, abs=1e-6)
  assert sum(int(row["pixels"]) for row in rows) == len(truth)
  with open(report / "predictions.csv") as file:
    assert len(list(csv.DictReader(file))) == 4
  assert "4 of 4." in (report / "report.md").read_text()
  with Image.open(report / "mistakes.png") as picture:
    assert picture.size[0] > 1000


REFUSED = {
  "predict IMAGE --top 3": "--top has no meaning for a network with .*'mask'",
  "predict IMAGE --figure a.png": "--figure has no meaning",
  "predict IMAGE --calibrated": "'mask', for which there is no calibration",
  "predict IMAGE --resize 8": "--resize has no meaning .* --crop is the side",
  "predict IMAGE --out classes.txt": "'classes.txt' must be a folder, and is a file",
  "predict train/images val/images --out o": "would be written into the same file",
  "evaluate --crops 5": "--crops has no meaning",
  "evaluate --flip": "--flip has no meaning",
  "evaluate --ensemble run": "--ensemble has no meaning",
  "evaluate --engine onnxruntime": "--engine has no meaning",
  "evaluate --corruptions": "--corruptions needs .*'class', not 'mask'",
  "evaluate --fit-temperature": "--fit-temperature needs .*'class', not 'mask'",
  "evaluate --dataset digits": "needs config.data.name=folder|--dataset",
  "features train/images --out f.npz": "for networks that predict classes or numbers",
  "export --out f.onnx --photo-size 40x40": "--photo-size has no meaning",
  "export --out f.onnx --precision int8": "predicts one class for each image",
  "convert --out f.safetensors": "need a ResNet, not Segmenter",
}


def test_images_without_a_labelled_pixel_are_the_last(tmp_path):
  def summary(label, found):
    example = Example(np.zeros((2, 2, 3), np.uint8), label, {"classes": found})
    return MaskAnswers.summarize(example, 3)

  ones, ignored = np.ones((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)
  half = np.array([[1, 1], [0, 0]], np.uint8)
  summaries = [summary(ignored, ones), summary(ones, ones), summary(ones, half)]
  np.testing.assert_array_equal(summaries[2], [[0, 2, 0], [0, 4, 0], [2, 2, 0]])
  answers = MaskAnswers({}, summaries, {}, np.arange(3), NAMES, str)
  assert answers.worst_first == [2, 1, 0]
  (grid,) = segmentation.contents(answers).grids
  assert grid.rows == [2, 1]


@pytest.mark.parametrize("command", REFUSED)
def test_what_has_no_meaning_for_masks_is_one_line(
  trained, folder, command, capsys, monkeypatch
):
  monkeypatch.chdir(folder)
  before = sorted(folder.rglob("*"))
  words = command.replace("IMAGE", "val/images/0.png").split()
  with pytest.raises(SystemExit):
    main([words[0], "--workdir", "run", "--trust-code", *words[1:]])
  error = capsys.readouterr().err.strip()
  assert "\n" not in error
  assert error.startswith("error: ")
  assert re.search(REFUSED[command], error)
  assert sorted(folder.rglob("*")) == before


def start(source, model, classes=NAMES, head=False):
  """Returns what a new run would start from."""
  args = str(source), model, (32, 32, 3), DataConfig(mean=(0.5,), std=(0.5,))
  return transfer.load_start(*args, head=head, class_names=classes)


def test_the_backbone_starts_from_a_classifier(tmp_path, recwarn):
  model = own_parts.segmenter(ModelConfig(num_classes=3))
  variables = jax.jit(model.net.init)(jax.random.key(1), np.zeros((1, 32, 32, 3)))
  file = tmp_path / "classifier.safetensors"
  weights.save(file, model.net, variables, Preprocessing((0.5,), (0.5,)))
  found = start(file, model)
  assert found.keys() == {"params", "batch_stats"}
  body = variables["params"] | {"head": None}
  for name, tree in found["params"]["backbone"].items():
    jax.tree.map(np.testing.assert_array_equal, tree, body.pop(name))
  assert body == {"head": None}
  with pytest.raises(UserError, match="init_head=True needs the weights of a whole"):
    start(file, model, head=True)


def test_a_segmenter_starts_from_another_but_for_the_last_layers(trained):
  workdir, (state, _) = trained
  model = own_parts.segmenter(ModelConfig(num_classes=5))
  found = start(workdir, model)["params"]
  for part in ("head", "aux_head"):
    assert found[part].keys() == {"conv", "bn"}
    theirs = state.params[part]["conv"]["kernel"]
    np.testing.assert_array_equal(found[part]["conv"]["kernel"], theirs)
  whole = start(workdir, own_parts.segmenter(ModelConfig(num_classes=3)), head=True)
  jax.tree.map(np.testing.assert_array_equal, whole["params"], state.params)
  with pytest.raises(UserError, match=r"class 0 is 'low' in .* and 'a' in the images"):
    start(workdir, model.clone(num_classes=3), ("a", "b", "c"), head=True)


def test_training_starts_there(folder, trained, tmp_path):
  config = make_config(str(folder))
  config = dataclasses.replace(config, num_steps=1, init_from=str(trained[0]))
  config.optim.learning_rate = 1e-30
  experiment = resnet_jax.Experiment.create(config, devices=jax.devices()[:1])
  first = transfer.start_from(
    experiment.initial_state(), start(trained[0], experiment.model)
  )
  theirs = jax.device_get(trained[1].state.params)
  same = jax.tree.map(lambda a, b: bool((a == b).all()), first.params, theirs)
  assert not same["head"]["head"]["kernel"]
  same["head"]["head"]["kernel"] = same["aux_head"]["head"]["kernel"] = True
  biases = [same[x]["head"].pop("bias") for x in ("head", "aux_head")]
  assert not any(biases) and all(jax.tree.leaves(same))


@pytest.mark.parametrize("form", ["stablehlo", "onnx", "openvino"])
def test_an_export_gives_the_same_probabilities(trained, tmp_path, form):
  if form != "stablehlo":
    pytest.importorskip("onnxruntime")
  if form == "openvino":
    pytest.importorskip("openvino")
  file = tmp_path / f"net.{'xml' if form == 'openvino' else form}"
  network = resnet_jax.load(str(trained[0]), trust_code=True)
  assert export(network, str(file), form) < 1e-5
  assert file.is_file()


def test_another_engine_predicts_the_same_masks(trained, folder):
  pytest.importorskip("onnxruntime")
  network = resnet_jax.load(str(trained[0]), trust_code=True)
  place = str(folder / "val" / "images")
  ours, theirs = (
    list(net.predict([place])) for net in (network, network.with_engine("onnxruntime"))
  )
  for one, other in zip(ours, theirs, strict=True):
    assert (one.classes == other.classes).mean() > 0.99
