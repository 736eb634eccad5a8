"""From the content of image files to pixels, or to one clear error."""

import gc
import io
import re
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from resnet_jax.data.images import turbojpeg
from resnet_jax.data.images.decode import decode, decode_part, open_image, upright_size
from resnet_jax.data.images.errors import ImageError

# As the package does outside of pytest, which has filters of its own.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
LIMIT = 10**6
ORIENTATION = 0x0112


def picture(width: int = 61, height: int = 43) -> Image.Image:
  """A colourful image that is smooth and no mirror image or turn of itself."""
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
  """A JPEG whose four channels are YCC and K, as Photoshop writes them."""
  data = encode(picture().convert("CMYK"), "JPEG")
  at = data.index(b"Adobe") + 11  # The marker's colour transform.
  assert data[at] == 0
  return data[:at] + b"\x02" + data[at + 1 :]


def alpha() -> Image.Image:
  image = picture().convert("RGBA")
  image.putalpha(picture().convert("L"))
  return image


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


# Good files


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_is_as_by_pillow(name):
  """Measured: equal to the last bit with the versions of October 2026."""
  difference = np.abs(decoded(JPEGS[name]).astype(int) - by_pillow(JPEGS[name]))
  assert difference.mean() < 0.5 and difference.max() <= 8


@pytest.mark.parametrize("name", OTHERS)
def test_other_file_equals_pillow(name):
  for factor in (1, 8):  # Which only JPEG minds.
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


def test_sixteen_bits_keep_the_upper_eight():
  values = np.arange(43 * 61, dtype=np.uint16).reshape(43, 61) * 25
  pixels = decoded(encode(Image.fromarray(values), "PNG"))
  np.testing.assert_array_equal(pixels, np.stack([values >> 8] * 3, -1))
  assert pixels.max() == 255


def test_sixteen_bits_of_each_colour_keep_the_upper_eight():
  values = np.random.default_rng(0).integers(0, 2**16, (20, 30, 3), np.uint16)
  _, data = cv2.imencode(".png", values[..., ::-1])
  np.testing.assert_array_equal(decoded(data.tobytes()), values >> 8)


def test_content_counts_not_the_name():
  """As there is no name to ask; ImageNet has a PNG that is called JPEG."""
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
  ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_other_file_is_upright(orientation, kind, options):
  data = encode(noisy(), kind, exif=exif(orientation), **options)
  np.testing.assert_array_equal(decoded(data), by_pillow(data))


@pytest.mark.parametrize(
  "tags",
  [
    b"Exif\0\0nonsense",
    b"Exif\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    exif(0).tobytes(),
    exif(9).tobytes(),
    exif(6).tobytes()[:-9],
    # Of the type text.
    exif(6).tobytes().replace(b"\x01\x12\0\x03", b"\x01\x12\0\x02"),
  ],
)
def test_senseless_exif_says_nothing(tags):
  for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
    plain = encode(picture(), kind, **options)
    data = encode(picture(), kind, exif=tags, **options)
    np.testing.assert_array_equal(decoded(data), decoded(plain))


def test_size_is_known_before_all_of_a_file_is_read():
  """Pillow finds an orientation behind the pixels, or in XMP, but only later."""
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


# Files that are none


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "it is empty"),
    (b"not an image\n" * 99, r"none of JPEG.*begins with b'not an i'"),
    (b"<!DOCTYPE html><html>", "none of JPEG, PNG, WEBP, GIF, BMP .*b'<!DOCTYP'"),
    (b"%PDF-1.7\n%\xe2\xe3", "none of .*b'%PDF-1.7'"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), r"none of .*\(HEIF\)"),
    (b"\xff\xd8", "none of"),
    (b"\xff\xd8\xff\xe0", "none of"),
    (b"\x89PNG\r\n\x1a\n", "none of"),
    (b"RIFF\0\0\0\0WEBP", "none of"),
    (b"GIF89a", "none of"),
    (b"BM", "none of"),
    (bytes(1000), "none of"),
    (encode(picture(), "TIFF"), "none of"),
  ],
)
def test_what_is_no_image_is_refused_with_its_head(data, message):
  with pytest.raises(ImageError, match=message):
    decoded(data)


@pytest.mark.parametrize("name", [*JPEGS, *OTHERS])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_file_is_refused(name, share, capfd):
  data = JPEGS.get(name) or OTHERS[name]
  if name in ("junk behind", "two pictures", "webp animated", "gif animated"):
    share *= 0.2  # So that the first picture is cut.
  with pytest.raises(ImageError, match=r"it is (truncated or damaged|none of)"):
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
  """Yields damaged copies: cut, with other bytes, with bytes between."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    copy = bytearray(data)
    if i % 4 == 0:
      del copy[rng.integers(len(copy)) :]
    elif i % 4 == 1:
      at = int(rng.integers(len(copy)))
      copy[at:at] = rng.bytes(rng.integers(1, 5))
    else:  # In the head, or anywhere.
      size = len(copy) if i % 4 == 2 else min(len(copy), 200)
      for at in rng.integers(0, size, rng.integers(1, 6)):
        copy[at] = rng.integers(256)
    yield bytes(copy)


FUZZED = "noise,grayscale,progressive,CMYK,two pictures,png,png palette,webp"
FUZZED += ",webp lossless,webp animated,gif animated,bmp"


@pytest.mark.parametrize("name", FUZZED.split(","))
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
      np.testing.assert_array_equal(pixels, decoded(copy))  # No stray memory.
  assert good > 5 and bad > 5
  # The libjpeg inside OpenCV has no switch for these lines; all else is silent.
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


def test_as_many_pixels_as_allowed_are_opened():
  assert open_image(png_head(13000, 13000), 178_000_000).size == (13000, 13000)


@pytest.mark.parametrize("head", [png_head, bmp_head])
def test_image_without_pixels_is_refused(head):
  with pytest.raises(ImageError):
    decoded(head(0, 5))
  with pytest.raises(ImageError):
    decoded(b"GIF89a" + bytes(4) + b"\0\0\0" + b"," + bytes(9) + b"\2\0;")


def test_nothing_is_left_open():
  gc.collect()  # What other tests left.
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
