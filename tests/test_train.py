"""`python train.py` as users call it: what it prints, writes and refuses."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_jax.cli.main import main
from resnet_jax.cli.train import next_commands
from resnet_jax.config import Config, DataConfig

ROOT = Path(__file__).parents[1]
# Reduces a minute of training to a second.
TINY = [
  "--config.data.name=synthetic",
  "--config.data.image_size=8",
  "--config.data.num_examples=64",
  "--config.batch_size=16",
  "--config.optim.warmup_epochs=0",
  "--config.optim.learning_rate=0.1",
  "--no-report",
]


def train(*args, cwd=ROOT, **kwargs) -> subprocess.CompletedProcess:
  command = [sys.executable, "train.py", *map(str, args)]
  return subprocess.run(
    command, cwd=cwd, capture_output=True, text=True, timeout=300, **kwargs
  )


@pytest.mark.parametrize(
  ("args", "parts"),
  [
    (["--config.optim.lerning_rate=1"], ["config.optim.lerning_rate", "learning_rate"]),
    (["--config.learning_rate=1"], ["config.learning_rate", "optim.learning_rate"]),
    (["--config.optim.learning_rate=fast"], ["learning_rate=fast", "a number"]),
    (["--config.batch_size=1.5"], ["batch_size=1.5", "a whole number"]),
    (["--config.batch_size=0"], ["config.batch_size=0", "> 0"]),
    (["--config.model.name=resnet21"], ["model.name='resnet21'", "resnet20"]),
    (["--config.optim.schedule=linear"], ["'linear'", "'step', 'cosine'"]),
    (["--config=none.py"], ["none.py", "digits", "resnet-jax configs"]),
    (["--config=configs/cifar10_resnet20.py:resnet21"], ["resnet21", "resnet20"]),
    (["--confg=x"], ["confg", "config"]),
    (["--mode=test"], ["mode", "'train', 'eval'"]),
    (["--mode=eval"], ["--workdir"]),
    (["runs/x"], ["'runs/x'", "--"]),
    (["--config.data.name=cifar10", "--config.data.dir=no"], ["tfds build cifar10"]),
    (["--config.batch_size=2000"], ["batch_size=2000", "1437"]),
    (["--config.augment.padding=8"], ["augment.padding=8", "less than", "8x8"]),
    (["--gpus=2"], ["--gpus", "CUDA_VISIBLE_DEVICES"]),
    (["--lr=0.1"], ["--lr", "--config.optim.learning_rate"]),
    (["--workdir=train.py"], ["train.py is a file"]),
    (["--workdir="], ["--workdir="]),
    (["--config=BAD"], ["lerning_rate"]),
    (["--config=OTHER"], ["must return a Config", "{}"]),
    (["--config.optim.decay_steps=(1.5,2)"], ["decay_steps", "whole numbers"]),
  ],
)
def test_wrong_usage_is_one_line_and_status_2(
  args, parts, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(ROOT)
  # The command runs in this process, not in its own.
  monkeypatch.setattr("resnet_jax.runtime.compilation.keep_freed_memory", lambda: None)
  for name, body in (
    ("BAD", "c = Config(); c.optim.lerning_rate = 1; return c"),
    ("OTHER", "return {}"),
  ):
    path = tmp_path / f"{name}.py"
    path.write_text(f"from resnet_jax.config import *\ndef get_config(): {body}\n")
    args = [arg.replace(name, str(path)) for arg in args]
  with pytest.raises(SystemExit) as end:
    main(["train", *args])
  assert end.value.code == 2
  out, error = capsys.readouterr()
  assert out == ""
  (line,) = error.splitlines()
  assert line.startswith("error: ")
  for part in parts:
    assert part in line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("cli") / "run"
  args = "--config.num_steps=6", "--config.optim.warmup_steps=7"
  result = train(*TINY, *args, f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  return workdir, result.stdout


def test_a_run_says_what_it_reached_where_it_lies_and_what_is_next(run):
  workdir, shown = run
  assert re.search(r"done: top-1 [\d.]+ %, .* on 64 images after 6 steps", shown)
  assert f"run:  {workdir}" in shown
  assert f"next: resnet-jax evaluate --workdir={workdir}\n" in shown
  assert "warning: the warmup of 7 steps is longer than the run" in shown
  assert "\x1b" not in shown  # plain lines where there is no terminal
  assert {"config.json", "checkpoints", "metrics.jsonl", "curves.png"} <= {
    path.name for path in workdir.iterdir()
  }
  config = json.loads((workdir / "config.json").read_text())
  assert config["model"]["num_classes"] == 10


@pytest.mark.parametrize(
  ("data", "commands"),
  [
    ({"name": "folder"}, ["resnet-jax predict --workdir=R PHOTO"]),
    ({"name": "cifar10"}, ["resnet-jax predict --workdir=R PHOTO"]),
    ({"name": "synthetic"}, []),
    ({"factory": "mine:data"}, []),
    (
      {},
      [
        "resnet-jax train --config.model.name=plain20",
        "resnet-jax train --config=cifar10_resnet20 --config.data.dir=DIR",
      ],
    ),
  ],
)
def test_what_to_do_next_fits_the_images(data, commands):
  config = Config(data=DataConfig(**data))
  assert next_commands(config, "--workdir=R") == commands


def test_evaluating_a_run(run):
  workdir, shown = run
  result = train("--mode=eval", f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  top1 = re.search(r"done: (top-1 [\d.]+ %)", shown)[1]
  assert result.stdout.startswith(f"step 6: {top1}")


def test_workdir_alone_goes_on_with_its_settings(run):
  workdir, _ = run
  result = train(f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  assert "6 of them done" in result.stdout


def test_changed_settings_are_refused_with_both_values(run):
  workdir, _ = run
  result = train(f"--workdir={workdir}", "--config.optim.learning_rate=0.3")
  assert result.returncode == 2
  assert "learning_rate was 0.1 and is now 0.3" in result.stderr
  assert len(result.stderr.splitlines()) == 1


def test_a_loss_that_is_not_finite_is_one_line_and_status_1(tmp_path):
  result = train(
    *TINY,
    "--config.optim.learning_rate=1e30",
    "--config.num_steps=8",
    f"--workdir={tmp_path / 'nan'}",
  )
  assert result.returncode == 1
  (line,) = result.stderr.splitlines()
  assert line.startswith("error: the ") and "learning_rate" in line


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
  command = [sys.executable, str(ROOT / "train.py"), *TINY, f"--workdir={tmp_path}"]
  process = subprocess.Popen(
    [*command, "--config.num_steps=1000000", "--config.steps_per_call=2"],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    while not process.stdout.readline().startswith("step "):
      assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
  assert process.returncode == 0
  assert err.strip() == (
    "SIGINT: stopping after the step is saved; a second signal ends the run at once"
  )
  (step,) = re.findall(
    r"stopped after step (\d+), which is saved: resnet-jax train", out
  )
  assert f"--workdir={tmp_path} resumes it" in out
  assert (tmp_path / "checkpoints" / step).is_dir()


def test_help_names_the_flags():
  result = train("--help")
  assert result.returncode == 0
  settings = "--config NAME", "--config.PATH=VALUE"
  for flag in ("--workdir RUN", "--mode {train,eval}", "--coordinator HOST", *settings):
    assert flag in result.stdout


def test_a_terminal_gets_a_live_bar(tmp_path):
  """On a terminal the last line is redrawn in place."""
  leader, follower = pty.openpty()
  command = [sys.executable, "train.py", *TINY, "--config.num_steps=6"]
  process = subprocess.Popen(
    [*command, f"--workdir={tmp_path / 'run'}"],
    cwd=ROOT,
    stdout=follower,
    stderr=follower,
    env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"},
  )
  os.close(follower)
  shown, end = b"", time.monotonic() + 300
  while time.monotonic() < end:
    if select.select([leader], [], [], 1)[0]:
      try:
        shown += os.read(leader, 65536)
      except OSError:  # closed by the other side
        break
  assert process.wait(60) == 0
  assert b"\x1b[" in shown and b"done: top-1" in shown
  last = re.sub(rb"\x1b\[[^a-zA-Z]*[a-zA-Z]", b"", shown[shown.rindex(b"6/6 ") :])
  assert re.match(rb"6/6 epoch \S+ lr \S+ \d:\d\d:\d\d in all\r\n", last)


@pytest.mark.slow
def test_default_run_reads_the_digits(tmp_path):
  # With full optimisation, because this run computes for longer than it compiles.
  environ = os.environ | {"XLA_FLAGS": ""}
  result = train(f"--workdir={tmp_path / 'run'}", env=environ)
  assert result.returncode == 0, result.stderr
  top1 = float(re.search(r"done: top-1 ([\d.]+) %.* on 360 images", result.stdout)[1])
  assert top1 >= 98.5
