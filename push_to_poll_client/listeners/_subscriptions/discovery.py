"""WHOM TO ASK FOR PUSHES OF A TOPIC: its hub, and what the hub calls it (WebSub §4).

By `Link` headers; where there is none, by the links of an Atom or RSS feed before its entries, or of an HTML page
in its head: in the body might be what its users wrote.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from itertools import islice
from typing import Any, NamedTuple
from xml.parsers import expat

import httpx

from push_to_poll_client._http.headers import MAX_LINKS, TooManyLinks, resolved, targets
from push_to_poll_client._http.origins import http_url, without_secrets
from push_to_poll_client.listeners._asking import UnusableAnswer

__all__ = ["MAX_LINK", "Topic", "is_usable", "topic_of"]

MAX_LINK = 1024
"""Characters of an address; one with more counts as none. Those of six subscriptions have to fit into the 16,384
that a listener may keep, whatever a topic says of itself."""

MAX_HEAD = 64 * 1024
"""Bytes of a page in which its head is looked for."""

_PIECE = 64 * 1024

_ATOM_LINK = "http://www.w3.org/2005/Atom}link"
_ENTRIES = frozenset({"http://www.w3.org/2005/Atom}entry", "item", "http://purl.org/rss/1.0/}item"})


class Topic(NamedTuple):
    """Of what to ask whom.

    Attributes:
        url: What the hub calls the topic.
        hub: Where to ask.
    """

    url: str
    hub: str


class _Link(NamedTuple):
    relations: str
    target: str


def topic_of(headers: httpx.Headers, body: bytes, url: str) -> Topic:
    """What a topic says of itself.

    Args:
        headers: Of its answer.
        body: Likewise.
        url: What answered.

    Returns:
        Its first hub with https, or its first one; and its `self`, or where there is none its URL.

    Raises:
        UnusableAnswer: It names no hub.
    """
    found = _in_headers(headers, url)
    hubs = _usable(found["hub"], url)
    if not hubs:
        links = list(islice(_in_body(headers, body), MAX_LINKS))
        found = {
            relation: [one.target for one in links if relation in one.relations.lower().split()]
            for relation in found
        }
        hubs = _usable(found["hub"], url)
    if not hubs:
        raise UnusableAnswer(f"{without_secrets(url)} names no hub (WebSub §4), so nobody can be asked to push")
    hub = next((one for one in hubs if one.startswith("https:")), hubs[0])
    return Topic(next(iter(_usable(found["self"], url)), url), hub)


def _in_headers(headers: httpx.Headers, url: str) -> dict[str, list[str]]:
    fields = headers.get("link", "")
    return {relation: list(_until_too_many(targets(fields, relation, url))) for relation in ("hub", "self")}


def _until_too_many(found: Iterator[str]) -> Iterator[str]:
    try:
        yield from found
    except TooManyLinks:
        return


def _usable(found: Iterable[str], url: str) -> list[str]:
    links = (resolved(target, url) for target in found if target.strip())
    return [link for link in links if link is not None and is_usable(link)]


def is_usable(link: str) -> bool:
    """Whether it is an http address of no more than `MAX_LINK` characters."""
    try:
        http_url(link)
    except ValueError:
        return False
    return len(link) <= MAX_LINK


def _in_body(headers: httpx.Headers, body: bytes) -> Iterable[_Link]:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if "html" in kind:
        return _in_page(body)
    return _in_feed(body) if kind.endswith("xml") else ()


def _in_feed(document: bytes) -> list[_Link]:
    """Before the first entry, or before what is no XML: whoever gets so far has named his hub."""
    parser, links = expat.ParserCreate(None, "}"), list[_Link]()

    def start(name: str, attributes: dict[str, str]) -> None:
        if name in _ENTRIES or len(links) >= MAX_LINKS:
            raise _Enough
        if name == _ATOM_LINK:
            links.append(_Link(attributes.get("rel", ""), attributes.get("href", "")))

    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = _stop
    try:
        for at in range(0, len(document), _PIECE):
            parser.Parse(document[at : at + _PIECE], False)  # noqa: FBT003 - it takes no keywords
    except (_Enough, expat.ExpatError, ValueError, LookupError):
        pass
    return links


class _Enough(Exception):
    """No more is read."""


def _stop(*_: object) -> None:
    raise _Enough


def _in_page(document: bytes) -> list[_Link]:
    head = _Head()
    with suppress(_Enough, AssertionError):  # and AssertionError is what the parser has to say of some garbage
        head.feed(document[:MAX_HEAD].decode("utf-8", "replace"))
    return head.links


class _Head(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[_Link] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "body" or len(self.links) >= MAX_LINKS:
            raise _Enough
        if tag == "link":
            given = dict(reversed(attrs))  # of two the first counts
            self.links.append(_Link(given.get("rel") or "", given.get("href") or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "head":
            raise _Enough
