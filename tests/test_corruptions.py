"""Corrupted images, and evaluations on them."""

import csv
import io
import json
import re

import cv2
import jax
import numpy as np
import pytest
from matplotlib import colors
from PIL import Image
from scipy import ndimage, stats

from resnet_jax.cli.main import main
from resnet_jax.config import Config, ModelConfig
from resnet_jax.data.sources.built_in import load_digits
from resnet_jax.evaluation import corruptions
from resnet_jax.evaluation.answers import collect, collector
from resnet_jax.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from resnet_jax.evaluation.robustness import Robustness, write_robustness
from resnet_jax.training.evaluator import prepare_weights

WEIGHTS = "resnet8_digits"
DIGITS = ["evaluate", f"--weights={WEIGHTS}", "--dataset=digits"]
SIDES = 32, 224  # One for each set of numbers.


def natural(side, channels=3):
  """Colours with a spectrum of 1 / frequency, like photos, and an edge."""
  random = np.random.default_rng(0)
  y, x = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
  decay = 1 / np.maximum(np.hypot(y, x), 1 / side)
  noise = np.fft.fft2(random.normal(size=(4, side, side))) * decay
  shared, *own = np.fft.ifft2(noise).real
  image = np.stack([shared + 0.4 * layer for layer in own[:channels]], axis=-1)
  image = image / image.std() * 45 + 110
  image[: side // 2, side // 3 :] += 30
  return np.clip(image, 0, 255).astype(np.uint8)


def number_of(name, strength, side):
  row = CORRUPTIONS[name]
  return (row.small if side <= 64 else row.large)[strength - 1]


def as_bytes(values):
  """As the paper's code: clipped, then cut off."""
  return np.uint8(np.clip(values, 0, 1) * 255)


@pytest.mark.parametrize("shape", [(32, 32), (224, 224), (8, 8), (20, 33), (70, 50)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_and_dtype_are_kept_and_the_result_is_the_same_again(
  name, channels, shape
):
  if channels == 1 and CORRUPTIONS[name].needs_color:
    return
  image = natural(224, channels)[: shape[0], : shape[1]]
  before = image.copy()
  for strength in STRENGTHS:
    found = corrupt(image, name, strength, 7)
    assert found.shape == image.shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found, corrupt(image, name, strength, 7))
    if shape != (8, 8):  # So small an image may get no impulse.
      assert (found != image).any()
  np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_stronger_corruption_changes_more(name, side):
  image = natural(side)
  found = [corrupt(image, name, strength, 0) for strength in STRENGTHS]
  changes = [np.square(x.astype(float) - image).mean() for x in found]
  if name == "saturate":  # The paper's first two strengths take colour, the others add.
    assert changes[0] < changes[1] and changes[2] < changes[3] < changes[4]
  else:
    assert changes == sorted(set(changes)), changes


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if "noise" in name])
def test_noise_depends_on_the_place_of_the_image_and_on_the_strength(name):
  image = np.full((32, 32, 3), 128, np.uint8)
  found = [corrupt(image, name, strength, i) for strength in (1, 2) for i in (0, 1)]
  for i, one in enumerate(found):
    for other in found[:i]:
      assert (one != other).any()


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("side", SIDES)
def test_noise_has_its_variance(side, strength):
  """On a grey image whose values are hardly clipped, in units of the range."""
  grey = 102 / 255
  image = np.full((side, side, 3), 102, np.uint8)

  def values_of(name):
    found = [corrupt(image, name, strength, i) for i in range(4)]
    # Cutting off loses half a step on average.
    return (np.array(found) + 0.5) / 255, number_of(name, strength, side)

  def variance_of_clipped(deviation):
    z = np.linspace(-6, 6, 100_001)
    x = np.clip(grey + deviation * z, 0, 1)
    weights = stats.norm.pdf(z) / stats.norm.pdf(z).sum()
    return weights @ x**2 - (weights @ x) ** 2

  for name, scale in (("gaussian_noise", 1.0), ("speckle_noise", grey)):
    values, deviation = values_of(name)
    expected = variance_of_clipped(scale * deviation)
    np.testing.assert_allclose(values.var(), expected, rtol=0.06, err_msg=name)
    if side == 32:
      np.testing.assert_allclose(expected, (scale * deviation) ** 2, rtol=1e-3)
  values, photons = values_of("shot_noise")
  counts = np.arange(2000)
  chances = stats.poisson.pmf(counts, grey * photons)
  shares = np.minimum(counts / photons, 1)
  expected = chances @ shares**2 - (chances @ shares) ** 2
  np.testing.assert_allclose(values.var(), expected, rtol=0.06)
  if side == 32:  # A Poisson number has its mean as its variance.
    np.testing.assert_allclose(expected, grey / photons, rtol=1e-3)
  values, share = values_of("impulse_noise")
  for end in (0.5 / 255, 255.5 / 255):
    tolerance = 4 * np.sqrt(share / 2 / values.size)
    np.testing.assert_allclose((values == end).mean(), share / 2, atol=tolerance)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("side", SIDES)
def test_corruptions_without_noise_are_their_formulas(side, strength):
  image = natural(side)
  values = image / 255
  image[:4, :4], values[:4, :4] = 0, 0  # Black and grey have no hue.
  image[4:8, :4], values[4:8, :4] = 100, 100 / 255

  def compare(name, expected, atol=0):
    found = corrupt(image, name, strength, 0).astype(int)
    assert np.abs(found - expected.astype(int)).max() <= atol, name

  c = number_of("contrast", strength, side)
  mean = values.mean(axis=(0, 1), keepdims=True)
  compare("contrast", as_bytes((values - mean) * c + mean))

  picture, c = Image.fromarray(image), number_of("pixelate", strength, side)
  box = Image.Resampling.BOX
  small = picture.resize((int(side * c), int(side * c)), box)
  compare("pixelate", np.array(small.resize((side, side), box)))

  buffer = io.BytesIO()
  quality = number_of("jpeg_compression", strength, side)
  picture.save(buffer, "JPEG", quality=quality)
  compare("jpeg_compression", np.array(Image.open(buffer)))

  c = number_of("gaussian_blur", strength, side)
  blurred = ndimage.gaussian_filter(values, (c, c, 0), mode="nearest", truncate=4)
  compare("gaussian_blur", as_bytes(blurred), atol=1)

  # Where cutting off meets a whole number, rounding decides; hence 1.
  hsv = colors.rgb_to_hsv(values)
  hsv[..., 2] = np.clip(hsv[..., 2] + number_of("brightness", strength, side), 0, 1)
  compare("brightness", as_bytes(colors.hsv_to_rgb(hsv)), atol=1)
  hsv = colors.rgb_to_hsv(values)
  factor, offset = number_of("saturate", strength, side)
  hsv[..., 1] = np.clip(hsv[..., 1] * factor + offset, 0, 1)
  compare("saturate", as_bytes(colors.hsv_to_rgb(hsv)), atol=1)

  radius, sigma = number_of("defocus_blur", strength, side)
  half, size = (8, 3) if radius <= 8 else (radius, 5)
  y, x = np.mgrid[-half : half + 1, -half : half + 1]
  disk = (x**2 + y**2 <= radius**2).astype(np.float64)
  disk = cv2.GaussianBlur(disk / disk.sum(), (size, size), sigma)
  blurred = ndimage.correlate(values, disk[..., None], mode="mirror")
  compare("defocus_blur", as_bytes(blurred), atol=1)


def test_grey_images_are_corrupted_as_colour_images_are():
  grey = natural(32, 1)
  color = np.repeat(grey, 3, axis=2)
  for name in ("gaussian_blur", "defocus_blur", "brightness", "contrast", "pixelate"):
    found = corrupt(grey, name, 3, 0)
    np.testing.assert_array_equal(
      np.repeat(found, 3, axis=2), corrupt(color, name, 3, 0), err_msg=name
    )


@pytest.mark.parametrize("side", SIDES)
def test_a_batch_is_its_images(side):
  images = np.stack([natural(side), natural(side)[::-1]])
  found = corruptions.corrupt_batch("shot_noise", 2)(images, 5)
  expected = [corrupt(image, "shot_noise", 2, 5 + i) for i, image in enumerate(images)]
  np.testing.assert_array_equal(found, expected)


def prepare(batch_size=64, **kwargs):
  model = ModelConfig(name="resnet8", num_classes=10, dtype="float32")
  return prepare_weights(Config(batch_size=batch_size, model=model), WEIGHTS, **kwargs)


def test_answers_are_those_of_the_corrupted_images():
  """The place of each image is right, whatever the batches are."""
  images = load_digits("test").images
  seen = {}

  def spy(batch, first):
    for i, image in enumerate(batch):
      if first + i < len(images):
        np.testing.assert_array_equal(image, images[first + i])
      seen[first + i] = seen.get(first + i, 0) + 1
    return batch

  prepared = prepare()
  run = collector(prepared)
  plain, same = run(None), run(spy)
  np.testing.assert_allclose(same.logits, plain.logits, atol=1e-4)
  np.testing.assert_array_equal(same.index, plain.index)
  np.testing.assert_array_equal(same.labels, plain.labels)
  assert set(seen) >= set(range(360)) and set(seen.values()) == {1}
  noisy = run(corruptions.corrupt_batch("gaussian_noise", 5))
  assert np.abs(noisy.logits - plain.logits).max() > 0.1
  other = collect(prepare(40), corrupt=corruptions.corrupt_batch("gaussian_noise", 5))
  np.testing.assert_allclose(other.logits, noisy.logits, atol=1e-4)


@pytest.mark.several_devices
def test_noise_is_the_same_on_any_number_of_devices():
  noise = corruptions.corrupt_batch("shot_noise", 5)
  found = collect(prepare(), corrupt=noise)
  one = collect(prepare(devices=jax.devices()[:1]), corrupt=noise)
  np.testing.assert_allclose(found.logits, one.logits, atol=1e-4)


def test_the_command_prints_and_writes_a_table(tmp_path, capsys):
  names = "gaussian_noise,contrast"
  folder = tmp_path / "report"
  main([*DIGITS, f"--corruptions={names}", f"--report={folder}"])
  lines = capsys.readouterr().out.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith("top-1 error, %"))
  table = [line.split() for line in lines[start : start + 5]]
  assert table[0] == ["top-1", "error,", "%", "1", "2", "3", "4", "5", "mean"]
  assert table[1][:2] == ["no", "corruption"]
  assert [row[0] for row in table[2:]] == ["gaussian_noise", "contrast", "mean"]
  with open(folder / "corruptions.csv") as file:
    rows = [*csv.reader(file)]
  assert [row[1:] for row in rows[2:]] == [row[1:] for row in table[2:]]
  markdown = (folder / "corruptions.md").read_text()
  assert "| contrast | " in markdown and markdown in (folder / "report.md").read_text()
  page = (folder / "report.html").read_text()
  for row in rows:
    cells = "".join(f"<t[dh]>{re.escape(cell)}</t[dh]>" for cell in row)
    assert re.search(cells, page)
  with Image.open(folder / "corruptions.png") as picture:
    assert min(picture.size) > 200

  main([*DIGITS, f"--corruptions={names}", "--json", "--batch-size=48"])
  found = json.loads(capsys.readouterr().out)
  errors = found["corruptions"]["errors"]
  for row in rows[2:4]:
    assert [f"{100 * x:.2f}" for x in errors[row[0]]] == row[1:6]
  assert found["corruptions"]["clean_error"] == pytest.approx(1 - found["top1"])
  mean = found["corruptions"]["mean_error"]
  assert mean == pytest.approx(np.mean([*errors.values()]))
  assert f"{100 * mean:.2f}" == rows[-1][-1]
  write_robustness(folder, None)  # Another report without corruptions.
  assert not [*folder.glob("corruptions.*")]


def test_the_table_of_an_ensemble_is_that_of_averaged_answers(capsys):
  flags = "--corruptions=impulse_noise", "--json"
  main([*DIGITS, *flags])
  alone = json.loads(capsys.readouterr().out)
  main([*DIGITS, *flags, f"--ensemble={WEIGHTS}"])
  both = json.loads(capsys.readouterr().out)
  assert both["corruptions"] == alone["corruptions"]


@pytest.mark.parametrize(
  ("names", "said"),
  [
    ("fog", "'fog' is no corruption; the names are all, gaussian_noise, shot_noise"),
    ("contrast,", "'' is no corruption"),
    ("", "'' is no corruption"),
    ("saturate", "saturate needs colour, and the images are grey"),
  ],
)
def test_wrong_names_are_refused_in_one_line(names, said, capsys):
  with pytest.raises(SystemExit) as info:
    main([*DIGITS, f"--corruptions={names}"])
  error = capsys.readouterr().err
  assert info.value.code == 2 and said in error and error.count("\n") == 1


def test_all_names_without_colour_are_those_of_grey_images():
  everything = corruptions.parse_names("all")
  assert everything == [*CORRUPTIONS]
  assert corruptions.fit_channels(everything, 3) == everything
  grey = corruptions.fit_channels(everything, 1)
  assert set(everything) - set(grey) == {"saturate"}
  with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
    corruptions.fit_channels(everything, 4)


def test_the_means_are_of_each_row_and_of_each_column():
  found = Robustness(0.1, {"a": [0, 0.1, 0.2, 0.3, 0.4], "b": [1, 1, 1, 1, 1]})
  assert found.mean == pytest.approx(0.6)
  _, clean, first, second, last = found.rows()
  assert clean == ["no corruption", "", "", "", "", "", "10.00"]
  assert first[-1] == "20.00" and second[-1] == "100.00"
  assert last == ["mean", "50.00", "55.00", "60.00", "65.00", "70.00", "60.00"]
