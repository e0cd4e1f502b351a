"""The listener for PostgreSQL: each NOTIFY on a channel is a push.

What goes wrong on an open connection has a SQLSTATE (PostgreSQL, appendix A). What goes wrong while connecting has
none: libpq gives the server's sentence alone, in the server's language. So a sentence that is known to last is
retried slowly, and one in another language as what passes.

An open connection on which nothing is notified says nothing, also when its other end is gone. TCP keep-alive finds
that where the kernel may send it, and a question to the server, asked after each silence, where it may not.

The life of the channel is `_reconnecting.py`'s, what a failure means `_postgres_failures.py`'s.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from push_to_poll_client._http.transport import CLOSE_TIMEOUT
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_number, one_line
from push_to_poll_client.listeners._backoff import Verdict
from push_to_poll_client.listeners._base import ReadLoopListener, refuse_trio, unique_names
from push_to_poll_client.listeners._failures import Failure, causes, describe_error
from push_to_poll_client.listeners._hints import Notification

if TYPE_CHECKING:
    import psycopg


__all__ = [
    "PostgresListener",
    "failure_of",
]


TRANSIENT_SQLSTATES = ("08", "40", "53", "55", "57", "58", "XX")
"""Classes of SQLSTATE that pass: connections, rollbacks, resources (53300: too many clients), objects in use,
operator (57P01: shutdown, 57P03: starting), system, internal. Any other is retried slowly: 28 (who are you), 3D
(no such database), 42 (not permitted), 25 (a standby takes no LISTEN), 0A (not supported), …"""

PERMANENT_ERROR_TEXTS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied",
    "is not permitted",
    "certificate verify failed",
    "does not support SSL",
    "invalid ",  # an option that libpq does not know, or a value
)
"""What only a human mends, of what a server and libpq say while connecting."""


def failure_of(error: Exception) -> Failure:
    """What a failure means, and how it is told."""
    import psycopg

    speaking = (OSError, TimeoutError, psycopg.OperationalError, psycopg.DatabaseError, psycopg.InterfaceError)
    is_told = isinstance(error, speaking) and not isinstance(error, psycopg.ProgrammingError)
    return Failure(
        _verdict(error, getattr(error, "sqlstate", None)),
        describe_error(causes(error), speaking) if is_told else f"failed with {type(error).__name__}",
        retry_after=None,
        unauthorized=False,
        hid_a_push=isinstance(error, UnicodeDecodeError),  # a payload that is no text of the database's encoding
        cause=error if is_told else None,
    )


def _verdict(error: Exception, state: str | None) -> Verdict:
    import psycopg

    if not isinstance(error, psycopg.Error):
        return Verdict.RETRY  # the network, silence, and what is unknown
    if state is not None:
        return Verdict.RETRY if state.startswith(TRANSIENT_SQLSTATES) else Verdict.SLOW_RETRY
    if isinstance(error, psycopg.OperationalError) and not any(
        text in str(error) for text in PERMANENT_ERROR_TEXTS
    ):
        return Verdict.RETRY
    return Verdict.SLOW_RETRY


MAX_NAME = 63
"""Bytes of a channel's name: PostgreSQL cuts longer ones where it listens, and refuses them where it notifies."""

SETTINGS = {
    "fallback_application_name": "push-to-poll-client",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}
"""What libpq is told unless the user says otherwise: a dead peer is found after a minute where TCP may ask it."""

Connect: TypeAlias = "Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]"

_log = logging.getLogger(__name__)


class PostgresListener(ReadLoopListener[Notification]):
    """Wakes on every NOTIFY, and on every connect.

        PostgresListener("postgresql://me@db.example/shop", "orders")

    whose triggers or writers say `NOTIFY orders` or `SELECT pg_notify('orders', '…')`. It takes a connection of
    its own, which is idle and never in a transaction. It has to reach the primary itself: a pool that shares
    connections between transactions, as PgBouncer's, forgets to what they listen, and a standby refuses.

    Connects again by itself, after 0-1 s and then ever more slowly (at most 5 connections in the first 10 seconds,
    one in 30-60 s later); after 5 to 7.5 minutes when the server refuses (wrong password, no such database, not
    permitted).

    Runs on asyncio alone, since psycopg does; on Windows in a selector event loop, which psycopg needs. Needs
    `pip install 'push-to-poll-client[postgres]'`.

    Args:
        conninfo: A connection string or URI, or an async function that returns a `psycopg.AsyncConnection`, which
            is closed in the end; it is called for each connect, and may ask for a fresh password.
        channel: The channel, or several. Names are as they are: `LISTEN Orders` in SQL is the channel "orders".
        hint: Makes a push of a `Notification` (its `channel`, and its payload as `data`, a `str` of less than
            8,000 bytes): a `Push`, or `None` for one that is no push. One that raises is logged, and the
            notification counts as a plain push. `None`: every notification is a push.
        classify: Asked first what a failure means (a `psycopg.Error`, an `OSError`, …); returns a verdict, or
            `None` for the default.
        max_age: Seconds after which the connection is renewed although nothing is wrong with it, drawn from half
            of this to all of it. `None`: never.
        max_silence: Seconds without a notification after which the server is asked whether it is there. `None`: it
            never is.
        open_timeout: Seconds for connecting and listening, and again for the answer to that question.

    Attributes:
        name: Host, port and database if they are said, and the channels.

    Raises:
        ImportError: psycopg is not installed.
        TypeError: An argument is of the wrong type.
        ValueError: The connection string cannot be read, a channel has no name or one of more than 63 bytes, or a
            limit is not above 0.
    """

    def __init__(
        self,
        conninfo: "str | Connect",
        channel: str | Sequence[str],
        *,
        hint: Callable[[Notification], Push | None] | None = None,
        classify: Callable[[Exception], Verdict | None] | None = None,
        max_age: float | None = 600.0,
        max_silence: float | None = 60.0,
        open_timeout: float = 10.0,
    ) -> None:
        channels = unique_names("channel", channel)
        if not channels:
            raise ValueError("channel is none; name one")
        if any(len(name.encode()) > MAX_NAME or "\0" in name for name in channels):
            raise ValueError(f"a channel's name has {MAX_NAME} bytes at most, and none that is 0")
        check_number("max_silence", max_silence, above_zero=True, optional=True)
        self._connect_to, where = (conninfo, "") if callable(conninfo) else _parse_conninfo(conninfo)
        super().__init__(
            "",
            headers=None,
            token=None,
            hint=hint,
            classify=classify,
            max_age=max_age,
            max_silence=None,  # the server is asked instead
            open_timeout=open_timeout,
            log=_log,
        )
        self.name: str = one_line(f"postgresql{where} {','.join(channels)}")
        self._channels = channels
        self._ping_after = max_silence

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled, connect again alone, report to `channel`.

        Raises:
            ListenerError: Trying again cannot help: `classify` says so, or this is not asyncio.
        """
        refuse_trio(self.name, "psycopg")
        await super().listen(channel)

    def _connect(self, headers: Mapping[str, str]) -> "AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]":  # noqa: ARG002 - of HTTP
        return self._open_connection()

    @asynccontextmanager
    async def _open_connection(self) -> "AsyncIterator[psycopg.AsyncConnection[Any]]":
        from psycopg import sql

        connection: Any = None
        try:
            with anyio.move_on_after(self._open_timeout) as opening:
                connection = await self._connect_to()
                await connection.set_autocommit(True)
                for name in self._channels:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(name)))
            if opening.cancelled_caught:
                raise TimeoutError(f"not listening within {self._open_timeout:g} s")
            yield connection
        finally:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                if connection is not None:
                    await connection.close()

    async def _read(self, connection: "psycopg.AsyncConnection[Any]") -> Sequence[Notification]:
        notices = connection.notifies(timeout=self._ping_after, stop_after=1)
        found = [Notification(notice.channel, notice.payload) async for notice in notices]
        if not found:
            await self._ping(connection)
        return found

    async def _ping(self, connection: "psycopg.AsyncConnection[Any]") -> None:
        with anyio.move_on_after(self._open_timeout):
            await connection.execute("SELECT 1")
            return
        raise TimeoutError(f"no notification for {self._ping_after:g} s, and no answer for {self._open_timeout:g}")

    def _failure(self, error: Exception) -> Failure:
        return failure_of(error)


def _parse_conninfo(conninfo: str) -> tuple[Connect, str]:
    """How to connect, and where to, without secrets."""
    try:
        import psycopg
    except ImportError:
        raise ImportError("PostgresListener needs psycopg: pip install 'push-to-poll-client[postgres]'") from None
    if not isinstance(conninfo, str):
        raise TypeError(f"conninfo is a str or an async function, not {type(conninfo).__name__}")
    try:
        said = psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.Error:  # whose text quotes it
        raise ValueError(
            "conninfo is none that libpq can read: give key=value pairs or a postgresql:// URI"
        ) from None
    settings: dict[str, Any] = {**SETTINGS, **said}

    def connect() -> "Awaitable[psycopg.AsyncConnection[Any]]":
        return psycopg.AsyncConnection.connect(**settings)

    host, port, database = (said.get(key) for key in ("host", "port", "dbname"))
    place = f"://{host or ''}{f':{port}' if port else ''}{f'/{database}' if database else ''}"
    return connect, place if place != "://" else ""
