"""Trains in forked processes; the parent has imported all modules before the fork.

A line of standard input is {"argv": [...], "environment": {...}, "log": PATH}. The
answer is a line with the exit status, which is negative for a signal.
"""

import json
import os
import signal
import sys

import matplotlib.figure  # noqa: F401 - these are what takes the time
import own_parts  # noqa: F401
import tensorboardX  # noqa: F401

import resnet_jax.training.trainer  # noqa: F401
from resnet_jax.cli.main import main

TIMEOUT_S = 120  # A command that hangs ends by SIGALRM.


def run(request: dict) -> None:
  os.environ.update(request["environment"])
  log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(log, 1)
  os.dup2(log, 2)
  signal.alarm(TIMEOUT_S)
  main(request["argv"])


if __name__ == "__main__":
  for line in sys.stdin:
    child = os.fork()
    if not child:
      run(json.loads(line))
      sys.exit()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
