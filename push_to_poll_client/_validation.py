"""Check what the user gives and installed, and make text from others safe for an error or a log line."""

import math
from typing import Any

from push_to_poll_client._secrets import mask

MAX_NUMBER = 2**63 - 1
"""Largest number that an argument may be. What is larger overflows in zlib, SQLite, timeouts or as a `float`."""


def _check_not_huge(name: str, value: float) -> None:
    # Before any arithmetic: `math.isfinite` and `str` raise errors of their own for an `int` of enough digits.
    if MAX_NUMBER < abs(value) < math.inf:
        got = repr(value) if isinstance(value, float) else "a whole number beyond that"
        raise ValueError(f"{name} must be between 0 and 2**63 - 1, got {got}")


def check_number(name: str, value: Any, *, above_zero: bool = False, optional: bool = False) -> None:
    """Check an argument that is a number, in most cases of seconds.

    Args:
        name: The argument's name.
        value: The value given.
        above_zero: Whether 0 is too small.
        optional: Whether it may be `None`, which means off.

    Raises:
        TypeError: The value is not a number.
        ValueError: The value is infinite, NaN, too small, or above `MAX_NUMBER`.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number{' or None' if optional else ''}, not {value!r}")
    _check_not_huge(name, value)
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise ValueError(f"{name} must be finite and {'above' if above_zero else 'at least'} 0, not {value!r}")


def check_count(name: str, value: object) -> int:
    """Return an argument that is a whole number, as of messages or bytes.

    Raises:
        TypeError: The value is not a whole number.
        ValueError: The value is below 1 or above `MAX_NUMBER`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    _check_not_huge(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def check_str(what: str, value: object) -> None:
    """Raise a `TypeError` if an argument is not a `str`; `what` says what it is."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}")


MAX_IDENTITY = 1_000
"""Characters of an `identity=`. It is read in errors and typed in a shell."""


def check_identity(identity: object) -> str:
    """Return an `identity=` that a feed was given.

    Raises:
        TypeError: It is not a `str`.
        ValueError: It is empty or too long.
    """
    if isinstance(identity, str) and 0 < len(identity) <= MAX_IDENTITY:
        return identity
    kind = ValueError if isinstance(identity, str) else TypeError
    raise kind(f"identity must be a str of 1 to {MAX_IDENTITY:,} characters, not {quoted(identity, 50)}")


def missing_dependency(
    what: str, package: str, error: ImportError, *, remedy: str, repair: str | None = None
) -> ImportError:
    """Return the error to raise when an optional dependency cannot be imported.

    Args:
        what: What needs it.
        package: The module that was imported.
        error: The error of that import.
        remedy: What to do if it is not installed, or too old.
        repair: What to do if it is installed and does not work. None if that is to install it again.
    """
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
        return ImportError(f"{what} needs {package}: {remedy}", name=package)
    repair = repair or remedy.replace("pip install", "pip install --force-reinstall")
    return ImportError(
        f"{what} needs {package}, which is installed but cannot be imported: {repair} ({one_line(str(error))})",
        name=package,
    )


def quoted(text: object, limit: int = 100) -> str:
    """Quote text from others for an error: short, on one line, in ASCII, without the secrets that are known.

    Args:
        text: Any object; its `str()` is quoted.
        limit: Largest number of characters that are kept.
    """
    whole = mask(str(text))  # before it is cut, since a part of a secret would not be found
    return ascii(whole if len(whole) <= limit else whole[:limit] + "...")


def describe(error: BaseException | None) -> str:
    """Describe an error in one bounded line for status and log, from which text of a server cannot break out."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # an error with a broken __str__ is described too
        text = f"{type(error).__name__}, whose text cannot be read"
    return one_line(text)


MAX_TEXT = 500
"""Characters of an error that are kept, since a server can send any number."""


def one_line(text: str) -> str:
    """Bound a text, mask secrets, and replace unprintable characters, as line breaks and terminal controls."""
    return "".join(char if char.isprintable() else "�" for char in mask(text)[:MAX_TEXT])
