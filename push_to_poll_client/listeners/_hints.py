"""Read the hint of a push with the caller's function or declared JSON paths.

A hint cannot lose a push: if the function raises or returns another type, the push counts without a hint.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from push_to_poll_client._json import decode
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_str

MAX_VALUE_LENGTH = 1024
"""Characters of the longest text taken from a push. Ids, topics and names are shorter, and most cursors too."""


def parse_path(path: str) -> tuple[str, ...]:
    """Split a path such as "changed.topics" into its names; raise if one is empty."""
    check_str("path", path)
    steps = tuple(path.split("."))
    if not all(steps):
        raise ValueError(f"a path must be names separated by dots, got {path!r}")
    return steps


def values_at(value: Any, steps: tuple[str, ...]) -> Iterator[Any]:
    """Yield the values at a path. A list along it stands for its items, a list within a list does not."""
    if not steps:
        yield value
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and steps[0] in item:
            yield from values_at(item[steps[0]], steps[1:])


def strings_at(value: Any, steps: tuple[str, ...], *, limit: int) -> list[str]:
    """Return at most `limit` distinct texts and whole numbers at a path; a list there stands for its items."""
    items = (item for one in values_at(value, steps) for item in (one if isinstance(one, list) else [one]))
    texts = (str(item) for item in items if isinstance(item, str | int) and not isinstance(item, bool))
    found: dict[str, None] = {}
    for text in texts:
        if len(found) >= limit:
            break
        if 0 < len(text) <= MAX_VALUE_LENGTH:
            found[text] = None
    return list(found)


class Notification(NamedTuple):
    """A message published in a database, as passed to `hint`.

    Attributes:
        channel: Name of the channel.
        data: Content of the message: `str` from PostgreSQL, `bytes` from Redis.
    """

    channel: str
    data: str | bytes


_MessageT = TypeVar("_MessageT")
_HintT = TypeVar("_HintT")


class HintReader(Generic[_MessageT, _HintT]):
    """Calls the `hint` function of a listener, which may return one of `kinds`, or None for no push."""

    # Only the first failure is logged as a warning: every sender of pushes can cause them.

    def __init__(
        self,
        hint: Callable[[_MessageT], _HintT | None] | None,
        *,
        kinds: tuple[type[_HintT], ...],
        log: ConsumerLog,
    ) -> None:
        self._hint = hint
        self._kinds = kinds
        self._log = log
        self._failed = False

    def read(self, message: _MessageT, name: str) -> _HintT | Push | None:
        """Return the hint of a message; a push without a hint if the function fails."""
        if self._hint is None:
            return Push()
        try:
            hint = self._hint(message)
        except Exception as error:  # noqa: BLE001 - a bug in `hint` must not lose the push
            failed = type(error).__name__
        else:
            if hint is None or isinstance(hint, self._kinds):
                return hint
            failed = TypeError.__name__
        level = logging.DEBUG if self._failed else logging.WARNING
        self._failed = True
        self._log.log(level, "%s: hint failed with %s, handling the push without a hint", name, failed)
        return Push()


MAX_TOPICS = 64
"""Topics taken from a push. A push with more counts as one without topics, which concerns all."""

MAX_COUNT = 2**63
"""Counts from here on are ignored."""


class JSONHint:
    """Turns JSON texts into pushes. For the `hint` argument of any listener.

        WebSocketListener(url, hint=JSONHint(cursor="cursor"))
        WebhookListener(verify, hint=JSONHint(cursor="historyId", topics="emailAddress"))

    A path is names separated by dots, such as "value.resource". A list along the path stands for each of its
    items. A message that is not JSON, or has no values at the paths, is a push without a hint. Numbers count as
    texts.

    Args:
        cursor: Path of the newest cursor, in the same form as the feed's cursors.
        topics: Path of the changed topics, a text or a list of texts.
        count: Path of the number of new messages.
        only: Paths and required values, such as `{"type": "wake"}`. Other messages are not pushes.

    Raises:
        TypeError: A path is not a `str`.
        ValueError: A path has an empty name.
    """

    def __init__(
        self,
        *,
        cursor: str | None = None,
        topics: str | None = None,
        count: str | None = None,
        only: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._paths = [None if path is None else parse_path(path) for path in (cursor, topics, count)]
        self._only = tuple((parse_path(path), text) for path, text in only.items())

    def __call__(self, message: Any, /) -> Push | None:
        """Return the push for a text, bytes, or an object with `body` or `data`; None if not a push."""
        value = _decode_message(message)
        if any(text not in strings_at(value, path, limit=MAX_TOPICS) for path, text in self._only):
            return None
        cursors, topics, counts = (
            [] if path is None else strings_at(value, path, limit=MAX_TOPICS + 1) for path in self._paths
        )
        return Push(
            cursors[0] if len(cursors) == 1 else None,
            tuple(topics) if len(topics) <= MAX_TOPICS else (),
            _number(counts[0]) if counts else None,
        )


def _decode_message(message: Any) -> Any:
    text = getattr(message, "body", None)
    text = getattr(message, "data", message) if text is None else text
    try:
        return decode(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):  # int() also accepts digits of other scripts, and underscores
        return None
    number = int(text)
    return number if number < MAX_COUNT else None
