"""The command that compares runs."""

import csv
import json
import re

import pytest
from PIL import Image
from scipy.stats import binomtest

from resnet_jax.cli.main import main
from resnet_jax.config import Config
from resnet_jax.config.serialization import to_json

# Path, label, and the predictions of three runs.
IMAGES = [
  ("a.png", "cat", "cat", "cat", "dog"),
  ("b.png", "cat", "cat", "dog", "dog"),
  ("c.png", "dog", "cat", "dog", "dog"),
  ("d.png", "dog", "cat", "<bird>", "dog"),
]


def write_run(folder, number, learning_rate, has_report=True):
  folder.mkdir()
  config = Config(seed=number)
  config.optim.learning_rate = learning_rate
  (folder / "config.json").write_text(to_json(config))
  records = [
    {"step": 10 * i, "epoch": i, "split": split, "loss": 1 / i, "top1": 0.5}
    for i in (1, 2, 3)
    for split in ("train", "eval")
  ]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
  if not has_report:
    return
  (folder / "report").mkdir()
  right = sum(image[1] == image[2 + number] for image in IMAGES) / len(IMAGES)
  metrics = {"scores": {"top1": right}, "intervals_95": {"top1": [right, 1.0]}}
  (folder / "report" / "metrics.json").write_text(json.dumps(metrics))
  with open(folder / "report" / "predictions.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["path", "label", "prediction", "probability", "margin"])
    rows.writerows([*image[:2], image[2 + number], 0.5, 0.1] for image in IMAGES)


@pytest.fixture
def runs(tmp_path):
  for number in range(3):
    write_run(tmp_path / f"run{number}", number, 0.1 * (1 + number // 2))
  return [str(tmp_path / f"run{number}") for number in range(3)]


def test_settings_scores_and_disagreements(runs, tmp_path, capsys):
  main(["compare", *runs, f"--out={tmp_path / 'out'}", "--json"])
  found = json.loads(capsys.readouterr().out)
  assert found["settings"] == {
    "seed": ["0", "1", "2"],
    "optim.learning_rate": ["0.1", "0.1", "0.2"],
  }
  assert [scores["top1"] for scores in found["scores"]] == [0.5, 0.5, 0.5]
  first, second = (found["disagreements"][run] for run in runs[1:])
  assert [first[x] for x in ("both", "first", "second", "neither")] == [1, 1, 1, 1]
  assert [second[x] for x in ("both", "first", "second", "neither")] == [0, 2, 2, 0]
  assert first["p_value"] == binomtest(1, 2).pvalue and first["images"] == 3
  with open(tmp_path / "out" / "disagreements_1_2.csv") as file:
    _, *rows = csv.reader(file)
  assert rows == [
    ["b.png", "cat", "cat", "dog"],
    ["c.png", "dog", "cat", "dog"],
    ["d.png", "dog", "cat", "<bird>"],
  ]
  with Image.open(tmp_path / "out" / "curves.png") as picture:
    assert min(picture.size) > 300
  assert "50.00 (50.00 to 100.00)" in (tmp_path / "out" / "scores.csv").read_text()


def test_a_run_without_a_report_has_its_last_evaluation(runs, tmp_path, capsys):
  write_run(tmp_path / "bare", 5, 0.3, has_report=False)
  main(["compare", runs[0], str(tmp_path / "bare")])
  said = capsys.readouterr().out
  assert "no predictions to compare" in said
  assert re.search(r"optim\.learning_rate +0\.1 +0\.3\n", said)
  assert said.count("log loss, nats") == 1  # Only the metrics have it.


def test_what_cannot_be_compared_is_one_line(runs, tmp_path, capsys):
  def refused(*words) -> str:
    with pytest.raises(SystemExit) as info:
      main(["compare", *words])
    assert info.value.code == 2
    return capsys.readouterr().err

  assert "needs at least two runs" in refused(runs[0])
  assert "no run in" in refused(runs[0], str(tmp_path))
  path = tmp_path / "run1" / "report" / "predictions.csv"
  path.write_text(path.read_text().replace("a.png", "z.png"))
  assert "are of other images" in refused(*runs[:2])
  path.write_text("nothing\n1\n")
  assert "is damaged" in refused(*runs[:2])
  assert "must be a folder" in refused(runs[0], runs[2], f"--out={path}")
