"""`resnet-jax data check`: what it counts, what it finds, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cifar_writer
import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from resnet_jax.cli.main import main
from resnet_jax.config import DataConfig
from resnet_jax.data.audit import near_duplicates, scan
from resnet_jax.data.images.formats import KNOWN
from resnet_jax.data.sources import cifar


def save(path: Path, seed: int, mode: str = "RGB", size=(40, 30), **kwargs) -> Path:
  """Writes an image; two images are equal only if their seeds are equal."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
  Image.fromarray(pixels).convert(mode).save(path, **kwargs)
  return path


def make_clean(root: Path) -> Path:
  """3 training and 2 validation images of each of the classes a, b and c."""
  for seed, (split, name, i) in enumerate(
    (split, name, i)
    for split, count in (("train", 3), ("val", 2))
    for name in "abc"
    for i in range(count)
  ):
    save(root / split / name / f"{i}.jpg", seed)
  return root


def make_dirty(root: Path) -> Path:
  """The images of `make_clean`, with one example of each possible problem."""
  train, val = make_clean(root) / "train", root / "val"
  (val / "b" / "again.jpg").write_bytes((train / "a" / "0.jpg").read_bytes())
  (val / "b" / "twin.jpg").write_bytes((val / "b" / "0.jpg").read_bytes())
  for path in [*(val / "c").iterdir(), val / "c"]:
    path.unlink() if path.is_file() else path.rmdir()
  whole = save(train / "a" / "cut.jpg", 50).read_bytes()
  (train / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
  (train / "a" / "empty.jpg").touch()
  (train / "a" / "text.jpg").write_text("no image at all")
  (train / "a" / "gone.jpg").symlink_to("nowhere.jpg")
  os.mkfifo(train / "a" / "pipe.jpg")
  save(train / "b" / "folder.jpg" / "deep.jpg", 51)
  save(train / "b" / "really.jpg", 52, format="PNG")
  save(train / "b" / "turned.jpg", 53, exif=b"Exif\0\0II*\0\x08\0\0\0" + TURNED)
  save(train / "c" / "gray.jpg", 54, "L")
  save(train / "c" / "print.jpg", 55, "CMYK")
  save(train / "c" / "large.png", 56, size=(200, 100))
  save(train / "stray.png", 57)
  (train / "c" / "notes.TXT").touch()
  (root / "README").touch()
  (root / ".hidden.txt").touch()
  return root


# A table of one entry: the orientation is 6, a quarter turn.
TURNED = b"\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"


def call(capsys, *argv) -> tuple[int, str, str]:
  """Returns the exit status, and what was printed."""
  try:
    main(["data", "check", *map(str, argv)])
    status = 0
  except SystemExit as stop:
    status = int(stop.code or 0)
  out, err = capsys.readouterr()
  return status, out, err


def test_a_clean_folder_is_status_0(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  status, out, err = call(capsys, make_clean(tmp_path / "data"))
  assert status == 0
  assert err == "hint: --figure contact_sheet.png draws some images of each class\n"
  assert "train: 9 images of 3 classes" in out and "val: 6 images of 3 classes" in out
  assert "  sizes    40x30 9\n  modes    RGB 9\n  formats  JPEG 9" in out
  assert "unreadable: 0" in out and "equal files across splits: 0" in out
  assert "picture" not in out
  assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_json_tells_all_that_is_wrong(tmp_path, capsys):
  root = make_dirty(tmp_path / "data")
  status, out, err = call(capsys, root, "--json", "--figure=")
  assert status == 1 and err == ""
  found = json.loads(out)
  train, val = root / "train", root / "val"
  assert found["source"] == str(root) and not found["ok"] and found["picture"] == ""
  assert found["splits"]["train"] == {
    "images": 20,
    "classes": {"a": 8, "b": 6, "c": 6},
    "sizes": {
      "width": {"min": 30, "median": 40, "max": 200},
      "height": {"min": 30, "median": 30, "max": 100},
      "frequent": {"40x30": 13, "30x40": 1, "200x100": 1},
    },
    "modes": {"RGB": 13, "L": 1, "CMYK": 1},
    "formats": {"JPEG": 13, "PNG": 2},
  }
  assert found["splits"]["val"]["classes"] == {"a": 2, "b": 4, "c": 0}
  assert found["missing_classes"] == {"val": ["c"]}
  again = [str(train / "a" / "0.jpg"), str(val / "b" / "again.jpg")]
  twins = [str(val / "b" / "0.jpg"), str(val / "b" / "twin.jpg")]
  assert found["duplicates"] == [again, twins] and found["across_splits"] == 1
  assert found["different_labels"] == [again]
  assert found["few_images"] == {"a": 8, "b": 6, "c": 6} and found["turned"] == 1
  assert found["near_duplicates"] == []
  assert found["misnamed"] == [{"file": str(train / "b/really.jpg"), "format": "PNG"}]
  assert found["ignored"] == {".txt": 1, "": 1} and found["unlisted"] == 1
  reasons = {Path(one["file"]).name: one["reason"] for one in found["unreadable"]}
  assert reasons.pop("cut.jpg").startswith("it is truncated or damaged (")
  assert reasons.pop("text.jpg").startswith("it is none of JPEG, PNG, WEBP, GIF, BMP")
  assert reasons == {
    "empty.jpg": "it is empty",
    "gone.jpg": "it is a dangling link",
    "pipe.jpg": "it is no file",
  }


def test_images_that_look_the_same_are_found_across_splits(tmp_path, capsys):
  root = make_clean(tmp_path)
  coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
  photo = cv2.resize(coarse, (120, 90), interpolation=cv2.INTER_CUBIC)
  first, *_ = places = [
    root / "train" / "b" / "photo.png",
    root / "val" / "a" / "smaller.png",
    root / "val" / "b" / "darker.jpg",
  ]
  cv2.imwrite(str(first), photo)
  cv2.imwrite(str(places[1]), cv2.resize(photo, (64, 48)))
  cv2.imwrite(str(places[2]), photo // 2 + 20, [cv2.IMWRITE_JPEG_QUALITY, 70])
  cv2.imwrite(str(root / "val" / "c" / "other.png"), photo[::-1])
  status, out, _ = call(capsys, root, "--json")
  found = json.loads(out)
  assert status == 0 and found["duplicates"] == []
  pairs = [[str(first), str(place)] for place in places[1:]]
  assert sorted(found["near_duplicates"]) == sorted(pairs)


def test_black_images_do_not_look_the_same(tmp_path, capsys):
  root = make_clean(tmp_path)
  for i, split in enumerate(("train", "train", "val", "val")):
    Image.new("RGB", (30 + i, 30)).save(root / split / "a" / f"black{i}.png")
  assert json.loads(call(capsys, root, "--json")[1])["near_duplicates"] == []


def test_similar_hashes_are_those_of_a_search_through_all_pairs():
  random = np.random.default_rng(0)
  first = random.integers(0, 2**63, 500, np.uint64)
  second = first[:60] ^ np.array(
    [sum(2 ** int(b) for b in random.choice(64, i % 9, False)) for i in range(60)],
    np.uint64,
  )
  bits = np.bitwise_count(first[:, None] ^ second[None])
  expected = [(int(i), int(j)) for j, i in np.argwhere(bits.T <= 6)]
  assert len(expected) > 40
  assert near_duplicates.find_similar(first, second) == expected


def test_several_classes_are_counted(tmp_path, capsys):
  make_clean(tmp_path)
  rows = ["path,label,split", "train/a/0.jpg,a;b,train", "train/b/0.jpg,a,train"]
  (tmp_path / "list.csv").write_text("\n".join([*rows, "val/a/0.jpg,,val"]))
  out = call(capsys, tmp_path / "list.csv", "--labels=classes", "--json")[1]
  assert json.loads(out)["splits"]["train"]["classes"] == {"a": 2, "b": 1}
  rows = ["path,label", "train/a/0.jpg,0.5", "train/b/0.jpg,1", "val/a/0.jpg,2"]
  (tmp_path / "list.csv").write_text("\n".join(rows))
  status, out, _ = call(
    capsys, tmp_path / "list.csv", "--labels=numbers", "--val-share=0.4"
  )
  assert status == 0 and "train: 2 images\n" in out


def test_words_agree_with_json(tmp_path, capsys):
  root = make_dirty(tmp_path / "data")
  status, out, _ = call(capsys, root, f"--figure={tmp_path / 'x.png'}")
  assert status == 1
  assert "train: 20 images of 3 classes\n  width    30 to 200, median 40\n" in out
  assert "val: 6 images of 2 classes" in out
  assert "  modes    RGB 13, L 1, CMYK 1\n" in out
  assert "         8 a\n         6 b\n         6 c\n" in out
  assert "classes missing in val: 1\n  c\n" in out
  assert "files ignored for their suffix: none 1, .txt 1\n" in out
  assert "because they belong to no class of a split: 1\n" in out
  assert f"(no error): 1\n  {root}/train/b/really.jpg is PNG\n" in out
  pair = f"{root}/train/a/0.jpg = {root}/val/b/again.jpg"
  assert f"equal files across splits: 1\n  {pair}\n" in out
  assert f"equal files of different classes: 1\n  {pair}\n" in out
  assert f"within a split: 1\n  {root}/val/b/0.jpg = {root}/val/b/twin.jpg\n" in out
  assert (
    "unreadable: 5\n" in out and f"  {root}/train/a/empty.jpg: it is empty\n" in out
  )


def test_the_picture_says_how_many_images_a_class_has(tmp_path, monkeypatch):
  for i, name in enumerate(["cat", "cat", "dog"]):
    save(tmp_path / name / f"{i}.png", i)
  (tmp_path / "cat" / "broken.png").write_text("no image")
  texts = []
  monkeypatch.setattr(
    ImageDraw.ImageDraw, "multiline_text", lambda *args, **_: texts.append(args[2])
  )
  with pytest.raises(SystemExit):  # An image is broken.
    main(["data", "check", str(tmp_path), f"--picture={tmp_path / 'sheet.png'}"])
  # An unreadable image counts too, as in the printed report.
  assert texts == ["cat\n3 images", "dog\n1 image"]


def test_the_picture_shows_eight_images_of_ten_classes(tmp_path, capsys):
  for label in range(12):
    for i in range(9):
      save(tmp_path / f"class {label:02}" / f"{i}.png", 9 * label + i, size=(20, 10))
  path = tmp_path / "sheet.png"
  assert call(capsys, tmp_path, f"--figure={path}")[0] == 0
  with Image.open(path) as image:
    image.load()
  assert image.format == "PNG" and image.height == 10 * 100 + 4
  squares = np.asarray(image)[4:, -800:].reshape(10, 100, 8, 100, 3)[:, :96, :, :96]
  assert (squares.reshape(10, 96, 8, -1).std(axis=(1, 3)) > 20).all()
  before = path.read_bytes()
  assert call(capsys, tmp_path, f"--figure={path}")[0] == 0
  assert path.read_bytes() == before


def test_many_classes_are_cut_short(tmp_path, capsys):
  for label in range(25):
    (tmp_path / f"{label:02}").mkdir()
    for i in range(1 + label):
      (tmp_path / f"{label:02}" / f"{i}.bmp").touch()
  status, out, _ = call(capsys, tmp_path, "--val-share=0.001", "--figure=x.png")
  assert status == 1 and "train: 325 images of 25 classes" in out
  assert "split val is left out: it has no images" in out
  assert "        21 20\n       ... the median is 13\n         5 04\n" in out
  assert out.count("it is empty\n") == 325 and "picture" not in out


def test_a_table_of_paths_is_checked(tmp_path, capsys):
  for i in range(3):
    save(tmp_path / f"{i}.png", i)
  rows = ["path,label,split", "2.png,dog,test", "0.png,cat,train", "1.png,dog,train"]
  # The copy needs another name, because one name with two labels is refused.
  (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes())
  (tmp_path / "all.csv").write_text("\n".join([*rows, "3.png,dog,train"]))
  args = (tmp_path / "all.csv", "--json", "--figure=")
  status, out, _ = call(capsys, *args)
  found = json.loads(out)
  assert status == 0 and found["missing_classes"] == {"test": ["cat"]}
  same = [str(tmp_path / "0.png"), str(tmp_path / "3.png")]
  assert found["different_labels"] == [same]
  status, out, _ = call(capsys, *args, "--max-pixels=1199")
  reasons = {one["reason"] for one in json.loads(out)["unreadable"]}
  assert status == 1 and reasons == {"it has 40x30 pixels, more than 1199"}


def test_a_split_that_training_refuses_is_unreadable(tmp_path, capsys):
  root = make_clean(tmp_path / "data")
  save(root / "test" / "images" / "0.jpg", 99)
  status, out, _ = call(capsys, root, "--json", "--figure=")
  (refused,) = json.loads(out)["unreadable"]
  assert status == 1 and refused["file"] == str(root / "test")
  assert "classes that training does not have: images" in refused["reason"]


def test_names_that_a_terminal_would_obey_are_harmless(tmp_path, capsys):
  root = make_clean(tmp_path / "data")
  save(root / "train" / "\x1b[31m" / "\n.jpg", 99)
  os.rename(root / "val" / "a", root / "val" / "\x1b[31m")
  Path(os.fsdecode(os.fsencode(str(root / "train" / "b")) + b"/\xff.jpg")).touch()
  status, out, _ = call(capsys, root, f"--figure={tmp_path / 'x.png'}")
  assert status == 1 and f"  {root}/train/b/?.jpg: it is empty\n" in out
  assert "\x1b" not in out and "         1 ?[31m\n" in out


def test_a_tfds_split_without_labels_is_left_out(tmp_path, capsys):
  import tensorflow_datasets as tfds
  from etils import epath

  class TinyCheck(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(tmp_path)

    def _info(self):
      image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
      label = tfds.features.ClassLabel(names=["cat", "dog"])
      features = tfds.features.FeaturesDict({"image": image, "label": label})
      return self.dataset_info_from_configs(features=features)

    def _split_generators(self, _):
      return {"train": self._generate_examples(5), "test": self._generate_examples(0)}

    def _generate_examples(self, count):
      for i in range(5):
        path = save(tmp_path / "images" / f"{i % 4}.png", i % 4)
        yield i, {"image": str(path), "label": i % 2 if count else -1}

  TinyCheck(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  capsys.readouterr()
  path = tmp_path / "sheet.png"
  argv = ("tiny_check", f"--data-dir={tmp_path}", f"--figure={path}", "--json")
  status, out, _ = call(capsys, *argv)
  found = json.loads(out)
  assert status == 0 and list(found["splits"]) == ["train"] and path.is_file()
  assert found["skipped"] == {"test": "its images have no labels"}
  assert found["splits"]["train"]["classes"] == {"cat": 3, "dog": 2}
  ((first, second),) = found["duplicates"]
  assert re.fullmatch(r"image \d of tiny_check train", first) and first != second


@pytest.mark.parametrize("form", ["python", "binary"])
def test_archives_of_cifar_are_checked(tmp_path, capsys, monkeypatch, form):
  monkeypatch.setattr(cifar, "NUM_IMAGES", {"train": 10, "test": 3})
  images = np.arange(13 * 3072).astype(np.uint8).reshape(13, 32, 32, 3)
  images[12] = images[4] = 7
  content = cifar_writer.files(
    "cifar10",
    form,
    (images[:10], np.arange(10)),
    (images[10:], np.arange(3)),
    list("abcdefghij"),
  )
  cifar_writer.pack(content, "x", tmp_path / f"cifar-10-{form}.tar.gz")
  sheet = tmp_path / "sheet.png"
  argv = ("cifar10", f"--data-dir={tmp_path}", f"--picture={sheet}", "--json")
  status, out, _ = call(capsys, *argv)
  found = json.loads(out)
  assert status == 1 and sheet.is_file()
  assert found["splits"]["train"]["classes"] == dict.fromkeys("abcdefghij", 1)
  assert found["splits"]["test"]["sizes"]["frequent"] == {"32x32": 3}
  names = ["image 4 of cifar10 train", "image 2 of cifar10 test"]
  assert names in found["duplicates"] and found["unreadable"] == []


def test_photos_that_need_a_package_are_said(tmp_path, capsys, monkeypatch):
  known = KNOWN["HEIF"]._replace(package="pillow-heif")
  monkeypatch.setitem(KNOWN, "HEIF", known)
  monkeypatch.setattr("resnet_jax.data.sources.file_list.SUFFIXES", (".jpg",))
  root = make_clean(tmp_path)
  (root / "train" / "a" / "IMG.HEIC").touch()
  _, out, _ = call(capsys, root, "--picture=")
  said = "files ignored for their suffix: .heic 1\n  to read .heic files: `pip install"
  assert f"{said} pillow-heif`\n" in out


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["{tmp}/none"], r"no folder or .csv file '.*/none', and no data set '.*/none' in"),
    (["imagnette"], "no folder or .csv file 'imagnette', and no data.*--data-dir='"),
    (["mnist", "--data-dir={tmp}"], "^error: no data set 'mnist' in --data-dir='"),
    (["digits"], "SOURCE='digits' is built in"),
    (["{tmp}/empty"], "empty' must have a folder of images for each class"),
    (["{tmp}/wrong.csv"], "wrong.csv, line 1: 'only' must be path,label"),
    (["{tmp}/empty", "--val-share=1"], r"--val-share=1.0 must be in \(0, 1\)"),
    (["{tmp}/empty", "--val-share=x"], "--val-share: invalid float value: 'x'"),
    (["{tmp}/empty", "--max-pixels=200000000"], "--max-pixels=200000000 must be in"),
    (
      ["{tmp}/empty", "--figure={tmp}/no/x.png"],
      "^error: --figure '.*/no/x.png' must be a .png file in an existing folder",
    ),
    (["{tmp}/empty", "--figure=x.jpg"], "--figure 'x.jpg' must be a .png file"),
    ([], "required: SOURCE"),
  ],
)
def test_mistakes_are_one_line_with_status_2(tmp_path, capsys, argv, message):
  (tmp_path / "empty").mkdir()
  (tmp_path / "wrong.csv").write_text("only\n")
  status, out, err = call(capsys, *(arg.format(tmp=tmp_path) for arg in argv))
  assert status == 2 and out == "" and err.count("\n") == 1
  assert re.search(message, err) and "config." not in err


@pytest.mark.parametrize(
  ("highest", "hint"),
  [
    (4095, "  only 12 bits are in use: set config.data.max_value=4095\n"),
    (1023, "  only 10 bits are in use: set config.data.max_value=1023\n"),
    (32767, "  only 15 bits are in use: set config.data.max_value=32767\n"),
    (65535, ""),
  ],
)
def test_sixteen_bits_are_counted_and_their_highest_value_is_said(
  tmp_path, capsys, highest, hint
):
  root = make_clean(tmp_path)
  for i, shape in enumerate([(9, 8), (9, 8, 3)]):
    image = np.full(shape, 300 + i, np.uint16)
    image[4, 5] = highest - i
    cv2.imwrite(str(root / "train" / "a" / f"deep{i}.png"), image)
  status, out, _ = call(capsys, root, "--figure=")
  said = f"  values up to {highest:,} of 65,535\n"
  assert status == 0 and f"images of 16 bits a channel: 2\n{said}{hint}" in out
  assert ("in use" in out) == bool(hint)
  found = json.loads(call(capsys, root, "--figure=", "--json")[1])
  assert found["sixteen_bits"] == 2 and found["highest_value"] == highest


@pytest.mark.parametrize(
  ("dtype", "channels", "flag"), [("uint8", 5, "--channels=5"), ("float32", 3, "")]
)
def test_images_that_need_a_flag_are_one_line(tmp_path, capsys, dtype, channels, flag):
  for i, split in enumerate(("train", "train", "val")):
    (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(i).random((9, 8, channels)) * 255
    np.save(tmp_path / split / "a" / f"{i}.npy", image.astype(dtype))
  flag = flag or "--max-value"
  status, out, _ = call(capsys, tmp_path, "--figure=")
  said = "images that do not fit the settings: 3\n"
  (line,) = out.split(said)[1].split("\nunreadable: 0")[0].splitlines()
  assert status == 1
  assert line.startswith(f"  {tmp_path}/train/a/0.npy and 2 more: it ")
  assert f"set {flag}" in line
  flags = [flag] if "=" in flag else [f"{flag}=255"]
  status, out, _ = call(capsys, tmp_path, "--figure=", *flags)
  assert (status, "do not fit" in out) == (0, False)


def test_sixteen_bits_are_not_mentioned_where_there_are_none(tmp_path, capsys):
  out = call(capsys, make_clean(tmp_path), "--figure=")[1]
  assert "16 bits" not in out


def test_the_scan_is_a_function(tmp_path):
  config = DataConfig(name="folder", dir=str(make_clean(tmp_path)), num_threads=3)
  report = scan.scan(config)
  assert report.ok and report.picture == "" and report.splits["train"].images == 9


def test_ctrl_c_ends_it(tmp_path):
  """There are a hundred images, which take four seconds each."""
  code = """
import gc, sys, time
from resnet_jax.cli.main import main
from resnet_jax.data.audit import near_duplicates, scan
from resnet_jax.data.images.formats import KNOWN
from resnet_jax.data.sources import cifar

gc.disable()  # Python drops an interrupt within a callback of the garbage collector.

def open_slowly(data, max_pixels):
  print("begun", flush=True)
  time.sleep(4)
  raise scan.ImageError("it is slow")

scan.open_image, scan._CHUNK = open_slowly, 1
main(["data", "check", sys.argv[1], "--figure="])
"""
  for i in range(100):
    save(tmp_path / "a" / f"{i}.bmp", i, size=(1, 1))
  process = subprocess.Popen(
    [sys.executable, "-c", code, tmp_path],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout and "begun" in process.stdout.readline()
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=120)  # On 2 cores, all images would take 200 s.
  assert process.returncode == 1 and err == "error: interrupted\n"
