"""The examples run; their own output says which accuracy they reach."""

import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(monkeypatch, name, *arguments):
  monkeypatch.setattr("sys.argv", [name, *arguments])
  # The function is for whole processes.
  monkeypatch.setattr("resnet_jax.runtime.compilation.keep_freed_memory", lambda: None)
  runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_segmentation_of_digits(tmp_path, monkeypatch, capsys):
  arguments = ["--steps", "2", "--canvases", "64", "--workdir", str(tmp_path / "run")]
  run_example(monkeypatch, "segment_digits.py", *arguments)
  assert re.search(
    r"mean IoU of 256 test canvases: 0\.\d{3}\n", capsys.readouterr().out
  )
  picture = tmp_path / "run" / "segmented.png"
  assert picture.read_bytes().startswith(b"\x89PNG")


def test_several_digits_for_each_image(tmp_path, monkeypatch, capsys):
  run = tmp_path / "run"
  arguments = ["--epochs", "1", "--canvases", "300", "--workdir", str(run)]
  run_example(monkeypatch, "multi_label_digits.py", *arguments)
  assert re.search(r"mAP of 30 test canvases: 0\.\d{3}\n", capsys.readouterr().out)
  assert (run / "report" / "report.html").is_file()


def test_detection_of_digits(tmp_path, monkeypatch, capsys):
  run = tmp_path / "run"
  arguments = ["--epochs", "1", "--canvases", "120", "--workdir", str(run)]
  run_example(monkeypatch, "detect_digits.py", *arguments)
  shown = capsys.readouterr().out
  assert re.search(r"ap 0\.\d{3}, ap50 0\.\d{3}, ap75 0\.\d{3} of 12 test", shown)
  assert (run / "objects.png").read_bytes().startswith(b"\x89PNG")
