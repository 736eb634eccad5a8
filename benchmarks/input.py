"""Compares how fast this and other libraries turn JPEG photos into training batches.

python benchmarks/input.py DIR [--cores 1 2] [--cases ours webdataset ...]
  [--tensorflow PYTHON]

DIR holds photos, in folders of any depth. Each case runs in its own process, which is
bound to the given number of cores. It reads and decodes files, cuts a random resized
crop of 224 pixels and stacks uint8 batches of 64. The cases run in turns of a few
batches. During a turn, the processes of all other cases are stopped. The output is one
JSON line for each case and number of cores, with medians over the turns. The extra
`benchmark` installs the other libraries. `--tensorflow` names the Python interpreter of
the TensorFlow cases, if it is not this one.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

from turns import Turns

SIZE, BATCH = 224, 64


def ours(files: list[str], cores: int, workers: int = 0, source=None):
  import grain

  from resnet_jax.data.images.crops import TrainTransform
  from resnet_jax.data.pipelines.host_batches import Batches, iterate
  from resnet_jax.data.sources.file_list import FileList

  transform = TrainTransform(
    crop="random_resized",
    resize=0,
    size=SIZE,
    min_area=0.08,
    interpolation="bilinear",
    policy="",
    magnitude=0,
    max_pixels=10**8,
  )
  batches = Batches(
    source=source or FileList("/", files, [0] * len(files), ["photo"]),
    transform=transform,
    order=grain.MapDataset.range(len(files)).shuffle(0).repeat(),
    batch_size=BATCH,
    rows=(0, BATCH),
    seed=0,
    replace=False,
    num_threads=math.ceil(cores / max(1, workers)),
  )
  return (batch["image"] for batch in iterate(batches, 0, workers))


def ours_in_processes(files: list[str], cores: int):
  return ours(files, cores, workers=cores)


def ours_from(files: list[str], cores: int, kind: str, write):
  """Reads the photos from files of many records, which it writes first."""
  import tempfile

  import numpy as np

  from resnet_jax.config import DataConfig
  from resnet_jax.data.sources.record_files import open_records
  from resnet_jax.data.sources.records import Records

  unique = list(dict.fromkeys(files))
  # Enough for many groups of rows.
  photos = [Path(file).read_bytes() for file in files[: max(1000, len(unique))]]
  folder = Path(tempfile.mkdtemp(dir="/dev/shm"))  # As quick as the files in the cache.
  write(folder, photos)
  config = DataConfig(name=kind, dir=str(folder), train_crop="random", val_share=1e-9)
  reader = open_records(config, "train").reader
  places = np.arange(len(files)) % len(photos)
  records = Records(reader, places, np.zeros(len(files), np.int32), ("photo",))
  return ours(files, cores, source=records)


def parquet_in_cache(files: list[str], cores: int):
  """Groups of 100 rows, as the Hugging Face hub has them, and all of them in memory."""
  return ours_from(files, cores, "parquet", write_large_groups)


def parquet_large_groups(files: list[str], cores: int):
  """Groups of 100 rows, each of which is read again for each photo."""
  from resnet_jax.data.sources import parquet

  parquet._CACHE_BYTES = 0
  return ours_from(files, cores, "parquet", write_large_groups)


def parquet_small_groups(files: list[str], cores: int):
  """Groups of 1 MiB, as `resnet-jax data prepare` writes them; no group is kept."""
  from resnet_jax.data.sources import parquet

  parquet._CACHE_BYTES = 0
  return ours_from(files, cores, "parquet", write_small_groups)


def webdataset(files: list[str], cores: int):
  return ours_from(files, cores, "webdataset", write_tar)


def write_large_groups(folder: Path, photos: list[bytes]) -> None:
  import pyarrow as pa
  from pyarrow import parquet

  images = [{"bytes": photo, "path": None} for photo in photos]
  table = pa.table({"image": images, "label": [0] * len(photos)})
  parquet.write_table(table, folder / "train.parquet", row_group_size=100)


def write_small_groups(folder: Path, photos: list[bytes]) -> None:
  from resnet_jax.data.archives.parquet_writer import write_split
  from resnet_jax.data.archives.rows import Row, Split

  rows = (Row(photo, 0) for photo in photos)
  write_split(Split(("photo",), rows), "train", folder)


def write_tar(folder: Path, photos: list[bytes]) -> None:
  import io
  import tarfile

  with tarfile.open(folder / "train.tar", "w") as archive:
    for number, photo in enumerate(photos):
      for suffix, content in (("jpg", photo), ("cls", b"0")):
        member = tarfile.TarInfo(f"{number:06}.{suffix}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def tf_data(files: list[str], cores: int, same_crops: bool = False):
  """Reads photos as Flax's ImageNet example does; its crops are smaller on average."""
  import tensorflow as tf

  tf.config.threading.set_intra_op_parallelism_threads(cores)
  tf.config.threading.set_inter_op_parallelism_threads(cores)

  def draw_window(height, width):
    """Draws as `random_resized_box` does, except if none of 10 boxes fits."""
    area = height * width * tf.random.uniform([10], 0.08, 1.0)
    aspect = tf.exp(tf.random.uniform([10], math.log(3 / 4), math.log(4 / 3)))
    w, h = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
    first = tf.argmax(tf.cast((w <= width) & (h <= height), tf.int32))
    w, h = tf.minimum(w[first], width), tf.minimum(h[first], height)
    y, x = tf.unstack(tf.random.uniform([2]))
    left, top = tf.floor(x * (width - w + 1)), tf.floor(y * (height - h + 1))
    return tf.cast(tf.stack([top, left, h, w]), tf.int32)

  def load(path):
    data = tf.io.read_file(path)
    shape = tf.io.extract_jpeg_shape(data)
    if same_crops:
      window = draw_window(tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32))
    else:
      begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
      )
      window = tf.stack([begin[0], begin[1], size[0], size[1]])
    image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
    return tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)

  options = tf.data.Options()
  options.threading.private_threadpool_size = cores
  dataset = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(len(files))
  dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH)
  return iter(dataset.prefetch(2).with_options(options).as_numpy_iterator())


def tf_data_same_crops(files: list[str], cores: int):
  return tf_data(files, cores, same_crops=True)


class PillowPhotos:
  """torchvision's ImageFolder with RandomResizedCrop, without torchvision."""

  def __init__(self, files: list[str]):
    self.files = files

  def __len__(self) -> int:
    return 10**9

  def __getitem__(self, index: int):
    import numpy as np
    from PIL import Image

    from resnet_jax.data.images.crops import random_resized_box

    rng = np.random.default_rng(index)
    with Image.open(self.files[index % len(self.files)]) as file:
      image = file.convert("RGB")
    left, top, width, height = random_resized_box(rng, *image.size)
    box = (left, top, left + width, top + height)
    # torchvision crops, then resizes. With `box`, Pillow does not copy the crop.
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box))


def pillow(files: list[str], cores: int):
  import numpy as np

  del cores
  photos = PillowPhotos(files)
  for first in itertools.count(step=BATCH):
    yield np.stack([photos[first + i] for i in range(BATCH)])


def pillow_in_dataloader(files: list[str], cores: int):
  import torch

  loader = torch.utils.data.DataLoader(
    PillowPhotos(files), batch_size=BATCH, num_workers=cores, persistent_workers=True
  )
  return iter(loader)


CASES = (
  ours,
  ours_in_processes,
  parquet_in_cache,
  parquet_large_groups,
  parquet_small_groups,
  webdataset,
  tf_data,
  tf_data_same_crops,
  pillow,
  pillow_in_dataloader,
)


def serve(case, files: list[str], cores: int) -> None:
  """Measures one turn for each line of stdin; the line is a number of batches."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  stream = case(files, cores)
  for line in sys.stdin:
    batches = int(line)
    start, cpu = time.monotonic(), cpu_seconds()
    for _ in range(batches):
      batch = next(stream)
    seconds, images = time.monotonic() - start, batches * BATCH
    assert tuple(batch.shape) == (BATCH, SIZE, SIZE, 3)
    turn = {
      "images_per_s": images / seconds,
      "cpu_s_per_million": (cpu_seconds() - cpu) / images * 1e6,
    }
    print(json.dumps(turn), flush=True)
  os._exit(0)  # Some of the readers never end.


def cpu_seconds() -> float:
  """Returns the CPU seconds of this process and its running children."""
  ticks, own = os.sysconf("SC_CLK_TCK"), os.getpid()
  total = 0
  for path in Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = path.read_text().rsplit(")", 1)[1].split()
    except OSError:
      continue
    if own in (int(path.parent.name), int(fields[1])):
      total += int(fields[11]) + int(fields[12])
  return total / ticks


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("directory")
  parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
  names = [case.__name__ for case in CASES]
  parser.add_argument("--cases", nargs="+", choices=names, default=names)
  parser.add_argument("--tensorflow", metavar="PYTHON", default=sys.executable)
  parser.add_argument("--turns", type=int, default=15)
  parser.add_argument("--batches", type=int, default=8)
  parser.add_argument("--case", help=argparse.SUPPRESS)
  args = parser.parse_args()
  paths = Path(args.directory).resolve().rglob("*")
  files = sorted(str(p) for p in paths if p.suffix.lower() in (".jpg", ".jpeg"))
  if not files:
    parser.error(f"{args.directory!r} has no .jpg or .jpeg files")
  # Repeat the files, because Grain's shuffle is slow below 65,536 of them. A real data
  # set has more.
  files *= math.ceil(100_000 / len(files))
  if args.case:
    (case,) = [case for case in CASES if case.__name__ == args.case]
    serve(case, files, *args.cores)
  for cores in args.cores:
    cases = {}
    for case in CASES:
      if case.__name__ not in args.cases:
        continue
      python = args.tensorflow if case.__name__.startswith("tf") else sys.executable
      command = [python, __file__, args.directory, "--case", case.__name__]
      cases[case.__name__] = Turns([*command, "--cores", str(cores)])
      # The process starts up during this turn, which does not count.
      cases[case.__name__].take(args.batches)
    for _ in range(args.turns):
      for case in cases.values():
        case.take(args.batches)
    for name, case in cases.items():
      case.end()
      row: dict[str, object] = {"case": name, "cores": cores}
      if case.error:
        row["error"] = case.error
      else:
        turns = case.turns[1:]
        for key in turns[0]:
          row[key] = round(statistics.median(turn[key] for turn in turns))
        rates = [turn["images_per_s"] for turn in turns]
        row["quartiles"] = [round(q) for q in statistics.quantiles(rates)[::2]]
      print(json.dumps(row), flush=True)


if __name__ == "__main__":
  main()
