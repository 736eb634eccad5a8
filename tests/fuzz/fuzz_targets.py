"""Fuzzing targets: each runs a reader of files that may come from unknown sources.

A target takes bytes. The reader may accept them or raise the error that it documents.
Any other exception, more than 10 seconds or too much memory is a finding.
"""

import contextlib
import io
import json
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import keras_writer
import ml_dtypes
import numpy as np
import safetensors.numpy
from test_decode import JPEGS, OTHERS, TWO_SIZES, exif, picture, with_scans
from test_decode import encode as encode_image
from torch_writer import CONTAINERS, Call, Global, View, members, pack, write

from resnet_jax import create_model
from resnet_jax.config import ModelConfig
from resnet_jax.data.images import decode
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.sources import folder
from resnet_jax.runtime.errors import UserError
from resnet_jax.weights import (
  complete_model,
  load_save,
  read_class_names,
  read_preprocessing,
  read_training,
  tensors,
)
from resnet_jax.weights.architecture import describe

Target = Callable[[bytes], None]

MODEL = create_model("resnet8", 3)
MOST_PIXELS = 2**20  # Limit per image, to decode it in milliseconds.
NUMBERS = np.arange(24, dtype=np.float32)
STATE = {
  "conv1.weight": NUMBERS.reshape(2, 3, 2, 2),
  "fc.weight": NUMBERS[4:10].reshape(2, 3).T,
  "half": np.ones(2, np.float16),
  "brain": np.ones(2, ml_dtypes.bfloat16),
  "counter": np.array(7),
}


@contextlib.contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
  with tempfile.TemporaryDirectory(dir=_memory()) as place:
    path = Path(place, name)
    path.write_bytes(data)
    yield path


def _memory() -> str | None:
  return "/dev/shm" if Path("/dev/shm").is_dir() else None


def weights(data: bytes) -> None:
  """Reads all arrays of a file of weights.

  The first byte says what follows. After "s" it is a .safetensors file, and after "k" a
  .h5 file of Keras. After "p" it is a pickle, which the target puts into a valid zip
  file, because random bytes are almost never one. After any other byte it is a file of
  torch.save.
  """
  kind, data = data[:1], data[1:]
  if kind == b"p":
    data = pack(members(STATE, "zip") | {"data.pkl": data}, "zip")
  suffix = {b"s": "safetensors", b"k": "h5"}.get(kind, "pth")
  with (
    _file(f"x.{suffix}", data) as path,
    contextlib.suppress(UserError),
  ):
    arrays, problems = tensors.read_tensors(path)
    for name, array in arrays.items():
      assert array is not None or problems, f"{name} is missing and not reported"
      if array is not None:
        array.copy()  # Crashes if the array reaches beyond the file.
    load_save._check_architecture(path, MODEL)
    read_class_names(path, 3)
    read_preprocessing(path, MODEL)
    read_training(path)
    complete_model(path, ModelConfig(name=""))


def images(data: bytes) -> None:
  """Decodes an image, whole and in part; checks its size against the header."""
  with contextlib.suppress(ImageError):
    head = decode.open_image(data, MOST_PIXELS)
    assert head.size[0] * head.size[1] <= MOST_PIXELS
    width, height = decode.upright_size(head)
    with contextlib.suppress(ImageError):
      stored = decode.read_stored(data, head)
      channels = stored.values.shape[2]
      assert stored.values.shape == (height, width, channels), stored.values.shape
      decode.to_pixels(stored, PixelFormat(channels, 1000))
    for factor in (1, 8):
      # Only the fast decoders of JPEG shrink by the factor; others keep the full size.
      with contextlib.suppress(ImageError):
        rounded_up = -(-height // factor), -(-width // factor), 3
        shape = decode.decode(data, head, factor).shape
        assert shape in (rounded_up, (height, width, 3)), shape
      with contextlib.suppress(ImageError):
        rounded_down = height // factor, width // factor, 3
        shape = decode.decode_part(data, head, (0, 0, width, height), factor).shape
        assert shape in (rounded_down, (height, width, 3)), shape


def lists(data: bytes) -> None:
  """Reads a table of images and labels, with and without the classes of a run."""
  with _file("x.csv", data) as path:
    for class_names in ((), ("cat", "dog"), ("0", "1", "10")):
      with contextlib.suppress(UserError):
        files = folder.list_images(path, "train", 0.1, class_names)
        assert not class_names or files.class_names == class_names
        assert all(0 <= label < len(files.class_names) for label in files.labels)
        assert all(files.name(i) for i in range(len(files)))


TARGETS: dict[str, Target] = {"weights": weights, "images": images, "lists": lists}


def _weights_seeds() -> Iterator[bytes]:
  refused = Call(Global("own", "thing"), NUMBERS)
  contents = [
    STATE,
    {"epoch": 3, "args": Namespace(lr=0.1), "state_dict": STATE, "best": {-1: {1}}},
    Call(Global("collections", "OrderedDict"), [[k, x] for k, x in STATE.items()]),
    {"a": View(NUMBERS, 0, (25,), (1,)), "fc.bias": refused, "b": [1, (2.5, "é")]},
  ]
  for content in contents:
    for container in CONTAINERS:
      yield b" " + write(content, container)
    yield b"p" + members(content, "zip")["data.pkl"]
  # Two records with the same name.
  parts = {"data/9": members(STATE, "zip")["data/0"][::-1], **members(STATE, "zip")}
  yield b" " + pack(parts, "zip").replace(b"data/9", b"data/0")
  # A pickle that uses one memoised tuple as a persistent id 99 times.
  storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0NK\x18" + b"N" * 99
  yield b"p\x80\2" + storage + b"tq\0" + b"h\0Q" * 99 + b"."
  for metadata in (
    {"class_names": '["a", "b"]'},
    {"preprocessing": '{"mean": [0.5], "std": [0.5], "resize": 9, "crop": 8}'},
    {"resnet_jax_network": json.dumps(describe(MODEL))},
    {"training": '{"steps": 3}'},
  ):
    yield b"s" + safetensors.numpy.save(STATE, metadata)
  for layout in (keras_writer.numbered, keras_writer.named):
    with _file("x.h5", b"") as path:
      keras_writer.write(path, layout(keras_writer.make(is_v2=False, features=1)))
      yield b"k" + path.read_bytes()


def _images_seeds() -> Iterator[bytes]:
  yield from (*JPEGS.values(), *OTHERS.values(), *TWO_SIZES.values())
  for kind in ("JPEG", "PNG", "WEBP"):
    yield encode_image(picture(), kind, exif=exif(6))
  for kind in ("JPEG", "MPO"):
    yield with_scans(kind, 101)
  yield encode_image(picture(), "TIFF", compression="tiff_deflate")
  array = np.arange(210, dtype=np.uint16).reshape(6, 7, 5)
  for save in (np.save, np.savez_compressed):
    save(file := io.BytesIO(), array)
    yield file.getvalue()
  with contextlib.suppress(ModuleNotFoundError):  # The extras tiff and dicom.
    import tifffile

    for compression in (None, "zlib", "lzw"):
      options = {"photometric": "minisblack", "planarconfig": "contig"}
      tifffile.imwrite(file := io.BytesIO(), array, compression=compression, **options)
      yield file.getvalue()
  with contextlib.suppress(ModuleNotFoundError):
    from pydicom import data

    for name in ("CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_rle.dcm"):
      yield Path(str(data.get_testdata_file(name, download=False))).read_bytes()


def _lists_seeds() -> Iterator[bytes]:
  yield b"a.jpg,0\nb.jpg,1\n"
  yield b'\xef\xbb\xbfpath,label,split\r\n"a,1.jpg",cat,train\r\nb.jpg,dog,val\r\n'
  yield "label,path,other\nÄ,a.jpg,\n".encode()
  yield b'path,label\n"a""b.jpg\n",cat\n'
  yield b"path,label\n"
  yield b"path,path,label\na,b,c\n"
  yield b"a.jpg,00\nb.jpg,10\n./a.jpg,1\n"
  yield b"path,label,split\na.jpg,dog,TRAIN\na.jpg,cat,test\n"


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
  "weights": _weights_seeds,
  "images": _images_seeds,
  "lists": _lists_seeds,
}
