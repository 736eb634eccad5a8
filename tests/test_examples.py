"""The examples run; their own output says which accuracy they reach."""

import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_segmentation_of_digits(tmp_path, monkeypatch, capsys):
  arguments = ["--steps", "2", "--canvases", "64", "--workdir", str(tmp_path / "run")]
  monkeypatch.setattr("sys.argv", ["segment_digits.py", *arguments])
  # The function is for whole processes.
  monkeypatch.setattr("resnet_jax.runtime.compilation.keep_freed_memory", lambda: None)
  runpy.run_path(str(EXAMPLES / "segment_digits.py"), run_name="__main__")
  assert re.search(
    r"mean IoU of 256 test canvases: 0\.\d{3}\n", capsys.readouterr().out
  )
  picture = tmp_path / "run" / "segmented.png"
  assert picture.read_bytes().startswith(b"\x89PNG")


def test_several_digits_for_each_image(tmp_path, monkeypatch, capsys):
  run = tmp_path / "run"
  arguments = ["--epochs", "1", "--canvases", "300", "--workdir", str(run)]
  monkeypatch.setattr("sys.argv", ["multi_label_digits.py", *arguments])
  monkeypatch.setattr("resnet_jax.runtime.compilation.keep_freed_memory", lambda: None)
  runpy.run_path(str(EXAMPLES / "multi_label_digits.py"), run_name="__main__")
  assert re.search(r"mAP of 30 test canvases: 0\.\d{3}\n", capsys.readouterr().out)
  assert (run / "report" / "report.html").is_file()


def test_detection_of_digits(tmp_path, monkeypatch, capsys):
  run = tmp_path / "run"
  arguments = ["--epochs", "1", "--canvases", "120", "--workdir", str(run)]
  monkeypatch.setattr("sys.argv", ["detect_digits.py", *arguments])
  monkeypatch.setattr("resnet_jax.runtime.compilation.keep_freed_memory", lambda: None)
  runpy.run_path(str(EXAMPLES / "detect_digits.py"), run_name="__main__")
  shown = capsys.readouterr().out
  assert re.search(r"ap 0\.\d{3}, ap50 0\.\d{3}, ap75 0\.\d{3} of 12 test", shown)
  assert (run / "objects.png").read_bytes().startswith(b"\x89PNG")
