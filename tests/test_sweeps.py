"""Search for settings: spaces, ends of trials, resuming, and a small whole search."""

import ast
import contextlib
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from matplotlib.figure import Figure
from optuna.distributions import (
  CategoricalDistribution,
  FloatDistribution,
  IntDistribution,
)
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError

from resnet_jax.cli.main import main
from resnet_jax.config import (
  Config,
  DataConfig,
  ModelConfig,
  OptimConfig,
  serialization,
)
from resnet_jax.data.sources.built_in import load_digits, load_synthetic
from resnet_jax.data.sources.opening import check_data
from resnet_jax.experiments.jobs import Job
from resnet_jax.experiments.sweeps import figures, results, space
from resnet_jax.experiments.sweeps import search as search_module
from resnet_jax.experiments.sweeps.search import Search, open_study
from resnet_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
RATES = {"optim.learning_rate": FloatDistribution(0.01, 1.0, log=True)}


def search(out: Path, config: Config | None = None, **kwargs) -> Search:
  options = {"sampler": "random", "metric": "top1", "prune": False} | kwargs
  study = open_study(str(out / "log"), "name", seed=0, **options)
  config = config or Config()
  images = check_data(config.data)
  return Search(study, RATES, config, out, options["metric"], images)


def finish(job: Job, **result) -> None:
  job.workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps({"request": job.request, "seconds": 1.0} | result)
  (job.workdir / "result.json").write_text(text)


def evaluated(job: Job, *values: float) -> None:
  job.workdir.mkdir(parents=True, exist_ok=True)
  lines = [
    json.dumps(
      {"step": step, "epoch": step, "split": "eval", "loss": 1.0, "top1": value}
    )
    + "\n"
    for step, value in enumerate(values, 1)
  ]
  (job.workdir / "metrics.jsonl").write_text("".join(lines))


def test_the_config_of_the_repository_has_a_space_that_fits():
  found = space.load_space(str(ROOT / "configs" / "sweeps" / "digits.py"))
  config = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
  space.check_space(found, config)


@pytest.mark.parametrize(
  ("path", "distribution", "text"),
  [
    ("optim.learning_rat", FloatDistribution(0, 1), "did you mean config.optim.learn"),
    ("optim.learning_rate", FloatDistribution(0, 1), "learning_rate=0.0 must be > 0"),
    ("optim.momentum", FloatDistribution(0, 1), "momentum=1.0 must be in [0, 1)"),
    ("batch_size", FloatDistribution(8, 9), "batch_size=8.0 must be a whole number"),
    ("model.name", CategoricalDistribution(["resnet20", "resnet21"]), "'resnet21'"),
    ("optim.decay_steps", CategoricalDistribution(["(9, 3)"]), "(9, 3) must be incr"),
    ("data.eval_split", CategoricalDistribution(["test"]), "set by the sweep itself"),
  ],
)
def test_spaces_are_checked_before_the_first_trial(path, distribution, text):
  with pytest.raises(ValueError) as error_info:
    space.check_space({path: distribution}, Config())
  assert text in str(error_info.value)


def test_values_of_tuples_go_to_trials_and_back():
  choices = {"optim.decay_steps": CategoricalDistribution(["()", "(30, 60)"])}
  config = Config(optim=OptimConfig(decay_steps=(30, 60)))
  trial = space.as_trial(choices, {"optim.decay_steps": (30, 60)})
  assert trial == {"optim.decay_steps": "(30, 60)"}
  assert space.with_values(Config(), trial) == config
  assert space.as_trial(choices, {"optim.decay_steps": (1,)}) is None
  assert space.as_trial(RATES, {"optim.learning_rate": 2.0}) is None


def test_a_grid_is_every_combination():
  found = space.grid(
    {
      "batch_size": IntDistribution(8, 24, step=8),
      "optim.momentum": FloatDistribution(0.8, 0.9, step=0.1),
      "optim.nesterov": CategoricalDistribution([True, False]),
    }
  )
  assert len(found) == 3 * 2 * 2 == len({str(values) for values in found})
  assert {values["batch_size"] for values in found} == {8, 16, 24}
  with pytest.raises(ValueError, match="needs choices or a step"):
    space.grid(RATES)


def test_held_out_images_are_not_trained_on():
  config = space.hold_out(Config(data=DataConfig(name="digits")), 0.25)
  train, kept = config.data.train_split, config.data.eval_split
  assert (train, kept) == ("train[:75%]", "train[75%:]")
  whole = load_digits("train").images
  parts = [load_digits(split).images for split in (train, kept)]
  assert [len(part) for part in parts] == [1078, 359]
  assert (whole == [*parts[0], *parts[1]]).all()
  assert len(load_synthetic("test[2:5]", 8, 16)) == 3
  for name, split in (("folder", "train"), ("cifar10", "train[:9]")):
    with pytest.raises(ValueError, match="set --val-share=0"):
      space.hold_out(Config(data=DataConfig(name=name, train_split=split)), 0.2)


@pytest.mark.parametrize("split", ["train[", "train[5:2]", "train[2000:]", "nothing"])
def test_a_wrong_part_of_a_built_in_split_is_named(split):
  with pytest.raises(ValueError, match=r"config.data.train_split or eval_split"):
    load_digits(split)


def test_best_settings_become_a_config_file(tmp_path):
  config = Config(
    num_epochs=3,
    model=ModelConfig(name="resnet8"),
    optim=OptimConfig(learning_rate=0.123456789, decay_steps=(30, 60), nesterov=True),
  )
  for number, settings in enumerate([config, Config()]):
    path = tmp_path / f"best{number}.py"
    path.write_text(serialization.to_source(settings, "What it is.\n"))
    assert runpy.run_path(str(path))["get_config"]() == settings
    assert "seed" not in path.read_text()
    assert path.read_text().startswith('"""What it is.\n"""\n')


@pytest.mark.parametrize(
  "doc",
  [
    'a"""\nraise SystemExit\n"""b',
    'ends with "',
    "ends with \\",
    "\\x41 \\N{DIGIT ONE} \\\n",
    3 * "'",
    "\0 \r\n \x1b[31m \udcff \u2028 \x85",
    "Größe ±1, in\ntwo lines\n",
  ],
)
def test_a_docstring_of_a_config_file_may_hold_any_text(tmp_path, doc):
  path = tmp_path / "best.py"
  path.write_text(serialization.to_source(Config(), doc), encoding="utf-8")
  tree = ast.parse(path.read_bytes())
  assert ast.get_docstring(tree, clean=False) == doc
  assert [type(part) for part in tree.body] == [
    ast.Expr,
    ast.ImportFrom,
    ast.FunctionDef,
  ]
  assert runpy.run_path(str(path))["get_config"]() == Config()


def test_the_settings_of_the_config_are_tried_first_and_trials_end_as_they_end(
  tmp_path,
):
  trials = search(tmp_path)
  assert trials.enqueue(every=False, limit=9) == 1
  first, second, third = list(trials.jobs(3))
  assert first.config == Config() and second.config != Config()
  finish(first, top1=0.75)
  finish(second, diverged="the loss became nan")
  third.workdir.mkdir(parents=True)
  (third.workdir / "log.txt").write_text("Traceback\nerror: no such data\n")
  assert trials.end(first) == "top1 0.7500"
  assert trials.end(second) == "failed: the loss became nan"
  assert trials.end(third) == "failed: no such data"
  table = results.tabulate(trials._study, "top1")
  assert [row[1] for row in table[1:]] == ["complete", "fail", "fail"]
  assert table[1][2:4] == ["0.7500", "0.1"] and table[3][-1] == "no such data"


def test_trials_below_the_median_are_pruned_once(tmp_path, monkeypatch):
  trials = search(tmp_path, prune=True)
  stopped = []
  monkeypatch.setattr(Job, "stop", lambda job: stopped.append(job))
  for job in trials.jobs(5):
    evaluated(job, 0.5, 0.9)
    trials.report(job)
    finish(job, top1=0.9)
    trials.end(job)
  assert not stopped
  good, bad = list(trials.jobs(7))
  evaluated(good, 0.6)
  evaluated(bad, 0.4)
  for _ in range(2):
    trials.report(good)
    trials.report(bad)
  assert stopped == [bad]
  assert trials.end(bad) == "pruned"
  assert trials._study.trials[-1].state == TrialState.PRUNED


def test_a_killed_search_goes_on_with_its_trials(tmp_path):
  before = search(tmp_path)
  job, done = list(before.jobs(2))
  finish(done, top1=0.5)
  before.end(done)  # Then the search is killed.
  after = search(tmp_path)
  assert list(after.jobs(2)) == []
  after.take_up()
  (again,) = after.jobs(2)
  assert (again.config, again.workdir) == (job.config, job.workdir)
  finish(again, top1=0.6)
  after.end(again)
  assert after.count() == 2 and list(after.jobs(2)) == []
  assert after._study.best_value == 0.6
  table = results.tabulate(after._study, "top1")
  assert [row[1:3] for row in table[1:]] == [
    ["complete", "0.6000"],
    ["complete", "0.5000"],
  ]
  # Trials of another directory belong to another process.
  other = search(tmp_path)
  list(other.jobs(3))
  elsewhere = Search(other._study, RATES, Config(), tmp_path / "other", "top1")
  elsewhere.take_up()
  assert list(elsewhere.jobs(3)) == []


def test_a_study_is_of_one_config(tmp_path):
  search(tmp_path)
  moved = Config(data=DataConfig(dir="elsewhere"), optim=OptimConfig(learning_rate=0.3))
  # The folder may change, and so may the rate, because the search sets it.
  search(tmp_path, moved)
  with pytest.raises(ValueError, match=r"config.num_epochs was .* and is now 3; name"):
    search(tmp_path, Config(num_epochs=3))


@pytest.mark.parametrize(
  ("change", "text"),
  [
    ("", ""),
    ("train/a/2.png", "is on 4 training images, and now there are 5; put the old ones"),
    ("val/a/2.png", "is on 4 evaluation images, and now there are 5; put the old ones"),
    ("train/a/1.png", "4 training images, and now their names or labels are different"),
  ],
)
def test_a_study_is_of_the_same_images_wherever_they_are(change, text, tmp_path):
  for split in ("train", "val"):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
      (tmp_path / "old" / split / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / "old" / split / name).touch()
  new = shutil.copytree(tmp_path / "old", tmp_path / "new")
  if text and (new / change).exists():
    (new / change).rename(new / change.replace("1", "3"))
  elif text:
    (new / change).touch()
  for _ in range(2):
    search(tmp_path, Config(data=DataConfig(name="folder", dir=str(tmp_path / "old"))))
  with pytest.raises(UserError, match=text) if text else contextlib.nullcontext():
    search(tmp_path, Config(data=DataConfig(name="folder", dir=str(new))))


@pytest.mark.parametrize("storage", ["sqlite:///~/a.db", "~/a.db"])
def test_a_storage_may_be_in_ones_home(storage, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  open_study(storage, "name", "random", "top1", prune=False, seed=0)
  assert (tmp_path / "a.db").exists()


def test_a_grid_of_which_some_are_run(tmp_path):
  trials = search(tmp_path)
  trials._space = {"batch_size": IntDistribution(8, 24, step=8)}
  assert trials.enqueue(every=True, limit=2) == 2
  assert [job.config.batch_size for job in trials.jobs(2)] == [8, 16]
  assert trials.enqueue(every=True, limit=20) == 3
  assert [job.config.batch_size for job in trials.jobs(3)] == [24]


def test_processes_of_a_storage_draw_different_numbers(tmp_path):
  rates = set()
  for place in ("a:/out", "b:/out"):
    trials = search(tmp_path / place[0], place=place)
    (job,) = trials.jobs(1)
    rates.add(job.config.optim.learning_rate)
  assert len(rates) == 2


def test_a_database_is_opened_while_another_process_makes_it(tmp_path, monkeypatch):
  errors = [
    IntegrityError("INSERT", None, Exception("UNIQUE constraint failed")),
    optuna.exceptions.StorageInternalError("no such table"),
  ]
  real = search_module._open_storage

  def open_storage(url):
    if errors:
      raise errors.pop()
    return real(url)

  monkeypatch.setattr(search_module, "_open_storage", open_storage)
  monkeypatch.setattr(search_module.time, "sleep", lambda seconds: None)
  storage = f"sqlite:///{tmp_path}/a.db"
  study = open_study(storage, "name", "random", "top1", prune=False, seed=0)
  assert study.user_attrs == {"metric": "top1"}


_OPEN = """
import sys
from resnet_jax.experiments.sweeps.search import open_study
import optuna.storages, sqlalchemy.dialects.sqlite
print("ready", flush=True)
sys.stdin.readline()
study = open_study(sys.argv[1], "name", "random", "top1", prune=False, seed=0)
print(study.user_attrs["metric"])
"""


def test_two_processes_may_open_a_new_database_at_once(tmp_path):
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", _OPEN, f"sqlite:///{tmp_path}/a.db"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  try:
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
      process.stdin.write("\n")
      process.stdin.flush()
    found = [process.communicate(timeout=60)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert found == ["top1\n"] * 2


def test_a_resumed_search_draws_other_numbers(tmp_path):
  (first,) = search(tmp_path).jobs(1)
  (second,) = search(tmp_path).jobs(2)
  assert first.config.optim.learning_rate != second.config.optim.learning_rate


# Markup, an escape code of a terminal and, in Python, the end of a docstring.
OUT = '[/b]\x1b[31m"""'
SPACE = """
from optuna.distributions import CategoricalDistribution

def get_space():
  return {"optim.warmup_epochs": CategoricalDistribution([0.02, 1.0]), **MORE}
"""


def command(tmp_path: Path, *argv: str, more: str = "{}") -> list[str]:
  path = tmp_path / "space.py"
  path.write_text(SPACE.replace("MORE", more))
  config = ROOT / "configs" / "digits.py"
  out = tmp_path / OUT
  return ["sweep", f"--config={config}", f"--space={path}", f"--out={out}", *argv]


@pytest.mark.slow
def test_a_search_from_end_to_end(tmp_path, capsys, monkeypatch):
  settings = [
    "--config.num_steps=4",
    "--config.eval_every_steps=2",
    "--config.optim.decay_epochs=()",
    "--config.optim.decay_steps=(2,)",
  ]
  argv = command(
    tmp_path, "--sampler=grid", "--jobs=2", f"--storage=sqlite:///{tmp_path}/a.db"
  )
  main([*argv, *settings])
  text, out = capsys.readouterr().out, tmp_path / OUT
  assert "1 done, 0 pruned, 1 failed" in text and "best: trial" in text
  shown = str(out).replace("\x1b", "?")
  assert text.endswith(f"resnet-jax train --config={shown}/best.py\n")
  assert all(map(str.isprintable, text.split("\n")))
  table = (out / "trials.md").read_text()
  assert "must end before the first decay" in table
  doc = ast.get_docstring(ast.parse((out / "best.py").read_text()))
  assert doc.endswith(f"resnet-jax train --config={out}/best.py")
  best = runpy.run_path(str(out / "best.py"))["get_config"]()
  assert best.optim.warmup_epochs == 0.02 and best.num_steps == 4
  assert (best.data.train_split, best.data.eval_split) == ("train", "")
  saved = json.loads((out / "runs" / "trial0" / "config.json").read_text())
  assert saved["data"]["train_split"] == "train[:80%]"
  for name in ("history.png", "parallel.png", "trials.csv"):
    assert (out / name).stat().st_size > 0
  with monkeypatch.context() as patch:  # All is done.
    patch.setattr(Job, "start", None)
    main([*argv, *settings])
  assert "1 done, 0 pruned, 1 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("argv", "more", "text"),
  [
    (["--sampler=best"], "{}", "--sampler='best' is unknown"),
    (["--metric=top5"], "{}", "--metric='top5' is unknown; did you mean top1"),
    (["--val-share=1"], "{}", "--val-share=1 must be in [0.01, 0.99], or 0"),
    (["--val-share=nan"], "{}", "--val-share=nan must be in [0.01, 0.99], or 0"),
    ([], "{'optim.momentun': CategoricalDistribution([0.9])}", "config.optim.momentum"),
    ([], "{'optim.momentum': 0.9}", "must return a dict from settings to"),
    ([], "1/0", "ZeroDivisionError"),
    (
      ["--space=nothing.py"],
      "{}",
      "--space=nothing.py must be an existing Python file",
    ),
    (["--config=nothing.py"], "{}", "nothing.py"),
    (["--storage=nosql://here"], "{}", "--storage=nosql://here: "),
    (["--config.num_step=1"], "{}", "config.num_step is no setting"),
  ],
)
def test_wrong_usage_is_one_line(argv, more, text, tmp_path, capsys):
  with pytest.raises(SystemExit) as exit_info:
    main(command(tmp_path, *argv, more=more))
  assert exit_info.value.code == 2
  err = capsys.readouterr().err
  assert text in err and err.startswith("error: ") and err.count("\n") == 1
  assert not (tmp_path / OUT / "runs").exists()


def test_a_study_is_for_one_metric(tmp_path):
  search(tmp_path)
  with pytest.raises(ValueError, match="is for top1; name another --name"):
    search(tmp_path, metric="loss")


# Matplotlib takes $ for the start of a formula. A long name could cover other labels.
LONG = "a_choice_with_a_name_that_is_$longer$_than_any_figure_has_room_for"
CHOICES = CategoricalDistribution([LONG, None, True, *range(20)])


def trained(distributions, metric="top1", number=3, worth=lambda i: 0.5 + i / 10):
  """Returns a study with finished trials, one pruned trial and one failed trial."""
  study = optuna.create_study(
    direction=search_module.DIRECTIONS[metric],
    sampler=optuna.samplers.RandomSampler(seed=0),
  )
  for i in range(number):
    study.tell(study.ask(distributions), worth(i))
  study.tell(study.ask(distributions), state=TrialState.FAIL)
  pruned = study.ask(distributions)
  pruned.report(0.0, 1)
  study.tell(pruned, state=TrialState.PRUNED)
  return study


@pytest.mark.parametrize(
  ("distributions", "metric"),
  [
    (RATES, "top1"),
    (RATES, "loss"),
    ({"a.rate": FloatDistribution(1e-30, 1e30, log=True), "b.choice": CHOICES}, "top1"),
    (
      {"one.value": FloatDistribution(0.3, 0.3), "batch": IntDistribution(8, 9)},
      "top1",
    ),
    ({f"a_long_name.of_setting_{i}": CHOICES for i in range(8)}, "top1"),
  ],
)
def test_figures_show_finished_trials_and_no_label_lies_over_another(
  distributions, metric, tmp_path, monkeypatch
):
  drawn = {}
  save = Figure.savefig

  def savefig(figure, path):
    save(figure, path)
    drawn[path.stem] = figure
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    for i, one in enumerate(boxes):
      for j, other in enumerate(boxes[:i]):
        assert not one.overlaps(other), (texts[i].get_text(), texts[j].get_text())
      assert figure.bbox.x0 <= one.x0 and one.x1 <= figure.bbox.x1

  monkeypatch.setattr(Figure, "savefig", savefig)
  study = trained(distributions, metric)
  names = figures.draw_figures(study, tmp_path, metric)
  assert names == ["history.png", "parallel.png", "importances.png"]
  assert {path.name for path in tmp_path.iterdir()} == {*names}
  (history,) = drawn["history"].axes
  dots, best = history.lines
  values = [50, 60, 70] if metric == "top1" else [0.5, 0.6, 0.7]
  assert [*dots.get_ydata()] == pytest.approx(values)
  assert best.get_ydata()[-1] == pytest.approx(70 if metric == "top1" else 0.5)
  label = {"top1": "top-1 (%)", "loss": "loss"}[metric]
  assert history.get_ylabel() == label
  (parallel,) = drawn["parallel"].axes
  assert label in [text.get_text() for text in parallel.texts]
  lines = [line for line in parallel.lines if len(line.get_ydata()) > 2]
  if len(distributions) > 1:
    assert len(lines) == 3  # Neither the pruned trial nor the failed one.
    assert all(0 <= y <= 1 for line in lines for y in line.get_ydata())


@pytest.mark.parametrize("number", [1, 2])
def test_importances_need_trials_with_different_results(number, tmp_path):
  study = trained(RATES, number=number, worth=lambda i: 0.5)
  assert figures.draw_figures(study, tmp_path, "top1") == [
    "history.png",
    "parallel.png",
  ]


def test_optuna_is_quiet():
  assert optuna.logging.get_verbosity() == optuna.logging.WARNING
