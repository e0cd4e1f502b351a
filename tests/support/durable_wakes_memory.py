"""The pull-wake side of a Durable Streams server, in memory, by PROTOCOL.md §6 and §7 of its authors.

For what has to happen between two steps of a listener, and for what the real server does not do. Whatever happens
is a point, in order; a test may append a message at any of them, or lose what is on its way.
"""

import json

import anyio
import httpx

from tests.support.channels import TimedChannel

ROOT = "https://streams.example/v1/stream"


class Subscription:
    """As the server has it, of one stream."""

    def __init__(self, asked, tail):
        self.asked, self.acked = asked, tail
        self.generation, self.wake_id, self.holder, self.ends = 0, None, None, None


class Wakes(httpx.AsyncBaseTransport):
    """A server with the one stream "orders".

    Args:
        at: Called at each point with its number and its name. It may append, and raise what a client then gets:
            before a request is worked on ("claim"), or after it ("claimed"), when the answer is lost.

    Attributes:
        log: What was appended and who was woken, in order.
        requests: All.
        answers: What is answered instead, by the last step of the path: a response, or a list of them in turn.
    """

    def __init__(self, at=lambda number, name: None):
        self.at = at
        self.points = []
        self.log = []
        self.requests = []
        self.answers = {}
        self.subscriptions = {}
        self.wakes = None  # there is no wake stream yet
        self.tail = 0
        self.open = 0
        self._changed = self._leased = anyio.Event()
        self.ends = 0

    # What happens on the server

    def append(self):
        self.tail += 1
        self.log.append("append")
        for name, one in self.subscriptions.items():
            if one.wake_id is None:
                self._wake_if_pending(name, one)

    def forget(self):
        """As a server that keeps subscriptions in memory does when it is restarted."""
        self.subscriptions.clear()
        self.end_streams()

    def end_streams(self):
        self.ends += 1
        self._stir()

    async def leases(self):
        """Ends them in time."""
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
        """Into the wake stream, as somebody else may."""
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

    # What is asked of it

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
    """The wake stream from where it ends when it is opened."""

    def __init__(self, server):
        self._server = server
        self._at, self._ends = len(server.wakes), server.ends

    async def __aiter__(self):
        self._server.open += 1
        yield b'event: control\ndata: {"streamNextOffset":"0"}\n\n'
        while self._ends == self._server.ends:
            changed = self._server._changed
            while wakes := self._server.wakes[self._at :]:  # all at once, as a socket has them
                self._at += len(wakes)
                self._server._point("event")
                yield "".join(f"event: data\ndata: {wake}\n\n" for wake in wakes).encode()
            if self._ends == self._server.ends:
                await changed.wait()

    async def aclose(self):
        self._server.open = max(0, self._server.open - 1)


class LoggedChannel(TimedChannel):
    """Writes down on the server too when its consumer polls."""

    def __init__(self, server, name="wake"):
        super().__init__()
        self._server, self._name = server, name

    def _note(self, event):
        super()._note(event)
        if event != "down":
            self._server.log.append(self._name)
            self._server._point("wake")
