"""Trains on a Ray cluster by Ray Train's JaxTrainer, with one worker for each host.

Command, on a host of the cluster (`pip install 'flax-resnet[ray]'` on all hosts):
python examples/clusters/ray_train.py --workers=4 --gpus=8 --workdir=/shared/run \
  --config=imagenet_resnet --config.data.dir=/data/tfds

Without --gpus the workers use their CPUs. All workers must see --workdir. If a worker
fails or its host is preempted, Ray starts all again, and they resume the run. The same
command also resumes a run that has ended early.
"""

import argparse
import logging
import os

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxConfig, JaxTrainer


def train_worker(options: dict) -> None:
  """Runs in each worker; Ray has called `jax.distributed.initialize` before."""
  # Imported here, because Ray chooses the devices before JAX is imported.
  from resnet_jax import Experiment, train
  from resnet_jax.cli.settings import load_config

  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells each file it writes.
  config = load_config(options["config"], options["settings"])
  result = train(Experiment.create(config), options["workdir"])
  print(f"done: {result.metrics} after {result.state.step} steps")


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workers", type=int, default=2, help="number of hosts")
  parser.add_argument("--gpus", type=int, default=0, help="GPUs of each host")
  parser.add_argument("--config", default="digits")
  parser.add_argument("--workdir", required=True)
  # Any setting is a flag: --config.PATH=VALUE.
  args, settings = parser.parse_known_args()

  workdir = args.workdir if "://" in args.workdir else os.path.abspath(args.workdir)
  devices = {"use_gpu": True, "resources_per_worker": {"GPU": args.gpus}}
  JaxTrainer(
    train_worker,
    train_loop_config={"config": args.config, "settings": settings, "workdir": workdir},
    # Ray connects workers only with `use_gpu` or `use_tpu`; JAX_PLATFORMS then says
    # which devices it really takes.
    jax_config=JaxConfig(use_gpu=True),
    scaling_config=ScalingConfig(
      num_workers=args.workers, **(devices if args.gpus else {})
    ),
    run_config=RunConfig(
      storage_path=f"{workdir}_ray",  # Ray's own notes about the job.
      failure_config=FailureConfig(max_failures=3),
      worker_runtime_env={
        "env_vars": {"JAX_PLATFORMS": "cuda,cpu" if args.gpus else "cpu"}
      },
    ),
  ).fit()


if __name__ == "__main__":
  main()
