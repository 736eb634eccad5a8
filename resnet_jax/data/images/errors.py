"""The error of an image that cannot be read."""


class ImageError(ValueError):
  """An image cannot be read; the text says why."""
