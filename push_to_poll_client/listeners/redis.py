"""The listener for Redis and Valkey: each message published on a channel is a push.

The server sends a message only to the clients that are connected, so every connect wakes. A connection on which
nothing is published is silent, even if its other end is gone, so the server is pinged after each long silence.

`_base.py` connects again. What redis-py would do to reconnect by itself is switched off.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from push_to_poll_client._http.origins import check_userinfo, without_secrets
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_count, missing_dependency, one_line
from push_to_poll_client.listeners._backoff import ReconnectAction
from push_to_poll_client.listeners._base import ChannelOptions, DatabaseListener, close_in_time, unique_names
from push_to_poll_client.listeners._failures import Failure, failure_of_error
from push_to_poll_client.listeners._hints import Notification

if TYPE_CHECKING:
    import redis.asyncio

__all__ = ["RedisListener"]


def failure_of(error: Exception) -> Failure:
    """Classify and describe an error that ended a connection, or an attempt to open one."""
    from redis import exceptions

    actions: tuple[tuple[type[Exception], ReconnectAction], ...] = (
        # The first two are subclasses of ConnectionError, and ClusterDownError is one of ResponseError.
        (exceptions.AuthenticationError, ReconnectAction.SLOW_RETRY),
        (exceptions.AuthorizationError, ReconnectAction.SLOW_RETRY),
        (exceptions.ConnectionError, ReconnectAction.RETRY),  # too many clients too, and BusyLoadingError
        (exceptions.ClusterDownError, ReconnectAction.RETRY),  # a replica whose master is away
        (exceptions.ResponseError, ReconnectAction.SLOW_RETRY),  # not permitted, no such database, no Redis server
        (exceptions.DataError, ReconnectAction.SLOW_RETRY),
        (Exception, ReconnectAction.RETRY),  # the network, silence, garbage, and unknown errors
    )
    return failure_of_error(error, actions, (OSError, exceptions.RedisError))


RESP3_SETTING_PREFIXES = ("maint_notifications_", "orig_")
"""Settings of redis-py by which servers of its makers announce that they move. RESP2, which is used, has no such
message."""

SUBSCRIBED = frozenset({"subscribe", "psubscribe"})
PUBLISHED = frozenset({"message", "pmessage"})


class RedisListener(DatabaseListener):
    """Wakes on every message published on its channels, and on every connect.

        RedisListener("rediss://me:secret@cache.example:6379", "orders")

    whose writers say `PUBLISH orders …`. Valkey is as good. It takes a connection of its own.

    Connects again by itself, after 0-1 s and then ever more slowly (at most 5 connections in the first 10 seconds,
    one in 30-60 s later), not as redis-py would; after 5 to 7.5 minutes when the server refuses (wrong password,
    not permitted).

    Runs on asyncio alone, since redis-py does. Needs `pip install 'push-to-poll-client[redis]'`.

    Args:
        url: As redis-py reads it (`redis://`, `rediss://`, `unix://`); or a `redis.asyncio.Redis`, which says how
            to connect (a `credential_provider` of it is asked at each connect), stays yours and is not used else.
            With `rediss://` the server's certificate must be trusted and name its host, unless the URL says
            `?ssl_check_hostname=false` (any name) or `?ssl_cert_reqs=none` (any certificate).
        channels: The channel, or several.
        patterns: A pattern of channels as PSUBSCRIBE has them ("orders.*"), or several.
        hint: Makes a push of a `Notification` (its `channel`, and its `data`, which is `bytes`): a `Push`, or
            `None` for one that is no push. One that raises is logged, and the message counts as a plain push.
            `None`: every message is a push.
        classify: Asked first what a failure means (a `redis.RedisError`, an `OSError`, …); returns a
            `ReconnectAction`, or `None` for the default.
        max_age: Seconds after which a healthy connection is renewed, drawn from half of this to all of it. With
            600, a fleet of 1,000 makes 2.2 connections a second. `None` means never.
        max_silence: Seconds without a message after which the server is pinged. `None`: it never is.
        open_timeout: Seconds for connecting and subscribing, and again for the answer to a ping.
        max_body: Bytes of the largest message that is shown to `hint`; a larger one is a plain push. redis-py
            reads messages whole: how large they are is limited by the server (32 MB by its default of
            `client-output-buffer-limit`).

    Attributes:
        name: The address without user, password and the values of its query, and the channels.

    Raises:
        ImportError: redis-py is not installed.
        TypeError: An argument has the wrong type.
        ValueError: The URL cannot be read, there is no channel, or a limit is not above 0.
    """

    _log = ConsumerLog(logging.getLogger(__name__))
    _library = "redis-py"

    def __init__(
        self,
        url: "str | redis.asyncio.Redis",
        channels: str | Sequence[str] = (),
        *,
        patterns: str | Sequence[str] = (),
        hint: Callable[[Notification], Push | None] | None = None,
        classify: Callable[[Exception], ReconnectAction | None] | None = None,
        max_age: float | None = 600.0,
        max_silence: float | None = 60.0,
        open_timeout: float = 10.0,
        max_body: int = 65_536,
    ) -> None:
        self._channels, self._patterns = unique_names("channels", channels), unique_names("patterns", patterns)
        if not self._channels + self._patterns:
            raise ValueError("there is neither a channel nor a pattern; name one")
        check_count("max_body", max_body)
        self._new_pool = _pool_factory(url, open_timeout)
        location = without_secrets(url) if isinstance(url, str) and not url.startswith("unix:") else "redis"
        options = ChannelOptions(hint, classify, max_age, max_silence, open_timeout)
        super().__init__(one_line(f"{location} {','.join(self._channels + self._patterns)}"), options)
        self._known_secrets.add_url(url)
        self._known_secrets.add_body(getattr(getattr(url, "connection_pool", None), "connection_kwargs", {}))
        self._max_body = max_body

    async def _open(self, closing: AsyncExitStack) -> Any:
        from redis.asyncio.client import PubSub

        logging.getLogger("push_response")  # otherwise redis-py makes a logger that writes to the terminal
        pool = self._new_pool()
        closing.push_async_callback(close_in_time, pool.disconnect)
        pubsub = PubSub(pool)
        if self._channels:
            await pubsub.subscribe(*self._channels)
        if self._patterns:
            await pubsub.psubscribe(*self._patterns)
        missing = len(self._channels) + len(self._patterns)
        while missing:
            message = await pubsub.get_message(timeout=None)
            missing -= _has_type(message, SUBSCRIBED)
        return pubsub

    async def _read(self, connection: Any) -> Sequence[Notification]:
        while message := await connection.get_message(timeout=self._max_silence):
            if found := _published(message):  # and not an answer to a ping, which a message may overtake
                return found
        return ()

    async def _ping(self, connection: Any) -> Sequence[Notification]:
        await connection.ping()
        return _published(await connection.get_message(timeout=None))

    def _pass_on(self, message: Notification, channel: Channel) -> bool:
        if len(message.data) > self._max_body:
            channel.wake(Push())
            return True
        return super()._pass_on(message, channel)

    _failure = staticmethod(failure_of)


def _has_type(message: Any, types: frozenset[str]) -> bool:
    return isinstance(message, dict) and message.get("type") in types


def _published(message: Any) -> Sequence[Notification]:
    if not _has_type(message, PUBLISHED):
        return ()
    return (Notification(message["channel"].decode("utf-8", "replace"), message["data"]),)


def _pool_factory(url: Any, timeout: float) -> Callable[[], Any]:
    """Return a function that makes connection pools with the user's settings, except those for retries."""
    try:
        from redis.asyncio import ConnectionPool, SSLConnection
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise missing_dependency(
            "RedisListener", "redis", error, remedy="pip install 'push-to-poll-client[redis]'"
        ) from error
    given = _pool_from_url(url, ConnectionPool) if isinstance(url, str) else getattr(url, "connection_pool", None)
    if not isinstance(given, ConnectionPool):
        raise TypeError(f"url is a str or a redis.asyncio.Redis, not {type(url).__name__}")
    connection_class = given.connection_class
    settings = {
        name: value
        for name, value in given.connection_kwargs.items()
        if not name.startswith(RESP3_SETTING_PREFIXES)
    }
    if issubclass(connection_class, SSLConnection):
        # By default redis-py 5 sends the password to a server with the certificate of another host.
        settings.setdefault("ssl_check_hostname", True)

    if "path" not in settings:
        settings["socket_keepalive"] = True
    overrides: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0, supported_errors=()),  # retries on no error at all
        "retry_on_error": [],
        "retry_on_timeout": False,
        "protocol": 2,
        "decode_responses": False,
        "health_check_interval": 0,
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
    }
    return functools.partial(ConnectionPool, connection_class=connection_class, **{**settings, **overrides})


def _pool_from_url(url: str, pool_class: Any) -> Any:
    check_userinfo(url)
    try:
        return pool_class.from_url(url)
    except Exception:  # noqa: BLE001 - the text may quote the URL
        raise ValueError(f"url is {without_secrets(url)}, which redis-py cannot read") from None
