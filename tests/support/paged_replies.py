"""Responses of a server, in the form that the parts of a declaration get."""

import json

import httpx

from push_to_poll_client._http.response import Response
from push_to_poll_client.feeds._paged.body import Reply

URL = "https://api.vendor.example/v1/events?limit=2"

BODY = {"meta": {"next": "c2", "list": [{"id": 1}, {"id": 2}]}, "n": 0, "no": None, "": "nameless"}


def answer(body=b"", *, code=200, **headers):
    """Return a response; the body is encoded as JSON unless it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(code, httpx.Headers(named), content, None, URL, where="https://feed.example")


def reply(body=b"", *, entries=(), size=None, **kwargs):
    said = Reply(answer(body, **kwargs))
    said.entries, said.size = list(entries), len(entries) if size is None else size
    return said


def read(entries, body, *, each=None, start=None, most=100):
    """Return the messages of a page."""
    said = body if isinstance(body, Reply) else reply(body)
    return entries.read(entries.find(said, most), each=each, start=start)


def names(messages):
    return [message.id for message in messages]
