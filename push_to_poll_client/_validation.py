"""Check numbers that a user gives, and make foreign text fit for an error or a log line."""

import math
from typing import Any

__all__ = [
    "check_number",
    "describe",
    "one_line",
    "quoted",
]


def check_number(name: str, value: Any, *, above_zero: bool = False, optional: bool = False) -> None:
    """Check an argument that is a number, of seconds as a rule.

    Args:
        name: The argument's.
        value: What was given.
        above_zero: Whether 0 has no meaning.
        optional: Whether it may be `None`, which means off.

    Raises:
        TypeError: It is no number.
        ValueError: It is infinite, no number after all (NaN), or too small.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number{' or None' if optional else ''}, not {value!r}")
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise ValueError(f"{name} must be finite and {'above' if above_zero else 'at least'} 0, not {value!r}")


MAX_TEXT = 500
"""Characters of an error that are kept: a server may send any number."""


def quoted(text: object, limit: int = 100) -> str:
    """What somebody else wrote, as it may stand in an error: short, on one line, in ASCII, in quotes.

    Args:
        text: What `str()` makes the text of.
        limit: Characters of the text that are kept.
    """
    whole = str(text)
    return ascii(whole if len(whole) <= limit else whole[:limit] + "...")


def describe(error: BaseException | None) -> str:
    """One bounded line for status and log; nothing that a server sent can break out of it."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # whose __str__ is broken is described all the same
        text = f"{type(error).__name__}, whose text cannot be read"
    return one_line(text)


def one_line(text: str) -> str:
    """A sentence with somebody else's text in it, bounded and without anything that acts."""
    return "".join(char if char.isprintable() else "�" for char in text[:MAX_TEXT])
