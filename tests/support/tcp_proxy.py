"""A TCP proxy that misbehaves when told to, between a client and a server on 127.0.0.1.

    with TCPProxy(server_port) as proxy:
        ...                      # the client talks to proxy.port
        proxy.blackhole()        # from any thread, at any time
        proxy.wait_for(lambda counts: counts.swallowed)
        proxy.heal()

"Up" is from the client to the server, "down" is back. A connection from which bytes were taken stays dead, as TCP
delivers nothing after a hole; that it was closed is passed on all the same.
"""

import asyncio
import contextlib
import socket
import struct
import threading
import time
import weakref
from dataclasses import dataclass, field

from tests.support.forms import GUARD

TICK = 0.01
"""Seconds between the pieces of a throttled connection."""

CHUNK = 65_536

UP, DOWN = True, False


@dataclass(slots=True)
class Treatment:
    """Treatment of the bytes of one direction, on every connection.

    Attributes:
        delay: Delay of each piece in seconds.
        swallow: True to take the bytes and not pass them on.
        trickle: Bytes that pass in each `TICK`; None for all.
    """

    delay: float = 0.0
    swallow: bool = False
    trickle: int | None = None


@dataclass(slots=True)
class Counts:
    """Counts since the start.

    Attributes:
        accepted: Accepted connections.
        open: Connections that are open now.
        passed: Bytes passed on, in both directions.
        swallowed: Bytes swallowed, in both directions.
        cut: Connections that the proxy cut.
    """

    accepted: int = 0
    open: int = 0
    passed: int = 0
    swallowed: int = 0
    cut: int = 0


class TCPProxy:
    """Pass everything on, until a method changes that. Its methods may be called from any thread.

    Args:
        target: The port of the server.

    Attributes:
        port: The port of the proxy.
        target: The port of the server. New connections follow a change.
        counts: Counts since the start.
        accepted_at: Time of each accepted connection, in seconds on the clock of `time.monotonic()`.
    """

    def __init__(self, target):
        self.counts = Counts()
        self.accepted_at = []
        self.target = target
        self._up, self._down = Treatment(), Treatment()
        self._cut_after = {UP: None, DOWN: None}
        self._connections = set()
        self.transports = weakref.WeakSet()  # those that were opened; a closed one soon disappears
        self._changed = threading.Condition()
        self._ready = threading.Event()
        # Bound and never listening: keeps the port while `refuse()` has closed the listening socket.
        self._reservation = _bound(0)
        self.port = self._reservation.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self):
        self._thread.start()
        self._ready.wait()
        return self

    @property
    def is_running(self):
        """True until the end of its block."""
        return self._thread.is_alive()

    def __exit__(self, *_):
        with contextlib.suppress(RuntimeError):  # its loop is closed, since a test has set `_stop`
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._reservation.close()

    # Faults

    def heal(self):
        """Pass everything on again, and accept. Dead connections stay dead."""
        self._treat(Treatment(), Treatment())
        self._cut_after = {UP: None, DOWN: None}
        self._call(self._listen)

    def delay(self, seconds):
        """Delay each piece, in both directions."""
        self._treat(Treatment(delay=seconds), Treatment(delay=seconds))

    def throttle(self, each_tick):
        """Limit both directions to so many bytes per `TICK`."""
        self._treat(Treatment(trickle=each_tick), Treatment(trickle=each_tick))

    def blackhole(self, *, up=True, down=True):
        """Take all bytes and pass on none, also on open connections."""
        self._treat(Treatment(swallow=up), Treatment(swallow=down))

    def refuse(self):
        """Accept no new connection. Open connections stay."""
        self._call(self._deafen)

    def cut(self, *, rst=False):
        """Close all connections, by FIN or by RST, before returning."""
        self._call(lambda: self._cut_all(rst=rst))

    def cut_after(self, count, *, rst=False, up=False):
        """Close the next connection that sends something down (or up), after so many bytes of it."""
        self._cut_after[up] = (count, rst)

    def half_close(self):
        """Send a FIN to the clients, but still pass on their data."""
        self._call(self._end_all_down)

    def wait_for(self, happened, *, timeout=GUARD):
        """Block until `happened(counts)` is true.

        Raises:
            TimeoutError: It was not true within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: happened(self.counts), timeout):
                raise TimeoutError(f"not within {timeout} s: {self.counts}")

    # Internals, in the proxy's own thread

    def count(self, **steps):
        with self._changed:
            for name, step in steps.items():
                setattr(self.counts, name, getattr(self.counts, name) + step)
            self._changed.notify_all()

    def _treat(self, up, down):
        self._up, self._down = up, down

    def _call(self, what):
        async def call():
            result = what()
            if result is not None:
                await result

        asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    async def _run(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._listening = None
        async with asyncio.TaskGroup() as self._tasks:
            self._listen()
            self._ready.set()
            await self._stop.wait()
            self._deafen()
            await self._cut_all(rst=True)
            for transport in [*self.transports]:  # some may still have data for a peer that does not read
                transport.abort()

    def _listen(self):
        if self._listening is None:
            self._listening = _bound(self.port)
            self._listening.listen()
            self._loop.add_reader(self._listening, self._accept)

    def _deafen(self):
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def _accept(self):
        """Accept a client. Not by a task: one that is cancelled can lose the accepted socket."""
        try:
            client, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the client is gone
            return
        self.accepted_at.append(time.monotonic())
        connection = _Connection(self, client)
        self._connections.add(connection)
        connection.task = self._tasks.create_task(connection.serve())
        connection.task.add_done_callback(connection.end)
        self.count(accepted=1)

    async def _cut_all(self, *, rst):
        cut = self._connections.copy()
        for connection in cut:
            connection.cut(rst=rst)
        for connection in cut:
            await connection.over.wait()

    def forget(self, connection):
        """Note that a connection is closed."""
        self._connections.remove(connection)

    def _end_all_down(self):
        for connection in self._connections:
            connection.end_down()

    def treatment(self, *, up):
        """Return the treatment for bytes that arrive now."""
        return self._up if up else self._down

    def cuts_after(self, *, up):
        """Return the number of bytes before the cut of this connection, and the kind of cut; None for no cut."""
        armed, self._cut_after[up] = self._cut_after[up], None
        return armed


@dataclass(eq=False)
class _Connection:
    """A client's connection and the matching connection to the server, from `accept` until both are closed.

    `client` and `server` are pairs of reader and writer, None before they are open.
    """

    proxy: TCPProxy
    accepted: socket.socket
    client: tuple | None = None
    server: tuple | None = None
    task: asyncio.Task | None = None
    dead: set = field(default_factory=set)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self):
        self.client = await self._open(sock=self.accepted)
        try:
            self.server = await self._open("127.0.0.1", self.proxy.target)
        except OSError:  # the server is away
            _close(self.client[1], rst=True)
            return
        self.proxy.count(open=1)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(self.client[0], self.server[1], up=True))
                tasks.create_task(self._pump(self.server[0], self.client[1], up=False))
        except* ConnectionError:
            pass
        finally:
            self._close(rst=False)

    async def _open(self, *address, **options):
        reader, writer = await asyncio.open_connection(*address, **options)
        self.proxy.transports.add(writer.transport)
        return reader, writer

    def end(self, _):
        """Close what is open. Called at the end of the task, even if that was cancelled before it began."""
        if self.client is None:
            self.accepted.close()
        self._close(rst=False)
        self.proxy.forget(self)
        self.over.set()
        if self.server is not None:
            self.proxy.count(open=-1)

    async def _pump(self, reader, writer, *, up):
        while data := await reader.read(CHUNK):
            treatment = self.proxy.treatment(up=up)
            if treatment.swallow:
                self.dead.add(up)
            if treatment.delay:
                await asyncio.sleep(treatment.delay)
            if up in self.dead:
                self.proxy.count(swallowed=len(data))
            else:
                await self._pass_on(data, writer, treatment.trickle, up=up)
        if self.dead:
            raise ConnectionAbortedError
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _pass_on(self, data, writer, trickle, *, up):
        armed = self.proxy.cuts_after(up=up)
        if armed is not None:
            writer.write(data[: armed[0]])
            self.cut(rst=armed[1])
            raise ConnectionAbortedError
        for piece in _pieces(data, trickle):
            writer.write(piece)
            await writer.drain()
            self.proxy.count(passed=len(piece))
            if trickle:
                await asyncio.sleep(TICK)

    def end_down(self):
        self.dead.add(DOWN)
        if self.client is not None:
            self.client[1].write_eof()

    def cut(self, *, rst):
        self.proxy.count(cut=1)
        self._close(rst=rst)
        if self.server is None:
            self.task.cancel()

    def _close(self, *, rst):
        for side in (self.client, self.server):
            if side is not None:
                _close(side[1], rst=rst)


def _bound(port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.settimeout(0)
    return sock


def _pieces(data, size):
    return [data] if size is None else [data[start : start + size] for start in range(0, len(data), size)]


def _close(writer, *, rst):
    if rst and not writer.is_closing():
        linger = struct.pack("ii", 1, 0)  # drop unsent data and send RST
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    writer.close()
