"""A short run in a process of its own, which may be killed at any moment."""

from pathlib import Path

STEPS = 8


def train(workdir: str) -> None:
  """Saves after each of `STEPS` steps, then writes a hash of the whole last state."""
  import io

  import jax
  from rich.console import Console
  from running import train_config

  from resnet_jax.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
  )
  from resnet_jax.runs.checksums import digest_arrays

  config = Config(
    num_steps=STEPS,
    batch_size=16,
    steps_per_call=2,
    log_every_steps=4,
    eval_every_steps=5,
    model=ModelConfig(name="resnet8"),
    data=DataConfig(name="synthetic", image_size=8, num_examples=70),
    augment=AugmentConfig(padding=1, flip=True),
    optim=OptimConfig(learning_rate=0.02, decay_steps=(6,)),
    checkpoint=CheckpointConfig(every_steps=1),
  )
  console = Console(file=io.StringIO())
  state, _ = train_config(config, workdir, jax.devices()[:1], console)
  Path(workdir, "final").write_text(digest_arrays(state))
