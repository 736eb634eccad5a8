"""The learning-rate range test: when it ends, what it suggests, what it leaves."""

import csv
import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from resnet_jax.analysis.lr_find import find_learning_rate, follow
from resnet_jax.cli.main import main
from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig

RATES = [10.0**i for i in range(-5, 5)]


@pytest.mark.parametrize("end", [1e9, math.inf, math.nan])
def test_it_ends_when_the_loss_explodes_and_suggests_a_tenth_of_the_best_rate(end):
  def losses():
    yield from (2.0, 1.9, 1.5, 1.0, end)
    pytest.fail("it goes on")

  curve = follow(RATES, losses())
  assert curve.has_exploded
  assert curve.suggestion == pytest.approx(RATES[3] / 10)
  assert curve.losses[:4] == (2.0, 1.9, 1.5, 1.0)
  assert np.isfinite(curve.losses).all()
  assert len(curve.rates) == len(curve.losses) == len(curve.smoothed)


def test_a_loss_that_never_falls_gives_no_suggestion():
  assert follow(RATES, [2.0, 2.1, 2.2]).suggestion is None
  assert follow(RATES, [math.nan]).suggestion is None
  assert not follow(RATES, [2.0, 2.1, 2.2]).has_exploded


CONFIG = Config(
  batch_size=16,
  model=ModelConfig(factory="own_parts:normed_network"),
  data=DataConfig(name="synthetic", image_size=8, num_examples=70),
  optim=OptimConfig(
    warmup="head",
    warmup_steps=10,
    schedule="plateau",
    plateau_patience=3,
    early_stopping_patience=1,
    min_delta=0.1,
    ema_decay=0.9,
  ),
)


def test_rates_are_those_of_the_setting_whatever_the_batch_size():
  half = dataclasses.replace(CONFIG.optim, reference_batch_size=32)
  curves = [
    find_learning_rate(
      dataclasses.replace(CONFIG, optim=optim), lowest=low, highest=100 * low, steps=6
    )
    for optim, low in ((CONFIG.optim, 1e-3), (half, 2e-3))
  ]
  np.testing.assert_allclose(curves[0].rates[::5], (1e-3, 0.1))
  np.testing.assert_allclose(curves[1].rates, 2 * np.array(curves[0].rates))
  np.testing.assert_allclose(curves[1].losses, curves[0].losses, rtol=1e-5)


def test_it_leaves_only_the_files_that_it_is_asked_for(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  words = ["lr-find", "--config=digits", "--config.model.name=resnet8"]
  words += ["--config.batch_size=16", "--steps=60", "--lowest=1e-3", "--highest=10"]
  main([*words, "--out=rates.png"])
  out = capsys.readouterr().out
  assert "suggestion: --config.optim.learning_rate=" in out
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["rates.csv", "rates.png"]
  assert Image.open("rates.png").size[0] > 300
  with open("rates.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert f"{len(rows)} steps" in out
  assert float(rows[0]["learning_rate"]) == 1e-3


@pytest.mark.parametrize(
  "flags",
  [["--lowest=1", "--highest=0.1"], ["--steps=1"], ["--out=x.jpg"], ["--out=a/b.png"]],
)
def test_wrong_flags_get_one_line(flags, capsys):
  with pytest.raises(SystemExit) as error:
    main(["lr-find", "--config=digits", *flags])
  assert error.value.code == 2
  assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "JAX_NUM_PROCESSES"])
def test_several_processes_are_refused(variable, monkeypatch, capsys):
  monkeypatch.setenv(variable, "2")
  with pytest.raises(SystemExit) as error:
    main(["lr-find", "--config=digits"])
  assert error.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "lr-find runs in one process" in line
