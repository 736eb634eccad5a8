"""Former names of fields, which modules accept for one more release."""

import dataclasses
import functools
import warnings
from typing import TYPE_CHECKING, Any

from flax import linen as nn


class TakesOldNames(nn.Module):
  """A module that accepts a field by its former name, such as `norm=` for `norm_cls`.

  Such a field can also be read by its former name: a user's own block may do so.

  A field must not have the name of a submodule: `flax.nnx.bridge.ToNNX` keeps
  parameters as attributes under the names of the submodules.
  """

  def __init_subclass__(cls, **kwargs: Any) -> None:
    super().__init_subclass__(**kwargs)
    init = cls.__init__

    @functools.wraps(init)
    def with_old_names(self: "TakesOldNames", *args: Any, **values: Any) -> None:
      fields = {field.name for field in dataclasses.fields(cls)}
      for old in values.keys() - fields:
        if (new := f"{old}_cls") in fields:
          warn_of_old_name(cls, old)
          values[new] = values.pop(old)
      init(self, *args, **values)

    cls.__init__ = with_old_names  # type: ignore[method-assign]

  if not TYPE_CHECKING:  # Otherwise mypy would accept any name.

    def __getattr__(self, name: str) -> Any:
      if (new := f"{name}_cls") in {field.name for field in dataclasses.fields(self)}:
        warn_of_old_name(type(self), name)
        return getattr(self, new)
      return super().__getattr__(name)


def warn_of_old_name(module: type[nn.Module], old: str) -> None:
  """Warns that a field of a module is called by its former name."""
  warnings.warn(
    f"the field {old!r} of {module.__name__} is now {old + '_cls'!r}; the next release "
    "no longer takes the old name",
    DeprecationWarning,
    stacklevel=3,
  )
