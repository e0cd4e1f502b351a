"""Listener for PostgreSQL: each NOTIFY on a channel is a push.

A failure on an open connection has a SQLSTATE (PostgreSQL, appendix A). A failure to connect has only the server's
text, in the server's language. A text known to mean a lasting failure is retried slowly. Any other text, also one
in another language, is retried soon.

A connection without notifications is silent, even if its other end is gone. TCP keep-alive finds this where the
kernel supports it; elsewhere a query after each long silence finds it.

`_base.py` reconnects.
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

# Connections, rollbacks, resources (53300: too many clients), objects in use, operator (57P01: shutdown, 57P03:
# starting), system, internal. Not 28 (authentication), 3D (no such database), 42 (not permitted), 25 (a standby
# rejects LISTEN), 0A (not supported).
TRANSIENT_SQLSTATES = ("08", "40", "53", "55", "57", "58", "XX")
"""Classes of SQLSTATE that are retried soon. All others are retried slowly."""

PERMANENT_ERROR_TEXTS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied",
    "is not permitted",
    "certificate verify failed",
    "does not support SSL",
    "invalid ",  # an option or a value that libpq does not support
)
"""Parts of error texts of server and libpq about failures to connect that a person must fix."""


def failure_of(error: Exception) -> Failure:
    import psycopg

    # A ProgrammingError is not quotable: it may quote the caller's settings.
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
"""Bytes of the longest channel name. PostgreSQL shortens a longer one in LISTEN, and rejects it in NOTIFY."""

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

    The writer or a trigger runs `NOTIFY orders` or `SELECT pg_notify('orders', '…')`. The listener uses its own
    connection, which is idle and never in a transaction. It must connect to the primary itself: a pool that shares
    connections between transactions, such as PgBouncer's, loses the LISTEN, and a standby rejects it.

    Reconnects after 0-1 s, then after growing delays: at most 5 connections in the first 10 seconds, later one in
    30-60 s. If the server refuses (wrong password, no such database, not permitted), the delay is 5 to 7.5
    minutes.

    Runs only on asyncio, as psycopg does; on Windows psycopg needs a selector event loop. Install
    `'push-to-poll-client[postgres]'`, and the client library libpq from the system or with `'psycopg[binary]'`.

    Args:
        conninfo: A connection string or URI, or an async function that returns a new `psycopg.AsyncConnection`.
            The function is called for each connect, so it can fetch a fresh password. The connection is closed at
            the end.
        channel: One channel or several. Names are case-sensitive: `LISTEN Orders` in SQL is the channel "orders".
        hint: Turns a `Notification` (its `channel`, and its payload as `data`, a `str` of less than 8,000 bytes)
            into a `Push`, or into `None` if it is not a push. If it raises, the error is logged and the
            notification counts as a plain push. `None` means that every notification is a push.
        classify: Classifies a failure first (a `psycopg.Error`, an `OSError`, …): returns a `ReconnectAction`, or
            `None` for the default.
        max_age: Seconds after which a healthy connection is renewed, drawn from half of this to all of it. With
            600, a fleet of 1,000 makes 2.2 connections a second. `None` means never.
        max_silence: Seconds without a notification after which the connection is tested with a query. `None`
            disables the test.
        open_timeout: Seconds to connect and subscribe, and again for the response to that query.

    Attributes:
        name: Host, port and database, if given, and the channels.

    Raises:
        ImportError: psycopg is not installed, or cannot find libpq.
        TypeError: An argument has the wrong type.
        ValueError: The connection string is invalid, a channel name is empty or has more than 63 bytes, or a limit
            is not positive.
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
            raise ValueError("channel must name at least one channel")
        if any(len(name.encode()) > MAX_NAME or "\0" in name for name in channels):
            raise ValueError(f"a channel name must have at most {MAX_NAME} bytes, and no zero byte")
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
    """Return a function that connects, the location without secrets, and the password."""
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
        raise TypeError(f"conninfo must be a str or an async function, got {type(conninfo).__name__}")
    if "://" in conninfo:
        check_userinfo(conninfo)
    try:
        given = psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.Error:  # its text quotes conninfo
        raise ValueError("libpq cannot parse conninfo: pass key=value pairs or a postgresql:// URI") from None
    settings: dict[str, Any] = {**SETTINGS, **given}

    connect = functools.partial(psycopg.AsyncConnection.connect, **settings)
    host, port, database = (given.get(key) for key in ("host", "port", "dbname"))
    if re.search("[^,]@", str(host or "")):  # an @ at the beginning names an abstract socket
        raise ValueError(
            "conninfo has an @ in its host, perhaps part of a password; write %40 for an @ in a password"
        )
    location = f"://{host or ''}{f':{port}' if port else ''}{f'/{database}' if database else ''}"
    password = str(given.get("password") or os.environ.get("PGPASSWORD", ""))
    return connect, location if location != "://" else "", password
