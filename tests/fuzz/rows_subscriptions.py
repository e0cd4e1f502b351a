"""Rows for subscriptions: hubs in topics, a hub's requests, and saved registrations."""

import httpx

from push_to_poll_client.listeners._requests import UnusableResponse
from push_to_poll_client.listeners._webhook.types import WebhookRequest, WebhookResponse
from push_to_poll_client.listeners.subscriptions import Registration, WebSub
from push_to_poll_client.listeners.subscriptions._discovery import topic_of
from push_to_poll_client.listeners.subscriptions._state import SubscriptionState
from tests.fuzz.answers import fields
from tests.fuzz.fuzzed import Fuzzed, around, nested, text_of, words

__all__ = ["ROWS"]

TOPIC = "https://blog.example/feed"
ATOM = b"application/atom+xml\n\n<feed xmlns='http://www.w3.org/2005/Atom'>"


def read_topic(data):
    """Read a topic: the content type, `Link` fields, then a body."""
    head, _, body = data.partition(b"\n\n")
    kind, _, rest = head.partition(b"\n")
    headers = httpx.Headers([*fields(rest), *fields(b"content-type: " + kind)])
    topic = topic_of(headers, body, TOPIC)
    for url in topic:
        assert httpx.URL(url).scheme in {"http", "https"}
        assert httpx.URL(url).host
    url, hub = topic
    assert topic == topic_of(httpx.Headers({"link": f"<{hub}>; rel=hub, <{url}>; rel=self"}), b"", TOPIC)


def read_question(data):
    """Answer a request to a callback, given as path and query."""
    path, _, query = text_of(data).partition("?")
    subscription = WebSub(TOPIC, "https://me.example/hooks")
    heard = []
    subscription.bind(heard.append)
    known = Registration(id="id", details={"topic": "t", "hub": "https://hub.example/", "secret": "s"})
    subscription.adopt([known, Registration(id="old")])
    subscription.adopt([known])
    for method in ("GET", "POST"):
        request = WebhookRequest(method=method, path=path, query=query, received_at=1e9)
        answer = subscription.handshake(request)
        assert answer is None or isinstance(answer, WebhookResponse)
        if answer is not None and answer.body:
            assert answer.body.decode("ascii") == request.parameter("hub.challenge")
            assert path.rpartition("/")[2] == "id"
            assert request.parameter("hub.topic") == "t"
        assert not subscription.verify(request)
    assert len(heard) <= 1
    return heard


def read_book(data):
    book = SubscriptionState.from_text(text_of(data))
    assert book.to_text() is None or SubscriptionState.from_text(book.to_text()) == book
    assert all(isinstance(one, Registration) for one in book.registrations)


ROWS = (
    Fuzzed(
        name="hubs of topics",
        modules=("listeners.subscriptions._discovery",),
        read=read_topic,
        errors=(UnusableResponse,),
        examples=(
            b'text/plain\nlink: <https://hub.example/>; rel="hub", <feed>; rel=self\n\n',
            ATOM + b"<link rel='hub' href='https://hub.example/'/><link rel='self' href='/f'/><entry/></feed>",
            b"text/html; charset=utf-8\n\n<!doctype html><head><link rel=hub href=//hub.example/></head><body>",
            b"application/rss+xml\n\n<rss xmlns:a='http://www.w3.org/2005/Atom'><a:link rel='hub' href='http://h/'/><item/>",
        ),
        tokens=words(
            r"<link rel=hub href=http://h/> <!DOCTYPE <![ --> <!-- </head> <body> < > / ' & &#x ]] \0 \xff"
        ),
        frame=(b"text/html\n\n", b"<link rel=hub href=http://h/>"),
        hostile={
            "links of a feed": around(ATOM, b"<link/>", b"<link rel='hub' href='http://h/'/>"),
            "attributes": around(ATOM + b"<link ", b"a=''", b"/>"),
            "a tag": around(ATOM + b"<link ", b"a", b"/>"),
            "elements within": nested(b"<a>", b"</a>", ATOM, b"</feed>"),
            "relations": around(b"text/html\n\n<link rel='", b"x ", b"hub' href='http://h/'>"),
            "fields": around(b"text/plain\n", b"link: <a>; rel=hub\n"),
            "steps up": around(b"text/plain\nlink: <", b"../", b"a>; rel=hub"),
        },
        found=(b"text/plain\nlink: <http://xn--zz/>; rel=hub\n\n",),
    ),
    Fuzzed(
        name="questions of hubs",
        modules=("listeners.subscriptions._callbacks", "listeners.subscriptions._websub"),
        read=read_question,
        examples=(
            b"/id?hub.mode=subscribe&hub.topic=t&hub.challenge=c&hub.lease_seconds=10",
            b"/id?hub.mode=denied&hub.topic=t&hub.reason=no",
            b"/id?hub.mode=unsubscribe&hub.topic=t&hub.challenge=c",
            b"/old?hub.mode=subscribe&hub.topic=t&hub.challenge=c",
            b"/id",
        ),
        tokens=words(r"/ ? & = % %00 %ff hub.mode= hub.topic=t hub.challenge= denied subscribe ; + \xff"),
        frame=(b"/id?hub.mode=subscribe&hub.topic=t&hub.challenge=", b""),
        hostile={"a reason": around(b"/id?hub.mode=denied&hub.topic=t&hub.reason=", b"%0a")},
    ),
    Fuzzed(
        name="books of subscriptions",
        modules=("listeners.subscriptions._state",),
        read=read_book,
        errors=(ValueError, RecursionError),
        examples=(
            b'{"version":1,"book":{"planned":{"id":"1","details":{"a":"b"}},"current":{"id":"2","expires_at":1e9}}}',
            b'{"version":1,"book":{"renew_at":5.5,"leaving":[{"id":"3"}]}}',
            b'{"version":1,"book":{}}',
        ),
        tokens=words(r'{ } [ ] " : , 1 null "version":1 "book": "leaving": \\u d800 1e999 \xff'),
        frame=(b'{"version":1,"book":{"x":', b"}}"),
        hostile={
            "lists": nested(b"[", b"]", b'{"version":1,"book":{"x":', b"}}"),
            "registrations": around(b'{"version":1,"book":{"leaving":[{"id":"1"}', b',{"id":"1"}', b"]}}"),
        },
    ),
)
