"""Find the hub of a WebSub topic (W3C Recommendation of 2018-01-23, §4).

A topic names its hub in `Link` headers. If there are none, the links of an Atom or RSS feed before its entries, or
of the head of an HTML page, are used. The body of a page is not read: users may have written its links.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from typing import Any
from xml.parsers import expat

import httpx

from push_to_poll_client._http.headers import MAX_LINKS, TooManyLinks, link_targets, resolve_url
from push_to_poll_client._http.origins import parse_http_url, without_secrets
from push_to_poll_client.listeners._requests import UnusableResponse

# The URLs of six subscriptions must fit into the 16,384 characters that a listener may save, whatever a topic
# sends.
MAX_LINK = 1024
"""Characters of a URL; a longer one is ignored."""

MAX_HEAD = 64 * 1024
"""Bytes of an HTML page in which its head is searched."""

_PIECE = 64 * 1024
"""Bytes of an Atom or RSS feed that are parsed at a time."""

_ATOM_LINK = "http://www.w3.org/2005/Atom}link"
_ENTRIES = frozenset({"http://www.w3.org/2005/Atom}entry", "item", "http://purl.org/rss/1.0/}item"})


def topic_of(headers: httpx.Headers, body: bytes, url: str) -> tuple[str, str]:
    """Read the topic's `self` link (default: `url`) and its hub, preferring https, from its response."""
    links = list(_links_in_headers(headers, url))
    hubs = _usable_links(links, "hub", url)
    if not hubs:
        links = _links_in_body(headers, body)
        hubs = _usable_links(links, "hub", url)
    if not hubs:
        raise UnusableResponse(
            f"{without_secrets(url)} does not name a hub (WebSub §4): pass hub=, or use a topic that has one"
        )
    named = next(iter(_usable_links(links, "self", url)), url)
    confidential = [hub for hub in hubs if hub.startswith("https:")]
    if not confidential and url.startswith("https:"):
        # Try https: many feeds still name a hub with http:// that also supports https.
        without_port = [hub for hub in map(httpx.URL, hubs) if hub.port is None]
        confidential = [str(hub.copy_with(scheme="https")) for hub in without_port]
        if not confidential:
            raise UnusableResponse(
                f"{without_secrets(url)} uses https, but its hub {without_secrets(hubs[0])} does not: to use this "
                "hub, pass it as hub="
            )
    return named, (confidential or hubs)[0]


def _usable_links(links: Iterable[tuple[str, str]], relation: str, url: str) -> list[str]:
    """Return the targets of links with this relation. A link is its relations, separated by spaces, and target."""
    found = (usable_link(target, url) for relations, target in links if relation in relations.lower().split())
    return [link for link in found if link is not None]


def usable_link(target: str, base: str) -> str | None:
    """Return the URL of a link or redirect without user and password; None if it cannot be requested."""
    link = resolve_url(target, base) if target.strip() else None
    if link is None or len(link) > MAX_LINK:
        return None
    with suppress(ValueError):
        return str(parse_http_url(link).copy_with(userinfo=b""))
    return None


def _links_in_headers(headers: httpx.Headers, url: str) -> Iterator[tuple[str, str]]:
    for relation in ("hub", "self"):
        with suppress(TooManyLinks):  # use the links found so far
            for target in link_targets(headers.get("link", ""), relation, url):
                yield relation, target


def _links_in_body(headers: httpx.Headers, body: bytes) -> list[tuple[str, str]]:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if "html" in kind:
        return _links_in_html(body)
    return _links_in_xml(body) if kind.endswith("xml") else []


def _links_in_xml(document: bytes) -> list[tuple[str, str]]:
    """Read the links before the first entry or malformed XML."""
    parser, links = expat.ParserCreate(None, "}"), list[tuple[str, str]]()

    def start(name: str, attributes: dict[str, str]) -> None:
        if name in _ENTRIES or len(links) >= MAX_LINKS:
            raise _StopLinkSearch
        if name == _ATOM_LINK:
            links.append((attributes.get("rel", ""), attributes.get("href", "")))

    def stop(*_: object) -> None:
        raise _StopLinkSearch

    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = stop
    try:
        for at in range(0, len(document), _PIECE):
            parser.Parse(document[at : at + _PIECE], False)  # noqa: FBT003 - it takes no keywords
    except (_StopLinkSearch, expat.ExpatError, ValueError, LookupError):
        pass
    return links


class _StopLinkSearch(Exception):
    """Raised to stop parsing a document."""


def _links_in_html(document: bytes) -> list[tuple[str, str]]:
    head = _HTMLHeadParser()
    with suppress(_StopLinkSearch, AssertionError):  # the parser raises AssertionError on some malformed pages
        head.feed(document[:MAX_HEAD].decode("utf-8", "replace"))
    return head.links


class _HTMLHeadParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "body" or len(self.links) >= MAX_LINKS:
            raise _StopLinkSearch
        if tag == "link":
            given = dict(reversed(attrs))  # of two equal names, the first counts
            self.links.append((given.get("rel") or "", given.get("href") or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "head":
            raise _StopLinkSearch
