"""`train(..., profile=...)`: the traced steps, their table, and a run's time shares."""

import dataclasses
import gzip
import io
import json
import re
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from rich.console import Console

from resnet_jax.cli.main import main
from resnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig
from resnet_jax.config.optim_settings import OptimConfig
from resnet_jax.models.registry import create_model
from resnet_jax.models.summary import list_layers
from resnet_jax.runs.time_shares import ACTIVITIES, Lap, TimeShares, describe_time
from resnet_jax.runtime import chips
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.signals import Stopped
from resnet_jax.training import profiling
from resnet_jax.training.clock import Clock
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.hooks import Hook
from resnet_jax.training.profiling import check_profile
from resnet_jax.training.trace import describe_layer, list_operations
from resnet_jax.training.trainer import train
from resnet_jax.training.utilization import create_seconds_at_peak

CONFIG = Config(
  num_steps=11,
  batch_size=16,
  steps_per_call=4,
  log_every_steps=4,
  eval_every_steps=6,
  model=ModelConfig(factory="own_parts:normed_network"),
  data=DataConfig(name="synthetic", image_size=8, num_examples=70),
)


def run(workdir, config=CONFIG, **options):
  """Returns the state, what was printed, and the number of updates of each call."""
  experiment = Experiment.create(config, devices=jax.devices()[:1])
  chunk, calls = experiment.train_chunk, []

  def spy(state, feed, count, size):
    calls.append(count)
    return chunk(state, feed, count, size)

  experiment.train_chunk = spy
  console = Console(file=io.StringIO(), width=200)
  state, _ = train(experiment, str(workdir), console=console, **options)
  return state, console.file.getvalue(), calls


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("plain")
  return workdir, *run(workdir)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("traced")
  return workdir, *run(workdir, profile=(3, 8))


def trace_of(workdir) -> bytes:
  (path,) = workdir.glob("profile/plugins/profile/*/*.xplane.pb")
  return path.read_bytes()


def records(workdir) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def assert_same_bits(a, b):
  def data(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf

  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(data(x), data(y))


def test_a_run_has_the_same_bits_with_and_without_a_trace(plain, traced):
  assert_same_bits(plain[1], traced[1])
  assert plain[3] == [0, 4, 2, 2, 3]  # The first call compiles.
  assert traced[3] == [0, 3, 1, 2, 2, 3]
  for ours, theirs in zip(records(traced[0]), records(plain[0]), strict=True):
    assert ours["step"] == theirs["step"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_exactly_the_steps_asked_for_are_in_the_trace(traced):
  operations = list_operations(trace_of(traced[0]))
  convolutions = [o for o in operations if re.match(r"conv( backward)?: ", o.name)]
  # An evaluation is in this range too; its operations are not training's.
  assert convolutions and {o.count for o in convolutions} == {5}
  assert {"conv" in o.name.partition(": ")[2] for o in convolutions} >= {True}
  assert any("backward" in o.name for o in convolutions)


def test_the_ten_most_expensive_operations_are_printed_with_how_to_open_the_trace(
  traced,
):
  workdir, _, shown, _ = traced
  lines = shown.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith("traced steps 3 "))
  assert re.fullmatch(
    r"traced steps 3 to 8 in \d+\.\d\d s; the most expensive operations:", lines[start]
  )
  table = lines[start + 1 : start + 12]
  assert table[0].split() == ["operation", "times", "ms", "share"]
  assert all(len(line) <= 80 for line in table)
  shares = [float(line.split()[-2]) for line in table[1:]]
  assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.5
  assert "peak memory of this process" in lines[start + 12]
  assert lines[start + 13] == f"trace: {workdir}/profile"
  assert f"xprof --logdir={workdir}/profile" in lines[start + 14]
  (path,) = workdir.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  assert any(event["name"] == "evaluation" for event in events if "name" in event)


@pytest.mark.parametrize(
  ("profile", "message"),
  [
    (0, "--profile=0 must be > 0"),
    (20, "--profile=20 needs a run of at least 30 steps, .* this run has 11"),
    ((3, 3), "--profile=3:3 must be FIRST:LAST with 0 <= FIRST < LAST <= 11"),
    ((100, 120), "--profile=100:120 must be FIRST:LAST"),
    ((3, 12), "--profile=3:12 must be FIRST:LAST"),
  ],
)
def test_steps_that_are_not_in_the_run_are_refused(profile, message, tmp_path):
  with pytest.raises(UserError, match=message):
    check_profile(profile, 11)
  with pytest.raises(UserError, match=message):
    run(tmp_path / "run", profile=profile)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--profile=5:30", "--config.num_steps=20"], "--profile=5:30 must be FIRST:LAST"),
    (["--profile=a"], "'a' must be a number of steps, such as 20, or FIRST:LAST"),
    (["--profile=3:"], "'3:' must be a number of steps"),
    (["--profile=3", "--mode=eval"], "--profile is for --mode=train"),
  ],
)
def test_a_wrong_flag_is_one_line_before_any_image_is_read(
  flags, message, tmp_path, capsys
):
  missing = ["--config=cifar10_resnet20", f"--config.data.dir={tmp_path}/missing"]
  with pytest.raises(SystemExit) as error:
    main(["train", f"--workdir={tmp_path}/run", *missing, *flags])
  assert error.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line and not (tmp_path / "run").exists()


def test_a_number_of_steps_counts_from_where_a_resumed_run_goes_on(
  plain, tmp_path, monkeypatch
):
  monkeypatch.setattr(profiling, "WARM_UP", 2)
  run(tmp_path, dataclasses.replace(CONFIG, num_steps=6))
  state, shown, _ = run(tmp_path, profile=2)
  assert "traced steps 8 to 10 in " in shown
  assert_same_bits(state, plain[1])
  operations = list_operations(trace_of(tmp_path))
  assert {o.count for o in operations if o.name.startswith("conv: ")} == {2}
  _, shown, _ = run(tmp_path, profile=2)
  assert "--profile=2: nothing was traced, as the run goes on from step 11" in shown


def test_a_run_that_is_past_the_steps_says_so_and_goes_on(plain, tmp_path):
  run(tmp_path, dataclasses.replace(CONFIG, num_steps=6))
  state, shown, _ = run(tmp_path, profile=(3, 8))
  assert "--profile=3:8: nothing was traced, as the run goes on from step 6" in shown
  assert not (tmp_path / "profile").exists()
  assert_same_bits(state, plain[1])


def broken(*args, **kwargs):
  raise RuntimeError("no\nprofiler")


@pytest.mark.parametrize(
  ("owner", "name"),
  [
    (jax.profiler, "start_trace"),
    (profiling, "list_operations"),  # Of a damaged file.
    (profiling.Profiler, "_how_to_open"),
  ],
)
def test_a_trace_that_fails_is_one_line_and_ends_no_run(
  plain, tmp_path, monkeypatch, capfd, owner, name
):
  monkeypatch.setattr(owner, name, broken)
  state, shown, _ = run(tmp_path, profile=(3, 8))
  assert "traced" not in shown
  assert capfd.readouterr().err == (
    "warning: --profile=3:8: the trace failed and training continues; RuntimeError: no "
    "profiler\n"
  )
  assert_same_bits(state, plain[1])


def test_half_a_trace_is_not_kept(tmp_path, monkeypatch):
  source = tmp_path / "source"
  (source / "a").mkdir(parents=True)
  for file in ("1", "a/2"):
    (source / file).write_text(file)
  target = epath.Path(tmp_path / "whole")
  profiling._copy(source, target)
  assert (target / "a/2").read_text() == "a/2"
  write, wrote = type(target).write_bytes, []

  def write_once(path, data):
    wrote.append(path)
    return write(path, data) if len(wrote) == 1 else broken()

  monkeypatch.setattr(type(target), "write_bytes", write_once)
  with pytest.raises(RuntimeError):
    profiling._copy(source, epath.Path(tmp_path / "half"))
  assert not [path for path in (tmp_path / "half").rglob("*") if path.is_file()]


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_ends_before_the_steps_says_so_and_leaves_no_trace(tmp_path, step):
  class Signal(Hook):
    def on_log(self, at, values):
      if at == step:
        signal.raise_signal(signal.SIGTERM)

  config = dataclasses.replace(CONFIG, log_every_steps=1, steps_per_call=1)
  console = Console(file=io.StringIO(), width=200)
  experiment = Experiment.create(config, devices=jax.devices()[:1])
  hooks = [Signal()]
  with pytest.raises(Stopped):
    train(experiment, str(tmp_path), console=console, hooks=hooks, profile=(3, 9))
  assert "--profile=3:9: nothing was traced, as the run ended" in (
    console.file.getvalue()
  )
  assert not (tmp_path / "profile").exists()
  jax.profiler.start_trace(str(tmp_path / "own"))  # None is running.
  jax.profiler.stop_trace()


@pytest.mark.parametrize(
  ("path", "layer"),
  [
    ("jit(t)/while/body/jvp(Net)/Net.stages/stem/stem.last/conv/dot", "stem/conv"),
    (
      "jit(t)/while/body/transpose(jvp(ResNet))/stage1/block1/conv1/cond/"
      "branch_0_fun/ffi_call",
      "stage1/block1/conv1 backward",
    ),
    ("jit(t)/while/body/add", ""),
    ("", ""),
  ],
)
def test_the_layer_of_an_operation_is_read_from_its_path(path, layer):
  assert describe_layer(path) == layer


def plane(
  name: str, line: str, events: list[tuple[str, int, int, str]], number: int = -1
) -> str:
  """Returns a plane with one line as text; times are in microseconds."""
  stats = {1: "hlo_module", 2: "hlo_op", 3: "program_id"}
  text = "".join(
    f"event_metadata {{ key: {i} value {{ id: {i} name: {json.dumps(event[0])} }} }}"
    for i, event in enumerate(events)
  ) + "".join(
    f'stat_metadata {{ key: {i} value {{ id: {i} name: "{stat}" }} }}'
    for i, stat in stats.items()
  )
  shown = ""
  for i, (title, start, length, module) in enumerate(events):
    values = [(1, module)] * bool(module)
    if line.startswith("Stream") and module:
      values.append((2, title.removesuffix("_kernel")))
    shown += (
      f"events {{ metadata_id: {i} offset_ps: {start}000000 "
      f"duration_ps: {length}000000 "
      + "".join(f'stats {{ metadata_id: {n} str_value: "{v}" }}' for n, v in values)
      + f"stats {{ metadata_id: 3 int64_value: {number} }} }}"
    )
  return f'planes {{ name: "{name}" {text} lines {{ name: "{line}" {shown} }} }}'


def operations_of(*planes: str) -> list[tuple[str, int, float]]:
  data = jax.profiler.ProfileData.text_proto_to_serialized_xspace("".join(planes))
  return [(o.name, o.count, round(1e6 * o.seconds)) for o in list_operations(data)]


def test_on_a_tpu_the_time_of_a_loop_is_without_the_operations_in_it():
  name = "jit_train_chunk"
  loop = [
    ("%while.1 = (f32[]) while(...)", 0, 100, name),
    ("%fusion.2 = f32[8] fusion(...)", 10, 30, name),
    ("%copy.3 = f32[8] copy(...)", 15, 5, name),
    ("%fusion.4 = f32[8] fusion(...)", 40, 50, name),
    ("%fusion.9 = f32[8] fusion(...)", 100, 500, "jit_eval"),
  ]
  other = plane("/device:TPU:0", "XLA Modules", [("jit_train_chunk(3)", 0, 100, "")])
  host = plane("/host:CPU", "python", [("train", 0, 1000, "")])
  device = plane("/device:TPU:1", "XLA Ops", loop)
  assert operations_of(device, other, host) == [
    *(("fusion.4", 1, 50), ("fusion.2", 1, 25), ("while.1", 1, 20), ("copy.3", 1, 5))
  ]


def test_on_a_gpu_the_streams_are_counted_and_kernels_without_a_name_too():
  name = "jit_train_chunk"
  events = [("gemm_kernel", 0, 7, name), ("MemcpyH2D", 10, 2, "")]
  stream = plane("/device:GPU:0", "Stream #7(Compute)", events)
  assert operations_of(stream) == [("gemm", 1, 7), ("MemcpyH2D", 1, 2)]


def message(*fields: tuple[int, bytes]) -> bytes:
  """Returns a message of protobuf whose fields are shorter than 16384 bytes."""
  return b"".join(
    bytes([number << 3 | 2, len(value) & 127 | 128, len(value) >> 7]) + value
    for number, value in fields
  )


def programs(layers: dict[str, dict[str, str]]) -> str:
  """Returns the plane of compiled programs: {program: {operation: layer}}."""
  metadata = b""
  for place, (title, parts) in enumerate(layers.items(), start=1):
    computation = message(
      *(
        (2, message((1, name.encode()), (7, message((2, f"{layer}/op".encode())))))
        for name, layer in parts.items()
      )
    )
    stat = message((6, message((1, message((3, computation))))))
    entry = bytes([1 << 3, place]) + message(
      (2, message((2, title.encode()), (5, stat)))
    )
    metadata += message((4, entry))
  return metadata + message((2, b"/host:metadata"))


@pytest.mark.parametrize(
  "number",
  [
    12,  # As in the table of programs: compiled in this process.
    77,  # From the compilation cache: the number of another process.
    3,  # The same, and here another network has this number.
    2,  # The same, and it is a place in the table.
  ],
)
def test_a_layer_is_one_of_the_traced_network_and_not_of_another_in_memory(number):
  table = {
    "jit_train_chunk(14)": {"conv.1": "other"},
    "jit_train_chunk(3)": {"conv.1": "other", "dot.7": "other"},
    "jit_train_chunk(12)": {"conv.1": "own", "add.2": "own"},
    "jit_train_chunk(11)": {"conv.1": "before", "add.2": "before"},
  }
  events = [(name, 0, 9, "jit_train_chunk") for name in ("conv.1", "add.2")]
  text = plane("/device:TPU:0", "XLA Ops", events, number)
  trace = jax.profiler.ProfileData.text_proto_to_serialized_xspace(text)
  found = list_operations(trace + message((1, programs(table))))
  assert {o.name for o in found} == {"own: conv.1", "own: add.2"}


class Result:
  """The result of a call; the devices compute it until `done` is set."""

  def __init__(self):
    self.done = threading.Event()

  def block_until_ready(self):
    self.done.wait()


def test_the_clock_knows_each_activity_between_two_calls(monkeypatch):
  now = [100.0]
  monkeypatch.setattr("time.monotonic", lambda: now[0])

  def call(seconds):
    result = Result()
    clock.dispatched(result)
    now[0] += seconds
    result.done.set()
    return clock.lap()

  with Clock() as clock:
    now[0] += 30  # Compiles.
    clock.start()
    assert call(4) == (4, 0, {})
    with clock.timed("saving"):
      now[0] += 2
    with clock.timed("evaluation"):
      now[0] += 3
    now[0] += 1
    clock.start()
    with clock.timed("saving"):  # Such as a second save at the same step.
      now[0] += 5
    clock.start()
    assert call(6) == (6, 0, {"saving": 7, "evaluation": 3, "other": 1})
    assert call(1) == (1, 0, {})


def test_shares_are_of_the_whole_time_and_sum_to_1():
  time = TimeShares()
  time.add(Lap(3.0, 1.0, {"evaluation": 5.0}), seconds_at_peak=0.5)
  time.add(Lap(1.0, 2.0, {"saving": 1.0}), seconds_at_peak=0.5)  # Late by a second.
  values = time.take(80)
  assert values == {
    "images_per_s": 20,
    "input_wait": 0.5,
    "mfu": 0.25,
    "time_train": 0.2,
    "time_input": 0.2,
    "time_evaluation": 0.5,
    "time_saving": 0.1,
    "time_other": 0,
  }
  assert describe_time(values) == (
    ", MFU 25 %, input-bound: waits 50 %, time: evaluation 50 %, saving 10 %"
  )
  time.add(Lap(99.0, 0.0, {"saving": 1.0}), seconds_at_peak=0.0)
  values = time.take(80)
  assert "mfu" not in values and "input_wait" not in values
  assert values["time_train"] == 0.99 and describe_time(values) == ""
  # A clock with a low resolution may show that a call took no time.
  time.add(Lap(0.0, 0.0, {}), seconds_at_peak=0.0)
  assert time.take(80)["time_train"] == 1


def test_each_training_line_of_a_run_has_its_shares(plain):
  lines = [line for line in records(plain[0]) if line["split"] == "train"]
  names = "train", "input", *ACTIVITIES
  for line in lines:
    shares = [line[f"time_{name}"] for name in names]
    assert min(shares) >= 0 and sum(shares) == pytest.approx(1)
  evaluated = [line["step"] for line in lines if line["time_evaluation"]]
  assert evaluated == [8] and lines[1]["time_saving"] > 0  # After step 6.


def seconds_at_peak(step=1, **changes):
  config = dataclasses.replace(CONFIG, model=ModelConfig(name="resnet8"), **changes)
  experiment = Experiment.create(config, devices=jax.devices()[:2])
  return create_seconds_at_peak(experiment)(step)


@pytest.mark.several_devices
def test_the_share_of_the_peak_counts_three_forward_passes(monkeypatch):
  assert seconds_at_peak() == 0  # The peak of a CPU is not known.
  monkeypatch.setitem(chips.FLOPS_PER_S, jax.devices()[0].device_kind, 1e9)

  def forward(size):
    layers = list_layers(create_model("resnet8"), (size, size, 3))
    return 2 * sum(layer.multiply_adds for layer in layers)

  by_hand = pytest.approx(3 * forward(8) / 2e9)
  assert seconds_at_peak() == by_hand
  assert seconds_at_peak(optim=OptimConfig(sam_rho=0.05)) / 2 == by_hand
  assert seconds_at_peak(freeze=("stem",)) == 0
  growing = AugmentConfig(progressive_sizes=(4, 8))  # The second from step 5 on.
  assert seconds_at_peak(5, augment=growing) == pytest.approx(3 * forward(4) / 2e9)
  assert seconds_at_peak(6, augment=growing) == by_hand


def pairs(config):
  """Augments pairs of images."""
  del config
  return lambda key, images: images.reshape(-1, 2, *images.shape[1:]).reshape(
    images.shape
  )


def fails_later(config):
  del config

  def augment(key, images):
    raise ValueError("no images")

  return augment


@pytest.mark.several_devices
def test_what_counts_the_operations_of_mfu_gets_a_whole_batch_and_ends_no_run(
  monkeypatch, capsys
):
  monkeypatch.setitem(chips.FLOPS_PER_S, jax.devices()[0].device_kind, 1e9)
  own = AugmentConfig(batch_factory="test_profile:pairs")
  assert seconds_at_peak(augment=own) == seconds_at_peak() > 0
  own = AugmentConfig(batch_factory="test_profile:fails_later")
  assert seconds_at_peak(augment=own) == 0
  assert capsys.readouterr().err == (
    "warning: the run continues without MFU: ValueError: no images\n"
  )


def test_the_first_line_after_a_resume_is_of_the_steps_since_the_checkpoint(tmp_path):
  every = dataclasses.replace(CONFIG, log_every_steps=1, steps_per_call=1, num_steps=8)
  run(tmp_path / "every", every)
  losses = [r["loss"] for r in records(tmp_path / "every") if r["split"] == "train"]
  run(tmp_path / "run", dataclasses.replace(CONFIG, num_steps=6))
  run(tmp_path / "run", dataclasses.replace(CONFIG, num_steps=8))
  *_, line, evaluation = records(tmp_path / "run")
  assert (line["step"], evaluation["split"]) == (8, "eval")
  assert line["loss"] == pytest.approx(np.mean(losses[6:8]), rel=1e-5)
  shares = [line[f"time_{name}"] for name in ("train", "input", *ACTIVITIES)]
  assert line["time_evaluation"] == line["time_saving"] == 0
  assert sum(shares) == pytest.approx(1)
