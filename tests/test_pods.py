"""The launches of docs/pods.md, as far as one machine can run them."""

import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/pods.md").read_text(), re.S)


def test_each_launcher_has_a_local_equivalent():
  assert [re.search(r"runs/(\w+)", block)[1] for block in BLOCKS] == [
    "slice",
    "slurm",
    "jobset",
  ]


@pytest.mark.parametrize("block", BLOCKS, ids=["slice", "slurm", "jobset"])
def test_two_processes_train(block, tmp_path):
  # Smaller than the digits, which take longer to compile.
  settings = "--config.data.name=synthetic --config.data.image_size=8"
  block = block.replace("train.py", f"train.py {settings} --config.batch_size=16")
  with socket.socket() as sock:
    sock.bind(("localhost", 0))
    port = sock.getsockname()[1]
  block = re.sub(r"localhost:\d+", f"localhost:{port}", block)
  # JAX makes the port of it.
  block = block.replace("SLURM_JOB_ID=1", f"SLURM_JOB_ID={random.randrange(4096)}")
  for name in ("train.py", "configs"):
    (tmp_path / name).symlink_to(ROOT / name)
  python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  result = subprocess.run(
    ["bash", "-c", block],
    cwd=tmp_path,
    env=os.environ | {"PATH": python, "PYTHONPATH": path},
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert "on 2 cpu devices" in result.stdout, result.stderr[-2000:]
  assert result.stdout.count("done: top-1") == 1, result.stderr[-2000:]
  (workdir,) = (tmp_path / "runs").iterdir()
  *_, last = (workdir / "metrics.jsonl").open()
  assert json.loads(last)["step"] == 4 and json.loads(last)["count"] == 1024
