"""No part of a password is shown, for every argument that takes a URL and for all characters."""

import pytest

from push_to_poll_client import AtomFeed, HTTPFeed
from push_to_poll_client._http.client import OutgoingRequest
from push_to_poll_client._http.origins import check_userinfo, parse_http_url
from push_to_poll_client._http.response import Response
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.durable_streams import DurableStreamFeed, DurableStreamsSignature, PullWakeListener
from push_to_poll_client.durable_streams._pull_wake import Claim
from push_to_poll_client.feeds._paged.request import Request
from push_to_poll_client.feeds._paged.senders import RequestParts
from push_to_poll_client.listeners import LongPollListener, SSEListener, WebSocketListener
from push_to_poll_client.listeners._requests import ListenerClient
from push_to_poll_client.listeners._webhook.types import Verified, WebhookRequest, WebhookResponse
from push_to_poll_client.listeners.postgres import PostgresListener
from push_to_poll_client.listeners.redis import RedisListener
from push_to_poll_client.listeners.subscriptions import Registration, WebSub
from tests.feeds.test_identity import paged
from tests.support.command_line import stderr_lines, typed

PIECES = ("7316", "c4n4ry")
PASSWORDS = [f"{first}{mark}{second}" for mark in "/?#@" for first, second in (PIECES, PIECES[::-1])]

TAKES_A_URL = {
    "HTTPFeed": ("https", HTTPFeed),
    "PagedFeed": ("https", paged),
    "AtomFeed": ("https", AtomFeed),
    "DurableStreamFeed": ("https", DurableStreamFeed),
    "WebSocketListener": ("wss", WebSocketListener),
    "SSEListener": ("https", SSEListener),
    "LongPollListener": ("https", LongPollListener),
    "RedisListener": ("redis", lambda url: RedisListener(url, "orders")),
    "PostgresListener": ("postgresql", lambda url: PostgresListener(url, "orders")),
    "PullWakeListener": ("https", lambda url: PullWakeListener(url, wake_stream="w", pattern="*")),
    "DurableStreamsSignature": ("https", DurableStreamsSignature),
    "ListenerClient": ("https", ListenerClient),
    "the topic of WebSub": ("https", lambda url: WebSub(url, "https://me.example/")),
    "the callback of WebSub": ("https", lambda url: WebSub("https://shop.example/", url)),
    "the hub of WebSub": ("https", lambda url: WebSub("https://shop.example/", "https://me.example/", hub=url)),
    "trusted_origins": ("https", lambda url: HTTPFeed("https://shop.example/", trusted_origins=[url])),
}


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("takes", TAKES_A_URL)
def test_no_part_of_a_password_is_shown(takes, password):
    scheme, make = TAKES_A_URL[takes]
    try:
        made = make(f"{scheme}://user:{password}@shop/1")
    except ValueError as error:
        shown = f"{error} {error.__cause__}"
    else:
        shown = f"{made!r} {getattr(made, 'name', '')} {getattr(made, 'identity', '')}"
    assert not [piece for piece in PIECES if piece in shown], shown


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "arguments",
    [["tail", "{}", "--once"], ["tail", "http://127.0.0.1:1/", "--once", "--push", "{}"]],
    ids=["feed", "push"],
)
def test_no_part_of_a_password_is_shown_by_the_command(arguments, password, capfd):
    url = f"http://user:{password}@127.0.0.1:1/"
    assert typed(*(argument.format(url) for argument in arguments)) in {Exit.USAGE, Exit.FEED}
    out, err = capfd.readouterr()
    shown = f"{out}{stderr_lines(err)}"
    assert not [piece for piece in PIECES if piece in shown], shown


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/users/@me",
        "https://shop.example:8000/users/@me",
        "https://shop/users/@me",
        "https://[::1]:8000/@me",
        "https://shop:8000/users?mail=me@shop.example",
        "https://user:pass@shop:8000/users",
        "https://user:1%2F2@shop:8000/users/%40me",
    ],
)
def test_an_at_sign_elsewhere_in_a_url_is_accepted(url):
    check_userinfo(url)
    assert str(parse_http_url(url)).endswith(url.partition("@shop:")[2] or url)


@pytest.mark.parametrize("url", ["https://user:12/34@h/", "https://user:12?34@h/", "https://a@b.example:1/2@h/"])
def test_a_url_that_may_be_cut_in_a_password_is_refused_with_a_remedy(url):
    with pytest.raises(ValueError, match="write these characters in a password as %2F, %3F, %23 and %40"):
        parse_http_url(url)


CANARY = "c4n4ry"

HOLDS_A_SECRET = [
    WebhookRequest("POST", "/", CANARY, {CANARY: CANARY}, CANARY.encode()),
    WebhookResponse(200, CANARY.encode(), CANARY, {CANARY: CANARY}),
    Verified((CANARY.encode(),)),
    Registration(id=CANARY, details={"secret": CANARY}),
    Claim("wake", 1, CANARY, ()),
    RequestParts(CANARY, {"a": CANARY}, {"b": CANARY}, {"c": CANARY}),
    Request(f"https://h/{CANARY}", "GET", {"a": CANARY}, CANARY.encode(), 0.0, CANARY),
    OutgoingRequest(
        f"https://h/?a={CANARY}",
        same_origin=True,
        method="GET",
        headers={"a": CANARY},
        known=None,
        content=CANARY.encode(),
        wait=0.0,
        max_error_body=0,
    ),
    Response(200, {"a": CANARY}, CANARY.encode(), None, f"https://h/{CANARY}", where="https://h/"),
]


@pytest.mark.parametrize("thing", HOLDS_A_SECRET, ids=lambda thing: type(thing).__name__)
def test_the_repr_of_a_request_or_an_answer_shows_no_secret(thing):
    assert CANARY not in repr(thing)
    assert repr(thing).startswith(f"{type(thing).__name__}(")
