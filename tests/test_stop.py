"""A run that is asked to end loses nothing."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from resnet_jax.runtime.signals import StopRequest

_SCRIPT = """
import time
from resnet_jax.runtime.signals import StopRequest
with StopRequest() as stop:
  print("ready", flush=True)
  while not stop.is_asked():
    time.sleep(0.01)
  print("asked", flush=True)
  time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process(number):
  process = subprocess.Popen(
    [sys.executable, "-c", _SCRIPT],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    for line in ("ready\n", "asked\n"):
      assert process.stdout.readline() == line
      process.send_signal(number)
    _, error = process.communicate(timeout=120)
  finally:
    process.kill()
  assert process.returncode == -number
  assert error.strip() == (
    f"{number.name}: the step is finished and saved; once more ends at once"
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
