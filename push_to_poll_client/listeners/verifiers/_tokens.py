"""Verify a token or a password in a header, or a token in the body.

A token proves less than a signature: anyone who has seen one request has the token, and can write requests.
"""

import binascii
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any

from msgspec import Meta, defstruct
from msgspec.json import Decoder

from push_to_poll_client._json import DECODE_ERRORS
from push_to_poll_client._validation import check_str
from push_to_poll_client.listeners._hints import parse_path
from push_to_poll_client.listeners._webhook.types import Verifier, WebhookRequest
from push_to_poll_client.listeners.verifiers._hmac import (
    Secrets,
    TokenSet,
    header_bytes,
    header_name,
    secret_bytes,
)


def header_token(tokens: Secrets, header: str = "X-Goog-Channel-Token") -> Verifier:
    """A header has to be a token that the server was given: Google's `X-Goog-Channel-Token`, for one.

    Telegram's is `X-Telegram-Bot-Api-Secret-Token`, GitLab's `X-Gitlab-Token`. The token is compared in constant
    time, whole. A repetition cannot be told from a push, as whoever could repeat one knows the token.

    Args:
        tokens: The token, or several.
        header: Where it stands.

    Raises:
        TypeError: A token is neither `str` nor `bytes`, or the header is no `str`.
        ValueError: A token is empty, or the header has no name of one.
    """
    return _HeaderToken(header_name(header), "", secret_bytes(tokens))


def bearer(tokens: Secrets) -> Verifier:
    """`Authorization: Bearer` has to be a token (RFC 6750 §2.1).

    Args:
        tokens: The token, or several.

    Raises:
        TypeError: A token is neither `str` nor `bytes`.
        ValueError: A token is empty.
    """
    return _HeaderToken("authorization", "bearer", secret_bytes(tokens))


def basic(user: str, password: Secrets) -> Verifier:
    """`Authorization: Basic` has to be a user and a password, in UTF-8 (RFC 7617 §2.1).

    Args:
        user: Without a colon, which would end it.
        password: Theirs, or several of which each serves.

    Raises:
        TypeError: The user is no `str`, or a password is neither `str` nor `bytes`.
        ValueError: A password is empty, or the user has a colon in it.
    """
    check_str("user", user)
    if ":" in user:
        raise ValueError("user has a colon in it, which would end it (RFC 7617 §2)")
    pairs = [user.encode() + b":" + key for key in secret_bytes(password)]
    return _HeaderToken(
        "authorization", "basic", tuple(binascii.b2a_base64(pair, newline=False) for pair in pairs)
    )


def no_verification() -> Verifier:
    """Whoever sends a request is believed. For networks in which nobody else can, and for trying things out.

    Everybody who knows the address can then wake the consumer, as often as the rate limit allows, and write what
    the hint says. Nobody can thereby make it process or lose a message, or poll more often than that limit.
    """
    return lambda _request: True


class _HeaderToken:
    """Takes a header whose value is a token, alone or after a scheme (RFC 9110 §11.4)."""

    def __init__(self, header: str, scheme: str, tokens: tuple[bytes, ...]) -> None:
        self._header = header
        self._scheme = scheme
        self._tokens = TokenSet(tokens)

    def may_pass(self, request: WebhookRequest) -> bool:
        """Return whether a request is authentic, which the headers alone tell."""
        return self(request)

    def __call__(self, request: WebhookRequest, /) -> bool:
        value = request.headers.get(self._header, "")  # no token is empty
        if self._scheme:
            scheme, _, token = value.partition(" ")
            # Another scheme leaves an empty text, which no token is.
            value = token.lstrip(" ") if scheme.lower() == self._scheme else ""
        return header_bytes(value) in self._tokens


MAX_ITEMS = 1000
"""Items of a batch whose tokens are compared, in about a millisecond. A batch with more is refused."""


def token_in_body(tokens: Secrets, path: str = "value.clientState") -> Verifier:
    """Every item of the JSON in the body has to have a token: Microsoft Graph's `clientState`, for one.

    A batch may hold items of several subscriptions; each of their tokens is given. One item without a token, or
    with another, and nothing of the batch is believed. Graph's lifecycle notifications have it too. A repetition
    cannot be told from a push, as whoever could repeat one knows the token.

    The body has to be read before it is authentic. Only what stands at the path is decoded, the rest is skipped:
    a MiB takes at most 4 ms, whatever is in it (HMAC-SHA256 takes 0.6 to 3 ms).

    Args:
        tokens: The token, or several.
        path: Where it stands: names with dots between them; a list along the way stands for each of its items.

    Raises:
        TypeError: A token is neither `str` nor `bytes`, or the path is no `str`.
        ValueError: A token is empty, or a step of the path is empty or has a quote, a backslash or a control
            character in it.
    """
    known, decode_tokens = TokenSet(secret_bytes(tokens)), _decoder_for(parse_path(path))

    def verify(request: WebhookRequest) -> bool:
        try:
            value = decode_tokens(request.body)
        except DECODE_ERRORS:
            return False
        found = list(islice(_texts(value), MAX_ITEMS + 1))
        # `all` would stop at the first.
        return sum(one.encode() in known for one in found) == len(found) <= MAX_ITEMS

    return verify


@lru_cache(maxsize=32)  # `CustomSubscription` makes a verifier for each new secret
def _decoder_for(steps: tuple[str, ...]) -> Callable[[bytes], Any]:
    """Return a decoder that builds only what leads to a text at a path, and raises for any other body.

    A stranger can send any JSON. If all of it were built, a MiB of `[[],[],...]` would take 0.1 s, and one of
    `1e300` almost 2 s. msgspec skips fields that a type does not have, and stops at the first value of a wrong
    type.
    """
    kind: Any = str
    for step in reversed(steps):
        # With `gc=False` the garbage collector has no work with these objects.
        try:
            level = defstruct("Level", [("item", kind)], rename={"item": step}, gc=False)
        except ValueError:
            raise ValueError(
                f"a step of a path has no quotes, backslashes or control characters, got {step!r}"
            ) from None
        kind = level | Annotated[list[level], Meta(min_length=1)]  # type: ignore[valid-type]
    return Decoder(kind).decode


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts at the path in a value that the decoder built."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item
        else:
            yield from _texts(item.item)
