"""Which flags have a meaning for what a network predicts, `DataConfig.labels`."""

import argparse

from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.runtime.errors import UserError

# Flag of `resnet-jax evaluate` -> the value of `DataConfig.labels` that it needs.
_OF_EVALUATE = {
  "label-sets": "class",
  "classes": "class",
  "corruptions": "class",
  "fit-temperature": "class",
  "fit-thresholds": "classes",
}
# Flags of `resnet-jax evaluate` and `predict` that have no meaning for places, and
# their values if they are not given.
_NOT_FOR_PLACES: dict[str, object] = {
  "crops": 1,
  "scales": (),
  "flip": False,
  "ensemble": [],
  "calibrated": False,
  "engine": "jax",
}
_NOT_FOR_PREDICTED_PLACES: dict[str, object] = {
  "top": None,
  "figure": None,
  "explain": False,
  "calibrated": False,
}


def check_evaluate(args: argparse.Namespace, kind: str) -> None:
  """Refuses flags of `resnet-jax evaluate` that have no meaning for a network.

  Args:
    args: the flags.
    kind: what the network predicts.

  Raises:
    UserError: a flag has no meaning.
  """
  for flag, needed in _OF_EVALUATE.items():
    if getattr(args, flag.replace("-", "_")) and kind != needed:
      raise UserError(
        f"--{flag} needs a network with config.data.labels={needed!r}, not {kind!r}"
      )
  if kind in DENSE_LABELS:
    _check_not_given(args, kind, _NOT_FOR_PLACES)


def check_export(args: argparse.Namespace, kind: str) -> None:
  """Refuses flags of `resnet-jax export`, as `check_evaluate` does."""
  if kind in DENSE_LABELS:
    _check_not_given(args, kind, {"photo_size": None})


def check_predict(args: argparse.Namespace, kind: str) -> None:
  """Refuses flags of `resnet-jax predict`, as `check_evaluate` does."""
  if kind in DENSE_LABELS:
    _check_not_given(args, kind, _NOT_FOR_PREDICTED_PLACES)
    if kind == "boxes":  # Other engines cannot choose among boxes that overlap.
      _check_not_given(args, kind, {"engine": "jax"})
  elif args.out is not None:
    raise UserError(
      "--out is for a network with config.data.labels='mask' or 'boxes', not "
      f"{kind!r}; --figure draws other answers"
    )


def _check_not_given(
  args: argparse.Namespace, kind: str, flags: dict[str, object]
) -> None:
  for flag, usual in flags.items():
    if getattr(args, flag) != usual:
      raise UserError(
        f"--{flag.replace('_', '-')} has no meaning for a network with "
        f"config.data.labels={kind!r}; leave it out"
      )
