"""`resnet-jax data prepare`: archives of well-known sets become parquet files."""

import gzip
import hashlib
import io
import json
import os
import re
import shlex
import signal
import tarfile
import time
from pathlib import Path

import archive_writer
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from archive_writer import SIZES, SYNSETS
from PIL import Image

from resnet_jax.cli.main import main
from resnet_jax.cli.settings import load_config
from resnet_jax.config import DataConfig
from resnet_jax.data.archives import imagenet_tars, parquet_writer
from resnet_jax.data.archives.known_sets import KNOWN_SETS
from resnet_jax.data.archives.rows import Row, Split
from resnet_jax.data.sources import cifar, opening

WRITERS = {
  "cifar10 python": lambda d: archive_writer.write_cifar(d, "cifar10", "python"),
  "cifar10 binary": lambda d: archive_writer.write_cifar(d, "cifar10", "binary"),
  "cifar100 python": lambda d: archive_writer.write_cifar(d, "cifar100", "python"),
  "cifar100 binary": lambda d: archive_writer.write_cifar(d, "cifar100", "binary"),
  "mnist": lambda d: archive_writer.write_idx(d, packed=True),
  "fashion_mnist unpacked": lambda d: archive_writer.write_idx(d, packed=False),
  "svhn": lambda d: archive_writer.write_svhn(d, ("train", "test", "extra")),
  "stl10": archive_writer.write_stl10,
  "tiny_imagenet": archive_writer.write_tiny_imagenet,
  "imagenet": archive_writer.write_imagenet,
}
NAMES = {
  "mnist": tuple("0123456789"),
  "svhn": tuple("0123456789"),
  "tiny_imagenet": ("cat, tom", "n00000002", "dog"),
  "imagenet": SYNSETS,
}
PARTS = {name: known.parts for name, known in KNOWN_SETS.items()}


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
  monkeypatch.setattr(cifar, "NUM_IMAGES", {s: SIZES[s] for s in ("train", "test")})
  monkeypatch.setattr(imagenet_tars, "_NUM_CLASSES", len(SYNSETS))
  for name, known in KNOWN_SETS.items():
    small = known._replace(splits={split: SIZES[split] for split in known.splits})
    monkeypatch.setitem(KNOWN_SETS, name, small)


@pytest.fixture
def publish(monkeypatch):
  """Returns a function that makes the files of a folder the published ones."""

  def run(name: str, folder: Path) -> None:
    known = KNOWN_SETS[name]
    sums = {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in folder.iterdir()
    }
    parts = {
      part: {file: sums.get(file, "") for file in choices}
      for part, choices in known.parts.items()
    }
    monkeypatch.setitem(KNOWN_SETS, name, known._replace(parts=parts))

  return run


@pytest.fixture
def mnist(tmp_path, publish) -> Path:
  """A folder with the files of a small MNIST."""
  folder = tmp_path / "in"
  folder.mkdir()
  archive_writer.write_idx(folder, packed=True)
  publish("mnist", folder)
  return folder


def run(capsys, *argv) -> tuple[int, str]:
  """Returns the exit status, and what was printed."""
  try:
    main(["data", "prepare", *map(str, argv)])
    status = 0
  except SystemExit as stop:
    status = int(stop.code or 0)
  out, err = capsys.readouterr()
  return status, out + err


def read(folder: Path, split: str) -> pa.Table:
  return pyarrow.parquet.read_table(sorted((folder / "data").glob(f"{split}-*")))


@pytest.mark.parametrize("case", WRITERS)
def test_images_labels_and_class_names_are_those_of_the_archive(
  tmp_path, publish, capsys, case
):
  name = case.split()[0]
  folder, out = tmp_path / "in", tmp_path / "out"
  folder.mkdir()
  found = WRITERS[case](folder)
  publish(name, folder)
  status, text = run(capsys, name, "--from", folder, "--out", out)
  assert status == 0, text
  total = sum(len(labels) for _, labels in found.values())
  assert f"{total} images (" in text
  files = {path.name for path in (out / "data").iterdir()}
  assert files == {f"{split}-00000-of-00001.parquet" for split in found}
  for split, (images, labels) in found.items():
    table = read(out, split)
    assert table["label"].to_pylist() == labels.tolist()
    for row, image in zip(table["image"].to_pylist(), images, strict=True):
      if isinstance(image, bytes):
        assert row["bytes"] == image
        assert row["path"].endswith(".JPEG")
      else:
        decoded = Image.open(io.BytesIO(row["bytes"]))
        assert decoded.mode == ("L" if image.ndim == 2 else "RGB")
        np.testing.assert_array_equal(decoded, image)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"]["_type"] == "ClassLabel"
    names = tuple(features["label"]["names"])
    assert len(names) > max(labels)
    assert names == NAMES.get(name, names)
    source = opening.open_source(
      DataConfig(name="parquet", dir=str(out), train_crop="random"), split
    )
    assert source.class_names == names
    np.testing.assert_array_equal(source.labels, labels)
  # The printed command reads these images.
  *_, config_flag, rest = re.search(r"(resnet-jax) (train) (\S+) (.*)", text).groups()
  flags = shlex.split(rest.replace("--workdir=RUN", ""))
  config = load_config(config_flag.removeprefix("--config="), flags)
  counts = {kind: n for kind, (n, _) in opening.check_data(config.data).items()}
  assert counts == {
    "training": SIZES["train"],
    "evaluation": SIZES[config.data.eval_split or "test"],
  }
  lines = (out / "SHA256SUMS").read_text().splitlines()
  assert sum(line.startswith("# made from ") for line in lines) == len(
    [*folder.iterdir()]
  )
  for line in lines:
    if not line.startswith("#"):
      digest, path = line.split("  ")
      assert hashlib.sha256((out / path).read_bytes()).hexdigest() == digest


def test_prepared_cifar_trains_as_its_archive(tmp_path, publish, capsys):
  archive_writer.write_cifar(tmp_path, "cifar10", "python")
  publish("cifar10", tmp_path)
  path, out = tmp_path / "cifar-10-python.tar.gz", tmp_path / "out"
  assert run(capsys, "cifar10", "--from", path, "--out", out)[0] == 0
  for split in ("train", "test"):
    one, other = (
      opening.open_source(DataConfig(name="cifar10", dir=str(place)), split)
      for place in (path, out)
    )
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.class_names == other.class_names


def test_hugging_face_reads_the_folder(tmp_path, mnist, capsys):
  datasets = pytest.importorskip("datasets")
  run(capsys, "mnist", "--from", mnist, "--out", tmp_path / "out")
  found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "c"))
  images, labels = archive_writer.pixels("test", (28, 28), 10)
  np.testing.assert_array_equal(found["test"][3]["image"], images[3])
  assert found["test"]["label"] == labels.tolist()
  assert found["train"].features["label"].names == [*"0123456789"]


def test_every_published_sum_is_one():
  sums = [
    s for parts in PARTS.values() for part in parts.values() for s in part.values()
  ]
  assert all(len(bytes.fromhex(s)) == 32 for s in sums if s)
  assert sum(not s for s in sums) == 4  # Fashion-MNIST, unpacked.


def test_groups_and_files_are_small(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet_writer, "_FILE_BYTES", 3 * 2**20)
  sizes = [10] * 250 + [400_000] * 7 + [2_000_000] + [600_000] * 2
  rows = [Row(bytes([i % 256]) * n, i % 2, f"{i}.jpg") for i, n in enumerate(sizes)]
  parquet_writer.write_split(Split(("a", "b"), iter(rows)), "train", tmp_path)
  paths = sorted(tmp_path.iterdir())
  assert [path.name for path in paths] == [
    f"train-{i:05}-of-00002.parquet" for i in (0, 1)
  ]
  table = pyarrow.parquet.read_table(paths)
  images = [(row["bytes"], row["path"]) for row in table["image"].to_pylist()]
  assert images == [(row.image, row.name) for row in rows]
  counts = []
  for path in paths:
    metadata = pyarrow.parquet.ParquetFile(path).metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert all(
      group.column(i).compression == "UNCOMPRESSED"
      for group in groups
      for i in (0, 1, 2)
    )
    counts.append([group.num_rows for group in groups])
  assert counts == [[100, 100, 52, 2, 2, 1, 1], [1, 1]]


def test_a_missing_part_of_a_split_that_is_optional_is_said(tmp_path, publish, capsys):
  archive_writer.write_imagenet(tmp_path)
  publish("imagenet", tmp_path)
  names = "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
  out = tmp_path / "out"
  files = [tmp_path / name for name in names]
  status, text = run(capsys, "imagenet", "--from", *files, "--out", out)
  assert (status, "left out: the split train\n" in text) == (0, True)
  assert "resnet-jax train" not in text  # There are no images to train on.
  assert [path.name for path in (out / "data").iterdir()] == [
    "validation-00000-of-00001.parquet"
  ]


@pytest.mark.parametrize("path", ["x", "x/y", "out"])
def test_the_default_folder_and_new_or_empty_ones_are_written(
  tmp_path, mnist, capsys, monkeypatch, path
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "out").mkdir()
  status, text = run(capsys, "mnist", "--from", mnist, "--out", path)
  assert (status, f"-> {path}\n" in text) == (0, True)
  assert f"--config.data.dir={path} --workdir=RUN" in text
  assert (tmp_path / path / "SHA256SUMS").exists()
  assert run(capsys, "mnist", "--from", mnist)[0] == 0
  assert (tmp_path / "mnist" / "SHA256SUMS").exists()


def damage(path: Path, change) -> None:
  path.write_bytes(change(path.read_bytes()))


def test_a_file_with_another_sum_is_refused(tmp_path, mnist, capsys):
  path = mnist / "train-images-idx3-ubyte.gz"
  damage(path, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
  status, text = run(capsys, "mnist", "--from", mnist, "--out", tmp_path / "out")
  assert status == 2
  assert text.startswith(f"error: '{path}' is damaged, or another file: its SHA-256")
  assert text.endswith(f"download it again from {KNOWN_SETS['mnist'].url}\n")
  assert [*tmp_path.iterdir()] == [mnist]


def repack(name: str, change):
  """Returns a change of a file in a tar archive."""

  def run(data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
      files = {m.name: archive.extractfile(m).read() for m in archive}
    files[name] = change(files[name])
    return archive_writer.tar(files)

  return run


@pytest.mark.parametrize(
  ("case", "file", "change", "message"),
  [
    (
      "mnist",
      "train-images-idx3-ubyte.gz",
      lambda d: d[:500],
      "it cannot be read (Com",
    ),
    (
      "mnist",
      "train-images-idx3-ubyte.gz",
      lambda d: b"<html>",
      "it cannot be read (N",
    ),
    (
      "mnist",
      "train-labels-idx1-ubyte.gz",
      lambda d: gzip.compress(gzip.decompress(d)[:-1]),
      "it does not have the 10 items of its header",
    ),
    (
      "mnist",
      "train-labels-idx1-ubyte.gz",
      lambda d: gzip.compress(b"\0\0\x08\x01\xff\xff\xff\xff"),
      "its header states 4,294,967,295 items",
    ),
    (
      "mnist",
      "t10k-labels-idx1-ubyte.gz",
      lambda d: gzip.compress(gzip.decompress(d)[:8] + bytes([1, 2, 3, 10])),
      "it has the label 10",
    ),
    ("cifar10 python", "cifar-10-python.tar.gz", lambda d: d[:9999], "as a .tar.gz"),
    ("svhn", "test_32x32.mat", lambda d: d[:200], "it cannot be read"),
    ("stl10", "stl10_binary.tar.gz", lambda d: d[:-5000], "it cannot be read"),
    (
      "stl10",
      "stl10_binary.tar.gz",
      repack("stl10_binary/test_y.bin", lambda d: d[:-1]),
      "test_X.bin has 4 images for 3 labels",
    ),
    (
      "stl10",
      "stl10_binary.tar.gz",
      repack("stl10_binary/test_y.bin", lambda d: bytes(len(d))),
      "image 0 of test has the label -1",
    ),
    ("tiny_imagenet", "tiny-imagenet-200.zip", lambda d: d[:-99], "it cannot be read"),
    (
      "imagenet",
      "ILSVRC2012_img_train.tar",
      lambda d: archive_writer.tar({"../x.tar": b""}),
      "../x.tar is not among its classes",
    ),
    (
      "imagenet",
      "ILSVRC2012_img_val.tar",
      lambda d: archive_writer.tar({"ILSVRC2012_val_00000005.JPEG": b""}),
      "ILSVRC2012_val_00000005.JPEG has no class",
    ),
    (
      "imagenet",
      "ILSVRC2012_img_val.tar",
      lambda d: archive_writer.tar({"ILSVRC2012_val_00000001.JPEG": b""}),
      "validation has 1 images, not 4",
    ),
  ],
)
def test_a_damaged_archive_is_one_line_and_leaves_nothing(
  tmp_path, publish, capsys, case, file, change, message
):
  name, folder = case.split()[0], tmp_path / "in"
  folder.mkdir()
  WRITERS[case](folder)
  damage(folder / file, change)
  publish(name, folder)  # So that the sums do not show the damage.
  status, text = run(capsys, name, "--from", folder, "--out", tmp_path / "out")
  assert status == 2
  assert text.startswith("error: ")
  assert message in text
  assert str(folder / file) in text
  assert text.count("\n") == 1
  assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path, mnist, capsys, monkeypatch, number):
  def interrupt(image):
    os.kill(os.getpid(), number)
    time.sleep(10)

  monkeypatch.setattr(parquet_writer, "encode_png", interrupt)
  (tmp_path / "out").mkdir()
  status, text = run(capsys, "mnist", "--from", mnist, "--out", tmp_path / "out")
  assert (status, text) == (1, "error: interrupted\n")
  assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
  assert not [*(tmp_path / "out").iterdir()]


def test_folders_above_the_new_one_are_removed_after_an_error(tmp_path, mnist, capsys):
  damage(mnist / "train-images-idx3-ubyte.gz", lambda data: data[:-1])
  assert run(capsys, "mnist", "--from", mnist, "--out", tmp_path / "a/b/c")[0] == 2
  assert [*tmp_path.iterdir()] == [mnist]


def test_an_empty_folder_is_filled_and_not_replaced(
  tmp_path, mnist, capsys, monkeypatch
):
  for name in ("here", "target"):
    (tmp_path / name).mkdir()
  (tmp_path / "link").symlink_to("target")
  monkeypatch.chdir(tmp_path / "here")
  for out, place in ((".", "here"), ("../link", "target")):
    node = (tmp_path / place).stat().st_ino
    status, text = run(capsys, "mnist", "--from", mnist, "--out", out)
    assert status == 0, text
    assert {x.name for x in (tmp_path / place).iterdir()} == {"data", "SHA256SUMS"}
    assert (tmp_path / place).stat().st_ino == node


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["minst", "--from", "in"], "NAME='minst' is unknown; did you mean mnist"),
    (["mnist", "--from", "none"], "--from: there is no file or folder 'none'"),
    (
      ["mnist", "--from", "other.gz"],
      "--from 'other.gz' is no file of mnist, which are: train-images-idx3-ubyte.gz, ",
    ),
    (
      ["mnist", "--from", "in/train-images-idx3-ubyte.gz"],
      "--from has no train-labels-idx1-ubyte.gz or train-labels-idx1-ubyte, no t10k-",
    ),
    (
      ["svhn", "--from", "."],
      "--from has no train_32x32.mat, no test_32x32.mat, which",
    ),
    (
      ["mnist", "--from", "in", "--out", "in"],
      "--out 'in' must be a new or an empty f",
    ),
    (["mnist", "--from", "in", "--out", "other.gz"], "--out 'other.gz' must be a new"),
    (["mnist"], "the following arguments are required: --from"),
  ],
)
def test_mistakes_are_one_line(tmp_path, mnist, capsys, monkeypatch, argv, message):
  monkeypatch.chdir(tmp_path)
  Path("other.gz").touch()
  before = sorted(tmp_path.rglob("*"))
  status, text = run(capsys, *argv)
  assert (status, message in text, text.count("\n")) == (2, True, 1), text
  assert sorted(tmp_path.rglob("*")) == before
