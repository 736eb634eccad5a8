"""Lists the files of a folder or table of images, and reads them."""

import os
import pickle
import re
import tempfile
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.data.images import formats
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.pipelines.single_pass import find_images
from resnet_jax.data.sources import file_list
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.data.sources.folder import find_root, list_images, list_splits
from resnet_jax.runtime.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def touch(root: Path, *paths: str) -> None:
  """Writes files whose content is their own path."""
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(path)


def listed(files: FileList) -> list[tuple[str, int]]:
  """Reads files that `touch` wrote."""
  found = (files[i] for i in range(len(files)))
  return [(data.decode(), label) for data, label in found]


def listed_names(files: FileList) -> list[str]:
  return [os.path.basename(files.name(i)) for i in range(len(files))]


def write(folder: Path, text: str | bytes) -> Path:
  path = folder / "table.csv"
  path.write_bytes(text.encode() if isinstance(text, str) else text)
  return path


# Folders


def test_folders_are_listed_as_torchvision_does(tmp_path):
  below = ["z.jpg", "B.JPEG", "sub/a.png", "sub/deep/c.WebP", "sub-1/d.gif", "e.bmp"]
  touch(tmp_path, *(f"train/dog/{name}" for name in below), "train/Cat/1.Jpg")
  touch(tmp_path, "train/dog/.hidden.jpg", "train/dog/.git/x.jpg", "train/dog/a.txt")
  touch(tmp_path, "train/.cache/y.jpg", "train/readme.jpg", "train/dog/jpg")
  files = list_images(tmp_path, "train", 0.1)
  assert files.class_names == ("Cat", "dog")
  # Capitals come first; a folder's own files come before its folders, sorted by path.
  dog = ["B.JPEG", "e.bmp", "z.jpg", "sub/a.png", "sub-1/d.gif", "sub/deep/c.WebP"]
  assert dog == _torchvision_order(tmp_path / "train" / "dog")
  expected = [("train/Cat/1.Jpg", 0), *((f"train/dog/{name}", 1) for name in dog)]
  assert listed(files) == expected
  assert files.labels.dtype == np.int32
  assert files.name(0) == str(tmp_path / "train/Cat/1.Jpg")


def _torchvision_order(folder: Path) -> list[str]:
  """Lists as `torchvision.datasets.folder.make_dataset`, without hidden files."""
  suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
  found = []
  for root, _, names in sorted(os.walk(folder, followlinks=True)):
    for name in sorted(names):
      path = os.path.relpath(os.path.join(root, name), folder)
      hidden = any(part.startswith(".") for part in path.split("/"))
      if path.lower().endswith(suffixes) and not hidden:
        found.append(path)
  return found


def test_val_keeps_the_labels_of_train(tmp_path):
  touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg")
  touch(tmp_path, "val/c/2.jpg", "val/b/2.jpg", "test/c/3.jpg")
  assert list_splits(tmp_path) == ["train", "val", "test"]
  val = list_images(tmp_path, "val", 0.1)
  assert listed(val) == [("val/b/2.jpg", 1), ("val/c/2.jpg", 2)]
  assert val.class_names == ("a", "b", "c")
  # "" is the first split for evaluation; the order of a model's classes has priority.
  files = list_images(tmp_path, "", 0.1, ("c", "x", "b"))
  assert listed(files) == [("val/c/2.jpg", 0), ("val/b/2.jpg", 2)]
  assert files.class_names == ("c", "x", "b")


def test_class_of_val_that_train_has_not_is_refused_by_name(tmp_path):
  touch(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "val/zebra/1.jpg")
  with pytest.raises(ValueError, match=r"val'.*training does not have: zebra"):
    list_images(tmp_path, "val", 0.1)


@pytest.mark.parametrize("name", ["notes.txt", ".x.jpg", "deep/er/readme"])
def test_class_without_images_is_left_out_by_name(tmp_path, name):
  names = "train/a/1.jpg", "train/b/1.jpg", f"train/zebra/{name}", "val/b/1.jpg"
  touch(tmp_path, *names, f"val/other/{name}")
  for split, empty in (("train", "zebra"), ("val", "other")):
    files = list_images(tmp_path, split, 0.1)
    assert files.left_out[-1] == f"the folder {empty!r}, which has no images"
    assert files.class_names == ("a", "b", "zebra")


def test_folders_without_any_image_are_refused(tmp_path):
  touch(tmp_path, "val/a/1.txt", "val/b/1.txt")
  with pytest.raises(UserError, match=r"folder .*val' has no images .* only 2 .txt"):
    list_images(tmp_path, "val", 0.1)


def test_unknown_split_is_told_the_known_ones(tmp_path):
  touch(tmp_path, "train/a/1.jpg", "valid/a/1.jpg")
  with pytest.raises(ValueError, match=r"'test' is not in.*there are: train, valid"):
    list_images(tmp_path, "test", 0.1)


def test_folder_without_classes_is_refused(tmp_path):
  touch(tmp_path, "train/1.jpg")
  with pytest.raises(ValueError, match="must have a folder of images for each class"):
    list_images(tmp_path, "train", 0.1)


def test_no_such_folder_says_what_is_allowed(tmp_path):
  for call in (list_splits, lambda root: list_images(root, "train", 0.1)):
    with pytest.raises(FileNotFoundError, match=r"none'.*each class, or a \.csv file"):
      call(tmp_path / "none")


def test_root_is_named_and_may_begin_with_a_user(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert find_root("~/photos") == Path("/home/me/photos")
  assert find_root("~no_such_user/x") == Path("~no_such_user/x")
  with pytest.raises(ValueError, match=r"config\.data\.dir='' must be a folder or"):
    find_root("")


def test_links_to_folders_do_not_loop(tmp_path):
  touch(tmp_path, "train/a/1.jpg", "elsewhere/2.jpg")
  (tmp_path / "train/a/self").symlink_to(tmp_path / "train/a")
  (tmp_path / "train/a/up.jpg").symlink_to(tmp_path / "train")
  (tmp_path / "train/b").symlink_to(tmp_path / "elsewhere")  # A class may be a link.
  files = list_images(tmp_path, "train", 0.1)
  assert listed(files)[0] == ("train/a/1.jpg", 0)
  assert [files.name(i) for i in range(len(files))] == [
    str(tmp_path / "train" / name) for name in ("a/1.jpg", "b/2.jpg")
  ]


def test_links_to_folders_within_a_class_are_followed(tmp_path):
  touch(tmp_path, "a/1.jpg", "b/1.jpg", "elsewhere/x/2.jpg", "elsewhere/y/3.jpg")
  (tmp_path / "root").mkdir()
  for name in "ab":
    (tmp_path / name).rename(tmp_path / "root" / name)
  (tmp_path / "root/a/more").symlink_to("../../elsewhere")
  (tmp_path / "elsewhere/x/y").symlink_to("../y")
  (tmp_path / "elsewhere/y/x").symlink_to("../x")  # Each folder contains the other.
  files = list_images(tmp_path / "root", "train", 0.1)
  names = [files._relative(i) for i in range(len(files))]
  more = ["x/2.jpg", "x/y/3.jpg", "y/3.jpg", "y/x/2.jpg"]
  assert names == ["a/1.jpg", *(f"a/more/{name}" for name in more), "b/1.jpg"]


def test_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
  touch(tmp_path, "train/a/1.jpg", "train/a/locked/2.jpg")
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith("locked"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(PermissionError, match="locked"):
    list_images(tmp_path, "train", 0.1)


@pytest.mark.parametrize(
  "name",
  [
    *("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found", ".trash"),
    *("@Recycle", "#snapshot", "RECYCLER", "Network Trash Folder", "~snapshot"),
    *("@Recently-Snapshot", "Temporary Items", "__pycache__"),
  ],
)
def test_what_systems_leave_behind_is_no_data(tmp_path, name):
  touch(tmp_path, "cat/1.jpg", "dog/1.jpg", f"{name}/cat/1.jpg", f"cat/{name}/2.jpg")
  files = list_images(tmp_path, "train", 0.1)
  assert listed(files) == [("cat/1.jpg", 0), ("dog/1.jpg", 1)]
  assert files.class_names == ("cat", "dog") and files.left_out == ()


def test_what_is_left_out_is_said(tmp_path):
  touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/a/2.SVG", "train/b/x/3.svg")
  touch(tmp_path, "train/a/4.ppm", "train/b/README", "train/5.jpg", "extra/a/6.jpg")
  touch(tmp_path, "val/a/1.jpg", "train/a/Thumbs.db")
  assert list_images(tmp_path, "train", 0.1).left_out == (
    "1 without a suffix",
    "1 .ppm",
    "2 .svg",
    "1 images outside of the class folders",
    "the folder 'extra'",
  )


@pytest.mark.parametrize("suffix", [".heic", ".HEIC", ".hif"])
def test_photos_that_need_a_package_are_not_left_out_silently(
  tmp_path, monkeypatch, suffix
):
  known = formats.KNOWN["HEIF"]._replace(package="pillow-heif")
  monkeypatch.setitem(formats.KNOWN, "HEIF", known)
  monkeypatch.setattr(file_list, "SUFFIXES", (".jpg",))
  touch(tmp_path, "a/1.jpg", "b/1.jpg", f"a/2{suffix}", f"b/2{suffix}")
  hint = f"2 {suffix.lower()} (`pip install pillow-heif` to read them)"
  assert list_images(tmp_path, "train", 0.1).left_out == (hint,)
  (tmp_path / "a" / "1.jpg").unlink()
  only = f"a' has no images (.jpg), only {hint.replace('2', '1', 1)}; add some or"
  with pytest.raises(UserError, match=re.escape(only)):
    list_images(tmp_path, "train", 0.1)
  with pytest.raises(UserError, match=re.escape(only.removesuffix("add some or"))):
    find_images([str(tmp_path / "a")])
  # As if pillow-heif was installed.
  monkeypatch.setattr(file_list, "SUFFIXES", (".jpg", *known.suffixes))
  assert len(list_images(tmp_path, "train", 0.1)) == 3


# Splits by their folders


def test_names_of_splits_may_have_capitals(tmp_path):
  touch(tmp_path, "Train/a/1.jpg", "Train/b/1.jpg", "VAL/b/2.jpg")
  assert list_splits(tmp_path) == ["train", "val"]
  assert listed(list_images(tmp_path, "train", 0.1))[1] == ("Train/b/1.jpg", 1)
  assert listed(list_images(tmp_path, "", 0.1)) == [("VAL/b/2.jpg", 1)]
  touch(tmp_path, "train/a/1.jpg")
  with pytest.raises(UserError, match="has both Train and train; rename or remove one"):
    list_images(tmp_path, "train", 0.1)


@pytest.mark.parametrize(
  "names",
  [
    ("training_set", "test_set"),
    ("seg_train", "seg_test", "seg_pred"),
    ("part1", "part2"),
    ("2023", "2024", "photos"),
  ],
)
def test_splits_by_other_names_are_no_classes(tmp_path, names):
  for name in names:
    touch(tmp_path, f"{name}/cat/1.jpg", f"{name}/dog/2.jpg")
  with pytest.raises(UserError, match=rf"folders {sorted(names)[0]}, .* look like spl"):
    list_images(tmp_path, "train", 0.1)
  # The settings may name them.
  train, last = (list_images(tmp_path, names[i], 0.1) for i in (0, -1))
  assert listed(train) == [(f"{names[0]}/cat/1.jpg", 0), (f"{names[0]}/dog/2.jpg", 1)]
  assert listed(last)[1] == (f"{names[-1]}/dog/2.jpg", 1)


@pytest.mark.parametrize(
  "paths",
  [
    ["seg_train/seg_train/cat/1.jpg", "seg_test/seg_test/cat/1.jpg"],
    ["train/1.jpg", "test/2.jpg"],
    ["Training/1.jpg"],
  ],
)
def test_splits_without_classes_are_refused(tmp_path, paths):
  touch(tmp_path, *paths)
  with pytest.raises(UserError, match="must have a folder of images for each class"):
    list_images(tmp_path, "train", 0.1)


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_class_may_have_the_name_of_a_split(tmp_path, name):
  touch(tmp_path, "bus/1.jpg", f"{name}/1.jpg", f"{name}/2.jpg", "car/1.jpg")
  files = list_images(tmp_path, "train", 0.5)
  assert files.class_names == tuple(sorted(("bus", "car", name)))
  assert list_splits(tmp_path) == ["train", "val"]


@pytest.mark.parametrize(
  "paths",
  [
    ["cat/1.jpg", "cat/2023/2.jpg", "dog/2023/1.jpg"],
    ["cat/images/1.jpg", "dog/images/1.jpg"],
    ["cat/images/raw/1.jpg", "dog/images/raw/1.jpg"],
    ["cat/2022/1.jpg", "cat/2023/1.jpg", "dog/1.jpg", "dog/2.jpg", "dog/2022/1.jpg"],
    ["cat/day/1.jpg", "dog/test/1.jpg"],
  ],
)
def test_classes_may_have_folders_of_their_own(tmp_path, paths):
  touch(tmp_path, *paths)
  assert list_images(tmp_path, "train", 0.1).class_names == ("cat", "dog")


@pytest.mark.parametrize(
  ("paths", "splits"),
  [
    (["figures/plot.png"], ("test_set", "training_set")),
    (["figures/plot.png", "readme/x.txt"], ("my train", "my test")),
    (["part1/cover.jpg"], ("part1", "part2")),
    (["part1/cover.jpg", "part2/cover.jpg", "zoo/1.jpg"], ("part1", "part2")),
  ],
)
def test_splits_beside_other_images_are_no_classes(tmp_path, paths, splits):
  for split in splits:
    touch(tmp_path, *paths, f"{split}/cat/1.jpg", f"{split}/dog/1.jpg")
  shown = ", ".join(sorted(splits))
  with pytest.raises(UserError, match=f"the folders {shown} in .* look like splits"):
    list_images(tmp_path, "train", 0.1)
  assert list_images(tmp_path, splits[0], 0.1).class_names == ("cat", "dog")


def test_a_split_without_labels_is_seen_beside_one_with_classes(tmp_path):
  touch(tmp_path, "x/1.png", "seg_train/a/1.jpg", "seg_train/b/1.jpg", "seg_pred/1.jpg")
  with pytest.raises(
    UserError, match=r"the folders seg_pred, seg_train in .* look like"
  ):
    list_images(tmp_path, "train", 0.1)


@pytest.mark.parametrize(
  ("link", "target"),
  [
    ("cat/more", "../dog"),
    ("cat/more", "../dog/sub"),
    ("kitty", "cat"),
    ("cat/1.jpg", "../dog/1.jpg"),
    ("cat/2.jpg", "../dog/sub/2.jpg"),
    ("cat/3.jpg", "../../pool/3.jpg"),
    ("cat/other", "../../away"),  # In no other class.
    ("cat/4.jpg", "../../pool/4.jpg"),
    ("cat/5.jpg", "0.jpg"),
    ("cat/up", ".."),
    ("cat/notes.txt", "../../pool/notes.txt"),
    ("cat/meta", "../../meta"),
  ],
)
def test_links_that_give_images_two_classes_are_refused(tmp_path, link, target):
  root = tmp_path / "train"
  touch(root, "cat/0.jpg", "dog/1.jpg", "dog/sub/2.jpg", "../pool/4.jpg")
  touch(tmp_path, "pool/3.jpg", "pool/notes.txt", "away/1.jpg")
  (root / "dog" / "3.jpg").symlink_to("../../pool/3.jpg")
  (root / "dog" / "notes.txt").symlink_to("../../pool/notes.txt")
  touch(tmp_path, "meta/size.txt")
  (root / "dog" / "meta").symlink_to("../../meta")
  (root / link).symlink_to(target)
  if Path(link).name in ("other", "4.jpg", "5.jpg", "up", "notes.txt", "meta"):
    assert len(set(list_images(tmp_path, "train", 0.1).labels)) == 2
  else:
    with pytest.raises(UserError, match=r"a link makes .* would have two classes, '"):
      list_images(tmp_path, "train", 0.1)


# Splits that are drawn


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_drawn_split_is_stratified_disjoint_complete_and_fixed(tmp_path, share):
  sizes = {"a": 100, "b": 40, "c": 7, "d": 1}
  every = [f"{name}/{i}.jpg" for name, size in sizes.items() for i in range(size)]
  touch(tmp_path, *every)
  assert list_splits(tmp_path) == ["train", "val"]
  train, val = (list_images(tmp_path, split, share) for split in ("train", "val"))
  train_paths, val_paths = dict(listed(train)), dict(listed(val))
  assert not train_paths.keys() & val_paths.keys()
  assert (train_paths | val_paths) == {path: "abcd".index(path[0]) for path in every}
  counts = np.bincount(val.labels, minlength=4)
  for count, size in zip(counts, sizes.values(), strict=True):
    assert abs(count - share * size) <= 0.5
  for split, files in (("train", train), ("val", val), ("", val)):
    assert listed(list_images(tmp_path, split, share)) == listed(files)
  assert train.class_names == val.class_names == ("a", "b", "c", "d")


def test_drawn_split_hardly_changes_with_a_file_that_goes(tmp_path):
  touch(tmp_path, *(f"a/{i}.jpg" for i in range(100)))
  before = dict(listed(list_images(tmp_path, "val", 0.2)))
  (tmp_path / "a/7.jpg").unlink()
  after = dict(listed(list_images(tmp_path, "val", 0.2)))
  assert len(after.keys() - before.keys()) <= 1


def test_folder_with_training_images_only_has_none_to_evaluate(tmp_path):
  touch(tmp_path, "train/a/1.jpg")
  with pytest.raises(ValueError, match=r"has train and no split.*add one of val, val"):
    list_images(tmp_path, "", 0.1)


def test_drawn_split_stays_the_same_over_versions(tmp_path):
  """A resumed run must not meet its validation images in training."""
  touch(tmp_path, *(f"{name}/{i}.jpg" for name in "ab" for i in range(10)))
  val = listed(list_images(tmp_path, "val", 0.2))
  assert val == [("a/0.jpg", 0), ("a/2.jpg", 0), ("b/0.jpg", 1), ("b/3.jpg", 1)]


# Tiny-ImageNet


@pytest.fixture
def tiny(tmp_path) -> Path:
  (tmp_path / "wnids.txt").write_text("n02\nn01\nn03\n")
  (tmp_path / "words.txt").write_text("n01\tgoldfish, carp\nn03\tbéret\nn09\tother\n")
  for wnid in ("n01", "n02", "n03"):
    touch(tmp_path, *(f"train/{wnid}/images/{wnid}_{i}.JPEG" for i in range(2)))
    touch(tmp_path, f"train/{wnid}/{wnid}_boxes.txt")
  touch(tmp_path, *(f"val/images/val_{i}.JPEG" for i in range(3)))
  rows = "val_0.JPEG\tn03\t0\t0\t9\t9\nval_2.JPEG\tn01\t0\t0\t9\t9\nval_1.JPEG\tn03\n"
  (tmp_path / "val/val_annotations.txt").write_text(rows)
  touch(tmp_path, "test/images/test_0.JPEG")
  return tmp_path


def test_tiny_imagenet_is_read_as_it_is_downloaded(tiny):
  train, val = (list_images(tiny, split, 0.1) for split in ("train", "val"))
  assert train.class_names == val.class_names == ("goldfish, carp", "n02", "béret")
  assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
  assert listed(train)[2] == ("train/n02/images/n02_0.JPEG", 1)
  names = ("val_0", 2), ("val_2", 0), ("val_1", 2)
  assert listed(val) == [(f"val/images/{name}.JPEG", label) for name, label in names]
  assert listed(list_images(tiny, "", 0.1)) == listed(val)


def test_tiny_imagenet_may_have_its_val_sorted_into_folders(tiny):
  (tiny / "val/val_annotations.txt").unlink()
  (tiny / "val/images").rename(tiny / "val/n03")
  val = list_images(tiny, "val", 0.1)
  assert val.labels.tolist() == [2] * 3 and val.class_names[2] == "béret"


@pytest.mark.parametrize("row", ["val_0.JPEG\tn77", "val_0.JPEG"])
def test_tiny_imagenet_with_a_wrong_annotation_is_refused(tiny, row):
  (tiny / "val/val_annotations.txt").write_text(f"val_1.JPEG\tn01\n{row}\n")
  with pytest.raises(ValueError, match=r"val_annotations.txt: .*val_0.*wnids.txt"):
    list_images(tiny, "val", 0.1)


def test_tiny_imagenet_has_no_labels_for_test(tiny):
  with pytest.raises(ValueError, match=r"'test' is not in .*train, val"):
    list_images(tiny, "test", 0.1)


def test_real_tiny_imagenet():
  root = SHARED / "tiny-imagenet-200"
  if not root.exists():
    pytest.skip(f"no {root}")
  train, val = (list_images(root, split, 0.1) for split in ("train", "val"))
  assert np.bincount(train.labels).tolist() == [100] * 20
  assert np.bincount(val.labels).tolist() == [50] * 20
  assert train.class_names == val.class_names
  assert train.class_names[0] == "European fire salamander, Salamandra salamandra"
  assert all(files[0][0].startswith(b"\xff\xd8") for files in (train, val))


# Tables


@pytest.mark.parametrize(
  "text",
  [
    "path,label\nx/1.jpg,cat\n2.jpg,dog\n",
    "x/1.jpg,cat\n2.jpg,dog\n",
    "x/1.jpg,cat\n2.jpg,dog",
    "\n\nx/1.jpg,cat\n\n2.jpg,dog\n\n",
    "path,label\r\nx/1.jpg,cat\r\n2.jpg,dog\r\n",
    "path,label\rx/1.jpg,cat\r2.jpg,dog\r",
    "\ufeffpath,label\nx/1.jpg,cat\n2.jpg,dog\n",
    "\ufeffx/1.jpg,cat\n2.jpg,dog\n",
    "Label, Path ,size\ncat,x/1.jpg,\ndog,2.jpg,7\n",
    'path,label\n"x/1.jpg","cat"\n"2.jpg",dog\n',
    "path,label\nx/1.jpg, cat\n2.jpg,dog \n",
  ],
)
def test_table_is_read(tmp_path, text):
  touch(tmp_path, "x/1.jpg", "2.jpg")
  files = list_images(write(tmp_path, text), "train", 0.1)
  assert sorted(listed(files)) == [("2.jpg", 1), ("x/1.jpg", 0)]
  assert files.class_names == ("cat", "dog")


def test_table_may_quote_commas_and_newlines_and_name_absolute_paths(tmp_path):
  touch(tmp_path, "a,b.jpg", 'say "hi".jpg', "two\nlines.jpg")
  far = tmp_path / "far.jpg"
  far.write_text("far.jpg")
  text = (
    f'"a,b.jpg","cat, big"\n"say ""hi"".jpg",dog\n"two\nlines.jpg",dog\n{far},dog\n'
  )
  (tmp_path / "sub").mkdir()
  files = list_images(write(tmp_path, text), "train", 0.1)
  names = ["a,b.jpg", 'say "hi".jpg', "two\nlines.jpg", "far.jpg"]
  assert listed(files) == list(zip(names, [0, 1, 1, 1], strict=True))
  assert files.class_names == ("cat, big", "dog")


def test_table_of_class_indices(tmp_path):
  touch(tmp_path, *(f"{i}.jpg" for i in range(3)))
  path = write(tmp_path, "path,label\n0.jpg,10\n1.jpg, 2\n2.jpg,007\n")
  files = list_images(path, "train", 0.1)
  assert files.labels.tolist() == [10, 2, 7]
  assert files.class_names == tuple(map(str, range(11)))
  # With a model's classes, the numbers are indices into them.
  names = tuple("abcdefghijklmno")
  assert list_images(path, "train", 0.1, names).class_names == names
  with pytest.raises(ValueError, match=r"csv, line 2: label 10 .*index below 5"):
    list_images(path, "train", 0.1, names[:5])


def test_table_of_class_names_keeps_the_order_of_a_model(tmp_path):
  path = write(tmp_path, "1.jpg,dog\n2.jpg,cat\n")
  files = list_images(path, "train", 0.1, ("dog", "x", "cat"))
  assert files.labels.tolist() == [0, 2]
  with pytest.raises(ValueError, match=r"csv'.*training does not have: dog"):
    list_images(path, "train", 0.1, ("cat",))


def test_table_may_name_files_without_a_suffix(tmp_path):
  touch(tmp_path, "one", "two")
  files = list_images(write(tmp_path, "one,a\ntwo,b\n"), "train", 0.1)
  assert sorted(listed(files)) == [("one", 0), ("two", 1)]


def test_table_with_splits(tmp_path):
  touch(tmp_path, *(f"{i}.jpg" for i in range(4)))
  text = "split,path,label\ntrain,0.jpg,b\n holdout ,1.jpg,a\nval,2.jpg,b\n"
  path = write(tmp_path, text + "train,3.jpg,c\n")
  assert list_splits(path) == ["holdout", "train", "val"]
  assert listed(list_images(path, "train", 0.1)) == [("0.jpg", 1), ("3.jpg", 2)]
  assert listed(list_images(path, "holdout", 0.1)) == [("1.jpg", 0)]
  assert listed(list_images(path, "", 0.1)) == [("2.jpg", 1)]
  assert list_images(path, "val", 0.1).class_names == ("a", "b", "c")
  with pytest.raises(ValueError, match="there are: holdout, train, val"):
    list_images(path, "test", 0.1)


def test_table_without_splits_is_drawn(tmp_path):
  path = write(tmp_path, "".join(f"{i}.jpg,{'ab'[i % 2]}\n" for i in range(40)))
  train, val = (list_images(path, split, 0.1) for split in ("train", "val"))
  names = {files.name(i) for files in (train, val) for i in range(len(files))}
  assert len(names) == 40
  assert np.bincount(val.labels).tolist() == [2, 2]


def test_numbers_are_names_of_classes_that_are_numbers(tmp_path):
  names = tuple(sorted(map(str, range(12))))  # 0, 1, 10, 11, 2 ...
  path = write(tmp_path, "".join(f"{i}.jpg,{i:02}\n" for i in range(12)))
  labels = {
    split: list_images(path, split, 0.1, names).labels for split in ("train", "val")
  }
  assert labels["train"].tolist() == [names.index(str(i)) for i in range(12)]
  with pytest.raises(UserError, match="has classes that training does not have: 11"):
    list_images(path, "train", 0.1, [name for name in names if name != "11"])
  # If some names are words, every number must be a name too; "-1" is a valid one.
  mixed = ("-1", "0", "1", "10", "2", "other")
  path = write(tmp_path, "a.jpg,0\nb.jpg,2\nc.jpg,-1\n")
  files = list_images(path, "train", 0.1, mixed)
  assert sorted(files.labels.tolist()) == [0, 1, 4]
  with pytest.raises(UserError, match="has classes that training does not have: 3"):
    list_images(write(tmp_path, "a.jpg,0\nb.jpg,3\n"), "train", 0.1, mixed)
  # "1" and "01" are two classes: only the text distinguishes them.
  files = list_images(write(tmp_path, "a.jpg,1\nb.jpg,01\n"), "train", 0.1, ("1", "01"))
  assert files.labels.tolist() == [0, 1]


def test_a_file_of_several_rows_is_in_one_part(tmp_path):
  rows = [f"{i}.jpg,{'ab'[i % 2]}" for i in range(10) for _ in range(4)]
  path = write(tmp_path, "\n".join([*rows, "./0.jpg,a"]))
  train, val = (list_images(path, split, 0.5) for split in ("train", "val"))
  found = [{files.name(i) for i in range(len(files))} for files in (train, val)]
  assert not {Path(name) for name in found[0]} & {Path(name) for name in found[1]}
  assert len(train) + len(val) == 41


def test_a_file_of_two_labels_is_refused(tmp_path):
  path = write(tmp_path, "1.jpg,cat\n2.jpg,dog\n./1.jpg,dog\n")
  with pytest.raises(UserError, match=r"line 3: './1.jpg' has the label 'dog', but 'c"):
    list_images(path, "train", 0.1)


def test_a_file_of_two_labels_is_known_by_its_whole_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(tmp_path, f"1.jpg,cat\n{tmp_path}/1.jpg,dog\n")
  with pytest.raises(
    UserError, match=r"line 2: .*/1.jpg' has the label 'dog', but 'ca"
  ):
    list_images(Path("table.csv"), "train", 0.1)
  # No file is both drawn for evaluation and used for training.
  write(tmp_path, f"1.jpg,cat\n2.jpg,cat\n{tmp_path}/1.jpg,cat\nx/../2.jpg,cat\n")
  for split in ("train", "val"):
    assert len(list_images(Path("table.csv"), split, 0.5)) == 2


@pytest.mark.parametrize("split", ["val", "Valid", "test", "debug"])
def test_a_file_is_not_trained_on_and_evaluated(tmp_path, split):
  rows = f"1.jpg,a,debug\n1.jpg,a,train\n2.jpg,b,val\n./1.jpg,a,{split}\n"
  path = write(tmp_path, f"path,label,split\n{rows}")
  if split == "debug":
    assert len(list_images(path, "debug", 0.1)) == 2
    return
  text = (
    f"line 5: './1.jpg' is in the split '{split.lower()}', but in 'train' in line 3"
  )
  with pytest.raises(UserError, match=text):
    list_images(path, "train", 0.1)


def test_splits_of_a_table_may_have_capitals(tmp_path):
  path = write(tmp_path, "path,label,split\n1.jpg,a,Train\n2.jpg,b,VAL\n")
  assert list_splits(path) == ["train", "val"]
  assert listed_names(list_images(path, "Train", 0.1)) == ["1.jpg"]
  assert listed_names(list_images(path, "", 0.1)) == ["2.jpg"]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1.jpg,cat\n2.jpg\n", r"line 2: '2.jpg' must be path,label"),
    ("1.jpg,cat\n2.jpg,\n", r"line 2: '2.jpg,' must be path,label"),
    ("1.jpg,cat\n ,cat\n", r"line 2: ' ,cat' must be path,label"),
    ("1.jpg,cat\n   \n", r"line 2: '   ' must be path,label"),
    ("1.jpg,cat\n\n2.jpg,cat,train\n", r"line 3: .* must be path,label"),
    ('"1\n.jpg",cat\n2.jpg\n', r"line 3: '2.jpg' must be path,label"),
    ("path,label,split\n1.jpg,cat,\n", r"line 2: .* must be path,label,split"),
    ("path,label,split\n1.jpg,cat\n", r"line 2: .* must be path,label,split"),
    ("file,wnid,number\n1.jpg,n01,3\n", r"line 1: .* must be path,label; other"),
    ("file,label\n1.jpg,3\n", r"line 1: 'file,label' must name path and label"),
    ("path,class\n1.jpg,3\n", r"line 1: 'path,class' must name path and label"),
    ("path,label,label\n1.jpg,3,1\n", r"line 1: .* names a column twice"),
    ("split,path,label,Split\na,1.jpg,3,b\n", r"line 1: .* names a column twice"),
    ("file,class\n1.jpg,3\n2.jpg,1\n", r"line 1: 'file' is no file; .*path and label"),
    ("image_id,breed\n1.jpg,pug\n", r"line 1: 'image_id' is no file; .*path and label"),
    ("nul\0,0\n1.jpg,1\n", r"line 1: 'nul\\x00' is no file"),
    (f"{300 * 'a'},0\n1.jpg,1\n", "line 1: 'a{60}' is no file"),
    ("1.jpg,0\n2.jpg,100000\n", r"line 2: label 100000 must be a class index below"),
    ("1.jpg,0\n2.jpg," + "9" * 6000, r"line 2: label 9{20} must be a class index"),
    ("1.jpg,-1\n2.jpg,1\n", r"line 1: label -1 must be a class index below 100000"),
    ("", "has no rows of path,label"),
    ("\n\n", "has no rows of path,label"),
    ("path,label\n", "has no rows of path,label"),
    (b"1.jpg,caf\xe9\n", "no .csv file in UTF-8"),
    ("path,label\n1.jpg,cat\n".encode("utf-16"), "no .csv file in UTF-8"),
    (b"\x89PNG\r\n\x1a\n\0\0", "no .csv file in UTF-8"),
    ('1.jpg,"' + "x" * 200_000, "no .csv file in UTF-8: field larger"),
    ('1.jpg,cat\n"2.jpg,dog\n3.jpg,dog\n', r"line 3: .* must be path,label"),
  ],
)
def test_wrong_table_is_refused_with_its_name_and_line(tmp_path, text, message):
  path = write(tmp_path, text)
  with pytest.raises(ValueError, match=rf"{path}.*{message}") as info:
    list_images(path, "train", 0.1)
  assert type(info.value) is UserError and len(str(info.value)) < 400


def test_a_digest_knows_names_labels_and_order_but_no_root(tmp_path):
  digest = FileList("/r", ["a", "b"], [0, 1], ["x", "y"]).digest
  assert FileList("/moved", ["a", "b"], [0, 1], ["x", "y"]).digest == digest
  others = (["a", "c"], [0, 1]), (["a", "b"], [1, 1]), (["b", "a"], [0, 1])
  others += (["ab", ""], [0, 1]), (["a"], [0]), (["a", "b", "c"], [0, 1, 1])
  assert digest not in {FileList("/r", *args, ["x", "y"]).digest for args in others}


# Reading


def test_strange_names_survive(tmp_path):
  names = [b"two\nlines.jpg", b" a b .jpg", "köln 東京.png".encode(), b"\xff\xfe.jpg"]
  folder = os.fsencode(tmp_path / "train" / "a\udce9")
  os.makedirs(folder)
  for name in names:
    Path(os.fsdecode(os.path.join(folder, name))).write_bytes(name)
  files = pickle.loads(pickle.dumps(list_images(tmp_path, "train", 0.1)))
  assert {files[i][0] for i in range(len(files))} == set(names)
  assert os.fsencode(files.name(0)) == os.path.join(folder, b" a b .jpg")


def read_in_time(files: FileList, index: int) -> str:
  """Returns why a file cannot be read; fails if that takes 5 s."""
  reasons = []

  def read():
    try:
      files[index]
    except ImageError as error:
      reasons.append(str(error))

  thread = threading.Thread(target=read, daemon=True)
  thread.start()
  thread.join(5)
  assert reasons, "it was read, or hangs"
  return reasons[0]


def test_what_is_no_file_is_an_image_error(tmp_path):
  touch(tmp_path, "train/a/1.jpg", "train/a/2.jpg")
  folder = tmp_path / "train" / "a"
  (folder / "dangling.jpg").symlink_to(folder / "none")
  (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
  os.mkfifo(folder / "pipe.jpg")
  files = list_images(tmp_path, "train", 0.1)
  (folder / "2.jpg").unlink()
  names = ["1.jpg", "2.jpg", "dangling.jpg", "loop.jpg", "pipe.jpg"]
  assert [Path(files.name(i)).name for i in range(5)] == names
  assert files[0] == (b"train/a/1.jpg", 0)
  reasons = [read_in_time(files, i) for i in range(1, 5)]
  link = "it is a dangling link"
  assert reasons == ["it is no file", link, link, "it is no file"]


def test_folder_named_as_an_image_is_an_image_error(tmp_path):
  (tmp_path / "x.jpg").mkdir()
  touch(tmp_path, "y")
  files = list_images(
    write(tmp_path, "x.jpg,a\nnul\0.jpg,a\ny/z.jpg,a\n"), "train", 0.1
  )
  assert [read_in_time(files, i) for i in range(3)] == ["it is no file"] * 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_an_image_error(tmp_path):
  touch(tmp_path, "1.jpg")
  (tmp_path / "1.jpg").chmod(0)
  files = FileList(tmp_path, ["1.jpg"], [0], ["a"])
  assert read_in_time(files, 0) == "it cannot be read (Permission denied)"


def test_error_of_the_disk_is_an_image_error(tmp_path):
  mem = Path("/proc/self/mem")
  if not mem.is_file():
    pytest.skip("no /proc")
  files = FileList("/", [str(mem)], [0], ["a"])
  assert read_in_time(files, 0) == "it cannot be read (Input/output error)"


def test_select_keeps_names_and_labels():
  files = FileList("/r", ["a", "bü", "c"], [2, 0, 1], ["x", "y", "z"])
  some = files.select([False, True, True])
  assert [some.name(i) for i in range(len(some))] == ["/r/bü", "/r/c"]
  assert some.labels.tolist() == [0, 1] and some.class_names == ("x", "y", "z")


def test_a_hundred_thousand_names_pickle_small():
  paths = [f"n02123045/n02123045_{i:08}.JPEG" for i in range(100_000)]
  files = FileList("/data/train", paths, [0] * len(paths), ["cat"])
  copy = pickle.dumps(files)
  assert len(copy) < 10_000_000  # Measured: 4.5 MB.
  assert pickle.loads(copy).name(99_999) == f"/data/train/{paths[-1]}"


def test_many_files_are_listed_in_little_memory():
  with tempfile.TemporaryDirectory() as root:  # tmp_path would be kept.
    folder = Path(root, "train", "n02123045")
    folder.mkdir(parents=True)
    for i in range(20_000):
      os.close(os.open(folder / f"n02123045_{i:08}.JPEG", os.O_CREAT))
    tracemalloc.start()
    files = list_images(Path(root), "train", 0.1)
    assert tracemalloc.get_traced_memory()[1] < 20e6  # Measured: 6 MB.
    tracemalloc.stop()
  assert len(files) == 20_000
