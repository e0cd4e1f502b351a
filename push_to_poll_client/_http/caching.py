"""Read the headers of HTTP caching: `Cache-Control`, `ETag` and `Last-Modified` (RFC 9110, RFC 9111).

While a response is fresh (`max-age`), the same request is not sent. Later it is sent with the validators of the
last response, and the server answers 304 if nothing changed.

Validators are stored elsewhere: in memory by `feeds/_base.py`, or in the saved cursor of a newest-first feed.
"""

import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from push_to_poll_client._http.headers import http_date, is_header_value

MAX_FRESH = 3600.0
"""Longest freshness in seconds. A default for static files may say a year by mistake."""

# RFC 9110 §5.6: possessive, hence linear. A string that does not end ends with the field.
_MEMBER = re.compile(r'((?:[^,"]++|"(?:[^"\\]++|\\.)*+"?+)*+),?+', re.DOTALL)
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_DIRECTIVE = re.compile(rf'[ \t]*+({_WORD})(?:[ \t]*+=[ \t]*+(?:({_WORD})|"([^"]*+)"))?+[ \t]*+')
_SECONDS = re.compile(r"[0-9]+")

_UNCACHEABLE = frozenset({"no-cache", "no-store"})


def directives(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the `Cache-Control` directives by lower-case name, each with its unquoted argument or ""."""
    # Malformed members are skipped. Contradicting directives lose their arguments: the response may then count as
    # stale (RFC 9111 §4.2.1).
    given: dict[str, str] = {}
    for member in _MEMBER.findall(headers.get("cache-control", "")):
        found = _DIRECTIVE.fullmatch(member)
        if found is not None:
            name, argument = found[1].lower(), found[2] or found[3] or ""
            given[name] = argument if given.get(name, argument) == argument else ""
    return given


def fresh_for(headers: Mapping[str, str]) -> float:
    """Return for how many seconds a request can only return the same response: `max-age` minus `Age`."""
    # RFC 9111 §5.2.2.1. `Expires` is ignored: old web servers send it with everything.
    given = directives(headers)
    max_age, age = given.get("max-age", ""), headers.get("age", "0")
    if not (_SECONDS.fullmatch(max_age) and _SECONDS.fullmatch(age)) or not given.keys().isdisjoint(_UNCACHEABLE):
        return 0.0
    return max(0.0, min(float(max_age) - float(age), MAX_FRESH))


def cache_bypass_headers(*, bypass_cache: bool) -> dict[str, str]:
    """Return the header that makes caches ask the server (RFC 9111 §5.2.1.4), or nothing."""
    return {"cache-control": "no-cache"} if bypass_cache else {}


def is_cacheable(headers: Mapping[str, str]) -> bool:
    """Return True if `Cache-Control` allows storing the response (RFC 9110 §15.1)."""
    given = directives(headers)
    return given.keys().isdisjoint(_UNCACHEABLE) and given.get("max-age") != "0"


MAX_VALIDATOR = 1024
"""Longest validator in characters: it may be saved with each cursor. ETags have 20 to 100."""

# RFC 9110 §8.8.3, and ETags that some servers write without quotes. Never "*", which matches every response.
_ETAG = re.compile(r'(?:W/)?"[!#-~]*"|(?!\*)[!#-+\--~]+')


def _is_sendable(value: str) -> bool:
    return len(value) <= MAX_VALIDATOR and is_header_value(value) is not None


class Validators(NamedTuple):
    """Validators of a response, as text for a cursor. Valid for the requested URL only."""

    # Send them only when all messages of the response are settled: else a 304 hides messages lost by a crash.

    etag: str | None = None
    last_modified: str | None = None

    @classmethod
    def of(cls, etag: str | None, last_modified: str | None) -> "Validators | None":
        """Drop a validator that is not allowed in a header; return None if neither is left."""
        etag = etag if etag is not None and _is_sendable(etag) and _ETAG.fullmatch(etag) else None
        last_modified = last_modified if last_modified is not None and _is_sendable(last_modified) else None
        return None if etag is None and last_modified is None else cls(etag, last_modified)


# Seconds between the last change and the response, by the server's clock or by ours, which may be off.
_SERVER_CLOCK_MARGIN = 1.0
_LOCAL_CLOCK_MARGIN = 60.0


def _last_modified(headers: Mapping[str, str]) -> str | None:
    """Return the date if it is old enough to be a condition (RFC 9110 §8.8.2.2)."""
    modified = http_date(headers, "last-modified")
    if modified is None:
        return None
    answered = http_date(headers, "date")
    usable_from = modified + (_LOCAL_CLOCK_MARGIN if answered is None else _SERVER_CLOCK_MARGIN)
    if (time.time() if answered is None else answered) < usable_from:
        return None
    return headers["last-modified"].strip(" \t")


def validators_of(headers: Mapping[str, str], confirmed: Validators | None = None) -> Validators | None:
    """Read the validators of a response; None if there are none, or it must not be stored (`no-store`)."""
    if "no-store" in directives(headers):
        return None
    given = Validators.of(headers.get("etag", "").strip(" \t"), _last_modified(headers))
    if given is None or confirmed is None:
        return given or confirmed
    # Validators confirmed by a 304 stay valid unless it replaces them (RFC 9111 §4.3.4).
    return Validators(given.etag or confirmed.etag, given.last_modified or confirmed.last_modified)


def conditional_headers(known: Validators | None) -> dict[str, str]:
    """Return the headers that request a response only if it changed (RFC 9110 §13.1)."""
    # An ETag is sent alone: a date cannot distinguish two changes in one second.
    sendable = None if known is None else Validators.of(*known)
    if sendable is None:
        return {}
    if sendable.etag is not None:
        return {"if-none-match": sendable.etag}
    return {"if-modified-since": sendable.last_modified or ""}
