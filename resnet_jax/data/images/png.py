"""Writes pixels as PNG files, which lose nothing."""

import cv2
import numpy as np


def encode_png(image: np.ndarray) -> bytes:
  """Returns the content of a PNG file.

  Args:
    image: uint8, RGB [H, W, 3] or gray [H, W].
  """
  image = np.ascontiguousarray(image)
  if image.ndim == 3:
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  return cv2.imencode(".png", image)[1].tobytes()
