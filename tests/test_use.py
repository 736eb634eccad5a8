"""Predictions, features and exports: their numbers, and the commands' messages."""

import dataclasses
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from arrays import normal, pixels, variables_of
from names import NAME, assert_text
from PIL import Image
from running import train_config

from resnet_jax import ResNet, create_model, load, weights
from resnet_jax.cli.main import main
from resnet_jax.config import Config, DataConfig, ModelConfig
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.data import ImageArrays
from resnet_jax.data.pipelines.single_pass import find_images, read_batches
from resnet_jax.data.sources.built_in import load_digits
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.data.sources.folder import list_images
from resnet_jax.data.sources.opening import open_source
from resnet_jax.inference import embed, image_grid
from resnet_jax.inference.classifier import Classifier
from resnet_jax.inference.embed import extract, find_neighbours, list_all
from resnet_jax.inference.export import export
from resnet_jax.inference.grad_cam import grad_cam, overlay
from resnet_jax.inference.image_grid import Picture, draw_grid, fit_text
from resnet_jax.inference.loading import load_run, load_weights
from resnet_jax.inference.predict import predict
from resnet_jax.models.scan_layout import to_named
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import CifarStem, DeepStem
from resnet_jax.runtime import figure_style
from resnet_jax.runtime.terminal import printable
from resnet_jax.training.class_pairing import pair_classes
from resnet_jax.weights import all_class_names, imagenet

CIFAR10 = Path(__file__).parents[2] / "shared" / "data" / "tfds"
CIFAR10_RIGHT = 919  # Of the first 1,000 test images, with the packaged weights.
SIZE = Preprocessing(resize=20, crop=16, mean=(0.4, 0.5, 0.6), std=(0.2,))
NAMES = tuple("abcdefg")


def create(
  channels: int = 3, preprocessing: Preprocessing | None = None, **net
) -> Classifier:
  """Returns a network with statistics like those of a trained one."""
  options = {"stage_sizes": (1, 1), "features": 8, "stem_cls": CifarStem} | net
  model = ResNet(num_classes=len(NAMES), **options)
  variables = to_named(variables_of(model, jnp.zeros((1, 16, 16, channels))))
  kernel = variables["params"]["head"]["kernel"]
  variables["params"]["head"]["kernel"] = 5 * kernel
  noise = np.random.default_rng(0)
  variables["batch_stats"] = jax.tree.map(
    lambda x: x + noise.uniform(0, 0.3, x.shape).astype(np.float32),
    variables.get("batch_stats", {}),
  )
  size = SIZE if channels == 3 else Preprocessing((0.5,), (0.5,), 20, 16)
  return Classifier("net", model, variables, preprocessing or size, NAMES, channels)


@pytest.fixture(scope="module")
def trained() -> Classifier:
  return create()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  """Two classes of 5 and 6 images of several sizes, and one file that is no image."""
  root = tmp_path_factory.mktemp("images")
  for i in range(11):
    path = root / "ab"[i % 2 == 0] / f"{i:02}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(pixels(24 + i, 30, 3, seed=i))).save(path)
  (root / "a" / "05x.jpg").write_bytes(b"no image")
  return root


def expected(trained: Classifier, path: Path) -> dict:
  """Returns the expected output for one file, computed by other code if possible."""
  image = Image.open(path)
  scale = 20 / min(image.size)
  image = image.resize([int(side * scale) for side in image.size], 2)
  left, top = (round((side - 16) / 2) for side in image.size)
  image = np.asarray(image.crop((left, top, left + 16, top + 16)))
  x = (image / 255 - np.array(SIZE.mean)) / np.array(SIZE.std)
  logits = trained.model.apply(trained.variables, x[None].astype(np.float32))
  return {"probabilities": np.asarray(jax.nn.softmax(logits))[0], "image": image}


def test_each_file_has_its_own_answer_whatever_the_batches(trained, folder):
  files = find_images([str(folder)])
  assert len(files) == 12
  for batch_size in (1, 5, 32):
    found = list(predict(trained, files, top=3, batch_size=batch_size, num_pictures=4))
    assert [one.file for one in found] == [files.name(i) for i in range(12)]
    assert [bool(one.error) for one in found] == [i == 3 for i in range(12)]
    assert "none of JPEG" in found[3].error and found[3].file not in found[3].error
    for i, one in enumerate(found):
      if one.error:
        assert not one.classes
        continue
      wanted = expected(trained, Path(one.file))
      top = np.argsort(-wanted["probabilities"])[:3]
      assert list(one.classes) == top.tolist()
      np.testing.assert_allclose(
        one.probabilities, wanted["probabilities"][top], atol=0.02
      )
      assert (one.image is not None) == (i in (0, 1, 2, 4))


def test_paths_of_files_and_folders_are_predicted_as_their_list(trained, folder):
  wanted = list(predict(trained, find_images([str(folder)])))
  assert list(predict(trained, str(folder))) == wanted
  assert list(predict(trained, [one.file for one in wanted])) == wanted


def test_ten_thousand_files_take_the_memory_of_a_few_batches(tmp_path):
  """Compares the peak memory of a process with one that reads 1,000 files.

  All the images together take 48 MB.
  """
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "one.png")
  code = """
import dataclasses, resource, sys
sys.path.insert(0, "tests")
from test_use import create, predict
from resnet_jax.data.sources.file_list import FileList
files = FileList("", [sys.argv[1]] * int(sys.argv[2]), [0] * int(sys.argv[2]), [""])
trained = create()
size = dataclasses.replace(trained.preprocessing, resize=40, crop=40)
trained = dataclasses.replace(trained, preprocessing=size)
count = sum(1 for one in predict(trained, files, batch_size=250))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

  def peak(count: int) -> int:
    command = [sys.executable, "-c", code, str(tmp_path / "one.png"), str(count)]
    root = Path(__file__).parents[1]
    done, kilobytes = subprocess.check_output(command, cwd=root, text=True).split()
    assert int(done) == count
    return int(kilobytes)

  peak(250)  # Fills the compilation cache, because compiling takes memory too.
  assert peak(10_000) - peak(1000) < 15_000


def test_grey_networks_read_colour_files(folder):
  grey, file = create(channels=1), folder / "a" / "01.png"
  (found,) = predict(grey, find_images([str(file)]), top=7)
  (batch,) = read_batches(find_images([str(file)]), SIZE, 1, 10**8)
  luma = np.asarray(Image.fromarray(batch["image"][0]).convert("L"))
  outputs = grey(jnp.asarray(luma[None, ..., None]))
  probabilities = np.asarray(outputs["probabilities"][0])
  np.testing.assert_allclose(
    found.probabilities, probabilities[list(found.classes)], atol=0.01
  )


def test_grad_cam_is_that_of_the_gradients():
  """The paper weights each feature map by the mean of its gradients."""
  maps, kernel, bias = normal(3, 4, 5, 6), normal(6, 7, seed=1), normal(7, seed=2)
  classes = jnp.array([2, 0, 6])

  def logits(maps):
    return (maps.mean(axis=(1, 2)) @ kernel + bias[None])[jnp.arange(3), classes].sum()

  weights = jax.grad(logits)(maps).mean(axis=(1, 2))
  wanted = jax.nn.relu((maps * weights[:, None, None]).sum(-1))
  np.testing.assert_allclose(grad_cam(maps, kernel, classes), wanted, atol=1e-6)


def test_a_map_is_as_opaque_as_it_is_high():
  white, black = (
    np.full((300, 300, 3), 255, np.uint8),
    np.zeros((300, 300, 3), np.uint8),
  )
  heat = np.zeros((5, 5), np.float32)
  heat[2, 2] = 7
  # The fraction of the image that stays is 1 - opacity.
  left = (overlay(white, heat).astype(int) - overlay(black, heat))[..., 0] / 255
  assert left.shape == (300, 300)
  assert (left[:40] == 1).all() and (left[:, :40] == 1).all()
  assert left[150, 150] < left[150, 120] < left[150, 100] and left[150, 150] < 0.5
  assert overlay(white[:8, :8], heat).shape == (256, 256, 3)


@pytest.mark.parametrize("heat", [np.ones((1, 1)), np.zeros((4, 4)), np.ones((2, 2))])
def test_a_map_without_a_place_is_not_shown(heat):
  assert overlay(np.zeros((8, 8, 3), np.uint8), heat) is None


def test_names_are_cut_in_the_middle():
  assert fit_text("cat.jpg", 1.8) == "cat.jpg"
  long = fit_text("n01440764_ILSVRC2012_val_00010041.JPEG", 1.8)
  assert re.fullmatch(r"n01440764_.*….*10041\.JPEG", long)
  # Fewer wide letters fit, and huge names take no time.
  assert len(fit_text("W" * 40, 1.8)) < len(fit_text("i" * 40, 1.8))
  assert len(fit_text("ab" * 10_000, 1.8)) < 40
  assert fit_text("a\nb", 0.0) == "…"


@pytest.mark.parametrize("layer", ["pooled", "c2", "c3"])
def test_features_are_what_the_network_computes(trained, folder, tmp_path, layer):
  told = []
  count = extract(
    trained,
    list_all(folder, 0.1),
    str(tmp_path / "out.npz"),
    layer=layer,
    batch_size=4,
    advance=lambda count, errors: told.append((count, errors)),
  )
  found = np.load(tmp_path / "out.npz")
  assert count == len(found["files"]) == 11
  assert sorted(found["files"]) == sorted(map(str, folder.rglob("*.png")))
  assert found["class_names"].tolist() == ["a", "b"]
  for file, label, feature in zip(
    found["files"], found["labels"], found["features"], strict=True
  ):
    assert "ab"[label] == Path(file).parent.name
    images = jnp.asarray(expected(trained, Path(file))["image"])[None]
    wanted = np.asarray(trained(images)[layer][0])
    np.testing.assert_allclose(feature, wanted, atol=0.02 * np.abs(wanted).max())
  assert sum(count for count, _ in told) == 11
  assert sum(len(errors) for _, errors in told) == 1
  assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_features_of_arrays_and_of_images_without_labels(folder, tmp_path):
  digits, grey = load_digits("test"), create(channels=1)
  few = ImageArrays(digits.images[:5], digits.labels[:5], digits.class_names)
  extract(grey, few, str(tmp_path / "out.npz"), batch_size=2)
  found = np.load(tmp_path / "out.npz")
  assert found["labels"].tolist() == digits.labels[:5].tolist()
  assert found["files"].tolist() == [f"image {i}" for i in range(5)]
  assert found["features"].shape == (5, 16)
  files = list_all(folder / "b", 0.1)
  assert len(files) == 6 and set(files.labels) == {-1}


def test_images_in_no_folder_are_not_left_out_unsaid(folder, tmp_path):
  for name in ("b", ".hidden"):
    (tmp_path / name).mkdir()
  (tmp_path / "b" / "1.png").write_bytes((folder / "a" / "01.png").read_bytes())
  (tmp_path / "x.png").symlink_to(tmp_path / "b" / "1.png")
  with pytest.raises(ValueError, match=r"beside its folders, such as 'x\.png'"):
    list_all(tmp_path, 0.1)
  (tmp_path / "b" / "1.png").rename(tmp_path / "x.png")
  (tmp_path / "b").rmdir()
  assert len(list_all(tmp_path, 0.1)) == 1


def test_a_class_without_a_name_has_its_number(trained, folder):
  nameless = dataclasses.replace(trained, class_names=NAMES[:2])
  assert all_class_names(NAMES[:2], 4) == ("a", "b", "class 2", "class 3")
  (found,) = predict(nameless, find_images([str(folder / "a" / "01.png")]), top=99)
  assert len(found.classes) == 7


def test_other_channels(trained):
  grey = pixels(2, 16, 16, 1)
  same = trained(grey.repeat(3, axis=-1))["probabilities"]
  np.testing.assert_array_equal(trained(grey)["probabilities"], same)
  with pytest.raises(ValueError, match="images have 4 channels, the network takes 3"):
    trained(pixels(2, 16, 16, 4))


def test_features_are_kept_though_the_picture_fails(trained, folder, tmp_path):
  target, figure = tmp_path / "out.npz", tmp_path / "none" / "x.png"
  with pytest.raises(FileNotFoundError):
    extract(trained, list_all(folder, 0.1), str(target), figure=str(figure))
  assert np.load(target)["features"].shape == (11, 16)
  assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_a_caption_may_be_anything(tmp_path):
  lines = [NAME, "$x$ {y} \\frac", "\n", "x" * 99]
  image = np.zeros((8, 8, 3), np.uint8)
  pictures = [
    Picture(image, lines, "red", [(NAME, 0.5), ("$x$", 0)]),
    Picture(image[..., :1], [], second=image, second_title="$x$"),
    Picture(image, lines[:1], second=np.ones((5, 6, 1), np.uint16), second_title=NAME),
  ]
  draw_grid(str(tmp_path / "x.png"), pictures, columns=2)
  assert Image.open(tmp_path / "x.png").size[0] > 600
  assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_neighbours_of_the_same_class_are_green(trained, folder, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(embed, "draw_grid", lambda *args: drawn.extend(args[1]))
  source = list_all(folder, 0.1)
  extract(trained, source, str(tmp_path / "out.npz"), figure="x.png")
  assert len(drawn) == 8 * 8
  for row in range(0, 64, 8):
    query, *others = drawn[row : row + 8]
    name, text = query.lines
    assert text == "query" and name in "ab" and query.color
    for one in others:
      assert re.fullmatch(r"cosine -?[01]\.\d\d", one.lines[1])
      assert (one.color == figure_style.RIGHT) == (one.lines[0] == name)
      assert bool(one.color) == (one.lines[0] == name)


def test_features_that_end_early_leave_nothing(trained, folder, tmp_path):
  with pytest.raises(ValueError, match=r"must be an \.npz file"):
    extract(trained, find_images([str(folder)]), str(tmp_path / "out.csv"))
  with pytest.raises(ValueError, match="layer='c9' is unknown; choose from pooled"):
    extract(trained, find_images([str(folder)]), str(tmp_path / "o.npz"), layer="c9")
  bad = find_images([str(folder / "a" / "05x.jpg")])
  with pytest.raises(ValueError, match="no image can be read"):
    extract(trained, bad, str(tmp_path / "o.npz"))

  def interrupt(count, errors):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    extract(
      trained, find_images([str(folder)]), str(tmp_path / "o.npz"), advance=interrupt
    )
  assert not list(tmp_path.iterdir())


def test_neighbours_are_the_most_similar_of_the_others():
  features = np.array([[1, 0], [2, 0.1], [0, 3], [-1, 0], [0.1, 1]], np.float32)
  nearest, similarity = find_neighbours(features, np.array([0, 2]), 2)
  assert nearest.tolist() == [[1, 4], [4, 1]]
  np.testing.assert_allclose(similarity[0, 0], 2 / np.hypot(2, 0.1), rtol=1e-6)


EXPORTED = {
  "basic": ({}, None),
  "resized": ({}, (40, 40)),
  "pooled shortcut, deep stem": (
    {"shortcut_cls": SHORTCUTS["D"], "stem_cls": DeepStem},
    None,
  ),
}


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
@pytest.mark.parametrize(("net", "image_size"), EXPORTED.values(), ids=EXPORTED)
def test_exports_say_what_the_network_says(tmp_path, net, form, image_size):
  """Runs the exported file alone, also with other batch sizes than the export used."""
  trained, path = create(**net), tmp_path / f"net.{form}"
  assert export(trained, str(path), form, image_size) <= 1e-4
  assert [file.name for file in tmp_path.iterdir()] == [path.name]
  for batch in (1, 3, 16):
    images = pixels(batch, *(image_size or (16, 16)), 3, seed=batch)
    if form == "onnx":
      import onnxruntime

      session = onnxruntime.InferenceSession(path)
      (found,) = session.run(["probabilities"], {"images": np.asarray(images)})
    else:
      exported = jax.export.deserialize(bytearray(path.read_bytes()))
      assert exported.platforms == ("cpu", "cuda", "tpu")
      found = exported.call(images)
    if image_size is None:
      wanted = trained(images)["probabilities"]
    else:
      files = []
      for i, image in enumerate(np.asarray(images)):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(files[-1])
      batches = read_batches(find_images(files), SIZE, batch, 10**8)
      wanted = trained(jnp.asarray(next(batches)["image"]))["probabilities"]
    # Pillow's resizing rounds twice.
    np.testing.assert_allclose(found, wanted, atol=1e-4 if image_size is None else 0.03)


def test_an_export_that_comes_back_different_is_not_written(
  trained, tmp_path, monkeypatch
):
  monkeypatch.setattr("resnet_jax.inference.export.TOLERANCE", -1.0)
  with pytest.raises(RuntimeError, match=r"differs by .* nothing is written"):
    export(trained, str(tmp_path / "net"), "stablehlo")
  assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
  """A short run on digits, which has learned little."""
  workdir = tmp_path_factory.mktemp("run") / "run"
  config = Config(num_steps=30, batch_size=64)
  config.model.name = "resnet8"
  train_config(config, str(workdir), jax.devices()[:1])
  return workdir


def test_a_run_and_the_weights_converted_from_it_are_the_same(run, tmp_path, capsys):
  digits = load_digits("test")
  place = tmp_path / "digits"
  for i in range(12):
    path = place / str(digits.labels[i]) / f"{i:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(digits.images[i, :, :, 0]).resize((80, 80), 0).save(path)
  weights_file = tmp_path / "mine.safetensors"
  main(["convert", "--workdir", str(run), "--out", str(weights_file)])
  answers = []
  for source in (
    ["--workdir", str(run)],
    ["--model", "resnet8", "--weights", str(weights_file)],
  ):
    capsys.readouterr()
    main(["predict", *source, "--json", str(place)])
    lines = capsys.readouterr().out.splitlines()
    answers.append([json.loads(line) for line in lines])
  assert answers[0] == answers[1]
  assert len(answers[0]) == 12
  right = [
    Path(one["file"]).parent.name == one["labels"][0]["label"] for one in answers[0]
  ]
  assert sum(right) >= 8
  assert all(len(one["labels"]) == 5 for one in answers[0])
  a, b = load_run(str(run)), load_run(str(run), "30")
  assert a.class_names == b.class_names == tuple("0123456789")
  assert a.preprocessing.crop == a.preprocessing.resize == 8 and a.channels == 1


def test_the_commands_write_pictures_and_end_with_1_for_an_unreadable_file(
  run, folder, tmp_path, capsys
):
  source = ["--workdir", str(run)]
  folder = shutil.copytree(folder, tmp_path / "photos" / "[" / f"b]{NAME}")
  (folder / "b").rename(folder / NAME)
  figure = tmp_path / "grid.png"
  with pytest.raises(SystemExit) as end:
    main(["predict", *source, "--figure", str(figure), "--explain", str(folder)])
  assert end.value.code == 1
  out, err = capsys.readouterr()
  assert_text(out, err)
  assert len(out.splitlines()) == 11
  assert f"error: {printable(str(folder))}/a/05x.jpg: it is none of" in err
  assert "11 images; 1 could not be read" in err
  assert Image.open(figure).size > (500, 300)
  near = tmp_path / "near.png"
  target = tmp_path / "f.npz"
  with pytest.raises(SystemExit) as end:
    main(
      ["features", str(folder), "--out", str(target), *source, "--figure", str(near)]
    )
  assert end.value.code == 1
  assert np.load(target)["features"].shape == (11, 64)
  assert Image.open(near).size > (500, 300)
  main(["export", "--out", str(tmp_path / "net"), "--format", "stablehlo", *source])
  assert "images [batch, 8, 8, 1] uint8" in capsys.readouterr().out
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {"grid.png", "near.png", "f.npz", "net", "photos"}


def test_a_prediction_is_right_or_wrong_where_the_folder_names_the_class(
  run, tmp_path, monkeypatch
):
  drawn = []
  monkeypatch.setattr(image_grid, "draw_grid", lambda *args: drawn.extend(args[1]))
  names = [*map(str, range(10)), "unknown"]
  for name in names:
    (tmp_path / name).mkdir()
    Image.fromarray(np.asarray(pixels(8, 8, 1))[..., 0]).save(tmp_path / name / "x.png")
  figure = ["--figure", str(tmp_path / "f.png"), "--explain"]
  main(["predict", "--workdir", str(run), *figure, str(tmp_path)])
  for name, picture in zip(names, drawn, strict=True):
    first = picture.bars[0][0]
    assert picture.second_title == f"Grad-CAM: {first}" and len(picture.bars) == 3
    told = {
      first: (figure_style.RIGHT, ["x.png", f"✓ {name}"]),
      "unknown": ("", ["x.png"]),
    }
    wrong = figure_style.WRONG, ["x.png", f"✗ it is {name}"]
    assert (picture.color, picture.lines) == told.get(name, wrong)
  assert sum(picture.color == figure_style.RIGHT for picture in drawn) == 1


@pytest.mark.parametrize(
  ("arguments", "error"),
  [
    (["predict", "x.png"], "needs --workdir RUN or --weights FILE"),
    (["predict", "{run}/no.png", "{source}"], "there is no image or folder"),
    (["predict", "{empty}", "{source}"], "has no images"),
    (["predict", "{folder}", "{source}", "--figure", "x.jpg"], "must be a .png"),
    (["predict", "{folder}", "{source}", "--explain"], "--explain draws into --figure"),
    (["predict", "{folder}", "{source}", "--crop", "9"], "crop=9 must be at most"),
    (["predict", "{folder}", "{source}", "--mean", "0.1", "0.2"], "(--mean, --std)"),
    (["predict", "{folder}", "{source}", "--mean", "123.7"], "scaled to [0, 1]"),
    (["predict", "{folder}", "{source}", "--model", "m"], "--model is for --weights"),
    (["features", "{folder}", "--out=out.csv", "{source}"], "must be an .npz file"),
    (
      ["features", "{folder}", "--out=o.npz", "{source}", "--layer", "c7"],
      "layer='c7' is un",
    ),
    (["features", "nowhere", "--out=o.npz", "{source}"], "no data set 'nowhere'"),
    (
      ["features", "{folder}", "--out=o.npz", "{source}", "--split", "dev"],
      "--split='dev' is not in",
    ),
    (["export", "--out=/no/net", "--format", "onnx", "{source}"], "must be a file in"),
    (["export", "--out=net", "{source}"], "or give --format"),
    (
      ["export", "--out=n.onnx", "--photo-size", "9", "{source}"],
      "HEIGHTxWIDTH",
    ),
  ],
)
def test_wrong_use_is_one_line(run, folder, tmp_path, capsys, arguments, error):
  (tmp_path / "empty").mkdir()
  places = {"run": run, "folder": folder, "empty": tmp_path / "empty"}
  filled = []
  for argument in arguments:
    if argument == "{source}":
      filled += ["--workdir", str(run)]
    else:
      filled.append(argument.format(**places))
  with pytest.raises(SystemExit) as end:
    main(filled)
  assert end.value.code == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: ") and error in lines[0]


def test_weights_name_their_classes(tmp_path):
  model = create_model("resnet8", 3)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  path = tmp_path / "w.safetensors"
  weights.save(path, model, variables)
  assert weights.read_class_names(path, 3) == ("class 0", "class 1", "class 2")
  imagenet = weights.read_class_names(path, 1000)
  assert len(set(imagenet)) == 1000 and imagenet[281] == "tabby"
  weights.save(path, model, variables, class_names=["x", "y", "z"])
  assert weights.read_class_names(path, 3) == ("x", "y", "z")
  config = Config().model
  config.name, config.num_classes = "resnet8", 3
  assert load_weights(str(path), config).class_names == ("x", "y", "z")


def test_files_of_a_folder_that_are_left_out_are_said(run, tmp_path, capsys):
  photos = tmp_path / "photos"
  below, other = photos / "train" / "0", photos / "other"
  for folder in (below, other, below / "@eaDir"):
    folder.mkdir(parents=True)
  image = Image.new("RGB", (9, 8), "red")
  for name in ("a.JFIF", "b.jpe", "c.jpg", "../../other/h.jpg", "@eaDir/i.jpg"):
    image.save(below / name, "jpeg")
  for name in ("d.svg", "e.SVG", "f.jxl", "g", ".hidden.svg"):
    (below / name).touch()
  source, target = ["--workdir", str(run)], tmp_path / "f.npz"
  files = "1 without a suffix, 1 .jxl, 2 .svg"

  def said(*command: str) -> list[str]:
    main([*command, *source])
    err = capsys.readouterr().err
    return [line for line in err.splitlines() if "left out" in line]

  assert said("predict", str(below)) == [f"left out of {below}: {files}"]
  assert said("predict", str(below / "a.JFIF"), str(other)) == []
  assert said("features", str(below), f"--out={target}") == [
    f"left out of {below}: {files}"
  ]
  assert len(np.load(target)["files"]) == 3
  assert said("features", str(photos), f"--out={target}") == [
    f"left out of {photos}: {files}, 1 images in other folders"
  ]
  assert said("features", str(photos), f"--out={target}", "--split", "train") == [
    f"left out of train in {photos}: {files}, the folder 'other'"
  ]
  assert len(np.load(target)["files"]) == 3


# The classes of images and of the network.

MANY = tuple(f"thing{i}" for i in range(12))
WORDNET = ("n02123045", "n01440764", "n15075141")


def listed(names, labels=None) -> FileList:
  labels = range(len(names)) if labels is None else labels
  return FileList("", ["x.png"] * len(labels), labels, names)


def paired(names, class_names, num_classes=12, in_order=False, labels=None):
  """Returns the network's class of each image, equal for a list and for arrays."""
  files = listed(names, labels)
  images = np.zeros((len(files), 8, 8, 3), np.uint8)
  arrays = ImageArrays(images, files.labels, tuple(names))
  options = (class_names, num_classes, "net", in_order)
  found = pair_classes(files, *options)
  labels = [
    found.labels[i] if found is files else found.places[files.labels[i]]
    for i in range(len(files))
  ]
  assert pair_classes(arrays, *options).labels.tolist() == labels
  assert found.name(0) == files.name(0) and len(found) == len(files)
  return labels


@pytest.mark.parametrize(
  ("names", "class_names", "num_classes", "expected"),
  [
    ([f"{i:02}" for i in range(12)], MANY, 12, range(12)),
    (sorted(map(str, range(12))), MANY, 12, [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
    (sorted(map(str, range(12))), (), 12, [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
    (["a", "b", "c"], ("c", "a", "b"), 3, [1, 2, 0]),
    (["b"], ("c", "a", "b"), 3, [2]),
    (["0", "10", "2"], ("0", "10", "2"), 3, [0, 1, 2]),
    (["0", "2", "10"], ("0", "10", "2"), 3, [0, 2, 1]),
    (["2", "10"], ("00", "10", "02"), 3, [2, 1]),
    (sorted(WORDNET), (), 1000, None),
    (sorted(WORDNET), imagenet.class_names(), 1000, [0, 281, 999]),
    (sorted(WORDNET), [f"{n}, x" for n in imagenet.class_names()], 1000, [0, 281, 999]),
    (sorted(WORDNET), WORDNET, 3, [1, 0, 2]),
    (sorted(WORDNET), MANY * 90, 1080, None),
    (["n01440764", "n99999999"], imagenet.class_names(), 1000, None),
    (["tench", "tabby"], imagenet.class_names(), 1000, [0, 281]),
    (["chat", "chien"], ("cat", "dog"), 2, None),
    (["cat", "wolf"], ("cat", "dog"), 2, None),
    (["1", "2", "12"], MANY, 12, None),
    (["b", "a"], ("a", "b", "b"), 3, None),
    (["5", "7"], ("0", "10", "2"), 3, None),
    # If some class names are numbers, a number is a name and never an index.
    (["0", "2", "other"], ("0", "1", "10", "2", "other"), 5, [0, 3, 4]),
    (["0", "3"], ("0", "1", "10", "2", "other"), 5, None),
    (["-1", "1"], ("-1", "0", "1"), 3, [0, 2]),
    (["0", "2"], ("-1", "0", "1"), 3, None),
    (["1", "2"], ("1.0", "2.0", "x"), 3, None),
    (["00", "01"], ("0", "1", "10"), 3, [0, 1]),
    (["01", "1"], ("cat", "dog"), 2, None),  # The same number, but two classes.
    (["a", "b"], (), 2, None),
  ],
)
def test_classes_are_paired_by_name(names, class_names, num_classes, expected):
  if expected is not None:
    assert paired(names, class_names, num_classes) == list(expected)
    return
  with pytest.raises(ValueError, match=rf"0 to {num_classes - 1}$") as error:
    paired(names, class_names, num_classes)
  assert any(repr(name) in str(error.value) for name in names)
  assert len(str(error.value)) < 400


def test_a_list_of_numbers_has_the_classes_that_it_names():
  numbers = list(map(str, range(12)))
  assert paired(numbers, ("3", "11", "7"), 3, labels=[7, 11, 3, 11]) == [2, 1, 0, 1]
  assert paired(numbers, (), 1000, labels=[7, 11]) == [7, 11]


def test_classes_in_order_are_taken_for_those_of_a_network_without_names(capsys):
  names = ["airplane", "bird", "cat"]
  assert paired(names, (), 3, in_order=True) == [0, 1, 2]
  for line in capsys.readouterr().err.splitlines():
    assert line.startswith("warning: net does not name its 3 classes")
    assert "'airplane'" in line
  assert paired(names, ("cat", "airplane", "bird"), 3, in_order=True) == [1, 2, 0]
  for known, number in (((), 4), (("plane", "bird", "cat"), 3)):
    with pytest.raises(ValueError, match="'airplane'"):
      paired(names, known, number, in_order=True)
  assert capsys.readouterr().err == ""


def test_images_with_other_labels_can_be_sent_to_workers(folder):
  files = list_images(folder, "val", 1.0)
  found = pickle.loads(pickle.dumps(pair_classes(files, ("b", "a"), 2, "net", False)))
  assert found.class_names == ("b", "a") and len(found) == len(files)
  for i in range(len(files)):
    content, label = found[i]
    assert found.name(i) == files.name(i) and content == files[i][0]
    assert label == 1 - files[i][1]


@pytest.fixture(scope="module")
def perfect(tmp_path_factory):
  """Returns a network's file, 12 images that it gets right, and their classes."""
  root = tmp_path_factory.mktemp("perfect")
  images = np.asarray(pixels(12, 8, 8, 3, seed=5))
  model = create_model("resnet8", 12)
  variables = to_named(variables_of(model, jnp.zeros((1, 8, 8, 3))))
  size = Preprocessing((0.5,), (0.5,), 8, 8)
  net = Classifier("resnet8", model, variables, size, MANY)
  pooled = np.asarray(net(jnp.asarray(images))["pooled"], np.float64)
  kernel = np.linalg.lstsq(pooled, 20 * np.eye(12), rcond=None)[0]
  variables["params"]["head"]["kernel"] = jnp.asarray(kernel, jnp.float32)
  names = [MANY[i] for i in np.random.default_rng(0).permutation(12)]
  path = root / "net.safetensors"
  weights.save(path, model, variables, size, names)
  return path, images, names


def write_images(root, images, folders):
  for i, (image, name) in enumerate(zip(images, folders, strict=True)):
    (root / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / name / f"{i}.png")


def evaluated(capsys, *arguments) -> dict:
  capsys.readouterr()
  main(["evaluate", *map(str, arguments), "--json"])
  return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def options(path) -> list:
  return ["--model", "resnet8", "--num-classes", "12", "--weights", path]


@pytest.mark.parametrize("kind", ["00", "0", "names", "named list", "numbered list"])
def test_a_perfect_net_is_right_however_the_classes_are_called(
  perfect, kind, tmp_path, capsys
):
  path, images, names = perfect
  numbers = [f"{i:02}" for i in range(12)], list(map(str, range(12)))
  folders = dict(zip(("00", "0"), numbers, strict=True)).get(kind, names)
  write_images(tmp_path, images, folders)
  place = tmp_path
  if kind.endswith("list"):
    labels = names if kind == "named list" else range(12)
    place = tmp_path / "list.csv"
    rows = [f"{folders[i]}/{i}.png,{label}\n" for i, label in enumerate(labels)]
    place.write_text("".join(rows))
  found = evaluated(capsys, *options(path), "--dataset", "folder", "--data-dir", place)
  # All images count, as the weights were trained on none of them.
  assert found["top1"] == 1 and found["count"] == 12


def test_converted_weights_and_runs_know_their_classes(perfect, tmp_path, capsys):
  path, images, names = perfect
  again, run = tmp_path / "again.safetensors", tmp_path / "run"
  for target in (again, run):
    flags = f"--weights={path}", f"--out={target}", "--model=resnet8"
    main(["convert", *flags, "--num-classes=12"])
  assert weights.read_class_names(again, 12) == tuple(names)
  assert (run / "classes.txt").read_text().split() == names
  assert load_run(str(run)).class_names == tuple(names)
  write_images(tmp_path / "some", images[:3], names[:3])
  data = ["--dataset", "folder", "--data-dir", tmp_path / "some"]
  found = evaluated(capsys, "--workdir", run, *data)
  assert found["top1"] == 1 and found["count"] == 3
  (tmp_path / "some" / names[0]).rename(tmp_path / "some" / "other")
  (run / "classes.txt").unlink()  # As earlier versions left it.
  said = refused(capsys, 2, "evaluate", "--workdir", run, *data)
  assert "'other', which is not among the 12" in said and "have no names" in said


def refused(capsys, status, *arguments) -> str:
  """Returns the error of a command that must end with `status`."""
  with pytest.raises(SystemExit) as end:
    main(list(map(str, arguments)))
  assert end.value.code == status
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("error: ") and err.count("\n") == 1
  return err


def test_weights_see_all_images_that_have_no_splits(perfect, tmp_path, capsys):
  path, images, names = perfect
  write_images(
    tmp_path, images[:2].repeat(10, axis=0), [*names[:1] * 10, *names[1:2] * 10]
  )
  data = ["--dataset", "folder", "--data-dir", tmp_path]
  assert evaluated(capsys, *options(path), *data)["count"] == 20
  assert evaluated(capsys, *options(path), *data, "--split", "val")["count"] == 2
  assert evaluated(capsys, *options(path), *data, "--split", "train")["count"] == 18
  for i in range(20):
    (tmp_path / names[i // 10] / f"{i}.png").unlink(missing_ok=i % 10 == 0)
    Image.fromarray(images[0]).save(tmp_path / names[i // 10] / "0.png")
  said = refused(capsys, 2, "evaluate", *options(path), *data, "--split", "val")
  assert "0.1 of the images of each class" in said and "change --split" in said


def test_paths_in_ones_home_are_read_and_written(perfect, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  path, _, names = perfect
  model = create_model("resnet8", 12)
  weights.save("~/copy.safetensors", model, weights.load(path, model), None, names)
  found = load("~/copy.safetensors", "resnet8", num_classes=12)
  assert found.class_names == tuple(names)


def test_results_that_are_not_finite_are_no_results(perfect, folder, tmp_path, capsys):
  path, images, _ = perfect
  model = create_model("resnet8", 12)
  variables = weights.load(path, model)
  # The kernel is finite, but the logits overflow.
  kernel = variables["params"]["head"]["kernel"]
  variables["params"]["head"]["kernel"] = jnp.full_like(kernel, 3e38)
  broken = tmp_path / "broken.safetensors"
  weights.save(broken, model, variables, weights.read_preprocessing(path, model))
  write_images(tmp_path / "images", images, map(str, range(12)))
  data = ["--dataset", "folder", "--data-dir", tmp_path / "images"]
  source = [*options(broken), "--json"]
  assert "loss=nan" in refused(capsys, 1, "evaluate", *source, *data)
  file = folder / "a" / "01.png"
  assert "a/01.png are not finite" in refused(capsys, 1, "predict", *source, file)
  out = tmp_path / "x.stablehlo"
  said = refused(capsys, 1, "export", *options(broken), f"--out={out}")
  assert "outputs for random images are not finite" in said and not out.exists()
  # Features come before the head, so they stay finite.
  arguments = [tmp_path / "images", f"--out={tmp_path}/f.npz", *options(broken)]
  main(["features", *map(str, arguments)])
  capsys.readouterr()
  variables["params"]["head"]["kernel"] = kernel.at[0, 0].set(jnp.nan)
  weights.save(broken, model, variables)
  export_to = ["export", "--out=x.onnx"]
  for command in (["evaluate", *data], ["predict", file], export_to):
    said = refused(capsys, 2, command[0], *options(broken), *command[1:])
    assert "fc.weight has values that are not finite" in said


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_of_other_channels_without_a_mean_is_one_line(
  channels, folder, tmp_path, capsys
):
  model, path = create_model("resnet8"), tmp_path / "w.safetensors"
  variables = variables_of(model, jnp.zeros((1, 8, 8, channels)))
  weights.save(path, model, to_named(variables))
  net = load_weights(str(path), ModelConfig(name="resnet8"))
  expected = f"takes images with {channels} channel"
  with pytest.raises(ValueError, match=rf"{expected}.*--mean, --std"):
    net(pixels(2, 8, 8, channels))
  half = Preprocessing((0.5,), (0.5,), 8, 8)
  dataclasses.replace(net, preprocessing=half)(pixels(2, 8, 8, channels))
  source = ["--model", "resnet8", "--weights", path]
  said = refused(capsys, 2, "predict", folder / "b", *source, "--resize=8", "--crop=8")
  assert expected in said
  said = refused(capsys, 2, "evaluate", *source, "--dataset=digits")
  assert (expected if channels == 1 else "have 1 channels, the model takes 4") in said


def test_weights_are_checked_before_the_images(perfect, capsys):
  argv = ["evaluate", "--num-classes=12", "--weights", perfect[0], "--dataset=digits"]
  said = refused(capsys, 2, *argv, "--model=plain8")
  assert "was saved from resnet8, not from plain8" in said
  said = refused(capsys, 2, *argv, "--model=resnet8")
  assert "'digits' have 1 channels, the model takes 3" in said


# The weights in the package, by name.


def count_right(classifier: Classifier, images, labels) -> int:
  found = np.asarray(classifier(images)["probabilities"]).argmax(-1)
  return int((found == labels).sum())


def test_the_digits_weights_are_as_good_as_they_say(capsys):
  said = weights.read_training("resnet8_digits")["evaluation"]
  digits = load_digits("test")
  right = count_right(load("resnet8_digits"), digits.images, digits.labels)
  assert len(digits.labels) == said["count"]
  assert right == round(said["top1"] * said["count"])
  source = ["--weights", "resnet8_digits", "--dataset", "digits"]
  found = evaluated(capsys, *source)
  assert (found["top1"], found["count"]) == (said["top1"], said["count"])
  message = refused(capsys, 2, "evaluate", *source, "--model", "plain8")
  assert "was saved from resnet8, not from plain8" in message


@pytest.mark.slow
def test_the_cifar10_weights_know_test_images():
  if not CIFAR10.is_dir():
    pytest.skip(f"needs CIFAR-10 in {CIFAR10}")
  config = DataConfig(name="cifar10", dir=str(CIFAR10))
  source = open_source(config, "test[:1000]")
  right = count_right(load("resnet20_cifar10"), source.images, source.labels)
  assert abs(right - CIFAR10_RIGHT) <= 1  # Another processor may round differently.


def test_each_command_takes_weights_by_name(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  digits = load_digits("test")
  place = tmp_path / "digits"
  write_images(place, digits.images[:12, :, :, 0], map(str, digits.labels[:12]))
  source = ["--weights", "resnet8_digits"]
  main(["predict", *source, "--json", "--figure=x.png", "--explain", str(place)])
  answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  right = [Path(x["file"]).parent.name == x["labels"][0]["label"] for x in answers]
  assert len(right) == 12 and sum(right) >= 11
  assert Image.open("x.png").size > (300, 100)
  main(["features", str(place), "f.npz", *source])
  assert np.load("f.npz")["features"].shape == (12, 64)
  main(["export", "net", "--format", "stablehlo", *source])
  assert "images [batch, 8, 8, 1] uint8" in capsys.readouterr().out
  main(["convert", "resnet8_digits", "own.safetensors"])
  main(["convert", "resnet8_digits", "run"])
  own, run, named = load("own.safetensors"), load("run"), load("resnet8_digits")
  for other in (own, run):
    jax.tree.map(np.testing.assert_array_equal, other.variables, named.variables)
    assert other.class_names == named.class_names
    assert other.preprocessing == named.preprocessing
  training = weights.read_training("resnet8_digits")
  assert weights.read_training("own.safetensors") == training
  main(["convert", "run", "again.safetensors"])  # A run that trained nothing.
  assert weights.read_training("again.safetensors") == {}


def test_converted_weights_say_how_a_run_trained_them(run, tmp_path, capsys):
  target = tmp_path / "w.safetensors"
  main(["convert", str(run), str(target), "--dtype=float16"])
  training = weights.read_training(target)
  assert training["data"] == "digits" and training["steps"] == 30
  assert training["seed"] == 0 and training["settings"]["model.name"] == "resnet8"
  assert training["settings"]["batch_size"] == 64
  lines = (run / "metrics.jsonl").read_text().splitlines()
  last = [json.loads(line) for line in lines][-1]
  assert training["evaluation"] == {
    name: last[name] for name in ("loss", "top1", "top5", "count")
  }
  half = load(str(target))
  whole = load_run(str(run))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    half.variables,
    whole.variables,
  )


def test_a_file_without_a_network_needs_the_model(perfect, tmp_path, capsys):
  path, _, _ = perfect
  net = load(str(path))
  assert net.name == "resnet8" and len(net.class_names) == 12
  bare = tmp_path / "bare.safetensors"
  safetensors.numpy.save_file(safetensors.numpy.load_file(path), bare)
  commands = (
    ["predict", "x.png", "--weights", bare],
    ["evaluate", "--weights", bare, "--dataset=digits"],
    ["convert", "--weights", bare, "--out", tmp_path / "x.safetensors"],
  )
  (tmp_path / "x.png").write_bytes(b"")
  for command, *rest in commands:
    rest = [tmp_path / "x.png" if x == "x.png" else x for x in rest]
    said = refused(capsys, 2, command, *rest)
    assert "does not say which network" in said and "--model resnet50" in said
    said = refused(capsys, 2, command, *rest, "--shortcut=B")
    assert "need --model" in said
