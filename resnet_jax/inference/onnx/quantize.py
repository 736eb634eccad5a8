"""Quantises an ONNX model to 8-bit integers."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def quantize(model: Any, batches: Iterable[np.ndarray]) -> Any:
  """Returns the model with 8-bit weights and activations.

  Each output channel of a kernel has a scale of its own. The ranges of the activations
  are those of the given images. The operations stay in float32, between nodes that
  quantise and dequantise (QDQ); ONNX Runtime and OpenVINO replace these by integer
  operations.

  Args:
    model: an `onnx.ModelProto` from `build`.
    batches: images for calibration, as the model takes them.
  """
  import onnx
  from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
  )

  class Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
      self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
      batch = next(self.batches, None)
      return None if batch is None else {"images": batch}

  ready = onnx.shape_inference.infer_shapes(model)
  # Otherwise a warning advises a preparation that this graph does not need.
  ready.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
  with tempfile.TemporaryDirectory() as folder:
    made = str(Path(folder) / "int8.onnx")
    quantize_static(
      ready,
      made,
      Images(),
      quant_format=QuantFormat.QDQ,
      per_channel=True,
      activation_type=QuantType.QUInt8,
      weight_type=QuantType.QInt8,
      # On processors without 8-bit dot products, two products of full range overflow.
      reduce_range=True,
      op_types_to_quantize=["Conv", "Gemm", "Add", "MaxPool", "GlobalAveragePool"],
      extra_options={"CalibMovingAverage": True, "CalibTensorRangeSymmetric": False},
    )
    found = onnx.load(made)
  del found.metadata_props[:]
  onnx.helper.set_model_props(found, {e.key: e.value for e in model.metadata_props})
  return found
