"""The reference server under fire: writes down each request before it answers, so that a kill erases nothing.

As a program it serves until its standard input ends: `chaos_server.py JOURNAL PORT BACKLOG PAGE_SIZE`. A server
that was killed and is started with as many messages as were published has them again: an id is a place.
"""

import itertools
import json
import os
import sys
import time
from contextlib import suppress

import msgspec
from journals import Journal

from push_to_poll_client.testing import ReferenceApp, serve_in_thread

CLIENT = b"x-client"
"""The header by which a consumer says who asks: its life."""

PUSH = {"/push", "/events"}
"""Where the push channels are: the websocket, and the server-sent events."""

KEEP_ALIVE = 0.2
"""Seconds of silence after which an event stream gets a comment."""


class _Event(msgspec.Struct):
    id: str


class RecordingApp(ReferenceApp):
    """Writes down who asks for what, and what he got."""

    def __init__(self, journal, **settings):
        super().__init__(**settings)
        self._journal = Journal(journal)
        self._requests = (f"{os.getpid()}-{number}" for number in itertools.count())

    async def __call__(self, scope, receive, send):
        client, path = dict(scope.get("headers", ())).get(CLIENT, b"-").decode(), scope.get("path")
        if path == "/feed":
            await self._answer_feed(client, scope, receive, send)
            return
        if path in PUSH:
            self._journal.write("dialled", client, time.monotonic(), path)
        await super().__call__(scope, receive, send)

    async def _answer_feed(self, client, scope, receive, send):
        request, answer = next(self._requests), _Answer(send)
        after = scope["query_string"].decode().partition("lastEventId=")[2].partition("&")[0]
        self._journal.write("asked", request, client, time.monotonic(), after or "-")
        try:
            await super().__call__(scope, receive, answer.send)
        finally:
            self._journal.write(
                "answered", request, time.monotonic(), answer.status, answer.last or "-", answer.retry_after
            )


class _Answer:
    """Looks at what is sent."""

    def __init__(self, send):
        self._send = send
        self._body = b""
        self.status = 0
        self.last = None
        self.retry_after = 0.0

    async def send(self, message):
        await self._send(message)
        self.status = message.get("status", self.status)
        with suppress(ValueError, KeyError):
            self.retry_after = float(dict(message["headers"])[b"retry-after"])
        self._body += message.get("body", b"")
        if message["type"] == "http.response.body" and not message.get("more_body") and self.status == 200:
            events = msgspec.json.decode(self._body, type=list[_Event])
            self.last = events[-1].id if events else None


def main(journal, port, backlog, page_size):
    app = RecordingApp(journal, backlog=int(backlog), page_size=int(page_size), keep_alive=KEEP_ALIVE)
    with serve_in_thread(app, port=int(port)) as server:
        sys.stdout.write(json.dumps({"base_url": server.base_url}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
