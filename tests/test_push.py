"""Uploads to the Hugging Face hub, and what is loaded from there again."""

import sys

import fake_hub
import jax
import numpy as np
import pytest
from arrays import normal, variables_of

from resnet_jax import create_model, load, weights
from resnet_jax.cli.main import main
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.weights import hub as hub_module

MODEL = create_model("resnet10t", 3)
NAMES = ("cat", "dog", "mouse")


@pytest.fixture(scope="module")
def hub():
  with fake_hub.running() as server:
    yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  path = tmp_path_factory.mktemp("source") / "x.safetensors"
  variables = variables_of(MODEL, normal(1, 32, 32, 3), spread=0.05)
  preprocessing = Preprocessing((0.5,), (0.25,), 73, 64)
  training = {"data": "photos", "steps": 7, "evaluation": {"top1": 0.5}}
  weights.save(path, MODEL, variables, preprocessing, NAMES, training=training)
  return path


@pytest.fixture
def push(hub, tmp_path, monkeypatch, capsys):
  """Returns a function that runs the command against the server."""
  constants = pytest.importorskip("huggingface_hub.constants")
  monkeypatch.setattr(constants, "ENDPOINT", hub.url)
  template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
  monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("HF_TOKEN", "secret")

  def run(*words) -> str:
    capsys.readouterr()
    main(["push", *map(str, words)])
    return capsys.readouterr().out

  return run


@pytest.mark.parametrize("form", ["flax-resnet", "timm"])
def test_what_is_pushed_is_loaded_again(form, hub, source, push):
  address = f"owner/new-{form}"
  options = [f"--format={form}", "--license=mit", "--private"]
  said = push(source, f"hf://{address}", *options)
  assert said == f"resnet10t of {source} -> {hub.url}/{address}\n"
  files = hub.files[address, "main"]
  config = ["config.json"] * (form == "timm")
  assert sorted(files) == ["README.md", *config, "model.safetensors"]
  assert hub.private[address] and str(source) not in str(hub.messages)
  card = files["README.md"].decode()
  assert f"library_name: {form}\n" in card and "license: mit\n" in card
  assert f'"{"hf://" if form != "timm" else "hf-hub:"}{address}"' in card
  assert str(source) not in card
  found, expected = load(f"hf://{address}"), load(str(source))
  assert found.class_names == NAMES
  assert found.preprocessing == expected.preprocessing
  jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)


def test_a_second_push_replaces_the_files_of_a_branch(hub, source, push):
  for branch in ("", "@small"):
    push(source, f"hf://owner/again{branch}", "--dtype=float16")
    half = len(hub.files["owner/again", branch[1:] or "main"]["model.safetensors"])
    push(source, f"hf://owner/again{branch}")
  assert not hub.private["owner/again"]
  main, small = (hub.files["owner/again", branch] for branch in ("main", "small"))
  assert {x: len(main[x]) for x in main} == {x: len(small[x]) for x in small}
  assert len(main["model.safetensors"]) > 1.9 * half
  assert main["README.md"] == small["README.md"]


@pytest.mark.parametrize(
  ("target", "token", "said"),
  [
    ("hf://owner/x", "wrong", "log in by `hf auth login`"),
    ("owner/x", "secret", "'owner/x' must be hf://owner/name"),
    ("hf://owner", "secret", "must be hf://owner/name"),
    ("hf://owner/x/y", "secret", "without a file"),
    ("hf://owner/--x", "secret", "cannot be uploaded"),
    ("hf://owner/unreachable", "secret", "hf://owner/unreachable cannot be uploaded"),
  ],
)
def test_a_refused_upload_is_one_line(
  target, token, said, hub, source, push, monkeypatch, capsys
):
  monkeypatch.setenv("HF_TOKEN", token)
  if "unreachable" in target:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
  with pytest.raises(SystemExit) as info:
    push(source, target)
  error = capsys.readouterr().err
  assert info.value.code == 2 and said in error
  assert error.startswith("error: ") and error.count("\n") == 1
  assert not hub.files["owner/x", "main"]


def test_the_package_to_install_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ValueError, match=r"pip install 'flax-resnet\[hf\]'"):
    hub_module.check_repository("hf://owner/x")
