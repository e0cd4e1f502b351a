"""Read the response to a long poll, and decide when to send the next request.

`LongPollReader` reads from a response whether there is news, the position for the next request, and how long the
server asks to wait, by the paths or functions that the user declared.

`Pace` limits the requests. A server that holds its responses sets the pace itself. A server that does not hold
them (it cannot, it is misconfigured, a proxy responds for it, the client sent an old cursor) would get requests as
fast as the network allows. Therefore:

A response with news costs a token of a `NewsPace` (`_backoff.py`). There are ten tokens, and a new one each
second: ten pushes in a row are passed on at once, and a server with news in every response gets one request a
second.

An early response without news costs a pause. The pause doubles with each further early response in a row:

    early in a row       1      2     3    4    5    6    7     8     9 and on
    seconds              0.25   0.5   1    2    4    8    16    32    60

A server that never holds a response gets 8 requests in the first 32 s, and then one a minute.
"""

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import msgspec

from push_to_poll_client._json import decode
from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client.listeners._backoff import RETRY_AFTER_JITTER, NewsPace
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


MAX_POSITION = 8192
"""Characters of the longest value that is sent back. CouchDB's have hundreds to a few thousand; servers refuse
longer addresses."""

NewsSource: TypeAlias = str | Callable[[ListenerResponse], object]
NextSource: TypeAlias = Mapping[str, str] | Callable[[ListenerResponse], Mapping[str, Any]]


class LongPollResult(NamedTuple):
    """The content of one response.

    Attributes:
        news: Whether there is something to poll for.
        position: Parameters to add to the next request.
        retry_after: Seconds that the server asks to wait. `None` if it does not ask.
    """

    news: bool
    position: Mapping[str, Any]
    retry_after: float | None


NO_NEWS = LongPollResult(news=False, position={}, retry_after=None)


class LongPollReader:
    """Reads responses by the declarations of a `LongPollListener`.

    Args:
        news: The path in the JSON where there is something if there is news, or a function of the response.
        next: Parameters of the next request and the paths in the JSON to their values, or a function of the
            response.
        retry_after: The path in the JSON to the seconds that the server asks to wait.

    Raises:
        TypeError: A path is not a `str`, or `next` is not a mapping.
        ValueError: A path has an empty step.
    """

    def __init__(self, news: NewsSource | None, next: NextSource | None, retry_after: str | None) -> None:
        self._is_news = _has_content if news is None else news if callable(news) else _path_getter(news)
        self._next = _nothing if next is None else next if callable(next) else _mapping_getter(next)
        self._get_retry_after = _nothing if retry_after is None else _path_getter(retry_after)

    def read(self, response: ListenerResponse) -> LongPollResult:
        """Read a successful response.

        Raises:
            UnusableResponse: The response is not JSON although a path was declared, its position is too long to be
                sent back, or a function of the user's failed.
        """
        if response.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            return NO_NEWS
        try:
            news, position = bool(self._is_news(response)), _checked(dict(self._next(response) or {}))
        except UnusableResponse:
            raise
        except Exception as error:  # noqa: BLE001 - functions may raise anything, and the text may hold a secret
            raise UnusableResponse(f"news or next failed with {type(error).__name__}") from None
        seconds = self._get_retry_after(response)
        if not isinstance(seconds, int | float) or seconds < 0:
            return LongPollResult(news, position, retry_after=None)
        return LongPollResult(news, position, float(min(seconds, MAX_NOT_BEFORE)))


def _has_content(response: ListenerResponse) -> bool:
    try:
        return decode(response.body) not in (None, False, [], {})
    except (ValueError, RecursionError):  # not JSON
        return True


def _nothing(_: ListenerResponse) -> None:
    return None


def _path_getter(path: str) -> Callable[[ListenerResponse], Any]:
    steps = parse_path(path)
    return lambda response: last_at(response.json(), steps)


def _mapping_getter(paths: Mapping[str, str]) -> Callable[[ListenerResponse], Mapping[str, Any]]:
    if not isinstance(paths, Mapping):
        raise TypeError(f"next is a mapping of names to paths, or a function, not {type(paths).__name__}")
    parsed = {name: parse_path(path) for name, path in paths.items()}

    def get(response: ListenerResponse) -> Mapping[str, Any]:
        value = response.json()
        return {name: last_at(value, steps) for name, steps in parsed.items()}

    return get


def _checked(position: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in position.items():
        if len(query_value(value)) > MAX_POSITION:
            raise UnusableResponse(f"the server gave a {name} of more than {MAX_POSITION} characters")
    return {name: value for name, value in position.items() if value is not None}


def last_at(value: Any, steps: tuple[str, ...]) -> Any:
    """Return the value at a path, the last one if there are lists along it; `None` if there is none."""
    for index, step in enumerate(steps):
        if isinstance(value, list):
            found = (last_at(item, steps[index:]) for item in reversed(value) if isinstance(item, dict))
            return next((item for item in found if item is not None), None)
        value = value.get(step) if isinstance(value, dict) else None
    return value


def query_value(value: Any) -> str:
    """Return a JSON value as it is sent in a query: a text unchanged, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


MIN_HOLD = 5.0
"""Seconds: a response without news is early if it was held for less time than this, and less than half of the time
for which it might have been held. A server that holds responses for just this long gets 12 requests a minute."""

FIRST_PAUSE = 0.25
"""Seconds after the first early response: a single one costs little."""

LONGEST_PAUSE = 60.0
"""Seconds: the default interval at which the consumer polls by itself."""

LONGEST_DOUBLING = 8
"""Doublings of the pause after which it is above the longest."""


class Pace:
    """The pauses of one channel between a response and the next request.

    Args:
        wait: Seconds for which the server may hold a response.
    """

    def __init__(self, wait: float) -> None:
        self._early = min(MIN_HOLD, wait / 2)
        self._early_in_a_row = 0
        self._news = NewsPace()
        self._not_before = -math.inf

    def is_early(self, held: float) -> bool:
        """Return whether a response without news that was held for so many seconds is early."""
        return held < self._early

    def answered(self, now: float, *, held: float, news: bool, retry_after: float | None, fraction: float) -> None:
        """Note a response, or that none came in time.

        Args:
            now: Seconds on a monotonic clock.
            held: Seconds from the request to its response.
            news: Whether the response had news.
            retry_after: Seconds that the server asks to wait, obeyed for a day at most. `None` if it does not ask.
            fraction: A random number, 0 ≤ fraction < 1. At most a fifth of `retry_after` is added.
        """
        early = self.is_early(held)
        if not early:
            self._early_in_a_row = 0
        pause = 0.0
        if news:
            pause = self._news.take(now)
        elif early:
            self._early_in_a_row += 1
            pause = min(FIRST_PAUSE * 2.0 ** min(self._early_in_a_row - 1, LONGEST_DOUBLING), LONGEST_PAUSE)
        requested = min(retry_after or 0.0, MAX_NOT_BEFORE) * (1 + RETRY_AFTER_JITTER * fraction)
        self._not_before = max(self._not_before, now + max(requested, pause))

    def pause(self, now: float) -> float:
        """Return the seconds from now until the next request."""
        return max(0.0, self._not_before - now)
