"""Check arguments and dependencies, and make foreign text safe to show."""

import math
from typing import Any

from push_to_poll_client._secrets import mask

# Largest number of an argument. Larger ones overflow in zlib, SQLite, timeouts, or as a `float`.
MAX_NUMBER = 2**63 - 1


def _check_not_huge(name: str, value: float) -> None:
    # Before any arithmetic: `math.isfinite` and `str` raise other errors for an `int` with many digits.
    if MAX_NUMBER < abs(value) < math.inf:
        got = repr(value) if isinstance(value, float) else "a huge whole number"
        raise ValueError(f"{name} must be between 0 and 2**63 - 1, got {got}")


def check_number(name: str, value: Any, *, above_zero: bool = False, optional: bool = False) -> None:
    """Check an argument that is a number, usually of seconds. `optional` allows `None`, which means off."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number{' or None' if optional else ''}, got {value!r}")
    _check_not_huge(name, value)
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise ValueError(f"{name} must be finite and {'above' if above_zero else 'at least'} 0, got {value!r}")


def check_count(name: str, value: object) -> int:
    """Return an argument that must be a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    _check_not_huge(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def check_str(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, got {type(value).__name__}")


# Characters of an `identity=`. It is read in errors and typed in a shell.
MAX_IDENTITY = 1_000


def check_identity(identity: object) -> str:
    """Return a feed's `identity=` if it is valid."""
    if isinstance(identity, str) and 0 < len(identity) <= MAX_IDENTITY:
        return identity
    kind = ValueError if isinstance(identity, str) else TypeError
    raise kind(f"identity must be a str of 1 to {MAX_IDENTITY:,} characters, got {quoted(identity, 50)}")


def missing_dependency(
    what: str, package: str, error: ImportError, *, remedy: str, repair: str | None = None
) -> ImportError:
    """Return the error to raise if an optional dependency cannot be imported."""
    # `remedy` is for a missing or old package, `repair` for a broken one (None: install it again).
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
        return ImportError(f"{what} needs {package}: {remedy}", name=package)
    repair = repair or remedy.replace("pip install", "pip install --force-reinstall")
    return ImportError(
        f"{what} needs {package}, which is installed but cannot be imported: {repair} ({one_line(str(error))})",
        name=package,
    )


def quoted(text: object, limit: int = 100) -> str:
    """Quote foreign text for an error: short, one line, ASCII, secrets masked."""
    whole = mask(str(text))  # before cutting: a part of a secret would not be found
    return ascii(whole if len(whole) <= limit else whole[:limit] + "...")


def describe(error: BaseException | None) -> str:
    """Describe an error in one line of bounded length."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # __str__ of a foreign error can raise anything
        text = f"{type(error).__name__} (its text cannot be read)"
    return one_line(text)


# Characters of an error that are kept; a server can send any number.
MAX_TEXT = 500


def one_line(text: str) -> str:
    """Shorten a text, mask its secrets, join its lines, and replace control characters."""
    # The texts of databases have several lines, some of them indented or empty.
    lines = (line.strip() for line in mask(text)[:MAX_TEXT].splitlines())
    shown = " ".join(line for line in lines if line)
    return "".join(char if char.isprintable() else "�" for char in shown)
