"""Networks for semantic segmentation: a class for every pixel of an image.

model = create_segmenter("deeplabv3_resnet50", num_classes=21)

Shapes: B batch, H height, W width, C input channels.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from resnet_jax.config.allowed import check_choice
from resnet_jax.models.backbone import Backbone
from resnet_jax.models.dense_heads import DeepLabV3Head, FCNHead
from resnet_jax.models.layers import ModuleDef
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet, as_resnet
from resnet_jax.runtime.arrays import AnyArray, Array, Float, Float32
from resnet_jax.runtime.errors import UserError


class Segmenter(nn.Module):
  """A residual network with a head that predicts the class of each pixel.

  The parameters are under "backbone", as in the network itself, "head" and "aux_head".

  Attributes:
    net: the network, such as `create_model("resnet50")`, whose own head is not used.
      The heads have its norm and its dtype.
    num_classes: number of logits per pixel.
    head_cls: the head on the map of the last stage, `FCNHead`, `DeepLabV3Head`, or any
      class that is called in the same way.
    aux: whether an `FCNHead` on the map of the stage before the last gives logits too.
      Only training needs these logits: it adds their loss, times a small weight, to the
      loss of the head (Zhao et al. 2016, arXiv 1612.01105, section 3.3).
    output_stride: see `Backbone`.
  """

  net: ResNet
  num_classes: int = 21
  head_cls: ModuleDef = FCNHead
  aux: bool = True
  output_stride: int | None = 8
  # End of the paths of the layers whose shapes depend on the number of classes.
  HEAD: ClassVar[tuple[str, ...]] = ("head",)

  @property
  def groups(self) -> tuple[str, ...]:
    """Names of the groups of parameters: those of the backbone, and the heads."""
    own = as_resnet(self.net, "segmenters").groups[:-1]
    return *own, *(["aux_head"] if self.aux else []), "head"

  @nn.compact
  def __call__(
    self, images: Float[AnyArray, "b h w c"], train: bool = False
  ) -> dict[str, Float32[Array, "b h w {self.num_classes}"]]:
    """Returns the logits of every pixel.

    Args:
      images: normalised, of any size.
      train: see `ResNet.__call__`. Dropout in the heads needs `rngs={"dropout": key}`.

    Returns:
      "out", and "aux" if the network has the auxiliary head.

    Raises:
      UserError: no stage has `output_stride`, or `net` is not a `ResNet`.
    """
    net = as_resnet(self.net, "segmenters")
    last = len(net.stage_sizes) + 1  # The map of the first stage is "c2".
    heads = {"out": (self.head_cls, "head", f"c{last}")}
    if self.aux:
      heads["aux"] = FCNHead, "aux_head", f"c{last - 1}"
    names = [name for *_, name in heads.values()]
    maps = Backbone(net, self.output_stride, names, name="backbone")(images, train)
    size = images.shape[1:3]
    logits = {}
    for key, (head_cls, name, of) in heads.items():
      head = head_cls(
        self.num_classes, norm_cls=net.norm_cls, dtype=net.dtype, name=name
      )
      logits[key] = head(maps[of], size, train)
    return logits


# torchvision's networks. A row has the fields of a `Segmenter`; "net" is a key of
# `MODELS`.
SEGMENTERS: dict[str, dict[str, Any]] = {
  "fcn_resnet50": {"net": "resnet50", "head_cls": FCNHead},
  "fcn_resnet101": {"net": "resnet101", "head_cls": FCNHead},
  "deeplabv3_resnet50": {"net": "resnet50", "head_cls": DeepLabV3Head},
  "deeplabv3_resnet101": {"net": "resnet101", "head_cls": DeepLabV3Head},
}


def create_segmenter(
  name: str,
  num_classes: int = 21,
  *,
  aux: bool = True,
  norm: str = "",
  dtype: DTypeLike = jnp.float32,
) -> Segmenter:
  """Builds a named network for semantic segmentation.

  Args:
    name: a key of `SEGMENTERS`, such as "deeplabv3_resnet50".
    num_classes: number of classes, with the background. The 21 of torchvision's weights
      are those of PASCAL VOC.
    aux: see `Segmenter`. torchvision's weights have the auxiliary head.
    norm: norm of the backbone and the heads, a key of `NORMS`; "" is batch norm.
    dtype: dtype of the computation; parameters and logits are float32.

  Returns:
    A Flax module with the methods `init` and `apply`. To change other fields, use
    `model.clone(net=create_model("resnet18"))`, for example.

  Raises:
    UserError: the name or the norm is unknown, or `num_classes` is not above 0.
  """
  check_choice("name", name, SEGMENTERS)
  if num_classes < 1:
    raise UserError(f"num_classes={num_classes} must be > 0")
  row = dict(SEGMENTERS[name])
  net = create_model(row.pop("net"), norm=norm, dtype=dtype)
  return Segmenter(net, num_classes, aux=aux, **row)
