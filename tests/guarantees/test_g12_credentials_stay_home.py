"""G12, credentials stay home: secrets go only to their origin, and into no log, error or `repr`."""

import base64
import html
import json
import logging
import traceback
from urllib.parse import quote, quote_plus

import httpx
import pytest

from push_to_poll_client import (
    AtomFeed,
    Consumer,
    DeadLetterMessage,
    FeedError,
    FetchRequest,
    HTTPFeed,
    MemoryStore,
    PushToPollError,
)
from push_to_poll_client.durable_streams import DurableStreamFeed
from push_to_poll_client.feeds.paged import Entries, OldestFirst, PagedFeed, from_body, to_query
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("status", [200, 307, 401, 500])
async def test_g12_a_secret_is_not_shown_and_not_sent_to_another_origin(status, caplog):
    caplog.set_level(logging.DEBUG)
    asked = []

    def answer(request):
        asked.append(request)
        return httpx.Response(status, json=[], headers={"Location": "https://thief.example/feed"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), follow_redirects=True) as client:
        feed = HTTPFeed("https://shop.example/feed?key=canary", auth="canary", client=client)
        consumer = Log(feed)
        said = None
        try:
            await consumer.poll_now()
        except FeedError as error:
            said = "".join(traceback.format_exception(error))
        assert (said is None) == (status == 200)
    assert {request.url.host for request in asked} == {"shop.example"}
    assert {request.headers["authorization"] for request in asked} == {"Bearer canary"}
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("push_to_poll_client")]
    assert "canary" not in f"{said} {ours} {feed!r} {consumer!r} {consumer.status()!r} {consumer.name}"


# Secrets that a server repeats

CANARY = 'c4n4ry/"s3cr3t+ü'
"""A secret with characters that URLs, JSON and Python escape."""

ASCII_CANARY = "c4n4ry-s3cr3t-16"
PIECES = ("c4n4ry", "s3cr3t", base64.b64encode(f"user:{ASCII_CANARY}".encode()).decode()[:12])
URL = "https://shop.example/feed"


async def token():
    return ASCII_CANARY


WAYS = {
    "a token": {"auth": ASCII_CANARY},
    "a function": {"auth": token},
    "a pair": {"auth": ("user", ASCII_CANARY)},
    "a user without a password": {"auth": (ASCII_CANARY, "")},
    "an httpx.Auth": {"auth": httpx.BasicAuth("user", ASCII_CANARY)},
    "a password in the URL": {"url": f"https://user:{ASCII_CANARY}@shop.example/feed"},
    "a header": {"headers": {"X-Api-Key": ASCII_CANARY}},
    "a header of any name": {"headers": {"X-Shop": ASCII_CANARY}},
    "a header with a scheme": {"headers": {"Authorization": f"ApiKey {ASCII_CANARY}"}},
    "a cookie": {"headers": {"Cookie": f"theme=dark; sid={ASCII_CANARY}"}},
    "a header of the client": {"client_headers": {"X-Api-Key": ASCII_CANARY}},
    "a parameter": {"url": f"{URL}?api_key={quote(CANARY, safe='')}"},
    "a secret of the path": {"url": f"{URL}/{{token}}", "url_secrets": {"token": CANARY}},
    "a body": {"json": {"filter": {"access_token": CANARY}}},
    "a form": {"form": {"client_secret": CANARY}},
}
"""Ways to pass a secret to a feed."""


def written(secret):
    """Return the secret in the forms that servers write."""
    return {
        "plainly": secret,
        "in a URL": quote(secret, safe=""),
        "in a form": quote_plus(secret, safe="").lower(),
        "in JSON": json.dumps(secret)[1:-1].replace("/", "\\/"),
        "in HTML": html.escape(secret),
        "in Python": ascii(secret)[1:-1],
        "in capitals": secret.upper(),
        "in base64": base64.b64encode(f"user:{secret}".encode()).decode(),
    }


def location(text):
    return {"location": text.encode()}


ECHOES = {
    "the path of a redirect": lambda text: httpx.Response(302, headers=location(f"/{text}/x")),
    "the query of a redirect": lambda text: httpx.Response(302, headers=location(f"/login?next=/{text}")),
    "the fragment of a redirect": lambda text: httpx.Response(302, headers=location(f"//thief.example/#{text}")),
    "the host of a redirect": lambda text: httpx.Response(302, headers=location(f"//{text}.example/")),
    "a path elsewhere": lambda text: httpx.Response(302, headers=location(f"//cdn.example/{text}")),
    "an error": lambda text: httpx.Response(401, headers={b"www-authenticate": text.encode()}, text=text),
    "a permanent redirect": lambda text: httpx.Response(308, headers=location(f"{URL}/v2/{text}")),
    "the media type": lambda text: httpx.Response(200, headers={b"content-type": f"text/{text}".encode()}),
    "the encoding": lambda text: httpx.Response(200, headers={b"content-encoding": text.encode()}, content=b"x"),
    "a name": lambda text: httpx.Response(200, json={text: []}),
    "a name of a list": lambda text: httpx.Response(200, json={"data": {text: 1}}),
    "no JSON": lambda text: httpx.Response(200, headers={"content-type": "application/json"}, text=text),
    "an id": lambda text: httpx.Response(200, json={"data": [{"id": text}], "next": text}),
    "an id twice": lambda text: httpx.Response(200, json={"data": [{"id": text, "poison": 1}], "next": text}),
    "a next page": lambda text: httpx.Response(200, json={"data": [], "next": text}),
    "a broken connection": lambda text: httpx.RemoteProtocolError(f"illegal status line: {text}"),
}
"""Places where a server can repeat the secret."""


async def refuse(message):
    if "poison" in message.data:
        raise DeadLetterMessage(f"cannot use {message.id}")


async def everything_shown(way, answer, caplog):
    """Poll twice. Return the text of errors, log, status and `repr`."""
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    headers = {**way}.pop("client_headers", {})

    def respond(request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = httpx.AsyncClient(transport=httpx.MockTransport(respond), headers=headers)
    given = {name: value for name, value in way.items() if name not in {"url", "client_headers"}}
    feed = PagedFeed(
        way.get("url", URL),
        entries=Entries("data", id="id"),
        pages=OldestFirst(cursor=from_body("next"), send=to_query("after")),
        client=client,
        trusted_origins=["https://cdn.example"],
        **given,
    )
    shown = []
    async with client:
        consumer = Consumer(feed, store=MemoryStore(), name="orders", process=refuse)
        for _ in range(2):
            try:
                await consumer.poll_now()
            except PushToPollError as error:
                shown.append("".join(traceback.format_exception(error)))
        status = consumer.status()
        shown += [str(status.last_error), str(status.failing), repr(feed), repr(consumer)]
    shown += [record.getMessage() + (record.exc_text or "") for record in caplog.records]
    caplog.clear()
    return "\n".join(shown)


def secret_of(way):
    return CANARY if CANARY in str(way) or quote(CANARY, safe="") in str(way) else ASCII_CANARY


@pytest.mark.parametrize("way", WAYS)
async def test_g12_a_secret_that_a_server_repeats_is_masked(way, caplog):
    for echo, answer in ECHOES.items():
        if echo == "the host of a redirect" and secret_of(WAYS[way]) == CANARY:
            continue  # no host has such a name
        shown = await everything_shown(WAYS[way], answer(secret_of(WAYS[way])), caplog)
        assert not [piece for piece in PIECES if piece in shown], (echo, shown)


OFFSETS = {"stream-next-offset": "7", "stream-up-to-date": "true"}
"""Offsets in the form of a Durable Streams server."""


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        (HTTPFeed, "application/json"),
        (AtomFeed, "application/atom+xml"),
        (DurableStreamFeed, "application/json"),
    ],
)
async def test_g12_a_secret_is_masked_wherever_a_quotation_cuts_the_answer(kind, media_type):
    """Masking must come before cutting: a part of a secret cannot be recognised."""
    for before in range(60):
        body = "x" * before + " " + ASCII_CANARY
        answer = httpx.Response(200, text=body, headers={"content-type": media_type, **OFFSETS})
        client = httpx.AsyncClient(transport=httpx.MockTransport(lambda _, answer=answer: answer))
        async with client:
            with pytest.raises(FeedError) as failed:
                await kind(URL, auth=ASCII_CANARY, client=client).fetch(FetchRequest())
        assert ASCII_CANARY[:3] not in str(failed.value), before


@pytest.mark.parametrize(
    ("way", "how"),
    [
        *(("a parameter", how) for how in ("in a URL", "in a form", "in JSON", "in HTML", "in Python")),
        ("a pair", "in base64"),
        ("a token", "in capitals"),
    ],
)
async def test_g12_a_secret_that_a_server_repeats_is_masked_in_every_encoding(way, how, caplog):
    text = written(secret_of(WAYS[way]))[how]
    for echo, answer in ECHOES.items():
        if echo != "the host of a redirect":
            shown = await everything_shown(WAYS[way], answer(text), caplog)
            assert not [piece for piece in PIECES if piece.lower() in shown.lower()], (echo, shown)
