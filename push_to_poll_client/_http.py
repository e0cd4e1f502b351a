"""HTTP manners that feeds and listeners share: what may be shown of a URL, and when the server wants to be asked.

Nothing here does I/O, and nothing here raises on what a server or a user wrote.
"""

import functools
import hashlib
import re
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from push_to_poll_client._types import MAX_NOT_BEFORE

__all__ = [
    "BAD_REDIRECT",
    "asked_to_wait",
    "http_date",
    "identity",
    "is_header_name",
    "is_header_value",
    "shared_tls_context",
    "without_secrets",
]

BAD_REDIRECT = "a redirect to no URL"
"""The text of the error that our own client raises for such an answer."""

is_header_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
"""Whether it may name a header (RFC 9110 §5.6.2)."""

is_header_value = re.compile(r"[\t -~]*").fullmatch
"""Whether it can be sent as a header's value: h11 refuses others, and shows them in its error. A line break would
let a value add headers of its own (RFC 9110 §5.5)."""

_MAX_SHOWN = 300  # characters of a URL in a log line
_EPOCH = 1e9  # a reset above this is a date (2001 and later), below it a delay (30 years and less)
_MILLISECONDS = 1e11  # a date above this would be after the year 5000: it is in milliseconds

# RFC 3986 appendix B, which splits every string there is.
_URL = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?")
# What is left of an authority without userinfo; anything else may hide a password and is not shown.
_HOST = re.compile(r"(?:\[[0-9A-Za-z:.%]+\]|[^\s:@\\\[\]]+)(?::[0-9]*)?")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")  # \d would take digits of every script

# RFC 9651 §3.1: one member of a list, a string or token with parameters. Possessive, hence linear.
_STRING = r'"(?:[^"\\]|\\.)*+"'
_PARAMETER = rf"; *([a-z*][a-z0-9_.*-]*+)(?:=({_STRING}|[^\s;,\"]++))?"
_MEMBER = re.compile(rf"[ \t]*(?:{_STRING}|[A-Za-z*][^\s;,\"]*+)(?P<parameters>(?:{_PARAMETER})*+)[ \t]*(?:,|$)")

# The same as an earlier draft had it, a dictionary: limit=100, remaining=0, reset=30
_OLD_MEMBER = re.compile(r"(?:^|,)[ \t]*+(remaining|reset)=([0-9]++)")

_VENDORS = ("x-ratelimit", "x-rate-limit", "ratelimit")
_ASKING = {"backoff", "ratelimit", "retry-after", "x-poll-interval"} | {f"{name}-reset" for name in _VENDORS}
"""The headers by which a server asks to be left alone; each way has one of them."""

SECOND_LIMIT = 60.0
"""Seconds that GitHub wants at least, when a second limit is exceeded and nothing says for how long."""


def without_secrets(url: object) -> str:
    """A URL as it may stand in errors, logs, `repr` and status.

    Args:
        url: A `str`, or what `str()` makes a URL of. Garbage is welcome.

    Returns:
        Scheme, host, port and path, without userinfo and fragment; of the query the names, each value replaced
        by "…". At most 300 characters, all printable.
    """
    shown, _ = _parts(str(url))
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 1] + "…"


def identity(url: object) -> str:
    """What tells one feed from another, without secrets.

    Args:
        url: As for `without_secrets`.

    Returns:
        The URL without secrets, and if it has a query a digest of it: two feeds that differ in their queries
        differ here. A secret in the query becomes part of what the feed is, so it belongs in a header.
    """
    shown, query = _parts(str(url))
    if not query:
        return shown
    return f"{shown}#{hashlib.sha256(query.encode(errors='surrogatepass')).hexdigest()[:8]}"


@functools.cache
def shared_tls_context() -> ssl.SSLContext:
    """The one TLS context of the process: each would cost 840 KiB and tens of milliseconds."""
    return httpx.create_ssl_context()


def asked_to_wait(
    status: int, headers: Mapping[str, str], wall_clock: float, *, within_poll: bool = False
) -> float | None:
    """How long the server asks to be left alone.

    Read are `Retry-After` (RFC 9110 §10.2.3), `Backoff` (Mozilla), `X-Poll-Interval` (GitHub), `RateLimit`
    (draft-ietf-httpapi-ratelimit-headers, also as its version 7 had it) and the vendors' `RateLimit-Remaining` and
    `-Reset`, with `X-RateLimit-` and `X-Rate-Limit-` too. They may come with any status, also with success.
    `Retry-After` wins over rate limits, as the draft demands; of what remains the largest counts. Ignored is what
    is malformed, and `RateLimit-Policy`, which says how much and not when.

    429 that tells of a quota which is not used up speaks of another one, and means a minute: GitHub's second
    limit. The same with 403 cannot be told from a refusal, which is left alone for five. 429 without a word says
    no time; whoever asks then waits a second, and longer each time.

    Args:
        status: The answer's status.
        headers: Its headers, by lower-case names or in a mapping that ignores case.
        wall_clock: Now, in seconds since the epoch, for dates in an answer that has no `Date` of its own.
        within_poll: Before a further page of the same poll: `X-Poll-Interval` is from one poll to the next.

    Returns:
        Seconds from now, 0 for a date that has passed, at most `MAX_NOT_BEFORE`; `None`: the server did not ask.
    """
    if _ASKING.isdisjoint(map(str.lower, headers)):
        return None
    waits = [_number(headers, "backoff"), None if within_poll else _number(headers, "x-poll-interval")]
    now = http_date(headers, "date")
    now = wall_clock if now is None else now  # the server's clock, since its dates are by it
    retry_after = _retry_after(headers, now)
    if retry_after is not None:
        waits.append(retry_after)
    elif _header(headers, "age") is None:  # a cache's copy: the quota is somebody else's
        waits += [*_rate_limit(headers), *_rate_limit_reset(status, headers, now)]
    return max((min(wait, MAX_NOT_BEFORE) for wait in waits if wait is not None), default=None)


def http_date(headers: Mapping[str, str], name: str) -> float | None:
    """What a header says in any of the three forms of an HTTP date (RFC 9110 §5.6.7).

    Returns:
        Seconds since the epoch; `None`: the header is not there, or is no date.
    """
    value = _header(headers, name)
    if not value or not value[0].isalpha():  # each form begins with a weekday; the parser takes much more
        return None
    try:
        date = parsedate_to_datetime(value)
        # The asctime form has no zone and means UTC; Python would take it for local time.
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, LookupError, ArithmeticError):
        return None


def _parts(url: str) -> tuple[str, str]:
    """The URL as it may be shown, and its query."""
    scheme, authority, path, query = _URL.findall(url)[0]
    host = authority.rpartition("@")[2]
    if not scheme or not _HOST.fullmatch(host):
        return "(not a URL)", url
    names = "&".join(_name(field) for field in re.split("[&;]", query))
    shown = f"{scheme.lower()}://{host.lower()}{path}" + (f"?{names}" if query else "")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown), query


def _name(field: str) -> str:
    name, equals, _ = field.partition("=")
    return f"{name}=…" if equals else "…"  # a field without "=" is as likely a key to something as a name


def _header(headers: Mapping[str, str], name: str) -> str | None:
    try:
        value = headers.get(name)
    except LookupError:  # websockets: the header is there twice, so neither can be believed
        return None
    return None if value is None else value.strip(" \t")


def _number(headers: Mapping[str, str], name: str) -> float | None:
    value = _header(headers, name)
    return float(value) if value is not None and _NUMBER.fullmatch(value) else None


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    delay = _number(headers, "retry-after")
    date = http_date(headers, "retry-after")
    return delay if date is None else max(0.0, date - now)


def _rate_limit(headers: Mapping[str, str]) -> list[float]:
    """Of each policy without quota left (`r=0`) the seconds until there is more (`t`)."""
    value = _header(headers, "ratelimit") or ""
    old = dict(_OLD_MEMBER.findall(value))
    if old.keys() >= {"remaining", "reset"}:
        return [] if old["remaining"].strip("0") else [float(old["reset"])]
    at, waits = 0, list[float]()
    while at < len(value):
        member = _MEMBER.match(value, at)
        if member is None:
            return []  # RFC 9651 §4.2: malformed in one place, ignored as a whole
        at = member.end()
        given = dict(re.findall(_PARAMETER, member["parameters"]))
        if _NUMBER.fullmatch(given.get("t", "")) and re.fullmatch("0+", given.get("r", "")):
            waits.append(float(given["t"]))
    return waits


def _rate_limit_reset(status: int, headers: Mapping[str, str], now: float) -> Iterator[float]:
    """The vendors' headers, whose reset is a date with some and a delay with others."""
    refused = status == httpx.codes.TOO_MANY_REQUESTS
    for name in _VENDORS:
        remaining = _number(headers, f"{name}-remaining")
        reset = _number(headers, f"{name}-reset")
        if remaining and refused:
            yield SECOND_LIMIT
        elif reset is not None and (refused or remaining == 0):
            date = reset / 1000 if reset > _MILLISECONDS else reset
            yield max(0.0, date - now) if reset > _EPOCH else reset
