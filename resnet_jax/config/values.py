"""Values of settings as people write them on a command line."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def parse_value(text: str, kind: object) -> Any:
  """Converts the text of a setting to its type.

  Args:
    text: such as "0.1", "true", "(30, 60)", "stem,stage1" or "head=10".
    kind: the type of the setting.

  Raises:
    ValueError: the text is not a value of this type.
  """
  return _PARSERS[kind](text)


def parse_names(text: str) -> tuple[str, ...]:
  """Converts "stem,stage1" to ("stem", "stage1")."""
  return tuple(name.strip() for name in text.split(",")) if text else ()


def parse_factors(text: str) -> dict[str, float]:
  """Converts "head=10" to {"head": 10.0}.

  Raises:
    ValueError: a part is not NAME=NUMBER, or two parts have the same name.
  """
  factors: dict[str, float] = {}
  for part in text.split(",") if text else ():
    name, _, number = part.partition("=")
    if name.strip() in factors:
      raise ValueError(f"{name.strip()!r} is given twice")
    factors[name.strip()] = float(number)
  return factors


def parse_scope(text: str) -> int | str:
  """Converts "4" to 4; any other text stays as it is."""
  return int(text) if text.isascii() and text.isdigit() else text


def _parse_bool(text: str) -> bool:
  if text.lower() not in _BOOLS:
    raise ValueError(f"{text!r} is neither true nor false")
  return _BOOLS[text.lower()]


def _parse_tuple(text: str) -> tuple[Any, ...]:
  try:
    value = ast.literal_eval(text) if text.strip() else ()
  except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
    raise ValueError(f"{text!r} is no tuple") from error
  return tuple(value) if isinstance(value, tuple | list) else (value,)


_PARSERS: dict[object, Callable[[str], Any]] = {
  int: int,
  float: float,
  bool: _parse_bool,
  str: str,
  int | str: parse_scope,
  tuple[str, ...]: parse_names,
  tuple[int, ...]: _parse_tuple,
  tuple[float, ...]: _parse_tuple,
  Mapping[str, float]: parse_factors,
}
