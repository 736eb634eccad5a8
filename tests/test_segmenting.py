"""A segmenter in use: trained, killed, resumed, evaluated, loaded and applied."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from running import train_config
from sklearn import metrics

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.config import CheckpointConfig, Config, DataConfig, ModelConfig
from resnet_jax.config.schema import AugmentConfig
from resnet_jax.data.images.masked_images import MaskedEvalTransform
from resnet_jax.data.sources.masks import list_masked_images
from resnet_jax.runs.checksums import digest_arrays
from resnet_jax.runs.run_dir import load_run_config
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


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import conftest, test_segmenting as tests
from resnet_jax.training.hooks import Hook

class Kill(Hook):
  def on_log(self, step, values):
    if step == 6:
      os.kill(os.getpid(), signal.SIGKILL)

tests.run({folder!r}, {workdir!r}, [Kill()])
"""


def test_a_killed_run_resumes_to_the_bits_of_one_that_was_not(
  folder, trained, tmp_path
):
  workdir = tmp_path / "run"
  script = KILLED.format(tests=str(TESTS), folder=str(folder), workdir=str(workdir))
  process = subprocess.run([sys.executable, "-c", script], cwd=TESTS.parent)
  assert process.returncode == -signal.SIGKILL
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
