"""An exported network, used as the documentation says, answers as `predict` does."""

import re
from pathlib import Path

import numpy as np
import pytest
from arrays import pixels
from PIL import Image
from test_use import NAMES, create

from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.data.pipelines.single_pass import find_images
from resnet_jax.inference.export import export
from resnet_jax.inference.predict import predict
from resnet_jax.models.norms import NORMS
from resnet_jax.models.stems import ImageNetStem

PAGE = Path(__file__).parents[1] / "docs" / "pretrained.md"
COLORS = {"mean": (0.4, 0.5, 0.6), "std": (0.5,)}
SIZES = {
  # The StableHLO example is written for these sizes; an ONNX file stores its own.
  "stablehlo": Preprocessing(**COLORS, resize=256, crop=224),
  "onnx": Preprocessing(**COLORS, resize=37, crop=32, interpolation="bicubic"),
  "onnx, not resized": Preprocessing(**COLORS, resize=0, crop=48),
}


def probabilities_of(trained, file: str) -> np.ndarray:
  """Returns the probabilities from `predict` for a file, by class."""
  (found,) = predict(trained, find_images([file]), top=len(NAMES))
  ranked = dict(zip(found.classes, found.probabilities, strict=True))
  return np.array([ranked[label] for label in range(len(NAMES))])


@pytest.mark.parametrize(("form", "size"), SIZES.items(), ids=SIZES)
def test_the_documented_use_answers_as_predict(form, size, tmp_path, monkeypatch):
  """The photo is neither square nor upright."""
  monkeypatch.chdir(tmp_path)
  form = form.split(",")[0]
  trained = create(stem_cls=ImageNetStem, preprocessing=size)
  export(trained, f"net.{form}", form)
  small = Image.fromarray(np.asarray(pixels(5, 8, 3)))
  exif = Image.Exif()
  exif[0x0112] = 6  # Must be rotated by a quarter turn.
  small.resize((300, 200)).save("photo.jpg", exif=exif)
  blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
  (text,) = (block for block in blocks if f"net.{form}" in block)
  variables = {}
  exec(compile(text, "page", "exec"), variables)
  wanted = probabilities_of(trained, "photo.jpg")
  assert (wanted < 0.9).all()  # No class has all the probability.
  np.testing.assert_allclose(variables["probabilities"][0], wanted, atol=1e-4)
  if form == "onnx":
    assert variables["class_names"] == list(trained.class_names)


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
@pytest.mark.parametrize("norm", NORMS)
def test_each_norm_is_exported(norm, form, tmp_path):
  trained = create(norm_cls=NORMS[norm])
  assert export(trained, str(tmp_path / "net"), form) <= 1e-4
