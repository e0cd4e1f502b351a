"""Read headers: how long a server asks to wait, dates, and `Link` fields.

Nothing here does I/O, and nothing here raises on what a server or a user wrote.

The standard library has no parser for them. That of httpx (`response.links`) cannot be used: it splits at each
`, <` and `;`, also within quotes and brackets, so that a title or a URL invents links; it gives up on a parameter
with a second `=`, and loses the `rel` behind it; `rel="next last"` is one name to it, and `REL` and `Next` are
others than `rel` and `next`; of two `rel` the last counts; a link of another context (`anchor`) passes for one of
this answer; and targets stay relative.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from itertools import islice

import httpx

from push_to_poll_client._types import MAX_NOT_BEFORE

__all__ = [
    "MAX_LINKS",
    "TooManyLinks",
    "http_date",
    "is_header_name",
    "is_header_value",
    "link_targets",
    "requested_delay",
    "resolve_url",
]


is_header_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
"""Whether it may name a header (RFC 9110 §5.6.2)."""

is_header_value = re.compile(r"[\t -~]*").fullmatch
"""Whether it can be sent as a header's value: h11 refuses others, and shows them in its error. A line break would
let a value add headers of its own (RFC 9110 §5.5)."""
_EPOCH = 1e9  # a reset above this is a date (2001 and later), below it a delay (30 years and less)
_MILLISECONDS = 1e11  # a date above this would be after the year 5000: it is in milliseconds
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")  # \d would take digits of every script

# RFC 9651 §3.1: one member of a list, a string or token with parameters. Possessive, hence linear.
_STRING = r'"(?:[^"\\]|\\.)*+"'
_PARAMETER = rf"; *([a-z*][a-z0-9_.*-]*+)(?:=({_STRING}|[^\s;,\"]++))?"
_MEMBER = re.compile(rf"[ \t]*(?:{_STRING}|[A-Za-z*][^\s;,\"]*+)(?P<parameters>(?:{_PARAMETER})*+)[ \t]*(?:,|$)")

# The same as an earlier draft had it, a dictionary: limit=100, remaining=0, reset=30
_OLD_MEMBER = re.compile(r"(?:^|,)[ \t]*+(remaining|reset)=([0-9]++)")

_VENDOR_PREFIXES = ("x-ratelimit", "x-rate-limit", "ratelimit")
_DELAY_HEADERS = {"backoff", "ratelimit", "retry-after", "x-poll-interval"} | {
    f"{name}-reset" for name in _VENDOR_PREFIXES
}
"""The headers by which a server asks to be left alone; each way has one of them."""

SECONDARY_LIMIT_DELAY = 60.0
"""Seconds that GitHub wants at least, when a second limit is exceeded and nothing says for how long."""


def requested_delay(
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
    if _DELAY_HEADERS.isdisjoint(map(str.lower, headers)):
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
    for name in _VENDOR_PREFIXES:
        remaining = _number(headers, f"{name}-remaining")
        reset = _number(headers, f"{name}-reset")
        if remaining and refused:
            yield SECONDARY_LIMIT_DELAY
        elif reset is not None and (refused or remaining == 0):
            date = reset / 1000 if reset > _MILLISECONDS else reset
            yield max(0.0, date - now) if reset > _EPOCH else reset


MAX_LINKS = 100
"""Links of an answer that are looked at. An API has five, a page on the web some dozens."""

# RFC 8288 §3 and appendix B.2, possessive and hence linear. A string that does not end ends with the field.
_LINK_STRING = r'"(?:[^"\\]++|\\.)*+"?+'
_LINK_PARAMETER = rf"[ \t]*+;[ \t]*+([^\s=;,]*+)[ \t]*+(?:=[ \t]*+({_LINK_STRING}|[^;,\"]*+))?+"
_LINK = re.compile(
    rf"[ \t]*+(?:<([^<>]*+)>((?:{_LINK_PARAMETER})*+))?+(?:[^,\"]++|{_LINK_STRING})*+,?+", re.DOTALL
)
_PARAMETERS = re.compile(_LINK_PARAMETER, re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


class TooManyLinks(ValueError):
    """There are more than `MAX_LINKS`."""


def link_targets(fields: str, relation: str, base: str) -> Iterator[str]:
    """Where the links of a relation lead, the first one first.

    Args:
        fields: The values of all `Link` fields, with commas between them.
        relation: Its type: "next", or a URL for one that is nobody's standard. Case says nothing.
        base: What answered.

    Yields:
        What stands between the brackets: relative, absolute, or nothing that makes a URL (`resolve_url`).

    Raises:
        TooManyLinks: After the last target, since there may be another.
    """
    relation, links = relation.lower(), _LINK.finditer(fields)
    for found in islice(links, MAX_LINKS):
        if _has_relation(relation, _parse_parameters(found[2] or ""), base):
            yield found[1]
    if any(found[0] for found in links):
        raise TooManyLinks(f"more than {MAX_LINKS} links")


def _has_relation(relation: str, parameters: Mapping[str, str], base: str) -> bool:
    related = relation in parameters.get("rel", "").lower().split()
    return related and _has_context(base, parameters.get("anchor"))


def _has_context(base: str, anchor: str | None) -> bool:
    """Whether the link's context is what answered (RFC 8288 §3.2)."""
    return anchor is None or resolve_url(anchor, base) == resolve_url("", base)


def _parse_parameters(parameters: str) -> dict[str, str]:
    """By names in lower case. RFC 8288 §3.3: a second `rel` is ignored."""
    given: dict[str, str] = {}
    for name, value in _PARAMETERS.findall(parameters):
        given.setdefault(name.lower(), _unquoted(value))
    return given


def _unquoted(value: str) -> str:
    return _QUOTED_PAIR.sub(r"\1", value[1:].removesuffix('"')) if value.startswith('"') else value.strip(" \t")


def resolve_url(target: str, base: str) -> str | None:
    """A link as an absolute URL; `None`: it makes none."""
    try:
        return str(httpx.URL(base).join(target.strip()))
    except (httpx.InvalidURL, ValueError):  # and ValueError is what urljoin has to say
        return None
