"""A trained detector in use: arrays, files and pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import pixels, variables_of
from PIL import Image
from small_detector import tiny_detector

from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.data.batches.preprocess import normalize
from resnet_jax.inference.detector import Detector, FoundObjects
from resnet_jax.inference.drawn_boxes import draw_boxes
from resnet_jax.inference.export import export
from resnet_jax.inference.exported_function import exported_function
from resnet_jax.models.anchors import detect
from resnet_jax.runtime.errors import NotFoundError, UserError

PREPARED = Preprocessing(mean=(0.4,), std=(0.3,), crop=32)


@pytest.fixture(scope="module")
def detector():
  model = tiny_detector(3)
  variables = variables_of(model, jnp.zeros((1, 32, 32, 3)), spread=0.5)
  names = ("cat", "dog", "owl")
  return Detector("tiny", model, variables, PREPARED, names, labels="boxes", most=20)


def test_objects_are_those_of_the_network(detector):
  images = pixels(2, 32, 48, 3)  # Not square, and of another size than for files.
  ours = detector(images)
  outputs = detector.model.apply(
    detector.variables, normalize(images, PREPARED.mean, PREPARED.std)
  )
  expected = detect(outputs, detector.model.anchors((32, 48)), (32, 48), most=20)
  assert expected.mask.any()
  labels = np.where(expected.mask, expected.labels, -1)
  np.testing.assert_array_equal(ours["classes"], labels)
  np.testing.assert_allclose(ours["scores"], expected.scores, atol=1e-5)
  np.testing.assert_allclose(ours["boxes"], expected.boxes, atol=1e-3)


def test_boxes_of_files_are_in_their_own_pixels(detector, tmp_path):
  image = np.array(pixels(16, 32, 3))
  Image.fromarray(image).save(tmp_path / "a.png")
  (tmp_path / "b.png").write_bytes(b"")
  double = Image.fromarray(image.repeat(2, axis=0).repeat(2, axis=1))
  double.save(tmp_path / "c.png")
  one, damaged, large = detector.predict([str(tmp_path)], batch_size=2)
  square = np.full((1, 32, 32, 3), round(0.45 * 255), np.uint8)
  square[0, :16] = image
  found = jax.device_get(detector(square))
  boxes = found["boxes"][0][found["classes"][0] >= 0].clip(0, [32, 16, 32, 16])
  np.testing.assert_allclose(one.boxes, boxes, atol=2e-3)
  assert one.file.endswith("a.png") and one.boxes.any()
  assert damaged.error and not len(damaged.boxes)
  assert large.boxes.max() > 32  # Of 64x32 pixels.
  with pytest.raises(NotFoundError, match="no image or folder 'x'"):
    next(detector.predict("x"))


def test_outputs_that_are_not_finite_are_no_empty_answer(detector, tmp_path):
  broken = jax.tree.map(lambda x: x * jnp.nan, detector.variables)
  broken = dataclasses.replace(detector, variables=broken)
  Image.fromarray(np.array(pixels(32, 32, 3))).save(tmp_path / "a.png")
  with pytest.raises(FloatingPointError, match=r"a\.png are not finite"):
    next(broken.predict([str(tmp_path)]))
  with pytest.raises(UserError, match="images have 2 channels, the network takes 3"):
    detector(pixels(1, 32, 32, 2))


def test_drawn_boxes_are_where_they_are(detector):
  image = np.zeros((60, 80, 1), np.uint8)
  boxes = np.array([[20, 30, 40, 50], [0, 0, 9, 9]], np.float32)
  scores, classes = np.float32([0.9, 0.3]), np.int32([0, 2])
  found = FoundObjects("", boxes=boxes, scores=scores, classes=classes)
  drawn = found.draw(image, detector.class_names)
  assert drawn.shape == (60, 80, 3) and drawn.dtype == np.uint8
  rows, columns = np.nonzero(drawn[30:].any(axis=-1))
  assert (rows.min(), rows.max()) == (0, 19)
  assert (columns.min(), columns.max()) == (20, 39)
  assert not drawn[:15].any()  # The other one has a low score.
  assert not FoundObjects("", "unreadable").draw(image, ()).any()
  large = draw_boxes(image, boxes[:1], np.array([0]), ["x"], enlarge=3)
  assert large.shape == (180, 240, 3) and large[149, 100].any()
  with pytest.raises(UserError, match="2 channels cannot be drawn"):
    draw_boxes(np.zeros((4, 4, 2), np.uint8), boxes[:0], np.zeros(0, int), [])


def test_an_exported_detector_has_a_box_and_probabilities_for_each_anchor(
  detector, tmp_path
):
  pytest.importorskip("onnxruntime")
  path = str(tmp_path / "detector.onnx")
  # With smaller weights, sizes are not the exponentials of large numbers.
  smaller = jax.tree.map(lambda x: x / 2, detector.variables)
  detector = dataclasses.replace(detector, variables=smaller)
  assert export(detector, path, "onnx") <= 1e-4
  exported = exported_function(detector)
  images = pixels(2, 32, 32, 3)
  found = exported.function(exported.variables, images)
  anchors = sum(map(len, detector.model.anchors((32, 32))))
  assert found.shape == (2, anchors, 4 + 3)
  # The best object of an image is the best candidate.
  ours = detector(images)
  place = np.asarray(found[..., 4:]).max(axis=2).argmax(axis=1)
  for image in range(2):
    best = found[image, place[image]]
    np.testing.assert_allclose(best[:4], ours["boxes"][image, 0], atol=2e-3)
    np.testing.assert_allclose(best[4:].max(), ours["scores"][image, 0], atol=1e-5)
