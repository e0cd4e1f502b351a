"""WHAT A PUSH SAYS: a user's hint is asked, and whatever it does no push is lost by it."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from push_to_poll_client._types import Push

__all__ = ["Hints"]

_MessageT = TypeVar("_MessageT")
_SaidT = TypeVar("_SaidT")


class Hints(Generic[_MessageT, _SaidT]):
    """The hint of a listener.

    Args:
        hint: Makes something of a message; `None`: every message is a push that says nothing.
        kinds: What it may make of one, beside `None` for what is no push.
        log: Where a failure is told; the first as a warning, since whoever may push can make it fail.
    """

    def __init__(
        self,
        hint: Callable[[_MessageT], _SaidT | None] | None,
        *,
        kinds: tuple[type[_SaidT], ...],
        log: logging.Logger,
    ) -> None:
        self._hint = hint
        self._kinds = kinds
        self._log = log
        self._failed = False

    def of(self, message: _MessageT, name: str) -> _SaidT | Push | None:
        """What the message says; a plain push if the hint raises, or returns what is no answer.

        Args:
            message: What arrived.
            name: The listener's.
        """
        if self._hint is None:
            return Push()
        try:
            return self._checked(self._hint(message))
        except Exception as error:  # noqa: BLE001 - a hint may be wrong in any way; the push must not be lost by it
            level = logging.DEBUG if self._failed else logging.WARNING
            self._failed = True
            self._log.log(level, "%s: hint failed with %s, taken for a plain push", name, type(error).__name__)
            return Push()

    def _checked(self, said: object) -> _SaidT | None:
        if said is not None and not isinstance(said, self._kinds):
            kinds = ", ".join(kind.__name__ for kind in self._kinds)
            raise TypeError(f"a hint is one of {kinds}, or None, not {type(said).__name__}")
        return said
