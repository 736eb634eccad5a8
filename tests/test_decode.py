"""Decodes the content of image files into pixels, or raises one clear error."""

import contextlib
import gc
import io
import re
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import grain
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from resnet_jax.data.images import errors, turbojpeg
from resnet_jax.data.images.crops import EvalTransform, TrainTransform
from resnet_jax.data.images.decode import (
  decode,
  decode_part,
  has_16_bits,
  open_image,
  upright_size,
)
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.formats import KNOWN, READ
from resnet_jax.data.pipelines.host_batches import Batches
from resnet_jax.data.sources.file_list import FileList

# The package ignores these warnings too, but pytest has filters of its own.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
LIMIT = 10**6
ORIENTATION = 0x0112


def picture(width: int = 61, height: int = 43) -> Image.Image:
  """A smooth, colourful image that differs from its mirror images and rotations."""
  y, x = np.mgrid[:height, :width] / max(width, height)
  channels = [x, y, (np.sin(9 * x * x + 4 * y) + 1) / 2]
  return Image.fromarray((255 * np.stack(channels, -1)).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def exif(orientation) -> Image.Exif:
  tags = Image.Exif()
  tags[ORIENTATION] = orientation
  return tags


def decoded(data: bytes, factor: int = 1) -> np.ndarray:
  image = open_image(data, LIMIT)
  width, height = upright_size(image)
  pixels = decode(data, image, factor)
  assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
  if factor == 1:
    assert pixels.shape == (height, width, 3)
  return pixels


def by_pillow(data: bytes) -> np.ndarray:
  image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  return np.asarray(image.convert("RGB"))


def noisy() -> Image.Image:
  rng = np.random.default_rng(0)
  noise = rng.normal(0, 40, (43, 61, 3))
  return Image.fromarray(np.clip(np.asarray(picture()) + noise, 0, 255).astype("uint8"))


def palette(image: Image.Image, colors: int = 30) -> Image.Image:
  return image.quantize(colors)


def ycck() -> bytes:
  """A JPEG whose four channels are YCC and K, like those of Photoshop."""
  data = encode(picture().convert("CMYK"), "JPEG")
  at = data.index(b"Adobe") + 11  # The marker's colour transform.
  assert data[at] == 0
  return data[:at] + b"\x02" + data[at + 1 :]


def alpha() -> Image.Image:
  image = picture().convert("RGBA")
  image.putalpha(picture().convert("L"))
  return image


def segments(size: int) -> tuple[bytes, bytes]:
  """Returns the header of a square JPEG, without its first marker, and its pixels."""
  data = encode(picture(size, size), "JPEG")
  pixels = data.index(b"\xff\xda")
  return data[2:pixels], data[pixels:]


SOI, SMALL, LARGE = b"\xff\xd8", segments(16), segments(200)
SMALL_JPEG, LARGE_JPEG = (SOI + head + pixels for head, pixels in (SMALL, LARGE))
JFIF = SMALL[0][:20]


def segment(marker: int, body: bytes, length: int | None = None) -> bytes:
  length = 2 + len(body) if length is None else length
  return bytes([0xFF, marker]) + struct.pack(">H", length) + body


JPEGS = {
  "rgb": encode(picture(), "JPEG"),
  "noise": encode(noisy(), "JPEG"),
  "grayscale": encode(picture().convert("L"), "JPEG"),
  "progressive": encode(noisy(), "JPEG", progressive=True),
  "optimised": encode(noisy(), "JPEG", optimize=True, quality=30),
  "4:4:4": encode(noisy(), "JPEG", subsampling=0),
  "4:2:2": encode(noisy(), "JPEG", subsampling=1),
  "stored as RGB": encode(noisy(), "JPEG", keep_rgb=True),
  "restart markers": encode(noisy(), "JPEG", restart_marker_blocks=2),
}
SECOND = ImageOps.invert(picture())
OTHERS = {
  "CMYK": encode(noisy().convert("CMYK"), "JPEG"),
  "YCCK": ycck(),
  "junk behind": JPEGS["noise"] + b"\r\nmore\0" * 9,
  "two pictures": encode(picture(), "MPO", save_all=True, append_images=[SECOND]),
  "png": encode(noisy(), "PNG"),
  "png palette": encode(palette(picture()), "PNG"),
  "png palette, a colour transparent": encode(
    palette(picture()), "PNG", transparency=3
  ),
  "png palette, alpha of each colour": encode(
    palette(picture()), "PNG", transparency=bytes(range(0, 240, 8))
  ),
  "png RGBA": encode(alpha(), "PNG"),
  "png LA": encode(alpha().convert("LA"), "PNG"),
  "png grey": encode(picture().convert("L"), "PNG"),
  "png 1 bit": encode(picture().convert("1"), "PNG"),
  "webp": encode(picture(), "WEBP"),
  "webp lossless": encode(noisy(), "WEBP", lossless=True),
  "webp alpha": encode(alpha(), "WEBP", lossless=True),
  "webp animated": encode(
    picture(), "WEBP", save_all=True, append_images=[SECOND], lossless=True
  ),
  "gif": encode(palette(picture()), "GIF"),
  "gif animated": encode(
    palette(picture()),
    "GIF",
    save_all=True,
    append_images=[palette(SECOND)],
    transparency=3,
  ),
  "bmp": encode(noisy(), "BMP"),
  "bmp palette": encode(palette(picture()), "BMP"),
}
# Formats that need another package or another version of Pillow.
PHONES = [kind for kind in ("HEIF", "AVIF") if kind in READ]
OTHERS |= {kind.lower(): encode(noisy(), kind) for kind in PHONES}


# Good files


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_is_as_by_pillow(name):
  """Measured with the versions of October 2026: the results are bit-identical."""
  difference = np.abs(decoded(JPEGS[name]).astype(int) - by_pillow(JPEGS[name]))
  assert difference.mean() < 0.5 and difference.max() <= 8


@pytest.mark.parametrize("name", OTHERS)
def test_other_file_equals_pillow(name):
  for factor in (1, 8):  # Only JPEG uses the factor.
    pixels = decoded(OTHERS[name], factor)
    np.testing.assert_array_equal(pixels, by_pillow(OTHERS[name]))


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_jpeg_at_a_part_of_its_size_is_as_by_pillow(name, factor):
  pixels = decoded(JPEGS[name], factor)
  assert pixels.shape == (-(-43 // factor), -(-61 // factor), 3)
  image = Image.open(io.BytesIO(JPEGS[name]))
  image.draft(None, (61 // factor, 43 // factor))
  difference = np.abs(pixels.astype(int) - np.asarray(image.convert("RGB")))
  assert difference.mean() < 0.5 and difference.max() <= 8


def test_only_the_first_frame_is_decoded():
  first = np.asarray(picture()).astype(int)
  for name in ("webp animated", "gif animated", "two pictures"):
    pixels = decoded(OTHERS[name])
    to_first, to_second = (np.abs(pixels - it).mean() for it in (first, 255 - first))
    assert to_first < 20 and to_second > 60


def test_sixteen_bits_are_rounded_to_eight():
  values = np.arange(43 * 61, dtype=np.uint16).reshape(43, 61) * 25
  pixels = decoded(encode(Image.fromarray(values), "PNG"))
  np.testing.assert_array_equal(pixels, np.stack([np.rint(values / 257)] * 3, -1))
  assert pixels.max() == 255


def test_sixteen_bits_of_each_colour_are_rounded_to_eight():
  values = np.random.default_rng(0).integers(0, 2**16, (20, 30, 3), np.uint16)
  _, data = cv2.imencode(".png", values[..., ::-1])
  np.testing.assert_array_equal(decoded(data.tobytes()), np.rint(values / 257))


def sixteen_bits(channels: int, value: int) -> bytes:
  """A black PNG in which one pixel has `value`; alpha is full everywhere."""
  image = np.zeros((20, 30, channels), np.uint16)
  image[..., 3:] = 65535
  image[3, 4, :3] = value
  return cv2.imencode(".png", image)[1].tobytes()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_that_would_all_become_black_are_refused(channels):
  assert not decoded(sixteen_bits(channels, 0)).any()  # It is black.
  for value, most in ((1, 1), (128, 255)):
    message = f"black: the highest .* is {value},.*set config.data.max_value={most}"
    with pytest.raises(ImageError, match=message):
      decoded(sixteen_bits(channels, value))
  assert decoded(sixteen_bits(channels, 129)).max() == 1


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("value", [128, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**14])
@pytest.mark.parametrize("is_training", [False, True])
def test_bits_that_are_not_in_use_are_said_once_by_the_name_of_an_image(
  channels, value, is_training, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(errors, "_has_warned", threading.Lock())
  names = "a\x1b.png", "b\x1b.png"
  for name in names:
    (tmp_path / name).write_bytes(sixteen_bits(channels, value))
  transform = EvalTransform(8, 8, "bilinear", LIMIT)
  if is_training:
    transform = TrainTransform("random", 8, 8, 0.1, "bilinear", "", 0, LIMIT)
  order = grain.MapDataset.range(2)
  files = FileList(tmp_path, names, [0, 0], ["c"])
  Batches(files, transform, order, 2, (0, 2), 0, replace=False, num_threads=1)[0]
  err = capsys.readouterr().err
  if value in (128, 2**14):  # 128 is refused.
    assert not err
  else:
    bits = value.bit_length()
    assert err.count("\n") == 1
    assert f"only {bits} of the 16 bits of {tmp_path}/a?.png are in use" in err
    assert err.endswith(f"set config.data.max_value={2**bits - 1}\n")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_of_sixteen_bits_are_known(channels):
  data = sixteen_bits(channels, 9)
  assert has_16_bits(data, open_image(data, LIMIT))
  for data in (*JPEGS.values(), *OTHERS.values()):
    assert not has_16_bits(data, open_image(data, LIMIT))


def test_content_counts_not_the_name():
  """The decoder gets no name; ImageNet has a PNG whose name ends in JPEG."""
  assert [
    open_image(OTHERS[name], LIMIT).format for name in ("png", "webp", "gif")
  ] == [
    "PNG",
    "WEBP",
    "GIF",
  ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_upright(orientation, mode):
  image = picture().convert(mode)
  data = encode(image, "JPEG", exif=exif(orientation), quality=95)
  pixels = decoded(data)
  assert np.abs(pixels.astype(int) - by_pillow(data)).mean() < 0.5
  for factor in (2, 4):
    lying = Image.fromarray(decoded(encode(image, "JPEG", quality=95), factor))
    lying.getexif()[ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(lying))
    np.testing.assert_array_equal(decoded(data, factor), expected)


def test_exif_of_several_segments_is_one():
  tags = exif(6)
  tags[0x010E] = "a long description" * 9
  body, jpeg = tags.tobytes(), JPEGS["noise"]
  parts = segment(0xE1, body[:50]), segment(0xE1, b"Exif\0\0" + body[50:])
  for data in (SOI + b"".join(parts) + jpeg[2:], encode(noisy(), "JPEG", exif=body)):
    assert open_image(data, LIMIT).orientation == 6
    np.testing.assert_array_equal(decoded(data), by_pillow(data))
  comment = SOI + segment(0xFE, exif(6).tobytes()) + jpeg[2:]
  assert open_image(comment, LIMIT).orientation == 1


def test_a_jpeg_that_only_looks_like_several_pictures_is_decoded_quickly(monkeypatch):
  """Photos with a gain map for high-contrast displays look like that."""
  two = OTHERS["two pictures"]
  at = two.index(b"MPF\0") - 4
  end = at + 2 + int.from_bytes(two[at + 2 : at + 4])
  xmp = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0 hdrgm:Version="1.0"')
  data = two[:end] + xmp + two[end:]
  assert open_image(two, LIMIT)[0] == "MPO" and open_image(data, LIMIT)[0] == "JPEG"
  monkeypatch.delattr("resnet_jax.data.images.decode._read_by_pillow")
  np.testing.assert_array_equal(decoded(data), by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
  ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_other_file_is_upright(orientation, kind, options):
  data = encode(noisy(), kind, exif=exif(orientation), **options)
  np.testing.assert_array_equal(decoded(data), by_pillow(data))


def test_a_png_of_imagemagick_is_upright():
  text = PngImagePlugin.PngInfo()
  digits = exif(6).tobytes().hex()
  text.add_text("Raw profile type exif", f"\nexif\n    {len(digits) // 2}\n{digits}\n")
  data = encode(noisy(), "PNG", pnginfo=text)
  assert decoded(data).shape == (61, 43, 3)
  np.testing.assert_array_equal(decoded(data), by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", PHONES)
def test_photo_of_a_phone_is_turned_once(orientation, kind):
  """The picture stores its rotation, and its EXIF data stores it once more."""
  lying = picture()
  data = encode(lying, kind, exif=exif(orientation).tobytes(), quality=95)
  lying.getexif()[ORIENTATION] = orientation
  upright = np.asarray(ImageOps.exif_transpose(lying))
  pixels = decoded(data)
  assert pixels.shape == upright.shape
  assert np.abs(pixels.astype(int) - upright).mean() < 4  # Another rotation gives 50.
  head = open_image(data, LIMIT)
  assert upright_size(head) == upright.shape[1::-1]
  with pytest.raises(ImageError, match=r"\d\dx\d\d pixels, more than 2622"):
    open_image(data, 61 * 43 - 1)


@pytest.mark.parametrize(
  "tags",
  [
    b"Exif\0\0nonsense",
    b"Exif\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    exif(0).tobytes(),
    exif(9).tobytes(),
    exif(6).tobytes()[:-9],
    # The orientation has the type text.
    exif(6).tobytes().replace(b"\x01\x12\0\x03", b"\x01\x12\0\x02"),
  ],
)
def test_senseless_exif_says_nothing(tags):
  for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
    plain = encode(picture(), kind, **options)
    data = encode(picture(), kind, exif=tags, **options)
    np.testing.assert_array_equal(decoded(data), decoded(plain))


def test_size_is_known_before_all_of_a_file_is_read():
  """Pillow also finds an orientation behind the pixels or in XMP, but only later."""
  png = encode(noisy(), "PNG")
  late = encode(noisy(), "PNG", exif=exif(6))
  chunk = late[late.index(b"eXIf") - 4 : late.index(b"IDAT") - 4]
  end = png.index(b"IEND") - 4
  xmp = b'<x:xmpmeta><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'
  for data in (
    png[:end] + chunk + png[end:],
    encode(noisy(), "JPEG", xmp=xmp),
    encode(noisy(), "WEBP", xmp=xmp),
  ):
    assert decoded(data).shape == (43, 61, 3)


# Files that are no images


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "it is empty"),
    (b"not an image\n" * 99, r"none of JPEG.*begins with b'not an i'"),
    (b"<!DOCTYPE html><html>", "none of JPEG, PNG, WEBP, GIF, BMP.* .*b'<!DOCTYP'"),
    (b"%PDF-1.7\n%\xe2\xe3", "none of .*b'%PDF-1.7'"),
    (b"\0\0\0\x18ftypqt  \0\0\0\0qt  " + bytes(99), r"none of .*ftyp"),  # A video.
    (b"RIFF\0\0\0\0WAVE", "none of"),
    (bytes(1000), "none of"),
    (encode(picture(), "PPM"), "none of"),
  ],
)
def test_what_is_no_image_is_refused_with_its_head(data, message):
  with pytest.raises(ImageError, match=message):
    decoded(data)


@pytest.mark.parametrize("brand", ["heic", "heix", "mif1", "hevc", "avif"])
def test_a_photo_that_needs_a_package_names_it(brand, monkeypatch):
  name, package = ("AVIF", "x") if brand == "avif" else ("HEIF", "pillow-heif")
  monkeypatch.setitem(KNOWN, name, KNOWN[name]._replace(package=package))
  read = tuple(kind for kind in READ if kind not in ("HEIF", "AVIF"))
  monkeypatch.setattr("resnet_jax.data.images.decode.READ", read)
  data = b"\0\0\0\x18ftyp" + brand.encode() + b"\0\0\0\0mif1heic" + bytes(99)
  said = f"it is {name} .*, which `pip install {package}` makes readable"
  with pytest.raises(ImageError, match=said):
    decoded(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_what_is_cut_in_its_head_is_called_by_its_format(kind):
  data = encode(picture(), kind)
  for end in (12, 20, 25):
    with pytest.raises(ImageError, match=f"it is a {kind} that is truncated"):
      decoded(data[:end])
  for beginning in (b"\xff\xd8", b"\x89PNG\n", b"RIFF\0\n\0\0WEBP", b"GIF8", b"BM"):
    with pytest.raises(ImageError, match=r"it is a [A-Z]+ that is truncated"):
      decoded(beginning)


@pytest.mark.parametrize("name", [*JPEGS, *OTHERS])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_file_is_refused(name, share, capfd):
  data = JPEGS.get(name) or OTHERS[name]
  if name in ("junk behind", "two pictures", "webp animated", "gif animated"):
    share *= 0.2  # Cuts within the first picture.
  with pytest.raises(ImageError, match=r"it is (.*truncated or damaged|none of)"):
    decoded(data[: int(len(data) * share)])
  assert capfd.readouterr().err == ""


def test_every_prefix_of_a_jpeg_is_refused(capfd):
  data = encode(picture(8, 8), "JPEG", exif=exif(6))
  for end in range(len(data) - 2):
    with pytest.raises(ImageError):
      decoded(data[:end])
  assert capfd.readouterr().err == ""


def test_jpeg_without_its_end_marker_decodes_or_is_refused(capfd):
  for data in JPEGS.values():
    try:
      assert decoded(data[:-2]).shape == (43, 61, 3)
    except ImageError as error:
      assert "truncated" in str(error)
  assert capfd.readouterr().err == ""


def mutations(data: bytes, count: int, seed: int):
  """Yields damaged copies: truncated, with changed bytes or with inserted bytes."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    copy = bytearray(data)
    if i % 4 == 0:
      del copy[rng.integers(len(copy)) :]
    elif i % 4 == 1:
      at = int(rng.integers(len(copy)))
      copy[at:at] = rng.bytes(rng.integers(1, 5))
    else:  # Changes bytes anywhere, or in the header.
      size = len(copy) if i % 4 == 2 else min(len(copy), 200)
      for at in rng.integers(0, size, rng.integers(1, 6)):
        copy[at] = rng.integers(256)
    yield bytes(copy)


FUZZED = "noise,grayscale,progressive,CMYK,two pictures,png,png palette,webp"
FUZZED += ",webp lossless,webp animated,gif animated,bmp"


@pytest.mark.parametrize("name", [*FUZZED.split(","), *map(str.lower, PHONES)])
def test_damaged_file_becomes_pixels_or_an_image_error(name, capfd):
  data = JPEGS.get(name) or OTHERS[name]
  good = bad = 0
  for copy in mutations(data, 300, seed=0):
    try:
      pixels = decoded(copy)
      good += 1
    except ImageError as error:
      assert len(str(error)) > 10
      bad += 1
    else:
      np.testing.assert_array_equal(pixels, decoded(copy))  # No uninitialised memory.
  assert good > 5 and bad > 5
  # The libjpeg inside OpenCV always prints these lines; nothing else is printed.
  lines = set(capfd.readouterr().err.splitlines())
  spoken = "Corrupt JPEG|.*JFIF revision|Inconsistent progression|Invalid SOS param"
  assert not [line for line in lines if not re.match(spoken, line)]
  assert not lines or data.startswith(b"\xff\xd8")


# Limits


def png_head(width: int, height: int) -> bytes:
  def chunk(kind: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check

  head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"")


def bmp_head(width: int, height: int) -> bytes:
  head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
  return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


@pytest.mark.parametrize(
  ("data", "limit", "message"),
  [
    (png_head(60000, 60000), 10**8, "more than 178956970 pixels"),
    (bmp_head(60000, 60000), 10**8, "more than 178956970 pixels"),
    (png_head(10001, 10000), 10**8, "10001x10000 pixels, more than 100000000"),
    # Above the limit at which Pillow only warns.
    (png_head(10000, 10000), 10**8 - 1, "10000x10000 pixels, more than 99999999"),
    (png_head(13000, 13000), 178_000_000 - 10**8, "13000x13000 pixels, more than 78"),
    (JPEGS["rgb"], 61 * 43 - 1, "61x43 pixels, more than 2622"),
  ],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(data, limit, message):
  tracemalloc.start()
  try:
    with pytest.raises(ImageError, match=message):
      open_image(data, limit)
    assert tracemalloc.get_traced_memory()[1] < 10**6
  finally:
    tracemalloc.stop()
  open_image(JPEGS["rgb"], 61 * 43)


THUMBNAIL = b"Exif\0\0" + SMALL_JPEG
# Files with two sizes: one is small enough to be allowed, the other is not.
TWO_SIZES = {
  # A decoder that reads a length after the marker sees a small image, another a large.
  **{
    f"marker {marker:02X}": SOI + segment(marker, LARGE_JPEG[2:]) + SMALL_JPEG[2:]
    for marker in range(256)
  },
  **{
    f"length {length}, {marker}": SOI + segment(marker, b"", length) + LARGE_JPEG[2:]
    for marker in (0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xE0, 0xE1, 0xFE)
    for length in (0, 1, 2, 9)
  },
  "second frame": SOI + SMALL[0] + LARGE_JPEG[2:],
  "second frame first": SOI + LARGE[0] + SMALL_JPEG[2:],
  "frame behind the pixels": SMALL_JPEG[:-2] + LARGE_JPEG[2:],
  "other frame": SOI + SMALL[0].replace(b"\xff\xc0", b"\xff\xc9") + LARGE_JPEG[2:],
  "short frame": SOI + SMALL[0].replace(b"\xc0\0\x11", b"\xc0\0\x08") + LARGE_JPEG[2:],
  "number of lines": SOI + SMALL[0] + segment(0xDC, b"\x03\xe8") + SMALL[1],
  "number of lines behind": SMALL_JPEG[:-2] + segment(0xDC, b"\x03\xe8") + b"\xff\xd9",
  "second start": SMALL_JPEG[:-2] + LARGE_JPEG,
  "two starts": SOI + LARGE_JPEG,
  "start behind the head": SOI + SMALL[0] + LARGE_JPEG,
  "tables first": SOI + JFIF + b"\xff\xd9" + LARGE_JPEG,
  "end first": SOI + b"\xff\xd9" + LARGE_JPEG[2:],
  "bytes between": SOI + JFIF + b"\0" * 9 + LARGE_JPEG[2:],
  "fill bytes": SOI + JFIF + b"\xff" * 9 + LARGE_JPEG[2:],
  "stuffed byte": SOI + JFIF + b"\xff\0" + LARGE_JPEG[2:],
  **{
    f"thumbnail of length {length}": SOI
    + segment(0xE1, THUMBNAIL, length)
    + LARGE_JPEG[2:]
    for length in (40, len(THUMBNAIL) + 2, len(THUMBNAIL) + 99, 65535)
  },
}


@pytest.mark.parametrize("library", ["libjpeg-turbo", "opencv"])
def test_no_decoder_is_given_a_jpeg_of_another_size(library, monkeypatch):
  """A file whose size can be read in two ways is refused, or decoded as small."""
  if library == "opencv":
    monkeypatch.setattr(turbojpeg, "read_size", lambda _: None)
    monkeypatch.setattr(turbojpeg, "decode_part", lambda *_: None)
  by_opencv = cv2.imdecode

  def imdecode(*args):
    pixels = by_opencv(*args)
    assert pixels is None or pixels.size <= 3 * 16 * 16
    return pixels

  monkeypatch.setattr(cv2, "imdecode", imdecode)
  opened = set()
  for name, data in TWO_SIZES.items():
    for copy in (data, data + b"junk"):  # Pillow decodes the one with junk.
      try:
        head = open_image(copy, 16 * 16)
      except ImageError:
        continue
      opened.add(name)
      assert head.size == (16, 16)
      for factor in (1, 8):
        with contextlib.suppress(ImageError):
          assert decode(copy, head, factor).shape in ((16, 16, 3), (2, 2, 3))
        with contextlib.suppress(ImageError):
          pixels = decode_part(copy, head, (0, 0, 16, 16), factor)
          assert pixels.shape in ((16, 16, 3), (2, 2, 3))
  # These are small by the rules of the format.
  assert {"marker E0", "marker FE", "number of lines behind"} <= opened


@pytest.mark.parametrize("name", [*JPEGS, *OTHERS])
def test_pixels_of_another_size_than_the_head_says_are_refused(name):
  data = JPEGS.get(name) or OTHERS[name]
  head = open_image(data, LIMIT)
  for width, height in ((61, 44), (60, 43), (6100, 4300)):
    wrong = head._replace(size=(width, height))
    says = f"its head says {width}x{height} pixels, its decoder says 61x43"
    with pytest.raises(ImageError, match=says):
      decode(data, wrong)
    with pytest.raises(ImageError, match=says):
      decode_part(data, wrong, (0, 0, 40, 40), 1)


@pytest.mark.parametrize("factor", [1, 8])
def test_pixels_of_another_size_than_libjpeg_says_are_refused(factor, monkeypatch):
  monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((5, 9, 3), np.uint8))
  head = open_image(JPEGS["rgb"], LIMIT)
  width, height = -(-61 // factor), -(-43 // factor)
  says = f"its head says {width}x{height} pixels, its decoder says 9x5"
  with pytest.raises(ImageError, match=says):
    decode(JPEGS["rgb"], head, factor)


def with_scans(kind: str, count: int) -> bytes:
  """A progressive grey image of 8x8 pixels that has `count` scans."""
  grey = Image.new("L", (8, 8), 128)
  options = {"save_all": True, "append_images": [grey]} if kind == "MPO" else {}
  data = encode(grey, kind, **options).replace(b"\xff\xc0", b"\xff\xc2", 1)
  start = data.index(b"\xff\xda")
  end = data.index(b"\xff\xd9", start)
  # The scan has only the mean of the block, 128. Bits of value 1 fill its last byte.
  scan = bytes.fromhex("ffda 0008 01 0100 00 00 00 3f")
  more = data.count(b"\xff\xda") - 1
  return data[:start] + scan * (count - more) + data[end:]


@pytest.mark.parametrize("tail", [b"", b"junk"])
@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_more_scans_than_allowed_are_refused(kind, tail):
  assert (decoded(with_scans(kind, 100) + tail) == 128).all()
  with pytest.raises(ImageError, match="it has 101 scans, more than 100"):
    open_image(with_scans(kind, 101) + tail, LIMIT)


@pytest.mark.parametrize("tail", [b"", b"junk"])
@pytest.mark.parametrize(("max_pixels", "most"), [(64, 12), (128, 24), (640, 100)])
def test_a_large_image_may_have_fewer_scans(max_pixels, most, tail):
  """The image has 8x8 pixels. Junk at its end does not change the limit."""
  assert open_image(with_scans("JPEG", most) + tail, max_pixels).size == (8, 8)
  where = "" if most == 100 else " of 8x8 pixels"
  with pytest.raises(ImageError, match=f"it has {most + 1} scans{where}, more than"):
    open_image(with_scans("JPEG", most + 1) + tail, max_pixels)


def test_scans_of_one_channel_are_counted():
  """Scans count in a sequential JPEG too, unless its first scan has all channels."""
  scan = bytes.fromhex("ffda 0008 01 0100 003f00 2b")
  with pytest.raises(ImageError, match="it has 101 scans, more than 100"):
    open_image(SOI + SMALL[0] + scan * 101 + b"\xff\xd9", LIMIT)
  assert decoded(SMALL_JPEG[:-2] + scan * 101 + b"\xff\xd9").shape == (16, 16, 3)


def test_a_film_behind_a_picture_is_no_scan():
  film = b"\xff\xda" * 1000 + np.random.default_rng(0).bytes(10**6)
  expected = decoded(JPEGS["noise"])
  np.testing.assert_array_equal(decoded(JPEGS["noise"] + film), expected)


@pytest.mark.parametrize("tail", [b"", b"junk"])
@pytest.mark.parametrize("name", ["plain", "MPF"])
def test_more_exif_segments_than_allowed_are_refused(name, tail):
  """Pillow reads the header if there is an MPF segment or junk."""
  mpf = segment(0xE2, b"MPF\0ab") if name == "MPF" else b""
  turned = segment(0xE1, exif(6).tobytes())
  more = segment(0xE1, b"Exif\0\0more")
  for count in (100, 101):
    data = SOI + mpf + turned + more * (count - 1) + SMALL_JPEG[2:] + tail
    if count == 100:
      assert open_image(data, LIMIT).orientation == 6
    else:
      with pytest.raises(ImageError, match="it has more than 100 segments of EXIF"):
        open_image(data, LIMIT)


def test_libjpeg_turbo_counts_scans_itself():
  if reason := turbojpeg.why_not():
    pytest.skip(f"needs libjpeg-turbo 3: {reason}")
  for scans, decodes in ((100, True), (101, False)):
    pixels = turbojpeg.decode_part(with_scans("JPEG", scans), 0, 0, 8, 8, 1)
    assert (pixels is not None) == decodes


def test_as_many_pixels_as_allowed_are_opened():
  assert open_image(png_head(13000, 13000), 178_000_000).size == (13000, 13000)


@pytest.mark.parametrize("head", [png_head, bmp_head])
def test_image_without_pixels_is_refused(head):
  with pytest.raises(ImageError):
    decoded(head(0, 5))
  with pytest.raises(ImageError):
    decoded(b"GIF89a" + bytes(4) + b"\0\0\0" + b"," + bytes(9) + b"\2\0;")


def test_nothing_is_left_open():
  gc.collect()  # Collects what other tests left.
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", ResourceWarning)
    for data in (*JPEGS.values(), *OTHERS.values()):
      decoded(data)
      with pytest.raises(ImageError):
        decoded(data[:99])
    gc.collect()
  assert not [it for it in caught if it.category is ResourceWarning]


def test_pillow_warns_of_nothing(tmp_path):
  cases = {
    "large": png_head(13000, 13000),
    "exif": encode(picture(), "PNG", exif=exif(6).tobytes()[:-9]),
    "palette": OTHERS["png palette, alpha of each colour"],
  }
  for name, data in cases.items():
    (tmp_path / name).write_bytes(data)
  script = """
import pathlib, sys
from resnet_jax.data.images.decode import decode, open_image, upright_size
for path in pathlib.Path(sys.argv[1]).iterdir():
  image = open_image(path.read_bytes(), 178_000_000)
  upright_size(image)
  if path.name != "large":
    decode(path.read_bytes(), image)
"""
  command = [sys.executable, "-W", "default", "-c", script, str(tmp_path)]
  run = subprocess.run(command, capture_output=True, text=True, check=True)
  assert "PIL" not in run.stderr


def test_threads_leave_the_warnings_of_others_alone():
  before = list(warnings.filters)
  with ThreadPoolExecutor(8) as pool:
    list(pool.map(decoded, [OTHERS["png"]] * 2000))
  assert list(warnings.filters) == before


def test_threads_decode_the_same():
  expected = decoded(JPEGS["noise"])
  with ThreadPoolExecutor(8) as pool:
    for pixels in pool.map(decoded, [JPEGS["noise"]] * 100):
      np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("library", ["turbojpeg", "opencv"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "grey"])
def test_a_part_is_that_of_the_whole_to_the_bit(library, subsampling, monkeypatch):
  if library == "opencv":
    monkeypatch.setattr(turbojpeg, "decode_part", lambda *_: None)
  elif reason := turbojpeg.why_not():
    pytest.skip(f"needs libjpeg-turbo 3: {reason}")
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (61, 83, 3), np.uint8))
  file = io.BytesIO()
  if subsampling == "grey":
    image.convert("L").save(file, "jpeg")
  else:
    image.save(file, "jpeg", subsampling=subsampling, progressive=True)
  data = file.getvalue()
  head = open_image(data, 10**6)
  for factor in (1, 2, 4, 8):
    whole = decode(data, head, factor)
    for _ in range(20):
      width, height = rng.integers(factor, (84, 62)).tolist()
      left, top = rng.integers(0, (84 - width, 62 - height)).tolist()
      part = decode_part(data, head, (left, top, width, height), factor)
      x, y, w, h = (n // factor for n in (left, top, width, height))
      np.testing.assert_array_equal(part, whole[y : y + h, x : x + w])


@pytest.mark.parametrize("factor", [1, 8])
@pytest.mark.parametrize(
  "box",
  [
    *((0, 0, 4, 0), (0, 0, 0, 4), (0, 0, 0, 0), (0, 0, 4, -1), (0, 0, -1, 4)),
    *((-1, 0, 4, 4), (0, -1, 4, 4), (4, 4, 8, 4), (4, 4, 4, 2), (99, 0, 4, 4)),
    *((0, 99, 4, 4), (0, 0, 2**32 + 4, 4), (0, 2**32, 4, 4)),
  ],
)
def test_libjpeg_turbo_is_not_asked_for_what_is_no_part(box, factor):
  if reason := turbojpeg.why_not():
    pytest.skip(f"needs libjpeg-turbo 3: {reason}")
  data = encode(picture(11 * factor, 5 * factor), "JPEG")
  assert turbojpeg.decode_part(data, *box, factor) is None
  assert turbojpeg.decode_part(data, 4, 4, 7, 1, factor).shape == (1, 7, 3)


def test_a_damaged_head_does_not_spoil_the_next_file():
  if reason := turbojpeg.why_not():
    pytest.skip(f"needs libjpeg-turbo 3: {reason}")
  for damaged in (TWO_SIZES["marker 02"], TWO_SIZES["second frame"], b"text"):
    assert turbojpeg.read_size(damaged) is None
    assert turbojpeg.read_size(JPEGS["rgb"]) == (61, 43)


def test_a_part_smaller_than_the_factor_has_no_pixels():
  head = open_image(JPEGS["rgb"], LIMIT)
  assert decode_part(JPEGS["rgb"], head, (0, 0, 4, 4), 8).shape == (0, 0, 3)
