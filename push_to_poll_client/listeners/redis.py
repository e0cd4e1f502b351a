"""Listener for Redis and Valkey: each message published on a channel is a push.

The server sends a message only to connected clients, so every connect wakes. A connection without messages is
silent, even if its other end is gone, so the server is pinged after each long silence.

`_base.py` reconnects. The retries of redis-py are switched off.
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
    from redis import exceptions

    actions: tuple[tuple[type[Exception], ReconnectAction], ...] = (
        # The first two are subclasses of ConnectionError, and ClusterDownError is one of ResponseError.
        (exceptions.AuthenticationError, ReconnectAction.SLOW_RETRY),
        (exceptions.AuthorizationError, ReconnectAction.SLOW_RETRY),
        (exceptions.ConnectionError, ReconnectAction.RETRY),  # also too many clients, and BusyLoadingError
        (exceptions.ClusterDownError, ReconnectAction.RETRY),  # a replica without its master
        (exceptions.ResponseError, ReconnectAction.SLOW_RETRY),  # not permitted, no such database, not Redis
        (exceptions.DataError, ReconnectAction.SLOW_RETRY),
        (Exception, ReconnectAction.RETRY),  # the network, silence, malformed responses, and unknown errors
    )
    return failure_of_error(error, actions, (OSError, exceptions.RedisError))


RESP3_SETTING_PREFIXES = ("maint_notifications_", "orig_")
"""Settings of redis-py for servers that announce maintenance. RESP2, which is used here, has no such message."""

SUBSCRIBED = frozenset({"subscribe", "psubscribe"})
PUBLISHED = frozenset({"message", "pmessage"})


class RedisListener(DatabaseListener):
    """Wakes on every message published on its channels, and on every connect.

        RedisListener("rediss://me:secret@cache.example:6379", "orders")

    The writer runs `PUBLISH orders …`. Valkey works too. The listener uses its own connection.

    Reconnects after 0-1 s, then after growing delays: at most 5 connections in the first 10 seconds, later one in
    30-60 s. The retries of redis-py are not used. If the server refuses (wrong password, not permitted), the delay
    is 5 to 7.5 minutes.

    Runs only on asyncio, as redis-py does. Install `'push-to-poll-client[redis]'`.

    Args:
        url: A URL as redis-py reads it (`redis://`, `rediss://`, `unix://`), or a `redis.asyncio.Redis` with the
            settings to connect. That client is not used otherwise and not closed; its `credential_provider` is
            called at each connect. With `rediss://`, the server's certificate must be trusted and name its host,
            unless the URL has `?ssl_check_hostname=false` (any name) or `?ssl_cert_reqs=none` (any certificate).
        channels: One channel or several.
        patterns: One pattern of channels for PSUBSCRIBE ("orders.*"), or several.
        hint: Turns a `Notification` (its `channel`, and its `data`, which is `bytes`) into a `Push`, or into
            `None` if it is not a push. If it raises, the error is logged and the message counts as a plain push.
            `None` means that every message is a push.
        classify: Classifies a failure first (a `redis.RedisError`, an `OSError`, …): returns a `ReconnectAction`,
            or `None` for the default.
        max_age: Seconds after which a healthy connection is renewed, drawn from half of this to all of it. With
            600, a fleet of 1,000 makes 2.2 connections a second. `None` means never.
        max_silence: Seconds without a message after which the server is pinged. `None` disables the pings.
        open_timeout: Seconds to connect and subscribe, and again for the response to a ping.
        max_body: Bytes of the largest message that is passed to `hint`; a larger one is a plain push. redis-py
            reads whole messages: the server limits their size (32 MB with the default
            `client-output-buffer-limit`).

    Attributes:
        name: The URL without user, password and query values, and the channels.

    Raises:
        ImportError: redis-py is not installed.
        TypeError: An argument has the wrong type.
        ValueError: The URL is invalid, no channel is given, or a limit is not positive.
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
            raise ValueError("pass at least one channel or pattern: channels= and patterns= are empty")
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

        logging.getLogger("push_response")  # otherwise redis-py creates a logger that writes to the terminal
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
            if found := _published(message):  # ignore the response to a ping, which may come after a message
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
    """Return a function that makes connection pools with the caller's settings, without retries."""
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
        raise TypeError(f"url must be a str or a redis.asyncio.Redis, got {type(url).__name__}")
    connection_class = given.connection_class
    settings = {
        name: value
        for name, value in given.connection_kwargs.items()
        if not name.startswith(RESP3_SETTING_PREFIXES)
    }
    if issubclass(connection_class, SSLConnection):
        # By default redis-py 5 sends the password even if the certificate names another host.
        settings.setdefault("ssl_check_hostname", True)

    if "path" not in settings:
        settings["socket_keepalive"] = True
    overrides: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0, supported_errors=()),  # never retries
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
    except Exception:  # noqa: BLE001 - its text may quote the URL
        raise ValueError(f"redis-py cannot parse url {without_secrets(url)}") from None
