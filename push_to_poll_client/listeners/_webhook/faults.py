"""WHAT is worth a line in the log, once, while anybody may be there: what fails, and what looks wrongly set."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import anyio

__all__ = ["MAX_ASKING", "Faults"]

_T = TypeVar("_T")

MAX_ASKING = 8.0
"""Seconds that an async verifier or handshake may take, since a body is in hand meanwhile. Dropbox, Graph and
GitHub wait for 10 s for an answer."""


class Faults:
    """Asks what the user wrote, and tells of what it raises by its class alone: its text may hold a secret.

    Args:
        name: The webhook's.
        log: Where it is told: the first of each kind as a warning, the others, which a stranger may cause at will,
            for those who debug.
    """

    def __init__(self, name: str, log: logging.Logger) -> None:
        self._name = name
        self._log = log
        self._told: set[str] = set()

    async def asked(
        self, what: str, ask: Callable[[], _T | Awaitable[_T]], *, check: Callable[[_T], _T]
    ) -> _T | None:
        """What it answers, async or not; `None` when it fails.

        Args:
            what: It is, for the log.
            ask: Asks it.
            check: Returns the answer, or raises when it is none.
        """
        try:
            answer = ask()
            if inspect.isawaitable(answer):
                with anyio.fail_after(MAX_ASKING):
                    answer = await answer
            return check(cast("_T", answer))
        except Exception as error:  # noqa: BLE001  # whatever it is, a stranger may have brought it about
            self.tell(what, error)
            return None

    def tell(self, what: str, error: Exception) -> None:
        """Log a failure."""
        self._log.log(
            self._level(what, logging.WARNING), "%s: %s failed with %s", self._name, what, type(error).__name__
        )

    def refused(self, why: str) -> None:
        """Log that a request was not authentic: a wrong secret would be found by nobody who sees no counters."""
        self._log.log(self._level(why, logging.INFO), "%s: refused a request %s", self._name, why)

    def repeated(self) -> None:
        """Log that a request came before: a sender whose bodies are all the same wakes once and gets 200."""
        level = self._level("replayed", logging.INFO)
        self._log.log(level, "%s: a request that came before came again, and wakes nobody", self._name)

    def _level(self, what: str, first: int) -> int:
        level = logging.DEBUG if what in self._told else first
        self._told.add(what)
        return level
