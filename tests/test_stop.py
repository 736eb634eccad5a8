"""A run that is asked to end loses nothing."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from resnet_jax.runtime.signals import Stopped, StopRequest

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


_COMPUTES = """
import hashlib, threading
from resnet_jax.runtime.signals import StopRequest
with StopRequest() as stop, stop.interrupting(0, may_exit=True):
  # Once it computes: before, Python would run the handler.
  threading.Timer(1, print, ("ready",), {"flush": True}).start()
  hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)  # As long as a compilation.
"""


def test_a_signal_ends_what_has_nothing_to_save_even_while_it_computes():
  status, error = run(_COMPUTES, signal.SIGTERM, ["ready\n"])
  assert status == 0
  assert error == "SIGTERM: there is nothing to save; once more ends at once"


def test_a_request_interrupts_what_may_be_interrupted():
  with StopRequest() as stop:
    with pytest.raises(Stopped) as stopped, stop.interrupting(7):
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)
    assert stopped.value.step == 7
    with pytest.raises(Stopped), stop.interrupting(8):  # It is still asked for.
      pytest.fail("nothing may begin")
