"""Commands and Python in the README and in docs/ run, or say why not.

A block that a test cannot run has a line `<!-- not run: REASON -->` above it. Words in
capitals stand for files of the reader (see `given`) or a new directory (OUT, NEW).
"""

import io
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from arrays import variables_of
from PIL import Image
from running import train_config
from test_use import create as create_trained

from resnet_jax import create_model, weights
from resnet_jax.cli.main import COMMANDS, create_parser, main
from resnet_jax.cli.settings import parse_settings
from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from resnet_jax.config.preprocessing import Preprocessing, preprocessing_of
from resnet_jax.inference.export import export
from resnet_jax.runs.run_dir import load_run_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?```(\w*)\n(.*?)```", re.S)

# A page whose commands build on each other. They are run together, in one folder.
STORY = "finetune.md"


class Block(NamedTuple):
  page: str
  number: int
  reason: str
  language: str
  text: str


BLOCKS = [
  Block(page.name, number, *match.groups())
  for page in PAGES
  for number, match in enumerate(BLOCK.finditer(page.read_text()), 1)
]


def those(language: str) -> list:
  return [
    pytest.param(block.text, id=f"{block.page}-{block.number}")
    for block in BLOCKS
    if block.language == language and not block.reason and block.page != STORY
  ]


def test_the_blocks_that_are_not_run_say_why():
  marks = sum(page.read_text().count("<!-- not run") for page in PAGES)
  skipped = [block for block in BLOCKS if block.reason]
  assert marks == len(skipped)  # Each stands right above a block.
  assert all(len(block.reason) > 10 for block in skipped)
  for block in BLOCKS:  # Every block of commands has a language that is run.
    is_command = re.match(r"(\$ )?(pip|python|resnet-jax|pytest|srun) ", block.text)
    assert block.language in ("bash", "python") or not is_command


def test_scripts_have_no_syntax_errors():
  scripts = [block.text for block in BLOCKS if block.language == "bash"]
  for text in scripts:
    found = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert not found.stderr, f"{text}\n{found.stderr}"


def commands_shown(page: Path) -> set[str]:
  """Returns our commands in the text of a page and in its blocks, run or not."""
  text = re.sub(r"\$\w+", "1", page.read_text().replace("\\\n", " "))
  blocks = "".join(block[3] for block in BLOCK.finditer(text))
  in_text = [
    " ".join(code.split()) for code in re.findall("`(.+?)`", BLOCK.sub("", text), re.S)
  ]
  lines = [
    re.sub("['\"]", "", re.sub(r"\$\((.*?)\)", r"\1", line))
    for line in [*blocks.splitlines(), *in_text]
  ]
  found = [re.search(r"(?:resnet-jax|python train\.py) ([^#&;|<]+)", x) for x in lines]
  return {match[1] for match in found if match}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist(page):
  for line in commands_shown(page):
    words = [word for word in line.split() if word != "--help"]
    assert words[0] in COMMANDS, line
    if len(words) > 1:  # Otherwise the text only names the command.
      _, settings = create_parser().parse_known_args(words)
      parse_settings(settings)


def test_imports_of_the_package_work_in_all_blocks():
  """Also in the blocks that are not run."""
  lines = re.compile(
    r"^(?:from resnet_jax\S* import (?:\([^)]*\)|.+)|import resnet_jax.*)", re.M
  )
  found = [
    line
    for block in BLOCKS
    if block.language == "python"
    for line in lines.findall(block.text)
  ]
  assert len(found) > 20
  for line in found:
    exec(line, {})


def test_links_lead_somewhere():
  for page in PAGES:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
      if "://" not in target:
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
  """Returns the paths that the words in capitals stand for."""
  root = tmp_path_factory.mktemp("given")
  photos = root / "photos"
  noise = np.random.default_rng(0)
  for name in ("cat", "dog"):
    for split, count in (("train", 8), ("val", 4)):
      folder = photos / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = noise.integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
  with tfds.core.registered.skip_registration():

    class Cifar10(tfds.image_classification.Cifar10):
      def _split_generators(self, _):
        return {"train": self._examples(16), "test": self._examples(8)}

      def _examples(self, count: int):
        for i in range(count):
          file = io.BytesIO()
          Image.new("RGB", (32, 32), (i, i, i)).save(file, "png")
          file.seek(0)
          yield i, {"id": str(i), "image": file, "label": i % 10}

  Cifar10(data_dir=root / "data", file_format="array_record").download_and_prepare()
  model = create_model("resnet20", 10)
  variables = variables_of(model, np.zeros((1, 32, 32, 3)))
  weights.save(str(root / "weights.safetensors"), model, variables)
  config = Config(
    num_steps=1,
    batch_size=8,
    model=ModelConfig(name="resnet8"),
    data=DataConfig(name="digits"),
    optim=OptimConfig(learning_rate=0.01),
  )
  train_config(config, str(root / "run"), devices=jax.devices()[:1])
  start = create_model("resnet8", 7)
  variables = variables_of(start, np.zeros((1, 32, 32, 3)))
  sizes = Preprocessing(resize=36, crop=32, interpolation="bicubic")
  weights.save(str(root / "timm.safetensors"), start, variables, sizes)
  return {
    "DIR": str(root / "data"),
    "PHOTOS": str(photos),
    "PHOTO": str(photos / "val" / "cat" / "0.jpg"),
    "RUN": str(root / "run"),
    "FILE": str(root / "weights.safetensors"),
    "hf://timm/resnet50.a1_in1k": str(root / "timm.safetensors"),
  }


# Settings that make a command quick but keep its meaning.
QUICK = {
  "config.num_steps": "1",
  "config.batch_size": "8",
  "config.steps_per_call": "1",
  "config.log_every_steps": "1",
  "config.eval_every_steps": "1",
  "config.precise_bn_batches": "0",
  "config.model.name": "resnet8",
  "config.data.image_size": "32",
}


# A command that contains this needs its own network, not a quicker one.
NETWORK = re.compile(r"init_from|freeze|config\.model|finetune_photos|=RUN")


def quick_settings(words: list[str], any_network: bool) -> list[str]:
  said = " ".join(words)
  quick = QUICK | (
    {"config.model.factory": "own_parts:normed_network"} if any_network else {}
  )
  return [
    f"--{name}={value}" for name, value in quick.items() if f"--{name}=" not in said
  ]


def run_command(
  line: str, given: dict[str, str], tmp_path: Path, is_alone: bool
) -> None:
  any_network = is_alone and not NETWORK.search(line)
  if "init_from" not in line:
    line = re.sub("=(plain|resnet)(14|20)", r"=\g<1>8", line)  # They compile sooner.
  stands_for = given | {"OUT": str(tmp_path / "out"), "NEW": str(tmp_path / "new")}
  names = r"\b(PHOTOS|PHOTO|RUN|FILE|DIR|NEW|OUT|hf://timm/resnet50.a1_in1k)\b"
  line = re.sub(names, lambda m: stands_for[m[1]], line)
  words = [
    re.sub(r"(?<![\w/])configs/", f"{ROOT}/configs/", word)
    for word in shlex.split(line)
  ]
  if words[:2] == ["python", "train.py"]:
    words[:2] = ["resnet-jax", "train"]
  if words[0] == "resnet-jax":
    trains = words[1] == "train" and "--mode=eval" not in words
    if trains or words[1] in ("study", "sweep"):
      words += quick_settings(words, trains and any_network)
    words += ["--no-report"] * trains
    main(words[1:])
  else:
    raise AssertionError(f"{line!r} must be run here, or the page must say why not")


def commands_of(text: str) -> list[str]:
  lines = text.replace("\\\n", " ").split("\n")
  return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("text", those("bash"))
def test_commands_run(text, given, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  # It would change how this whole test process frees memory.
  monkeypatch.setattr("resnet_jax.runtime.compilation.keep_freed_memory", lambda: None)
  lines = commands_of(text)
  for line in lines:
    run_command(
      line, given, tmp_path, is_alone=len(lines) == 1 or "--workdir" not in text
    )
  assert capsys.readouterr().out


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("text", those("python"))
def test_python_runs(text, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  # Some of the blocks read these files.
  if "net." in text:
    for form in ("stablehlo", "onnx"):
      if f"net.{form}" in text:
        export(create_trained(), f"net.{form}", form)
    Image.new("RGB", (40, 30), "red").save("photo.jpg")
  text = text.replace("num_steps=100", "num_steps=20")
  exec(compile(text, "page", "exec"), {})


@pytest.mark.usefixtures("one_device")
def test_the_notebook_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("MPLBACKEND", "agg")  # No window.
  notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
  assert notebook["nbformat"] == 4
  namespace: dict[str, object] = {}
  for cell in notebook["cells"]:
    if cell["cell_type"] == "code":
      assert not cell["outputs"]
      lines = [line for line in cell["source"] if not line.startswith(("!", "%"))]
      text = "".join(lines).replace("num_steps=150", "num_steps=20")
      exec(compile(text, "notebook", "exec"), namespace)


@pytest.mark.usefixtures("one_device")
def test_the_page_on_fine_tuning_goes_from_photos_to_an_exported_network(
  given, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("resnet_jax.runtime.compilation.keep_freed_memory", lambda: None)
  blocks = [b for b in BLOCKS if b.page == STORY and b.language == "bash"]
  for line in [line for b in blocks if not b.reason for line in commands_of(b.text)]:
    run_command(line, given, tmp_path, is_alone=False)
  output = capsys.readouterr()
  assert "config: --config=finetune_photos:scratch, because" in output.out
  assert "expect images of" not in output.err
  assert output.err.count("training images have 32 pixels") == 1  # The scratch run.
  config = load_run_config(str(tmp_path / "runs" / "photos"))
  expected = Preprocessing(resize=36, crop=32, interpolation="bicubic")
  assert preprocessing_of(config.data) == expected
  assert all(
    (tmp_path / name).stat().st_size for name in ("answers.png", "photos.onnx")
  )
  assert weights.known_class_names("photos.safetensors", 2) == ("cat", "dog")
