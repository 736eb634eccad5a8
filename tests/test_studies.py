"""Studies: their grids, the verdicts on claims, and a small study from end to end."""

import dataclasses
import html.parser
import json
import os
import re
import time

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from configs import cifar10_resnet20
from resnet_jax import create_model
from resnet_jax.cli.main import main
from resnet_jax.cli.study import plan
from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig, recipes
from resnet_jax.experiments import jobs
from resnet_jax.experiments.jobs import Job
from resnet_jax.experiments.studies import figures, grids
from resnet_jax.experiments.studies.grids import SCALES, STUDIES
from resnet_jax.experiments.studies.outcomes import find, mean_curve, row_of, spread
from resnet_jax.experiments.studies.published import PAPER_ERRORS
from resnet_jax.experiments.studies.report import write_report
from resnet_jax.experiments.studies.study import Claim
from resnet_jax.models.summary import list_layers
from resnet_jax.runs import run_dir
from resnet_jax.runtime.figure_style import PLAIN, RESIDUAL
from resnet_jax.training.resolved_config import check_settings

PAIRS = [(name, scale) for name, study in STUDIES.items() for scale in study.variants]


def tiny(**kwargs) -> Config:
  return Config(
    batch_size=8,
    log_every_steps=2,
    eval_every_steps=4,
    model=ModelConfig(name="plain8"),
    data=DataConfig(name="synthetic", image_size=8, num_examples=16),
    optim=OptimConfig(learning_rate=0.01),
    **kwargs,
  )


@pytest.mark.parametrize(("name", "scale"), PAIRS)
def test_every_run_of_every_study_has_settings_that_fit(name, scale, tmp_path):
  study = STUDIES[name]
  planned = plan(study, scale, tmp_path)
  count = study.seeds.get(scale, SCALES[scale].seeds)
  assert len({run.job.workdir for run in planned}) == len(planned)
  assert len(planned) == count * len(study.variants[scale])
  assert {run.job.config.seed for run in planned} == set(range(count))
  for variant in study.variants[scale]:
    configs = [run.job.config for run in planned if run.variant is variant]
    # Nothing but the seed differs between the runs of a network.
    assert len({str(dataclasses.replace(config, seed=0)) for config in configs}) == 1
    check_settings(configs[0])


def test_every_claim_is_of_networks_that_some_scale_has():
  for study in STUDIES.values():
    labels = [{v.label for v in variants} for variants in study.variants.values()]
    for claim in study.claims:
      assert any({claim.higher, claim.lower} <= names for names in labels), claim
  for scale, errors in PAPER_ERRORS.items():
    known = {v.label for s in STUDIES.values() for v in s.variants.get(scale, ())}
    assert scale in ("short", "medium") or errors.keys() <= known


@pytest.mark.parametrize("name", ["resnet20", "resnet110", "plain56", "plain110"])
def test_the_paper_scale_is_the_recipe_in_configs(name, tmp_path):
  runs = plan(STUDIES["degradation"], "paper", tmp_path, seeds=1, only=name)
  assert [run.job.config for run in runs] == [cifar10_resnet20.get_config(name)]


@pytest.mark.parametrize("name", STUDIES)
def test_deep_nets_are_warmed_up_as_in_the_paper(name, tmp_path):
  for run in plan(STUDIES[name], "paper", tmp_path, seeds=1):
    config = run.job.config
    is_warm = config.optim.warmup_steps == 400 and config.optim.warmup == "constant"
    is_deep = run.variant.depth >= 110 and not config.model.name.startswith("plain")
    assert is_warm == (is_deep and run.variant.label != "without warmup")


def test_bottlenecks_of_cifar_nets_cost_what_basic_blocks_cost():
  def cost(name: str) -> int:
    layers = list_layers(create_model(name), (32, 32, 3))
    return sum(layer.multiply_adds for layer in layers)

  assert cost("resnet29") == pytest.approx(cost("resnet20"), rel=0.2)
  assert cost("resnet164") == pytest.approx(cost("resnet110"), rel=0.05)


def rows(**errors) -> list[dict]:
  return [
    {"label": label, "train_error": value}
    for label, values in errors.items()
    for value in values
  ]


def test_findings_are_welch_intervals():
  deep, shallow = [12.0, 13.0, 12.5], [8.0, 8.4, 8.8]
  (finding,) = find([Claim("", "a", "b")], rows(a=deep, b=shallow))
  interval = stats.ttest_ind(deep, shallow, equal_var=False).confidence_interval()
  assert finding.verdict == "shown"
  assert finding.interval == (interval.low, interval.high)
  assert finding.text == (
    "Training error: 12.50 ± 0.50 (a) and 8.40 ± 0.40 (b); difference +4.10 percentage "
    f"points, 95 % interval {interval.low:+.2f} to {interval.high:+.2f}."
  )


def test_a_negative_difference_has_a_minus_sign():
  (finding,) = find([Claim("", "a", "b")], rows(a=[1.0, 1.0], b=[2.5, 2.5]))
  text = "difference -1.50 percentage points, 95 % interval -1.50 to -1.50."
  assert finding.text.endswith(text.replace("-", "\N{MINUS SIGN}"))


@pytest.mark.parametrize(
  ("high", "low", "margin", "verdict"),
  [
    ([2.0], [1.0], 0.0, "seen"),  # One seed is never enough.
    ([1.0, 9.0], [0.5, 4.0], 0.0, "seen"),
    ([1.0, 1.1], [1.2, 1.3], 0.0, "not seen"),
    ([1.0, 1.1], [1.2, 1.3], 1.0, "shown"),
    ([1.0, 1.0], [1.0, 1.0], 0.0, "not seen"),
    ([2.0, 2.0], [1.0, 1.0], 0.0, "shown"),
  ],
)
def test_verdicts(high, low, margin, verdict):
  claim = Claim("", "a", "b", margin=margin)
  assert find([claim], rows(a=high, b=low))[0].verdict == verdict


def test_claims_wait_for_all_their_runs():
  assert find([Claim("", "a", "c")], rows(a=[1.0], b=[2.0])) == []


def test_spread_and_mean_curve():
  assert spread([1.0, 3.0]).text() == "2.00 ± 1.41" and spread([2.0]).text(3) == "2.000"
  curves = [{10: 1.0, 20: 3.0, 30: 7.0}, {10: 3.0, 20: 4.0}]
  assert mean_curve(curves) == ([10, 20], [2.0, 3.5], [1.0, 3.0], [3.0, 4.0])


def finished(job: Job, records: list[dict], **result) -> None:
  """Writes the files that a run of `job` would leave."""
  job.workdir.mkdir(parents=True)
  lines = "".join(json.dumps(record) + "\n" for record in records)
  (job.workdir / "metrics.jsonl").write_text(lines)
  base = {"request": job.request, "seconds": 1.0, "device": "1 cpu"}
  (job.workdir / "result.json").write_text(json.dumps(base | result))


def test_the_training_error_is_that_of_the_last_quarter(tmp_path):
  variant = STUDIES["degradation"].variants["smoke"][0]
  job = Job("a", tiny(), tmp_path / "a")
  steps = {20: 0.0, 75: 0.1, 80: 0.5, 100: 0.75}
  records = [
    {"step": step, "epoch": 1, "split": "train", "top1": top1, "loss": 1.0}
    for step, top1 in steps.items()
  ]
  finished(job, records, top1=0.9, loss=0.5, steps=100, params=7)
  row = row_of(job, variant, 3)
  # The last quarter has 5 updates up to step 80, then 20.
  assert row["train_error"] == pytest.approx(100 - (5 * 50 + 20 * 75) / 25)
  assert row["test_error"] == pytest.approx(10) and row["seed"] == 3
  # A job with other settings does not count as done.
  assert row_of(Job("a", tiny(seed=1), tmp_path / "a"), variant, 3) is None


def test_a_run_that_diverged_counts_as_chance(tmp_path):
  variant = STUDIES["degradation"].variants["smoke"][0]
  job = Job("a", tiny(), tmp_path / "a")
  finished(job, [], diverged="the loss became nan", num_classes=10)
  row = row_of(job, variant, 0)
  assert row["train_error"] == row["test_error"] == pytest.approx(90)
  # This run has no responses; only those of other runs are compared.
  claim = Claim("", "plain20", "b", "response")
  others = [{"label": "b", "responses": {"stem/bn": 1.0}}]
  assert not find([claim], [row, *others])
  measured = [{"label": "plain20", "responses": {"stem/bn": 3.0}}]
  (finding,) = find([claim], [row, *measured, *others])
  assert "3.0000 (plain20) and 1.0000 (b); difference +2.0000;" in finding.text


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
  """Returns the figures that are saved, by file name."""
  kept: dict[str, Figure] = {}
  save = Figure.savefig

  def savefig(figure, path, **kwargs):
    kept[path.name] = figure
    save(figure, path, **kwargs)

  monkeypatch.setattr(Figure, "savefig", savefig)
  return kept


def test_the_kind_of_a_network_is_its_colour_and_its_depth_the_line_style():
  twins = figures.looks(grids._twins(20, 56))
  for depth in 20, 56:
    assert twins[f"plain{depth}"]["color"] == PLAIN
    assert twins[f"resnet{depth}"]["color"] == RESIDUAL
  styles = [look["linestyle"] for look in twins.values()]
  assert styles[0] == styles[2] != styles[1] == styles[3] == "-"


@pytest.mark.parametrize(("name", "scale"), PAIRS)
def test_no_two_networks_of_a_study_look_the_same(name, scale):
  variants = STUDIES[name].variants[scale]
  looks = figures.looks(variants)
  assert len({str(look) for look in looks.values()}) == len(variants)
  for variant in variants:
    color = looks[variant.label]["color"]
    assert color not in {"plain": [RESIDUAL], "resnet": [PLAIN]}.get(
      variant.kind, [PLAIN, RESIDUAL]
    )


@pytest.mark.parametrize(
  ("depths", "is_joined"), [((20, 56), False), ((8, 20, 56), True)]
)
def test_a_line_joins_three_depths_but_not_two(depths, is_joined, tmp_path, drawn):
  variants = grids._twins(*depths)
  results = [
    {"label": v.label, "series": v.series, "depth": v.depth}
    | {"train_error": float(v.depth), "test_error": 10.0 + seed}
    for v in variants
    for seed in range(2)
  ]
  found = figures.draw_depth(tmp_path, variants, results, {"plain20": "9.1"})
  (axes,) = drawn["depth.png"].axes
  lines = [line for line in axes.lines if len(line.get_xdata()) == len(depths)]
  joined = {line.get_linestyle() for line in lines if line.get_marker() == "o"}
  assert joined == ({"-"} if is_joined else {"None"})
  assert {line.get_color() for line in lines} == {PLAIN, RESIDUAL}
  assert len(drawn["depth.png"].legends) == 1 and axes.get_legend() is None
  assert "Crosses are the paper's" in found.caption and "bars" in found.caption


class Outline(html.parser.HTMLParser):
  """The elements of a page, as (name, attributes); they must be nested correctly."""

  VOID = "meta", "img", "line", "circle"

  def __init__(self, page: str):
    super().__init__()
    self.elements, self._open = [], []
    self.feed(page)
    assert not self._open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def values(self, name: str) -> list[str]:
    return [attrs[name] for _, attrs in self.elements if name in attrs]


def small_report(tmp_path, monkeypatch, errors, failed=None, changed=()) -> str:
  """The page of a study of plain20 and plain56 with these training errors in %."""
  study = dataclasses.replace(
    STUDIES["degradation"], variants={"smoke": grids._twins(20, 56)}
  )
  monkeypatch.setitem(STUDIES, "degradation", study)
  only, number = "plain20,plain56", len(next(iter(errors.values()), [0]))
  planned = plan(study, "smoke", tmp_path / "runs #1", seeds=number, only=only)
  for run in planned:
    if run.variant.label in errors:
      top1 = 1 - errors[run.variant.label][run.seed] / 100
      records = [
        {"step": step, "epoch": 1, "split": split, "top1": top1, "loss": 1.0}
        for step in (250, 500)
        for split in ("train", "eval")
      ]
      result = {"top1": top1, "loss": 1.0, "steps": 500, "params": 7, "seconds": 61.0}
      finished(run.job, records, **result)
  write_report(
    tmp_path, "degradation", "smoke", planned, failed or {}, "resnet-jax <b>", changed
  )
  return (tmp_path / "report.html").read_text()


def test_a_report_has_badges_a_forest_plot_and_links(tmp_path, monkeypatch):
  errors = {"plain20": [3.0, 3.5], "plain56": [40.0, 41.0]}
  page = small_report(tmp_path, monkeypatch, errors, changed=["batch_size"])
  outline = Outline(page)
  links = outline.values("href")
  assert [link for link in links if link[0] == "#"] == [
    "#claims", "#figures", "#errors", "#runs", "#origin"
  ]  # fmt: skip
  assert {link[1:] for link in links if link[0] == "#"} <= {*outline.values("id")}
  runs = [link for link in links if link[0] != "#"]
  assert len(runs) == 4 and runs[0] == "runs%20%231/plain20-seed_0/"
  assert page.count("<h1>Degradation</h1>") == 1 == page.count("</svg>")
  assert page.index('class="badge shown">Shown') < page.index(
    "The deeper plain network"
  )
  assert "config.batch_size" in page and "0:04:04" in page and "<b>" not in page
  assert page.count("prefers-color-scheme: dark") == page.count("@media print") == 1
  # The point of the difference, 37.25 %, is inside the interval and right of 0.
  percent = {
    kind: [
      float(attrs[name].rstrip("%"))
      for _, attrs in outline.elements
      if attrs.get("class") == kind
      for name in ("x1", "x2", "cx")
      if name in attrs
    ]
    for kind in ("zero", "shown")
  }
  (zero, _), (low, high, *_, point) = percent["zero"], percent["shown"]
  (finding,) = find(STUDIES["degradation"].claims, rows(**errors))
  assert 0 < zero < low < point < high < 100
  unit = (point - zero) / finding.difference
  assert low == pytest.approx(zero + unit * finding.interval[0], abs=0.02)


def test_a_report_of_failed_runs_begins_with_them_and_has_no_empty_table(
  tmp_path, monkeypatch
):
  failed = {"plain20, seed 0": '</p><script>alert("1")</script>'}
  page = small_report(tmp_path, monkeypatch, {}, failed)
  outline = Outline(page)
  assert "script" not in {tag for tag, _ in outline.elements}
  sections = [attrs["id"] for tag, attrs in outline.elements if tag == "section"]
  assert sections == ["failed", "claims", "runs", "origin"]
  assert '<span class="bad">&lt;/p&gt;&lt;script&gt;' in page and "<img" not in page
  assert page.count("<table>") == 1 and ">failed<" in page and ">not done<" in page


@pytest.mark.parametrize("errors", [[5.0, 5.0], [5.0]])
def test_a_report_of_equal_results_is_written(errors, tmp_path, monkeypatch):
  results = {"plain20": errors, "plain56": errors}
  page = small_report(tmp_path, monkeypatch, results)
  Outline(page)
  assert 'class="badge not-seen">Not seen' in page and "nan" not in page


FLAGS = [
  "--config.num_steps=4",
  "--config.optim.warmup_steps=1",
  "--config.optim.decay_steps=(2,3)",
  "--config.log_every_steps=2",
  "--config.data.name=synthetic",
  "--config.data.image_size=8",
  "--config.data.num_examples=32",
]


@pytest.mark.slow
def test_a_study_trains_reports_goes_on_and_says_what_failed(
  tmp_path, capsys, monkeypatch
):
  for name in ("responses", "degradation", "gradients"):  # These compile quickly.
    kept = grids._KEPT if name == "gradients" else {}
    study = dataclasses.replace(
      STUDIES[name], variants={"smoke": grids._twins(8, **kept)}
    )
    monkeypatch.setitem(STUDIES, name, study)
  out = tmp_path / "out"
  command = ["study", "responses", f"--out={out}", "--only=plain8,resnet8"]
  command += ["--seeds=1", "--jobs=2", *FLAGS]
  main(command)
  text = capsys.readouterr().out
  assert "[2/2]" in text and "plain8" in text and str(out / "report.html") in text
  text = (out / "results.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert [line["label"] for line in lines] == ["plain8", "resnet8"]
  assert all(line["steps"] == 4 and len(line["responses"]) == 7 for line in lines)
  table = (out / "table.md").read_text()
  assert f"| plain8 | 75,290 | {lines[0]['train_error']:.2f} |" in table
  assert (out / "table.csv").read_text().count("\n") == 3
  for name in ("error", "responses"):
    assert np.asarray(Image.open(out / f"{name}.png").convert("L")).std() > 10
    assert (out / f"{name}.svg").read_text().startswith("<?xml")
  page = (out / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 2
  # Nothing is loaded from elsewhere.
  assert not re.search(r"""src=["'](?!data:)|href=["'](?!#|runs/)""", page)
  assert "config.num_steps = 4" in page and "jax 0." in page

  # Finished runs are not repeated; new ones run.
  def refuse(*args):
    raise AssertionError("nothing is to be run")

  with monkeypatch.context() as patch:
    patch.setattr(Job, "start", refuse)
    main(command)
    assert "2 runs are done" in capsys.readouterr().out
    # Another study, which shares the runs and measures nothing, repeats none either.
    other = tmp_path / "other"
    shared = [f"--out={other}", f"--runs={out / 'runs'}", *command[3:]]
    main(["study", "degradation", *shared])
    main(command)
  assert "2 runs are done" in capsys.readouterr().out
  assert np.asarray(Image.open(other / "depth.png").convert("L")).std() > 10
  main(["study", "gradients", f"--out={other}", *command[3:], "--only=resnet8"])
  (line,) = (other / "results.jsonl").read_text().splitlines()
  norms = json.loads(line)["gradients"]
  assert list(norms) == ["0", "4"] and all(len(each) == 7 for each in norms.values())
  assert np.asarray(Image.open(other / "gradients.png").convert("L")).std() > 10
  with pytest.raises(SystemExit) as exit_info:
    main([*command, "--only=plain8", "--config.data.mean=(0.1,0.2)"])
  assert exit_info.value.code == 1
  text = capsys.readouterr().out
  assert text.count("failed: config.data.mean=(0.1, 0.2)") == 1
  assert "config.data.mean=(0.1, 0.2)" in (out / "report.html").read_text()


def test_runs_on_other_images_are_not_compared(tmp_path, capsys):
  out = tmp_path / "out"
  first, *_ = plan(STUDIES["depth"], "smoke", out / "runs")
  first.job.workdir.mkdir(parents=True)
  facts = {"num_train_images": 12, "train_digest": "of other images"}
  (first.job.workdir / "run.json").write_text(json.dumps(facts))
  with pytest.raises(SystemExit) as exit_info:
    main(["study", "depth", f"--out={out}"])
  assert exit_info.value.code == 2
  said = capsys.readouterr().err
  assert "is on 12 training images, and now there are 1,437; put the old ones" in said
  assert [path.name for path in out.iterdir()] == ["runs"]


@pytest.mark.parametrize(
  ("gpus", "limit", "own", "share"),
  [
    ("", 3, [None, None, None], None),
    ("0,1", 1, [None], None),
    ("0,1,4,5,6", 2, ["0,4,6", "1,5"], None),
    ("0,1", 2, ["0", "1"], None),
    ("0,1", 3, ["0", "1", "0"], "0.450"),
    ("2", 3, ["2", "2", "2"], "0.300"),
  ],
)
def test_jobs_share_the_gpus(monkeypatch, gpus, limit, own, share):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
  environments = jobs._environments(limit)
  assert [one.get("CUDA_VISIBLE_DEVICES") for one in environments] == own
  assert {one.get("XLA_CLIENT_MEM_FRACTION") for one in environments} == {share}
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")  # The user's value wins.
  for one in jobs._environments(limit):
    assert "XLA_CLIENT_MEM_FRACTION" not in one


def test_gpus_are_counted_without_taking_them(monkeypatch, tmp_path):
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  program = tmp_path / "nvidia-smi"
  program.write_text('#!/bin/sh\necho "GPU 0: A (UUID: x)"; echo "GPU 1: B"\n')
  program.chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  assert jobs._gpus() == ["0", "1"]
  program.write_text("#!/bin/sh\nexit 9\n")
  assert jobs._gpus() == []


@pytest.mark.slow
def test_a_job_that_is_stopped_saves_and_goes_on(tmp_path):
  config = tiny(num_steps=100_000)
  job = Job("long", config, tmp_path / "run")
  runs = jobs.run_at_once([job], 1)
  for running, has_ended in runs:
    assert not has_ended, job.error()
    if running.metrics():
      break
  runs.close()  # As Ctrl-C does.
  assert not job.is_running and job.result() is None
  step = run_dir.latest_step(str(job.workdir))
  assert step > 0
  # A process whose parent is gone saves and ends by itself.
  job.start({})
  while not any(record["step"] > step for record in job.metrics()):
    time.sleep(0.1)
    assert job.is_running, job.error()
  job._process.stdin.close()
  assert job._process.wait(60) == 3
  assert run_dir.latest_step(str(job.workdir)) > step


@pytest.mark.parametrize(
  ("argv", "text"),
  [
    (["nothing"], "NAME='nothing' is unknown; choose from degradation"),
    (["depth", "--scale=tiny"], "--scale='tiny' is unknown"),
    (["depth", "--scale=imagenet"], "depth has no --scale=imagenet; choose from"),
    (
      ["depth", "--only=resnet21"],
      "--only='resnet21' is unknown; did you mean resnet20",
    ),
    (["depth", "--config.seed=3"], "config.seed is set by the study itself; remove"),
    (["depth", "--config.num_stepz=3"], "config.num_stepz is no setting"),
    (["depth", "--config.num_steps=x"], "must be a whole number"),
    (["depth", "--config.num_steps=-1"], "config.num_steps=-1 must be in [0, 2**31)"),
    (["depth", "--jobs=0"], "'0' must be a whole number > 0"),
    (["depth", "more"], "'more' is no flag"),
    (["depth", "--scale=short", "--config.data.dir=/no"], "no data set 'cifar10' in"),
    (
      ["depth", "--config.data.name=folder", "--config.data.dir=/no"],
      "no config.data.dir='/no'",
    ),
    (["depth", f"--out={__file__}"], "test_studies.py is a file; name a directory"),
  ],
)
def test_wrong_usage_is_one_line_and_leaves_nothing(argv, text, tmp_path, capsys):
  out = tmp_path / "out"
  with pytest.raises(SystemExit) as exit_info:
    main(["study", f"--out={out}", *argv])
  assert exit_info.value.code == 2
  err = capsys.readouterr().err
  assert text in err and err.startswith("error: ") and err.count("\n") == 1
  assert not out.exists()


def test_the_results_have_a_place_that_is_said(tmp_path, monkeypatch, capsys):
  def interrupt(*args):
    raise KeyboardInterrupt

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("resnet_jax.cli.study._train", interrupt)
  with pytest.raises(SystemExit):
    main(["study", "depth"])
  said = "results: runs/depth-smoke (--out names another directory)\n"
  assert capsys.readouterr().out == said
  assert (tmp_path / "runs" / "depth-smoke").is_dir()


def test_the_medium_recipe_is_a_quarter_of_the_papers():
  medium, paper = recipes.medium(), recipes.cifar10()
  assert 4 * medium.num_steps == paper.num_steps
  assert [4 * step for step in medium.optim.decay_steps] == [*paper.optim.decay_steps]
  for config in (medium, paper):
    config.num_steps = config.eval_every_steps = 0
    config.optim.decay_steps = ()
  assert medium == paper


def test_the_short_recipe_is_the_paper_recipe_but_for_its_length():
  short, paper = recipes.short(), recipes.cifar10()
  for config in (short, paper):
    config.num_steps = config.log_every_steps = config.eval_every_steps = 1
    config.checkpoint.every_steps = config.optim.warmup_steps = 0
    config.optim.decay_steps = ()
  assert short == paper
