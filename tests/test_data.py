"""Sources, and the data set that is kept on the devices."""

import hashlib
import io
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import cifar_writer
import cloudpickle
import jax
import numpy as np
import pytest
import sklearn.datasets
import sklearn.model_selection
from PIL import Image

from resnet_jax.config import AugmentConfig, Config, DataConfig
from resnet_jax.config.plan import Plan
from resnet_jax.data import ImageArrays
from resnet_jax.data.pipelines.opening import create_dataset
from resnet_jax.data.pipelines.resident import ResidentDataset
from resnet_jax.data.sources import base, built_in, cifar, opening, tfds
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import create_mesh
from resnet_jax.training.class_pairing import pair_classes

# Digest of the images and labels of the test split.
DIGITS_SHA256 = "eb33daa4a6fa9662"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "tfds"


def test_digits_split_is_fixed_disjoint_and_stratified():
  train, test = built_in.load_digits("train"), built_in.load_digits("test")
  assert train.images.shape == (1437, 8, 8, 1) and test.images.shape == (360, 8, 8, 1)
  assert train.images.dtype == np.uint8 and train.images.max() == 255
  counts = np.bincount(test.labels, minlength=10)
  assert counts.min() >= 34 and counts.max() <= 37
  digest = hashlib.sha256(test.images.tobytes() + test.labels.tobytes()).hexdigest()
  assert digest.startswith(DIGITS_SHA256)
  digits = sklearn.datasets.load_digits()
  index = np.arange(1797)
  parts = sklearn.model_selection.train_test_split(
    index, test_size=360, stratify=digits.target, random_state=0
  )
  for ours, part in zip((train, test), parts, strict=True):
    np.testing.assert_array_equal(ours.labels, digits.target[part])
    expected = np.round(digits.images[part] * (255 / 16))
    np.testing.assert_array_equal(ours.images[..., 0], expected)
  seen = {image.tobytes() for image in train.images}
  assert not any(image.tobytes() in seen for image in test.images)


def test_synthetic_images_repeat_and_splits_differ():
  a, b = (built_in.load_synthetic("train", 8, 20) for _ in range(2))
  np.testing.assert_array_equal(a.images, b.images)
  assert a.images.shape == (20, 8, 8, 3) and a.images.dtype == np.uint8
  assert (built_in.load_synthetic("test", 8, 20).images != a.images).any()


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_unknown_split_is_refused(name):
  with pytest.raises(ValueError, match=r"eval_split='val'.*(train, test|test, train)"):
    opening.open_source(DataConfig(name=name), "val")


@pytest.fixture(scope="module")
def tiny_tfds(tmp_path_factory) -> Path:
  """A TFDS data set of 7 + 5 images of 4x4 pixels, and one of images of many sizes."""
  import tensorflow_datasets as tfds
  from etils import epath

  root = tmp_path_factory.mktemp("tfds")

  # TFDS must not find the code of these data sets, as with a user's own data set.
  with tfds.core.registered.skip_registration():

    class Tiny(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.0.0")
      pkg_dir_path = epath.Path(root)
      shape: tuple = (4, 4, 3)
      features = ("image", "label")

      def _info(self):
        image, label = self.features
        return self.dataset_info_from_configs(
          features=tfds.features.FeaturesDict(
            {
              image: tfds.features.Image(shape=self.shape, encoding_format="png"),
              label: tfds.features.ClassLabel(num_classes=3),
            }
          )
        )

      def _split_generators(self, _):
        return {"train": self._generate_examples(7), "test": self._generate_examples(5)}

      def _generate_examples(self, count):
        for i in range(count):
          file = io.BytesIO()
          Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(file, "png")
          file.seek(0)
          yield i, dict(zip(self.features, (file, i % 3), strict=True))

    class TinySizes(Tiny):
      shape = (None, None, 3)

    class TinyNames(Tiny):
      features = ("picture", "class")

  for builder in (Tiny, TinySizes, TinyNames):
    builder(data_dir=root, file_format="array_record").download_and_prepare()
  shutil.copytree(root / "tiny", root / "old" / "tiny")
  info = root / "old" / "tiny" / "1.0.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  for path in info.parent.glob("*.array_record*"):
    path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
  return root


def test_tfds_reads_every_example(tiny_tfds):
  source = tfds.load_tfds("tiny", str(tiny_tfds), "train")
  assert source.class_names == ("0", "1", "2") and source.images.shape == (7, 4, 4, 3)
  assert source.images.dtype == np.uint8 and source.labels.dtype == np.int32
  # TFDS shuffles the images that it stores.
  values = source.images[:, 0, 0, 0]
  assert sorted(values) == list(range(7))
  np.testing.assert_array_equal(source.labels, values % 3)


def test_tfds_split_syntax(tiny_tfds):
  assert len(tfds.load_tfds("tiny", str(tiny_tfds), "train[:3]").labels) == 3


@pytest.mark.parametrize(
  ("name", "split", "error", "message"),
  [
    (
      "tiny",
      "validation",
      ValueError,
      r"eval_split='validation'.*Unknown split",
    ),
    ("tiny", "train[:0]", ValueError, r"'train\[:0\]'.*empty"),
    ("tiny", "train[5:2]", ValueError, r"'train\[5:2\]'.*empty"),
    ("tiny", "test+train[5:2]", ValueError, r": 'train\[5:2\]' is empty"),
    ("tiny", "train[90%:10%] + test", ValueError, r": 'train\[90%:10%\]' is empty"),
    ("tiny_names", "train", ValueError, r"\['class', 'picture'\]"),
    ("mnist", "train", FileNotFoundError, r"'mnist'.*tfds build mnist.*data.dir"),
    (
      "cifar10",
      "train",
      FileNotFoundError,
      r"download https://\S*/cifar-10-python.tar.gz and set config.data.dir",
    ),
    ("huggingface:mnist", "train", FileNotFoundError, "huggingface:mnist"),
    ("anyone:mnist", "train", FileNotFoundError, "anyone:mnist"),
    ("no_such_set", "train", FileNotFoundError, r"no_such_set.*tfds build"),
  ],
)
def test_tfds_that_cannot_be_used_says_what_is_wanted(
  tiny_tfds, name, split, error, message
):
  with pytest.raises(error, match=message) as caught:
    tfds.load_tfds(name, str(tiny_tfds), split)
  assert str(tiny_tfds) in str(caught.value)


@pytest.mark.skipif(not SHARED.exists(), reason=f"no CIFAR-10 in {SHARED}")
def test_real_cifar10():
  source = tfds.load_tfds("cifar10", str(SHARED), "test")
  assert source.images.shape == (10_000, 32, 32, 3)
  np.testing.assert_array_equal(np.bincount(source.labels), 1000)
  streamed = tfds.load_tfds("cifar10", str(SHARED), "test", stream=True)
  streamed = cloudpickle.loads(cloudpickle.dumps(streamed))  # As Grain's workers do.
  data, label = streamed[17]
  np.testing.assert_array_equal(Image.open(io.BytesIO(data)), source.images[17])
  assert label == source.labels[17]


def name_a_stranger(way: str, root: Path) -> None:
  """Makes the data set in `root` name the class `strangers.Image`."""
  folder = root / "tiny" / "1.0.0"
  path = folder / "features.json"
  features = json.loads(path.read_text())
  image = features["featuresDict"]["features"]["image"]
  image.pop("pythonClassName")
  image["python_class_name" if way == "snake case" else "pythonClassName"] = (
    "strangers.Image"
  )
  if way == "old form":
    features = {"type": "strangers.Image", "content": {}}
  elif way == "text in text":
    features = {
      "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
      "proto_cls": "tensorflow_datasets.FeaturesDict",
      "content": json.dumps(features["featuresDict"]),
    }
  elif way == "dataset_info.json":
    path = folder / way
    features = json.loads(path.read_text()) | {"features": features}
  elif way == "other version":
    path = root / "tiny" / "1.0.1" / "features.json"
    shutil.copytree(folder, path.parent)
  elif way == "other folder":
    path = root / "tiny" / "a" / "b" / "1.0.0" / "features.json"
    path.parent.parent.mkdir(parents=True)
    folder.rename(path.parent)
    (root / "tiny" / ".config").mkdir()
    metadata = {"default_config_name": "a/b"}
    (root / "tiny" / ".config" / "metadata.json").write_text(json.dumps(metadata))
  path.write_text(json.dumps(features))


@pytest.mark.parametrize("name", ["tiny", "Tiny"])
@pytest.mark.parametrize(
  "way",
  [
    *("features.json", "snake case", "old form", "text in text", "dataset_info.json"),
    *("other version", "other folder"),
  ],
)
def test_a_tfds_set_imports_nobodys_module(tiny_tfds, tmp_path, monkeypatch, way, name):
  shutil.copytree(tiny_tfds / "tiny", tmp_path / "tiny")
  name_a_stranger(way, tmp_path)
  (tmp_path / "strangers.py").write_text("raise SystemExit('it ran')")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match=r"the class 'strangers\.Image', which"):
    tfds.load_tfds(name, str(tmp_path), "train")


@pytest.mark.parametrize("file", ["tiny-train.array_record*", "dataset_info.json"])
@pytest.mark.parametrize("damage", ["empty", "missing"])
def test_damaged_tfds_is_one_clean_error(tiny_tfds, tmp_path, file, damage):
  shutil.copytree(tiny_tfds / "tiny", tmp_path / "tiny")
  (path,) = (tmp_path / "tiny" / "1.0.0").glob(file)
  path.unlink() if damage == "missing" else path.write_bytes(b"")
  with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)) as caught:
    tfds.load_tfds("tiny", str(tmp_path), "train")
  assert re.search("damaged|prepare ", str(caught.value))


@pytest.mark.parametrize(
  "text",
  ["", "[", "{}", "[]", "null", "3", '{"type": 1}', '{"a": 1}', "[" * 100_000, "\xe9"],
  ids=lambda text: text[:9],
)
def test_damaged_features_of_tfds_are_one_clean_error(tiny_tfds, tmp_path, text):
  shutil.copytree(tiny_tfds / "tiny", tmp_path / "tiny")
  path = tmp_path / "tiny" / "1.0.0" / "features.json"
  path.write_text(text, encoding="latin-1")
  with pytest.raises(UserError, match=f"{tmp_path}.* is damaged: |the class ''"):
    tfds.load_tfds("tiny", str(tmp_path), "train")


@pytest.mark.parametrize("why", ["sizes", "too large", "asked for"])
def test_tfds_that_does_not_fit_the_device_is_streamed(tiny_tfds, monkeypatch, why):
  if why == "too large":
    monkeypatch.setattr(base, "MAX_GIB", 1e-9)
  name = "tiny_sizes" if why == "sizes" else "tiny"
  stream = why == "asked for"
  source = tfds.load_tfds(name, str(tiny_tfds), "", stream)
  assert isinstance(source, tfds.TfdsImages) and len(source) == 5  # The test split.
  assert source.class_names == ("0", "1", "2")
  for data, label in (source[i] for i in range(5)):
    assert np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0] % 3 == label


def test_tfds_in_another_file_format_says_how_to_convert_it(tiny_tfds):
  where = tiny_tfds / "old" / "tiny" / "1.0.0"
  command = f"tfds convert_format --dataset_version_dir={where} --out_file_format=array"
  with pytest.raises(FileNotFoundError, match=f"stored as tfrecord.*{command}"):
    tfds.load_tfds("tiny", str(tiny_tfds / "old"), "train")


@pytest.mark.parametrize("alternative", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_array_record_beside_another_format_is_read(
  tiny_tfds, tmp_path, alternative, stream
):
  """`tfds convert_format` leaves both formats in the folder.

  If it stops early, the description does not name the new format.
  """
  for place in ("old/tiny", "tiny"):
    shutil.copytree(tiny_tfds / place, tmp_path / "tiny", dirs_exist_ok=True)
  info = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
  description = json.loads(info.read_text()) | {"fileFormat": "tfrecord"}
  if alternative:
    description["alternativeFileFormats"] = ["array_record"]
  info.write_text(json.dumps(description))
  source = tfds.load_tfds("tiny", str(tmp_path), "train", stream)
  assert len(source) == 7
  labels = [source[i][1] for i in range(7)] if stream else source.labels
  assert sorted(labels) == [0, 0, 0, 1, 1, 2, 2]
  (shard,) = info.parent.glob("tiny-train.array_record*")
  shard.unlink()
  said = f"incomplete: of the 1 files of 'train', {shard.name} cannot be found; prep"
  with pytest.raises(FileNotFoundError, match=said):
    tfds.load_tfds("tiny", str(tmp_path), "train", stream)


def test_without_array_record_only_tfds_sets_are_not_read(tiny_tfds, tmp_path):
  """array_record is missing on Windows, where Grain does not require it either."""
  (tmp_path / "photos" / "a").mkdir(parents=True)
  (tmp_path / "photos" / "a" / "1.jpg").touch()
  write_cifar(tmp_path, "cifar10", "python", packed=True)
  code = f"""
import sys
import grain
for name in [name for name in sys.modules if name.startswith("array_record")]:
  del sys.modules[name]
sys.modules["array_record"] = None
import resnet_jax.cli.main, resnet_jax.training.trainer
from resnet_jax.config import DataConfig
from resnet_jax.data.sources import cifar, opening
from resnet_jax.runtime.errors import UserError
cifar.NUM_IMAGES = {CIFAR_SIZES}
for name, place, split in (
  ("digits", "", "train[:9]"),
  ("folder", {str(tmp_path / "photos")!r}, "train"),
  ("cifar10", {str(tmp_path)!r}, "train[:9]"),
):
  assert len(opening.open_source(DataConfig(name=name, dir=place), split)), name
try:
  opening.open_source(DataConfig(name="tiny", dir={str(tiny_tfds)!r}), "train")
except UserError as error:
  print(error)
"""
  env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
  said = subprocess.run(
    [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
  )
  assert "'tiny' in config.data.dir" in said.stdout
  assert "needs the package array_record: `pip install array_record`" in said.stdout


def test_tensorflow_and_torch_are_never_imported(tiny_tfds, tmp_path):
  """They are not imported even if they are installed, as these stand-ins are."""
  for name in ("tensorflow", "torch"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("__version__ = '2.20'\n")
  code = f"""
import sys
import resnet_jax.cli.main, resnet_jax.training.trainer
from etils import epath
from resnet_jax.data.sources import built_in, tfds
from resnet_jax.runs.tensorboard import Board
Board(epath.Path({str(tmp_path)!r}), 0)
built_in.load_digits("test")
tfds.load_tfds("tiny", {str(tiny_tfds)!r}, "train")
bad = [m for m in sys.modules if m.split(".")[0] in ("tensorflow", "torch")]
assert not bad, bad
import torch
assert torch.__version__ == "2.20"
"""
  path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
  env = os.environ | {"PYTHONPATH": path}
  subprocess.run([sys.executable, "-c", code], env=env, check=True)


# CIFAR as its authors publish it

CIFAR_SIZES = {"train": 10, "test": 3}


def cifar_parts(name: str) -> dict:
  """Returns distinct images, and labels that include the first and the last class."""
  rng = np.random.default_rng(0)
  last = 9 if name == "cifar10" else 99
  return {
    split: (
      rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
      np.array([last, 0, 3, 5, 5, 7, 1, 2, 8, 4][:count]),
    )
    for split, count in CIFAR_SIZES.items()
  }


def cifar_names(name: str) -> list[str]:
  return [f"class_{i}" for i in range(int(name[5:]))]


def write_cifar(root: Path, name: str, form: str, packed: bool) -> Path:
  content = cifar_writer.files(
    name, form, **cifar_parts(name), class_names=cifar_names(name)
  )
  folder = cifar_writer.FOLDERS[name, form]
  if packed:
    return cifar_writer.pack(content, folder, root / cifar_writer.ARCHIVES[name, form])
  return cifar_writer.unpack(content, root / folder)


@pytest.fixture
def small_cifar(monkeypatch):
  monkeypatch.setattr(cifar, "NUM_IMAGES", CIFAR_SIZES)


@pytest.mark.parametrize("named", ["itself", "its folder"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "form"), cifar_writer.FOLDERS)
def test_cifar_is_read_as_it_is_published(
  tmp_path, small_cifar, name, form, packed, named
):
  path = write_cifar(tmp_path, name, form, packed)
  place = path if named == "itself" else path.parent
  before = sorted(tmp_path.rglob("*"))
  for split, (images, labels) in cifar_parts(name).items():
    source = opening.open_source(DataConfig(name=name, dir=str(place)), split)
    np.testing.assert_array_equal(source.images, images)
    np.testing.assert_array_equal(source.labels, labels)
    assert source.class_names == tuple(cifar_names(name))
  assert sorted(tmp_path.rglob("*")) == before  # Nothing is unpacked.


def test_the_writer_of_the_tests_writes_pickles_as_numpy_does():
  parts = cifar_parts("cifar10")
  content = cifar_writer.files("cifar10", "python", **parts, class_names=["x"] * 10)
  found = pickle.loads(content["data_batch_2"], encoding="bytes")
  np.testing.assert_array_equal(
    found[b"data"].reshape(2, 3, 32, 32).transpose(0, 2, 3, 1), parts["train"][0][2:4]
  )
  assert found[b"labels"] == [3, 5]


def test_parts_of_cifar(tmp_path, small_cifar):
  path = write_cifar(tmp_path, "cifar10", "binary", packed=True)
  images, labels = cifar_parts("cifar10")["train"]
  config = DataConfig(name="cifar10", dir=str(path))
  np.testing.assert_array_equal(
    opening.open_source(config, "train[2:5]").images, images[2:5]
  )
  assert len(opening.open_source(config, "")) == CIFAR_SIZES["test"]
  for split in ("val", "train+test", "train[:0]"):
    with pytest.raises(UserError, match=r"train_split or eval_split='"):
      opening.open_source(config, split)
  config.train_crop = "random"  # Images with a crop are streamed.
  source = opening.open_source(config, "train")
  source = cloudpickle.loads(cloudpickle.dumps(source))  # As Grain's workers do.
  assert source.name(3) == "image 3 of cifar10 train" and len(source) == 10
  for i in range(10):
    data, label = source[i]
    np.testing.assert_array_equal(Image.open(io.BytesIO(data)), images[i])
    assert label == labels[i]


def test_tfds_comes_before_archives_of_cifar(tmp_path):
  path = write_cifar(tmp_path, "cifar10", "python", packed=True)
  folder = tmp_path / "cifar10" / "3.0.2"
  folder.mkdir(parents=True)
  (folder / "cifar10-train.tfrecord-00000-of-00001").touch()  # Not a readable format.
  assert cifar.find_cifar("cifar10", str(tmp_path)) == path
  (folder / "cifar10-train.array_record-00000-of-00001").touch()
  assert cifar.find_cifar("cifar10", str(tmp_path)) is None
  assert cifar.find_cifar("cifar10", str(path)) == path
  assert cifar.find_cifar("cifar100", str(tmp_path)) is None
  assert cifar.find_cifar("mnist", str(path)) is None


def repacked(path: Path, *members: tarfile.TarInfo) -> None:
  """Adds members at the front of the archive."""
  with tarfile.open(path) as archive:
    files = [(m, archive.extractfile(m).read()) for m in archive if m.isfile()]
  with tarfile.open(path, "w:gz") as archive:
    for member in members:
      archive.addfile(member)
    for member, data in files:
      archive.addfile(member, io.BytesIO(data))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, link
  return info


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda path: path.write_bytes(path.read_bytes()[:9999]), "cannot be read as a"),
    (lambda path: path.write_bytes(b""), "cannot be read as a .tar.gz archive"),
    (lambda path: path.write_text("<html>Not found"), "cannot be read as a .tar.gz"),
    (lambda path: repacked(path, member("/etc/x")), "has '/etc/x', which is a link or"),
    (lambda path: repacked(path, member("a/../../x")), "has 'a/../../x', which is"),
    (
      lambda path: repacked(path, member("a/test_batch", tarfile.SYMTYPE, "/etc/x")),
      "has 'a/test_batch', which is a link or lies outside of the archive",
    ),
    (
      lambda path: repacked(path, member("a/test_batch", tarfile.LNKTYPE, "a/b")),
      "has 'a/test_batch', which is a link",
    ),
    (
      lambda path: repacked(path, member("test_batch", tarfile.FIFOTYPE)),
      "has 'test_batch', which is a link",
    ),
  ],
)
def test_a_damaged_archive_of_cifar_is_one_clean_error(
  tmp_path, small_cifar, damage, message
):
  path = write_cifar(tmp_path, "cifar10", "python", packed=True)
  damage(path)
  with pytest.raises(UserError, match=f"'{path}' {message}.*download https") as caught:
    opening.open_source(DataConfig(name="cifar10", dir=str(tmp_path)), "train")
  assert "\n" not in str(caught.value)


PIXELS = np.zeros((2, 3072), np.uint8)
GOOD = {"data": PIXELS, "labels": [1, 2]}


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("data_batch_3", None, "has no data_batch_3, which cifar10 needs"),
    ("batches.meta", None, "has no batches.meta"),
    ("data_batch_3", b"", "it is no pickle"),
    ("data_batch_3", b"\x80\x02}q\x01(U", "it is no pickle"),
    ("data_batch_3", b"<html>", "it is no pickle"),
    ("data_batch_3", b"\x80\x02K\x01.", "it has no dictionary"),
    ("data_batch_3", b"cposix\nsystem\n(S'false'\ntR.", "asks for posix.system, which"),
    ("data_batch_3", b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
    ("data_batch_3", b"}r\xff\xff\xff\xff.", "it names object number 4294967295"),
    ("data_batch_3", b"cnumpy\ndtype\n(S'O'\ntR.", "it has no dictionary"),
    ("data_batch_3", {"labels": [1, 2]}, "it has no 'data' of 3072 bytes"),
    ("data_batch_3", GOOD | {"data": PIXELS[:, :9]}, "it has no 'data' of 3072 bytes"),
    ("data_batch_3", GOOD | {"data": [1, 2]}, "it has no 'data' of 3072 bytes"),
    ("data_batch_3", GOOD | {"data": PIXELS[:1]}, "1 images and 2 labels, not 2"),
    ("data_batch_3", GOOD | {"labels": [1]}, "2 images and 1 labels, not 2"),
    ("data_batch_3", GOOD | {"labels": "12"}, "it has no 'labels'"),
    ("data_batch_3", GOOD | {"labels": ["1", "2"]}, "it has no 'labels'"),
    ("data_batch_3", GOOD | {"labels": [1, -2]}, "it has no 'labels'"),
    ("data_batch_3", GOOD | {"labels": [1, 10]}, "it has the label 10"),
    ("batches.meta", {"label_names": ["a", "b"]}, "it has 2 class names, not 10"),
    ("batches.meta", {"label_names": [1] * 10}, "it has no 'label_names'"),
    ("batches.meta", {}, "it has no 'label_names'"),
    ("data_batch_3.bin", bytes(3073), "it has 1 images, not 2"),
    ("data_batch_3.bin", bytes(2 * 3073 - 1), "images, not 2"),
    ("data_batch_3.bin", b"\x0a" * 2 * 3073, "it has the label 10"),
    ("batches.meta.txt", b"a b c", "it has 3 class names, not 10"),
    ("batches.meta.txt", b"\xff", "batches.meta.txt is damaged: .*decode"),
  ],
)
def test_damaged_files_of_cifar_are_one_clean_error(
  tmp_path, small_cifar, name, content, message
):
  form = "binary" if ".bin" in name or ".txt" in name else "python"
  path = write_cifar(tmp_path, "cifar10", form, packed=False)
  if content is None:
    (path / name).unlink()
  else:
    is_file = isinstance(content, bytes)
    (path / name).write_bytes(content if is_file else cifar_writer.pickled(content))
  with pytest.raises(UserError, match=f"{message}.*download https") as caught:
    opening.open_source(DataConfig(name="cifar10", dir=str(tmp_path)), "train")
  assert name in str(caught.value) and str(path) in str(caught.value)


def make_dataset(size, batch_size, devices=1):
  images = np.arange(size, dtype=np.uint8).reshape(-1, 1, 1, 1)
  source = ImageArrays(
    images, np.arange(size, dtype=np.int32), tuple(map(str, range(size)))
  )
  mesh = create_mesh(jax.devices()[:devices])
  return ResidentDataset(source, batch_size, mesh)


def make_plan(num_steps, batch_size, size, per_call=3):
  config = Config(num_steps=num_steps, batch_size=batch_size, steps_per_call=per_call)
  return Plan.create(config, size)


def train_labels(dataset, plan, start=0, seed=0):
  """Returns the labels of every training batch from `start` on, in order."""
  take = jax.jit(dataset.take_batch)
  labels, step = [], start
  for end, feed, count in dataset.train_chunks(jax.random.key(seed), start, plan):
    assert end == step + count
    for s in range(step, end):
      batch = take(feed, s)
      assert batch["mask"].all()
      np.testing.assert_array_equal(batch["image"].ravel(), batch["label"])
      labels.append(np.asarray(batch["label"]))
    step = end
  return labels


def test_an_epoch_takes_each_example_at_most_once_in_a_new_order():
  labels = train_labels(make_dataset(23, 4), make_plan(10, 4, 23))
  first, second = np.concatenate(labels[:5]), np.concatenate(labels[5:])
  assert len(set(first)) == len(set(second)) == 20
  assert (first != second).any()
  assert set(first) != set(range(20))  # the dropped images are random too


def test_a_batch_is_a_function_of_seed_and_step():
  dataset = make_dataset(23, 4)
  whole = train_labels(dataset, make_plan(12, 4, 23))
  rest = train_labels(make_dataset(23, 4), make_plan(12, 4, 23, per_call=2), start=7)
  np.testing.assert_array_equal(whole[7:], rest)
  other = train_labels(make_dataset(23, 4), make_plan(12, 4, 23), seed=1)
  assert (np.array(other) != np.array(whole)).any()


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("size", [1, 8, 15, 17])
def test_evaluation_takes_each_example_once(size, devices):
  dataset = make_dataset(size, 8, devices)
  seen = []
  for feed, count in dataset.eval_chunks():
    for i in range(count):
      batch = jax.jit(dataset.take_batch)(feed, i)
      assert len(batch["label"].sharding.device_set) == devices
      seen += list(np.asarray(batch["label"])[np.asarray(batch["mask"])])
  assert sorted(seen) == list(range(size))


@pytest.mark.parametrize(
  ("config", "batch_size", "message"),
  [
    (DataConfig(), 12, "batch_size=12.*multiple of the 8 devices, such as 16"),
    (
      DataConfig(name="synthetic", mean=(0.5, 0.5)),
      16,
      r"data.mean=\(0.5, 0.5\).*3 channels",
    ),
    (DataConfig(train_crop="random"), 16, "train_crop='random' must be '' for images"),
  ],
)
def test_what_does_not_fit_the_data_is_refused(config, batch_size, message):
  with pytest.raises(ValueError, match=message):
    create_dataset(config, batch_size, create_mesh(), AugmentConfig())


def test_colours_of_grey_images_are_not_changed():
  with pytest.raises(ValueError, match=r"saturation=0.0 and hue=0.1 must be 0.* 1 ch"):
    create_dataset(DataConfig(), 16, create_mesh(), AugmentConfig(hue=0.1))


def test_folder_that_cannot_be_learned_from_is_refused(tmp_path):
  for name in ("a", "b"):
    (tmp_path / "all" / name).mkdir(parents=True)
    for i in range(4):
      (tmp_path / "all" / name / f"{i}.jpg").touch()
  config = DataConfig(name="folder", dir=str(tmp_path / "all"))
  with pytest.raises(ValueError, match=r"share of 0.1 .* none for evaluation"):
    create_dataset(config, 8, create_mesh())
  config.dir = str(tmp_path)  # One folder too high.
  with pytest.raises(ValueError, match="has one class, 'all': nothing to learn"):
    create_dataset(config, 8, create_mesh(), AugmentConfig())


@pytest.mark.parametrize(
  ("rows", "missing"),
  [
    ("0.png,cat,train 1.png,dog,train 2.png,cat,val 3.png,brid,val", "'brid' among"),
    ("0.png,0,train 1.png,7,train 2.png,0,val", "'1', '2', '3' and 3 more among"),
    ("0.png,1,train 1.png,2,train 2.png,1,val", "'0' among its 3 classes"),
  ],
)
def test_a_class_without_training_images_is_refused(tmp_path, rows, missing):
  table = tmp_path / "list.csv"
  table.write_text("path,label,split\n" + rows.replace(" ", "\n"))
  config = DataConfig(name="folder", dir=str(table), train_crop="random", eval_crop=8)
  with pytest.raises(UserError, match=f"has no training image of {missing}"):
    create_dataset(config, 8, create_mesh(), AugmentConfig())
  create_dataset(config, 8, create_mesh())  # Evaluation may have only some classes.


def test_a_folder_without_images_is_refused_in_training_only(tmp_path, capsys):
  for split, name in itertools.product(("train", "val"), ("a", "b", "notes")):
    (tmp_path / split / name).mkdir(parents=True)
    suffix = "txt" if name == "notes" else "jpg"
    (tmp_path / split / name / f"1.{suffix}").touch()
  options = {"train_crop": "random", "eval_crop": 8}
  config = DataConfig(name="folder", dir=str(tmp_path), **options)
  with pytest.raises(UserError, match=r"image of 'notes' .*: add images, remove the"):
    create_dataset(config, 8, create_mesh(), AugmentConfig())
  capsys.readouterr()
  create_dataset(config, 8, create_mesh())
  err = capsys.readouterr().err
  assert err.endswith(": 1 .txt, the folder 'notes', which has no images\n")
  # Weights that were not trained here may order the classes differently.
  files = opening.open_source(config, "val")
  paired = pair_classes(files, ["c", "b", "a"], 3, "weights", in_order=False)
  assert [paired[i][1] for i in range(2)] == [2, 1]


def test_what_is_left_out_is_said_in_a_line(tmp_path, capsys):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    for suffix in ("jpg", "svg", "SVG"):
      (tmp_path / name / f"1.{suffix}").touch()
  config = DataConfig(name="folder", dir=str(tmp_path))
  opening.open_source(config, "train")
  assert capsys.readouterr().err == f"left out of train in {tmp_path}: 4 .svg\n"


def test_photos_without_a_recipe_are_told_of_one(tmp_path):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    for i in range(9):
      (tmp_path / name / f"{i}.jpg").touch()
  config = DataConfig(name="folder", dir=str(tmp_path))
  with pytest.raises(UserError, match=r"train_crop=''.*--config=finetune_photos"):
    create_dataset(config, 8, create_mesh(), AugmentConfig())
