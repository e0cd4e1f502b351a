"""The pull-wake side of a Durable Streams server, in memory, by its PROTOCOL.md §6 and §7.

For events between two steps of a listener, and for cases that the real server does not have. Every step of the
server is a numbered point; at each point a test may append a message, or lose the one in transit.
"""

import json

import anyio
import httpx

from tests.support.channels import TimedChannel

ROOT = "https://streams.example/v1/stream"


class Subscription:
    """A subscription to one stream, as the server stores it."""

    def __init__(self, asked, tail):
        self.asked, self.acked = asked, tail
        self.generation, self.wake_id, self.holder, self.ends = 0, None, None, None


class Wakes(httpx.AsyncBaseTransport):
    """A server with the one stream "orders".

    Args:
        at: Called at each point with its number and name. It may append. It may raise the error that the client
            gets: before the server handles a request ("claim"), or after it, when the response is lost
            ("claimed").

    Attributes:
        log: The messages appended and the consumers woken, in order.
        requests: All requests.
        answers: Responses that replace the normal ones, by the last step of the path: one, or a list in turn.
    """

    def __init__(self, at=lambda number, name: None):
        self.at = at
        self.points = []
        self.log = []
        self.requests = []
        self.answers = {}
        self.subscriptions = {}
        self.wakes = None  # no wake stream exists yet
        self.tail = 0
        self.open = 0
        self._changed = self._leased = anyio.Event()
        self.ends = 0

    # Events on the server

    def append(self):
        self.tail += 1
        self.log.append("append")
        for name, one in self.subscriptions.items():
            if one.wake_id is None:
                self._wake_if_pending(name, one)

    def forget(self):
        """Forget the subscriptions, as a server does that keeps them in memory and restarts."""
        self.subscriptions.clear()
        self.end_streams()

    def end_streams(self):
        self.ends += 1
        self._stir()

    async def leases(self):
        """End the leases that are over."""
        while True:
            ends = [one.ends for one in self.subscriptions.values() if one.ends is not None]
            if not ends:
                self._leased = anyio.Event()
                await self._leased.wait()
                continue
            await anyio.sleep_until(min(ends))
            for name, one in self.subscriptions.items():
                if one.ends is not None and anyio.current_time() >= one.ends:
                    self._over(name, one)

    def write(self, event):
        """Append to the wake stream, as another program may."""
        self.wakes.append(event if isinstance(event, str) else json.dumps([event]))
        self._stir()

    def _wake_if_pending(self, name, one):
        if self.tail > one.acked:
            one.generation += 1
            one.wake_id = f"w_{one.generation}"
            if self.wakes is not None:
                self.write({"type": "wake", "subscription_id": name, "stream": "orders", "generation": 1})

    def _over(self, name, one):
        one.wake_id = one.holder = one.ends = None
        self._wake_if_pending(name, one)

    def _stir(self):
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _point(self, name):
        self.points.append(name)
        self.at(len(self.points) - 1, name)

    # Requests

    async def handle_async_request(self, request):
        self.requests.append(request)
        step = request.url.path.rpartition("/")[2]
        what = {"claim": "claim", "ack": "ack", "release": "release"}.get(step, request.method.lower())
        given = self.answers.get(step)
        if given is not None:
            given = given.pop(0) if isinstance(given, list) else given
            if isinstance(given, Exception):
                raise given
            if given is not None:
                return given
        self._point(what)
        answer = getattr(self, f"_{what}")(request)
        self._point(f"{what} answered")
        return answer

    def _get(self, request):
        if self.wakes is None:
            return httpx.Response(404)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Events(self))

    def _put(self, request):
        if "/__ds/" not in request.url.path:
            self.wakes = [] if self.wakes is None else self.wakes
            return httpx.Response(201)
        name = request.url.path.rpartition("/")[2]
        status = 200 if name in self.subscriptions else 201
        self.subscriptions.setdefault(name, Subscription(json.loads(request.content), self.tail))
        return httpx.Response(status, json={})

    def _delete(self, request):
        self.subscriptions.pop(request.url.path.rpartition("/")[2], None)
        return httpx.Response(204)

    def _claim(self, request):
        one = self._asked_of(request)
        if one is None:
            return httpx.Response(404, json={"error": {"code": "SUBSCRIPTION_NOT_FOUND"}})
        if one.holder is not None:
            return httpx.Response(409, json={"error": {"code": "ALREADY_CLAIMED"}})
        if self.tail <= one.acked:
            return httpx.Response(409, json={"error": {"code": "NO_PENDING_WORK"}})
        if one.wake_id is None:
            self._wake_if_pending(request.url.path.split("/")[-2], one)
        one.holder = json.loads(request.content)["worker"]
        self._leased.set()
        one.ends = anyio.current_time() + one.asked["lease_ttl_ms"] / 1000
        stream = {"path": "orders", "acked_offset": f"{one.acked:08}", "tail_offset": f"{self.tail:08}"}
        return httpx.Response(
            200,
            json={
                "wake_id": one.wake_id,
                "generation": one.generation,
                "token": f"t0ken-{one.generation}",
                "streams": [{**stream, "has_pending": True}, {**stream, "path": "idle", "has_pending": False}],
            },
        )

    def _ack(self, request):
        one, asked = self._asked_of(request), json.loads(request.content)
        if not self._fences(request, one, asked):
            return httpx.Response(409, json={"error": {"code": "FENCED"}})
        (ack,) = asked["acks"]
        assert ack["stream"] == "orders"
        one.acked = int(ack["offset"])
        self._over(request.url.path.split("/")[-2], one)
        return httpx.Response(200, json={"ok": True})

    def _release(self, request):
        one = self._asked_of(request)
        if not self._fences(request, one, json.loads(request.content)):
            return httpx.Response(409, json={"error": {"code": "FENCED"}})
        self._over(request.url.path.split("/")[-2], one)
        return httpx.Response(204)

    def _asked_of(self, request):
        return self.subscriptions.get(request.url.path.split("/")[-2])

    def _fences(self, request, one, asked):
        assert request.headers["authorization"].startswith("Bearer t0ken-")
        return one is not None and one.holder is not None and asked["wake_id"] == one.wake_id


class Events(httpx.AsyncByteStream):
    """The wake stream, from its end at the time of the request."""

    def __init__(self, server):
        self._server = server
        self._at, self._ends = len(server.wakes), server.ends

    async def __aiter__(self):
        self._server.open += 1
        yield b'event: control\ndata: {"streamNextOffset":"0"}\n\n'
        while self._ends == self._server.ends:
            changed = self._server._changed
            while wakes := self._server.wakes[self._at :]:  # all at once, as on a socket
                self._at += len(wakes)
                self._server._point("event")
                yield "".join(f"event: data\ndata: {wake}\n\n" for wake in wakes).encode()
            if self._ends == self._server.ends:
                await changed.wait()

    async def aclose(self):
        self._server.open = max(0, self._server.open - 1)


class LoggedChannel(TimedChannel):
    """Record on the server too when the consumer polls."""

    def __init__(self, server, name="wake"):
        super().__init__()
        self._server, self._name = server, name

    def _note(self, event):
        super()._note(event)
        if event != "down":
            self._server.log.append(self._name)
            self._server._point("wake")
