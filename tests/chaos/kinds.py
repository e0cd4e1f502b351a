"""Kinds of push channels in chaos tests: the push server, and a proxy on the way.

All messages are in the feed of the reference server. It pushes by itself where it can. Otherwise its companion
pushes: a real server of another project, which is told of each publication.
"""

import contextlib
import socket
import time
from dataclasses import dataclass

import httpx

from tests.chaos.chaos_hub import Hub
from tests.chaos.chaos_listeners import DEAD, HOST, ROOT, SECRET, STREAM
from tests.chaos.journals import elapse, until
from tests.chaos.processes import GUARD, NEVER, ConsumerProcess, ServerProcess, reserved
from tests.chaos.verdicts import beyond_g2, beyond_g3, beyond_g7, disordered, lost, poll_starts, unrecorded
from tests.support.brokers import NATS
from tests.support.durable_streams_server import Server, Stream
from tests.support.postgres_server import PostgresServer
from tests.support.tcp_proxy import TCPProxy
from tests.support.valkey_server import ValkeyServer

RATE, BURST = 10, 5
DEGRADED = 1.0
FALLBACK = 4.0
"""Seconds, for channels that may lose a push without noticing. The others have no fallback."""

SOONEST_TIMER = 0.9 * DEGRADED
"""Seconds without a poll before which no timer polls: the consumer shortens intervals by at most a tenth."""

BETWEEN_PUSHES = 0.15
"""Seconds in which a poll can end and a token is added."""

TIMEOUT = 1.0
HASTE = 10.0
COMMIT_INTERVAL = 0.05


class DurableStreams:
    """The server of the protocol's authors, with its own stream. A kill loses streams and subscriptions."""

    def __init__(self, directory):
        self._server = Server(webhooks=True, longPollTimeout=DEAD * 1000 / 3)
        self._http = httpx.Client(trust_env=False, timeout=GUARD)

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
    """A NATS broker."""

    def __init__(self, directory):
        super().__init__()

    def push(self):
        with socket.create_connection((HOST, self.port), GUARD) as connection:
            connection.sendall(b'CONNECT {"verbose":false}\r\nPUB %b 0\r\n\r\nPING\r\n' % STREAM.encode())
            while b"PONG" not in connection.recv(65_536):
                pass


class PostgreSQL(PostgresServer):
    """A PostgreSQL database."""

    def __init__(self, directory):
        super().__init__()

    def push(self):
        self.notify(STREAM)


class Valkey(ValkeyServer):
    """A Valkey database."""

    def __init__(self, directory):
        super().__init__()

    def push(self):
        self.publish(STREAM)


@dataclass(frozen=True)
class Kind:
    """One kind of push channel.

    Attributes:
        pushed_by: The companion; `None` for the reference server.
        reached: True if the push server connects to us.
        finds: True if a connection that drops everything is noticed.
        forgives: True if one missing answer counts as silence, so that its push is lost unnoticed.
        backends: Event loops that it runs in.
    """

    pushed_by: type | None = None
    reached: bool = False
    finds: bool = True
    forgives: bool = False
    backends: tuple[str, ...] = ("asyncio", "trio")


KINDS = {
    "long_poll": Kind(forgives=True),
    "webhook": Kind(reached=True, finds=False),
    "durable_webhook": Kind(DurableStreams, reached=True, finds=False),
    "pull_wake": Kind(DurableStreams),
    "websub": Kind(Hub, reached=True, finds=False),
    "nats": Kind(NATSServer, backends=("asyncio",)),
    "postgres": Kind(PostgreSQL, backends=("asyncio",)),
    "redis": Kind(Valkey, backends=("asyncio",)),
}


class Lane:
    """A consumer with a channel of one kind, and the proxy to the push server."""

    def __init__(self, name, kind, *, started, fork_server, server, port, proxied, backend):
        self.name, self.kind, self.backend = name, kind, backend
        self._reservation = reserved() if kind.reached else None
        self.served = self._reservation and self._reservation.getsockname()[1]
        self.proxy = proxied(self.served or port)
        self.consumer = started(
            ConsumerProcess,
            name=name,
            url=server.url,
            push=[(name, self._settings(port))],
            answer_within=TIMEOUT,
            commit_interval=COMMIT_INTERVAL,
            fallback_interval=NEVER if kind.finds and not kind.forgives else FALLBACK,
            degraded_interval=DEGRADED,
            rate=RATE,
            burst=BURST,
            haste=HASTE,
            fork_server=fork_server,
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
        """Return True if its listener reported one of these since then, in its current life."""
        said = self.consumer.journal.read().said
        return any(one.life == self.consumer.life and one.what in what and one.at > since for one in said)

    @property
    def is_up(self):
        said = [one.what for one in self.consumer.journal.read().said if one.life == self.consumer.life]
        return [what for what in said if what != "pushed"][-1:] == ["up"]

    def until_said(self, *what, since):
        until(lambda: self.said(*what, since=since), GUARD, f"{self.name} says {' or '.join(what)}")

    def polled_for_a_push(self, *, since):
        """Return True if only a push since then explains a poll.

        No timer is due so soon after a successful poll, and the channel did not reconnect meanwhile.
        """
        journal = self.consumer.journal.read()
        fetches = [fetch for fetch in journal.fetches if fetch.client == self.consumer.client]
        said = [one for one in journal.said if one.life == self.consumer.life and one.at > since]
        for before, poll in poll_starts(fetches):
            if before and not before.failed and poll.at - before.ended < SOONEST_TIMER:
                meanwhile = {one.what for one in said if before.ended < one.at < poll.at}
                if "pushed" in meanwhile and "up" not in meanwhile:
                    return True
        return False

    def close(self):
        if self._reservation is not None:
            self._reservation.close()


class Town:
    """The servers, and a lane for each kind."""

    def __init__(self, started, fork_server, kinds):
        self._stack = contextlib.ExitStack()
        self._reservations = self._stack.enter_context(contextlib.ExitStack())
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
                fork_server=fork_server,
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
        for lane in self.lanes:
            lane.close()

    def begin(self):
        """Wait until all are connected and current, and pushes arrive."""
        for lane in self.lanes:
            until(lambda lane=lane: lane.is_up, GUARD, f"{lane.name} is up")
        self.pushes_arrive()

    def publish(self, count=1):
        """Publish, and push."""
        self.server.publish(count)
        for companion in self.companions.values():
            with contextlib.suppress(Exception):  # it is down; each has other errors
                companion.push()

    def kill_servers(self):
        self.server.kill()
        for companion in self.companions.values():
            port = companion.port
            companion.kill()
            self._reservations.enter_context(reserved(port))

    def start_servers(self):
        self.server.start()
        for companion in self.companions.values():
            companion.start()
        self._reservations.close()

    def until_current(self):
        """Wait until all have handled all published messages."""
        for lane in self.lanes:
            lane.consumer.until_current(self.server)

    def pushes_arrive(self):
        """Check that each lane gets a push, and polls for no other reason.

        A push may be lost until a channel is up again, and on a busy machine a timer may come first. So pushes are
        repeated until each lane has polled for one.
        """
        since = time.monotonic()
        while waiting := [lane.name for lane in self.lanes if not self._arrive(lane, since)]:
            assert time.monotonic() < since + GUARD, f"pushes do not make these poll: {waiting}"
            self.publish()
            self.until_current()
            elapse(BETWEEN_PUSHES)

    def _arrive(self, lane, since):
        return lane.is_up and lane.polled_for_a_push(since=since)

    def end(self):
        """Let all end by themselves."""
        for lane in self.lanes:
            lane.consumer.stop()

    def judge(self):
        """Check: nothing lost, nothing twice, all in order; G2 and G3."""
        ids, journal = self.server.ids(), self.server.journal.read()
        assert len(ids) == self.server.published
        fetches = []
        for lane in self.lanes:
            handled = lane.consumer.journal.read().handled
            assert lost(ids, handled) == []
            assert disordered(handled) == []
            assert beyond_g7(handled, killed=lane.consumer.killed, commit_interval=COMMIT_INTERVAL) == []
            fetches += lane.consumer.journal.fetches
        assert beyond_g2(fetches) == []
        assert beyond_g3(fetches, rate=RATE, burst=BURST) == []
        assert unrecorded(journal.asked, fetches) == []
