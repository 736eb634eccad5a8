"""Fuzzes the readers of untrusted files: `python tests/fuzz/run.py --seconds 60`.

Needs atheris, which tells the fuzzer which lines of Python an input reached.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]
import wheels  # noqa: E402 - after the path

NAMES = ("weights", "images", "lists")
# The Python code that the targets run.
INSTRUMENTED = [
  *("resnet_jax.weights", "resnet_jax.data"),
  *("pickletools", "zipfile", "PIL"),
]
SECONDS_EACH = 10
MEGABYTES = 2048  # Limit of the process; JAX alone takes some 300.


def fuzz(name: str, seconds: int, folder: Path) -> None:
  """Fuzzes one target, then exits, with a status other than 0 if it found something."""
  import atheris

  wheels.name_libjpeg_turbo()
  with atheris.instrument_imports(include=INSTRUMENTED):
    import fuzz_targets
  target = fuzz_targets.TARGETS[name]
  corpus = folder / name
  corpus.mkdir(parents=True, exist_ok=True)
  for number, seed in enumerate(fuzz_targets.SEEDS[name]()):
    (corpus / f"seed{number}").write_bytes(seed)
  options = [
    f"-max_total_time={seconds}",
    f"-timeout={SECONDS_EACH}",
    f"-rss_limit_mb={MEGABYTES}",
    f"-artifact_prefix={folder / name}-",
    "-max_len=65536",
    "-print_final_stats=1",
  ]
  atheris.Setup([sys.argv[0], *options, str(corpus)], target)
  atheris.Fuzz()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "target", nargs="?", choices=NAMES, help="all of them if left out"
  )
  parser.add_argument("--seconds", type=int, required=True, help="for each target")
  parser.add_argument(
    "--folder",
    type=Path,
    default=ROOT / "build" / "fuzz",
    help="folder of findings, and of inputs that reach new lines; the next run starts "
    "from these inputs",
  )
  args = parser.parse_args()
  if args.target:
    fuzz(args.target, args.seconds, args.folder)
  options = ["--seconds", str(args.seconds), "--folder", str(args.folder)]
  commands = [[sys.executable, __file__, name, *options] for name in NAMES]
  sys.exit(max(abs(subprocess.run(command).returncode) for command in commands))


if __name__ == "__main__":
  main()
