"""Verify a token or password in a header, or a token in the body.

A token proves less than a signature: anyone who has seen one request can forge others.
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
    """Verify that a header holds a token, such as Google's `X-Goog-Channel-Token`.

    Telegram uses `X-Telegram-Bot-Api-Secret-Token`, GitLab `X-Gitlab-Token`. The whole token is compared in
    constant time. Repetitions are not recognised: anyone who can repeat a request knows the token.

    Args:
        tokens: The token, or several that are all valid.
        header: Name of the header.

    Raises:
        TypeError: A token is neither `str` nor `bytes`, or `header` is not a `str`.
        ValueError: A token is empty, or `header` is not a valid header name.
    """
    return _HeaderToken(header_name(header), "", secret_bytes(tokens))


def bearer(tokens: Secrets) -> Verifier:
    """Verify the token in `Authorization: Bearer` (RFC 6750 §2.1).

    Args:
        tokens: The token, or several that are all valid.

    Raises:
        TypeError: A token is neither `str` nor `bytes`.
        ValueError: A token is empty.
    """
    return _HeaderToken("authorization", "bearer", secret_bytes(tokens))


def basic(user: str, password: Secrets) -> Verifier:
    """Verify user and password in `Authorization: Basic`, in UTF-8 (RFC 7617 §2.1).

    Args:
        user: User name, without a colon.
        password: The password, or several that are all valid.

    Raises:
        TypeError: `user` is not a `str`, or a password is neither `str` nor `bytes`.
        ValueError: A password is empty, or `user` contains a colon.
    """
    check_str("user", user)
    if ":" in user:
        raise ValueError("user must not contain a colon: a colon ends the user name (RFC 7617 §2)")
    pairs = [user.encode() + b":" + key for key in secret_bytes(password)]
    return _HeaderToken(
        "authorization", "basic", tuple(binascii.b2a_base64(pair, newline=False) for pair in pairs)
    )


def no_verification() -> Verifier:
    """Accept every request. Only for closed networks and for trying things out.

    Anyone who knows the address can wake the consumer, up to the rate limit, and can choose the content of hints.
    They cannot make the consumer process or lose a message.
    """
    return lambda _request: True


class _HeaderToken:
    """Accepts a header whose value is a token, alone or after a scheme (RFC 9110 §11.4)."""

    def __init__(self, header: str, scheme: str, tokens: tuple[bytes, ...]) -> None:
        self._header = header
        self._scheme = scheme
        self._tokens = TokenSet(tokens)

    def may_pass(self, request: WebhookRequest) -> bool:
        """Return the final result: the headers alone decide."""
        return self(request)

    def __call__(self, request: WebhookRequest, /) -> bool:
        value = request.headers.get(self._header, "")  # no token is empty
        if self._scheme:
            scheme, _, token = value.partition(" ")
            # Another scheme leaves an empty text, and no token is empty.
            value = token.lstrip(" ") if scheme.lower() == self._scheme else ""
        return header_bytes(value) in self._tokens


MAX_ITEMS = 1000
"""Items of a batch whose tokens are compared, within about 1 ms. A larger batch is rejected."""


def token_in_body(tokens: Secrets, path: str = "value.clientState") -> Verifier:
    """Verify a token in every item of the JSON body, such as Microsoft Graph's `clientState`.

    A batch may hold items of several subscriptions; pass the tokens of all. If one item has no token or a wrong
    one, the whole batch is rejected. Graph's lifecycle notifications have the token too. Repetitions are not
    recognised: anyone who can repeat a request knows the token.

    The body is read before it is verified. Only the value at the path is decoded: 1 MiB takes at most 4 ms,
    whatever it contains (HMAC-SHA256 takes 0.6 to 3 ms).

    Args:
        tokens: The token, or several that are all valid.
        path: Path of the token: names separated by dots. A list along the path stands for each of its items.

    Raises:
        TypeError: A token is neither `str` nor `bytes`, or `path` is not a `str`.
        ValueError: A token is empty, or a step of the path is empty or contains a quote, a backslash or a control
            character.
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
    """Return a decoder that builds only the value at a path, and raises for any other body."""
    # A stranger can send any JSON. Built in full, 1 MiB of `[[],[],...]` would take 0.1 s, and one of `1e300`
    # almost 2 s. msgspec skips unknown fields and stops at the first value of a wrong type.
    kind: Any = str
    for step in reversed(steps):
        # With `gc=False` the garbage collector has no work with these objects.
        try:
            level = defstruct("Level", [("item", kind)], rename={"item": step}, gc=False)
        except ValueError:
            raise ValueError(
                f"a step of a path must not contain quotes, backslashes or control characters, got {step!r}"
            ) from None
        kind = level | Annotated[list[level], Meta(min_length=1)]  # type: ignore[valid-type]
    return Decoder(kind).decode


def _texts(value: Any) -> Iterator[str]:
    """Yield the tokens in a value that the decoder built."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item
        else:
            yield from _texts(item.item)
