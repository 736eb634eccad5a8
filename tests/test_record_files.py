"""Hugging Face parquet files and WebDataset tars."""

import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import fake_hub
import jax
import numpy as np
import pytest
from PIL import Image

from resnet_jax.cli.main import main
from resnet_jax.config import Config, DataConfig, ModelConfig
from resnet_jax.config.plan import Plan
from resnet_jax.data import ImageArrays
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.pipelines.opening import create_dataset
from resnet_jax.data.sources import parquet as parquet_files
from resnet_jax.data.sources import webdataset
from resnet_jax.data.sources.opening import open_source
from resnet_jax.data.sources.record_files import find_kind, open_records
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.runtime.mesh import create_mesh
from resnet_jax.training.experiment import Experiment

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ("ant", "bee", "cat")
CLASS = {"_type": "ClassLabel", "names": NAMES}
FEATURES = {"image": {"_type": "Image"}, "label": CLASS}


def encode(image) -> bytes:
  file = io.BytesIO()
  Image.fromarray(image).save(file, "png")
  return file.getvalue()


def make_images(count, seed=0, shape=(12, 12, 3)):
  images = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
  labels = np.sort(np.arange(count) % 3)
  return images, labels


IMAGES, LABELS = make_images(30)
PNGS = [encode(image) for image in IMAGES]


def write_parquet(path, features=FEATURES, rows=7, **columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  names = [f"{i:03}.png" for i in range(len(PNGS))]
  images = [{"bytes": b, "path": n} for b, n in zip(PNGS, names, strict=True)]
  table = pa.table(columns or {"image": images, "label": LABELS})
  if features:
    stored = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": stored})
  pq.write_table(table, path, row_group_size=rows)


def write_tar(path, samples):
  """Writes samples, {suffix: content} each."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for number, sample in enumerate(samples):
      for suffix, content in sample.items():
        member = tarfile.TarInfo(f"{number:03}.{suffix}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def settings(place, kind="parquet", **changes):
  return DataConfig(name=kind, dir=str(place), **{"train_crop": "random"} | changes)


def read(place, split="train", kind="parquet", **changes):
  return open_records(settings(place, kind, **changes), split)


def contents(source):
  return [source[i][0] for i in range(len(source))]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
  return folder


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
  """The same images as a folder, as parquet files and as tars, in the same order."""
  root = tmp_path_factory.mktemp("copies")
  for split in ("train", "test"):
    for number, (png, label) in enumerate(zip(PNGS, LABELS, strict=True)):
      place = root / "folder" / split / NAMES[label]
      place.mkdir(parents=True, exist_ok=True)
      (place / f"{number:03}.png").write_bytes(png)
    write_parquet(root / f"parquet/data/{split}-00000-of-00001.parquet")
    samples = [
      {"png": png, "cls": b"%d" % label}
      for png, label in zip(PNGS, LABELS, strict=True)
    ]
    for shard in range(3):
      part = samples[shard * 10 : shard * 10 + 10]
      write_tar(root / f"webdataset/{split}-{shard:04}.tar", part)
    (root / "webdataset/classes.txt").write_text("\n".join(NAMES))
  return root


def make_batches(place, kind, start):
  """Returns the training batches from a step on, and the images of the evaluation."""
  config = Config(num_steps=6, batch_size=8)
  config.data = settings(
    place, kind, train_crop="random_resized", image_size=8, eval_crop=12
  )
  train = create_dataset(config.data, 8, create_mesh(), augment=config.augment)
  plan = Plan.create(config, train.num_examples)
  batches = [
    jax.device_get(train.take_batch(feed, step))
    for end, feed, count in train.train_chunks(jax.random.key(0), start, plan)
    for step in range(end - count, end)
  ]
  evaluated = create_dataset(config.data, 8, create_mesh())
  images = [np.asarray(feed.batches["image"]) for feed, _ in evaluated.eval_chunks()]
  return batches, np.concatenate(images)


def test_batches_are_those_of_a_folder_also_from_the_middle(copies):
  expected, evaluated = make_batches(copies / "folder", "folder", 0)
  assert len(expected) == 6
  for kind in ("parquet", "webdataset"):
    for start in (0, 4):
      batches, images = make_batches(copies / kind, kind, start)
      jax.tree.map(np.testing.assert_array_equal, batches, expected[start:])
      np.testing.assert_array_equal(images, evaluated)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_images_and_labels_are_those_of_the_files(copies, kind):
  source = read(copies / kind, "test", kind)
  assert find_kind(str(copies / kind)) == kind
  assert contents(source) == PNGS
  assert source.class_names == NAMES
  np.testing.assert_array_equal(source.labels, LABELS)
  assert source.name(12).endswith("012.png" if kind == "parquet" else "002.png")
  again = pickle.loads(pickle.dumps(source))
  assert again[29][0] == PNGS[29]
  assert again.digest == source.digest
  assert read(copies / kind, "test[:5]", kind).digest != source.digest


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_images_of_one_size_are_kept_in_memory_if_they_are_not_cropped(copies, kind):
  source = read(copies / kind, "train[10:20]", kind, train_crop="")
  assert isinstance(source, ImageArrays)
  np.testing.assert_array_equal(source.images, IMAGES[10:20])


def test_grey_images_in_memory_have_one_channel(tmp_path):
  gray, labels = make_images(6, shape=(8, 8))
  rows = [{"bytes": encode(image), "path": None} for image in gray]
  write_parquet(tmp_path / "train.parquet", image=rows, label=labels)
  source = read(tmp_path, "train", train_crop="", val_share=0.01)
  np.testing.assert_array_equal(source.images[..., 0], gray)
  assert source.images.shape[-1] == 1


def test_many_threads_read_the_same_as_one(copies, monkeypatch):
  monkeypatch.setattr(parquet_files, "_CACHE_BYTES", 3000)  # About a group.
  source = read(copies / "parquet")
  order = np.random.default_rng(0).integers(0, 30, 400).tolist()
  with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda i: source[i][0], order))
  assert found == [PNGS[i] for i in order]
  reader = source.reader
  assert reader._cached_bytes == sum(x.nbytes for x in reader._cache.values())
  assert len(reader._cache) < 5


@pytest.mark.parametrize(
  ("files", "splits"),
  [
    (["data/train-00000-of-00001.parquet", "data/val-0.parquet"], "train validation"),
    (["default/train/0000.parquet", "default/test/0000.parquet"], "test train"),
    (["photos_TRAIN_1.parquet", "photos_dev_1.parquet"], "train validation"),
    (["train.parquet", "extra-00000-of-00001.parquet"], "extra train"),
    (["train_extra-0-of-1.parquet", "train-0-of-1.parquet"], "train train_extra"),
    (["train-00000-of-00001-0123456789abcdef.parquet", "eval.parquet"], "test train"),
    (["photos.parquet"], "train val"),
    (["restraint-0.parquet"], "train val"),
  ],
)
def test_splits_are_words_in_the_names(tmp_path, files, splits):
  for file in files:
    write_parquet(tmp_path / file)
  with pytest.raises(UserError, match="there are: ") as error:
    read(tmp_path, "none")
  assert sorted(str(error.value).split("there are: ")[1].split(", ")) == splits.split()


def test_a_set_with_one_split_is_divided_by_class(tmp_path):
  write_parquet(tmp_path / "train-00000-of-00001.parquet")
  parts = {x: read(tmp_path, x, val_share=0.3) for x in ("train", "val", "")}
  assert np.bincount(parts["val"].labels).tolist() == [3, 3, 3]
  assert sorted(contents(parts["train"]) + contents(parts["val"])) == sorted(PNGS)
  assert contents(parts[""]) == contents(parts["val"])
  assert len(read(tmp_path, "", val_share=1.0)) == 30


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_set_with_only_a_split_for_evaluation_is_not_divided(tmp_path, split):
  write_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
  assert len(read(tmp_path, "")) == len(read(tmp_path, split)) == 30
  assert "'train' is not in" in text_of(tmp_path, "parquet")


TEXTS = [NAMES[label] for label in LABELS]
IMAGE_COLUMN = [{"bytes": png, "path": None} for png in PNGS]


def test_classes_in_another_order_are_paired_by_name(tmp_path):
  write_parquet(tmp_path / "train.parquet")
  names = ["cat", "ant", "bee"]
  turned = FEATURES | {"label": CLASS | {"names": names}}
  stored = [names.index(text) for text in TEXTS]
  columns = {"image": IMAGE_COLUMN, "label": stored}
  write_parquet(tmp_path / "test.parquet", features=turned, **columns)
  data = settings(tmp_path, train_crop="random_resized", image_size=8, eval_crop=8)
  config = Config(batch_size=8, data=data, model=ModelConfig(name="resnet20"))
  experiment = Experiment.create(config)
  assert experiment.train_data.class_names == NAMES
  feeds = [feed.batches["label"] for feed, _ in experiment.eval_data.eval_chunks()]
  np.testing.assert_array_equal(np.concatenate(feeds).ravel()[:30], LABELS)
  with pytest.raises(UserError, match="'dog' is none of the 3 classes 'ant', 'bee'"):
    names[0] = "dog"
    turned = FEATURES | {"label": CLASS | {"names": names}}
    write_parquet(tmp_path / "test.parquet", features=turned, **columns)
    open_records(data, "test", NAMES)
  with pytest.raises(UserError, match="two of them are called 'cat'"):
    open_records(data, "test", ("cat", "cat", "bee"))


def test_files_of_a_split_must_have_the_same_classes_and_columns(tmp_path):
  write_parquet(tmp_path / "train-0.parquet")
  other = FEATURES | {"label": CLASS | {"names": NAMES[::-1]}}
  write_parquet(tmp_path / "train-1.parquet", features=other)
  assert "train-1.parquet' has other class names" in text_of(tmp_path, "parquet")
  write_parquet(tmp_path / "train-1.parquet", img=PNGS, label=LABELS)
  assert "train-1.parquet' has other columns" in text_of(tmp_path, "parquet")


def test_words_that_are_numbers_are_sorted_by_size(tmp_path):
  texts = [str(i % 12) for i in range(30)]
  write_parquet(tmp_path / "train.parquet", features={}, image=PNGS, label=texts)
  source = read(tmp_path, val_share=0.01)
  assert source.class_names == tuple(map(str, range(12)))
  samples = [{"png": PNGS[0], "cls": text.encode()} for text in ("1", "0", "A")]
  write_tar(tmp_path / "tar/train-0.tar", samples)
  source = read(tmp_path / "tar", kind="webdataset", val_share=0.01)
  assert source.class_names == ("0", "1", "A")
  assert source.labels.tolist() == [1, 0, 2]


def test_class_names_of_tars_may_be_above_the_folders_of_the_splits(tmp_path):
  write_tar(tmp_path / "train/0.tar", [{"png": PNGS[0], "cls": b"0"}])
  (tmp_path / "classes.txt").write_text("ant\nbee\n\n")
  assert read(tmp_path, kind="webdataset", val_share=0.01).class_names == NAMES[:2]
  (tmp_path / "classes.txt").write_text("ant\n\nbee")
  assert "classes.txt', line 2 is empty" in text_of(tmp_path, "webdataset")


def test_other_images_have_another_digest(tmp_path):
  digests = set()
  for images in (PNGS, [PNGS[0] + b"0", *PNGS[1:]]):
    write_parquet(tmp_path / "train.parquet", features={}, image=images, label=LABELS)
    samples = [{"png": image, "cls": b"0"} for image in images]
    write_tar(tmp_path / "tar/train-0.tar", samples)
    digests.add(read(tmp_path).digest)
    digests.add(read(tmp_path / "tar", kind="webdataset").digest)
  assert len(digests) == 4


@pytest.mark.parametrize(
  ("column", "features"),
  [
    ({"label": LABELS}, FEATURES),
    ({"label": TEXTS}, {}),
    ({"fine_label": LABELS, "coarse_label": LABELS * 0}, {"fine_label": CLASS}),
    ({"kind": LABELS, "number": LABELS * 0}, {"kind": CLASS}),
  ],
)
def test_labels_are_found(tmp_path, column, features):
  images = [{"bytes": png, "path": None} for png in PNGS]
  write_parquet(tmp_path / "train.parquet", features=features, image=images, **column)
  source = read(tmp_path, "train", val_share=0.01)
  assert source.class_names == NAMES
  np.testing.assert_array_equal(source.labels, LABELS)


def test_labels_may_be_several_classes_or_numbers(tmp_path):
  several = [[0], [], [2, 0]] * 10
  sets = {"_type": "List", "feature": CLASS}
  columns = {"img": PNGS, "labels": several, "value": np.arange(30) / 4}
  write_parquet(tmp_path / "train.parquet", features={"labels": sets}, **columns)
  source = read(tmp_path, labels="classes", val_share=0.01)
  expected = [[1, 0, 0], [0, 0, 0], [1, 0, 1]] * 10
  np.testing.assert_array_equal(source.labels, np.array(expected, bool))
  source = read(tmp_path, labels="numbers", label_column="value", val_share=0.01)
  np.testing.assert_array_equal(source.labels[:, 0], np.arange(30) / 4)
  assert source.class_names == ("value",)


@pytest.mark.parametrize(
  ("sample", "changes", "label"),
  [
    ({"cls": b"2\n"}, {}, 2),
    ({"txt": b"cat"}, {"class_names": NAMES}, 2),
    ({"json": b'{"label": 2, "width": 5}'}, {}, 2),
    ({"json": b'{"a": 1, "species": 2}'}, {"label_column": "species"}, 2),
    ({"cls": b"1", "kind.txt": b"2"}, {"label_column": "kind.txt"}, 2),
    ({"seg.png": PNGS[0], "cls": b"2"}, {"image_column": ".PNG"}, 2),
    ({"cls": b"1", "json": b'{"Species": 2}'}, {"label_column": "Species"}, 2),
  ],
)
def test_labels_of_tars(tmp_path, sample, changes, label):
  write_tar(tmp_path / "train-0.tar", [{"png": PNGS[1]} | sample] * 3)
  names = changes.pop("class_names", ())
  config = settings(tmp_path, "webdataset", val_share=0.01, **changes)
  source = open_records(config, "train", names)
  assert source[0] == (PNGS[1], label)


def test_the_index_of_a_tar_is_written_once_and_again_if_the_tar_changes(
  copies, cache, tmp_path, monkeypatch
):
  place = tmp_path / "train-0.tar"
  write_tar(place, [{"png": PNGS[0], "cls": b"a"}])
  first = read(tmp_path, kind="webdataset", val_share=0.01)
  (index,) = (cache / "resnet_jax/tar_indexes").iterdir()
  with monkeypatch.context() as patch:
    patch.setattr("tarfile.open", None)
    assert contents(read(tmp_path, kind="webdataset", val_share=0.01)) == [PNGS[0]]
  index.write_text("[1")  # Damaged.
  assert contents(read(tmp_path, kind="webdataset", val_share=0.01)) == [PNGS[0]]
  write_tar(place, [{"png": PNGS[1], "cls": b"a"}, {"png": PNGS[2], "cls": b"b"}])
  changed = read(tmp_path, kind="webdataset", val_share=0.01)
  assert contents(changed) == PNGS[1:3]
  assert changed.class_names == ("a", "b")
  place.write_bytes(place.read_bytes()[:600])
  with pytest.raises(ImageError):
    changed[1]
  assert len(first) == 1


def text_of(place, kind, split="train", **changes):
  with pytest.raises(UserError) as error:
    read(place, split, kind, **changes)
  text = str(error.value)
  assert "\n" not in text
  return text


@pytest.mark.parametrize(
  ("samples", "text"),
  [
    ([{"png": PNGS[0]}], "must have a label"),
    ([{"cls": b"1"}], "must have one image"),
    ([{"png": PNGS[0], "jpg": PNGS[0], "cls": b"1"}], "must have one image"),
    ([{"png": PNGS[0], "json": b"{"}], "has no label"),
    ([{"png": PNGS[0], "json": b'{"width": 3}'}], "has no label"),
    ([{"png": PNGS[0], "json": b"[" * 99_999}], "has no label"),
    ([{"png": PNGS[0], "cls": b"\xff"}], "has no label"),
    ([{"png": PNGS[0], "cls": b"x" * 2**20 + b"x"}], "too many for a label"),
    ([{"png": PNGS[0], "cls": b"-1"}], "has no label"),
    ([], "has no files"),
  ],
)
def test_wrong_tars_are_refused(tmp_path, samples, text):
  write_tar(tmp_path / "train-0.tar", samples)
  assert text in text_of(tmp_path, "webdataset")


def test_a_tar_that_is_compressed_or_damaged_is_refused(tmp_path, copies):
  whole = (copies / "webdataset/train-0000.tar").read_bytes()
  (tmp_path / "train-0.tar").write_bytes(whole[:5000])
  assert "download or write it again" in text_of(tmp_path, "webdataset")
  with tarfile.open(tmp_path / "train-0.tar", "w:gz") as archive:
    archive.add(__file__)
  assert "without compression" in text_of(tmp_path, "webdataset")


@pytest.mark.parametrize(
  ("columns", "changes", "text"),
  [
    ({"image": PNGS, "kind": LABELS}, {}, "no one column of labels"),
    ({"a": PNGS, "b": PNGS, "label": LABELS}, {}, "no one column of images"),
    ({"image": LABELS, "label": LABELS}, {}, "no column of images among image (int64)"),
    ({"image": [[png] for png in PNGS], "label": LABELS}, {}, "image (list<"),
    ({"image": [{"bytes": "x"}] * 30, "label": LABELS}, {}, "image (struct<bytes: str"),
    ({"x": [{"image": {"bytes": PNGS[0]}}] * 30, "label": LABELS}, {}, "x (struct<ima"),
    ({"image": PNGS, "label": LABELS}, {"label_column": "x"}, "no column 'x'"),
    ({"image": PNGS, "label": LABELS}, {"image_column": "label"}, "label (int64)"),
    ({"image": PNGS, "label": LABELS - 1}, {}, "has no label"),
    ({"image": PNGS, "label": LABELS / 2}, {}, "no class index, which must be an int"),
    ({"image": PNGS, "label": [{"a": 1}] * 30}, {}, "is of the type dict"),
    ({"image": PNGS, "label": [[{"a": 1}]] * 30}, {"labels": "classes"}, "type dict"),
    ({"image": PNGS, "label": [[1]] * 30}, {}, "labels=classes"),
    ({"image": PNGS, "label": LABELS}, {"labels": "classes"}, "labels=class takes"),
    ({"image": PNGS, "label": TEXTS}, {"labels": "numbers"}, "finite number"),
  ],
)
def test_wrong_parquet_files_are_refused(tmp_path, columns, changes, text):
  write_parquet(tmp_path / "train.parquet", features={}, **columns)
  assert text in text_of(tmp_path, "parquet", **changes)


def sparse(archive, name):
  member = tarfile.TarInfo(name)
  member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
  archive.addfile(member)


def link(archive, name):
  member = tarfile.TarInfo(name)
  member.type, member.linkname = tarfile.LNKTYPE, "000.png"
  archive.addfile(member)


@pytest.mark.parametrize(
  ("add", "text"),
  [
    (sparse, "has '001.png', which is a sparse file; write"),
    (link, "has '001.png', which is a link; write"),
    (lambda archive, _: add_file(archive, "000.PNG"), "two files of the suffix 'png'"),
  ],
)
def test_members_of_a_tar_that_have_no_content_of_their_own_are_refused(
  tmp_path, add, text
):
  with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
    add_file(archive, "000.cls", b"0")
    add_file(archive, "000.png")
    add(archive, "001.png")
  found = text_of(tmp_path, "webdataset")
  assert "train-0.tar'" in found
  assert text in found


def add_file(archive, name, content=PNGS[0]):
  member = tarfile.TarInfo(name)
  member.size = len(content)
  archive.addfile(member, io.BytesIO(content))


def test_a_check_of_tars_names_its_own_flags(tmp_path, capsys):
  write_tar(tmp_path / "train-0.tar", [{"png": PNGS[0]}])
  with pytest.raises(SystemExit):
    main(["data", "check", str(tmp_path)])
  assert "; --label-column names the suffix\n" in capsys.readouterr().err


def test_a_tar_that_goes_on_after_its_end_is_refused(tmp_path):
  place = tmp_path / "train-0.tar"
  write_tar(place, [{"cls": b"0", "png": png} for png in PNGS[:3]])
  whole = place.read_bytes()
  at = whole.index(b"001.cls")
  for damaged, end in (
    (whole[:at] + b"X" + whole[at + 1 :], f"{at:,}"),  # The checksum is wrong.
    (whole + whole, ""),
  ):
    place.write_bytes(damaged)
    text = text_of(tmp_path, "webdataset")
    assert f"train-0.tar' is damaged at byte {end}" in text
  place.write_bytes(whole + bytes(5 * 512))
  assert len(read(tmp_path, kind="webdataset", val_share=0.01)) == 3


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
@pytest.mark.parametrize("bad", ["text", "nothing"])
def test_an_unreadable_image_is_named_even_without_a_crop(tmp_path, kind, bad):
  images = [PNGS[0], b"no image", PNGS[2]]
  name = "train.tar/001.png"
  if kind == "parquet":
    rows = [{"bytes": x, "path": f"{i}.png"} for i, x in enumerate(images)]
    rows[1]["bytes"] = None if bad == "nothing" else rows[1]["bytes"]
    write_parquet(tmp_path / "train.parquet", image=rows, label=[0, 1, 2])
    name = "train.parquet/1.png"
  else:
    samples = [{"cls": b"%d" % i, "png": x} for i, x in enumerate(images)]
    if bad == "nothing":
      samples[1]["png"] = b""
    write_tar(tmp_path / "train.tar", samples)
  with pytest.raises(UserError, match=f"^{name}: it "):
    read(tmp_path, "train[:3]", kind, train_crop="", val_share=0.01)


def test_images_in_memory_have_the_channels_and_the_range_that_are_asked_for(tmp_path):
  values = np.random.default_rng(0).integers(0, 4096, (6, 8, 8), np.uint16)
  rows = [{"bytes": encode(image), "path": None} for image in values]
  for split in ("train", "test"):
    columns = {"image": rows, "label": np.arange(6) % 3}
    write_parquet(tmp_path / f"{split}.parquet", **columns)
  config = settings(tmp_path, train_crop="", channels=1, max_value=4095)
  found = open_source(config, "train").images
  expected = np.rint(values.astype(float) * 65535 / 4095)
  np.testing.assert_array_equal(found[..., 0], expected)
  data = create_dataset(config, 2, create_mesh(jax.devices()[:1]))
  assert data.image_shape == (8, 8, 1)


def test_missing_damaged_and_mixed_files_are_refused(tmp_path):
  with pytest.raises(NotFoundError, match=r"no config\.data\.dir"):
    read(tmp_path / "none")
  with pytest.raises(NotFoundError, match=r"has no \.parquet files"):
    read(tmp_path)
  write_parquet(tmp_path / "a/train-00000-of-00002.parquet")
  assert "is incomplete: of the 2 files" in text_of(tmp_path, "parquet")
  write_parquet(tmp_path / "b/train-0.parquet")
  assert "in the folders a, b" in text_of(tmp_path, "parquet")
  for folder in ("a", "b"):
    write_parquet(tmp_path / f"e/{folder}/train/0.parquet")
  assert "in the folders a, b," in text_of(tmp_path / "e", "parquet")
  for name in ("train-0", "train_extra-0"):
    write_parquet(tmp_path / f"f/{name}.parquet")
  text = text_of(tmp_path / "f", "parquet")
  assert "with the names train, train_extra, which may be different" in text
  write_parquet(tmp_path / "g/train.parquet", image=pa.array([], "binary"), label=[])
  assert "has no images" in text_of(tmp_path / "g", "parquet")
  assert "no config.data.dir=''" in text_of("", "parquet")
  write_parquet(tmp_path / "f/one/train.parquet")
  assert "Error parsing split 'train['" in text_of(
    tmp_path / "f/one", "parquet", "train["
  )
  (tmp_path / "c").mkdir()
  (tmp_path / "c/train.parquet").write_bytes(b"PAR1")
  assert "download or write it again" in text_of(tmp_path / "c", "parquet")


def test_an_image_that_is_not_in_its_file_is_an_image_error(tmp_path):
  rows = [{"bytes": None, "path": "elsewhere.png"}, *IMAGE_COLUMN[1:]]
  write_parquet(tmp_path / "train.parquet", image=rows, label=LABELS)
  source = read(tmp_path, val_share=0.01)
  with pytest.raises(ImageError, match="it has no bytes"):
    source[0]
  assert source[1][0] == PNGS[1]


def test_cifar10_is_read_from_parquet_files_by_its_name(tmp_path, capsys):
  for split in ("train", "test"):
    write_parquet(tmp_path / f"plain_text/{split}-00000-of-00001.parquet")
  config = DataConfig(name="cifar10", dir=str(tmp_path), train_split="train[:20]")
  np.testing.assert_array_equal(open_source(config, "train[:20]").images, IMAGES[:20])
  assert len(open_source(config, "")) == 30
  with pytest.raises(SystemExit):  # The splits have the same images.
    main(["data", "check", str(tmp_path), "--json"])
  report = json.loads(capsys.readouterr().out)
  assert report["splits"]["train"]["classes"] == dict.fromkeys(NAMES, 10)


def test_a_named_set_is_not_read_from_files_of_another(tmp_path):
  write_parquet(tmp_path / "pets/train-00000-of-00001.parquet")
  with pytest.raises(NotFoundError, match="no data set 'cifar10'"):
    open_source(settings(tmp_path, "cifar10"), "train")
  write_parquet(tmp_path / "data/train-00000-of-00001.parquet")
  (tmp_path / "data").rename(tmp_path / "elsewhere")
  (tmp_path / "data").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
  assert len(open_source(settings(tmp_path, "cifar10"), "train[:7]")) == 7
  (tmp_path / "cifar10/3.0.2").mkdir(parents=True)
  (tmp_path / "cifar10/3.0.2/dataset_info.json").write_text("{}")
  with pytest.raises(UserError, match="cifar10"):  # It is damaged.
    open_source(settings(tmp_path, "cifar10"), "train")


def test_class_folders_are_found_beside_archives(tmp_path):
  write_tar(tmp_path / "ILSVRC2012_img_train.tar", [])
  write_parquet(tmp_path / "meta/labels.parquet")
  assert find_kind(str(tmp_path)) == "parquet"
  for name in NAMES:
    (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "train" / name / "0.png").write_bytes(PNGS[0])
  assert find_kind(str(tmp_path)) == ""


@pytest.mark.parametrize(
  ("place", "text"),
  [
    ("", "for its .parquet files, set config.data.name=parquet"),
    ("hf://owner/pets", "written hf://datasets/owner/pets, with"),
    (
      "https://huggingface.co/datasets/owner/pets/tree/main",
      "hf://datasets/owner/pets,",
    ),
  ],
)
def test_a_set_that_is_no_folder_is_refused_with_the_right_name(tmp_path, place, text):
  write_parquet(tmp_path / "train.parquet")
  with pytest.raises(UserError) as error:
    open_source(settings(place or tmp_path, "folder"), "train")
  assert text in str(error.value)


def test_a_check_goes_on_without_the_splits_that_have_no_labels(tmp_path, capsys):
  write_parquet(tmp_path / "train.parquet")
  columns = {"image": PNGS, "label": LABELS * 0 - 1}
  write_parquet(tmp_path / "test.parquet", **columns)
  main(["data", "check", str(tmp_path), "--json"])
  report = json.loads(capsys.readouterr().out)
  assert report["skipped"] == {"test": "its images have no labels"}


def test_tars_are_read_without_a_home_folder(copies, monkeypatch):
  monkeypatch.setattr(webdataset, "cache_dir", raise_runtime_error)
  assert contents(read(copies / "webdataset", kind="webdataset")) == PNGS


def raise_runtime_error():
  raise RuntimeError


@pytest.fixture
def hub(monkeypatch, tmp_path):
  import huggingface_hub.constants

  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  with fake_hub.running() as server:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    url = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    yield server


def test_a_data_set_of_the_hub_is_read_from_its_cache(hub, copies, monkeypatch):
  file = copies / "parquet/data/train-00000-of-00001.parquet"
  branch = "datasets/owner/pets", "main"
  hub.files[branch] = {"data/train-00000-of-00001.parquet": file.read_bytes()}
  name = "hf://datasets/owner/pets"
  source = read(name, "train", val_share=0.01)
  assert contents(source) == PNGS
  hub.files[branch] = {}
  hub.files["datasets/owner/pets", "refs/convert/parquet"] = {
    "default/train/0000.parquet": file.read_bytes()
  }
  assert contents(read(name, "train", val_share=0.01)) == PNGS
  for place in (f"{name}/default", f"{name}/default/train/0000.parquet"):
    assert contents(read(place, "train", val_share=0.01)) == PNGS
  assert len(read(f"{name}@refs/convert/parquet/default", "train[:2]")) == 2
  for wrong, text in (
    ("hf://datasets/owner", "must be hf://datasets/owner/name"),
    ("hf://datasets/owner/none", "was not found"),
    (f"{name}/other", "has no .parquet files"),
  ):
    with pytest.raises(UserError, match=text):
      read(wrong)


def test_without_the_hub_its_cache_is_read_and_its_list_of_files_is_known(
  hub, copies, monkeypatch
):
  file = (copies / "parquet/data/train-00000-of-00001.parquet").read_bytes()
  branch = "datasets/owner/pets", "main"
  hub.files[branch] = {f"data/{x}-0-of-1.parquet": file for x in ("train", "test")}
  name = "hf://datasets/owner/pets"
  online = read(name, "train")
  monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
  offline = read(name, "train")
  assert contents(offline) == contents(online) == PNGS
  assert offline.digest == online.digest
  assert "its cache here does not have the files" in text_of(name, "parquet", "test")
