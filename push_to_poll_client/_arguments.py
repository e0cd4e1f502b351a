"""Numbers that a user gives: one rule for every constructor, and one sentence for whoever gave something else."""

import math
from typing import Any

__all__ = ["check_number"]


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
