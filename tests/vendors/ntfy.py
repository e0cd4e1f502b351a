"""ntfy: GET /topic/json?poll=1&since=. The body is lines of JSON; an unknown id reads everything again.

Without `poll=1` the response is a stream, with `open` and `keepalive` among the messages; this simulation ends it
after the existing messages. Scheduled messages appear late, with the id that they got earlier.

`/sse` is a stream of server-sent events without ids. Messages do not have an event type, all other events do.
"""

import json

import anyio
import httpx

from tests.vendors.vendor import Vendor, name, when

KEEPALIVE = 45
"""Seconds without a message after which a stream sends a keepalive."""


class Ntfy(Vendor):
    origin = "https://ntfy.vendor.example"
    path = "/orders/json"
    forgotten = 0
    """Number of messages that have left the cache, which keeps them for 12 hours."""

    def __init__(self, *args, **kwargs):
        self.scheduled = []
        super().__init__(*args, **kwargs)

    def entry(self, number):
        return self._event("message", number, message=f"message {number}", expires=when(number) + 43_200)

    def schedule(self):
        """Schedule a message: it has its id now and appears when it is delivered."""
        number = len(self.entries) + len(self.scheduled) + 1
        self.scheduled.append(self._event("message", 1000 + number, message=f"message {number}"))

    def deliver(self):
        self.entries += self.scheduled
        self.scheduled = []

    def unauthorized(self):
        return error(401, 40101, "unauthorized")

    def throttled(self):
        return error(429, 42901, "limit reached: too many requests, please be nice")

    def answer(self, request):
        asked = request.url.params
        poll = asked.get("poll") == "1" or request.headers.get("x-poll") == "1"
        shown = self._since(asked.get("since", "all" if poll else "none"))
        if shown is None:
            return error(400, 40008, "invalid request: since parameter invalid")
        if not poll:
            shown = [self._event("open", 8001), *shown, self._event("keepalive", 8002)]
        lines = "".join(json.dumps(one) + "\n" for one in shown)
        return httpx.Response(200, text=lines, headers={"content-type": "application/x-ndjson; charset=utf-8"})

    def stream(self):
        """Return a transport that answers each request with the events of `/sse`."""

        async def answer(_request):
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Events(self))

        return httpx.MockTransport(answer)

    def _since(self, since):
        kept = self.entries[self.forgotten :]
        if since in {"all", "none", "latest"}:
            return {"all": kept, "none": [], "latest": kept[-1:]}[since]
        if since.isdecimal() and len(since) < 12:
            return [event for event in kept if event["time"] >= int(since)]
        if len(since) != len(name(0)):
            return None
        places = [place for place, event in enumerate(kept, 1) if event["id"] == since]
        return kept[places[0] :] if places else kept

    def _event(self, event, number, **more):
        return {"id": name(number), "time": when(number), "event": event, "topic": "orders", **more}


class Events(httpx.AsyncByteStream):
    """An endless stream of the messages published after its start."""

    def __init__(self, vendor):
        self.vendor = vendor

    async def __aiter__(self):
        yield self._said("open", self.vendor._event("open", 8001))
        place = len(self.vendor.entries)
        while True:
            with anyio.move_on_after(KEEPALIVE):
                while place == len(self.vendor.entries):
                    await self.vendor.published.wait()
            news = self.vendor.entries[place:]
            place += len(news)
            for event in news:
                yield self._said("", event)
            if not news:
                yield self._said("keepalive", self.vendor._event("keepalive", 8002))

    def _said(self, kind, event):
        return (f"event: {kind}\n" if kind else "").encode() + f"data: {json.dumps(event)}\n\n".encode()


def error(status, code, text):
    return httpx.Response(status, json={"code": code, "http": status, "error": text})
