"""Mask the secrets of a client in text that comes from others (G12).

A server can say back what it was sent: it writes the URL that it was asked into a redirect, or quotes a header in
the reason for which it closes a connection. `Secrets` knows what one client sends that is secret. While the feed
or the listener of that client is at work (`hidden`), `mask` replaces it in each text from others, in whatever way
it is encoded. The functions that make such text safe to show call `mask`: `quoted`, `describe`, `one_line` and
`without_secrets`.

A secret of fewer than `MIN_SECRET` characters is not masked: it would hide ordinary words and numbers. Nor is a
part of a secret, as of a token that the server itself has cut off.
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

MIN_SECRET = 6
"""Characters of the shortest secret that is masked. Shorter ones are words and numbers of everyday text."""

MIN_UNNAMED_SECRET = 16
"""Characters from which the value of a header is taken for a secret, if the header's name does not say so. Shorter
ones are names of tenants and regions."""

MAX_RECENT = 32
"""Values that are known of those that change, newest last. A token is two, with its scheme and without. Sixteen
tokens are enough for most of a day of hourly ones, of which a server may still speak."""

MAX_MASKED = 64 * 1024
"""Characters of a text that are looked through; the rest is left out. What is shown of it has 500 at most."""


class Secrets:
    """The secrets that one client sends. Safe to use from several threads."""

    def __init__(self) -> None:
        self._fixed: dict[str, None] = {}
        self._recent: dict[str, None] = {}
        self._included: list[Secrets] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._fixed) + len(self._recent)})"

    def add(self, *values: str | None) -> None:
        """Know these values for good. One that is too short is ignored."""
        self._fixed.update((value, None) for value in values if value and len(value) >= MIN_SECRET)

    def add_recent(self, *values: str | None) -> None:
        """Know these values until `MAX_RECENT` others have come, as tokens that expire."""
        for value in values:
            if value and len(value) >= MIN_SECRET and value not in self._fixed:
                self._recent.pop(value, None)
                self._recent[value] = None
        for old in [*self._recent][:-MAX_RECENT]:
            self._recent.pop(old, None)

    def add_headers(self, headers: Mapping[str, str], *, recent: bool = False) -> None:
        """Know the values of those headers that may be secret."""
        add = self.add_recent if recent else self.add
        for name, value in headers.items():
            add(*_secrets_of_header(name, value))

    def add_url(self, url: object) -> None:
        """Know the password of a URL, and those values of its query that may be secret by their names."""
        with suppress(ValueError):
            rest, _, query = str(url).partition("#")[0].partition("?")
            rest = rest.partition("://")[2]
            authority, _, _ = rest.partition("/")
            is_whole = _HOST.fullmatch(authority.rpartition("@")[2])
            userinfo, at, _ = (authority if is_whole else rest).rpartition("@")
            if at:
                self.add(unquote(_password_of(userinfo)))
            for name, value in parse_qsl(query):  # a name may stand there twice
                self.add_body({name: value})

    def add_body(self, body: Any, list_name: object = "") -> None:
        """Know those values of a mapping, at any depth, whose names sound secret.

        Args:
            body: A mapping or a list.
            list_name: The name of a list, which is the name of each value in it.
        """
        values = body.items() if isinstance(body, Mapping) else ((list_name, value) for value in body)
        for name, value in values:
            if isinstance(value, str):
                if is_secret_name(str(name)):
                    self.add(value)
            elif isinstance(value, Mapping | list | tuple):
                self.add_body(value, name)

    def include(self, *others: "Secrets | None") -> None:
        """Know what others know, too, also what they come to know later."""
        self._included.extend(other for other in others if other is not None and other is not self)

    def values(self) -> Iterator[str]:
        """Yield all that is known."""
        yield from [*self._fixed, *self._recent]  # a copy: another thread may add one
        for other in self._included:
            yield from other.values()

    def mask(self, text: str) -> str:
        """Replace each secret in a text by `MASK`. Of a long text the beginning is kept."""
        return _mask(text, self.values())


def _mask(text: str, secrets: Iterable[str]) -> str:
    text = text[:MAX_MASKED]
    # The longest one first: another one may be a part of it, and the rest of it would be shown.
    for secret in sorted(set(secrets), key=len, reverse=True):
        text = pattern_of(secret).sub(MASK, text)
    return text


_PUBLIC_HEADERS = re.compile(
    "(accept|content|if)-.*|accept|cache-control|connection|date|expect|host|last-event-id|origin|pragma|prefer"
    "|range|te|traceparent|tracestate|trailer|transfer-encoding|upgrade|user-agent|via"
)

_SECRET_NAMES = (
    *("auth", "authorization", "cookie", "credential", "credentials", "jwt", "key", "passphrase", "password"),
    *("passwd", "pwd", "secret", "session", "sessionid", "sid", "sig", "signature", "token"),
)
"""Endings of the names of secrets, in lower case and with letters and digits alone: they fit `X-Api-Key`,
`accessToken` and `client_secret`."""

_HOST = re.compile(r"(\[[^@\]]*+\]|[^:@.]++\.[^:@]*+)(:\d*+)?+")
"""A host; an @ after it is in the path. Anything else before the first slash is the beginning of a user and a
password that has a slash."""

_COOKIE_VALUE = re.compile(r"=([^;]*)")


def is_secret_name(name: str) -> bool:
    """Return whether a header, a parameter or a field of this name may have a secret as its value."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).endswith(_SECRET_NAMES)


def _password_of(userinfo: str) -> str:
    user, _, password = userinfo.partition(":")
    return password or user  # some servers take the key as the name of a user without a password


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


_LONG_SECRET = 100
"""Characters. In a longer secret, letters and digits are looked for only as they are: they are never encoded, and
a pattern that allows for it takes milliseconds to make."""


@functools.lru_cache(maxsize=256)
def pattern_of(secret: str) -> re.Pattern[str]:
    """Make the pattern of a secret as it is, percent-encoded, and as a text in JSON, HTML or Python."""
    plain = len(secret) > _LONG_SECRET
    # A text has either all backslashes doubled or none. If each could be either, a text of backslashes could be
    # read in 2**n ways, and the server chooses the text.
    ways = (False, True) if "\\" in secret else (False,)
    patterns = (
        "".join(_pattern_of_char(char, plain=plain, doubled=doubled) for char in secret) for doubled in ways
    )
    # In any case, since the name of a host is shown in lower case.
    return re.compile("|".join(patterns), re.IGNORECASE)


def _pattern_of_char(char: str, *, plain: bool, doubled: bool) -> str:
    from html import escape  # the table of all entities, which comes with it, takes 2 ms to import

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
    """Mask these secrets in the text that is shown in the block, and by the tasks and threads that it starts."""
    known = _hidden.get()
    token = _hidden.set((*known, *(one for one in secrets if one not in known)))
    try:
        yield
    finally:
        # A coroutine may be destroyed long after its event loop has ended, in another context.
        with suppress(ValueError):
            _hidden.reset(token)


def mask(text: str) -> str:
    """Replace the secrets that are to be hidden here by `MASK`. Without any, the text stays as it is."""
    known = _hidden.get()
    return _mask(text, chain.from_iterable(secrets.values() for secrets in known)) if known else text


MAX_CHAIN = 20
"""Errors that are looked at of those that one was raised from."""


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, those that it was raised from (a cause before a context), and those of a group."""
    found, left = set[int](), [error]
    while left and len(found) < MAX_CHAIN:
        one = left.pop()
        if id(one) in found:  # a cause is mostly the context too, and errors can lead in a circle
            continue
        found.add(id(one))
        yield one
        left.extend(other for other in (one.__context__, one.__cause__) if other is not None)
        if isinstance(one, BaseExceptionGroup):
            left.extend(one.exceptions)


def shows_a_secret(error: BaseException) -> bool:
    """Return whether the text of an error, or of a cause of it, shows a secret that is hidden here."""
    return bool(_hidden.get()) and any(_text_shows(one) for one in error_chain(error))


def _text_shows(error: BaseException) -> bool:
    try:
        text = f"{error}{''.join(getattr(error, '__notes__', ()))}"
    except Exception:  # noqa: BLE001  # a text that cannot be read shows nothing
        return False
    return mask(text) != text[:MAX_MASKED]


def hide_in(error: BaseException) -> None:
    """Mask the secrets in an error of this library, and drop what it was raised from if that shows one."""
    if shows_a_secret(error):
        error.args = tuple(mask(one) if isinstance(one, str) else one for one in error.args)
        error.__cause__ = error.__context__ = None


def known_secrets(parts: Sequence[object]) -> tuple[Secrets, ...]:
    """Return what the feeds and listeners of this library among these objects know."""
    found = (getattr(part, "_known_secrets", None) for part in parts)
    return tuple(one for one in found if isinstance(one, Secrets))
