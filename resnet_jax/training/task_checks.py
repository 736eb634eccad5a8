"""Checks that a task fits the settings, the images and the network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.config.schema import Config
from resnet_jax.data.labels import LabelSpec
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.task_metrics import zero_metrics
from resnet_jax.training.tasks import Classification, Task, label_of, outputs_of


def check_task(task: Task, config: Config) -> None:
  """Raises `UserError` if a task cannot be trained with the settings."""
  zero_metrics(task)  # Refuses metrics with names that training uses itself.
  if (kind := label_of(task).kind) != config.data.labels:
    raise UserError(
      f"the labels of {type(task).__name__} are {kind}, so set "
      f"config.data.labels={kind!r}, not {config.data.labels!r}"
    )


def check_outputs(task: Task, count: int, where: str) -> None:
  """Raises `UserError` if a task has too few outputs for `count` class names."""
  is_class = isinstance(task, Classification)
  if is_class and count > task.num_classes:
    raise UserError(
      f"config.model.num_classes={task.num_classes} must be 0 or at least {count}, the "
      f"number of classes of {where}"
    )
  # In a custom task, a label need not be a class.
  if label_of(task).shape == (task.num_classes,) and count != task.num_classes:
    raise UserError(
      f"config.model.num_classes={task.num_classes} must be 0 or {count}, the size of "
      f"a label of {where}"
    )


def check_image_size(task: Task, image_shape: tuple[int, int, int]) -> None:
  """Raises `UserError` if a detector's anchors are for images of another size.

  Args:
    task: may have an `image_size`, height and width.
    image_shape: (H, W, C) of the images for evaluation.
  """
  size: tuple[int, int] = getattr(task, "image_size", image_shape[:2])
  if tuple(size) != tuple(image_shape[:2]):
    raise UserError(
      f"the images for evaluation have {image_shape[0]}x{image_shape[1]} pixels "
      f"(height x width), but the anchors of {type(task).__name__} are for "
      f"{size[0]}x{size[1]}; give training and evaluation images of one size"
    )


def check_network_outputs(task: Task, found: Any, name: str) -> None:
  """Raises `UserError` if a network's outputs for one image do not fit a task.

  Args:
    task: says what it needs, see `outputs_of`.
    found: shapes and dtypes of the outputs.
    name: name of the network.
  """
  wanted = outputs_of(task)
  pairs = [(wanted, found)]
  if isinstance(wanted, dict):
    given = found if isinstance(found, dict) else {}
    pairs = [(sizes, given.get(key)) for key, sizes in wanted.items()]

  def fits(sizes: Any, output: Any) -> bool:
    is_array = isinstance(output, jax.ShapeDtypeStruct) and output.dtype == jnp.float32
    return is_array and LabelSpec(np.dtype(np.float32), (1, *sizes)).fits(output.shape)

  if not all(fits(*pair) for pair in pairs):
    text = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", found)
    needed = jax.tree.map(
      lambda sizes: f"float32{[1, *sizes]}", wanted, is_leaf=lambda x: type(x) is tuple
    )
    raise UserError(
      f"{name} returns {text} for one image; the task needs logits, {needed}"
    )
