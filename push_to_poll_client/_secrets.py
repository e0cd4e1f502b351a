"""Mask a client's secrets in foreign text (G12).

A server can return what it was sent: it copies the request's URL into a redirect, or quotes a header in the reason
for closing a connection. `Secrets` holds the secret values that one client sends. While that client's feed or
listener works (`hidden`), `mask` replaces these values in all foreign text, in whatever way they are encoded. The
functions that make text safe to show call `mask`: `quoted`, `describe`, `one_line` and `without_secrets`.

Not masked: secrets shorter than `MIN_SECRET`, which would hide ordinary words and numbers, and parts of a secret,
such as a token that the server has cut off.
"""

import base64
import binascii
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import chain
from typing import Any
from urllib.parse import parse_qsl, unquote

MASK = "***"

# Characters of the shortest secret that is masked. Shorter ones are ordinary words and numbers.
MIN_SECRET = 6

# Characters from which a header's value counts as a secret although its name does not suggest one. Shorter values
# are names of tenants and regions.
MIN_UNNAMED_SECRET = 16

# Changing values that are remembered. A token counts twice, with and without its scheme. Sixteen hourly tokens
# cover most of a day, in which a server may still mention them.
MAX_RECENT = 32

# Characters of a text that are searched; the rest is dropped. At most 500 of them are shown.
MAX_MASKED = 64 * 1024


class Secrets:
    """The secrets that one client sends. Thread-safe."""

    def __init__(self) -> None:
        self._fixed: dict[str, None] = {}
        self._recent: dict[str, None] = {}
        self._included: list[Secrets] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._fixed) + len(self._recent)})"

    def add(self, *values: str | None) -> None:
        """Add values for good; too short ones are ignored."""
        self._fixed.update((value, None) for value in values if value and len(value) >= MIN_SECRET)

    def add_recent(self, *values: str | None) -> None:
        """Add values that change, such as tokens; the oldest are dropped after `MAX_RECENT`."""
        for value in values:
            if value and len(value) >= MIN_SECRET and value not in self._fixed:
                self._recent.pop(value, None)
                self._recent[value] = None
        for old in [*self._recent][:-MAX_RECENT]:
            self._recent.pop(old, None)

    def add_headers(self, headers: Mapping[str, str], *, recent: bool = False) -> None:
        """Add the header values that may be secret."""
        add = self.add_recent if recent else self.add
        for name, value in headers.items():
            add(*_secrets_of_header(name, value))

    def add_url(self, url: object) -> None:
        """Add a URL's password, and the query values whose names suggest a secret."""
        with suppress(ValueError):
            rest, _, query = str(url).partition("#")[0].partition("?")
            rest = rest.partition("://")[2]
            authority, _, _ = rest.partition("/")
            is_whole = _HOST.fullmatch(authority.rpartition("@")[2])
            userinfo, at, _ = (authority if is_whole else rest).rpartition("@")
            if at:
                self.add(unquote(_password_of(userinfo)))
            for name, value in parse_qsl(query):  # a name can occur twice
                self.add_body({name: value})

    def add_body(self, body: Any, list_name: object = "") -> None:
        """Add the values, at any depth, whose names suggest a secret."""
        # The values in a list have the name of the list.
        values = body.items() if isinstance(body, Mapping) else ((list_name, value) for value in body)
        for name, value in values:
            if isinstance(value, str):
                if is_secret_name(str(name)):
                    self.add(value)
            elif isinstance(value, Mapping | list | tuple):
                self.add_body(value, name)

    def include(self, *others: "Secrets | None") -> None:
        """Include the present and future values of others."""
        self._included.extend(other for other in others if other is not None and other is not self)

    def values(self) -> Iterator[str]:
        yield from [*self._fixed, *self._recent]  # copied, because another thread may add one
        for other in self._included:
            yield from other.values()

    def mask(self, text: str) -> str:
        """Replace each secret in a text by `MASK`; a long text is cut."""
        return _mask(text, self.values())


def _mask(text: str, secrets: Iterable[str]) -> str:
    text = text[:MAX_MASKED]
    # The longest first: another secret may be a part of it, and the rest would be shown.
    for secret in sorted(set(secrets), key=len, reverse=True):
        text = pattern_of(secret).sub(MASK, text)
    return text


_PUBLIC_HEADERS = re.compile(
    "(accept|content|if)-.*|accept|cache-control|connection|date|expect|host|last-event-id|origin|pragma|prefer"
    "|range|te|traceparent|tracestate|trailer|transfer-encoding|upgrade|user-agent|via"
)

# Endings of the names of secrets, as lower-case letters and digits: they match `X-Api-Key`, `accessToken` and
# `client_secret`.
_SECRET_NAMES = (
    *("auth", "authorization", "cookie", "credential", "credentials", "jwt", "key", "passphrase", "password"),
    *("passwd", "pwd", "secret", "session", "sessionid", "sid", "sig", "signature", "token"),
)

# A host; an @ after it belongs to the path. Anything else before the first slash starts a user and password that
# contain a slash.
_HOST = re.compile(r"(\[[^@\]]*+\]|[^:@.]++\.[^:@]*+)(:\d*+)?+")

_COOKIE_VALUE = re.compile(r"=([^;]*)")


def is_secret_name(name: str) -> bool:
    """Return True if a header, parameter or field of this name may be secret."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).endswith(_SECRET_NAMES)


def _password_of(userinfo: str) -> str:
    user, _, password = userinfo.partition(":")
    return password or user  # some servers take the key as the user name, without a password


def _secrets_of_header(name: str, value: str) -> Iterator[str]:
    name = name.lower()
    if _PUBLIC_HEADERS.fullmatch(name):
        return
    if is_secret_name(name) or (len(value) >= MIN_UNNAMED_SECRET and " " not in value):
        yield value
    scheme, space, credentials = value.partition(" ")
    if space and is_secret_name(name):  # RFC 9110 §11.4
        yield credentials.strip().rstrip("=")
        if scheme.lower() == "basic":
            with suppress(binascii.Error, UnicodeDecodeError):
                yield _password_of(base64.b64decode(credentials, validate=True).decode())
    if name == "cookie":
        yield from (cookie.strip() for cookie in _COOKIE_VALUE.findall(value))


# Characters. The letters and digits of a longer secret are searched only unencoded: they are never encoded, and
# a pattern that allows it takes milliseconds to compile.
_LONG_SECRET = 100


@functools.lru_cache(maxsize=256)
def pattern_of(secret: str) -> re.Pattern[str]:
    """Compile a pattern that matches a secret in its usual encodings."""
    plain = len(secret) > _LONG_SECRET
    # Either all backslashes are doubled or none. With a choice for each, a text of n backslashes could be matched
    # in 2**n ways, and the server chooses the text.
    ways = (False, True) if "\\" in secret else (False,)
    patterns = (
        "".join(_pattern_of_char(char, plain=plain, doubled=doubled) for char in secret) for doubled in ways
    )
    # Ignore case: host names are shown in lower case.
    return re.compile("|".join(patterns), re.IGNORECASE)


def _pattern_of_char(char: str, *, plain: bool, doubled: bool) -> str:
    from html import escape  # its table of entities takes 2 ms to import

    unreserved = char.isascii() and (char.isalnum() or char in "-._~")
    if plain and unreserved:
        return re.escape(char)
    as_it_is = char * 2 if doubled and char == "\\" else char
    forms = {as_it_is, f"%{char.encode(errors='surrogatepass').hex('%')}"}
    if not unreserved:
        units = char.encode("utf-16-be", errors="surrogatepass").hex()
        forms |= {"".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))}
        forms |= {f"\\x{ord(char):02x}", f"\\U{ord(char):08x}", f"&#{ord(char)};"}
        forms |= {"+"} if char == " " else set()
        forms |= {f"\\{char}", escape(char)} if char != "\\" else set()
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"


_hidden: ContextVar[tuple[Secrets, ...]] = ContextVar("push_to_poll_client_secrets", default=())


@contextmanager
def hidden(*secrets: Secrets) -> Iterator[None]:
    """Mask these secrets in the block and in the tasks that it starts."""
    known = _hidden.get()
    token = _hidden.set((*known, *(one for one in secrets if one not in known)))
    try:
        yield
    finally:
        # A coroutine can be destroyed after its event loop has ended, in another context.
        with suppress(ValueError):
            _hidden.reset(token)


def mask(text: str) -> str:
    """Replace the currently hidden secrets by `MASK`."""
    known = _hidden.get()
    return _mask(text, chain.from_iterable(secrets.values() for secrets in known)) if known else text


# Errors of a chain of causes that are searched.
MAX_CHAIN = 20


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its causes and contexts, and the members of a group."""
    found, left = set[int](), [error]
    while left and len(found) < MAX_CHAIN:
        one = left.pop()
        if id(one) in found:  # a cause is often the context too, and errors can form a circle
            continue
        found.add(id(one))
        yield one
        left.extend(other for other in (one.__context__, one.__cause__) if other is not None)
        if isinstance(one, BaseExceptionGroup):
            left.extend(one.exceptions)


def shows_a_secret(error: BaseException) -> bool:
    """Return True if an error or a cause of it shows a secret."""
    return bool(_hidden.get()) and any(_text_shows(one) for one in error_chain(error))


def _text_shows(error: BaseException) -> bool:
    try:
        text = f"{error}{''.join(getattr(error, '__notes__', ()))}"
    except Exception:  # noqa: BLE001  # an unreadable text shows nothing
        return False
    return mask(text) != text[:MAX_MASKED]


def hide_in(error: BaseException) -> None:
    """Mask an error of this library, and drop causes that show a secret."""
    if shows_a_secret(error):
        error.args = tuple(mask(one) if isinstance(one, str) else one for one in error.args)
        error.__cause__ = error.__context__ = None


def known_secrets(parts: Sequence[object]) -> tuple[Secrets, ...]:
    """Return the secrets of the library's feeds and listeners among these objects."""
    found = (getattr(part, "_known_secrets", None) for part in parts)
    return tuple(one for one in found if isinstance(one, Secrets))
