"""The reference server, which records each request before it answers, so that a kill erases nothing.

As a program it serves until its standard input ends: `python -m tests.chaos.chaos_server JOURNAL PORT BACKLOG
PAGE_SIZE`. A killed server that is restarted with the number of published messages has them again: an id is a
place.
"""

import json
import sys
import time

from push_to_poll_client.testing import ReferenceApp, serve_in_thread
from tests.chaos.journals import Journal

CLIENT = b"x-client"
"""Header with the client's name: the life of a consumer."""

PUSH = {"/push", "/events"}
"""Paths of the push channels: the websocket, and the server-sent events."""

KEEP_ALIVE = 0.2
"""Seconds of silence after which an event stream gets a comment."""


class RecordingApp(ReferenceApp):
    """Record client and path of each request."""

    def __init__(self, journal, **settings):
        super().__init__(**settings)
        self._journal = Journal(journal)

    async def __call__(self, scope, receive, send):
        client, path = dict(scope.get("headers", ())).get(CLIENT, b"-").decode(), scope.get("path")
        if path == "/feed":
            after = scope["query_string"].decode().partition("lastEventId=")[2].partition("&")[0]
            self._journal.write("asked", client, time.monotonic(), after or "-")
        if path in PUSH:
            self._journal.write("dialled", client, time.monotonic(), path)
        await super().__call__(scope, receive, send)


def main(journal, port, backlog, page_size):
    app = RecordingApp(journal, backlog=int(backlog), page_size=int(page_size), keep_alive=KEEP_ALIVE)
    with serve_in_thread(app, port=int(port)) as server:
        sys.stdout.write(json.dumps({"base_url": server.base_url}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
