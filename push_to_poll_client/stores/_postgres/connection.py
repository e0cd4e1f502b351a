"""Connections of a store: opened when needed, used in worker threads, each wait bounded.

psycopg's plain connections in threads work on asyncio and on trio. A server that is stopped, or a network that
drops everything, sends no error. So each wait for an answer has a deadline of this process, and after it the
connection is closed.
"""

import math
import os
import re
import select
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar
from weakref import finalize

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from push_to_poll_client._event_loop import in_own_task
from push_to_poll_client._exceptions import StoreError, StoreUnavailable
from push_to_poll_client._http.origins import check_userinfo
from push_to_poll_client._validation import check_str, describe, missing_dependency, one_line

try:
    import psycopg
except ImportError as import_error:
    raise missing_dependency(
        "PostgresStore",
        "psycopg",
        import_error,
        remedy="pip install 'push-to-poll-client[postgres]' 'psycopg[binary]'",
        repair="pip install 'psycopg[binary]', or install PostgreSQL's client library libpq",
    ) from import_error

from psycopg import generators, pq
from psycopg.rows import tuple_row

from push_to_poll_client.stores._postgres.errors import READ_ONLY, TimedOut, store_error

T = TypeVar("T")

Row = tuple[Any, ...]

Statement = tuple[str, Mapping[str, Any]]
"""A statement, with `{s}` for the schema, and its values."""

_SETTINGS = {
    "fallback_application_name": "push-to-poll-client",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
"""Default settings for libpq. Seconds."""

SCHEMA = re.compile("[A-Za-z_][A-Za-z0-9_]{0,47}")
"""Names of schemas that need no escapes, and fit into a name of PostgreSQL with a prefix."""

_LIMITS = """
    SELECT set_config('statement_timeout', %(most)s, true), set_config('lock_timeout', %(wait)s, true),
        set_config('idle_in_transaction_session_timeout', %(most)s, true)
"""
"""Limits of one transaction, in milliseconds. A transaction whose client is gone frees its locks by them."""


class Connection(psycopg.Connection[Row]):
    """A connection whose waits end at `deadline`, on the clock of `time.monotonic()`."""

    deadline: float = math.inf

    keeps_session: bool | None = None
    """False behind a pooler, whose server connections are for all its clients. None before it is known."""

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Wait as psycopg does, until the deadline; then close the connection."""
        try:
            return super().wait(wait_until(gen, self.deadline), *args, **options)
        except TimedOut:
            self.close()
            raise


def wait_until(gen: Generator[Any, Any, T], deadline: float) -> Generator[Any, Any, T]:
    """Limit a wait of psycopg by a time of `time.monotonic()`."""
    # psycopg asks at least every 0.1 s, also if nothing has arrived.
    try:
        waiting = next(gen)
        while True:
            ready = yield waiting
            if time.monotonic() >= deadline:
                gen.close()
                raise TimedOut("the server did not answer in time")
            waiting = gen.send(ready)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def ask_server(connection: "psycopg.BaseConnection[Any]", statements: bytes) -> Generator[Any, Any, Sequence[Any]]:
    """Execute statements, for `wait()` of the connection. Takes half the processor time of a cursor."""
    connection.pgconn.send_query(statements)
    results: Sequence[Any] = yield from generators.execute(connection.pgconn)
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding=connection.info.encoding)
    return results


def ask_if_session_is_kept(connection: "psycopg.BaseConnection[Any]") -> Generator[Any, Any, bool]:
    """Return True if each transaction is executed by the same process of the server, for `wait()`.

    A pooler that may use another one, such as PgBouncer, gives its client a number of its own when it connects.
    """
    (answer,) = yield from ask_server(connection, b"SELECT pg_backend_pid()")
    return int(answer.get_value(0, 0) or 0) == connection.pgconn.backend_pid


class Database:
    """One schema of one database, and the connections to it that are not in use.

    Args:
        conninfo: Connection string or URI, or a function that returns one.
        schema: The schema with the tables of the store.
        timeout: Seconds after which a call of the server is given up.
        most: Number of connections that are open at the same time.
        connect_timeout: Seconds after which a connection that does not open is given up, unless conninfo tells it.
        prepare: Called with each new connection until it succeeds once.
        keeps: False to close each connection after its call.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str],
        schema: str,
        *,
        timeout: float,
        most: int,
        connect_timeout: float = 5.0,
        prepare: Callable[[Connection], object] = lambda _: None,
        keeps: bool = True,
    ) -> None:
        check_str("schema", schema)
        if not SCHEMA.fullmatch(schema):
            raise ValueError(
                f"schema must be 1 to 48 letters, digits and _, and not begin with a digit, got {schema!r:.80}"
            )
        self.schema = schema
        self.where = f"the schema {schema} of {_location(conninfo)}"
        self.timeout = timeout
        self._conninfo = conninfo
        self._most = most
        self._keeps = keeps
        self._settings = {**_SETTINGS, "connect_timeout": str(math.ceil(connect_timeout))}
        self._prepare = prepare
        self._is_prepared = False
        self._sql: dict[str, bytes] = {}
        self._limiter = RunVar[CapacityLimiter | None](f"connections of {id(self)}", None)
        self.forget_connections()

    def forget_connections(self) -> None:
        """Start without connections. In a forked process they are its parent's."""
        self._process = os.getpid()
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        finalize(self, _close_all, self._idle, self._process).atexit = False

    def sql(self, statement: str) -> bytes:
        """Return the statement for this schema, which it names `{s}`."""
        made = self._sql.get(statement)
        if made is None:
            made = self._sql[statement] = statement.replace("{s}", f'"{self.schema}"').encode()
        return made

    async def run(self, work: Callable[[], T], *, cancel_later: bool = False) -> T:
        """Call a function in a worker thread, to its end even if the caller is cancelled; see `in_own_task`."""
        limiter = self._limiter.get()
        if limiter is None:
            limiter = CapacityLimiter(self._most)
            self._limiter.set(limiter)
        call = partial(anyio.to_thread.run_sync, work, limiter=limiter)
        return await in_own_task(call, cancel_later=cancel_later)

    def connect(self) -> Connection:
        """Open a new connection, in autocommit mode.

        Raises:
            StoreError: It cannot be opened.
        """
        settings = {**self._settings, **self._read_conninfo()}
        try:
            # Without prepared statements, which a pooler such as PgBouncer may not keep.
            return Connection.connect(**settings, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise store_error(self.where, error) from error

    def _read_conninfo(self) -> dict[str, Any]:
        if not callable(self._conninfo):
            return psycopg.conninfo.conninfo_to_dict(self._conninfo)
        try:
            conninfo = self._conninfo()
        except Exception as error:
            raise StoreUnavailable(f"{self.where}: the function conninfo failed: {describe(error)}") from error
        try:
            check_conninfo(conninfo)
            return psycopg.conninfo.conninfo_to_dict(conninfo)
        except (TypeError, ValueError) as error:
            raise StoreError(f"{self.where}: the function conninfo returned an invalid value: {error}") from None

    @contextmanager
    def connection(self, timeout: float = math.inf) -> Iterator[Connection]:
        """Use a connection for one call of the server, for at most this number of seconds.

        Raises:
            StoreError: The server cannot be reached, or has reported an error.
        """
        connection = self.borrow()
        try:
            connection.deadline = time.monotonic() + min(self.timeout, timeout)
            if not self._is_prepared:
                self._prepare(connection)
                self._is_prepared = True
            yield connection
            if connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                connection.rollback()
        except psycopg.Error as error:
            if error.sqlstate == READ_ONLY:  # after a fail-over: a new connection may find the primary
                connection.close()
                self.close()
            self.give_back_after_error(connection)
            raise store_error(self.where, error) from error
        except BaseException:
            self.give_back_after_error(connection)
            raise
        self.give_back(connection)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Use a connection in a transaction with limits, which is rolled back if the block raises."""
        with self.connection() as connection:
            self.begin(connection)
            yield connection
            connection.execute("COMMIT")

    def execute_alone(
        self, connection: Connection, statement: str, values: Mapping[str, Any]
    ) -> psycopg.Cursor[Row]:
        """Execute a statement in a transaction of its own, in one round trip."""
        # At another isolation level, which may be the default, it would fail if it had to wait for a row.
        with connection.pipeline():
            self.begin(connection)
            cursor = execute(connection, self.sql(statement), values)
            connection.execute("COMMIT")
        return cursor

    def begin(self, connection: psycopg.Connection[Any], mode: str = "READ COMMITTED") -> None:
        """Begin a transaction with limits. In a pipeline this sends nothing yet."""
        # Not READ WRITE: a standby refuses that with 0A000, which would look like an error that stays. And a
        # provider makes a server with a full disk read-only by default_transaction_read_only.
        connection.execute(f"BEGIN ISOLATION LEVEL {mode}".encode())
        connection.execute(_LIMITS, self.limits)

    @property
    def limits(self) -> dict[str, str]:
        """Parameters of the statement that limits a transaction."""
        milliseconds = min(int(self.timeout * 1000), (1 << 31) - 1)
        return {"most": str(milliseconds), "wait": str(milliseconds // 2)}

    def borrow(self) -> Connection:
        """Return a connection that is not in use, or a new one. Give it back."""
        return self.borrow_idle() or self.connect()

    def borrow_idle(self) -> Connection | None:
        """Return a connection that is not in use, or None, without a wait. Give it back."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or _is_alive(connection):
                return connection
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """Keep the connection for the next call."""
        with self._lock:
            if self._keeps and self._process == os.getpid():
                self._idle.append(connection)
                return
        connection.close()

    def give_back_after_error(self, connection: Connection) -> None:
        """Keep the connection if a rollback works, else close it."""
        if connection.pgconn.status == pq.ConnStatus.OK:
            connection.deadline = min(connection.deadline, time.monotonic() + self.timeout / 4)
            with suppress(psycopg.Error):
                connection.rollback()
                self.give_back(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close the connections that are not in use. Later calls open new ones."""
        with self._lock:
            idle = [*self._idle]
            self._idle.clear()
        _close_all(idle, self._process)


def _close_all(idle: list[Connection], process: int) -> None:
    if process == os.getpid():
        for connection in idle:
            connection.close()


def execute(
    connection: psycopg.Connection[Any], statement: bytes, values: Mapping[str, Any]
) -> psycopg.Cursor[Row]:
    """Execute a statement of the store, also on a connection of the application with its own cursors."""
    return psycopg.Cursor(connection, row_factory=tuple_row).execute(statement, values, binary=True)


def _is_alive(connection: Connection) -> bool:
    """Return False if the server has closed the idle connection. Costs one system call."""
    # The server says why it closes, so that libpq does not see the end yet. It sends nothing else of importance.
    return not connection.closed and not wait_readable([connection.fileno()], 0)


def wait_readable(files: Sequence[int], seconds: float) -> set[int]:
    """Wait until data can be read from one of the files; return those."""
    if not hasattr(select, "poll"):  # Windows
        return {*select.select(files, [], [], seconds)[0]}
    # `select` raises a ValueError for files above 1,023, which a process with many sockets has.
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    return {file for file, _ in poll.poll(math.ceil(min(seconds, 86_400.0) * 1000))}


def check_conninfo(conninfo: str | Callable[[], str]) -> None:
    """Raise an error for a connection string that libpq cannot parse. Its text never quotes the string."""
    if callable(conninfo):
        return
    if not isinstance(conninfo, str):
        raise TypeError(f"conninfo must be a str or a function that returns one, got {type(conninfo).__name__}")
    if "://" in conninfo:
        check_userinfo(conninfo)
    try:
        given = psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.Error:
        raise ValueError("libpq cannot parse conninfo: pass key=value pairs or a postgresql:// URI") from None
    if re.search("[^,]@", str(given.get("host") or "")):  # an @ at the beginning names an abstract socket
        raise ValueError(
            "conninfo has an @ in its host, perhaps part of a password; write %40 for an @ in a password"
        )
    if re.search("[^0-9,]", str(given.get("port") or "")):
        raise ValueError(
            "conninfo has a port that is not a number, perhaps a password: write postgresql://user:password@host"
        )


def _location(conninfo: str | Callable[[], str]) -> str:
    """Name the database without secrets."""
    check_conninfo(conninfo)
    if callable(conninfo):
        return "PostgreSQL"
    given = psycopg.conninfo.conninfo_to_dict(conninfo)
    host, port, database = (given.get(key) for key in ("host", "port", "dbname"))
    return one_line(f"postgresql://{host or ''}{f':{port}' if port else ''}{f'/{database}' if database else ''}")
