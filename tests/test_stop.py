"""A run that is asked to end loses nothing."""

import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest

from resnet_jax.__main__ import main
from resnet_jax.runtime.signals import Stopped, StopRequest

ROOT = Path(__file__).parents[1]

_SCRIPT = """
import time
from resnet_jax.runtime.signals import StopRequest
with StopRequest() as stop:
  print("ready", flush=True)
  while not stop.is_asked():
    time.sleep(0.01)
  time.sleep(1)  # The message comes from another thread.
  print("asked", flush=True)
  time.sleep(60)
"""


def run(script, number, lines):
  """Sends a signal after each line that a script prints; returns status and error."""
  process = subprocess.Popen(
    [sys.executable, "-c", script],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    for line in lines:
      assert process.stdout.readline() == line
      process.send_signal(number)
    _, error = process.communicate(timeout=120)
  finally:
    process.kill()
  return process.returncode, error.strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process(number):
  status, error = run(_SCRIPT, number, ["ready\n", "asked\n"])
  assert status == -number
  assert error == (
    f"{number.name}: stopping after the step is saved; a second signal ends the run"
    " at once"
  )


def test_handlers_come_back_and_threads_have_none():
  before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
  with StopRequest() as stop:
    assert not stop.is_asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.is_asked()
  assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before

  def use():
    with StopRequest() as stop:
      found.append(stop.is_asked())

  found: list[bool] = []
  thread = threading.Thread(target=use)
  thread.start()
  thread.join()
  assert found == [False]


@pytest.mark.parametrize(
  ("command", "modules"),
  [
    (["-m", "resnet_jax", "info"], 1),
    (["-m", "resnet_jax", "info"], 400),
    (["train.py", "--config.optim.warmup_epochs=0", "--config.num_steps=1"], 1200),
  ],
)
def test_an_interrupt_while_a_command_is_imported_is_one_line(
  command, modules, tmp_path
):
  """The signal is sent after `modules` of about 2,000 imports."""
  command[0] = str(ROOT / command[0]) if command[0] == "train.py" else command[0]
  process = subprocess.Popen(
    [sys.executable, "-X", "importtime", *command],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    imported = (line for line in process.stderr if line.startswith("import time:"))
    # The package itself is imported before the command can begin.
    assert any(re.search(r"\| resnet_jax\.cli$", line) for line in imported)
    for _ in range(modules):
      next(imported)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
  finally:
    process.kill()
  shown = [line for line in error.split("\n") if not line.startswith("import time:")]
  assert shown == ["error: interrupted", ""]
  assert process.returncode == 1


def test_the_installed_command_begins_where_interrupts_are_taken():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  module, _, name = project["scripts"]["resnet-jax"].partition(":")
  assert getattr(importlib.import_module(module), name) is main


_COMPUTES = """
import hashlib, threading
from resnet_jax.runtime.signals import StopRequest
with StopRequest() as stop, stop.interrupting(0, may_exit=True):
  # Ready once it computes: then Python cannot run the signal handler.
  threading.Timer(1, print, ("ready",), {"flush": True}).start()
  hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)  # As long as a compilation.
"""


def test_a_signal_ends_what_has_nothing_to_save_even_while_it_computes():
  status, error = run(_COMPUTES, signal.SIGTERM, ["ready\n"])
  assert status == 0
  assert error == (
    "SIGTERM: there is nothing to save; a second signal ends the run at once"
  )


def test_a_request_interrupts_what_may_be_interrupted():
  with StopRequest() as stop:
    with pytest.raises(Stopped) as stopped, stop.interrupting(7):
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)
    assert stopped.value.step == 7
    with pytest.raises(Stopped), stop.interrupting(8):  # The stop is still requested.
      pytest.fail("nothing may begin")
