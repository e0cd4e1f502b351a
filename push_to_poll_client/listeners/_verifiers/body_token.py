"""WHETHER A BODY HAS WHAT ONLY THE SERVER WAS TOLD, in each item of a batch: Microsoft Graph's `clientState`."""

from collections.abc import Iterator
from typing import Any

from push_to_poll_client.listeners._paths import path_of
from push_to_poll_client.listeners._verifiers.comparing import AnyOf
from push_to_poll_client.listeners._verifiers.keys import Secrets, keys_of
from push_to_poll_client.listeners._webhook.request import Verifier, WebhookRequest

__all__ = ["token_in_body"]

MAX_ITEMS = 1000
"""Items of a batch that are looked at: about a millisecond. One with more is refused."""


def token_in_body(tokens: Secrets, path: str = "value.clientState") -> Verifier:
    """Every item of the JSON in the body has to have a token: Microsoft Graph's `clientState`, for one.

    A batch may hold items of several subscriptions; each of their tokens is given. One item without a token, or
    with another, and nothing of the batch is believed. Graph's lifecycle notifications have it too. A repetition
    cannot be told from a push, as whoever could repeat one knows the token.

    Args:
        tokens: The token, or several.
        path: Where it stands: names with dots between them; a list along the way stands for each of its items.

    Raises:
        TypeError: A token is neither `str` nor `bytes`, or the path is no `str`.
        ValueError: A token is empty, or a step of the path.
    """
    return _BodyToken(keys_of(tokens), path_of(path))


class _BodyToken:
    def __init__(self, tokens: tuple[bytes, ...], steps: tuple[str, ...]) -> None:
        self._tokens = AnyOf(tokens)
        self._steps = steps

    def __call__(self, request: WebhookRequest, /) -> bool:
        try:
            value = request.json()
        except ValueError:
            return False
        found = [leaf for leaf, _ in zip(_leaves(value, self._steps), range(MAX_ITEMS + 1), strict=False)]
        # `all` would stop at the first.
        return sum(self._is_token(leaf) for leaf in found) == len(found) <= MAX_ITEMS

    def __repr__(self) -> str:
        return f"<token at {'.'.join(self._steps)!r} in the body, {len(self._tokens)} secrets>"

    def _is_token(self, value: object) -> bool:
        return isinstance(value, str) and value.encode("utf-8", "surrogatepass") in self._tokens


def _leaves(value: Any, steps: tuple[str, ...]) -> Iterator[Any]:
    """What stands at a path in each item along it, at least one; what is no text where it leads nowhere."""
    for item in value if isinstance(value, list) and value else [value]:
        if not steps:
            yield item
        elif isinstance(item, dict):
            yield from _leaves(item.get(steps[0]), steps[1:])
        else:
            yield None
