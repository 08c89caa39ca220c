"""Types and ranges of configuration fields, stated where a field is declared and checked on construction."""

import functools
import math
import numbers
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STEPS = 10**7
"""Largest number of training steps; the telemetry store holds all step numbers of a run in one chunk."""

FAR = 10**9
"""Largest period in steps: a period beyond the last step never comes, which switches something off."""

SEED = 2**63 - 1
"""Largest seed."""

LARGE = 1e12
"""Largest real number; products of larger ones leave the range of single precision."""

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
ACCEPTED: dict[type, type] = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str}


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a field accepts, `least` to `most`; NaN is never one of them.

    Attributes:
        least, most: smallest and largest number.
        above: whether `least` itself is refused.
        below: whether `most` itself is refused.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False

    def refusal(self, value: float) -> str:
        """Return what the value must be; empty if it is."""
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        if low and high:
            return ""
        if self.above and not (low and value < math.inf):
            return "positive and finite"
        if self.below:
            return f"in [{self.least}, {self.most})"
        most = self.most if isinstance(self.most, int) else f"{self.most:g}"
        return f"at most {most}" if low else f"at least {self.least}"


POSITIVE = Range(0, LARGE, above=True)
NOT_NEGATIVE = Range(0, LARGE)
SHARE = Range(0, 1, below=True)


def check_fields(config: Any) -> None:
    """Check type and range of all fields of a configuration; an optional field may be None.

    Raises:
        ValueError: a value has another type than its field, or is out of its range.
    """
    for name, (kind, optional, allowed) in _fields(type(config)).items():
        value = getattr(config, name)
        if optional and value is None:
            continue
        is_flag = isinstance(value, bool)
        if is_flag != (kind is bool) or not isinstance(value, ACCEPTED[kind]):
            raise ValueError(f"{name} must be {WORDS[kind]}, got {shown(value)}")
        wrong = allowed.refusal(value) if allowed is not None else ""
        if wrong:
            raise ValueError(f"{name} must be {wrong}, got {shown(value)}")


def shown(value: object) -> str:
    """Return a value for a message, cut short if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, lists nested too deep
        return f"a long {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Check that a value is a known one.

    Raises:
        ValueError: it is not.
    """
    if value not in known:
        raise ValueError(f"unknown {name} {shown(value)}: choose one of {', '.join(known)}")


@functools.cache
def _fields(config: type) -> dict[str, tuple[type, bool, Range | None]]:
    """Return by name the type of each plain field, whether it may be None, and its range."""
    found = {}
    for name, hint in typing.get_type_hints(config, include_extras=True).items():
        allowed = next(
            (extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)), None
        )
        hint = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = [option for option in options if option in WORDS]
        if kinds:
            found[name] = (kinds[0], type(None) in options, allowed)
    return found
