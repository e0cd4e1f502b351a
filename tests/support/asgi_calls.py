"""Call an ASGI application event by event, without a server."""

import contextlib
import hashlib
import hmac
import json
from typing import NamedTuple

import anyio
import anyio.lowlevel

from push_to_poll_client.listeners.webhook import Verified

SECRET = b"s3cr3t"

GONE = {"type": "http.disconnect"}


class Answer(NamedTuple):
    """Response of an application."""

    status: int
    headers: dict
    body: bytes


def scope_of(method="POST", path="/", *, query=b"", headers=(), **more):
    fields = dict(headers).items()
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields],
        **more,
    }


def parts_of(*parts):
    """Return the events of a body in pieces; a number is a delay, a mapping is an event."""
    for number, part in enumerate(parts):
        if isinstance(part, bytes):
            yield {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        else:
            yield part


async def asked(app, scope, *parts):
    """Send a request to an application. Return its response, or None if it sent none."""
    events, sent = parts_of(*(parts or (b"",))), []

    async def receive():
        for event in events:
            if isinstance(event, dict):
                return event
            await anyio.sleep(event)
        return await anyio.sleep_forever()

    async def send(event):
        sent.append(event)

    await app(scope, receive, send)
    return answer_of(sent)


def answer_of(sent):
    if not sent:
        return None
    start, body = sent
    assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(headers) == len(start["headers"])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    if start["status"] != 204:
        assert headers["content-length"] == str(len(body["body"]))
    return Answer(start["status"], headers, body["body"])


async def posted(app, body=b"", *, path="/", query=b"", headers=None, **more):
    headers = signed(body) if headers is None else headers
    return await asked(app, scope_of(path=path, query=query, headers=headers, **more), body)


def signature_of(body):
    return hmac.new(SECRET, body, hashlib.sha256).hexdigest()


def signed(body, **more):
    return {"X-Signature": signature_of(body), "Content-Length": str(len(body)), **more}


class Signatures:
    """Verifier for these tests: an HMAC of the body in a header, and an id."""

    def __init__(self, until=None):
        self.until = until
        self.asked = 0

    def may_pass(self, request):
        return "x-signature" in request.headers

    def __call__(self, request):
        self.asked += 1
        if not hmac.compare_digest(signature_of(request.body), request.headers["x-signature"]):
            return None
        delivery = request.headers.get("x-id")
        return Verified(once=() if delivery is None else (delivery.encode(),), until=self.until)


def naming(*names, **more):
    """Return a body that names its receivers."""
    return json.dumps({"to": {"names": list(names)}, **more}).encode()


@contextlib.asynccontextmanager
async def listened(*listeners, channel):
    """Run each listener, with its own channel, until the end of the block."""
    channels = [channel() for _ in listeners]
    async with anyio.create_task_group() as tasks:
        for listener, one in zip(listeners, channels, strict=True):
            tasks.start_soon(listener.listen, one)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        yield channels[0] if len(channels) == 1 else channels
        tasks.cancel_scope.cancel()
