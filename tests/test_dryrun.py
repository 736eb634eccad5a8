"""The rehearsed step: its counts are compared with known numbers."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys

import jax
import pytest

from resnet_jax.analysis import dryrun
from resnet_jax.analysis.collectives import Collective, count_collectives
from resnet_jax.analysis.dryrun import Topology, rehearse
from resnet_jax.cli import dryrun as dryrun_command
from resnet_jax.cli import main
from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from resnet_jax.models.registry import create_model
from resnet_jax.models.summary import list_layers
from resnet_jax.runtime.chips import CHIPS

CONFIG = Config(
  batch_size=16,
  model=ModelConfig(name="resnet8"),
  data=DataConfig(name="synthetic", image_size=8, num_examples=64),
)
PARAMS = 75_290
NORMS = 7

PROGRAM = """
HloModule step

%body (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %inner = f32[4]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  %s = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %r = (f32[8]{0:T(256)S(1)}, bf16[3,3]{1,0}) all-reduce(%p), replica_groups=[1,4]<=[4]
  %g = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}
  %d = f32[8]{0} all-gather-done(%g)
  %m = s8[3]{0} all-gather(%p), channel_id=7, replica_groups=mesh['x'=2,'y'=2] {'y'}
  %again = s8[3]{0} all-gather(%p), channel_id=7, replica_groups=mesh['x'=2,'y'=2] {'y'}
  %pp = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p)
  %sub = s8[7]{0} all-to-all(%p), replica_groups=mesh['x'=8,'y'=2] {'x':(2)4,'y'}
  %f8 = f8e4m3fn[5]{0} all-to-all(%p), replica_groups={{0,1,2,3}}
  %alone = f32[9]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %w = s32[] while(%t), body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_collectives_are_counted_as_often_as_they_run():
  assert count_collectives(PROGRAM, 4) == [
    Collective("all-gather", 2, 1, 3),
    Collective("all-gather", 4, 1, 32),
    Collective("all-reduce", 2, 5, 80),
    Collective("all-reduce", 4, 1, 50),
    Collective("all-to-all", 4, 1, 5),
    Collective("all-to-all", 8, 1, 7),
    Collective("collective-permute", 4, 1, 32),
  ]


def test_bytes_sent_in_a_ring():
  def sent(kind, size):
    return Collective(kind, 4, 1, size).sent_bytes

  # In the end, every device has all 100 bytes, or a fourth of them.
  assert sent("all-reduce", 100) == 150 == sent("reduce-scatter", 25) * 2
  assert sent("all-gather", 100) == 75


def cpu(devices: int) -> Topology:
  return Topology(f"cpu:{devices}", jax.devices()[:devices], (devices,), None)


def all_reduces(report) -> Collective:
  """Returns the only collective of the report, which is an all-reduce."""
  (found,) = report.collectives
  assert found.kind == "all-reduce"
  return found


@pytest.fixture(scope="module")
def rehearsed():
  return rehearse(CONFIG, cpu(4))


def test_global_batch_norm_waits_twice_in_each_layer_and_its_own_never(rehearsed):
  everywhere = all_reduces(rehearsed)
  assert everywhere.group == 4
  alone = all_reduces(rehearse(dataclasses.replace(CONFIG, bn_scope="device"), cpu(4)))
  assert everywhere.count - alone.count >= 2 * NORMS - 1
  assert alone.count <= 3
  # It sums gradients and running statistics once each, and some metrics.
  features = 16 * 3 + 32 * 2 + 64 * 2
  assert PARAMS + 2 * features <= alone.bytes / 4 < PARAMS + 2 * features + 50


def test_groups_of_batch_norm_exchange_among_themselves():
  report = rehearse(dataclasses.replace(CONFIG, bn_scope=2), cpu(4))
  counts = {c.group: c.count for c in report.collectives}
  assert counts[2] >= 2 * NORMS - 1 and counts[4] <= 3


@pytest.mark.parametrize("loops", [False, True])
def test_operations_are_those_of_the_layers_in_loops_too(rehearsed, loops):
  report = rehearsed
  if loops:
    optim = OptimConfig(accumulate=2)
    report = rehearse(dataclasses.replace(CONFIG, optim=optim), cpu(1))
  layers = list_layers(create_model("resnet8"), (8, 8, 3))
  multiply_adds = 16 / report.chips * sum(layer.multiply_adds for layer in layers)
  # The forward pass and two gradients; XLA does not count products with padding.
  assert 0.7 < report.flops / (2 * 3 * multiply_adds) < 1.0


def test_memory_of_the_optimiser_is_split_and_its_work_gathered_once(rehearsed):
  optim = dataclasses.replace(CONFIG.optim, shard_state=True)
  split = rehearse(dataclasses.replace(CONFIG, optim=optim), cpu(4))
  gathered = sum(c.bytes for c in split.collectives if c.kind == "all-gather")
  assert 0.9 < gathered / (4 * PARAMS) < 1.05
  saved = rehearsed.memory["arguments"] - split.memory["arguments"]
  assert saved / (4 * PARAMS * 3 / 4) == pytest.approx(1, abs=0.05)


def test_roofline_by_hand(rehearsed):
  chip = dataclasses.replace(CHIPS["v5e"], flops_per_s=rehearsed.flops / 2)
  topology = Topology("v5e:2x2", jax.devices()[:1] * 4, (2, 2), chip)
  report = dryrun._add_roofline(rehearsed, topology)
  assert report.compute_s == report.step_s == 2 and report.bound == "compute"
  assert report.images_per_s == 8
  c = all_reduces(rehearsed)
  assert report.network_s == pytest.approx(c.bytes * 1.5 / 200e9 + c.count * 4e-6)


def run(*args) -> subprocess.CompletedProcess:
  code = "from resnet_jax.cli.main import main; main()"
  command = [sys.executable, "-c", code, "dryrun", *args]
  return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_command_prints_an_object_for_each_topology():
  flags = "--config=configs/digits.py", "--config.model.name=plain8", "--json"
  result = run(*flags, "--topology=cpu:2,cpu:2", "--images-per-chip=8")
  assert result.returncode == 0, result.stderr
  one, two = map(json.loads, result.stdout.splitlines())
  assert one["batch_size"] == two["batch_size"] == 16
  assert one["collectives"][0]["kind"] == two["collectives"][0]["kind"] == "all-reduce"
  assert two["fits"] and two["memory"]["peak"] > two["memory"]["arguments"] > 0


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--topology=v9:2x2"], "--topology 'v9:2x2' must be one such as"),
    (
      ["--topology=cpu:2", "--config.batch_size=2000"],
      "batch_size=2000 must be at most",
    ),
    (["--topology=cpu:0"], "--topology 'cpu:0' must be one such as cpu:8"),
    (["--topology=cpu:3"], "config.batch_size=32 must be a multiple of the 3 devices"),
    (["--topology=cpu:2", "--config.bn_scope=all"], "config.bn_scope='all' must be"),
  ],
)
def test_wrong_usage_is_one_line(args, message, monkeypatch, capsys):
  # Runs the command in this process, with its devices.
  monkeypatch.setattr(dryrun_command, "run", dryrun_command._run)
  monkeypatch.setattr(dryrun, "use_cpu_only", lambda names: None)
  with pytest.raises(SystemExit) as exit:
    main.main(["dryrun", "--config=configs/digits.py", *args])
  assert exit.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and message in line


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_crash_of_the_compiler_is_one_line(monkeypatch, capfd):
  def crash(names):
    os.kill(os.getpid(), signal.SIGKILL)

  monkeypatch.setattr(dryrun, "use_cpu_only", crash)
  args = ["dryrun", "--config=configs/digits.py", "--topology=cpu:2"]
  with pytest.raises(SystemExit) as exit:
    main.main(args)
  assert exit.value.code == 1
  assert "error: the compiler crashed (SIGKILL)" in capfd.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_tpu_topology_compiles():
  result = run(
    "--config=configs/digits.py", "--topology=v5e:2x2", "--images-per-chip=4", "--json"
  )
  assert result.returncode == 0, result.stderr
  report = json.loads(result.stdout)
  assert report["chips"] == 4 and report["dtype"] == "bfloat16" and report["step_s"] > 0


def test_an_own_network_on_images_that_are_not_opened_needs_its_number_of_classes():
  data = DataConfig(
    name="imagenet2012", train_crop="random_resized", image_size=8, eval_crop=8
  )
  model = ModelConfig(factory="own_parts:two_outputs")
  topology = dryrun.describe_topology("cpu:1")
  with pytest.raises(ValueError, match="num_classes=0 must be > 0 for a network"):
    rehearse(Config(num_steps=1, batch_size=2, model=model, data=data), topology)
