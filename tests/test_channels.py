"""Images of more than 8 bits, and of other numbers of channels than three."""

import dataclasses
import io
import json
import tracemalloc
import zipfile

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import variables_of
from PIL import Image
from running import train_config

from resnet_jax import create_model, weights
from resnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig
from resnet_jax.config.preprocessing import Preprocessing, for_channels, from_dict
from resnet_jax.config.validation import validate
from resnet_jax.data import ImageArrays
from resnet_jax.data.audit.scan import scan
from resnet_jax.data.batches.preprocess import preprocess, resize_and_crop
from resnet_jax.data.images.auto_augment import rand_augment, trivial_augment
from resnet_jax.data.images.crops import (
  EvalTransform,
  TrainTransform,
  resize_exactly,
  resize_fast,
)
from resnet_jax.data.images.decode import decode, open_image
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.pipelines.opening import create_dataset
from resnet_jax.inference import classifier
from resnet_jax.inference.export import export
from resnet_jax.inference.image_grid import as_rgb
from resnet_jax.inference.predict import predict
from resnet_jax.models.variables import image_channels
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import create_mesh
from resnet_jax.training.evaluator import evaluate_run
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.transfer import load_start

LIMIT = 10**6
RNG = np.random.default_rng(0)


def values(*shape: int, dtype: str = "uint16", top: int = 65535) -> np.ndarray:
  return RNG.integers(0, top, shape, endpoint=True).astype(dtype)


def npy(array: np.ndarray) -> bytes:
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def npz(**named: np.ndarray) -> bytes:
  file = io.BytesIO()
  np.savez_compressed(file, **named)
  return file.getvalue()


def png(array: np.ndarray) -> bytes:
  """A PNG of [H, W], RGB or RGBA, 8 or 16 bits."""
  order = slice(None) if array.ndim == 2 else [2, 1, 0, 3][: array.shape[2]]
  return cv2.imencode(".png", array[..., order])[1].tobytes()


def tiff(array: np.ndarray, **options) -> bytes:
  tifffile = pytest.importorskip("tifffile")
  pytest.importorskip("imagecodecs")
  file = io.BytesIO()
  tifffile.imwrite(file, array, **({"photometric": "minisblack"} | options))
  return file.getvalue()


def bands(array: np.ndarray, **options) -> bytes:
  if array.ndim == 2 or array.shape[2] == 1:
    return tiff(array.reshape(array.shape[:2]), **options)
  return tiff(array, planarconfig="contig", **options)


def dicom(array: np.ndarray, **changes) -> bytes:
  pydicom = pytest.importorskip("pydicom")
  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  tags = {
    "SOPClassUID": pydicom.uid.SecondaryCaptureImageStorage,
    "SOPInstanceUID": pydicom.uid.generate_uid(),
    "Rows": array.shape[-2],
    "Columns": array.shape[-1],
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": int(array.dtype.kind == "i"),
    "PixelData": array.astype("<u2").tobytes(),
  }
  for name, value in (tags | changes).items():
    setattr(dataset, name, value)
  file = io.BytesIO()
  dataset.save_as(file, enforce_file_format=True)
  return file.getvalue()


def read(data: bytes, channels: int = 3, max_value: int = 0) -> np.ndarray:
  pixels = PixelFormat(channels, max_value)
  image = decode(data, open_image(data, LIMIT), 1, pixels)
  assert image.dtype == pixels.dtype and image.shape[2] == channels
  return image


def rounded(array: np.ndarray, whole: int, top: int) -> np.ndarray:
  return np.rint(array.astype(np.float64) * whole / top)


# What files store


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3), (9, 7, 4)])
@pytest.mark.parametrize("kind", [png, npy, bands])
def test_sixteen_bits_are_exact(kind, shape):
  stored = values(*shape, top=4095)
  data, channels = kind(stored), (*shape, 1)[2]
  expected = stored.reshape(9, 7, channels)
  found = read(data, channels, 4095)
  np.testing.assert_array_equal(found, rounded(expected, 65535, 4095))
  np.testing.assert_array_equal(read(data, channels), rounded(expected, 255, 65535))
  np.testing.assert_array_equal(read(data, channels, 65535), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32"])
def test_arrays_and_bands_are_read_in_any_order_of_memory(dtype, channels):
  stored = values(9, 7, channels, dtype=dtype, top=200)
  planes = np.ascontiguousarray(stored.transpose(2, 0, 1))
  files = [npy(stored), npz(x=stored), npy(np.asfortranarray(stored)), bands(stored)]
  files += [npy(stored.astype(stored.dtype.newbyteorder(">")))]
  files += [bands(stored, compression="lzw"), bands(stored, compression="zlib")]
  if channels > 1:
    files.append(tiff(planes, planarconfig="separate"))
  top = 255 if dtype == "uint8" else 200
  for data in files:
    found = read(data, channels, 200)
    np.testing.assert_array_equal(found, rounded(stored, 65535, top))


def test_the_first_page_of_a_tiff_is_read_upright():
  first, second = values(9, 7, 3), values(9, 7, 3)
  turned = [(274, "H", 1, 6, True)]  # Orientation: the viewer turns it to the right.
  for page in (first, (first >> 8).astype(np.uint8)):
    for options in ({}, {"extratags": turned}):
      data = tiff(page, photometric="rgb", **options)
      expected = np.rot90(page, -1) if options else page
      top = np.iinfo(page.dtype).max
      np.testing.assert_array_equal(read(data, 3, 65535) // (65535 // top), expected)
  several = tiff(np.stack([first, second]), photometric="rgb")
  np.testing.assert_array_equal(read(several, 3, 65535), first)


def test_a_tiff_whose_white_is_zero_is_inverted():
  for stored in (values(9, 7), values(9, 7, top=255, dtype="uint8")):
    top = np.iinfo(stored.dtype).max
    found = read(tiff(stored, photometric="miniswhite"), 1)[..., 0]
    np.testing.assert_array_equal(found, rounded(top - stored, 255, top))


def test_signed_bytes_of_a_tiff_are_not_taken_for_unsigned_ones():
  data = tiff(np.array([[-1, 5]], np.int8))
  with pytest.raises(ImageError, match="stores int8 values"):
    read(data, 1)
  with pytest.raises(ImageError, match="values go from -1 to 5"):
    read(data, 1, 100)


def test_grey_that_is_multiplied_by_its_alpha_is_divided_again():
  stored = np.array([[[50, 100], [200, 255]]], np.uint8)
  data = tiff(stored, planarconfig="contig", extrasamples=["assocalpha"])
  expected = [[[128], [200]]]
  assert np.abs(read(data, 1).astype(int) - expected).max() <= 1


def test_the_transparency_of_a_palette_is_a_channel():
  colors = Image.fromarray(values(9, 7, 3, dtype="uint8", top=255)).quantize(20)
  file = io.BytesIO()
  colors.save(file, "PNG", transparency=bytes(range(20)))
  expected = np.asarray(Image.open(file).convert("RGBA"))
  np.testing.assert_array_equal(read(file.getvalue(), 4), expected)
  np.testing.assert_array_equal(read(file.getvalue(), 3), expected[..., :3])


def test_an_array_of_an_npz_is_found_by_its_name():
  one, other = values(4, 5, 3, dtype="uint8", top=255), np.zeros((4, 5), np.uint8)
  for named in ({"x": one}, {"image": one, "mask": other}, {"arr_0": one, "b": other}):
    np.testing.assert_array_equal(read(npz(**named)), one)
  with pytest.raises(ImageError, match=r"2 arrays.*name one of them 'image'"):
    read(npz(a=one, b=other))


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (npy(np.array([{}], object)), "damaged|no image"),
    (npy(np.zeros(5)), r"array is \[5\]"),
    (npy(np.zeros((2, 3, 4, 5))), "an image is"),
    (npy(np.zeros((2, 3, 65))), "65 channels, more than 64"),
    (npy(np.zeros((0, 3))), "empty"),
    (npy(np.zeros((2, 3), complex)), "no image"),
    (npy(np.zeros((2, 3)))[:-1], "truncated"),
    (npy(np.zeros((2, 3))) + b"x", "damaged"),
    (b"\x93NUMPY\x01\0" + b"\xff\xff" + b"{" * 65535, "header is damaged"),
    (npz(x=np.zeros((2, 3)))[:-30], "damaged"),
    (npy(np.zeros((1000, 1001), bool)), "pixels, more than"),
    (b"II*\0\x08\0\0\0", "TIFF|damaged"),
  ],
)
def test_what_is_no_image_is_refused_by_one_line(data, message):
  with pytest.raises(ImageError, match=message) as caught:
    read(data)
  assert "\n" not in str(caught.value)


def test_only_the_expected_bytes_of_an_npz_are_decompressed():
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("image.npy", npy(np.zeros((2, 3), np.uint8)) + bytes(2**24))
  with pytest.raises(ImageError, match="6 bytes of values expected"):
    read(file.getvalue())


def test_a_long_header_in_a_small_npz_is_not_decompressed():
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    start = b"\x93NUMPY\x02\0" + (2**27).to_bytes(4, "little")
    archive.writestr("image.npy", start + b" " * 2**27)
  tracemalloc.start()
  try:
    with pytest.raises(ImageError, match="header is damaged"):
      open_image(file.getvalue(), LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 2**20
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_of_an_npz_are_refused(method):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method) as archive:
    archive.writestr("image.npy", npy(np.zeros((2, 3), np.uint8)))
  with pytest.raises(ImageError, match="not deflate"):
    read(file.getvalue())


@pytest.mark.parametrize("kind", [npy, lambda x: npz(x=x), bands])
def test_many_bytes_a_pixel_are_refused_before_they_are_read(kind):
  image = np.zeros((10, 10, 16), np.float32)  # 64 bytes a pixel.
  assert read(kind(image), 16, 1).shape == (10, 10, 16)
  open_image(kind(image), 800)
  with pytest.raises(ImageError, match="10x10 pixels take 6,400 bytes, more than 8 "):
    open_image(kind(image), 799)


def test_dicom_values_are_rescaled_and_dark_is_low():
  stored = values(6, 5, top=4095)
  grey = stored[..., None]
  expected = rounded(grey, 255, 4095)  # BitsStored gives the range.
  np.testing.assert_array_equal(read(dicom(stored), 1), expected)
  inverted = dicom(stored, PhotometricInterpretation="MONOCHROME1")
  np.testing.assert_array_equal(read(inverted, 1), rounded(4095 - grey, 255, 4095))
  frames = dicom(np.stack([stored, stored[::-1]]), NumberOfFrames=2)
  np.testing.assert_array_equal(read(frames, 1), expected)
  doubled = dicom(stored, RescaleSlope=2, RescaleIntercept=0)
  found = read(doubled, 1, 10000)
  np.testing.assert_array_equal(found, rounded(2.0 * grey, 65535, 10000))
  with pytest.raises(ImageError, match=r"set config\.data\.max_value"):
    read(doubled, 1)
  with pytest.raises(ImageError, match="values go from -"):
    read(dicom(stored, RescaleSlope=1, RescaleIntercept=-1024), 1, 4095)
  with pytest.raises(ImageError, match="damaged"):
    read(dicom(stored)[:-9], 1)
  eight = dicom(stored % 256, BitsStored=8, HighBit=7)  # In 16 bits.
  np.testing.assert_array_equal(read(eight, 1), grey % 256)


# Channels and range


def test_grey_and_colour_become_each_other_and_alpha_is_dropped():
  color = values(9, 7, 3, dtype="uint8", top=255)
  image = Image.fromarray(color)
  luma = np.asarray(image.convert("L"))
  np.testing.assert_array_equal(read(png(color), 1)[..., 0], luma)
  np.testing.assert_array_equal(read(png(luma), 3), np.stack([luma] * 3, -1))
  np.testing.assert_array_equal(read(png(luma), 1)[..., 0], luma)
  # 16 bits have the same luma.
  deep = read(png(color.astype(np.uint16) * 257), 1, 65535)
  assert np.abs(deep[..., 0] / 257 - luma).max() <= 0.5 + 1 / 257
  alpha = np.dstack([color, luma])
  for channels, expected in ((4, alpha), (3, color)):
    np.testing.assert_array_equal(read(png(alpha), channels), expected)
  np.testing.assert_array_equal(read(png(alpha), 1)[..., 0], luma)
  file = io.BytesIO()
  image.convert("LA").save(file, "PNG")
  assert read(file.getvalue(), 2)[..., 1].min() == 255


@pytest.mark.parametrize(
  ("found", "wanted"), [(2, 3), (5, 3), (4, 3), (2, 1), (5, 1), (3, 4), (1, 2), (3, 5)]
)
def test_channels_are_never_guessed(found, wanted):
  message = rf"has {found} channels?, and .*\b{wanted}\b.* config.data.channels={found}"
  with pytest.raises(ImageError, match=message):
    read(npy(np.zeros((4, 5, found), np.uint8)), wanted)


@pytest.mark.parametrize("bad", [101.0, -1.0, np.nan, np.inf])
def test_values_out_of_range_are_refused(bad):
  image = np.full((3, 4), 50.0)
  np.testing.assert_array_equal(read(npy(image), 1, 100), np.full((3, 4, 1), 32768))
  image[1, 2] = bad
  with pytest.raises(ImageError, match=r"must be in \[0, 100\]"):
    read(npy(image), 1, 100)
  with pytest.raises(ImageError, match=r"float64 values; set config\.data\.max_value"):
    read(npy(image), 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_each_channel_is_resized_by_itself(interpolation):
  image = values(20, 24, 5)
  box = (1.0, 2.0, 19.0, 16.0)
  for resize in (
    lambda x: resize_exactly(x, box, 8, interpolation),
    lambda x: resize_fast(x, 16),
    lambda x: resize_fast(x, 8),
  ):
    whole = resize(image)
    assert whole.dtype == np.uint16 and whole.shape[2] == 5
    for i in range(5):
      one = resize(image[..., i : i + 1])
      np.testing.assert_array_equal(whole[..., i : i + 1], one)
    shallow = (image >> 8).astype(np.uint8)
    difference = resize(shallow[..., :3]) - resize(shallow[..., :3].astype(np.uint16))
    assert np.abs(difference.astype(np.int8)).max() <= 1
    np.testing.assert_array_equal(  # Pillow's RGB, as ever.
      resize(np.ascontiguousarray(shallow[..., :3])), resize(shallow)[..., :3]
    )


def test_sixteen_bits_are_preprocessed_as_the_same_numbers_in_floats():
  images = values(2, 8, 8, 4)
  mean, std = (0.1, 0.2, 0.3, 0.4), (0.2, 0.3, 0.4, 0.5)
  found = preprocess(jnp.asarray(images), mean=mean, std=std)
  expected = (images / 65535.0 - mean) / std
  np.testing.assert_allclose(found, expected, atol=2e-6)
  options = {"padding": 1, "brightness": 0.4, "contrast": 0.4}
  options |= {"erasing": 0.5, "mean": mean, "std": std}
  shallow = jnp.asarray((images >> 8).astype(np.uint8))
  deep = shallow.astype(jnp.uint16) * 257
  key = jax.random.key(3)
  augment = jax.jit(lambda images: preprocess(images, key, **options))
  pair = [augment(images) for images in (shallow, deep)]
  np.testing.assert_array_equal(*pair)  # 257 v is v.
  resized = resize_and_crop(jnp.asarray(images), 5, 4, "bicubic")
  assert resized.dtype == jnp.uint16 and int(resized.max()) > 255


def test_policies_work_on_grey_images():
  image = np.broadcast_to(values(12, 12, 1, dtype="uint8", top=255), (12, 12, 3))
  grey = np.ascontiguousarray(image[..., :1])
  for seed in range(20):
    for policy in (rand_augment, trivial_augment):
      color = policy(np.ascontiguousarray(image), np.random.default_rng(seed))
      found = policy(grey, np.random.default_rng(seed))
      assert found.shape == (12, 12, 1)
      # Pillow rounds the mean of RGB in another place.
      assert np.abs(color[..., :1].astype(int) - found).max() <= 1


def test_pictures_show_the_first_channels():
  image = values(3, 4, 5)
  np.testing.assert_array_equal(as_rgb(image), np.rint(image[..., :3] / 257))
  two = as_rgb(image[..., :2])
  np.testing.assert_array_equal(two, np.rint(image[..., [0, 0, 0]] / 257))


# Settings


@pytest.mark.parametrize(
  ("data", "augment", "message"),
  [
    ({"channels": 0}, {}, r"config.data.channels=0 must be in \[1, 64\]"),
    ({"max_value": -1}, {}, "config.data.max_value=-1 must be"),
    ({"channels": 4}, {"policy": "rand"}, "policy='rand' needs 8-bit images of 1 or 3"),
    ({"max_value": 9}, {"policy": "trivial"}, "policy='trivial' needs 8-bit"),
    ({"channels": 4, "channel_order": "bgr"}, {}, "channel_order='bgr' has no meaning"),
  ],
)
def test_settings_without_a_meaning_are_refused(data, augment, message):
  data = DataConfig(train_crop="center", train_resize=32, **data)
  with pytest.raises(UserError, match=message):
    validate(Config(data=data, augment=AugmentConfig(**augment)))


def test_settings_for_files_are_refused_for_images_in_memory():
  arrays = ImageArrays(np.zeros((4, 8, 8, 2), np.uint16), np.zeros(4, int), ("a", "b"))
  mesh = create_mesh(jax.devices()[:1])
  for settings, message in (
    ({"channels": 4}, "channels=4 is for images that are decoded.*with 2 channels"),
    ({"max_value": 9}, "max_value=9 is for images that are decoded"),
  ):
    with pytest.raises(UserError, match=message):
      create_dataset(DataConfig(**settings), 4, mesh, source=arrays)
  data = create_dataset(DataConfig(), 4, mesh, source=arrays)
  (feed, _), *_ = data.eval_chunks()
  assert data.take_batch(feed, 0)["image"].dtype == jnp.uint16


def test_mean_and_std_of_weights_follow_the_first_kernel():
  rgb = Preprocessing((0.1, 0.2, 0.6), (0.3, 0.4, 0.5))
  assert for_channels(rgb, 3) == rgb
  assert for_channels(rgb, 5).mean == (0.1, 0.2, 0.6, 0.1, 0.2)
  np.testing.assert_allclose(for_channels(rgb, 1).mean, [0.3])
  np.testing.assert_allclose(for_channels(rgb, 1).std, [0.4])
  older = dataclasses.asdict(rgb)
  del older["max_value"]
  assert from_dict(older) == rgb
  with pytest.raises(UserError, match=r"max_value=0\.5"):
    from_dict(older | {"max_value": 0.5})


# Whole runs

SIDE = 8
KINDS = {
  "16-bit png": ({".png": png}, (SIDE, SIDE), {"channels": 1, "max_value": 4095}),
  "four bands": ({".npy": npy, ".tif": bands}, (SIDE, SIDE, 4), {"channels": 4}),
}


def write_set(root, writers, shape) -> None:
  """Writes images of 12 bits, or of 8 bits if they have several channels."""
  rng = np.random.default_rng(1)
  for split, count in (("train", 6), ("val", 3)):
    for label in (0, 1):
      folder = root / split / f"class{label}"
      folder.mkdir(parents=True)
      for i in range(count):
        image = (rng.integers(0, 2000, shape) + 1500 * label).astype(np.uint16)
        if len(shape) > 2:
          image = (image >> 4).astype(np.uint8)
        suffix = [*writers][i % len(writers)]
        (folder / f"{i}{suffix}").write_bytes(writers[suffix](image))


def make_config(root, settings, **changes) -> Config:
  data = DataConfig(
    name="folder",
    dir=str(root),
    train_crop="random",
    train_resize=SIDE + 2,
    image_size=SIDE,
    eval_resize=SIDE,
    eval_crop=SIDE,
    mean=(0.4,) * settings["channels"],
    num_threads=1,
    **settings,
  )
  augment = AugmentConfig(flip=True, brightness=0.2)
  config = Config(data=data, batch_size=4, num_steps=3, augment=augment)
  config.model = ModelConfig("resnet8")
  return dataclasses.replace(config, **changes)


def run(config, workdir):
  return train_config(config, str(workdir), jax.devices()[:1])


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
  """A run of 3 steps on images of one kind: its settings, directory and last state."""
  writers, shape, settings = KINDS[request.param]
  root = tmp_path_factory.mktemp("images")
  write_set(root, writers, shape)
  config = make_config(root, settings)
  workdir = root / "run"
  state, results = run(config, workdir)
  return config, workdir, state, results


@pytest.mark.parametrize("trained", ["16-bit png"], indirect=True)
def test_a_resumed_run_equals_an_uninterrupted_one(trained, tmp_path):
  config, _, state, _ = trained
  run(dataclasses.replace(config, num_steps=1), tmp_path)
  resumed, _ = run(config, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, resumed.variables, state.variables)


def test_predictions_are_those_of_the_evaluation(trained):
  config, workdir, _, results = trained
  net = classifier.load(str(workdir))
  assert net.channels == image_channels(net.variables) == config.data.channels
  assert net.preprocessing.max_value == config.data.max_value
  found = [*predict(net, [f"{config.data.dir}/val"], top=2, num_pictures=1)]
  assert not any(each.error for each in found) and len(found) == 6
  labels = [int(each.file.split("class")[1][0]) for each in found]
  scores = [
    each.probabilities[each.classes.index(label)]
    for each, label in zip(found, labels, strict=True)
  ]
  np.testing.assert_allclose(-np.log(scores).mean(), results["loss"], rtol=1e-4)
  pixels = PixelFormat(config.data.channels, config.data.max_value)
  with open(found[0].file, "rb") as file:
    expected = EvalTransform(SIDE, SIDE, "bilinear", LIMIT, pixels)(file.read(), RNG)
  np.testing.assert_array_equal(found[0].image, expected)
  devices = jax.devices()[:1]
  _, again = evaluate_run(config, str(workdir), devices=devices)
  assert again["loss"] == results["loss"]


def test_weights_remember_the_range(trained, tmp_path):
  config, workdir, state, _ = trained
  net = classifier.load(str(workdir))
  path = tmp_path / "net.safetensors"
  weights.save(path, net.model, state.variables, net.preprocessing, net.class_names)
  again = classifier.load(str(path))
  assert again.preprocessing == net.preprocessing and again.channels == net.channels
  shape = 2, SIDE, SIDE, net.channels
  dtype = np.uint16 if config.data.max_value else np.uint8
  images = values(*shape, top=np.iinfo(dtype).max, dtype=dtype.__name__)
  np.testing.assert_array_equal(
    again(images)["probabilities"], net(images)["probabilities"]
  )
  if config.data.max_value:
    with pytest.raises(UserError, match=r"8-bit images.*max_value=4095"):
      weights.save_folder(
        tmp_path / "new", "timm", net.model, state.variables, net.preprocessing
      )


def test_an_export_takes_the_stored_dtype(trained, tmp_path):
  config, workdir, _, _ = trained
  path = tmp_path / "net.stablehlo"
  assert export(classifier.load(str(workdir)), str(path), "stablehlo") < 1e-4
  again = jax.export.deserialize(bytearray(path.read_bytes()))
  expected = jnp.uint16 if config.data.max_value else jnp.uint8
  assert again.in_avals[0].dtype == expected


def test_the_check_reads_all_of_them(trained, tmp_path):
  config, *_ = trained
  report = scan(config.data, str(tmp_path / "sheet.png"))
  assert report.ok and not report.unreadable and not report.misnamed
  assert Image.open(report.picture).size[0] > 100
  assert json.dumps(report.splits["train"].modes)


def test_weights_of_colour_images_start_a_run_on_other_channels(trained, tmp_path):
  config, *_ = trained
  model = create_model("resnet8", 2)
  start = variables_of(model, jnp.zeros((1, SIDE, SIDE, 3)))
  path, rgb = tmp_path / "rgb.safetensors", Preprocessing((0.1, 0.2, 0.3), (0.5,))
  weights.save(path, model, start, rgb)
  data = dataclasses.replace(config.data, mean=())
  config = dataclasses.replace(config, data=data, init_from=str(path))
  experiment = Experiment.create(config, devices=jax.devices()[:1])
  data, channels = experiment.config.data, config.data.channels
  np.testing.assert_allclose(data.mean, (0.1, 0.2, 0.3, 0.1) if channels == 4 else 0.2)
  shape = SIDE, SIDE, channels
  found = load_start(str(path), experiment.model, shape, data)
  old, new = (x["params"]["stem"]["conv"]["kernel"] for x in (start, found))
  expected = old.sum(2, keepdims=True)
  if channels == 4:
    expected = jnp.concatenate([old, old[:, :, :1]], axis=2) * 0.75
  np.testing.assert_allclose(new, expected, rtol=1e-6)


def test_a_file_with_other_channels_is_named():
  data = npy(np.zeros((9, 9, 4), np.uint8))
  for transform in (
    EvalTransform(8, 8, "bilinear", LIMIT),
    TrainTransform("random_resized", 8, 8, 0.1, "bilinear", "", 0, LIMIT),
  ):
    with pytest.raises(ImageError, match="has 4 channels"):
      transform(data, np.random.default_rng(0))
