"""Images read while the device computes: identical for any threads and workers."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from names import NAME, SHOWN, assert_text
from PIL import Image

from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from resnet_jax.config.plan import Plan
from resnet_jax.data.images.crops import EvalTransform, TrainTransform
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.pipelines import streaming
from resnet_jax.data.pipelines.streaming import StreamingDataset
from resnet_jax.data.sources.folder import list_images
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import create_mesh
from resnet_jax.training.clock import Clock

# Each worker imports this file, so heavy modules are imported where they are used.

LOADED: list[int] = []  # An entry for each image that was made in this process.


@dataclasses.dataclass(frozen=True)
class Images:
  """Images in memory; the content of image i is i, its label i % 7."""

  count: int
  bad: frozenset[int] = frozenset()
  class_names = tuple("abcdefg")

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    if index in self.bad:
      raise ImageError("it is bad")
    return bytes([range(self.count)[index]]), index % 7

  def name(self, index: int) -> str:
    return f"image {index}"


@dataclasses.dataclass(frozen=True)
class Noise:
  """A picture of random numbers, with the content of the file in its first pixel."""

  sleep_s: float = 0.0
  size = 8
  pixels = PixelFormat()

  def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
    LOADED.append(data[0])
    time.sleep(self.sleep_s)
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    image[0, 0, 0] = data[0]
    return image


class Deadly(Noise):
  """Ends any other process that unpickles it."""

  def __setstate__(self, state):
    if multiprocessing.parent_process():
      os._exit(3)


class Slow(Noise):
  """Raises an error like that of a full disk or a slow network."""

  def __call__(self, data, rng):
    raise TimeoutError("the network is slow")


def make(source=None, transform=None, batch_size=4, devices=1, **options):
  mesh = create_mesh(jax.devices()[:devices])
  return StreamingDataset(
    source or Images(23), transform or Noise(), batch_size, mesh, **options
  )


def make_plan(dataset, num_steps, per_call=3, batch_size=4):
  config = Config(num_steps=num_steps, batch_size=batch_size, steps_per_call=per_call)
  return Plan.create(config, dataset.num_examples)


def iterate_training(dataset, num_steps, start=0, per_call=3, seed=0, batch_size=4):
  """Yields the training batches from `start` on, as arrays on the host."""
  plan = make_plan(dataset, num_steps, per_call, batch_size)
  take = jax.jit(dataset.take_batch)
  step = start
  for end, chunk, count in dataset.train_chunks(jax.random.key(seed), start, plan):
    assert end == step + count and count <= per_call
    for number in range(step, end):
      yield jax.device_get(take(chunk, number))
    step = end
  assert step == num_steps


def train_batches(dataset, num_steps=12, **options):
  return list(iterate_training(dataset, num_steps, **options))


def eval_batches(dataset):
  take = jax.jit(dataset.take_batch)
  return [jax.device_get(take(chunk, 0)) for chunk, _ in dataset.eval_chunks()]


def digests(batches) -> list[str]:
  names = "image", "label", "mask"
  contents = [b"".join(batch[k].tobytes() for k in names) for batch in batches]
  return [hashlib.sha256(content).hexdigest() for content in contents]


def indices(batches) -> list[int]:
  """Returns which of `Images` are in batches of `Noise`; checks the labels."""
  batch = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
  found = batch["image"][:, 0, 0, 0][batch["mask"]]
  np.testing.assert_array_equal(batch["label"][batch["mask"]], found % 7)
  return found.tolist()


@contextlib.contextmanager
def nothing_left_behind():
  """Checks that no threads and processes outlive the block.

  Two pools may stay: the decoders, and grain's pool that frees shared memory.
  """
  before = set(threading.enumerate())
  yield
  until = time.monotonic() + 5
  while True:
    names = [thread.name for thread in set(threading.enumerate()) - before]
    names = [name for name in names if name.startswith(("grain", "ThreadPoolExecutor"))]
    if not names and not multiprocessing.active_children():
      return
    assert time.monotonic() < until, (names, multiprocessing.active_children())
    time.sleep(0.05)


@pytest.fixture(scope="module")
def whole():
  """Digests of the batches of a little over two epochs, with five steps per epoch."""
  return digests(train_batches(make()))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_any_number_of_threads_makes_the_same_batches(whole, num_threads):
  assert digests(train_batches(make(num_threads=num_threads))) == whole
  assert len(set(whole)) == 12


# Two workers are covered by the test of skipped images.
@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_workers_makes_the_same_batches(whole, num_workers):
  with nothing_left_behind():
    dataset = make(num_workers=num_workers)
    batches = itertools.islice(iterate_training(dataset, 1000, start=1, per_call=2), 8)
    assert digests(batches) == whole[1:9]
    del batches


@pytest.mark.parametrize("start", [1, 4, 5, 7, 11, 12])
@pytest.mark.parametrize("per_call", [1, 4])
def test_batches_go_on_from_any_step(whole, start, per_call):
  batches = train_batches(make(), start=start, per_call=per_call)
  assert digests(batches) == whole[start:]


def test_another_seed_gives_another_order_and_other_crops():
  one, other = (train_batches(make(), 5, seed=seed) for seed in (0, 1))
  assert indices(one) != indices(other)
  images = [np.concatenate([batch["image"] for batch in run]) for run in (one, other)]
  first, second = (
    dict(zip(indices(run), pixels, strict=True))
    for run, pixels in zip((one, other), images, strict=True)
  )
  both = first.keys() & second.keys()
  assert len(both) > 10
  assert all((first[i] != second[i]).mean() > 0.9 for i in both)


def test_an_epoch_takes_each_image_at_most_once_in_a_new_order():
  batches = train_batches(make(), 15)
  epochs = [indices(batches[i : i + 5]) for i in (0, 5, 10)]
  assert all(len(set(epoch)) == 20 for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]
  left_out = [frozenset(range(23)) - set(epoch) for epoch in epochs]
  assert len(set(left_out)) == 3
  # An image that comes again gets a new crop.
  images = np.concatenate([batch["image"] for batch in batches])
  assert len(np.unique(images.reshape(60, -1), axis=0)) == 60


@pytest.mark.parametrize(("num_steps", "per_call"), [(5, 3), (3, 20_000)])
def test_chunks_are_as_long_as_the_longest_of_the_run(num_steps, per_call):
  plan = make_plan(make(), num_steps, per_call)
  chunks = list(make().train_chunks(jax.random.key(0), 0, plan))
  assert [count for *_, count in chunks] == [3, 2][: len(chunks)]
  assert {chunk.batches["image"].shape for _, chunk, _ in chunks} == {(3, 4, 8, 8, 3)}


@pytest.fixture
def share(monkeypatch):
  """Returns a function that makes data sets work for process i of n."""

  def become(i, n):
    def rows(batch_size):
      return batch_size // n * i, batch_size // n * (i + 1)

    monkeypatch.setattr(streaming, "local_rows", rows)
    monkeypatch.setattr(streaming, "put_batches", lambda batches, _: batches)

  return become


@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_processes_are_the_batch_of_one(share, processes):
  whole = train_batches(make(batch_size=8), 6, batch_size=8)
  parts = []
  for i in range(processes):
    share(i, processes)
    parts.append(train_batches(make(batch_size=8), 6, batch_size=8))
  assert parts[0][0]["label"].shape == (8 // processes,)
  for batch, *rows in zip(whole, *parts, strict=True):
    for name, value in batch.items():
      np.testing.assert_array_equal(value, np.concatenate([row[name] for row in rows]))


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 7, 8, 17])
def test_evaluation_takes_each_image_once_over_all_processes(share, size, processes):
  seen, counts = [], set()
  for i in range(processes):
    share(i, processes)
    batches = eval_batches(make(Images(size), batch_size=8))
    seen += indices(batches)
    counts.add(len(batches))
  assert sorted(seen) == list(range(size))
  assert counts == {-(-size // 8)}  # Each process takes part in each batch.


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("size", [1, 7, 8, 17])
def test_evaluation_takes_each_image_once_over_all_devices(size, devices):
  dataset = make(Images(size), batch_size=8, devices=devices)
  chunk, count = next(dataset.eval_chunks())
  assert count == 1 and len(chunk.batches["mask"].sharding.device_set) == devices
  assert indices(eval_batches(dataset)) == list(range(size))


_PROCESS = """
import hashlib, json, sys
import jax
import numpy as np
from jax.experimental import multihost_utils
from resnet_jax.runtime.mesh import create_mesh

sys.path.insert(0, sys.argv[1])
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
import test_streaming as tests

mesh = create_mesh()
data = tests.list_images(tests.Path(sys.argv[4]), "train", 0.1)
dataset = tests.StreamingDataset(data, tests.CROP, 8, mesh)
plan = tests.make_plan(dataset, 4, batch_size=8)
chunks = dataset.train_chunks(jax.random.key(0), 0, plan)
batches = [chunk.batches for _, chunk, _ in chunks]
shards = batches[0]["label"].addressable_shards
starts = sorted({shard.index[1].start for shard in shards})
arrays = jax.tree.leaves(multihost_utils.process_allgather(batches, tiled=True))
digest = hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()
count = jax.jit(lambda mask: mask.sum())
total = sum(int(count(chunk.batches["mask"])) for chunk, _ in dataset.eval_chunks())
print(json.dumps([len(mesh.devices), starts, digest, total]))
"""


def test_two_processes_make_the_batches_of_one(colours):
  with socket.socket() as sock:
    sock.bind(("localhost", 0))
    port = sock.getsockname()[1]
  tests = Path(__file__).parent
  path = os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", _PROCESS, str(tests), str(port), str(i), str(colours)],
      env=os.environ | {"PYTHONPATH": path},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  data = list_images(colours, "train", 0.1)
  dataset = StreamingDataset(data, CROP, 8, create_mesh(jax.devices()[:4]))
  plan = make_plan(dataset, 4, batch_size=8)
  chunks = dataset.train_chunks(jax.random.key(0), 0, plan)
  arrays = jax.tree.leaves([jax.device_get(chunk.batches) for _, chunk, _ in chunks])
  digest = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()
  try:
    for i, process in enumerate(processes):
      out, err = process.communicate(timeout=60)
      assert process.returncode == 0, err[-2000:]
      result = json.loads(out.splitlines()[-1])
      assert result == [4, [4 * i, 4 * i + 2], digest, len(data)]
  finally:
    for process in processes:
      process.kill()


COLOURS = {"blue": (20, 40, 200), "red": (200, 40, 20)}
CROP = TrainTransform("random_resized", 0, 8, 0.25, "bilinear", "", 9, 10**6)
CENTRE = EvalTransform(8, 8, "bilinear", 10**6)


def write_colours(folder, count, names=tuple(COLOURS), suffix="png"):
  rng = np.random.default_rng(0)
  for name in names:
    (folder / name).mkdir(parents=True)
    for i in range(count):
      noise = rng.integers(-20, 20, (20, 20, 3))
      pixels = (np.array(COLOURS.get(name, (0, 0, 0))) + noise).clip(0, 255)
      image = Image.fromarray(pixels.astype(np.uint8))
      image.save(folder / name / f"{i:02}.{suffix}")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
  """A folder of 24 images in two classes, and half as many for evaluation."""
  folder = tmp_path_factory.mktemp("colours")
  write_colours(folder / "train", 12)
  write_colours(folder / "val", 6)
  return folder


@pytest.mark.parametrize(
  ("suffix", "transform", "num_workers", "read"),
  [
    ("png", CROP, 0, train_batches),
    ("jpg", CENTRE, 0, eval_batches),
    ("jpg", CROP, 2, train_batches),
  ],
)
def test_a_truncated_file_ends_training_and_evaluation(
  tmp_path, suffix, transform, num_workers, read
):
  write_colours(tmp_path / "train", 6, suffix=suffix)
  damaged = tmp_path / "train" / "red" / f"03.{suffix}"
  damaged.write_bytes(damaged.read_bytes()[:-60])
  files = list_images(tmp_path, "train", 0.1)
  start = time.monotonic()
  with nothing_left_behind():
    message = f"^{damaged}: it is truncated or damaged .*on_error=skip"
    with pytest.raises(ImageError, match=message):
      read(make(files, transform, num_workers=num_workers))
  assert time.monotonic() - start < 30
  assert issubclass(ImageError, UserError)  # One line, not a traceback.


@dataclasses.dataclass(frozen=True)
class FewNames(Images):
  """Has no names for the labels 5 and 6."""

  class_names = tuple("abcde")


def test_a_label_without_a_name_is_refused_by_the_name_of_its_image():
  message = r"^image \d+: its label [56] must be in \[0, 5\)"
  for read in train_batches, eval_batches:
    with pytest.raises(ImageError, match=message):
      read(make(FewNames(23)))


def test_skipped_images_are_replaced_alike_by_any_number_of_workers():
  bad = frozenset({3, 4, 22})
  runs = []
  for options in ({"num_threads": 1}, {"num_threads": 5}, {"num_workers": 2}):
    dataset = make(Images(23, bad), max_skip_share=0.2, **options)
    batches = train_batches(dataset)
    assert all(batch["mask"].all() for batch in batches)
    assert not bad & set(indices(batches))
    # A little over two epochs meet each bad image, and report it only once.
    assert dataset.skipped == {i: f"image {i}: it is bad" for i in bad}
    runs.append(digests(batches))
  assert runs[0] == runs[1] == runs[2]


def test_a_skipped_image_changes_no_other(whole):
  dataset = make(Images(23, frozenset({9})), max_skip_share=0.2)
  pairs = zip(digests(train_batches(dataset)), whole, strict=True)
  assert 0 < sum(a != b for a, b in pairs) <= 3


def test_evaluation_leaves_skipped_images_out():
  dataset = make(Images(17, frozenset({0, 16})), batch_size=8, max_skip_share=0.2)
  for _ in range(2):
    assert indices(eval_batches(dataset)) == list(range(1, 16))
  assert dataset.skipped == {i: f"image {i}: it is bad" for i in (0, 16)}


@pytest.mark.parametrize("read", [train_batches, eval_batches])
def test_more_skipped_images_than_allowed_end_the_run(read):
  dataset = make(Images(20, frozenset({1, 2, 3})), max_skip_share=0.1)
  message = r"3 of 20 images cannot be read, more than .*max_skip_share=0.1 .*image \d"
  for _ in range(2):
    with nothing_left_behind(), pytest.raises(ImageError, match=message):
      read(dataset)
  assert len(dataset.skipped) == 3
  dataset = make(Images(20, frozenset({1, 2})), max_skip_share=0.1)
  assert read(dataset) and len(dataset.skipped) == 2


def test_a_process_of_several_allows_the_skipped_of_its_share(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  dataset = make(Images(100), max_skip_share=0.2)
  empty = np.zeros((25, 8, 8, 3), np.uint8), np.zeros(25, np.int32), np.ones(25, bool)
  rows = dict(zip(("image", "label", "mask"), empty, strict=True))

  def load(*bad):
    errors = [(i, f"image {i}: it is bad") for i in bad]
    dataset._checked(rows | {"errors": errors})

  load(*range(5))  # The first epoch meets a quarter of the images; 1/5 of them are bad.
  load(*range(5, 8))  # After the second epoch, it has met 7/16 of all.
  with pytest.raises(ImageError, match="12 of 100 images cannot be read"):
    load(*range(8, 12))  # After the third epoch, 58 %.


@pytest.mark.parametrize("read", [train_batches, eval_batches])
@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_where_all_images_are_bad_the_run_ends(read, share):
  dataset = make(Images(250, frozenset(range(250))), max_skip_share=share)
  with pytest.raises(ImageError, match=r"image \d+: it is bad"):
    read(dataset)


def test_another_error_comes_through_as_it_is():
  """Even a `TimeoutError` does, although waiting for a batch can raise it too."""
  for read in (train_batches, eval_batches):
    with nothing_left_behind(), pytest.raises(TimeoutError, match="network is slow"):
      read(make(transform=Slow()))


def test_a_killed_worker_is_told_of():
  dataset = make(transform=Noise(0.01), num_workers=2)
  chunks = dataset.train_chunks(jax.random.key(0), 0, make_plan(dataset, 1000))
  with nothing_left_behind():
    next(chunks)
    worker = multiprocessing.active_children()[0].pid
    os.kill(worker, signal.SIGTERM)  # From a scheduler; the main process handles it.
    for _ in range(8):  # More than is read ahead.
      next(chunks)
    os.kill(worker, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"worker process.*died.*num_workers=2.* -9"):
      for _ in chunks:
        pass
    assert time.monotonic() - start < 10


def test_a_worker_that_cannot_start_is_told_of():
  with nothing_left_behind():
    start = time.monotonic()
    with pytest.raises(OSError, match=r"worker process.*died.*exit code 3"):
      train_batches(make(transform=Deadly(), num_workers=1))
    assert time.monotonic() - start < 30


# Here without workers; the test of the number of workers has the same check.
def test_what_is_left_half_way_is_closed():
  dataset = make(transform=Noise(0.01))
  with nothing_left_behind():
    chunk, _ = next(dataset.eval_chunks())
  assert indices([jax.device_get(dataset.take_batch(chunk, 0))]) == [0, 1, 2, 3]
  with nothing_left_behind():
    next(iterate_training(dataset, 1000))


_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import test_streaming as tests

if __name__ == "__main__":
  dataset = tests.make(num_workers=1)
  plan = tests.make_plan(dataset, 10**9)

  def train():
    key = tests.jax.random.key(0)
    for step, *_ in dataset.train_chunks(key, 0, plan):
      if step == 3:
        print("training", flush=True)

  train()
"""


def test_workers_end_with_the_process_however_it_ends(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(_SCRIPT)
  tests = Path(__file__).parent
  processes = [
    subprocess.Popen(
      [sys.executable, str(script), str(tests)],
      env=os.environ | {"PYTHONPATH": str(tests.parent)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    for _ in range(2)
  ]
  interrupted, killed = processes
  try:
    assert all(process.stdout.readline() == "training\n" for process in processes)
    killed.kill()
    os.killpg(interrupted.pid, signal.SIGINT)  # The keyboard interrupts workers too.
    # Returns once the workers, which hold the other end of the pipes, are gone too.
    killed.communicate(timeout=120)
    error = interrupted.communicate(timeout=120)[1]
    assert error.startswith("Traceback") and error.endswith("KeyboardInterrupt\n")
    assert error.count("Traceback") == 1
  finally:
    for process in processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Result:
  """The result of a call; the device computes it until `ready` is set."""

  def __init__(self):
    self.ready = threading.Event()

  def block_until_ready(self):
    self.ready.wait()
    return self


def train_slowly(
  dataset, result, compute_s=0.0, num_steps=10, end=lambda: None
) -> tuple[float, float]:
  """Returns the seconds of training, and the seconds of waiting for images.

  All calls return `result`. After the last call, `end` is called to complete it.
  """
  plan = make_plan(dataset, num_steps, per_call=1)
  with Clock() as clock:
    clock.dispatched(result)
    count = 1
    for _ in clock.waiting(dataset.train_chunks(jax.random.key(0), 0, plan)):
      clock.dispatched(result)
      count += 1
      time.sleep(compute_s)
    end()
    seconds, waited, _ = zip(*(clock.lap() for _ in range(count)), strict=True)
    return sum(seconds), sum(waited)


def test_waiting_for_images_is_counted_while_the_device_is_idle():
  list(make().eval_chunks())  # Loads everything that is loaded only once.
  dataset = make(transform=Noise(0.02), num_threads=1)  # 0.08 s a batch.
  seconds, waited = train_slowly(dataset, jnp.zeros(()))
  assert 0.7 * seconds < waited <= seconds


def test_waiting_while_the_device_works_is_not_counted():
  dataset = make(transform=Noise(0.01), num_threads=1)
  result = Result()
  assert train_slowly(dataset, result, end=result.ready.set)[1] == 0


def test_waiting_is_counted_from_when_the_device_falls_idle():
  dataset = make(transform=Noise(0.05), num_threads=1)  # 0.2 s at least.
  result, fell_idle = Result(), []

  def fall_idle():
    fell_idle.append(time.monotonic())
    result.ready.set()

  with Clock() as clock:
    clock.dispatched(result)
    start = time.monotonic()
    threading.Timer(0.1, fall_idle).start()
    next(
      clock.waiting(dataset.train_chunks(jax.random.key(0), 0, make_plan(dataset, 1)))
    )
    end = time.monotonic()
    clock.dispatched(result)
    clock.lap()
    waited = clock.lap().waited
  assert 0.05 < waited < end - fell_idle[0] < end - start - 0.05


def test_images_that_are_quicker_than_the_device_are_not_waited_for():
  seconds, waited = train_slowly(make(), jnp.zeros(()), compute_s=0.2)
  assert waited < 0.3 * seconds


def test_each_call_has_the_time_to_its_own_end_and_the_wait_for_its_own_images():
  with Clock() as clock:
    clock.dispatched(jnp.zeros(()))
    time.sleep(0.05)  # Idle, and no images are requested.
    assert list(clock.waiting(time.sleep(0.1) or i for i in range(2))) == [0, 1]
    result = Result()
    clock.dispatched(result)
    time.sleep(0.1)
    result.ready.set()
    # As on a GPU, where the time is read once the next call has ended.
    seconds, waited, _ = clock.lap()
    assert seconds < 0.1 and waited == 0
    seconds, waited, _ = clock.lap()
    assert 0.25 < waited + 0.14 < seconds


@pytest.mark.parametrize("per_call", [1, 3])
def test_no_more_than_four_batches_are_read_ahead(per_call):
  dataset = make()
  LOADED.clear()
  plan = make_plan(dataset, 1000, per_call=per_call)
  chunks = dataset.train_chunks(jax.random.key(0), 0, plan)
  for step, *_ in itertools.islice(chunks, 3):
    time.sleep(0.2)
    assert 4 * step < len(LOADED) <= 4 * (step + 4)


def make_config(folder, **data):
  return Config(
    num_steps=7,
    batch_size=8,
    steps_per_call=2,
    log_every_steps=4,
    model=ModelConfig(name="resnet8"),
    data=DataConfig(
      name="folder",
      dir=str(folder),
      train_crop="random_resized",
      image_size=8,
      eval_resize=8,
      eval_crop=8,
      **data,
    ),
    optim=OptimConfig(learning_rate=0.02),
  )


def train(config, workdir, num_steps=7, file=None):
  from rich.console import Console
  from running import train_config

  config = dataclasses.replace(config, num_steps=num_steps)
  console = Console(file=file or io.StringIO(), width=200)
  return train_config(config, str(workdir), jax.devices()[:1], console)


def assert_states_equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("trained")
  with nothing_left_behind():
    return workdir, *train(make_config(colours), workdir)


def test_a_folder_is_learned(trained):
  workdir, _, results = trained
  assert results["top1"] == 1 and results["count"] == 12
  assert (workdir / "classes.txt").read_text() == "blue\nred\n"


def test_resumed_equals_uninterrupted_to_the_bit(colours, trained, tmp_path):
  config = make_config(colours)
  train(config, tmp_path, 4)  # Within an epoch, which has three steps.
  assert_states_equal(train(config, tmp_path)[0], trained[1])


def test_a_run_tells_of_what_it_skips(colours, tmp_path):
  damaged = tmp_path / "[" / f"b]{NAME}"
  shutil.copytree(colours, damaged)
  (damaged / "val" / "red" / "00.png").unlink()
  (damaged / "val" / "red" / f"{NAME}.png").write_bytes(b"")
  config = make_config(damaged, on_error="skip", max_skip_share=0.1)
  shown = io.StringIO()
  _, results = train(config, tmp_path / "run", 1, shown)
  assert results["count"] == 11
  assert_text(shown.getvalue())
  assert f"/[/b]{SHOWN}/val/red/{SHOWN}.png: " in shown.getvalue()
  last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
  assert json.loads(last)["skipped"] == 1


def test_a_run_is_evaluated_on_some_of_its_classes_and_no_others(trained, tmp_path):
  from resnet_jax.training.evaluator import evaluate_run

  write_colours(tmp_path / "some" / "val", 5, ["red"])
  write_colours(tmp_path / "other" / "val", 5, ["red", "green"])
  devices = jax.devices()[:1]
  some = make_config(tmp_path / "some", num_workers=1)
  step, results = evaluate_run(some, str(trained[0]), devices=devices)
  # Red is class 0 in this folder and 1 in the run. Only the run's number is right.
  assert step == 7 and results["top1"] == 1 and results["count"] == 5
  with pytest.raises(ValueError, match="green"):
    other = make_config(tmp_path / "other")
    evaluate_run(other, str(trained[0]), devices=devices)
