"""Knowledge distillation: the outputs of a trained network, the teacher, are targets.

Hinton et al. 2015 (arXiv:1503.02531, section 2) defined the loss. As in Beyer et al.
2022 (arXiv:2106.05237, section 3.1), the teacher sees exactly the images that the
trained network, the student, sees: after augmentation and mixing.

Letters: B batch, K classes.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.data.batches.preprocess import renormalize
from resnet_jax.runtime.arrays import Array, Bool, Float32


def divergence(
  logits: Float32[Array, "b k"],
  teacher_logits: Float32[Array, "b k"],
  temperature: float,
) -> Float32[Array, " b"]:
  """Returns T^2 KL(softmax(teacher / T) || softmax(student / T)), in nats.

  The factor T^2 keeps the size of the gradient when T changes (Hinton et al. 2015,
  section 2).

  Args:
    logits: the student's outputs.
    teacher_logits: the teacher's outputs.
    temperature: T, > 0.
  """
  logs, teacher_logs = (
    jax.nn.log_softmax(x / temperature) for x in (logits, teacher_logits)
  )
  losses: Array = optax.losses.kl_divergence_with_log_targets(logs, teacher_logs)
  return temperature**2 * losses


@struct.dataclass
class Distillation:
  """A teacher, and its share in the loss. Its leaves are the teacher's variables.

  Attributes:
    variables: the teacher's variables, which do not change.
    apply: the teacher's `apply`, called with `train=False`; returns logits.
    given: how the student's images are normalised.
    wanted: how the teacher's images are normalised.
    class_order: the teacher's class for each class of the student.
    temperature: see `divergence`.
    weight: share of the teacher in the loss, in (0, 1].
  """

  variables: Any
  apply: Any = struct.field(pytree_node=False)
  given: Preprocessing = struct.field(pytree_node=False)
  wanted: Preprocessing = struct.field(pytree_node=False)
  class_order: tuple[int, ...] = struct.field(pytree_node=False)
  temperature: float = struct.field(pytree_node=False, default=1.0)
  weight: float = struct.field(pytree_node=False, default=1.0)

  def logits(self, images: Float32[Array, "b h w c"]) -> Float32[Array, "b k"]:
    """Returns the teacher's outputs for the student's images, in the student's order.

    Args:
      images: augmented, mixed and normalised as `given` says.
    """
    images = renormalize(images, self.given, self.wanted)
    logits: Array = self.apply(self.variables, images, train=False)
    if self.class_order != (*range(len(self.class_order)),):
      logits = logits[:, jnp.array(self.class_order)]
    return logits

  def total_loss(
    self,
    loss: Float32[Array, ""],
    logits: Float32[Array, "b k"],
    teacher_logits: Float32[Array, "b k"],
    mask: Bool[Array, " b"],
  ) -> Float32[Array, ""]:
    """Adds the teacher's share to the loss; all are sums over the valid examples.

    Args:
      loss: the loss of the labels.
      logits: the student's outputs.
      teacher_logits: from `logits`.
      mask: which examples are valid.
    """
    losses = divergence(logits, teacher_logits, self.temperature)
    return self.weight * jnp.sum(losses, where=mask) + (1 - self.weight) * loss


@dataclasses.dataclass(frozen=True)
class BoundChunk:
  """A compiled `train_chunk` with its last argument, a teacher, filled in.

  The teacher is an argument because the compiler copies constants into the program.

  Attributes:
    compiled: the jitted function.
    distillation: its last argument, with arrays of the host.
    sharding: where to put them.
  """

  compiled: jax.stages.Wrapped
  distillation: Distillation
  sharding: jax.sharding.Sharding

  @functools.cached_property
  def _on_devices(self) -> Distillation:
    placed: Distillation = jax.device_put(self.distillation, self.sharding)
    return placed

  @property
  def _shapes(self) -> Distillation:
    """For devices that need not exist."""
    shapes: Distillation = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding),
      self.distillation,
    )
    return shapes

  def __call__(self, state: Any, feed: Any, count: Any, size: int = 0) -> Any:
    return self.compiled(state, feed, count, size, self._on_devices)

  def trace(self, state: Any, feed: Any, count: Any, size: int = 0) -> Any:
    """As `jax.jit(...).trace`."""
    return self.compiled.trace(state, feed, count, size, self._shapes)

  def lower(self, state: Any, feed: Any, count: Any, size: int = 0) -> Any:
    """As `jax.jit(...).lower`."""
    return self.compiled.lower(state, feed, count, size, self._shapes)
