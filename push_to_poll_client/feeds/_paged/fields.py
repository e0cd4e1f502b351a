"""WHAT STANDS IN AN ENTRY: one field of it, or that of all entries of a page at once."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter, methodcaller
from typing import Any, TypeAlias

from push_to_poll_client.feeds._paged.reply import Path, path_of, text_of

__all__ = ["Field", "FieldOf", "texts"]

FieldOf: TypeAlias = Path | Callable[[Any], Any]
"""Where something stands in an entry, or a function of the entry."""


class Field:
    """Reads one thing in an entry; `None`: it is not there.

    Args:
        where: A path, which leads nowhere in what is no object, or a function, which may raise what it will.

    Raises:
        TypeError: It is neither.
        ValueError: It is an empty path.
    """

    def __init__(self, where: FieldOf) -> None:
        self._where = where
        self._one: Callable[[Any], Any] = where if callable(where) else _by_path(path_of(where))
        self._quick: tuple[Callable[[Any], Any], ...] = ()
        if isinstance(where, str):
            self._quick = itemgetter(where), methodcaller("get", where)

    def __call__(self, entry: Any) -> Any:
        """What stands in one entry."""
        return self._one(entry)

    def of_all(self, entries: Sequence[Any]) -> list[Any]:
        """What stands in each. A page is read by columns, since a call for each of its cells would take longer."""
        for read in self._quick:  # the first if it is in each, the second if each is an object
            with suppress(LookupError, TypeError, AttributeError):
                return list(map(read, entries))
        return list(map(self._one, entries))

    def __repr__(self) -> str:
        return getattr(self._where, "__name__", repr(self._where))


def texts(column: list[Any]) -> list[str | None]:
    """`text_of` each."""
    kinds = set(map(type, column))
    if kinds == {str} and "" not in column:
        return column
    return list(map(str if kinds == {int} else text_of, column))


def _by_path(steps: tuple[str | int, ...]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        for step in steps:
            try:
                value = value[step]
            except (LookupError, TypeError):
                return None
        return value

    return read
