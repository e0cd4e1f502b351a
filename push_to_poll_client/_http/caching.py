"""Caching by RFC 9111: `Cache-Control`, `ETag` and `Last-Modified`."""

import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from push_to_poll_client._http.headers import http_date, is_header_value

__all__ = [
    "MAX_FRESH",
    "MAX_VALIDATOR",
    "Validators",
    "cache_bypass_headers",
    "conditional_headers",
    "directives",
    "fresh_for",
    "is_cacheable",
    "validators_of",
]


MAX_FRESH = 3600.0
"""Seconds for which an answer is taken for fresh at most. A web server's default for static files may say a year
of a feed that it was never meant for; an hour is what a feed then lags behind, and it is 24 requests a day."""

# RFC 9110 §5.6: possessive, hence linear. A string that does not end ends with the field.
_MEMBER = re.compile(r'((?:[^,"]++|"(?:[^"\\]++|\\.)*+"?+)*+),?+', re.DOTALL)
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_DIRECTIVE = re.compile(rf'[ \t]*+({_WORD})(?:[ \t]*+=[ \t]*+(?:({_WORD})|"([^"]*+)"))?+[ \t]*+')
_SECONDS = re.compile(r"[0-9]+")

_UNCACHEABLE = frozenset({"no-cache", "no-store"})


def directives(headers: Mapping[str, str]) -> Mapping[str, str]:
    """By names in lower case, each with its argument, unquoted; "" for one without.

    What is no directive is left out. Of two that contradict each other both lose their arguments: RFC 9111
    §4.2.1 lets one then take the answer for stale.
    """
    given: dict[str, str] = {}
    for member in _MEMBER.findall(headers.get("cache-control", "")):
        found = _DIRECTIVE.fullmatch(member)
        if found is not None:
            name, argument = found[1].lower(), found[2] or found[3] or ""
            given[name] = argument if given.get(name, argument) == argument else ""
    return given


def fresh_for(headers: Mapping[str, str]) -> float:
    """Seconds in which the same request can only bring this answer again: caches on the way need not ask.

    `max-age` (RFC 9111 §5.2.2.1), less what the answer has spent in caches already (`Age`). `Expires` is not
    read: old web servers put it on all they serve, and whoever means it for a feed says `max-age`.

    Returns:
        At most `MAX_FRESH`; 0: caches have to ask again, or were told nothing.
    """
    told = directives(headers)
    max_age, age = told.get("max-age", ""), headers.get("age", "0")
    if not (_SECONDS.fullmatch(max_age) and _SECONDS.fullmatch(age)) or not told.keys().isdisjoint(_UNCACHEABLE):
        return 0.0
    return max(0.0, min(float(max_age) - float(age), MAX_FRESH))


def cache_bypass_headers(*, fresh: bool) -> dict[str, str]:
    """The header with which caches ask the server themselves (RFC 9111 §5.2.1.4).

    Args:
        fresh: As `FetchRequest.fresh`: whether an answer that is kept may be too old.
    """
    return {"cache-control": "no-cache"} if fresh else {}


def is_cacheable(headers: Mapping[str, str]) -> bool:
    """Whether what may be remembered by its status (RFC 9110 §15.1) may be after what caches are told."""
    told = directives(headers)
    return told.keys().isdisjoint(_UNCACHEABLE) and told.get("max-age") != "0"


MAX_VALIDATOR = 1024
"""Characters of a validator that is kept: it may be saved with each cursor. ETags have 20 to 100."""

# RFC 9110 §8.8.3, and what some servers write without the quotes. Never "*", which would stand for any answer.
_ETAG = re.compile(r'(?:W/)?"[!#-~]*"|(?!\*)[!#-+\--~]+')

_SERVER_CLOCK_MARGIN = 1.0
_LOCAL_CLOCK_MARGIN = 60.0


class Validators(NamedTuple):
    """What a server knows an answer by. Plain text, fit to be saved with a cursor.

    An answer is known by them only when all that it brought is settled: committed earlier, 304 would be the
    answer to what was lost. They belong to the URL that was asked, and to no other.

    Attributes:
        etag: As it came: quotes and `W/` are part of it. `None`: the server gave none.
        last_modified: As it came. `None`: the server gave none, or something may have changed in that very
            second after the answer was made.
    """

    etag: str | None = None
    last_modified: str | None = None

    @classmethod
    def of(cls, etag: str | None, last_modified: str | None) -> "Validators | None":
        """Those of the two that a header may have; `None`: neither."""
        etag = etag if etag is not None and _fits(etag) and _ETAG.fullmatch(etag) else None
        last_modified = last_modified if last_modified is not None and _fits(last_modified) else None
        return None if etag is None and last_modified is None else cls(etag, last_modified)


def validators_of(headers: Mapping[str, str], confirmed: Validators | None = None) -> Validators | None:
    """Those of an answer.

    Args:
        headers: Its.
        confirmed: What a 304 says still holds: what it does not bring anew stays (RFC 9111 §4.3.4).

    Returns:
        `None`: it has none, or is not to be kept (`no-store`).
    """
    if "no-store" in directives(headers):
        return None
    given = Validators.of(headers.get("etag", "").strip(" \t"), _last_modified(headers))
    if given is None or confirmed is None:
        return given or confirmed
    return Validators(given.etag or confirmed.etag, given.last_modified or confirmed.last_modified)


def conditional_headers(known: Validators | None) -> dict[str, str]:
    """The headers that ask for anything but what is known (RFC 9110 §13.1).

    The ETag alone, where there is one: it tells what a date cannot, two changes in a second. What no header may
    have is left out, since to ask without a condition is never wrong.
    """
    fit = None if known is None else Validators.of(*known)
    if fit is None:
        return {}
    if fit.etag is not None:
        return {"if-none-match": fit.etag}
    return {"if-modified-since": fit.last_modified or ""}


def _fits(value: str) -> bool:
    return len(value) <= MAX_VALIDATOR and is_header_value(value) is not None


def _last_modified(headers: Mapping[str, str]) -> str | None:
    """RFC 9110 §8.8.2.2: a date is good for a condition when the answer was made at least a second later."""
    modified = http_date(headers, "last-modified")
    if modified is None:
        return None
    answered = http_date(headers, "date")
    settled = modified + _SERVER_CLOCK_MARGIN if answered is not None else modified + _LOCAL_CLOCK_MARGIN
    if (time.time() if answered is None else answered) < settled:
        return None
    return headers["last-modified"].strip(" \t")
