"""Read headers: how long a server asks to wait, dates, and `Link` fields.

Nothing here does I/O. Malformed headers are ignored, not an error; only too many links are (`TooManyLinks`).

`Link` needs a parser here: the standard library has none, and that of httpx (`response.links`) is wrong. It splits
at `, <` and `;` even inside quotes and brackets, so a title or a URL can invent links. It stops at a parameter
with a second `=`, and loses the `rel` after it. It reads `rel="next last"` as one name, does not match `REL` and
`Next`, takes the last of two `rel`, ignores `anchor`, and leaves targets relative.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from itertools import islice

import httpx

from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client._validation import quoted

is_header_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
"""Match a valid header name (RFC 9110 §5.6.2)."""

is_header_value = re.compile(r"[\t -~]*").fullmatch
"""Match a valid header value. h11 shows others in its error; a line break could add headers (RFC 9110 §5.5)."""


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's headers by lower-case names; raise if they cannot be sent."""
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping of str to str, got {type(headers).__name__}")
    for name, value in headers.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"headers must map str to str, got {type(value).__name__} for {quoted(name)}")
        if not (is_header_name(name) and is_header_value(value)):
            raise ValueError(f"the header {quoted(name)} has characters that are not allowed in a header")
    return dict(httpx.Headers(headers))


_EPOCH = 1e9  # a reset above this is a date (2001 and later), below it a delay (30 years and less)
_MILLISECONDS = 1e11  # a date above this would be after the year 5000: it is in milliseconds
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")  # \d would take digits of every script

# RFC 9651 §3.1: one member of a list, a string or token with parameters. Possessive, so linear in time.
_STRING = r'"(?:[^"\\]|\\.)*+"'
_PARAMETER = re.compile(rf"; *([a-z*][a-z0-9_.*-]*+)(?:=({_STRING}|[^\s;,\"]++))?")
_MEMBER = re.compile(
    rf"[ \t]*(?:{_STRING}|[A-Za-z*][^\s;,\"]*+)(?P<parameters>(?:{_PARAMETER.pattern})*+)[ \t]*(?:,|$)"
)
_MEMBERS = re.compile(rf"(?:{_MEMBER.pattern})*+")

# The same header by an earlier draft, a dictionary: limit=100, remaining=0, reset=30
_OLD_MEMBER = re.compile(r"(?:^|,)[ \t]*+(remaining|reset)=([0-9]++)")

_VENDOR_PREFIXES = ("x-ratelimit", "x-rate-limit", "ratelimit")
_DELAY_HEADERS = {"backoff", "ratelimit", "retry-after", "x-poll-interval"} | {
    f"{name}-reset" for name in _VENDOR_PREFIXES
}
"""Headers by which a server asks for a delay; each known form of asking has one of them."""

SECONDARY_LIMIT_DELAY = 60.0
"""Shortest delay in seconds that GitHub wants after its secondary rate limit, if no header gives one."""


def requested_delay(
    status: int, headers: Mapping[str, str], wall_clock: float, *, within_poll: bool = False
) -> float | None:
    """Return for how many seconds the server asks not to be polled; None if it does not ask."""
    # Sources, with any status: `Retry-After` (RFC 9110 §10.2.3), `Backoff` (Mozilla), `X-Poll-Interval`
    # (GitHub), `RateLimit` (draft-ietf-httpapi-ratelimit-headers, also as in version 7), and the vendors'
    # `RateLimit-Remaining` and `-Reset`. `RateLimit-Policy` names no time. `Retry-After` replaces rate limits,
    # as the draft demands; of the other delays the largest counts. A 429 without these headers gives no delay:
    # the consumer backs off by itself.
    if _DELAY_HEADERS.isdisjoint(map(str.lower, headers)):
        return None
    waits = [_number(headers, "backoff"), None if within_poll else _number(headers, "x-poll-interval")]
    now = http_date(headers, "date")
    now = wall_clock if now is None else now  # the server's clock, to which its dates refer
    retry_date = http_date(headers, "retry-after")
    retry_after = _number(headers, "retry-after") if retry_date is None else max(0.0, retry_date - now)
    if retry_after is not None:
        waits.append(retry_after)
    elif _header(headers, "age") is None:  # a copy from a cache tells the quota of another client
        waits += [*_rate_limit(headers), *_rate_limit_reset(status, headers, now)]
    return max((min(wait, MAX_NOT_BEFORE) for wait in waits if wait is not None), default=None)


def http_date(headers: Mapping[str, str], name: str) -> float | None:
    """Read an HTTP date (RFC 9110 §5.6.7) as seconds since the epoch; None if missing or not a date."""
    value = _header(headers, name)
    if not value or not value[0].isalpha():  # each form begins with a weekday; the parser accepts much more
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
    except LookupError:  # websockets raises it for a header sent twice; neither value can be trusted
        return None
    return None if value is None else value.strip(" \t")


def _number(headers: Mapping[str, str], name: str) -> float | None:
    value = _header(headers, name)
    return float(value) if value is not None and _NUMBER.fullmatch(value) else None


def _rate_limit(headers: Mapping[str, str]) -> list[float]:
    """Return the seconds to wait (`t`) for each policy without quota left (`r=0`)."""
    value = _header(headers, "ratelimit") or ""
    old = dict(_OLD_MEMBER.findall(value))
    if old.keys() >= {"remaining", "reset"}:
        return [] if old["remaining"].strip("0") else [float(old["reset"])]
    if not _MEMBERS.fullmatch(value):
        return []  # RFC 9651 §4.2: a header that is malformed anywhere is ignored as a whole
    policies = [dict(_PARAMETER.findall(member["parameters"])) for member in _MEMBER.finditer(value)]
    used_up = (policy for policy in policies if re.fullmatch("0+", policy.get("r", "")))
    return [float(policy["t"]) for policy in used_up if _NUMBER.fullmatch(policy.get("t", ""))]


def _rate_limit_reset(status: int, headers: Mapping[str, str], now: float) -> Iterator[float]:
    """Read the vendors' headers; some send the reset as a date, others as a delay."""
    refused = status == httpx.codes.TOO_MANY_REQUESTS
    for name in _VENDOR_PREFIXES:
        remaining = _number(headers, f"{name}-remaining")
        reset = _number(headers, f"{name}-reset")
        # A 429 with quota left is about another limit. A 403 with quota left is taken for a refusal.
        if remaining and refused:
            yield SECONDARY_LIMIT_DELAY
        elif reset is not None and (refused or remaining == 0):
            date = reset / 1000 if reset > _MILLISECONDS else reset
            yield max(0.0, date - now) if reset > _EPOCH else reset


MAX_LINKS = 100
"""Links of a response that are read. An API sends about five, a web page some dozens."""

# RFC 8288 §3 and appendix B.2; possessive, so linear in time. An unclosed string ends with the field.
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
    """Yield the targets of the links with a relation, in order: relative or absolute URLs, or invalid text."""
    relation, links = relation.lower(), _LINK.finditer(fields)
    for found in islice(links, MAX_LINKS):
        parameters = _parse_parameters(found[2] or "")
        if relation not in parameters.get("rel", "").lower().split():
            continue
        anchor = parameters.get("anchor")
        if anchor is None or resolve_url(anchor, base) == resolve_url(
            "", base
        ):  # RFC 8288 §3.2: the link's context
            yield found[1]
    if any(found[0] for found in links):
        raise TooManyLinks(f"more than {MAX_LINKS} links")


def _parse_parameters(parameters: str) -> dict[str, str]:
    """Return the parameters by lower-case name. A second `rel` is ignored (RFC 8288 §3.3)."""
    given: dict[str, str] = {}
    for name, value in _PARAMETERS.findall(parameters):
        quoted = value.startswith('"')
        text = _QUOTED_PAIR.sub(r"\1", value[1:].removesuffix('"')) if quoted else value.strip(" \t")
        given.setdefault(name.lower(), text)
    return given


def resolve_url(target: str, base: str) -> str | None:
    """Return a link as an absolute URL; `None` if it is not a URL."""
    try:
        return str(httpx.URL(base).join(target.strip()))
    except (httpx.InvalidURL, ValueError):  # urljoin raises ValueError
        return None
