"""Functions that an exporter writes as one operation.

Such a function, for example `max_pool_3x3`, consists of several operations of JAX.
Within `marked_operations`, its call is traced as one `OPERATION`.
"""

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import jax
from jax.extend.core import Primitive

from resnet_jax.runtime.arrays import Array

Function = TypeVar("Function", bound=Callable[..., Any])

_is_marking: contextvars.ContextVar[bool]
_is_marking = contextvars.ContextVar("is_marking", default=False)

# Its parameters are `function`, and `settings`: the other arguments by their names.
OPERATION = Primitive("operation")


def _shape(*inputs: Any, function: Callable[..., Any], settings: Any) -> Any:
  (made,) = unmarked(function, inputs, settings).out_avals
  return made


def unmarked(function: Callable[..., Any], like: Sequence[Any], settings: Any) -> Any:
  """Returns the trace of all operations of a marked function.

  Args:
    function: see `OPERATION`.
    like: have the shapes and dtypes of the inputs.
    settings: see `OPERATION`.
  """
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like]
  whole = functools.partial(inspect.unwrap(function), **settings)
  return jax.make_jaxpr(whole)(*shapes)


OPERATION.def_abstract_eval(_shape)


@contextlib.contextmanager
def marked_operations() -> Iterator[None]:
  """Traces each call of an `operation` as one `OPERATION`.

  The result of the trace is for an exporter; JAX cannot compile it.
  """
  token = _is_marking.set(True)
  try:
    yield
  finally:
    _is_marking.reset(token)


def mark(function: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
  """Returns `function(*inputs, **settings)` as one `OPERATION`."""
  return OPERATION.bind(*inputs, function=function, settings=settings)


def operation(function: Function) -> Function:
  """Decorates a function whose first argument is its only array."""
  signature = inspect.signature(function)

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    if not _is_marking.get():
      return function(*args, **kwargs)
    given = signature.bind(*args, **kwargs)
    given.apply_defaults()
    x, *settings = given.arguments.items()
    return mark(call, x[1], **dict(settings))

  return cast(Function, call)


softmax: Callable[[Array], Array] = operation(jax.nn.softmax)
