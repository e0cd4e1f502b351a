"""Where an answer links to: its `Link` fields (RFC 8288).

The standard library has no parser for them. That of httpx (`response.links`) cannot be used: it splits at each
`, <` and `;`, also within quotes and brackets, so that a title or a URL invents links; it gives up on a parameter
with a second `=`, and loses the `rel` behind it; `rel="next last"` is one name to it, and `REL` and `Next` are
others than `rel` and `next`; of two `rel` the last counts; a link of another context (`anchor`) passes for one of
this answer; and targets stay relative.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice

import httpx

__all__ = ["MAX_LINKS", "TooManyLinks", "resolved", "targets"]

MAX_LINKS = 100
"""Links of an answer that are looked at. An API has five, a page on the web some dozens."""

# RFC 8288 §3 and appendix B.2, possessive and hence linear. A string that does not end ends with the field.
_STRING = r'"(?:[^"\\]++|\\.)*+"?+'
_PARAMETER = rf"[ \t]*+;[ \t]*+([^\s=;,]*+)[ \t]*+(?:=[ \t]*+({_STRING}|[^;,\"]*+))?+"
_LINK = re.compile(rf"[ \t]*+(?:<([^<>]*+)>((?:{_PARAMETER})*+))?+(?:[^,\"]++|{_STRING})*+,?+", re.DOTALL)
_PARAMETERS = re.compile(_PARAMETER, re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


class TooManyLinks(ValueError):
    """There are more than `MAX_LINKS`."""


def targets(fields: str, relation: str, base: str) -> Iterator[str]:
    """Where the links of a relation lead, the first one first.

    Args:
        fields: The values of all `Link` fields, with commas between them.
        relation: Its type: "next", or a URL for one that is nobody's standard. Case says nothing.
        base: What answered.

    Yields:
        What stands between the brackets: relative, absolute, or nothing that makes a URL (`resolved`).

    Raises:
        TooManyLinks: After the last target, since there may be another.
    """
    relation, links = relation.lower(), _LINK.finditer(fields)
    for found in islice(links, MAX_LINKS):
        if _is(relation, _first_of_each(found[2] or ""), base):
            yield found[1]
    if any(found[0] for found in links):
        raise TooManyLinks(f"more than {MAX_LINKS} links")


def _is(relation: str, parameters: Mapping[str, str], base: str) -> bool:
    related = relation in parameters.get("rel", "").lower().split()
    return related and _is_about(base, parameters.get("anchor"))


def _is_about(base: str, anchor: str | None) -> bool:
    """Whether the link's context is what answered (RFC 8288 §3.2)."""
    return anchor is None or resolved(anchor, base) == resolved("", base)


def _first_of_each(parameters: str) -> dict[str, str]:
    """By names in lower case. RFC 8288 §3.3: a second `rel` is ignored."""
    given: dict[str, str] = {}
    for name, value in _PARAMETERS.findall(parameters):
        given.setdefault(name.lower(), _unquoted(value))
    return given


def _unquoted(value: str) -> str:
    return _QUOTED_PAIR.sub(r"\1", value[1:].removesuffix('"')) if value.startswith('"') else value.strip(" \t")


def resolved(target: str, base: str) -> str | None:
    """A link as an absolute URL; `None`: it makes none."""
    try:
        return str(httpx.URL(base).join(target.strip()))
    except (httpx.InvalidURL, ValueError):  # and ValueError is what urljoin has to say
        return None
