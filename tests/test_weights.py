"""Weights: what is saved comes back, others' names are read, wrong files refused."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from torch_writer import CONTAINERS, Call, Global, View, members, pack, write

from resnet_jax import create_model, weights
from resnet_jax.models.scan_layout import is_scanned, to_named
from resnet_jax.weights import torch_checkpoint
from resnet_jax.weights.load_save import Preprocessing

ROOT = Path(__file__).parents[1]
MODEL = create_model("resnet8", 10)
# With everything that `save` writes for torch: convolutions on the shortcuts, too.
PROJECTED = create_model("resnet8", 10, shortcut="B")


def make_variables(model, channels=3):
  """Random numbers everywhere, in the model's own layout."""
  images = jnp.zeros((1, 32, 32, channels))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y, strict=True)


def small(name, features=8):
  return create_model(name, 10).clone(features=features, stage_sizes=(1, 1, 1, 1))


@pytest.fixture
def path(tmp_path):
  return tmp_path / "x.safetensors"


def named_tensors(path, model=PROJECTED):
  """Returns variables and what a file of them holds."""
  variables = make_variables(model)
  weights.save(path, model, variables)
  return variables, safetensors.numpy.load_file(path)


@pytest.mark.parametrize(
  "model",
  [
    MODEL,
    PROJECTED,
    create_model("resnet20", scan=True),
    create_model("resnet8", norm="group"),
    create_model("resnet8", norm="frozen"),
    create_model("highway20", scan=True),
    create_model("wide_resnet16_8").clone(features=8),
    create_model("resnetv2_164", scan=True).clone(stage_sizes=(1, 2, 3)),
    small("resnet50d"),
    small("seresnet18"),
    small("resnetv2_18"),
    small("resnext50_32x4d", features=16),
  ],
  ids=range(12),
)
def test_what_is_saved_comes_back_exactly_in_the_named_layout(model, path):
  variables = make_variables(model)
  assert is_scanned(variables) == (model.scan and max(model.stage_sizes) > 1)
  weights.save(path, model, variables)
  assert_equal(weights.load(path, model), {"batch_stats": {}} | to_named(variables))


def test_one_channel_of_weights_is_one_channel_of_images(path):
  for model in (MODEL, small("resnet50d"), small("resnetv2_18")):
    variables = make_variables(model, channels=1)
    weights.save(path, model, variables)
    assert_equal(weights.load(path, model), variables)


def test_a_torch_module_of_the_same_names_loads_it_strictly(path):
  torch = pytest.importorskip("torch")
  _, tensors = named_tensors(path)
  conv = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
  module = torch.nn.ModuleDict(
    {"conv1": conv, "bn1": torch.nn.BatchNorm2d(16), "fc": torch.nn.Linear(64, 10)}
  )
  keep = {k: torch.tensor(x) for k, x in tensors.items() if k.split(".")[0] in module}
  module.load_state_dict(keep, strict=True)


def test_the_head_of_a_resnetv2_is_the_convolution_that_timm_has(path):
  model = small("resnetv2_18")
  _, tensors = named_tensors(path, model)
  assert tensors["head.fc.weight"].shape == (10, 64, 1, 1)


RENAMED = {
  "module.": lambda name: f"module.{name}",
  "linear": lambda name: name.replace("fc.", "linear."),
  "shortcut": lambda name: name.replace(".downsample.", ".shortcut."),
  "all": lambda name: (
    "module." + name.replace("fc.", "linear.").replace(".downsample.", ".shortcut.")
  ),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("names", RENAMED)
def test_names_of_other_sources_load_the_same(names, container, path):
  variables, tensors = named_tensors(path)
  renamed = {RENAMED[names](name): array for name, array in tensors.items()}
  assert set(renamed) != set(tensors)
  other = path.with_name("x.pth")
  other.write_bytes(write(renamed, container))
  assert_equal(weights.load(other, PROJECTED), variables)
  safetensors.numpy.save_file(renamed, path)
  assert_equal(weights.load(path, PROJECTED), variables)


@pytest.mark.parametrize("suffix", weights.TORCH_SUFFIXES)
@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_tensors_load_the_same(wrapper, suffix, path):
  variables, tensors = named_tensors(path)
  other = path.with_suffix(suffix)
  other.write_bytes(write({"epoch": 3, wrapper: tensors}, "zip"))
  assert_equal(weights.load(other, PROJECTED), variables)


def test_a_1x1_convolution_is_a_head(path):
  variables, tensors = named_tensors(path)
  tensors["fc.weight"] = tensors["fc.weight"][..., None, None]
  safetensors.numpy.save_file(tensors, path)
  assert_equal(weights.load(path, PROJECTED), variables)


@pytest.mark.parametrize("container", CONTAINERS)
def test_everything_wrong_is_in_one_message(container, path):
  _, tensors = named_tensors(path)
  tensors["bn1.bias"] = tensors["bn1.bias"].astype(np.float16)
  tensors["fc.weight"] = tensors["fc.weight"].T
  tensors["bn1.weight"] = View(np.zeros(16, np.float32), 1, (16,), (1,))
  del tensors["fc.bias"], tensors["conv1.weight"]
  tensors |= {"extra": np.zeros(1), "another": np.zeros(1)}
  namespace = Call(Global("argparse", "Namespace"))
  history = Call(Global("collections", "deque"), [])
  content = {"args": namespace, "state_dict": tensors, "history": history}
  other = path.with_name("x.pth")
  other.write_bytes(write(content, container))
  with pytest.raises(ValueError) as error:
    weights.load(other, PROJECTED)
  said = str(error.value)
  assert "\n" not in said
  for part in [
    *("argparse.Namespace", "collections.deque"),
    *("bn1.bias has dtype float16", r"fc.weight has shape \(64, 10\)", "bn1.weight"),
    *("missing: fc.bias, conv1.weight", "unused: extra, another"),
  ]:
    assert re.search(part, said), part


@pytest.mark.parametrize(
  ("dtype", "size"), [("BF16", 2), ("F16", 2), ("F64", 8), ("BOOL", 1), ("F8_E4M3", 1)]
)
def test_every_wrong_dtype_in_safetensors_is_named(dtype, size, path):
  _, tensors = named_tensors(path)
  safetensors.numpy.save_file(tensors | {"extra": np.zeros(1)}, path)
  data = path.read_bytes()
  end = 8 + int.from_bytes(data[:8], "little")
  header = json.loads(data[8:end])
  for name in ("bn1.bias", "fc.bias"):
    first, last = header[name]["data_offsets"]
    header[name] |= {"dtype": dtype, "shape": [(last - first) // size]}
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
  with pytest.raises(ValueError) as error:
    weights.load(path, PROJECTED)
  for part in ("fc.bias has dtype", "bn1.bias has dtype", "unused: extra"):
    assert part in str(error.value)


def test_a_file_without_the_numbers_of_its_tensors_is_refused(path):
  _, tensors = named_tensors(path)
  parts = members(tensors, "legacy") | {"keys": pickle.dumps([]), "numbers": b""}
  other = path.with_name("x.pth")
  other.write_bytes(pack(parts, "legacy"))
  with pytest.raises(ValueError):
    weights.load(other, PROJECTED)


def test_two_tensors_of_one_name_are_refused(path):
  _, tensors = named_tensors(path)
  tensors["module.fc.bias"] = tensors["fc.bias"]
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(ValueError, match=r"fc\.bias is there twice, once as module\.fc"):
    weights.load(path, PROJECTED)


def test_a_file_for_another_number_of_classes_is_refused(path):
  named_tensors(path)
  with pytest.raises(ValueError, match=r"fc\.weight has shape \(10, 64\), not \(7, 64"):
    weights.load(path, create_model("resnet8", 7, shortcut="B"))


@pytest.mark.parametrize("name", ["x.pth", "x", "x.safetensors.gz"])
def test_another_suffix_is_refused_before_anything_is_written(name, tmp_path):
  with pytest.raises(ValueError, match=r"must end in \.safetensors"):
    weights.save(tmp_path / name, MODEL, make_variables(MODEL))
  assert not list(tmp_path.iterdir())


def test_nothing_half_written_stays(path, monkeypatch):
  variables, _ = named_tensors(path)
  before = path.read_bytes()

  write = Path.write_bytes

  def fail(file, data):
    write(file, data[: len(data) // 2])
    raise OSError("no space")

  monkeypatch.setattr(Path, "write_bytes", fail)
  with pytest.raises(OSError, match="no space"):
    weights.save(path, PROJECTED, variables)
  assert path.read_bytes() == before
  assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["x.npz", "x", "x.h5"])
def test_files_of_another_kind_are_refused(name, tmp_path):
  (tmp_path / name).write_bytes(b"x")
  for function in (weights.load, weights.read_preprocessing):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
      function(tmp_path / name, MODEL)


@pytest.mark.parametrize("function", [weights.load, weights.read_preprocessing])
def test_a_missing_file_is_named(function, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no file of weights at .*no\.pth"):
    function(tmp_path / "no.pth", MODEL)


# Preprocessing.

TIMM = {
  "input_size": [3, 224, 224],
  "mean": [0.5, 0.4, 0.3],
  "std": [0.1, 0.2, 0.3],
  "crop_pct": 0.95,
  "interpolation": "bicubic",
}


def test_preprocessing_that_was_saved_comes_back(path):
  saved = Preprocessing((0.1,), (0.2,), 40, 32, "bicubic")
  weights.save(path, MODEL, make_variables(MODEL), saved)
  (path.parent / "config.json").write_text(json.dumps({"pretrained_cfg": TIMM}))
  assert weights.read_preprocessing(path, MODEL) == saved


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_preprocessing_of_timm_is_read_beside_the_file(name, path):
  named_tensors(path)
  path = path.rename(path.with_name(name))
  (path.parent / "config.json").write_text(json.dumps({"pretrained_cfg": TIMM}))
  expected = Preprocessing((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 235, 224, "bicubic")
  assert weights.read_preprocessing(path, MODEL) == expected


@pytest.mark.parametrize(
  ("name", "model", "resize", "crop"),
  [
    ("resnet50-11ad3fa6.pth", "resnet50", 232, 224),
    ("wide_resnet101_2-d733dc28.pth", "wide_resnet101_2", 232, 224),
    ("resnext101_64x4d-173b62eb.pth", "resnext101_64x4d", 232, 224),
    ("resnet50-0676ba61.pth", "resnet50", 256, 224),
    ("resnet18-f37072fd.pth", "resnet18", 256, 224),
    ("resnet20-12fca82f.th", "resnet20", 0, 0),
  ],
)
def test_preprocessing_without_a_word_in_the_file(name, model, resize, crop, tmp_path):
  (tmp_path / name).write_bytes(b"x")
  (tmp_path / "config.json").write_text("{}")  # Of another library.
  expected = Preprocessing(resize=resize, crop=crop)
  assert weights.read_preprocessing(tmp_path / name, create_model(model)) == expected


DEEP = "[" * 100_000


@pytest.mark.parametrize(
  "config",
  [
    *("{", "[]", "\xff", DEEP, '{"pretrained_cfg": {}}', '{"pretrained_cfg": 3}'),
    *(
      json.dumps({"pretrained_cfg": TIMM | change})
      for change in (
        *({"crop_pct": 0}, {"crop_pct": None}, {"crop_pct": float("nan")}),
        *({"input_size": []}, {"input_size": [float("inf")]}, {"input_size": ["x"]}),
        *({"mean": None}, {"std": 3}, {"mean": "abc"}, {"interpolation": 3}),
      )
    ),
  ],
  ids=range(16),
)
def test_damaged_preprocessing_beside_the_file_is_named(config, tmp_path):
  path = tmp_path / "x.pth"
  path.write_bytes(b"x")
  (tmp_path / "config.json").write_text(config, "latin-1")
  with pytest.raises(ValueError, match=r"preprocessing of .*x\.pth is damaged"):
    weights.read_preprocessing(path, MODEL)


@pytest.mark.parametrize(
  "kept",
  [
    *("{", "[]", "3", DEEP, "{}", '{"mean": [0], "std": [1], "other": 1}'),
    '{"mean": "abc", "std": [1]}',
    '{"mean": [0], "std": [1], "resize": "x"}',
    '{"mean": [0], "std": [1], "interpolation": 3}',
  ],
  ids=range(9),
)
def test_damaged_preprocessing_in_the_file_is_named(kept, path):
  safetensors.numpy.save_file({"a": np.zeros(1)}, path, {"preprocessing": kept})
  with pytest.raises(ValueError, match=r"preprocessing of .* is damaged"):
    weights.read_preprocessing(path, MODEL)


def test_preprocessing_of_a_damaged_file_is_refused(path):
  path.write_bytes(b"x" * 99)
  with pytest.raises(ValueError, match="is no safetensors file, or damaged"):
    weights.read_preprocessing(path, MODEL)


# In another process.


def run(code: str, *arguments, **environment: str) -> dict:
  """Returns what a new process, which runs the code, prints as JSON."""
  command = [sys.executable, "-c", code, *map(str, arguments)]
  environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=120, env=environment
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_weights_load_where_there_is_no_torch(path):
  variables, tensors = named_tensors(path)
  files = [path]
  for container in CONTAINERS:
    files.append(path.with_name(f"{container}.pth"))
    files[-1].write_bytes(write(tensors, container))
  code = """
import json, sys
sys.modules["torch"] = None  # Importing it fails.
from resnet_jax import create_model, weights
model = create_model("resnet8", 10, shortcut="B")
loaded = [weights.load(path, model) for path in sys.argv[1:]]
print(json.dumps([float(x["params"]["head"]["bias"][3]) for x in loaded]))
"""
  expected = float(variables["params"]["head"]["bias"][3])
  assert run(code, *files) == [expected] * len(files)


HUB = """
import json, sys
from resnet_jax import create_model, weights
model = create_model("resnet8", 10)

def describe(name):
  try:
    loaded = weights.load(name, model)
    resize = weights.read_preprocessing(name, model).resize
    return [float(loaded["params"]["head"]["bias"][3]), resize]
  except Exception as error:
    return [type(error).__name__, str(error)]

found = {name: describe(name) for name in sys.argv[1:]}
print(json.dumps(found | {"torch": "torch" in sys.modules}))
"""


# The hub refuses them by errors of many kinds.
WRONG_NAMES = [
  *("hf://owner/plain/../x.pth", "hf://owner/plain/a/../../x.pth"),
  *("hf://owner/plain//etc/passwd", "hf://owner/plain@../../x", "hf://owner/pl ain"),
  *("hf://owner/plain.git", "hf://owner/..", "hf://owner/--", "hf://öwner/plain"),
  *("hf://owner/plain/a\\b.pth", "hf://owner/plain@a@b", f"hf://owner/{'x' * 300}"),
  *(f"hf://owner/plain/{'x' * 300}.pth", "hf://owner/plain/?.pth", "hf://o/p/\x1b.pth"),
]


def test_weights_load_from_the_hubs_cache_without_network_or_torch(path, tmp_path):
  pytest.importorskip("huggingface_hub")
  sha = "0123456789abcdef0123456789abcdef01234567"
  cache = tmp_path / "hub"
  variables, tensors = named_tensors(path, MODEL)

  def put(repo: str, file: str, content: bytes):
    folder = cache / f"models--owner--{repo}"
    blob = folder / "blobs" / file
    link = folder / "snapshots" / sha / file
    for parent in (blob.parent, link.parent, folder / "refs"):
      parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(sha)
    blob.write_bytes(content)
    link.symlink_to(blob)

  put("timm", "model.safetensors", path.read_bytes())
  put("timm", "config.json", json.dumps({"pretrained_cfg": TIMM}).encode())
  put("plain", "model.safetensors", path.read_bytes())
  put("pickled", "pytorch_model.bin", write(tensors, "zip"))
  put("other", "mine.safetensors", path.read_bytes())
  names = [
    *("timm", f"timm@{sha}", "plain", "pickled", "other/mine.safetensors"),
    *("other", "missing", "plain@v2", "plain/no.safetensors"),
  ]
  found = run(
    HUB,
    *(f"hf://owner/{name}" for name in names),
    *("hf://", "hf://owner", "hf:///plain", "hf://../../etc/passwd", *WRONG_NAMES),
    HF_HUB_CACHE=str(cache),
    HF_HUB_OFFLINE="1",
  )
  assert found.pop("torch") is False
  bias = float(variables["params"]["head"]["bias"][3])
  for name, resize in zip(names[:5], [235, 235, 0, 0, 0], strict=True):
    assert found.pop(f"hf://owner/{name}") == [bias, resize]
  for name, (error, said) in found.items():
    nameless = name.count("/") < 3 or name == "hf:///plain"
    assert error == ("UserError" if nameless else "NotFoundError"), (name, said)
    assert "\n" not in said and name in said


def test_an_impossible_number_of_channels_is_refused(path):
  """In a process of its own: XLA ends it where shapes are too large."""
  _, tensors = named_tensors(path, MODEL)
  files = []
  for channels in (0, 10**5, 2**40, 2**55):
    files.append(path.with_name(f"{channels}.safetensors"))
    kernel = np.zeros((0, channels, 3, 3), np.float32)
    safetensors.numpy.save_file(tensors | {"conv1.weight": kernel}, files[-1])
  code = """
import json, resource, sys
from resnet_jax import create_model, weights
model = create_model("resnet8", 10)
weights.load(sys.argv[1], model)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = {}
for path in sys.argv[2:]:
  try:
    weights.load(path, model)
  except ValueError as error:
    said[path] = str(error)
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([said, more]))
"""
  said, more = run(code, path, *files)
  assert all("conv1.weight has shape" in said[str(file)] for file in files)
  assert more < 100_000  # kB


# Files as they are published.


def published(name: str) -> Path:
  path = ROOT.parent / "shared" / "data" / "weights" / name
  if not path.exists():
    pytest.skip(f"{path} is not there: weights of akamaster/pytorch_resnet_cifar10")
  return path


@pytest.mark.parametrize(
  ("name", "model", "count"),
  [("resnet20-12fca82f.th", "resnet20", 97), ("resnet44-014dd654.th", "resnet44", 217)],
)
def test_published_weights_are_read(name, model, count):
  path = published(name)
  arrays, problems = torch_checkpoint.read(path)
  assert not problems
  loaded = weights.load(path, create_model(model))
  params, stats = loaded["params"], loaded["batch_stats"]
  block = {"params": params["stage2"]["block1"], "stats": stats["stage2"]["block1"]}
  for key, array in {
    "conv1.weight": params["stem"]["conv"]["kernel"].transpose(3, 2, 0, 1),
    "linear.weight": params["head"]["kernel"].T,
    "linear.bias": params["head"]["bias"],
    "layer2.0.conv2.weight": block["params"]["conv2"]["kernel"].transpose(3, 2, 0, 1),
    "layer2.0.bn2.weight": block["params"]["bn2"]["scale"],
    "layer2.0.bn2.running_var": block["stats"]["bn2"]["var"],
  }.items():
    np.testing.assert_array_equal(arrays[f"module.{key}"], array, strict=True)
  leaves = len(jax.tree.leaves(loaded))
  assert len(arrays) == count
  assert leaves == len([x for x in arrays if "num_batches_tracked" not in x])


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet44-014dd654.th"])
def test_published_weights_are_what_torch_reads(name):
  torch = pytest.importorskip("torch")
  path = published(name)
  arrays, _ = torch_checkpoint.read(path)
  content = torch.load(path, map_location="cpu", weights_only=True)
  assert list(content["state_dict"]) == list(arrays)
  for key, tensor in content["state_dict"].items():
    np.testing.assert_array_equal(arrays[key], tensor.numpy(), strict=True)
