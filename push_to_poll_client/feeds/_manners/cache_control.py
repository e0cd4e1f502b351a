"""What caches are told of an answer: the directives of its `Cache-Control` (RFC 9111 §5.2), and how old it is."""

import re
from collections.abc import Mapping

__all__ = ["MAX_FRESH", "directives", "fresh_for", "may_be_kept", "past_caches"]

MAX_FRESH = 3600.0
"""Seconds for which an answer is taken for fresh at most. A web server's default for static files may say a year
of a feed that it was never meant for; an hour is what a feed then lags behind, and it is 24 requests a day."""

# RFC 9110 §5.6: possessive, hence linear. A string that does not end ends with the field.
_MEMBER = re.compile(r'((?:[^,"]++|"(?:[^"\\]++|\\.)*+"?+)*+),?+', re.DOTALL)
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_DIRECTIVE = re.compile(rf'[ \t]*+({_WORD})(?:[ \t]*+=[ \t]*+(?:({_WORD})|"([^"]*+)"))?+[ \t]*+')
_SECONDS = re.compile(r"[0-9]+")

_ASK_AGAIN = frozenset({"no-cache", "no-store"})


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
    if not (_SECONDS.fullmatch(max_age) and _SECONDS.fullmatch(age)) or not told.keys().isdisjoint(_ASK_AGAIN):
        return 0.0
    return max(0.0, min(float(max_age) - float(age), MAX_FRESH))


def past_caches(*, fresh: bool) -> dict[str, str]:
    """The header with which caches ask the server themselves (RFC 9111 §5.2.1.4).

    Args:
        fresh: As `FetchRequest.fresh`: whether an answer that is kept may be too old.
    """
    return {"cache-control": "no-cache"} if fresh else {}


def may_be_kept(headers: Mapping[str, str]) -> bool:
    """Whether what may be remembered by its status (RFC 9110 §15.1) may be after what caches are told."""
    told = directives(headers)
    return told.keys().isdisjoint(_ASK_AGAIN) and told.get("max-age") != "0"
