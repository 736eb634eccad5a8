"""A run directory: what it stores, and which processes and settings may use it."""

import contextlib
import json
import sys
import time
from pathlib import Path

import jax
import pytest

from resnet_jax.config import AugmentConfig, Config, DataConfig
from resnet_jax.data.pipelines.opening import _check_same_images
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.runs.agreement import check_same_settings
from resnet_jax.runs.facts import RunFacts, read_facts
from resnet_jax.runs.run_dir import (
  latest_step,
  load_class_names,
  open_run,
  read_config,
)
from resnet_jax.runs.workdir import given_or_new
from resnet_jax.runtime.errors import UserError


def use(*args):
  with open_run(*args):
    pass


def test_run_directory_keeps_its_settings_and_refuses_others(tmp_path):
  run = tmp_path / "a" / "run"
  assert read_config(run) is None
  use(run, Config(seed=3), 9)
  assert read_config(run) == Config(seed=3)
  assert {path.name for path in run.iterdir()} == {"config.json", "run.json", "lock"}
  (run / "checkpoints" / "5").mkdir(parents=True)
  with pytest.raises(ValueError, match="seed was 3 and is now 4"):
    use(run, Config(seed=4), 9)
  assert read_config(run) == Config(seed=3)
  for other in (RunFacts(own_parts=("model.factory",)), RunFacts(own_parts=("task",))):
    with pytest.raises(ValueError, match=r"not trained by .*\(config, (model|task)=\."):
      use(run, Config(seed=3), 9, (), other)


def test_a_first_try_that_saved_nothing_may_be_followed_by_any_other(tmp_path):
  use(tmp_path, Config(seed=3), 9, ["cat", "dog"])
  use(tmp_path, Config(seed=4), 5, ["bird"])
  assert read_config(tmp_path).seed == 4
  assert load_class_names(tmp_path) == ("bird",)


def test_a_checkpoint_is_no_run_directory(tmp_path):
  use(tmp_path, Config(), 9)
  step = tmp_path / "checkpoints" / "5"
  step.mkdir(parents=True)
  with pytest.raises(UserError, match=r"5 is a checkpoint of the run .*; name the run"):
    read_config(step)


def test_other_kernels_on_resume_are_a_warning_with_both_names(tmp_path, capsys):
  use(tmp_path, Config(), 9, (), RunFacts("native"))
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  use(tmp_path, Config(), 9, (), RunFacts("native"))
  assert not capsys.readouterr().err
  use(tmp_path, Config(), 9, (), RunFacts("xla"))
  assert (
    "trained with native kernels and is resumed with xla" in capsys.readouterr().err
  )


def test_a_run_is_resumed_with_the_images_that_it_began_with(tmp_path):
  first = RunFacts(num_train_images=18, train_digest="a")
  use(tmp_path, Config(), 9, (), first)
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  for facts in (
    RunFacts(num_train_images=36, train_digest="b"),
    RunFacts(num_train_images=36),
  ):
    with pytest.raises(UserError, match="trained on 18 images, and now there are 36"):
      use(tmp_path, Config(), 9, (), facts)
  with pytest.raises(UserError, match="18 images, and now their names or labels are"):
    use(tmp_path, Config(), 9, (), RunFacts(num_train_images=18, train_digest="b"))
  # Allowed: data without a list to compare, and a run of an older version.
  use(tmp_path, Config(), 9, (), RunFacts(num_train_images=18))
  use(tmp_path, Config(), 9, (), RunFacts())
  use(tmp_path, Config(), 9, (), first)


@pytest.mark.parametrize("name", ["two\nlines", "not\udcff UTF-8"])
def test_class_name_that_is_no_line_of_text_is_refused(tmp_path, name):
  with pytest.raises(ValueError, match=r"class '.*' must be one line of UTF-8"):
    use(tmp_path / "run", Config(), 5, ["cat", name])
  assert not (tmp_path / "run").exists()


def test_a_run_further_on_or_without_settings_is_refused(tmp_path):
  use(tmp_path, Config(), 5)
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()
  assert latest_step(tmp_path) == 5
  use(tmp_path, Config(), 5)
  with pytest.raises(ValueError, match="at step 5, past the 4 steps"):
    use(tmp_path, Config(), 4)
  (tmp_path / "config.json").unlink()
  with pytest.raises(ValueError, match=r"no config\.json"):
    use(tmp_path, Config(), 5)


def test_a_run_directory_is_for_one_run_at_a_time(tmp_path):
  for _ in range(2):
    with open_run(tmp_path, Config(num_steps=9), 9):
      with pytest.raises(ValueError, match="in use by another process"):
        use(tmp_path, Config(num_steps=5), 5)  # Allowed afterwards, not now.
      assert read_config(tmp_path).num_steps == 9


def test_run_directory_whose_name_is_not_utf_8_is_refused_before_it_is_made(tmp_path):
  workdir = tmp_path / "\udcff" / "run"
  with pytest.raises(UserError, match="it takes paths in UTF-8 only"):
    use(workdir, Config(), 9)
  assert not workdir.parent.exists()


def test_run_directory_that_is_a_file(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(ValueError, match="is a file"):
    use(tmp_path / "file", Config(), 9)


NESTED = b"[" * 200_000


@pytest.mark.parametrize(
  ("name", "read", "text"),
  [
    *(("config.json", read_config, text) for text in (b"{", b"\xff", NESTED)),
    *(("run.json", read_facts, text) for text in (b"{", b"\xff", NESTED)),
    *(
      ("run.json", read_facts, json.dumps(values).encode())
      for values in (
        [],
        3,
        {"image_shape": 3},
        {"image_shape": [8]},
        {"image_shape": [8, 0, 3]},
        {"image_shape": [8, 8, "3"]},
        {"num_train_images": "18"},
        {"num_train_images": True},
        {"own_parts": ["model"]},
        {"own_parts": "model.factory"},
        {"kernels": None},
        {"has_digests": "no"},
        {"best_metric": {}},
        {"unknown": 1},
      )
    ),
    ("classes.txt", load_class_names, b"\xff"),
  ],
)
def test_a_damaged_file_of_a_run_is_one_line(tmp_path, name, read, text):
  (tmp_path / name).write_bytes(text)
  with pytest.raises(UserError, match=rf"/{name} is damaged: .") as caught:
    read(tmp_path)
  assert len(str(caught.value)) < 300


@pytest.mark.parametrize("setting", ["num_steps", "clip_norm", "ema_decay"])
def test_a_number_of_many_digits_is_no_setting(tmp_path, setting):
  settings = {setting: 10**400}
  if setting != "num_steps":
    settings = {"optim": settings}
  (tmp_path / "config.json").write_text(json.dumps(settings))
  with pytest.raises(UserError, match=rf"config\.json is damaged: .*{setting}=1000"):
    read_config(tmp_path)


@pytest.mark.parametrize(
  ("workdir", "message"),
  [
    ("gs://bucket/run", r"needs gcsfs: pip install 'flax-resnet\[gcs\]'"),
    ("s3://bucket/run", r"needs s3fs: pip install 'flax-resnet\[s3\]'"),
    ("s3://bucket", "must be s3://BUCKET/PATH"),
    ("az://bucket/run", "must be a local path or begin with gs:// or s3://; mount"),
    ("/gs/bucket/run", "it reads /gs, .* as remote storage; name another"),
    ("runs/gs:/run", "which is /.*/runs/gs:/run: it reads gs:/ as remote storage"),
    ("runs/args:", "it reads gs:/ as remote storage"),
    ("runs\\digits", "it reads a backslash as a /"),
    ("runs/a\udcff", "it takes paths in UTF-8 only"),
  ],
)
def test_storage_that_cannot_be_used_is_told_at_once(monkeypatch, workdir, message):
  for package in ("gcsfs", "gcsfs.core", "s3fs"):  # As if they were not installed.
    monkeypatch.setitem(sys.modules, package, None)
  for function in (read_config, lambda path: use(path, Config(), 5)):
    with pytest.raises(ValueError, match=message):
      function(workdir)


@pytest.fixture
def become(monkeypatch):
  """Returns a function by which this process plays process 0 or process 1 of two.

  Process 1 receives the broadcasts of process 0.
  """
  said, heard = [], []

  def broadcast(array):
    if jax.process_index() > 0:
      return heard.pop(0)
    said.append(array)
    return array

  def become(index):
    if index == 0:
      said.clear()
    heard[:] = said
    monkeypatch.setattr("jax.process_index", lambda: index)

  monkeypatch.setattr("jax.process_count", lambda: 2)
  utils = "jax.experimental.multihost_utils"
  monkeypatch.setattr(f"{utils}.broadcast_one_to_all", broadcast)
  monkeypatch.setattr(f"{utils}.sync_global_devices", lambda name: None)
  return become


@pytest.mark.parametrize(
  ("config", "text"),
  [
    (Config(), ""),
    # The place of the images may differ.
    (Config(data=DataConfig(dir="elsewhere", num_threads=3)), ""),
    (Config(seed=1), "config.seed=1 and process 0 has 0"),
    (Config(batch_size=64), "config.batch_size=64 and process 0 has 128"),
    (Config(augment=AugmentConfig(padding=1)), "config.augment.padding=1 and process"),
    (Config(data=DataConfig(name="cifar10")), "config.data.name='cifar10' and process"),
  ],
)
def test_a_setting_that_differs_in_one_process_is_named(become, config, text):
  check_same_settings(Config())
  become(1)
  text = text and f"process 1 has {text}"
  with pytest.raises(UserError, match=text) if text else contextlib.nullcontext():
    check_same_settings(config)


@pytest.mark.parametrize(
  ("root", "names", "text"),
  [
    ("here", ["a/1.jpg", "b/1.jpg"], ""),
    ("there", ["a/1.jpg", "b/1.jpg"], ""),  # The place of the images may differ.
    ("here", ["a/1.jpg", "b/1.jpg", "b/2.jpg"], "there are 3; give all processes"),
    ("here", ["a/1.jpg", "b/2.jpg"], "their names or labels are different; give all"),
  ],
)
def test_images_that_differ_in_one_process_are_refused(become, root, names, text):
  def compare(root, names):
    labels = [int(name > "b") for name in names]
    _check_same_images(FileList(root, names, labels, ["a", "b"]), "data.dir='d'")

  become(0)
  compare("here", ["a/1.jpg", "b/1.jpg"])
  become(1)
  text = text and f"process 0 has 2 images of data.dir='d', and in process 1 {text}"
  with pytest.raises(UserError, match=text) if text else contextlib.nullcontext():
    compare(root, names)


def test_all_processes_have_the_directory_of_the_first(become, tmp_path, monkeypatch):
  run, other = tmp_path / "run", tmp_path / "other"
  use(other, Config(), 5)  # With the same settings.
  become(0)
  met = []

  def meet(name):
    if jax.process_index() == 0 and name == "all have the same directory":
      become(1)
      use(run, Config(), 5)
      become(1)
      with pytest.raises(UserError, match="other is not the directory of process 0"):
        use(other, Config(), 5)
      become(0)
      met.append(name)

  monkeypatch.setattr("jax.experimental.multihost_utils.sync_global_devices", meet)
  use(run, Config(), 5)
  assert met
  assert {path.name for path in run.iterdir()} == {"config.json", "run.json", "lock"}


def test_runs_of_one_second_have_directories_of_their_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(time, "strftime", lambda _: "20260102-030405")
  with contextlib.ExitStack() as stack:
    names = [stack.enter_context(given_or_new(None, "digits")) for _ in range(3)]
    run = "runs/digits-20260102-030405"
    assert names == [run, f"{run}-2", f"{run}-3"]
    Path(names[1], "config.json").touch()
  assert [str(path) for path in Path("runs").iterdir()] == [f"{run}-2"]


def test_a_process_without_a_directory_has_that_of_the_first(become):
  with given_or_new("a", "digits") as workdir:
    assert workdir == "a"
  become(1)
  with given_or_new(None, "digits") as workdir:
    assert workdir == "a"
