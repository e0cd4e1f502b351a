"""Each kind of push channel under fire: who pushes on it, and a proxy on the way.

The messages of all are in one feed, that of the reference server. It pushes by itself where it can; else it is its
companion that does, a server that nobody here wrote, told of each publication.
"""

import contextlib
import socket
import time
from dataclasses import dataclass

import httpx
from brokers import NATS
from chaos_hub import Hub
from chaos_listeners import DEAD, HOST, ROOT, SECRET, STREAM
from durable_streams_server import Server, Stream
from journals import elapse, until
from postgres_server import PostgresServer, free_port
from processes import PATIENCE, ConsumerProcess, ServerProcess
from tcp_proxy import TCPProxy
from valkey_server import ValkeyServer
from verdicts import beyond_g2, beyond_g3, beyond_g7, disordered, longest_quiet, lost

RATE, BURST = 10, 5
FALLBACK, DEGRADED = 4.0, 0.5
TIMEOUT = 1.0
HASTE = 10.0
FLUSH_INTERVAL = 0.05

SLACK = 2.0
"""Seconds for what takes a tenth of one, with a dozen processes on two cores."""

MENDED = 10.0
"""Seconds in which each channel is up again, and pushed to. That a server forgot a subscription is noticed when it
is confirmed, every second and a half here."""

FOUND = 3 * DEAD + SLACK
"""Seconds in which a listener that can find that its connection is dead has found it: a long poll asks twice."""


class DurableStreams:
    """The server of its authors, with a stream of its own. Killed, it forgets streams and subscriptions."""

    def __init__(self, directory):
        self._server = Server(webhooks=True, longPollTimeout=DEAD * 1000 / 3)
        self._http = httpx.Client(trust_env=False, timeout=PATIENCE)

    @property
    def port(self):
        return httpx.URL(self._server.url).port

    def start(self):
        self._server.start()
        self._stream = Stream(self._http, f"{self._server.url}{ROOT}/{STREAM}", "application/json")
        self._stream.create()

    def push(self):
        self._stream.append(1)

    def kill(self):
        self._server.kill()

    def close(self):
        self._server.close()
        self._http.close()


class NATSServer(NATS):
    """A broker."""

    def __init__(self, directory):
        super().__init__()

    def push(self):
        with socket.create_connection((HOST, self.port), PATIENCE) as connection:
            connection.sendall(b'CONNECT {"verbose":false}\r\nPUB %b 0\r\n\r\nPING\r\n' % STREAM.encode())
            while b"PONG" not in connection.recv(65_536):
                pass


class PostgreSQL(PostgresServer):
    """A database."""

    def __init__(self, directory):
        super().__init__()

    def push(self):
        self.notify(STREAM)


class Valkey(ValkeyServer):
    """Another one."""

    def __init__(self, directory):
        super().__init__()

    def push(self):
        self.publish(STREAM)


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        pushed_by: The companion; `None`: the reference server.
        reached: Whether who pushes connects to us, and not we to it.
        finds: Whether a connection that swallows everything is noticed.
        backends: Event loops that it runs in.
    """

    pushed_by: type | None = None
    reached: bool = False
    finds: bool = True
    backends: tuple[str, ...] = ("asyncio", "trio")


KINDS = {
    "long_poll": Kind(),
    "webhook": Kind(reached=True, finds=False),
    "durable_webhook": Kind(DurableStreams, reached=True, finds=False),
    "pull_wake": Kind(DurableStreams),
    "websub": Kind(Hub, reached=True, finds=False),
    "nats": Kind(NATSServer, backends=("asyncio",)),
    "postgres": Kind(PostgreSQL, backends=("asyncio",)),
    "redis": Kind(Valkey, backends=("asyncio",)),
}


class Lane:
    """A consumer with a channel of one kind, and the proxy on the way between it and who pushes."""

    def __init__(self, name, kind, *, started, nursery, server, port, proxied, backend):
        self.name, self.kind, self.backend = name, kind, backend
        self.served = free_port() if kind.reached else None
        self.proxy = proxied(self.served or port)
        self.consumer = started(
            ConsumerProcess,
            name=name,
            url=server.url,
            push=[(name, self._settings(port))],
            answer_within=TIMEOUT,
            flush_interval=FLUSH_INTERVAL,
            fallback_interval=FALLBACK,
            degraded_interval=DEGRADED,
            rate=RATE,
            burst=BURST,
            haste=HASTE,
            nursery=nursery,
        )
        self.start()

    def _settings(self, port):
        if not self.kind.reached:
            return {"port": self.proxy.port}
        if self.kind.pushed_by is None:
            return {"served": self.served}
        return {"port": port, "served": self.served, "callback": self.proxy.port}

    def start(self):
        self.consumer.start(self.backend)

    def said(self, *what, since):
        """Whether its listener said one of these since then, in its present life."""
        said = self.consumer.journal.read().said
        return any(one.life == self.consumer.life and one.what in what and one.at > since for one in said)

    @property
    def is_up(self):
        said = [one.what for one in self.consumer.journal.read().said if one.life == self.consumer.life]
        return [what for what in said if what != "pushed"][-1:] == ["up"]

    def until_said(self, *what, since, within):
        until(lambda: self.said(*what, since=since), within, f"{self.name} says {' or '.join(what)}")


class Town:
    """The servers, and a lane for each kind."""

    def __init__(self, started, nursery, kinds):
        self._stack = contextlib.ExitStack()
        self.server = started(ServerProcess, page_size=100)
        self.companions = {}
        for companion in {kind.pushed_by for kind in kinds.values()} - {None}:
            self.companions[companion] = started(companion)
            self.companions[companion].start()
        self.lanes = [
            Lane(
                name,
                kind,
                started=started,
                nursery=nursery,
                server=self.server,
                port=self.companions[kind.pushed_by].port if kind.pushed_by else self.server.port,
                proxied=lambda port: self._stack.enter_context(TCPProxy(port)),
                backend=kind.backends[number % len(kind.backends)],
            )
            for number, (name, kind) in enumerate(kinds.items())
        ]
        for lane in self.lanes:
            if lane.kind.reached and lane.kind.pushed_by is None:
                self.server.send_webhooks(f"http://{HOST}:{lane.proxy.port}/", SECRET)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def begin(self):
        """All are connected, current, and pushed to."""
        for lane in self.lanes:
            until(lambda lane=lane: lane.is_up, PATIENCE, f"{lane.name} is up")
        self.pushes_arrive()

    def publish(self, count=1):
        """Publish, and push."""
        self.server.publish(count)
        for companion in self.companions.values():
            with contextlib.suppress(Exception):  # it is down, which each says in its own words
                companion.push()

    def kill_servers(self):
        self.server.kill()
        for companion in self.companions.values():
            companion.kill()

    def start_servers(self):
        self.server.start()
        for companion in self.companions.values():
            companion.start()

    def until_current(self, within):
        """All have handled what is published now.

        Args:
            within: Seconds from now.
        """
        ends = time.monotonic() + within
        for lane in self.lanes:
            lane.consumer.until_current(self.server, max(0.0, ends - time.monotonic()))

    def pushes_arrive(self):
        """Soon each is pushed to, and then what is published is found by that, sooner than by any timer."""
        self._until_pushed_to()
        for _ in range(3):
            since = time.monotonic()
            self.publish()
            self.until_current(FALLBACK * 0.6)
            for lane in self.lanes:
                lane.until_said("pushed", since=since, within=SLACK)

    def _until_pushed_to(self):
        since = time.monotonic()
        while unpushed := self._unpushed(since):
            assert time.monotonic() < since + MENDED, f"not pushed to within {MENDED:g} s: {unpushed}"
            self.publish()
            elapse(DEAD / 2)

    def _unpushed(self, since):
        return [lane.name for lane in self.lanes if not (lane.is_up and lane.said("pushed", since=since))]

    def end(self):
        """Let all end by themselves."""
        for lane in self.lanes:
            lane.consumer.stop()

    def judge(self, *, since=0.0):
        """Nothing lost, nothing twice, all in order; as the server saw it G2, G3, and G4 from a time on."""
        ids, journal = self.server.ids(), self.server.journal.read()
        assert len(ids) == self.server.published
        for lane in self.lanes:
            handled = lane.consumer.journal.read().handled
            assert lost(ids, handled) == []
            assert disordered(handled) == []
            assert beyond_g7(handled, killed=lane.consumer.killed, flush_interval=FLUSH_INTERVAL) == []
            asked = [one for one in journal.asked if one.client == lane.consumer.client and one.at > since]
            quiet = longest_quiet(asked, since=asked[0].at, until=asked[-1].at)
            assert quiet < FALLBACK + TIMEOUT + SLACK, f"{lane.name} was quiet for {quiet:.2f} s"
        assert beyond_g2(journal.asked) == []
        assert beyond_g3(journal.asked, rate=RATE, burst=BURST, slack=0.25) == []
