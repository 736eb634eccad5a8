"""The files in configs/: their settings, parameters and weight decay, as text in git.

A file in tests/golden/ describes one config or one of its variants. To accept a change,
run `python tests/test_configs.py`, which rewrites all of them.
"""

import ast
import dataclasses
import difflib
import itertools
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from resnet_jax.cli import settings
from resnet_jax.config import Config, files, serialization
from resnet_jax.config.fields import check_field_name, flatten
from resnet_jax.config.validation import validate
from resnet_jax.models.building import build_model
from resnet_jax.models.image_size import size_warnings
from resnet_jax.models.registry import create_model
from resnet_jax.models.variables import abstract_variables
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.optimizer import create_optimizer
from resnet_jax.training.resolved_config import (
  resolve_settings,
  with_dtype,
  with_num_classes,
)

CONFIGS = Path(__file__).parents[1] / "configs"
# Image sides, in pixels, of the data sets that are kept in memory.
SIDES = {"cifar10": 32, "digits": 8, "fashion_mnist": 28}
GOLDEN = Path(__file__).parent / "golden"
VARIANTS: dict[str, tuple[str, ...]] = {
  path.stem: runpy.run_path(str(path)).get("VARIANTS", ())
  for path in sorted(CONFIGS.glob("*.py"))
}
# What `--config` takes: NAME, or NAME:VARIANT.
NAMES = [
  f"{stem}:{variant}" if variant else stem
  for stem, variants in VARIANTS.items()
  for variant in variants or ("",)
]
# Number of classes and channels, by data set. A config that reads a folder of images is
# listed by its own name.
IMAGES = {
  "cifar10": (10, 3),
  "coco_retinanet_resnet50": (80, 3),
  "digits": (10, 1),
  "fashion_mnist": (10, 1),
  "finetune_photos": (10, 3),
  "imagenet2012": (1000, 3),
  "imagenette_resnet18": (10, 3),
  "tiny_imagenet_resnet": (200, 3),
  "transfer_tiny_imagenet": (200, 3),
  "voc_deeplabv3_resnet50": (21, 3),
}


def describe(name: str) -> str:
  """Returns the text of the golden file of a config."""
  config = files.load_config_file(name)
  data = name.partition(":")[0] if config.data.name == "folder" else config.data.name
  classes, channels = IMAGES[data]
  classes = config.model.num_classes or classes
  shapes = parameter_shapes(config, classes, channels)
  count = sum(int(np.prod(shape)) for shape in shapes.values())
  lines = [
    "# Settings",
    *(f"{path} = {value!r}" for path, value in flatten(config).items()),
    "",
    f"# {count:,} parameters with {classes} classes and {channels}-channel images",
    "# The shape of each, and whether weight decay acts on it; block2-3 is two blocks",
    *parameter_lines(shapes, decays(config, shapes)),
  ]
  return "\n".join(lines) + "\n"


def parameter_shapes(
  config: Config, classes: int, channels: int
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each parameter by its path; nothing is computed."""
  model = build_model(with_dtype(with_num_classes(config, classes)))
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  variables = abstract_variables(model, (32, 32, channels), sharding)
  leaves, _ = jax.tree_util.tree_flatten_with_path(variables["params"])
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in leaves
  }


def decays(config: Config, paths: dict[str, tuple[int, ...]]) -> dict[str, bool]:
  """Returns, by path, whether weight decay changes a parameter whose gradient is 0.

  The config's own optimiser is used, with a single number in place of each parameter.
  """
  params = unflatten(dict.fromkeys(paths, np.ones((), np.float32)))
  gradients = jax.tree.map(np.zeros_like, params)
  optim = dataclasses.replace(config.optim, weight_decay=1.0)
  tx = create_optimizer(optim, lambda step: 1.0, config.freeze)
  updates, _ = tx.update(gradients, tx.init(params), params)
  leaves, _ = jax.tree_util.tree_flatten_with_path(updates)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): bool(leaf != 0)
    for path, leaf in leaves
  }


def unflatten(leaves: dict[str, np.ndarray]) -> dict:
  """Returns {"stem": {"conv": ...}} for {"stem/conv": ...}."""
  tree: dict = {}
  for path, leaf in leaves.items():
    *groups, last = path.split("/")
    node = tree
    for group in groups:
      node = node.setdefault(group, {})
    node[last] = leaf
  return tree


def parameter_lines(
  shapes: dict[str, tuple[int, ...]], decayed: dict[str, bool]
) -> Iterator[str]:
  """Yields a line for each parameter; identical blocks of a stage share a line."""
  groups: dict[tuple, list[int]] = {}
  for path, shape in shapes.items():
    block = re.search(r"(?<=/block)\d+", path)
    place = path if block is None else f"{path[: block.start()]}*{path[block.end() :]}"
    blocks = groups.setdefault((place, shape, decayed[path]), [])
    if block is not None:
      blocks.append(int(block[0]))
  for (place, shape, is_decayed), blocks in groups.items():
    size = "x".join(map(str, shape))
    decay = "decay" if is_decayed else "no decay"
    yield f"{place.replace('*', ranges(blocks))} {size} {decay}"


def ranges(numbers: list[int]) -> str:
  """Returns "1,3-5" for [1, 3, 4, 5]."""
  pairs = enumerate(sorted(numbers))
  runs = [
    [number for _, number in run]
    for _, run in itertools.groupby(pairs, lambda pair: pair[1] - pair[0])
  ]
  return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)


def golden_path(name: str) -> Path:
  return GOLDEN / f"{name.replace(':', '-')}.txt"


@pytest.mark.parametrize("name", NAMES)
def test_settings_and_parameters_are_those_in_git(name):
  old, new = golden_path(name).read_text(encoding="utf-8"), describe(name)
  if old != new:
    lines = old.splitlines(), new.splitlines()
    changes = difflib.unified_diff(*lines, "in git", "now", n=0, lineterm="")
    pytest.fail("\n".join(changes), pytrace=False)


def test_every_golden_file_is_of_a_config():
  assert sorted(GOLDEN.glob("*")) == sorted(map(golden_path, NAMES))


@pytest.mark.parametrize("name", [*VARIANTS, *NAMES])
def test_a_config_is_found_by_name_from_any_folder_and_valid(
  name, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  validate(files.load_config_file(name))


def test_a_config_is_a_file_a_run_or_a_path_of_the_repository(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine.py").write_text((CONFIGS / "digits.py").read_text())
  (tmp_path / "run").mkdir()
  expected = files.load_config_file("digits")
  (tmp_path / "run" / "config.json").write_text(serialization.to_json(expected))
  for name in (
    *("mine", "mine.py", "./mine", str(tmp_path / "mine.py")),
    *("run", "run/", "run/config.json", str(tmp_path / "run")),
    *("configs/digits.py", "configs/digits"),
  ):
    assert files.load_config_file(name) == expected, name


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("my.yaml", "my.yaml is no config file; --config takes .* Python file"),
    ("bare", "bare is no config file; --config takes"),
    ("empty", "empty is a folder without config.json; --config takes"),
    ("", "there is no --config=; --config takes"),
    ("zzz", "there is no --config=zzz; --config takes a name of `resnet-jax configs`"),
    ("other/digits.py", "the package has --config=digits"),
    ("cifar10", r"did you mean cifar10_fast, cifar10_\w+, cifar10_\w+\?"),
    ("tiny", r"did you mean tiny_imagenet_resnet, transfer_tiny_imagenet\?"),
  ],
)
def test_what_is_no_config_gets_what_is_one(name, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "my.yaml").write_text("seed: 1\n")
  (tmp_path / "bare").write_text("x")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=message):
    settings.load_config(name, [])


@pytest.mark.parametrize("stem", [stem for stem in VARIANTS if VARIANTS[stem]])
def test_the_default_is_a_variant_and_an_unknown_one_is_refused(stem):
  variants = [files.load_config_file(f"{stem}:{name}") for name in VARIANTS[stem]]
  assert variants.count(files.load_config_file(stem)) == 1
  with pytest.raises(UserError, match="resnet21") as error:
    files.load_config_file(f"{stem}:resnet21")
  assert any(name in str(error.value) for name in VARIANTS[stem])


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.py")), ids=lambda p: p.stem)
def test_a_config_file_imports_no_other(path):
  imported = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      imported |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, "a relative import"
      imported.add(node.module.split(".")[0])
  assert not imported & {"configs", "sweeps", *VARIANTS}


def image_shapes(config: Config) -> tuple[tuple[int, int, int], ...]:
  """Returns (H, W, C) of the training images and of those for evaluation."""
  data, side = config.data, SIDES.get(config.data.name, 0)
  sizes = data.train_resize or side, data.eval_crop or data.eval_resize or side
  if data.train_crop:
    sizes = data.image_size, data.eval_crop
  return tuple((size, size, 3) for size in sizes)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_config_have_a_size_that_suits_its_network(name):
  config = files.load_config_file(name)
  config.init_from, config.init_head = "", False
  config = resolve_settings(config)
  model = build_model(with_num_classes(config, 10))
  assert size_warnings(model, *image_shapes(config)) == []


@pytest.mark.parametrize(
  ("model", "train", "evaluation", "expected"),
  [
    # Users did this with photos: an ImageNet network in a config for 32-pixel images.
    ({"name": "resnet18"}, 32, 32, ["map is 1x1 .*32 pixels.*config.model.stem=cifar"]),
    ({"name": "resnet50"}, 64, 64, ["map is 2x2"]),
    ({"name": "resnet50", "stem": "deep"}, 224, 64, ["map is 2x2", "224 .* 64"]),
    ({"name": "resnet20", "stem": "imagenet"}, 32, 32, ["map is 2x2"]),
    ({"name": "resnet18", "stem": "cifar"}, 8, 8, ["1x1 .*config.model.name=resnet20"]),
    ({"name": "resnet20"}, 224, 224, ["49 times.*config.model.stem=imagenet"]),
    ({"name": "resnet50"}, 128, 224, ["training images have 128 .* evaluation .* 224"]),
    ({"name": "resnet50"}, 96, 96, []),
    ({"name": "resnet50"}, 176, 224, []),
    ({"name": "resnet18", "stem": "cifar"}, 64, 64, []),
    ({"name": "wide_resnet28_10"}, 32, 32, []),
    ({"name": "resnet20"}, 8, 8, []),
  ],
)
def test_a_size_that_does_not_suit_the_network_is_said(
  model, train, evaluation, expected
):
  shapes = (train, train, 3), (evaluation, evaluation, 3)
  found = size_warnings(create_model(**model), *shapes)
  assert len(found) == len(expected)
  for text, pattern in zip(found, expected, strict=True):
    assert re.search(pattern, text), text


@pytest.mark.parametrize(
  ("flags", "name"),
  [
    ("", "digits"),
    ("--config.data.dir=photos", "finetune_photos:scratch"),
    ("--config.data.name=folder --config.data.dir=x.csv", "finetune_photos:scratch"),
    ("--config.data.dir=photos --config.init_from=x.pth", "finetune_photos"),
    (
      "--config.data.dir=voc --config.data.labels=mask",
      "voc_deeplabv3_resnet50:scratch",
    ),
    (
      "--config.data.dir=coco --config.data.labels=boxes",
      "coco_retinanet_resnet50:scratch",
    ),
    ("--config.data.name=cifar10 --config.data.dir=data", "digits"),
    ("--config.data.factory=own:images --config.data.dir=data", "digits"),
    ("--config.data.name=folder", "digits"),
  ],
)
def test_a_folder_without_a_config_takes_the_one_for_photos(flags, name):
  args = flags.split()
  values = settings.parse_settings(args)
  expected = settings.change(files.load_config_file(name), values)
  assert settings.load_config(None, args) == expected
  assert settings.load_config(None, args, saved=Config()) == settings.change(
    Config(), values
  )


@pytest.mark.parametrize("stem", VARIANTS)
def test_the_docstring_has_a_title_and_a_command_that_exists(stem):
  title = files.list_configs()[stem]
  assert 0 < len(title) < 88
  assert title.endswith(".")
  doc = ast.get_docstring(ast.parse((CONFIGS / f"{stem}.py").read_text("utf-8")))
  # The hardware, the training time or that it is not known, and the accuracy.
  assert re.search(r"\b(CPU|GPUs?|H100)\b", doc)
  time = r"\d (s|min|minutes?|hours?)\b|\b(a|an) (minute|hour)|time was not measured"
  assert re.search(time, doc)
  assert re.search(r"\d %", doc)
  for name in re.findall(r"--config=([\w:]+)", doc):
    files.load_config_file(name)
  assert f"resnet-jax train --config={stem}" in doc
  for setting in re.findall(r"--config\.([\w.]+)", doc):
    check_field_name(setting)


def write_all() -> None:
  """Rewrites the golden files and removes those that belong to no config."""
  GOLDEN.mkdir(exist_ok=True)
  for path in set(GOLDEN.glob("*")) - set(map(golden_path, NAMES)):
    path.unlink()
  for name in NAMES:
    golden_path(name).write_text(describe(name), encoding="utf-8")


@pytest.mark.parametrize("variant", ["", ":x"])
def test_a_config_json_runs_no_code_by_itself(tmp_path, variant):
  config = Config()
  config.model.factory = "own_parts:network"
  path = tmp_path / "config.json"
  path.write_text(serialization.to_json(config))
  with pytest.raises(UserError, match=r"add --trust-code|has no variants"):
    settings.load_config(f"{path}{variant}", [])
  flag = ["--config.model.factory=own_parts:network"]
  assert settings.load_config(str(path), flag) == config
  assert settings.load_config(str(path), [], trust_code=True) == config


if __name__ == "__main__":
  write_all()
