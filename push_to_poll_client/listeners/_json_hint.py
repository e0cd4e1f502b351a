"""WHAT A PUSH SAYS, by declaration: where in its JSON the newest cursor, the topics and the count stand."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from push_to_poll_client._json import decode
from push_to_poll_client._types import Push
from push_to_poll_client.listeners._paths import path_of, texts_at

__all__ = ["JSONHint"]

MAX_TOPICS = 64
"""Topics that are taken from a push; one with more speaks of all."""

MAX_COUNT = 2**63
"""A count above is no count."""


class JSONHint:
    """Makes pushes of JSON texts; for the `hint=` of any listener.

        WebSocketListener(url, hint=JSONHint(cursor="cursor"))
        WebhookListener(verify, hint=JSONHint(cursor="historyId", topics="emailAddress"))

    A path is names with dots between them; a list along the way stands for each of its items, as in
    "value.resource". What is no JSON, or has nothing there, is a push that says nothing. Numbers count as texts.

    Args:
        cursor: Where the newest cursor stands. It has to be in the form in which the feed has it.
        topics: Where what changed stands, a text or a list of them.
        count: Where the number of new messages stands.
        only: Paths and what has to stand there: anything else is no push, as `{"type": "wake"}`.

    Raises:
        TypeError: A path is no `str`.
        ValueError: A path has an empty step.
    """

    def __init__(
        self,
        *,
        cursor: str | None = None,
        topics: str | None = None,
        count: str | None = None,
        only: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._cursor = None if cursor is None else path_of(cursor)
        self._topics = None if topics is None else path_of(topics)
        self._count = None if count is None else path_of(count)
        self._only = tuple((path_of(path), text) for path, text in only.items())

    def __call__(self, message: Any, /) -> Push | None:
        """The push, of a text, of bytes, or of what has them as its `body` or `data`; `None`: it is none."""
        value = _value_of(message)
        if any(text not in texts_at(value, path, most=MAX_TOPICS) for path, text in self._only):
            return None
        cursors = [] if self._cursor is None else texts_at(value, self._cursor, most=2)
        topics = [] if self._topics is None else texts_at(value, self._topics, most=MAX_TOPICS + 1)
        counts = [] if self._count is None else texts_at(value, self._count, most=1)
        return Push(
            cursors[0] if len(cursors) == 1 else None,
            tuple(topics) if len(topics) <= MAX_TOPICS else (),
            _number(counts[0]) if counts else None,
        )


def _value_of(message: Any) -> Any:
    text = getattr(message, "body", None)
    text = getattr(message, "data", message) if text is None else text
    try:
        return decode(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):  # int() takes digits of every script, and underscores between them
        return None
    number = int(text)
    return number if number < MAX_COUNT else None
