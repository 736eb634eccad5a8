"""Networks that find objects: a class and a box for each.

model = create_detector("retinanet_resnet50_fpn", num_classes=91)
outputs = model.apply(variables, images)
detections = detect(outputs, model.anchors((640, 640)), image_size=(640, 640))

Letters: B batch, H height, W width, A anchors of all levels, K classes.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from resnet_jax.config.allowed import check_choice
from resnet_jax.models.anchors import ANCHORS_PER_POSITION, anchors_of
from resnet_jax.models.backbone import Backbone
from resnet_jax.models.dense_heads import FPN, BiasedConv, StridedLevels
from resnet_jax.models.layers import Conv, ModuleDef, norm_relu
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm, NoNorm
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet, as_resnet
from resnet_jax.runtime.arrays import AnyArray, Array, Float, Float32, PRNGKeyArray
from resnet_jax.runtime.errors import UserError

# The probability of each class at each anchor before training (section 4.1).
_PRIOR = 0.01
_init = nn.initializers.normal(0.01)
_prior_init = nn.initializers.constant(-math.log((1 - _PRIOR) / _PRIOR))


def _output(numbers: int, bias_init: Initializer, **kwargs: Any) -> BiasedConv:
  """Returns a convolution that gives some numbers for each anchor, in float32."""
  features = ANCHORS_PER_POSITION * numbers
  return BiasedConv(features, 3, kernel_init=_init, bias_init=bias_init, **kwargs)


class _Branch(nn.Module):
  """Four 3x3 convolutions with ReLU, and one that gives numbers for each anchor."""

  numbers: int
  bias_init: Initializer
  norm_cls: ModuleDef
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, levels: Sequence[Float[Array, "b _ _ c"]], train: bool
  ) -> Float32[Array, "b _ {self.numbers}"]:
    """Applies the same layers to each level, and joins the anchors of all levels."""
    conv = partial(Conv, levels[0].shape[-1], 3, kernel_init=_init, dtype=self.dtype)
    norm = partial(self.norm_cls, use_running_average=not train, dtype=self.dtype)
    layers = [(conv(name=f"conv{i}"), norm(name=f"bn{i}")) for i in range(1, 5)]
    output, outputs = _output(self.numbers, self.bias_init, name="output"), []
    for x in levels:
      for convolve, normalize in layers:
        x = norm_relu(normalize, convolve(x))
      outputs.append(output(x).reshape(len(x), -1, self.numbers))
    return jnp.concatenate(outputs, axis=1)


class RetinaNetHead(nn.Module):
  """Predicts a class and a box at each anchor (Lin et al. 2017, section 4, figure 3).

  Two branches, "classes" and "boxes", each apply four 3x3 convolutions with ReLU and
  one more convolution. All levels of the pyramid share their parameters.

  Attributes:
    num_classes: number of logits per anchor. Each is of a sigmoid; all low is no class.
    norm_cls: a norm of `norms.py` after each convolution but the last. `NoNorm` adds
      only a bias, as in the paper.
    dtype: dtype of the computation. The last convolutions compute in float32.
  """

  num_classes: int
  norm_cls: ModuleDef = NoNorm
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, levels: Sequence[Float[Array, "b _ _ c"]], train: bool = False
  ) -> dict[str, Float32[Array, "b _ _"]]:
    """Returns the outputs of a `RetinaNet` for maps of the same number of channels."""
    branch = partial(_Branch, norm_cls=self.norm_cls, dtype=self.dtype)
    classes = branch(self.num_classes, _prior_init, name="classes")
    boxes = branch(4, nn.initializers.zeros, name="boxes")
    return {"scores": classes(levels, train), "boxes": boxes(levels, train)}


class RetinaNet(nn.Module):
  """Finds objects at anchors on a feature pyramid (Lin et al. 2017, arXiv 1708.02002).

  The parameters are under "backbone", as in the network itself, "fpn" and "head".

  Attributes:
    net: the network, such as `create_model("resnet50")`, whose own head is not used.
      The pyramid takes the maps of its last three stages, and has its dtype.
    num_classes: number of classes. torchvision counts the background, class 0, which
      is never trained, so that 91 are the 90 numbers of COCO.
    extra_cls: the two coarser levels of the pyramid, see `FPN`; its LEVELS is their
      number.
    head_norm_cls: norm of the head, see `RetinaNetHead`.
    box_loss: the loss of boxes that the network is trained with, a key of `BOX_LOSSES`
      in `training/detection_losses.py`.
    features: channels of the pyramid.
    smallest_anchor: side of the smallest anchors, see `anchors_of`.
  """

  # The parameters that depend on `num_classes`.
  HEAD: ClassVar[tuple[str, ...]] = ("head", "classes", "output")

  net: ResNet
  num_classes: int = 91
  extra_cls: ModuleDef = StridedLevels
  head_norm_cls: ModuleDef = NoNorm
  box_loss: str = "l1"
  features: int = 256
  smallest_anchor: int = 32

  @property
  def groups(self) -> tuple[str, ...]:
    """Names of the groups of parameters: those of the backbone, "fpn" and "head"."""
    return *as_resnet(self.net, "detectors").groups[:-1], "fpn", "head"

  @nn.compact
  def __call__(
    self, images: Float[AnyArray, "b h w c"], train: bool = False
  ) -> dict[str, Float32[Array, "b _ _"]]:
    """Returns the numbers of each anchor, from which `detect` makes detections.

    Args:
      images: normalised, of any size.
      train: see `ResNet.__call__`.

    Returns:
      "scores", logits [B, A, K], and "boxes", see `encode_boxes`, [B, A, 4], in the
      order of the anchors of `anchors`.

    Raises:
      UserError: `net` is not a `ResNet`.
    """
    dtype = as_resnet(self.net, "detectors").dtype
    maps = self._backbone(name="backbone")(images, train)
    fpn = FPN(self.features, extra_cls=self.extra_cls, dtype=dtype, name="fpn")
    head = RetinaNetHead(self.num_classes, self.head_norm_cls, dtype, name="head")
    outputs: dict[str, Array] = head([*fpn(maps).values()], train)
    return outputs

  @nn.nowrap
  def _backbone(self, **kwargs: Any) -> Backbone:
    last = len(as_resnet(self.net, "detectors").stage_sizes) + 1
    names = [f"c{level}" for level in range(max(2, last - 2), last + 1)]
    return Backbone(self.net, maps=names, **kwargs)

  @nn.nowrap
  def anchors(
    self, image_size: tuple[int, int]
  ) -> tuple[Float32[np.ndarray, "_ 4"], ...]:
    """Returns the anchors of each level, as `anchors_of` does.

    Args:
      image_size: height and width of the images, with any padding, in pixels.
    """
    strides = [*self._backbone(parent=None).strides.values()]
    extra = getattr(self.extra_cls(self.features), "LEVELS", 2)
    strides += [strides[-1] * 2**i for i in range(1, extra + 1)]
    height, width = image_size
    map_sizes = [(-(-height // stride), -(-width // stride)) for stride in strides]
    return anchors_of(map_sizes, image_size, self.smallest_anchor)

  @nn.nowrap
  def init_head(self, key: PRNGKeyArray) -> dict[str, Array]:
    """Returns new parameters for `HEAD`, "kernel" and "bias"."""
    conv = _output(self.num_classes, _prior_init, parent=None)
    pixel = jnp.zeros((1, 1, 1, self.features))
    params: dict[str, Array] = conv.init(key, pixel)["params"]
    return params


# torchvision's networks. A row has the fields of a `RetinaNet`; "net" is a key of
# `MODELS`, and "norm_cls" is the norm of the net.
DETECTORS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
  {
    "retinanet_resnet50_fpn": {
      "net": "resnet50",
      # torchvision adds 0, not 1e-5, to the variances of the published weights
      # (`overwrite_eps`), which were trained so.
      "norm_cls": partial(FrozenBatchNorm, epsilon=0.0),
      "extra_cls": partial(StridedLevels, from_backbone=False),
      "head_norm_cls": NoNorm,
      "box_loss": "l1",
    },
    "retinanet_resnet50_fpn_v2": {
      "net": "resnet50",
      "norm_cls": BatchNorm,
      "extra_cls": StridedLevels,
      "head_norm_cls": GroupNorm,
      "box_loss": "giou",
    },
  }
)


def create_detector(
  name: str,
  num_classes: int = 91,
  *,
  norm: str = "",
  dtype: DTypeLike = jnp.float32,
) -> RetinaNet:
  """Builds a named network for object detection.

  Args:
    name: a key of `DETECTORS`, such as "retinanet_resnet50_fpn_v2".
    num_classes: number of classes, see `RetinaNet`.
    norm: norm of the backbone, a key of `NORMS`, or "" for the detector's own, which
      the published weights need. To train retinanet_resnet50_fpn from weights of
      ImageNet, take "frozen": its own norm is the same but for an epsilon of 0, and
      those weights have channels of almost no variance.
    dtype: dtype of the computation; parameters and outputs are float32.

  Returns:
    A Flax module with the methods `init` and `apply`. To change other fields, use
    `model.clone(net=create_model("resnet18"))`, for example.

  Raises:
    UserError: the name or the norm is unknown, or `num_classes` is not above 0.
  """
  check_choice("name", name, DETECTORS)
  if num_classes < 1:
    raise UserError(f"num_classes={num_classes} must be > 0")
  row = dict(DETECTORS[name])
  net = create_model(row.pop("net"), norm=norm, dtype=dtype)
  own_norm = row.pop("norm_cls")
  if not norm:
    net = net.clone(norm_cls=own_norm)
  return RetinaNet(net, num_classes, **row)
