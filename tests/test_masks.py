"""Images with masks: their files, the transforms of both, and the scores."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.masked_images import (
  MaskedEvalTransform,
  MaskedTrainTransform,
  decode_mask,
  to_original,
)
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.sources.masks import list_mask_splits, list_masked_images
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.training.segmentation_scores import class_ious, segmentation_scores
from resnet_jax.weights import voc

CLASSES = ("sky", "road", "car", "tree")
# The colour of each class, and black for ignored pixels: the image is its mask.
COLORS = np.zeros((256, 3), np.uint8)
COLORS[:4] = [[40, 90, 200], [250, 60, 10], [100, 100, 100], [10, 250, 130]]
ORIENTATION, MAX_PIXELS = 0x0112, 10_000


def png(values, mode="L", **kwargs) -> bytes:
  values = np.asarray(values)
  if mode == "L":
    values = values.astype(np.uint8)
  image = Image.frombytes(mode, values.shape[1::-1], values.tobytes())
  if mode == "P":
    image.putpalette(COLORS[::-1].tobytes())
  file = io.BytesIO()
  image.save(file, "PNG", **kwargs)
  return file.getvalue()


def blocks(height: int, width: int, side: int = 16, seed: int = 0) -> np.ndarray:
  """Returns a mask of squares of random classes, with some ignored ones."""
  rows, columns = -(-height // side), -(-width // side)
  few = np.random.default_rng(seed).choice([0, 1, 2, 3, 255], (rows, columns))
  return few.repeat(side, 0).repeat(side, 1)[:height, :width].astype(np.uint8)


def files_of(mask: np.ndarray) -> tuple[bytes, bytes]:
  return png(COLORS[mask], "RGB"), png(mask)


def train_transform(resize: int, size: int, **kwargs) -> MaskedTrainTransform:
  read = 4, "bilinear", MAX_PIXELS
  return MaskedTrainTransform(size, *read, resize=resize, **kwargs)


def eval_transform(size: int) -> MaskedEvalTransform:
  return MaskedEvalTransform(size, 4, "bilinear", MAX_PIXELS)


def assert_same_picture(image: np.ndarray, mask: np.ndarray):
  """Checks an image away from the edges of classes, where resizing blends colours.

  If an image becomes up to three times larger, bilinear resizing blends the colours of
  pixels that are less than three pixels away.
  """
  windows = np.lib.stride_tricks.sliding_window_view(mask, (7, 7))
  pure = np.pad(windows.min((2, 3)) == windows.max((2, 3)), 3)
  assert pure.mean() > 0.02
  np.testing.assert_array_equal(image[pure], COLORS[mask[pure]])


def rng(seed: int) -> np.random.Generator:
  return np.random.default_rng(seed)


# Transforms


@pytest.mark.parametrize("shape", [(64, 48), (40, 72)])
def test_image_and_mask_are_scaled_and_cropped_together(shape):
  files, transform = files_of(blocks(*shape)), train_transform(48, 48)
  assert transform.label.shape == (48, 48) and transform.label.dtype == np.uint8
  found = [transform.pair(*files, rng(seed)) for seed in range(20)]
  for image, mask in found:
    assert image.shape == (48, 48, 3) and mask.shape == (48, 48)
    assert image.dtype == mask.dtype == np.uint8
    assert_same_picture(image, mask)
  assert len({mask.tobytes() for _, mask in found}) == 20
  again = pickle.loads(pickle.dumps(transform)).pair(*files, rng(3))
  for one, other in zip(again, found[3], strict=True):
    np.testing.assert_array_equal(one, other)


def test_without_scaling_the_crop_is_a_window_of_the_image():
  mask = blocks(12, 10, side=1)
  transform = train_transform(0, 8, scale=(1, 1))
  windows = {
    np.ascontiguousarray(mask[y : y + 8, x : x + 8]).tobytes()
    for y in range(5)
    for x in range(3)
  }
  files, found = files_of(mask), set()
  for seed in range(200):
    image, part = transform.pair(*files, rng(seed))
    np.testing.assert_array_equal(image, COLORS[part])
    found.add(part.tobytes())
  assert found == windows


def test_short_side_is_from_half_to_twice_the_base_and_the_rest_is_padding():
  mask = np.full((10, 20), 2, np.uint8)
  transform = train_transform(10, 40)
  files, sides = files_of(mask), set()
  for seed in range(150):
    image, part = transform.pair(*files, rng(seed))
    height, width = ((part == 2).any(axis).sum() for axis in (1, 0))
    assert width == 2 * height
    sides.add(int(height))
    assert (part[:height, :width] == 2).all() and (part == 255).sum() == (
      part.size - height * width
    )
    np.testing.assert_array_equal(image, COLORS[part])
  assert sides == set(range(5, 21))


def test_evaluation_takes_the_whole_image_and_pads_it_below_or_on_the_right():
  for shape in ((24, 40), (40, 24)):
    mask = blocks(*shape)
    image, square = eval_transform(80).pair(*files_of(mask), rng(0))
    height, width = (2 * n for n in shape)
    expected = np.full((80, 80), 255)
    expected[:height, :width] = mask.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(square, expected)
    assert not image[height:].any() and not image[:, width:].any()
    assert_same_picture(image, square)
    alone = eval_transform(80)(files_of(mask)[0], rng(0))
    np.testing.assert_array_equal(alone, image)


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (13, 13), (1, 40)])
def test_predictions_return_to_the_size_of_the_image(shape):
  mask = np.minimum(blocks(*shape, side=1), 3)
  _, square = eval_transform(90).pair(*files_of(mask), rng(0))
  np.testing.assert_array_equal(to_original(square, *shape[::-1]), mask)
  logits = rng(0).normal(size=(90, 90, 4))
  np.testing.assert_array_equal(
    to_original(logits, *shape[::-1]).argmax(-1),
    to_original(logits.argmax(-1), *shape[::-1]),
  )


def test_a_thin_image_keeps_at_least_one_row():
  mask = np.full((1, 200), 3, np.uint8)
  _, square = eval_transform(20).pair(*files_of(mask), rng(0))
  assert (square[0] == 3).all() and (square[1:] == 255).all()
  assert to_original(square, 200, 1).shape == (1, 200)


def test_images_of_16_bits_and_other_channels_have_masks_too():
  mask = blocks(16, 16)
  grey = png(mask.astype(np.uint16) * 257, "I;16")
  transform = train_transform(0, 16, scale=(1, 1), pixels=PixelFormat(1, 65535))
  image, part = transform.pair(grey, png(mask), rng(0))
  assert image.dtype == np.uint16
  np.testing.assert_array_equal(image[..., 0], part.astype(np.uint16) * 257)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_mask_fits_the_upright_image(orientation):
  # Seven kinds of turns and mirrors, each with its inverse.
  stored = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
  }[orientation]
  tags = Image.Exif()
  tags[ORIENTATION] = orientation
  mask = blocks(12, 16, side=4)
  turned = np.ascontiguousarray(stored(mask))
  image = png(COLORS[turned], "RGB", exif=tags)
  for label in (png(mask), png(turned, exif=tags)):
    found, part = eval_transform(16).pair(image, label, rng(0))
    np.testing.assert_array_equal(part[:12], mask)
    np.testing.assert_array_equal(found, COLORS[part])
  if orientation >= 5:
    with pytest.raises(ImageError, match="must be turned upright"):
      eval_transform(16).pair(image, png(turned), rng(0))


# Content of masks


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_numbers_of_a_palette_are_its_indices(bits):
  mask = blocks(9, 7, side=1)
  mask = np.minimum(mask, 2**bits - 1) if bits < 8 else mask
  data = png(mask, "P", bits=bits)
  assert data[24:26] == bytes((bits, 3))
  np.testing.assert_array_equal(decode_mask(data, 16, MAX_PIXELS), mask)


def test_numbers_of_grey_are_its_values():
  mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
  np.testing.assert_array_equal(decode_mask(png(mask), 255, MAX_PIXELS), mask)


JPEG = io.BytesIO()
Image.new("L", (8, 8)).save(JPEG, "JPEG")
MASK = np.zeros((8, 8), np.uint8)
WRONG = {
  "RGB with 8 bits .*must have a palette or be grey with 8 bits; save": png(
    COLORS[MASK], "RGB"
  ),
  "grey with 16 bits a channel, and": png(MASK.astype(np.uint16), "I;16"),
  "grey with 1 bit a channel, and": png(MASK[:, :1], "1"),
  "it is JPEG and must be PNG; save": JPEG.getvalue(),
  r"value 4 at x=7, y=0, .* in \[0, 4\), or 255": png(np.eye(8, dtype="u1")[::-1] * 4),
  "truncated or damaged": png(np.arange(64).reshape(8, 8) % 4)[:-30],
  "it is empty": b"",
  "8x8 pixels, and its mask has 8x7": png(MASK[1:]),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_mask_is_one_line(text):
  image = png(COLORS[MASK], "RGB")
  for transform in (train_transform(8, 8), eval_transform(8)):
    with pytest.raises(ImageError, match=text) as found:
      transform.pair(image, WRONG[text], rng(0))
    assert "\n" not in str(found.value) and "mask" in str(found.value)


# Files


def write(root, *paths: str) -> None:
  """Writes images, masks with a palette, and lists of VOC; "a/b.txt: x y"."""
  for path in paths:
    path, _, names = path.partition(": ")
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".txt":
      place.write_text("".join(f"{name}\n" for name in names.split()))
    elif place.suffix == ".png":
      place.write_bytes(png(MASK, "P"))
    else:
      place.write_bytes(b"image " + place.name.encode())


def write_classes(root) -> None:
  write(root, f"classes.txt: {' '.join(CLASSES)}")


def names_of(files) -> list[str]:
  return [files.name(i).rsplit("/", 1)[1] for i in range(len(files))]


def write_voc(root) -> None:
  write(root, *(f"JPEGImages/{i}.jpg" for i in range(4)))
  write(root, *(f"SegmentationClass/{i}.png" for i in range(3)))
  lists = {"train": "2 0", "val": "1", "trainval": "0 1 2", "all": "0 3"}
  write(root, *(f"ImageSets/Segmentation/{name}.txt: {x}" for name, x in lists.items()))


@pytest.mark.parametrize("above", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_pascal_voc_is_found_in_or_below_the_folder(tmp_path, above):
  write_voc(tmp_path / above)
  assert set(list_mask_splits(tmp_path)) == {"train", "val", "trainval", "all"}
  files = list_masked_images(tmp_path, "train", 0.1)
  assert names_of(files) == ["2.jpg", "0.jpg"]
  assert files.class_names == voc.class_names() and len(files.class_names) == 21
  assert pickle.loads(pickle.dumps(files))[0] == (b"image 2.jpg", png(MASK, "P"))
  assert (files.label.kind, files.label.shape) == ("mask", (None, None))
  assert names_of(list_masked_images(tmp_path, "", 0.1)) == ["1.jpg"]
  with pytest.raises(UserError, match=r"there are: all, train, trainval, val$"):
    list_masked_images(tmp_path, "test", 0.1)
  text = r"the image '3' of '.*all.txt' has no file SegmentationClass/3.png"
  with pytest.raises(UserError, match=text):
    list_masked_images(tmp_path, "all", 0.1)


VOC_ERRORS = {
  "without the folder SegmentationClass": ("JPEGImages/0.jpg",),
  "without the folder ImageSets": ("JPEGImages/0.jpg", "SegmentationClass/0.png"),
  "train.txt' is empty": (
    *("JPEGImages/0.jpg", "SegmentationClass/0.png"),
    "ImageSets/Segmentation/train.txt: ",
  ),
  "once, not '0' twice": (
    *("JPEGImages/0.jpg", "SegmentationClass/0.png"),
    "ImageSets/Segmentation/train.txt: 0 0",
  ),
  r"the image '7' of .* \(and 1 more\)|'7' \(and 1 more\)": (
    *("JPEGImages/0.jpg", "SegmentationClass/0.png"),
    "ImageSets/Segmentation/train.txt: 7 0 8",
  ),
  "has VOC2007, VOC2012; name one": (
    "VOC2007/JPEGImages/0.jpg",
    "VOC2012/JPEGImages/0",
  ),
}


@pytest.mark.parametrize("text", VOC_ERRORS)
def test_an_incomplete_pascal_voc_is_one_line(tmp_path, text):
  write(tmp_path, *VOC_ERRORS[text])
  with pytest.raises(UserError, match=text) as found:
    list_masked_images(tmp_path, "train", 0.1)
  assert "\n" not in str(found.value)


@pytest.mark.parametrize(
  "place", ["{split}/{kind}", "{kind}/{split}"], ids=["above", "below"]
)
def test_splits_are_above_or_below_images_and_masks(tmp_path, place):
  for split, stem in (("Train", "x/a"), ("val", "b"), ("night", "c")):
    for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
      write(tmp_path, f"{place.format(split=split, kind=kind)}/{stem}{suffix}")
  write_classes(tmp_path)
  write(tmp_path, f"{place.format(split='val', kind='masks')}/notes.md")
  assert list_mask_splits(tmp_path) == ["train", "val"]
  files = list_masked_images(tmp_path, "train", 0.1)
  assert names_of(files) == ["a.jpg"] and files.class_names == CLASSES
  assert files[0] == (b"image a.jpg", png(MASK, "P")) and not files.left_out
  val = list_masked_images(tmp_path, "", 0.1, CLASSES)
  assert names_of(val) == ["b.jpg"] and val.left_out == ("1 .md",)
  assert names_of(list_masked_images(tmp_path, "night", 0.1)) == ["c.jpg"]
  assert len({files.digest, val.digest}) == 2
  with pytest.raises(UserError, match=r"'test' is not in .* there are: train, val$"):
    list_masked_images(tmp_path, "test", 0.1)


def test_images_without_splits_are_divided(tmp_path):
  for i in range(10):
    write(tmp_path, f"images/{i}.jpeg", f"masks/{i}.png")
  write_classes(tmp_path)
  assert list_mask_splits(tmp_path) == ["train", "val"]
  parts = [list_masked_images(tmp_path, split, 0.3) for split in ("train", "val")]
  assert [len(part) for part in parts] == [7, 3]
  every = sorted(name for part in parts for name in names_of(part))
  assert every == [f"{i}.jpeg" for i in range(10)]
  assert names_of(list_masked_images(tmp_path, "", 0.3)) == names_of(parts[1])
  with pytest.raises(UserError, match=r"0.01 of the 10 images .* none for val"):
    list_masked_images(tmp_path, "val", 0.01)


def test_black_and_white_masks_are_refused(tmp_path):
  for i in range(4):
    write(tmp_path, f"images/train/{i}.jpg", f"masks/train/{i}.png")
  write_classes(tmp_path)
  for path in (tmp_path / "masks/train").iterdir():
    path.write_bytes(png([[0, 255]] * 2, "L"))
  with pytest.raises(UserError, match=r"4 masks such as .* only the numbers 0 and 255"):
    list_masked_images(tmp_path, "train", 0.1)
  path.write_bytes(png([[0, 1]] * 2, "L"))
  assert len(list_masked_images(tmp_path, "train", 0.1)) == 4


def test_a_mask_that_has_gone_is_named(tmp_path):
  write(tmp_path, *("images/a.jpg", "masks/a.png", "images/b.jpg", "masks/b.png"))
  write_classes(tmp_path)
  files = list_masked_images(tmp_path, "train", 0.5)
  for path in (tmp_path / "masks").iterdir():
    path.unlink()
  with pytest.raises(ImageError, match=r"its mask '.*/masks/.\.png': it is no file"):
    files[0]


PAIR = "images/a.jpg", "masks/a.png"
KNOWN = (*PAIR, "classes.txt: sky road car tree")
FOLDER_ERRORS = {
  "no folder images and no folder masks: it must have": ("a.jpg",),
  "has no folder masks: it must have": ("images/a.jpg",),
  "has no folder train/masks; each": ("train/images/a.jpg", KNOWN[2]),
  "has no folder masks/train; each": (*KNOWN[1:], "images/train/a.jpg"),
  r"the image 'images/b.jpg' \(and 1 more\) .* has no mask in masks: a mask has": (
    *KNOWN,
    *("images/b.jpg", "images/c.jpg"),
  ),
  "the mask 'masks/b.png' in .* has no image in images: an image has": (
    *KNOWN,
    "masks/b.png",
  ),
  "the mask 'masks/a.jpg' in .* must be a PNG": (*KNOWN, "masks/a.jpg"),
  "'images/a.jpg' and 'images/a.webp' .* only in their suffix": (
    *KNOWN,
    "images/a.webp",
  ),
  "has no images": ("images/a.md", *KNOWN[1:]),
  "has no classes.txt: write a text file with the name": PAIR,
  "classes.txt' names 0 classes, and must name 2 to 255": (*PAIR, "classes.txt: "),
  "classes.txt', line 3 repeats 'a'": (*PAIR, "classes.txt: a b a"),
}


@pytest.mark.parametrize("text", FOLDER_ERRORS)
def test_a_wrong_folder_is_one_line(tmp_path, text):
  write(tmp_path, *FOLDER_ERRORS[text])
  with pytest.raises(UserError, match=text) as found:
    list_masked_images(tmp_path, "train", 0.5)
  assert "\n" not in str(found.value)


def test_an_empty_line_would_shift_the_numbers_of_classes(tmp_path):
  write(tmp_path, *PAIR)
  (tmp_path / "classes.txt").write_text("sky\n\nroad\n")
  with pytest.raises(UserError, match="line 2 is empty"):
    list_masked_images(tmp_path, "train", 0.5)


def test_classes_of_the_data_are_those_of_the_model(tmp_path):
  for stem in "abcd":
    write(tmp_path, f"images/{stem}.jpg", f"masks/{stem}.png")
  assert list_masked_images(tmp_path, "val", 0.5, CLASSES).class_names == CLASSES
  write_classes(tmp_path)
  with pytest.raises(UserError, match=r"road, sky, car, tree$"):
    list_masked_images(tmp_path, "val", 0.5, ("road", "sky", "car", "tree"))


def test_a_missing_folder_or_evaluation_split_is_one_line(tmp_path):
  with pytest.raises(NotFoundError, match=r"no folder config\.data\.dir="):
    list_masked_images(tmp_path / "none", "train", 0.1)
  write(tmp_path, "images/train/a.jpg", "masks/train/a.png")
  with pytest.raises(UserError, match="has train and no split to evaluate"):
    list_masked_images(tmp_path, "", 0.1)


# Scores


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed):
  draw, k = rng(seed), 6
  # Class 4 has no pixel; class 5 has neither a pixel nor a prediction.
  truth, predicted = draw.integers(0, 4, 500), draw.integers(0, 5, 500)
  predicted = np.where(draw.random(500) < 0.6, truth, predicted)
  confusion = metrics.confusion_matrix(truth, predicted, labels=range(k))
  found = segmentation_scores(confusion)
  expected = {
    "mean_iou": metrics.jaccard_score(truth, predicted, average="macro"),
    "pixel_accuracy": metrics.accuracy_score(truth, predicted),
    "count": 500,
  }
  assert found == pytest.approx(expected, rel=0, abs=1e-12)
  ious = metrics.jaccard_score(truth, predicted, average=None)
  np.testing.assert_allclose(class_ious(confusion), [*ious, np.nan], rtol=0, atol=1e-12)


def test_scores_of_no_pixels_are_unknown():
  found = segmentation_scores(np.zeros((3, 3), np.int64))
  assert np.isnan(found["mean_iou"]) and np.isnan(found["pixel_accuracy"])
  assert found["count"] == 0
