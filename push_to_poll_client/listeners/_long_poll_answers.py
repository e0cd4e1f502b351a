"""Read the answer of a long poll, and choose when to send the next one.

A server that holds its answers sets the pace itself. One that does not (it cannot, it is misconfigured, a proxy
answers for it, it was told a cursor that is old) would be asked as fast as the network allows. So:

An answer with news costs a token, of which there are ten and one more each second (GCRA, as in `_schedule.py`):
ten pushes in a row are passed on at once, and a server that has news in every answer is asked once a second.

An answer without news that comes early costs a pause, doubled by each further one until one was held:

    early in a row       1      2     3    4    5    6    7     8     9 and on
    seconds              0.25   0.5   1    2    4    8    16    32    60

A server that never holds an answer gets 8 requests in the first 32 s and one a minute then.
"""

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import msgspec

from push_to_poll_client._json import decode
from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client.listeners._backoff import RETRY_AFTER_JITTER
from push_to_poll_client.listeners._hints import parse_path
from push_to_poll_client.listeners._requests import ListenerResponse, UnusableResponse

__all__ = [
    "NO_NEWS",
    "LongPollReader",
    "LongPollResult",
    "NewsSource",
    "NextSource",
    "Pace",
    "last_at",
    "query_value",
]


MIN_HOLD = 5.0
"""Seconds: an answer without news that was not held for as long, or half as long as it might, is early. A server
that holds for just that long is asked 12 times a minute."""

BURST = 10
"""Answers with news that follow each other as fast as they come."""

NEWS_SPACING = 1.0
"""Seconds from one token to the next: how late a push is at most on a server that has news all the time."""

FIRST_PAUSE = 0.25
"""Seconds after the first early answer: a slip costs little."""

LONGEST_PAUSE = 60.0
"""Seconds: as often as the consumer polls by itself, by default."""

LONGEST_DOUBLING = 8
"""Doublings of the pause after which it is above the longest."""


class Pace:
    """How long one channel waits between an answer and its next request.

    Args:
        wait: Seconds for which the server may hold an answer.
    """

    __slots__ = ("_early", "_early_in_a_row", "_full_at", "_not_before")

    def __init__(self, wait: float) -> None:
        self._early = min(MIN_HOLD, wait / 2)
        self._early_in_a_row = 0
        self._full_at = -math.inf
        self._not_before = -math.inf

    def is_early(self, held: float) -> bool:
        """Whether the server did not wait, if it has no news after so many seconds."""
        return held < self._early

    def answered(self, now: float, *, held: float, news: bool, retry_after: float | None, fraction: float) -> None:
        """An answer came, or none in all the time that there was for it.

        Args:
            now: Seconds on a monotonic clock.
            held: Seconds from the request to its answer.
            news: Whether there were any.
            retry_after: Seconds for which the server asks to be left alone, obeyed for a day at most; `None`: it
                does not.
            fraction: A random number, 0 ≤ fraction < 1: a fifth of what was asked for is added at most.
        """
        if not self.is_early(held):
            self._early_in_a_row = 0
        asked = min(retry_after or 0.0, MAX_NOT_BEFORE) * (1 + RETRY_AFTER_JITTER * fraction)
        own = self._after_news(now) if news else self._after_nothing(held)
        self._not_before = max(self._not_before, now + max(asked, own))

    def pause(self, now: float) -> float:
        """Seconds from now until the next request."""
        return max(0.0, self._not_before - now)

    def _after_news(self, now: float) -> float:
        self._full_at = max(self._full_at, now) + NEWS_SPACING
        return self._full_at - NEWS_SPACING * BURST - now

    def _after_nothing(self, held: float) -> float:
        if not self.is_early(held):
            return 0.0
        self._early_in_a_row += 1
        return min(FIRST_PAUSE * 2.0 ** min(self._early_in_a_row - 1, LONGEST_DOUBLING), LONGEST_PAUSE)


MAX_POSITION = 8192
"""Characters of what is sent back. CouchDB's are hundreds to a few thousand; servers refuse longer addresses."""

NewsSource: TypeAlias = str | Callable[[ListenerResponse], object]
NextSource: TypeAlias = Mapping[str, str] | Callable[[ListenerResponse], Mapping[str, Any]]


class LongPollResult(NamedTuple):
    """What one answer said.

    Attributes:
        news: Whether there is something to poll for.
        position: What the next request says beside what all of them do.
        retry_after: Seconds for which the server asks to be left alone; `None`: it does not.
    """

    news: bool
    position: Mapping[str, Any]
    retry_after: float | None


NO_NEWS = LongPollResult(news=False, position={}, retry_after=None)


class LongPollReader:
    """Reads answers as it was declared.

    Args:
        news: Where in the JSON something stands when there is news, or a function of the answer.
        next: Names, and where in the JSON the values stand that the next request is to give them, or a function.
        retry_after: Where in the JSON stands for how many seconds to leave the server alone.

    Raises:
        TypeError: A path is no `str`, or `next` no mapping.
        ValueError: A path has an empty step.
    """

    def __init__(self, news: NewsSource | None, next: NextSource | None, retry_after: str | None) -> None:
        self._is_news = _has_content if news is None else news if callable(news) else _path_getter(news)
        self._next = _nothing if next is None else next if callable(next) else _mapping_getter(next)
        self._asks_to_wait = _nothing if retry_after is None else _path_getter(retry_after)

    def read(self, answer: ListenerResponse) -> LongPollResult:
        """What a success says.

        Raises:
            UnusableAnswer: It is no JSON although something was declared to stand there, its position is too long
                to be sent back, or a function of the user's failed.
        """
        if answer.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            return NO_NEWS
        try:
            news, position = bool(self._is_news(answer)), _checked(dict(self._next(answer) or {}))
        except UnusableResponse:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is; its text may hold a secret
            raise UnusableResponse(f"news or next failed with {type(error).__name__}") from None
        return LongPollResult(news, position, _seconds(self._asks_to_wait(answer)))


def _has_content(answer: ListenerResponse) -> bool:
    try:
        return decode(answer.body) not in (None, False, [], {})
    except (ValueError, RecursionError):  # not in JSON
        return True


def _nothing(_: ListenerResponse) -> None:
    return None


def _path_getter(where: str) -> Callable[[ListenerResponse], Any]:
    path = parse_path(where)
    return lambda answer: last_at(answer.json(), path)


def _mapping_getter(places: Mapping[str, str]) -> Callable[[ListenerResponse], Mapping[str, Any]]:
    if not isinstance(places, Mapping):
        raise TypeError(f"next is a mapping of names to paths, or a function, not {type(places).__name__}")
    paths = {name: parse_path(where) for name, where in places.items()}

    def find(answer: ListenerResponse) -> Mapping[str, Any]:
        value = answer.json()
        return {name: last_at(value, path) for name, path in paths.items()}

    return find


def _checked(position: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in position.items():
        if len(query_value(value)) > MAX_POSITION:
            raise UnusableResponse(f"the server gave a {name} of more than {MAX_POSITION} characters")
    return {name: value for name, value in position.items() if value is not None}


def _seconds(value: Any) -> float | None:
    return float(min(value, MAX_NOT_BEFORE)) if isinstance(value, int | float) and value >= 0 else None


def last_at(value: Any, steps: tuple[str, ...]) -> Any:
    """What stands at a path; of several, since lists are along the way, the last; `None`: nothing."""
    for at, step in enumerate(steps):
        if isinstance(value, list):
            found = (last_at(item, steps[at:]) for item in reversed(value) if isinstance(item, dict))
            return next((item for item in found if item is not None), None)
        value = value.get(step) if isinstance(value, dict) else None
    return value


def query_value(value: Any) -> str:
    """A JSON value as it stands in an address: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
