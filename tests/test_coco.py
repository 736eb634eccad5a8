"""COCO's files of boxes, and images that are scaled together with their boxes."""

import io
import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import ImageSource
from resnet_jax.data.images.boxed_images import BoxedTransform, boxes_in_image
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.sources.coco import list_boxed_images, load_coco
from resnet_jax.runtime.errors import NotFoundError, UserError

SIZES = {7: (40, 20), 3: (16, 32), 5: (8, 8)}  # (width, height) by image id.


def annotation(number, image, category, bbox, **more):
  ids = {"id": number, "image_id": image, "category_id": category}
  return {**ids, "bbox": bbox, "iscrowd": 0, **more}


def content():
  """Returns a small file: image 5 has no boxes, and the ids are in no order."""
  images = [
    {"id": i, "file_name": f"sub/{i}.png", "width": w, "height": h}
    for i, (w, h) in SIZES.items()
  ]
  return {
    "images": images,
    "categories": [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
      annotation(11, 3, 2, [1, 2, 3.5, 4]),
      annotation(12, 7, 90, [30, -5, 20, 10]),
      annotation(13, 7, 2, [0, 0, 4, 8], iscrowd=1),
      annotation(14, 7, 2, [40, 0, 4, 4]),  # Outside of the image.
      annotation(15, 5, 2, [1, 1, 0, 4]),
    ],
  }


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "sub").mkdir()
  for number, size in SIZES.items():
    Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"sub/{number}.png")
  return tmp_path


def load(folder, data, **options):
  path = folder / "boxes.json"
  path.write_text(data if isinstance(data, str) else json.dumps(data))
  return load_coco(path, folder, **options)


def test_boxes_are_clipped_numbered_and_sorted_by_image(folder):
  source = load(folder, content())
  assert isinstance(source, ImageSource)
  assert source.class_names == ("cat", "dog")
  assert source.category_ids == (2, 90)
  assert (len(source), source.max_boxes) == (3, 2)
  expected = [
    [[1, 2, 4.5, 6, 0, 0]],
    [],
    [[30, 0, 40, 5, 1, 0], [0, 0, 4, 8, 0, 1]],
  ]
  for i, (number, rows) in enumerate(zip((3, 5, 7), expected, strict=True)):
    data, boxes = source[i]
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes, np.reshape(rows, (-1, 6)))
    assert data == (folder / f"sub/{number}.png").read_bytes()
    assert source.name(i) == str(folder / f"sub/{number}.png")
  assert source.left_out == ("2 boxes without area",)


def test_training_leaves_out_images_without_boxes(folder):
  source = load(folder, content(), keep_empty=False)
  assert [source.name(i)[-5] for i in range(len(source))] == ["3", "7"]
  assert source.left_out == ("2 boxes without area", "1 image without boxes")
  np.testing.assert_array_equal(source[0][1], [[1, 2, 4.5, 6, 0, 0]])


def test_a_source_is_a_few_arrays_and_its_digest_covers_the_boxes(folder):
  data = content()
  source = load(folder, data)
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[0][1], source[0][1])
  assert copy.digest == source.digest
  data["annotations"][0]["bbox"][0] = 2
  assert load(folder, data).digest != source.digest
  # No object for each image or box.
  assert len(pickle.dumps(source)) < 3000


def change(part, index, **values):
  data = content()
  data[part][index].update(values)
  return data


def without(part, key):
  data = content()
  del data[part][0][key]
  return data


@pytest.mark.parametrize(
  ("data", "text"),
  [
    ("{", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ([], "has no list 'images'"),
    ({**content(), "annotations": [1]}, "has no list 'annotations'"),
    ({**content(), "annotations": []}, "'annotations' is empty"),
    (without("images", "file_name"), "'file_name' is missing in {'id': 7"),
    (without("images", "id"), "'id' is missing in {'file_name': 'sub/7.png'"),
    (without("annotations", "bbox"), "'bbox' is missing"),
    (without("categories", "name"), "'name' is missing"),
    (change("images", 0, id="7"), "'id' is '7'"),
    (change("images", 0, width=0), r"image 7 has width and height \[0, 20\]"),
    (change("images", 0, id=3), "in 'images', id 3 occurs twice"),
    (change("annotations", 0, id=12), "in 'annotations', id 12 occurs twice"),
    (change("categories", 0, id=2), "in 'categories', id 2 occurs twice"),
    (change("annotations", 0, image_id=8), "annotation 11 has the unknown image_id 8"),
    (change("annotations", 0, category_id=1), "the unknown category_id 1"),
    (change("annotations", 0, bbox=[1, 2, 3]), "must be x, y, width, height"),
    (change("annotations", 0, bbox=[1, 2, 3, "4"]), "must be x, y, width, height"),
    (change("annotations", 0, bbox=[1, 2, 3, float("nan")]), "must be finite"),
    (change("annotations", 0, bbox=[1, 2, 3, 10**400]), "must be finite"),
    (change("annotations", 0, iscrowd=2), "has iscrowd 2"),
    (
      {**content(), "annotations": [annotation(1, 5, 2, [0, 0, 0, 1])]},
      "has no boxes with an area",
    ),
  ],
)
def test_a_wrong_file_is_one_line(folder, data, text):
  with pytest.raises(UserError, match=text) as caught:
    load(folder, data)
  assert "\n" not in str(caught.value)


def test_missing_files_are_named(folder):
  with pytest.raises(NotFoundError, match="there is no file"):
    load_coco(folder / "none.json", folder)
  with pytest.raises(UserError, match="cannot be read"):
    load_coco(folder, folder)
  load(folder, content())
  with pytest.raises(NotFoundError, match="no folder of images"):
    load_coco(folder / "boxes.json", folder / "none")
  for number in (3, 7):
    (folder / f"sub/{number}.png").unlink()
  with pytest.raises(NotFoundError, match=r"sub/3.png', and 1 more images of 3"):
    load(folder, content())
  with pytest.raises(NotFoundError, match="no image"):
    load(folder, change("images", 2, file_name="\ud800\0"))


def test_a_split_is_one_file_of_boxes(folder):
  (folder / "annotations").mkdir()
  (folder / "images").symlink_to(folder)
  for name in ("val.json", "annotations/instances_train2017.json"):
    (folder / name).write_text(json.dumps(content()))
  assert len(list_boxed_images(folder, "train", True)) == 2
  assert len(list_boxed_images(folder, "", False)) == 3
  with pytest.raises(UserError, match=r"there are: val\.json, annotations/inst"):
    list_boxed_images(folder, "test", False)
  (folder / "annotations/instances_val.json").write_text("{}")
  both = re.escape("there are: val.json, annotations/instances_val.json")
  with pytest.raises(UserError, match=both):
    list_boxed_images(folder, "val", False)


def test_an_image_of_another_size_is_refused(folder):
  source = load(folder, content())
  Image.new("RGB", (20, 40)).save(folder / "sub/7.png")
  with pytest.raises(ImageError, match=r"has 20x40 pixels.* says 40x20"):
    source[2]


def picture(width, height, box):
  """Returns an image file that is black, with a white box."""
  image = np.zeros((height, width, 3), np.uint8)
  x0, y0, x1, y1 = box
  image[y0:y1, x0:x1] = 255
  return encode(image)


def encode(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  return file.getvalue()


def rows(*boxes):
  return np.array([[*box, 3, 0] for box in boxes], np.float32).reshape(-1, 6)


def transform(**options):
  return BoxedTransform(64, 3, "bilinear", 10**6, **options)


def test_evaluation_scales_the_long_side_and_pads_with_grey():
  box = (8, 4, 16, 12)
  image, label = transform().pair(picture(32, 16, box), rows(box), rng=generator())
  assert image.shape == (64, 64, 3)
  np.testing.assert_array_equal(image[32:], 115)
  assert image[16, 24].tolist() == [255] * 3 and not image[:6].any()
  padding = [0, 0, 0, 0, -1, 0]
  np.testing.assert_array_equal(label, [[16, 8, 32, 24, 3, 0], padding, padding])
  assert label.shape == transform().label.shape and label.dtype == np.float32


def generator(seed=0):
  return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [(32, 16), (100, 37), (7, 90), (200, 1)])
def test_boxes_in_the_square_are_mapped_back(size):
  width, height = size
  box = (width / 4, height / 4, width, height / 2)
  data = picture(*size, (0, 0, 1, 1))
  _, label = transform().pair(data, rows(box), generator())
  back = boxes_in_image(label[:1, :4], *size, 64)
  np.testing.assert_allclose(back, [box], rtol=1e-5)
  # Detections in the padding lie at the border of the image.
  far = boxes_in_image(np.array([[-5.0, -5, 70, 70]]), *size, 64)
  np.testing.assert_array_equal(far, [[0, 0, width, height]])


def test_a_box_outside_of_the_image_is_refused():
  data = picture(32, 16, (0, 0, 1, 1))
  for box in [(0, 0, 33, 5), (-1, 0, 3, 5), (4, 4, 4, 5), (0, 0, np.nan, 5)]:
    with pytest.raises(ImageError, match=re.escape("within its 32x16 pixels")):
      transform().pair(data, rows(box), generator())
  with pytest.raises(ValueError, match="max_boxes=3"):
    transform().pair(data, rows(*[(0, 0, 1, 1)] * 4), generator())


def test_other_pixels_and_images_without_boxes():
  data = encode(np.full((4, 8), 9, np.uint8))
  grey = transform(pixels=PixelFormat(1, 65535))
  image, label = grey.pair(data, rows(), generator())
  assert image.shape == (64, 64, 1) and image.dtype == np.uint16
  assert image[0, 0, 0] == 9 * 257 and image[-1, 0, 0] == round(0.45 * 65535)
  assert label[:, 4].tolist() == [-1] * 3
