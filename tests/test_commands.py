"""`resnet-jax` as users call it: what it prints and what it refuses."""

import argparse
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from running import train_config

from resnet_jax import __version__, create_model, weights
from resnet_jax.cli.main import COMMANDS, create_parser, main
from resnet_jax.cli.options import parsers_of_commands, take_former_words
from resnet_jax.cli.settings import parse_settings
from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from resnet_jax.config.files import load_config_file
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.checksums import digest_arrays
from resnet_jax.runtime import errors
from resnet_jax.training import evaluator

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
  """A short run of a scanned plain network on small synthetic images."""
  workdir = str(tmp_path_factory.mktemp("runs") / "run")
  config = Config(
    num_steps=1,
    batch_size=8,
    model=ModelConfig(name="plain14", scan=True),
    data=DataConfig(name="synthetic", image_size=8, num_examples=16, mean=(0.4,)),
    optim=OptimConfig(learning_rate=0.01),
  )
  train_config(config, workdir, devices=jax.devices()[:1])
  return workdir


def call(capsys, *argv: str) -> str:
  main(list(argv))
  return capsys.readouterr().out


def refuse(capsys, *argv: str) -> str:
  with pytest.raises(SystemExit) as exit_info:
    main(list(argv))
  assert exit_info.value.code == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("error: ") and err.count("\n") == 1
  return err


def test_summary_in_words_and_as_json(capsys):
  text = call(capsys, "summary", "resnet20")
  assert "269,722" in text and "0.04 G" in text
  assert "stage1/block3/conv2" in text
  found = json.loads(call(capsys, "summary", "resnet20", "--num-classes=7", "--json"))
  assert found["model"] == "resnet20" and found["num_classes"] == 7
  assert found["params"] == 269_722 - 3 * 65
  assert found["params"] == sum(layer["params"] for layer in found["layers"])
  assert found["multiply_adds"] == 40_551_040 - 3 * 64


def test_a_run_becomes_a_file_that_evaluates_the_same(run, tmp_path, capsys):
  path = str(tmp_path / "w.safetensors")
  assert "after step 1" in call(capsys, "convert", "--workdir", run, "--out", path)
  by_run = json.loads(call(capsys, "evaluate", "--workdir", run, "--json"))
  assert set(by_run) == {"top1", "top5", "loss", "count"}
  assert by_run["count"] == 16
  # The mean comes with the file; the data set's other settings are the defaults.
  model = create_model("plain14")
  assert weights.read_preprocessing(path, model).mean == (0.4,)
  config = Config(
    batch_size=8,
    model=ModelConfig(name="plain14", dtype="float32"),
    data=DataConfig(name="synthetic", image_size=8, num_examples=16, mean=(0.4,)),
  )
  by_file = evaluator.prepare_weights(config, path).evaluate()
  np.testing.assert_allclose(by_file["loss"], by_run["loss"], rtol=1e-5)
  assert by_file["top1"] == by_run["top1"]


def test_hash_is_of_the_bits(run, capsys):
  text = call(capsys, "hash", "--workdir", run)
  found = json.loads(
    call(capsys, "hash", f"--workdir={run}", "--checkpoint=1", "--json")
  )
  assert text == f"step 1: {found['hash']}\n" and len(found["hash"]) == 32
  with CheckpointStore(run) as store:
    _, variables = store.restore_model("latest")
  assert digest_arrays(variables) == found["hash"]
  bias = variables["params"]["head"]["bias"]
  for other in (bias.at[3].set(-bias[3]), bias.astype(np.float16), bias[None]):
    variables["params"]["head"]["bias"] = other
    assert digest_arrays(variables) != found["hash"]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_the_version_is_printed_with_and_without_a_command(command, capsys):
  with pytest.raises(SystemExit) as end:
    main([*command, "--version"])
  assert end.value.code == 0
  assert capsys.readouterr().out == f"{__version__}\n"


def test_weights_are_not_evaluated_on_classes_in_another_order(run, tmp_path, capsys):
  path = str(tmp_path / "w.safetensors")
  call(capsys, "convert", "--workdir", run, "--out", path)
  for name in ("cat", "dog"):
    (tmp_path / "val" / name).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "val" / name / "1.png")
  options = ["--model=plain14", f"--weights={path}", "--dataset=folder", "--split=val"]
  options += ["--resize=9", "--crop=8", "--num-classes=10"]
  error = refuse(capsys, "evaluate", *options, f"--data-dir={tmp_path}")
  assert "the images have the class 'cat', which is not among the 10" in error
  assert ".csv" in error
  table = tmp_path / "table.csv"
  table.write_text("path,label,split\nval/cat/1.png,3,val\nval/dog/1.png,1,val\n")
  found = call(capsys, "evaluate", *options, f"--data-dir={table}", "--json")
  assert json.loads(found)["count"] == 2


def test_a_file_becomes_a_run_and_a_file_again(run, tmp_path, capsys):
  first, second = (str(tmp_path / f"{i}.safetensors") for i in "12")
  other = str(tmp_path / "run")
  call(capsys, "convert", f"--workdir={run}/checkpoints/1", f"--out={first}")
  call(capsys, "convert", f"--weights={first}", f"--out={other}", "--model=plain14")
  call(capsys, "convert", f"--workdir={other}", f"--out={second}")
  words = ["evaluate", f"--weights={first}", "--model=qq", "--dataset=digits"]
  assert "--model='qq' is unknown" in refuse(capsys, *words)
  assert "--dataset must name" in refuse(capsys, "evaluate", "--workdir", other)
  model = create_model("plain14")
  a, b = (weights.load(path, model) for path in (first, second))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert weights.read_preprocessing(second, model).mean == (0.4,)
  with CheckpointStore(other) as store:
    assert store.restore_model("0", jax.tree.leaves(a)[0].sharding)[0] == 0


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["sumary"], "no command 'sumary'; did you mean summary?"),
    (["fit"], "no command 'fit'; did you mean train?"),
    (["train", "--config.model.name=mine"], "factory names a network of your own"),
    (["data", "check", "gs://b/x"], "SOURCE='gs://b/x' must be a local path; mount"),
    (
      ["features", "s3://b", "--weights=resnet8_digits", "--out=x.npz"],
      "SOURCE='s3://b' must be a local path",
    ),
    (
      ["evaluate", "--weights=resnet8_digits", "--dataset=gs://b/x"],
      "'gs://b/x' must be a local path",
    ),
    (["xyz"], r"choose from train, .* and \d+ more"),
    (["--workdir=x"], "needs a command, before --workdir=x, such as"),
    ([], "needs a command, such as `resnet-jax train`"),
    (["summary", "resnet51"], "NAME='resnet51'.*did you mean .*resnet50"),
    (["summary", "qq"], "choose from [^`]*resnet20 and 137 more: `resnet-jax models`"),
    (["summary", "resnet20", "more"], "'more' is no flag of this command"),
    (["evaluate", "--wokrdir=x"], "--wokrdir is no flag; did you mean --workdir?"),
    (["evaluate", "--config.seed=1"], "this command takes no settings"),
    (["train", "--wrokdir=x"], "--wrokdir is no flag; did you mean --workdir"),
    (["train", "--num-process=2"], "did you mean --num-processes"),
    (["train", "digits"], "'digits' is no flag; did you mean --config=digits?"),
    (["train", "--config.model.name=qq"], r"config\.model\.name='qq' is unknown"),
    (["study", "degradatoin"], "did you mean degradation"),
    (
      ["sweep", "--config=digits", "--space=x"],
      "must be an existing Python file.*digits",
    ),
    (["hash"], "needs --workdir RUN"),
    (["hash", "{run}", "{run}"], "is no flag of this command"),
    (["features", "{tmp}", "--workdir={run}"], "needs --out FILE.npz"),
    (["export", "--workdir={run}"], "needs --out FILE"),
    (["export", "--workdir={run}", "--out=net.pb"], "must end in .onnx, .stablehlo or"),
    (["convert", "--out=x.safetensors"], "either --workdir RUN or --weights FILE"),
    (["convert", "--workdir={run}"], "needs --out PATH"),
    (
      ["convert", "--workdir={run}", "--out={tmp}/new", "--dtype=float16"],
      "--dtype=float16 is for weights",
    ),
    (["summary", "resnet50", "--image-size=0"], "image-size: '0' must be a whole"),
    (["summary", "resnet50", "--stem=x"], "stem='x'"),
    (
      ["convert", "--workdir={run}", "--out={tmp}/x.pth"],
      "x.pth' must end in .safetensors",
    ),
    (
      ["convert", "--workdir={run}", "--out={tmp}/x.safetensor"],
      "must end in .safetensors",
    ),
    (
      ["convert", "--workdir={run}", "--out={tmp}/x.safetensors", "--stem=deep"],
      "need --model",
    ),
    (["evaluate", "--workdir={run}", "--num-classes=7"], "--num-classes is for"),
    (
      ["evaluate", "--model=resnet20", "--weights=hf://x", "--dataset=digits"],
      "hf://owner",
    ),
    (["summary", "resnet20", "--image=32"], "did you mean --image-size?"),
    (
      ["convert", "--workdir={run}", "--out={tmp}/no/x.safetensors"],
      "in an existing directory",
    ),
    (
      ["convert", "--workdir={run}", "--out={tmp}/x.safetensors", "--model=resnet20"],
      "has plain14",
    ),
    (["convert", "--workdir={tmp}/none", "--out={tmp}/x.safetensors"], "there is no"),
    (["convert", "--workdir={tmp}", "--out={tmp}/x.safetensors"], "no config.json"),
    (
      ["convert", "--weights={run}/config.json", "--out={tmp}/x.safetensors"],
      "config.json' must end in .safetens",
    ),
    (
      [
        "convert",
        "--weights={run}/config.json",
        "--out={tmp}/x.safetensors",
        "--model=resnet20",
      ],
      "config.json' must end in .safetensors",
    ),
    (["convert", "--workdir={run}", "--out={run}"], "new run directory"),
    (["evaluate"], "needs --workdir RUN or --weights FILE"),
    (["evaluate", "--workdir={run}", "--model=resnet20"], "--model is for --weights"),
    (["evaluate", "--workdir={tmp}"], "no config.json"),
    (["evaluate", "--workdir={run}", "--checkpoint=7"], "no checkpoint '7'.*1"),
    (["evaluate", "--workdir={run}", "--dataset=digits"], "1 channels"),
    (["evaluate", "--workdir={run}", "--split=tset"], "^error: --split='tset'"),
    (["evaluate", "--workdir={run}", "--std=0"], "^error: --std="),
    (
      ["evaluate", "--model=resnet20", "--weights={tmp}/w.pth", "--dataset=digits"],
      "no file of weights",
    ),
  ],
)
def test_mistakes_are_one_line_with_status_2(run, tmp_path, capsys, argv, message):
  filled = [arg.format(run=run, tmp=tmp_path) for arg in argv]
  assert re.search(message, refuse(capsys, *filled))


@pytest.mark.parametrize(
  "argv",
  [
    ["hash", "--workdir=~/none"],
    ["evaluate", "--workdir=~/none"],
    ["train", "--workdir=~/none", "--mode=eval"],
    ["evaluate", "--model=resnet20", "--weights=~/none.pth", "--dataset=digits"],
    ["predict", "x.png", "--workdir=run", "--figure=~/none/x.png"],
    ["convert", "--workdir=~/none", "--out=x.safetensors"],
    ["study", "depth", "--out=~/file"],
    ["sweep", "--config=digits", "--space=~/none.py", "--out=out"],
    ["data", "check", "~/photos", "--figure=~/none/x.png"],
    ["train", "--config=~/none.py"],
  ],
  ids=str,
)
def test_a_path_may_begin_with_a_tilde(argv, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "file").touch()
  error = refuse(capsys, *argv)
  assert f"{tmp_path}/" in error and "~" not in error


def test_help_waits_for_no_import_of_jax():
  code = """
import sys
from resnet_jax.cli.main import create_parser
create_parser().format_help()
print([x for x in ("jax", "numpy", "flax", "orbax", "matplotlib") if x in sys.modules])
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
  "command",
  list(parsers_of_commands(create_parser())),
  ids=lambda command: command.prog.removeprefix("resnet-jax "),
)
def test_help_has_examples_and_says_what_each_flag_takes(command):
  assert "\n\nexamples:\n  " in command.format_help()
  for action in command._actions:
    if action.help == argparse.SUPPRESS:
      continue
    assert len((action.help or "").split()) > 1, action
    # Only these four flags have no default; another flag may take their place.
    if action.option_strings and action.nargs != 0 and not action.required:
      says = "default:" in action.help
      assert says or action.dest in ("workdir", "weights", "model", "out"), action
  for line in command.epilog.split("\n")[1:]:
    (words,) = re.findall(r"resnet-jax ([^)>#]+)", line)
    args, rest = create_parser().parse_known_args(shlex.split(words))
    assert command.prog.startswith(f"resnet-jax {args.command}")
    if args.takes_settings:
      parse_settings(rest)
      load_config_file(getattr(args, "config", None) or "digits")
    else:
      assert not rest


FORMER = [
  (["hash", "R"], ["hash", "--workdir", "R"]),
  (["export", "o.onnx", "--workdir=R"], ["export", "--out=o.onnx", "--workdir=R"]),
  (["export", "--image-size=8x9"], ["export", "--photo-size=8x9"]),
  (["features", "P", "o.npz"], ["features", "P", "--out", "o.npz"]),
  (
    ["features", "P", "--crop=8", "o.npz"],
    ["features", "P", "--crop=8", "--out=o.npz"],
  ),
  (["convert", "R", "o"], ["convert", "--out=o"]),
  (["data", "check", "P", "--picture=a.png"], ["data", "check", "P", "--figure=a.png"]),
  (
    ["sweep", "--config=c", "--space=s", "--study=n"],
    ["sweep", "--config=c", "--space=s", "--name=n"],
  ),
]


@pytest.mark.parametrize(("old", "new"), FORMER, ids=str)
def test_former_names_are_taken_with_a_hint(old, new, capsys):
  found = []
  for words in (old, new):
    args, rest = create_parser().parse_known_args(words)
    assert take_former_words(args, rest) == []
    del args.parser, args.root
    if old[0] == "convert":  # R may be a run or a file; only its path tells.
      assert args.source == ("R" if words is old else None)
      del args.source
    found.append(vars(args))
  assert found[0] == found[1]
  lines = capsys.readouterr().err.splitlines()
  assert lines and all(re.match("hint: .* is now .*--", line) for line in lines)


def test_a_former_name_does_the_same(run, capsys):
  main(["hash", run])
  old = capsys.readouterr()
  assert old.out == call(capsys, "hash", "--workdir", run)
  assert old.err.startswith(f"hint: {run} is now given as --workdir RUN;")


def test_underscores_are_taken_for_hyphens(capsys):
  found = call(capsys, "summary", "resnet8", "--num_classes=7", "--json")
  assert json.loads(found)["num_classes"] == 7


def test_a_folder_is_a_data_set_by_its_path(run, tmp_path, capsys):
  for name in "01":
    (tmp_path / name).mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / name / "1.png")
  table = tmp_path / "table.csv"
  table.write_text("path,label,split\n0/1.png,0,val\n1/1.png,1,val\n")
  source = ["--workdir", run, "--json", "--crop=8"]
  found = call(capsys, "evaluate", *source, f"--dataset={table}")
  assert json.loads(found)["count"] == 2
  error = refuse(capsys, "evaluate", *source, f"--dataset={tmp_path}", "--split=x")
  assert error.startswith("error: --split=")


def test_a_figure_is_drawn_though_nobody_reads_the_lines(
  run, tmp_path, monkeypatch, capfd
):
  def show(*lines):
    raise BrokenPipeError

  monkeypatch.setattr("resnet_jax.cli.predict.show", show)
  Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
  figure = tmp_path / "figure.png"
  with pytest.raises(SystemExit):
    main(["predict", f"{tmp_path}/a.png", "--workdir", run, "--figure", str(figure)])
  assert Image.open(figure).size > (100, 100)


def test_a_long_text_for_head_is_no_error():
  command = f"{sys.executable} -m resnet_jax train --help | head -n 1"
  done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
  assert done.stdout.startswith("usage: ") and done.stderr == ""


@pytest.mark.parametrize(
  ("line", "completed"),
  [
    ("tr", "train"),
    (
      "train --config.optim.learning_rate_m",
      "--config.optim.learning_rate_multipliers",
    ),
    ("train --config dig", "digits"),
    ("train --config.data.interpolation bic", "bicubic"),
    ("train --config.augment.flip t", "true"),
    ("summary resnet110", "resnet110"),
    ("study deg", "degradation"),
    ("data check --fig", "--figure"),
    ("hash --workdir configs/s", "configs/sweeps"),
  ],
)
def test_bash_completes(line, completed, completion):
  ask = f"""
    source {completion}
    COMP_WORDS=(resnet-jax {line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
    _shtab_resnet_jax; echo "${{COMPREPLY[*]}}"
  """
  out = subprocess.check_output(["bash", "-c", ask], text=True, cwd=ROOT)
  assert out.split() == [completed]


@pytest.fixture(scope="module")
def completion(tmp_path_factory) -> Path:
  """The script with which bash completes the command."""
  if shutil.which("bash") is None:
    pytest.skip("needs bash")
  path = tmp_path_factory.mktemp("completion") / "script"
  with path.open("w") as file, contextlib.redirect_stdout(file):
    main(["completion", "bash"])
  subprocess.run(["bash", "-n", path], check=True)
  return path


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_too(shell, capsys):
  script = call(capsys, "completion", shell)
  assert "resnet-jax" in script and "config.optim.learning_rate" in script


def test_the_command_is_installed():
  command = Path(sys.executable).with_name("resnet-jax")
  out = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
  assert {"summary", "convert", "evaluate"} <= set(out.stdout.split())


@pytest.mark.slow
def test_weights_trained_elsewhere_give_their_accuracy(capsys):
  if not DATA.is_dir():
    pytest.skip(f"needs CIFAR-10 and weights in {DATA}")
  flags = {
    "model": "resnet20",
    "weights": str(DATA / "weights" / "resnet20-12fca82f.th"),
    "dataset": "cifar10",
    "data-dir": str(DATA / "tfds"),
  }
  argv = [f"--{flag}={value}" for flag, value in flags.items()]
  found = json.loads(call(capsys, "evaluate", *argv, "--json"))
  assert found["count"] == 10_000
  assert round(found["top1"] * 10_000) == 9173


def test_out_of_memory_is_one_line(capsys):
  with pytest.raises(SystemExit) as exit_info, errors.clean_errors():
    jax.block_until_ready(jnp.zeros(2**50))
  assert exit_info.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  size = 4 * 2**50
  expected = f"error: out of memory: Out of memory allocating {size} bytes; take"
  assert line.startswith(expected)
  with pytest.raises(jax.errors.JaxRuntimeError), errors.clean_errors():
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_long_name_in_a_file_is_no_long_message(capsys):
  with pytest.raises(SystemExit), errors.clean_errors():
    raise errors.UserError("a" * 10**6)
  assert len(capsys.readouterr().err) == len("error: ") + 10_000 + len("\n")


def test_an_interrupt_that_leaves_a_lock_free_is_one_line(capsys):
  with pytest.raises(SystemExit) as exit_info, errors.clean_errors():
    try:
      raise KeyboardInterrupt
    finally:
      threading.Lock().release()
  assert exit_info.value.code == 1
  assert capsys.readouterr().err == "error: interrupted\n"
