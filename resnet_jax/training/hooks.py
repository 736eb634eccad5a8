"""User code that runs at logs, evaluations, checkpoints and the end of a run."""

from collections.abc import Mapping

from resnet_jax.training.state import TrainState


class Hook:
  """A hook that does nothing. Subclass it and override the methods that you need.

  With several processes, each process calls its own hooks, so that a hook may use all
  devices. Write files only in the process where `jax.process_index() == 0`.
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
      name: "eval", or "ema" for the average of the parameters.
      values: such as "loss", "top1" and "count".
    """

  def on_checkpoint(self, step: int, state: TrainState) -> None:
    """Called after a state was copied for saving, while it is being written.

    Args:
      step: completed updates.
      state: the saved state. Copy what you need after the call: the next update reuses
        its memory.
    """

  def on_end(self, state: TrainState, metrics: Mapping[str, float]) -> None:
    """Called when the run is complete and saved; the trackers are still open.

    Args:
      state: the state after the last update.
      metrics: the metrics of the last evaluation.
    """
