"""Finding the hub of a topic: in headers, in a feed before its entries, in the head of a page."""

import httpx
import pytest

from push_to_poll_client._http.headers import MAX_LINKS
from push_to_poll_client.listeners._requests import UnusableResponse
from push_to_poll_client.listeners.subscriptions._discovery import MAX_HEAD, topic_of

URL = "https://blog.example/feed?key=c4n4ry"
HUB, SELF = "https://hub.example/", "https://blog.example/feed.atom"


def found(*fields, body=b"", kind="application/atom+xml"):
    return topic_of(httpx.Headers([("link", field) for field in fields] + [("content-type", kind)]), body, URL)


@pytest.mark.parametrize(
    ("fields", "topic"),
    [
        ([f"<{HUB}>; rel=hub", f"<{SELF}>; rel=self"], (SELF, HUB)),
        ([f'<{SELF}>; rel="self", <{HUB}>; rel="hub"'], (SELF, HUB)),
        ([f'<{HUB}>; rel="HUB"'], (URL, HUB)),
        (["</hub>; rel=hub, <feed.atom>; rel=self"], (SELF, "https://blog.example/hub")),
        # Several: https first.
        ([f"<http://hub.example/>; rel=hub, <{HUB}>; rel=hub"], (URL, HUB)),
        # Named with http in a response over https: it is requested over https.
        (["<http://a.example:80/x>; rel=hub, <http://b.example/>; rel=hub"], (URL, "https://a.example/x")),
        (["<http://a.example:8080/>; rel=hub, <http://b.example/>; rel=hub"], (URL, "https://b.example/")),
        # A user and password in a link are dropped.
        ([f"<https://u:p@hub.example/>; rel=hub, <https://u:p@{SELF[8:]}>; rel=self"], (SELF, HUB)),
        # Unusable links are skipped.
        ([f"<mailto:hub@hub.example>; rel=hub, <https://h:port/>; rel=hub, <{HUB}>; rel=hub"], (URL, HUB)),
        ([f"<{HUB}>; rel=hub, <tag:x>; rel=self"], (URL, HUB)),
        ([f"<https://xn--zz/>; rel=hub, <{HUB}>; rel=hub, <https://xn--zz/>; rel=self"], (URL, HUB)),
        ([f"<{HUB}>; rel=hub, " + "<x>; rel=y, " * MAX_LINKS], (URL, HUB)),
    ],
)
def test_link_headers_name_the_hub_and_the_topic(fields, topic):
    assert found(*fields) == topic


ATOM = b'<feed xmlns="http://www.w3.org/2005/Atom">%s<entry/>%s</feed>'
RSS = b'<rss xmlns:a="http://www.w3.org/2005/Atom"><channel>%s<item/>%s</channel></rss>'
PAGE = b"<!doctype html><html><head>%s</head><body>%s</body></html>"
LINKS = f'<link rel="hub" href="{HUB}"/><link rel="self" href="{SELF}"/>'.encode()
A_LINKS = LINKS.replace(b"<link", b"<a:link")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/atom+xml", ATOM % (LINKS, b"")),
        ("application/atom+xml; charset=utf-8", b'<?xml version="1.0"?>\n' + ATOM % (LINKS, b"")),
        ("application/xml", ("\ufeff" + (ATOM % (LINKS, b"")).decode()).encode("utf-16-le")),
        ("text/xml", ATOM % (LINKS, b"<broken")),
        ("application/rss+xml", RSS % (A_LINKS, b"")),
        ("text/html", PAGE % (LINKS, b"")),
        ("application/xhtml+xml", PAGE % (LINKS, b"")),
        (
            "TEXT/HTML",
            b"<LINK HREF=" + HUB.encode() + b" REL='nofollow Hub'><link rel=self href='" + SELF.encode() + b"'>",
        ),
        ("text/html", b"<link rel=hub rel=self href=%s><link rel=self href=%s>" % (HUB.encode(), SELF.encode())),
    ],
)
def test_the_body_names_the_hub_and_the_topic_without_link_headers(kind, body):
    assert found(body=body, kind=kind) == (SELF, HUB)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/atom+xml", b""),
        ("application/atom+xml", ATOM % (b"", LINKS)),
        ("application/atom+xml", b"<!DOCTYPE feed>" + ATOM % (LINKS, b"")),
        ("application/atom+xml", b"<!DOCTYPE feed [<!ENTITY h 'x'>]>" + ATOM % (LINKS, b"")),
        ("application/atom+xml", b"<feed>" + LINKS + b"</feed>"),  # without a namespace
        ("application/atom+xml", b'<?xml version="1.0" encoding="nonsense"?>' + ATOM % (LINKS, b"")),
        ("application/rss+xml", RSS % (b"", A_LINKS)),
        ("text/html", PAGE % (b"", LINKS)),
        ("text/html", b"<body>" + LINKS),
        ("text/html", b" " * MAX_HEAD + LINKS),
        ("text/html", b"<link rel=x>" * MAX_LINKS + LINKS),
        ("text/html", b"<link rel=hub><link rel><link>"),
        ("text/html", b"<![if x]><![cdata["),
        ("text/html", b"<!" + b"[" * 99),
        ("application/atom+xml", ATOM % (b"<link/>" * MAX_LINKS + LINKS, b"")),
        ("text/plain", LINKS),
        ("", LINKS),
    ],
)
def test_a_response_without_a_usable_hub_link_is_an_error(kind, body):
    with pytest.raises(UnusableResponse, match="does not name a hub") as failed:
        found(body=body, kind=kind)
    assert "c4n4ry" not in str(failed.value)


def test_a_hub_that_cannot_have_https_is_refused_if_the_topic_has_https():
    with pytest.raises(UnusableResponse, match=r"its hub http://a\.example:8080/\?key=… does not"):
        found("<http://a.example:8080/?key=c4n4ry>; rel=hub")


def test_a_topic_without_https_may_name_a_hub_without_https():
    fields = httpx.Headers({"link": "<http://a.example:8080/>; rel=hub"})
    assert topic_of(fields, b"", "http://blog.example/") == ("http://blog.example/", "http://a.example:8080/")


def test_the_body_is_used_if_the_link_header_names_no_hub():
    assert found("</x>; rel=self", body=ATOM % (LINKS, b"")) == (SELF, HUB)


def test_the_hub_is_found_at_the_beginning_of_a_large_feed():
    entries = b"<entry/>" * 400_000
    assert found(body=ATOM % (LINKS, entries)) == (SELF, HUB)
