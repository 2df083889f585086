"""Parameters of a policy, declared once: the CLI, the docs and the error messages read them here."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeVar

V = TypeVar("V", bool, int, float, str)


class PolicyError(ValueError):
    """An unknown policy or parameter, or a value out of range. The message lists what is valid."""


SWITCH_WORDS = {
    "true": True, "on": True, "yes": True, "1": True,
    "false": False, "off": False, "no": False, "0": False,
}  # fmt: skip
"""What stands for a switch in texts: command lines and the environment."""


class Param(NamedTuple):
    """One dial of a policy. The type of ``default`` is the type of the parameter."""

    name: str
    default: bool | int | float | str
    help: str
    low: float | None = None
    """Smallest valid value, inclusive."""
    high: float | None = None
    choices: tuple[str, ...] = ()


Value = bool | int | float | str


class Values(dict[str, Value]):
    """The checked value of every parameter of one policy, with a typed way to read each kind."""

    def flag(self, name: str) -> bool:
        """Return an on-or-off parameter."""
        return self._typed(name, bool)

    def integer(self, name: str) -> int:
        """Return a whole number."""
        return self._typed(name, int)

    def number(self, name: str) -> float:
        """Return a number that may have a fraction."""
        return self._typed(name, float)

    def word(self, name: str) -> str:
        """Return a name or a choice."""
        return self._typed(name, str)

    def _typed(self, name: str, kind: type[V]) -> V:
        value = self[name]
        if not isinstance(value, kind):
            raise TypeError(f"parameter '{name}' is a {type(value).__name__}, not a {kind.__name__}")
        return value


RENAMED_PARAMS: Final = {"moves": "steal"}
"""Parameters that had another name in an earlier version. Errors say the new one; old logs are read by it."""


def nearest(name: str, valid: Iterable[str], renamed: Mapping[str, str] | None = None) -> str:
    """Return a hint such as ``; did you mean 'dlpm'?``, or nothing when no name is close.

    ``renamed`` gives the new name of each old one.
    """
    if renamed and name in renamed:
        return f"; it is called '{renamed[name]}' now"
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def parse_value(policy: str, param: Param, given: object) -> Value:
    """Turn ``given`` (a string from a command line, or a TOML value) into the parameter's type.

    Raises ``PolicyError`` naming the policy, the parameter and what it takes.
    """
    kind = type(param.default)
    where = f"{policy}: parameter '{param.name}'"
    value: Value
    try:
        if kind is bool:
            value = _parse_bool(given)
        elif isinstance(given, bool):
            raise ValueError
        elif kind is int:
            value = _parse_int(given)
        elif kind is float:
            value = float(given) if isinstance(given, (int, float, str)) else float("nan")
        else:
            value = str(given)
    except (ValueError, OverflowError):
        raise PolicyError(f"{where} takes {_describe(param)}, not {given!r}") from None
    if param.choices and value not in param.choices:
        raise PolicyError(f"{where} takes {_describe(param)}, not {given!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low = float("-inf") if param.low is None else param.low
        high = float("inf") if param.high is None else param.high
        if not (low <= value <= high and math.isfinite(value)):
            raise PolicyError(f"{where} takes {_describe(param)}, not {given!r}")
    return value


def resolve(policy: str, params: tuple[Param, ...], given: Mapping[str, object]) -> Values:
    """Return the value of every parameter. Unknown names raise and list the valid ones."""
    known = {p.name: p for p in params}
    for name in given:
        if name not in known:
            valid = ", ".join(known) or "none"
            hint = nearest(name, known, RENAMED_PARAMS)
            raise PolicyError(f"{policy}: unknown parameter '{name}' (valid: {valid}){hint}")
    return Values(
        (p.name, parse_value(policy, p, given[p.name]) if p.name in given else p.default) for p in params
    )


def _parse_bool(given: object) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.lower() in SWITCH_WORDS:
        return SWITCH_WORDS[given.lower()]
    raise ValueError


def _parse_int(given: object) -> int:
    """Accept 4096, "4096" and the field's shorthand "4k" and "1M"."""
    if isinstance(given, int):
        return given
    if isinstance(given, float) and given.is_integer():
        return int(given)
    if isinstance(given, str):
        scale = {"k": 1_000, "m": 1_000_000}.get(given[-1:].lower(), 1)
        return int(given[:-1] if scale > 1 else given) * scale
    raise ValueError


def _describe(param: Param) -> str:
    if param.choices:
        return "one of " + ", ".join(param.choices)
    kind = {bool: "on or off", int: "a whole number", float: "a number", str: "a name"}[type(param.default)]
    if param.low is not None and param.high is not None:
        return f"{kind} from {param.low:g} to {param.high:g}"
    if param.low is not None:
        return f"{kind} of at least {param.low:g}"
    return kind
