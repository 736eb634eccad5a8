"""Own code at the moments of a run: logs, evaluations and checkpoints."""

from collections.abc import Mapping

from resnet_jax.training.state import TrainState


class Hook:
  """Does nothing; derive from it, and replace what is needed.

  With several processes each of them calls its own hooks, so that a hook may use all
  devices; `jax.process_index() == 0` is the one that writes files.
  """

  def on_log(self, step: int, values: Mapping[str, float]) -> None:
    """Called with the training metrics of the steps since the last log.

    Args:
      step: completed updates.
      values: such as "loss", "top1" and "images_per_s".
    """

  def on_evaluation(self, step: int, name: str, values: Mapping[str, float]) -> None:
    """Called after an evaluation.

    Args:
      step: completed updates.
      name: "eval", or "ema" for the moving average of the parameters.
      values: such as "loss", "top1" and "count".
    """

  def on_checkpoint(self, step: int, state: TrainState) -> None:
    """Called once a state is copied to be saved, and is being written.

    Args:
      step: completed updates.
      state: as it is saved. Copy what must outlive the call, as the next update takes
        over its memory.
    """
