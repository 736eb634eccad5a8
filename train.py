"""Trains or evaluates a ResNet.

python train.py
python train.py --config=configs/cifar10_resnet20.py --config.data.dir=DIR
python train.py --mode=eval --workdir=RUN

The same --workdir goes on where a run stopped. Settings: resnet_jax/config.py.
"""

import signal
from pathlib import Path

from absl import app, flags

from resnet_jax.cli import flags as cli
from resnet_jax.runtime import errors

WORKDIR = flags.DEFINE_string(
  "workdir", None, "Run directory; a new one in runs/ if not given. An old one resumes."
)
MODE = flags.DEFINE_enum(
  "mode", "train", ["train", "eval"], "Train, or evaluate a run that is there."
)
CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "latest", "What --mode=eval evaluates: latest, best, or a step."
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, if no launcher tells."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many make the run.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
DEFAULT_CONFIG = str(Path(__file__).resolve().parent / "configs" / "digits.py")


def main(_) -> None:
  # Not before the flags are known to be right: JAX, Orbax and the rest take time.
  with errors.clean_errors():
    from resnet_jax.runtime import compilation, processes

    compilation.keep_freed_memory()
    given = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    with processes.connect(*given), errors.clean_errors():
      run()


def run() -> None:
  import jax

  from resnet_jax.runs import run_dir
  from resnet_jax.training import evaluator, trainer

  def show(text: str) -> None:
    if jax.process_index() == 0:
      print(text)

  workdir = WORKDIR.value
  if workdir == "":
    raise ValueError("--workdir= is empty; name a directory or leave the flag out")
  config = cli.read_config(run_dir.load_config(workdir) if workdir else None)
  if MODE.value == "eval":
    if workdir is None:
      raise ValueError("--mode=eval needs --workdir, the directory of a run")
    # Of several processes JAX would take it for a notice to save.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    step, results = evaluator.evaluate_run(config, workdir, CHECKPOINT.value)
    show(f"step {step}: {evaluator.describe(results)}")
    return
  if workdir is None:
    workdir = run_dir.new_workdir(config.data.name)
  try:
    state, results = trainer.train_and_evaluate(config, workdir)
  except trainer.Stopped as stopped:
    show(
      f"stopped after step {stopped.step}, which is saved: "
      f"python train.py --workdir={workdir} goes on"
    )
    return
  except KeyboardInterrupt:
    step = run_dir.latest_step(workdir)
    hint = f"python train.py --workdir={workdir} goes on from step {step}"
    errors.fail(1, f"interrupted; {hint if step else 'nothing was saved yet'}")
  show(
    f"done: {evaluator.describe(results)} after {state.step} steps\n"
    f"run:  {workdir} (config.json, checkpoints/, metrics.jsonl, curves.png)\n"
    f"next: python train.py --mode=eval --workdir={workdir}\n"
    "      python train.py --config.model.name=plain20\n"
    "      python train.py --config=configs/cifar10_resnet20.py "
    "--config.data.dir=DIR"
  )


if __name__ == "__main__":
  app.run(main, flags_parser=lambda argv: cli.parse_flags(argv, DEFAULT_CONFIG))
