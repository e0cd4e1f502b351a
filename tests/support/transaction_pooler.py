"""A connection pooler in transaction mode, as a stand-in for PgBouncer, which is not available as a wheel.

    with TransactionPooler(server.port, size=2) as pooler:
        psycopg.connect(pooler.conninfo)

A client gets a server connection at the first message of a transaction, and gives it back at the ReadyForQuery
that ends the transaction, when each Sync and each query is answered. The state of a session (LISTEN, advisory
locks, SET, prepared statements) stays with the server connection, and the next client finds it there.

Modelled on PgBouncer 1.25, with prepared statements as before 1.21 (`max_prepared_statements = 0`):

- A notification goes to the client that has the server connection at that moment; without one it is dropped.
- A client that leaves in a transaction, or before its answers, takes its server connection along: it is closed.
- If a server connection ends, its client gets an error and is disconnected.
- A client can connect while the server is away, if an earlier one with the same user and database could.
- Startup parameters that it does not know are refused, such as `options`.
- A server connection gets the `application_name` of its client. Other parameters are those of the first client.

- Its clients get keys for cancellation of its own, in place of the server's processes and keys.

Not like PgBouncer: no password, no TLS, no time limits, and requests to cancel are ignored.
"""

import asyncio
import contextlib
import secrets
import struct
import threading
import weakref

__all__ = ["TransactionPooler"]

SSL, GSS, CANCEL = 80_877_103, 80_877_104, 80_877_102

KNOWN_PARAMETERS = {
    *("user", "database", "application_name", "client_encoding", "DateStyle", "TimeZone", "IntervalStyle"),
    *("datestyle", "timezone", "intervalstyle", "standard_conforming_strings", "search_path"),
}

READY = b"Z\0\0\0\5I"

ANSWERED_BY_READY = b"QSF"
"""Query, Sync and FunctionCall: the server answers each with one ReadyForQuery."""

BEGINS_NOTHING = b"dcfH"
"""CopyData, CopyDone, CopyFail and Flush. Without a command before them the server ignores them."""


class TransactionPooler:
    """Listen on a port of its own, in a thread of its own.

    Args:
        target: The port of the server, which must accept `me` without a password.
        size: Most server connections for each pair of user and database.
        user: User in `conninfo`.

    Attributes:
        port: The port of the pooler.
    """

    def __init__(self, target, *, size=2, user="me"):
        self._target = target
        self._size = size
        self._user = user
        self._pools = {}
        self._writers = weakref.WeakSet()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self):
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(RuntimeError):  # its loop is closed, since a test has set `_stop`
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def conninfo(self):
        return f"postgresql://{self._user}@127.0.0.1:{self.port}/postgres"

    async def _run(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listening = await asyncio.start_server(self._serve, "127.0.0.1")
        self.port = listening.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        self._loop.remove_reader(listening.sockets[0])
        # Until each accepted client is served: asyncio loses its socket if the server or its task ends earlier.
        for _ in range(5):
            await asyncio.sleep(0)
        listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in list(self._writers):
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader, writer):
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if parameters := await _startup(reader, writer):
                await self._welcome(reader, writer, parameters)
        writer.close()

    async def _welcome(self, reader, writer, parameters):
        unknown = sorted(set(parameters) - KNOWN_PARAMETERS)
        if unknown:
            writer.write(_error("08P01", f"unsupported startup parameter: {unknown[0]}"))
            return
        identity = (parameters["user"], parameters.get("database", parameters["user"]))
        pool = self._pools.setdefault(identity, _Pool(self._target, self._size, self._writers))
        if pool.welcome is None:
            try:
                pool.give_back(await pool.take(parameters))
            except _ServerAwayError as error:
                writer.write(error.answer)
                return
        key = _message(b"K", secrets.token_bytes(8))
        writer.write(_message(b"R", struct.pack("!i", 0)) + pool.welcome + key + READY)
        await _Client(reader, writer, pool, parameters).serve()


class _ServerAwayError(Exception):
    """The server refused a connection. `answer` is the error message for the client."""

    def __init__(self, answer):
        super().__init__(answer)
        self.answer = answer


class _Pool:
    """The server connections of one user and database, at most `size`; the one used last comes first."""

    def __init__(self, target, size, writers):
        self._writers = writers
        self.welcome = None
        self._target = target
        self._free = asyncio.Semaphore(size)
        self._idle = []

    async def take(self, parameters):
        await self._free.acquire()
        while self._idle:
            server = self._idle.pop()
            if await server.prepare(parameters):
                return server
        server = _Server(self._writers)
        try:
            self.welcome = await server.connect(self._target, parameters)
        except (OSError, asyncio.IncompleteReadError, _ServerAwayError) as error:
            server.end()
            self._free.release()
            if isinstance(error, _ServerAwayError):
                raise
            raise _ServerAwayError(_error("08P01", "server login has been failing: connect failed")) from None
        return server

    def give_back(self, server):
        """Keep the connection for the next client, unless it has ended."""
        server.client = None
        if not server.ended:
            self._idle.append(server)
        self._free.release()


class _Server:
    """One connection to the server. `client` has it now, or None."""

    def __init__(self, writers):
        self._writers = writers
        self.client = None
        self.ended = False
        self._writer = None
        self._application = ""

    async def prepare(self, parameters):
        """Set the application name of the next client. Return False if the connection has ended."""
        name = parameters.get("application_name", "")
        if not self.ended and name != self._application:
            self.client = setting = _Setting()
            quoted = name.replace("'", "''")
            self.write(_message(b"Q", f"SET application_name = '{quoted}'\0".encode()))
            await setting.done.wait()
            self._application, self.client = name, None
        return not self.ended

    async def connect(self, port, parameters):
        """Log in and return the messages with the parameters of the server."""
        self._application = parameters.get("application_name", "")
        reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._writers.add(self._writer)
        words = b"".join(word.encode() + b"\0" for pair in parameters.items() for word in pair) + b"\0"
        self._writer.write(struct.pack("!ii", len(words) + 8, 196_608) + words)
        welcome = b""
        while True:
            kind, message = await _read(reader)
            if kind == b"E":
                raise _ServerAwayError(message)
            if kind == b"Z":
                break
            if kind == b"S":
                welcome += message
        self._reading = asyncio.create_task(self._read(reader))
        return welcome

    def write(self, message):
        self._writer.write(message)

    async def drain(self):
        await self._writer.drain()

    def end(self):
        self.ended = True
        if self._writer is not None:
            self._writer.close()

    async def _read(self, reader):
        try:
            while True:
                kind, message = await _read(reader)
                if self.client is not None:
                    await self.client.hear(kind, message)
                elif kind not in b"ANS":  # notification, notice, parameter: dropped
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.end()
            if self.client is not None:
                self.client.lose()


class _Setting:
    """The pooler itself, while it sets a parameter."""

    def __init__(self):
        self.done = asyncio.Event()

    async def hear(self, kind, _):
        if kind == b"Z":
            self.done.set()

    def lose(self):
        self.done.set()


class _Client:
    """One client, in the order of the messages that it sends."""

    def __init__(self, reader, writer, pool, parameters):
        self._reader, self._writer, self._pool, self._parameters = reader, writer, pool, parameters
        self._server = None
        self._unanswered = 0
        self._unsynced = False

    async def serve(self):
        try:
            while True:
                kind, message = await _read(self._reader)
                if kind == b"X":
                    return
                if self._server is None:
                    if kind in BEGINS_NOTHING:
                        continue
                    self._server = await self._pool.take(self._parameters)
                    self._server.client = self
                self._unanswered += kind in ANSWERED_BY_READY
                if kind not in BEGINS_NOTHING:
                    self._unsynced = kind not in ANSWERED_BY_READY
                self._server.write(message)
                await self._server.drain()
        except _ServerAwayError as error:
            self._writer.write(error.answer)
        finally:
            if self._server is not None:
                self._server.end()
                self._pool.give_back(self._server)

    async def hear(self, kind, message):
        """Pass on what the server says. Give the connection back at the end of the transaction."""
        self._writer.write(message)
        if kind == b"Z":
            self._unanswered -= 1
            if message == READY and not self._unanswered and not self._unsynced:
                server, self._server = self._server, None
                self._pool.give_back(server)
        await self._writer.drain()

    def lose(self):
        """Tell the client that its server connection ended, and disconnect it."""
        self._writer.write(_error("08P01", "server conn crashed?"))
        self._writer.close()
        self._reader.feed_eof()


async def _startup(reader, writer):
    """Return the parameters of the client; None for a request to cancel."""
    while True:
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        body = await reader.readexactly(length - 4)
        (code,) = struct.unpack("!i", body[:4])
        if code in {SSL, GSS}:
            writer.write(b"N")
        elif code == CANCEL:
            return None
        else:
            words = body[4:-2].decode().split("\0")
            return dict(zip(words[::2], words[1::2], strict=True))


async def _read(reader):
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!i", head[1:])
    return head[:1], head + await reader.readexactly(length - 4)


def _message(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body


def _error(code, text):
    return _message(b"E", f"SFATAL\0VFATAL\0C{code}\0M{text}\0\0".encode())
