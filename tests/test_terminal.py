"""A terminal never obeys the printed name of a file, a class or a directory."""

import csv
import io
import sys

import pytest
from names import NAME, SHOWN, assert_text
from PIL import Image
from rich.console import Console

from resnet_jax.cli.main import main
from resnet_jax.config.meanings import describe_settings
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.data.sources.opening import open_source
from resnet_jax.runtime import tables
from resnet_jax.runtime.terminal import plain, printable, show


def test_names_are_shown_as_they_are(capsys):
  assert printable(NAME) == SHOWN and printable("Größe 猫 ±1") == "Größe 猫 ±1"
  show(NAME, "[/b]")
  assert capsys.readouterr().out == f"{SHOWN}\n[/b]\n"
  file = io.StringIO()
  console = Console(file=file, width=99, force_terminal=True)
  show(NAME, "[/b]", console=console)
  assert file.getvalue() == f"{SHOWN}\n[/b]\n"
  with console.status(plain(f"loading [/b]{NAME}")):
    pass


@pytest.mark.parametrize(
  ("cell", "markdown", "text"),
  [
    ("-0.5", "-0.5", "-0.5"),
    ("+1e9", "+1e9", "+1e9"),
    ("", "", ""),
    ("> 60", "> 60", "> 60"),
    ("plain20, no norm", "plain20, no norm", "plain20, no norm"),
    ("=1+1", "=1+1", "'=1+1"),
    ("+cmd|' /C calc'!A0", "+cmd&#124;' /C calc'!A0", "'+cmd|' /C calc'!A0"),
    ("-1+1", "-1+1", "'-1+1"),
    ("@SUM(A1)", "@SUM(A1)", "'@SUM(A1)"),
    (" =1", " =1", "' =1"),
    ("\t=1", "?=1", "?=1"),
    ("\r=1", "?=1", "?=1"),
    ("a\n=1", "a?=1", "a?=1"),
    ("a\\|b", "a\\&#124;b", "a\\|b"),
    ("<img src=x>", "&#60;img src=x>", "<img src=x>"),
    ("&lt;", "&#38;lt;", "&lt;"),
    ("![](http://x)", "!&#91;](http://x)", "![](http://x)"),
    ("\x1b[31m", "?&#91;31m", "?[31m"),
  ],
)
def test_cells_of_tables_are_text(cell, markdown, text):
  table = [["first", "second"], ["1", cell]]
  assert tables.markdown(table).split("\n")[2] == f"| 1 | {markdown} |"
  assert list(csv.reader(io.StringIO(tables.as_csv(table))))[1] == ["1", text]


def test_a_data_set_with_names_that_are_commands_is_looked_at(tmp_path, capsys):
  root = tmp_path / "[" / f"b]{NAME}"
  for name in (NAME, "$", "[b]"):
    (root / "train" / name).mkdir(parents=True)
    for i in range(2):
      Image.new("L", (8, 8), i).save(root / "train" / name / f"{i}{NAME}.png")
  (root / "train" / NAME / f"3{NAME}.png").touch()
  with pytest.raises(SystemExit, match="1"):
    main(["data", "check", str(root), f"--figure={tmp_path}/{NAME}.png"])
  out, _ = capsys.readouterr()
  assert_text(out)
  assert f"{printable(str(root))}/train/{SHOWN}/3{SHOWN}.png: " in out
  assert out.endswith(f"picture of some images: {tmp_path}/{SHOWN}.png\n")
  assert (tmp_path / f"{NAME}.png").exists()


def test_what_is_not_read_and_what_is_set_are_shown_as_text(tmp_path, capsys):
  root = tmp_path / NAME
  for name in ("a", "b"):
    (root / "val" / name).mkdir(parents=True)
    Image.new("L", (8, 8)).save(root / "val" / name / "1.png")
  (root / "val" / "a" / f"1.{NAME}").touch()
  open_source(DataConfig(name="folder", dir=str(root)), "val")
  _, err = capsys.readouterr()
  assert err == f"left out of val in {tmp_path}/{SHOWN}: 1 .{SHOWN}\n"
  assert_text(describe_settings(Config(data=DataConfig(dir=NAME))))


@pytest.mark.parametrize(
  "argv",
  [
    ["train", "--config.data.name=[/b]", "--config.model.num_classes=10"],
    ["train", f"--config.data.name={NAME}", "--config.model.num_classes=10"],
    ["train", f"--config.data.dir={NAME}", "--config.data.name=folder"],
    ["train", f"--workdir={NAME}[/b]", f"--config={NAME}[/b]"],
    ["train", f"--config.{NAME}=1"],
    ["predict", f"{NAME}[/b]", "--model=resnet20", "--weights=w.safetensors"],
    ["convert", f"--workdir={NAME}[/b]", "--out=x.safetensors"],
    ["study", f"{NAME}[/b]", "--out=out"],
    ["summary", f"{NAME}[/b]"],
    [f"{NAME}[/b]"],
  ],
  ids=str,
)
def test_names_that_are_commands_are_shown_in_errors(
  argv, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit, match="2"):
    main(argv)
  out, err = capsys.readouterr()
  assert_text(err)
  assert not out and err.startswith("error: ") and err.count("\n") == 1
  assert "[/b]" in err or "[red]" in err


def test_output_in_an_encoding_that_lacks_letters_is_escaped(tmp_path, monkeypatch):
  for name in ("a", "b"):
    (tmp_path / "Größe" / "train" / name).mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "Größe" / "train" / name / "1.png")
  raw = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
  main(["data", "check", str(tmp_path / "Größe")])
  sys.stdout.flush()
  assert raw.getvalue().startswith(f"{tmp_path}/Gr\\xf6\\xdfe\n".encode())
