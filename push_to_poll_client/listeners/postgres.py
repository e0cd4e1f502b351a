"""The listener for PostgreSQL: each NOTIFY on a channel is a push.

A failure on an open connection has a SQLSTATE (PostgreSQL, appendix A). A failure to connect has none: libpq gives
only the server's sentence, in the server's language. Therefore a sentence that is known to mean a lasting failure
is retried slowly, and any other sentence, also one in another language, soon.

A connection on which nothing is notified is silent, even if its other end is gone. TCP keep-alive finds that where
the kernel may send it. Elsewhere a query finds it, which is sent after each long silence.

`_base.py` connects again.
"""

import functools
import logging
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

from push_to_poll_client._http.origins import check_userinfo
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Push
from push_to_poll_client._validation import missing_dependency, one_line
from push_to_poll_client.listeners._backoff import ReconnectAction
from push_to_poll_client.listeners._base import ChannelOptions, DatabaseListener, close_in_time, unique_names
from push_to_poll_client.listeners._failures import Failure, failure_of_error
from push_to_poll_client.listeners._hints import Notification

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresListener"]

TRANSIENT_SQLSTATES = ("08", "40", "53", "55", "57", "58", "XX")
"""Classes of SQLSTATE that are retried soon: connections, rollbacks, resources (53300: too many clients), objects
in use, operator (57P01: shutdown, 57P03: starting), system, internal. All others are retried slowly, such as 28
(authentication), 3D (no such database), 42 (not permitted), 25 (a standby refuses LISTEN), 0A (not supported)."""

PERMANENT_ERROR_TEXTS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied",
    "is not permitted",
    "certificate verify failed",
    "does not support SSL",
    "invalid ",  # an option or a value that libpq does not know
)
"""Parts of the sentences of server and libpq about failures to connect that only a human can correct."""


def failure_of(error: Exception) -> Failure:
    """Classify and describe an error that ended a connection, or an attempt to open one."""
    import psycopg

    # Not a ProgrammingError, which quotes what the user gave.
    quotable = (OSError, psycopg.OperationalError, psycopg.InternalError, psycopg.NotSupportedError)
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is not None:
        passes = sqlstate.startswith(TRANSIENT_SQLSTATES)
    elif isinstance(error, psycopg.OperationalError):
        passes = not any(text in str(error) for text in PERMANENT_ERROR_TEXTS)
    else:
        passes = not isinstance(error, psycopg.Error)  # the network, silence, and unknown errors
    action = ReconnectAction.RETRY if passes else ReconnectAction.SLOW_RETRY
    failure = failure_of_error(
        error, [(Exception, action)], (*quotable, psycopg.DataError, psycopg.InterfaceError)
    )
    # A payload that is not text in the database's encoding.
    return failure._replace(hid_a_push=isinstance(error, UnicodeDecodeError))


MAX_NAME = 63
"""Bytes of the longest name of a channel: PostgreSQL cuts a longer one in LISTEN, and refuses it in NOTIFY."""

SETTINGS = {
    "fallback_application_name": "push-to-poll-client",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}
"""Default settings for libpq. A dead peer is found after a minute where TCP keep-alive works."""

Connect: TypeAlias = "Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]"


class PostgresListener(DatabaseListener):
    """Wakes on every NOTIFY, and on every connect.

        PostgresListener("postgresql://me@db.example/shop", "orders")

    whose triggers or writers say `NOTIFY orders` or `SELECT pg_notify('orders', '…')`. It takes a connection of
    its own, which is idle and never in a transaction. It has to reach the primary itself: a pool that shares
    connections between transactions, as PgBouncer's, forgets to what they listen, and a standby refuses.

    Connects again by itself, after 0-1 s and then ever more slowly (at most 5 connections in the first 10 seconds,
    one in 30-60 s later); after 5 to 7.5 minutes when the server refuses (wrong password, no such database, not
    permitted).

    Runs on asyncio alone, since psycopg does; on Windows in a selector event loop, which psycopg needs. Needs
    `pip install 'push-to-poll-client[postgres]'`, and the client library libpq: of the system, or by
    `pip install 'psycopg[binary]'`.

    Args:
        conninfo: A connection string or URI, or an async function that returns a `psycopg.AsyncConnection`, which
            is closed in the end; it is called for each connect, and may ask for a fresh password.
        channel: The channel, or several. Names are as they are: `LISTEN Orders` in SQL is the channel "orders".
        hint: Makes a push of a `Notification` (its `channel`, and its payload as `data`, a `str` of less than
            8,000 bytes): a `Push`, or `None` for one that is no push. One that raises is logged, and the
            notification counts as a plain push. `None`: every notification is a push.
        classify: Asked first what a failure means (a `psycopg.Error`, an `OSError`, …); returns a
            `ReconnectAction`, or `None` for the default.
        max_age: Seconds after which a healthy connection is renewed, drawn from half of this to all of it. With
            600, a fleet of 1,000 makes 2.2 connections a second. `None` means never.
        max_silence: Seconds without a notification after which the server is asked whether it is there. `None`: it
            never is.
        open_timeout: Seconds for connecting and listening, and again for the answer to that question.

    Attributes:
        name: Host, port and database if they are said, and the channels.

    Raises:
        ImportError: psycopg is not installed, or finds no libpq.
        TypeError: An argument has the wrong type.
        ValueError: The connection string cannot be read, a channel has no name or one of more than 63 bytes, or a
            limit is not above 0.
    """

    _log = ConsumerLog(logging.getLogger(__name__))
    _library = "psycopg"

    def __init__(
        self,
        conninfo: "str | Connect",
        channel: str | Sequence[str],
        *,
        hint: Callable[[Notification], Push | None] | None = None,
        classify: Callable[[Exception], ReconnectAction | None] | None = None,
        max_age: float | None = 600.0,
        max_silence: float | None = 60.0,
        open_timeout: float = 10.0,
    ) -> None:
        channels = unique_names("channel", channel)
        if not channels:
            raise ValueError("channel is none; name one")
        if any(len(name.encode()) > MAX_NAME or "\0" in name for name in channels):
            raise ValueError(f"a channel's name has {MAX_NAME} bytes at most, and none that is 0")
        self._new_connection, location, password = (
            (conninfo, "", "") if callable(conninfo) else _parse_conninfo(conninfo)
        )
        options = ChannelOptions(hint, classify, max_age, max_silence, open_timeout)
        super().__init__(one_line(f"postgresql{location} {','.join(channels)}"), options)
        self._known_secrets.add(password)
        self._channels = channels

    async def _open(self, closing: AsyncExitStack) -> "psycopg.AsyncConnection[Any]":
        from psycopg import sql

        connection = await self._new_connection()
        closing.push_async_callback(close_in_time, connection.close)
        await connection.set_autocommit(True)
        for name in self._channels:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(name)))
        return connection

    async def _read(self, connection: "psycopg.AsyncConnection[Any]") -> Sequence[Notification]:
        notices = connection.notifies(timeout=self._max_silence, stop_after=1)
        return [Notification(notice.channel, notice.payload) async for notice in notices]

    async def _ping(self, connection: "psycopg.AsyncConnection[Any]") -> Sequence[Notification]:
        await connection.execute("SELECT 1")
        return ()

    _failure = staticmethod(failure_of)


def _parse_conninfo(conninfo: str) -> tuple[Connect, str, str]:
    """Return a function that connects, the location as a URL without secrets, and the password."""
    try:
        import psycopg
    except ImportError as error:
        raise missing_dependency(
            "PostgresListener",
            "psycopg",
            error,
            remedy="pip install 'push-to-poll-client[postgres]' 'psycopg[binary]'",
            repair="pip install 'psycopg[binary]', or install PostgreSQL's client library libpq",
        ) from error
    if not isinstance(conninfo, str):
        raise TypeError(f"conninfo is a str or an async function, not {type(conninfo).__name__}")
    if "://" in conninfo:
        check_userinfo(conninfo)
    try:
        given = psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.Error:  # the text quotes conninfo
        raise ValueError(
            "conninfo is none that libpq can read: give key=value pairs or a postgresql:// URI"
        ) from None
    settings: dict[str, Any] = {**SETTINGS, **given}

    connect = functools.partial(psycopg.AsyncConnection.connect, **settings)
    host, port, database = (given.get(key) for key in ("host", "port", "dbname"))
    if re.search("[^,]@", str(host or "")):  # at the beginning it names an abstract socket
        raise ValueError(
            "conninfo has an @ in its host, which may be in the middle of a password; write %40 for it there"
        )
    location = f"://{host or ''}{f':{port}' if port else ''}{f'/{database}' if database else ''}"
    password = str(given.get("password") or os.environ.get("PGPASSWORD", ""))
    return connect, location if location != "://" else "", password
