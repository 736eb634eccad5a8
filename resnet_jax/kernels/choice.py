"""The choice of the kernels: made once, before anything is traced."""

import contextlib
import contextvars
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from resnet_jax.kernels import native
from resnet_jax.runtime import compilation, native_library
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import printable

_choice: contextvars.ContextVar[str] = contextvars.ContextVar(
  "kernels", default="plain"
)


def current() -> str:
  """Returns the kernels in use: "plain", "xla" or "native"; `kernels` explains them."""
  return _choice.get()


@contextlib.contextmanager
def use(choice: str) -> Iterator[None]:
  """Selects the kernels for everything that is traced within the context.

  Args:
    choice: "plain", "xla" or "native".
  """
  token = _choice.set(choice)
  try:
    yield
  finally:
    _choice.reset(token)


def traced_with(choice: str, function: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a function so that it always uses the given kernels."""

  @functools.wraps(function)
  def traced(*args: Any, **kwargs: Any) -> Any:
    with use(choice):
      return function(*args, **kwargs)

  return traced


def why_not_native(dtype: str = "float32") -> str:
  """Returns why the native kernels cannot run in this process; "" if they can.

  This compiles them if they are not compiled yet, which takes some seconds.

  Args:
    dtype: dtype of the computation.
  """
  return _why_unsuited() or native.why_not_loaded(dtype)


def _why_unsuited() -> str:
  if jax.default_backend() != "cpu":
    return f"the device is a {jax.default_backend()}"
  if jax.device_count() > 1:
    return f"there are {jax.device_count()} devices"
  return ""


def start(choice: str, dtype: str) -> None:
  """Starts to compile the native kernels beside other work, if they will be used.

  Args:
    choice: see `resolve`.
    dtype: dtype of the computation. Parameters and sums are float32 in any case.
  """
  if choice != "xla" and not _why_unsuited():
    for kind in {"float32", dtype}:
      native_library.start(kind)


def _show(text: str) -> None:
  print(printable(text), file=sys.stderr)


def resolve(
  choice: str, show: Callable[[str], None] = _show, dtype: str = "float32"
) -> str:
  """Returns the kernels that `config.kernels` selects on this machine.

  Args:
    choice: the setting: "auto", "xla" or "native".
    show: called once with a warning if the native kernels cannot be compiled.
    dtype: dtype of the computation.

  Returns:
    "xla" or "native".

  Raises:
    UserError: "native" is not possible here.
  """
  if choice == "xla":
    return choice
  reason = why_not_native(dtype)
  if not reason:
    return "native"
  if choice == "native":
    raise UserError(
      f"config.kernels='native' is not possible here: {reason}; leave it at 'auto'",
      setting="kernels",
      value=choice,
    )
  if not _why_unsuited() and native.is_broken(dtype):
    show(f"the CPU will be slower, as {reason}")
  return "xla"


def resolve_for_inference(dtype: DTypeLike) -> str:
  """Returns the kernels for a network without gradients: "xla" or "native".

  With batch norm folded and instructions for bfloat16, XLA takes 0.6 of the time of the
  native kernels, which compute in float32.

  Args:
    dtype: dtype of the computation.
  """
  is_bfloat16 = jnp.dtype(dtype) == jnp.bfloat16
  return "xla" if is_bfloat16 and compilation.has_bfloat16() else resolve("auto")
