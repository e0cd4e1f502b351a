"""WHAT A LONG POLL SAYS: whether there is news, where to go on, and how long to leave the server alone."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import msgspec

from push_to_poll_client._json import decode
from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client.listeners._asking import Answer, UnusableAnswer
from push_to_poll_client.listeners._paths import path_of

__all__ = ["NO_NEWS", "News", "Next", "Reader", "Said", "last_at", "text_of"]

MAX_POSITION = 8192
"""Characters of what is sent back. CouchDB's are hundreds to a few thousand; servers refuse longer addresses."""

News: TypeAlias = str | Callable[[Answer], object]
Next: TypeAlias = Mapping[str, str] | Callable[[Answer], Mapping[str, Any]]


class Said(NamedTuple):
    """What one answer said.

    Attributes:
        news: Whether there is something to poll for.
        position: What the next request says beside what all of them do.
        retry_after: Seconds for which the server asks to be left alone; `None`: it does not.
    """

    news: bool
    position: Mapping[str, Any]
    retry_after: float | None


NO_NEWS = Said(news=False, position={}, retry_after=None)


class Reader:
    """Reads answers as it was declared.

    Args:
        news: Where in the JSON something stands when there is news, or a function of the answer.
        next: Names, and where in the JSON the values stand that the next request is to give them, or a function.
        retry_after: Where in the JSON stands for how many seconds to leave the server alone.

    Raises:
        TypeError: A path is no `str`, or `next` no mapping.
        ValueError: A path has an empty step.
    """

    def __init__(self, news: News | None, next: Next | None, retry_after: str | None) -> None:
        self._is_news = _says_something if news is None else news if callable(news) else _finds(news)
        self._next = _nothing if next is None else next if callable(next) else _finds_all(next)
        self._asks_to_wait = _nothing if retry_after is None else _finds(retry_after)

    def read(self, answer: Answer) -> Said:
        """What a success says.

        Raises:
            UnusableAnswer: It is no JSON although something was declared to stand there, its position is too long
                to be sent back, or a function of the user's failed.
        """
        if answer.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            return NO_NEWS
        try:
            news, position = bool(self._is_news(answer)), _checked(dict(self._next(answer) or {}))
        except UnusableAnswer:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is; its text may hold a secret
            raise UnusableAnswer(f"news or next failed with {type(error).__name__}") from None
        return Said(news, position, _seconds(self._asks_to_wait(answer)))


def _says_something(answer: Answer) -> bool:
    try:
        return decode(answer.body) not in (None, False, [], {})
    except (ValueError, RecursionError):  # not in JSON
        return True


def _nothing(_: Answer) -> None:
    return None


def _finds(where: str) -> Callable[[Answer], Any]:
    path = path_of(where)
    return lambda answer: last_at(answer.json(), path)


def _finds_all(places: Mapping[str, str]) -> Callable[[Answer], Mapping[str, Any]]:
    if not isinstance(places, Mapping):
        raise TypeError(f"next is a mapping of names to paths, or a function, not {type(places).__name__}")
    paths = {name: path_of(where) for name, where in places.items()}

    def find(answer: Answer) -> Mapping[str, Any]:
        value = answer.json()
        return {name: last_at(value, path) for name, path in paths.items()}

    return find


def _checked(position: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in position.items():
        if len(text_of(value)) > MAX_POSITION:
            raise UnusableAnswer(f"the server gave a {name} of more than {MAX_POSITION} characters")
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


def text_of(value: Any) -> str:
    """A JSON value as it stands in an address: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
