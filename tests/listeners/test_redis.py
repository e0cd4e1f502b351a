"""Redis or Valkey as a channel: scripted connections, and a server that is killed and paused."""

import contextlib
import gc
import logging
import socket
import ssl
import sys

import anyio
import pytest
import redis
import redis.asyncio
import trustme
from anyio.to_thread import run_sync
from redis import exceptions

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.listeners import JSONHint, ReconnectAction
from push_to_poll_client.listeners.redis import RedisListener, failure_of
from push_to_poll_client.testing import virtual_time
from tests.support.channels import HOST, Raw, TimedChannel, listening
from tests.support.forms import GUARD
from tests.support.valkey_server import shared_server

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"


# Scripted connections, in virtual time


@pytest.fixture
def anyio_backend(request):
    """Only asyncio, since redis-py does not support trio. Tests with the server use real time."""
    real = {"server", "real_time"} & {*request.fixturenames}
    return "asyncio" if real else virtual_time("asyncio")


@pytest.fixture
def real_time():
    """Use real time for sockets."""


def sent(data, kind="message", channel=b"orders"):
    return {"type": kind, "channel": channel, "data": data, "pattern": None}


class Scripted:
    """A scripted, subscribed connection: a number is a delay, an error is raised, a message is received."""

    def __init__(self, *happenings, pongs=True):
        self._happenings = iter(happenings)
        self._pongs = pongs
        self._pong = None
        self.pings = 0

    async def get_message(self, *, timeout):  # noqa: ASYNC109  # as redis-py has it
        if self._pong:
            pong, self._pong = self._pong, None
            return pong
        with anyio.move_on_after(timeout):
            for happening in self._happenings:
                if isinstance(happening, Exception):
                    raise happening
                if isinstance(happening, dict):
                    return happening
                await anyio.sleep(happening)
            await anyio.sleep_forever()
        return None

    async def ping(self):
        self.pings += 1
        self._pong = sent(b"", "pong") if self._pongs else None


def to(*connections, max_age=None, **options):
    """Opens scripted connections in turn: an error is raised."""
    following = iter(connections)

    @contextlib.asynccontextmanager
    async def connect():
        connection = next(following)
        if isinstance(connection, Exception):
            raise connection
        yield connection

    listener = RedisListener("redis://db.example", "orders", max_age=max_age, **options)
    listener._fraction = lambda: 0.0
    listener._connect = connect
    return listener


async def run(listener, seconds):
    channel = TimedChannel()
    with anyio.move_on_after(seconds):
        await listener.listen(channel)
    return channel


async def test_a_new_connection_and_each_message_wake_the_consumer():
    connection = Scripted(5, sent(b"a"), sent(b"1", "subscribe"), sent(b"b", "pmessage", b"orders.\xff"))
    channel = await run(to(connection, hint=lambda heard: Push(topics=(heard.channel, heard.data.decode()))), 10)
    pushes = [Push(topics=("orders", "a")), Push(topics=("orders.\N{REPLACEMENT CHARACTER}", "b"))]
    assert channel.events == [(0, "up"), *[(5, push) for push in pushes]]


async def test_the_server_is_pinged_after_max_silence():
    connection = Scripted(99, 99, 10, sent(b"a"))
    channel = await run(to(connection, max_silence=60), 189)
    assert connection.pings == 2
    assert channel.events == [(0, "up"), (130, Push())]


async def test_a_connection_that_does_not_answer_a_ping_is_replaced():
    channel = await run(to(Scripted(pongs=False), Scripted(), max_silence=60, open_timeout=10), 80)
    assert channel.events == [(0, "up"), (70, "down"), (70, "up")]
    assert "no response to a ping within 10 s" in str(channel.errors[0])


async def test_a_message_counts_as_the_answer_to_a_ping():
    connection = Scripted(99, 5, sent(b"a"), pongs=False)
    assert (await run(to(connection, max_silence=60), 70)).events == [(0, "up"), (65, Push())]


async def test_an_answer_after_a_message_is_not_silence():
    connection = Scripted(99, 5, sent(b"a"), sent(b"", "pong"), pongs=False)
    channel = await run(to(connection, max_silence=60), 120)
    assert channel.events == [(0, "up"), (65, Push())]
    assert connection.pings == 1


async def test_no_ping_is_sent_without_max_silence():
    connection = Scripted()
    await run(to(connection, max_silence=None), 1000)
    assert connection.pings == 0


async def test_a_message_that_is_too_large_for_a_hint_is_a_plain_push():
    connection = Scripted(sent(b'{"cursor": 1}'), sent(b'{"cursor": 12}'))
    channel = await run(to(connection, hint=JSONHint(cursor="cursor"), max_body=13), 1)
    assert channel.pushes == [Push(cursor="1"), Push()]


async def test_a_lost_connection_is_reopened_at_once_and_a_refused_one_slowly():
    refused = exceptions.AuthenticationError("WRONGPASS invalid username-password pair")
    channel = await run(to(Scripted(5, exceptions.ConnectionError("closed")), refused, Scripted()), 400)
    assert channel.events == [(0, "up"), (5, "down"), (5, "down"), (305, "up")]
    assert "WRONGPASS" in str(channel.errors[1])


@pytest.mark.parametrize("anyio_backend", [virtual_time("trio")])
async def test_trio_is_refused_at_once():
    with pytest.raises(ListenerError, match="redis-py runs only on asyncio"):
        await to().listen(TimedChannel())


# Classification of failures


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (exceptions.ConnectionError("Error 111 connecting"), ReconnectAction.RETRY),
        (exceptions.BusyLoadingError("LOADING"), ReconnectAction.RETRY),
        (exceptions.MaxConnectionsError("max number of clients reached"), ReconnectAction.RETRY),
        (exceptions.TimeoutError("timeout"), ReconnectAction.RETRY),
        (exceptions.MasterDownError("MASTERDOWN"), ReconnectAction.RETRY),
        (exceptions.InvalidResponse("Protocol Error"), ReconnectAction.RETRY),
        (OSError("no route"), ReconnectAction.RETRY),
        (exceptions.AuthenticationError("WRONGPASS"), ReconnectAction.SLOW_RETRY),
        (exceptions.AuthorizationError("x"), ReconnectAction.SLOW_RETRY),
        (exceptions.NoPermissionError("NOPERM"), ReconnectAction.SLOW_RETRY),
        (exceptions.ResponseError("DB index is out of range"), ReconnectAction.SLOW_RETRY),
    ],
)
def test_an_error_decides_between_retry_and_slow_retry(error, action):
    failure = failure_of(error)
    assert failure.action is action
    assert str(error) in failure.sentence


def test_the_text_of_an_unknown_error_is_hidden():
    failure = failure_of(ValueError(CANARY))
    assert (failure.sentence, failure.cause) == ("failed with ValueError", None)


# Declarations


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (
            f"rediss://me:{CANARY}@db.example:6380/1?password={CANARY}",
            "rediss://db.example:6380/1?password=… a,b,c.*",
        ),
        ("redis://db.example", "redis://db.example a,b,c.*"),
        ("unix:///run/valkey.sock", "redis a,b,c.*"),
        (redis.asyncio.Redis(password=CANARY), "redis a,b,c.*"),
    ],
)
def test_the_name_of_a_listener_shows_the_server_but_no_secret(url, name):
    listener = RedisListener(url, ["a", "b"], patterns="c.*")
    assert listener.name == name
    assert repr(listener) == f"RedisListener({name!r})"


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "text"),
    [
        (("redis://h",), {}, ValueError, "pass at least one channel or pattern"),
        (("redis://h", ""), {}, ValueError, "an empty name"),
        (("redis://h", [7]), {}, TypeError, "channels must be a str or a sequence of str"),
        (("redis://h",), {"patterns": [b"x"]}, TypeError, "patterns must be a str or a sequence of str"),
        ((7, "a"), {}, TypeError, "url must be a str or a redis.asyncio.Redis"),
        ((redis.Redis(), "a"), {}, TypeError, "url must be a str or a redis.asyncio.Redis"),
        ((f"http://me:{CANARY}@h", "a"), {}, ValueError, "redis-py cannot parse url http://h"),
        ((f"redis://h:{CANARY}", "a"), {}, ValueError, "redis-py cannot parse url"),
        (("redis://h", "a"), {"max_silence": 0}, ValueError, "max_silence"),
        (("redis://h", "a"), {"max_body": None}, TypeError, "max_body"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, options, kind, text):
    with pytest.raises(kind, match=text) as refused:
        RedisListener(*arguments, **options)
    assert CANARY not in str(refused.value)


def test_a_missing_redis_package_is_an_import_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ImportError, match=r"pip install 'push-to-poll-client\[redis\]'"):
        RedisListener("redis://h", "orders")


# A real server


@pytest.fixture
def server(request, nothing_is_left_unclosed):
    return shared_server(request.config)


def at(server, channels="orders", url=None, **options):
    listener = RedisListener(url or server.url, channels, **{"open_timeout": 2 * GUARD, **options})
    listener._fraction = lambda: 0.0
    return listener


async def wait_until_unsubscribed(server):
    with anyio.fail_after(GUARD):
        while await run_sync(server.publish, "orders"):
            pass


async def test_messages_carry_hints_and_a_stop_closes_the_connection(server):
    listener = at(server, ["orders", "x"], patterns=["many.*"], hint=JSONHint(cursor="cursor"))
    async with listening(listener) as channel:
        await channel.saw("up")
        assert await run_sync(server.publish, "others") == 0
        assert await run_sync(server.publish, "orders", b'{"cursor": "7"}') == 1
        assert await run_sync(server.publish, "many.more", b"\xff" * 100_000) == 1
        assert await run_sync(server.publish, "x", b"") == 1
        await channel.saw("up", Push(cursor="7"), Push(), Push())
    await wait_until_unsubscribed(server)


async def test_a_listener_can_subscribe_to_patterns_only(server):
    async with listening(at(server, (), patterns=["a*", "b*"])) as channel:
        await channel.saw("up")
        assert await run_sync(server.publish, "boxes") == 1
        await channel.saw("up", Push())


async def test_redis_py_is_prevented_from_writing_to_the_terminal(server):
    logging.getLogger().manager.loggerDict.pop("push_response", None)
    async with listening(at(server)) as channel:
        await channel.saw("up")
    assert logging.getLogger("push_response").handlers == []


@pytest.mark.usefixtures("quick_backoff")
@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_the_listener_reconnects_after_the_server_was_killed_or_stopped(server, end):
    async with listening(at(server)) as channel:
        await channel.saw("up")
        await run_sync(getattr(server, end))
        await channel.saw("up", "down")
        await run_sync(server.start)
        await channel.sees("up", after="down")
        assert await run_sync(server.publish, "orders") == 1
        await channel.sees(Push(), after="down")


async def test_the_listener_reconnects_and_redis_py_does_not(server, caplog):
    """redis-py alone would reconnect at once, and without a wake."""
    caplog.set_level(logging.INFO, "push_to_poll_client")
    async with listening(at(server)) as channel:
        await channel.saw("up")
        with redis.Redis(port=server.port) as client:
            before = client.info("stats")["total_connections_received"]
            client.client_kill_filter(_type="pubsub")
            await channel.saw("up", "down", "up")
            assert client.info("stats")["total_connections_received"] == before + 1
    assert caplog.text.count("reconnecting in 0.0 s") == 1


async def test_the_listener_detects_a_stalled_server_and_reconnects(server):
    """On a busy machine such short limits also cause false alarms, after which the channel comes up again."""
    async with listening(at(server, max_silence=0.1, open_timeout=0.5)) as channel:
        await channel.until(lambda events: "up" in events)
        with server.paused():
            downs = channel.events.count("down")
            await channel.until(lambda events: events.count("down") > downs)
        ups = channel.events.count("up")
        await channel.until(lambda events: events.count("up") > ups)
        before = len(channel.events)
        while Push() not in channel.events[before:]:
            await run_sync(server.publish, "orders")


async def test_the_listener_stays_connected_while_a_real_server_answers_pings(server):
    async with listening(at(server, max_silence=0.01)) as channel:
        await channel.saw("up")
        with redis.Redis(port=server.port) as client:
            while client.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"] < 3:
                await anyio.lowlevel.checkpoint()
        assert await run_sync(server.publish, "orders") == 1
        await channel.saw("up", Push())


async def test_a_connection_is_replaced_at_max_age(server):
    async with listening(at(server, max_age=0.1)) as channel:
        await channel.saw("up", "up", "up")
    await wait_until_unsubscribed(server)


@pytest.mark.parametrize(
    ("user", "told"), [(f"locked:{CANARY}", "invalid username-password pair"), ("mute:right", "No permissions")]
)
async def test_a_refused_connection_is_retried_slowly_and_hides_secrets(server, caplog, user, told):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    async with listening(at(server, url=f"redis://{user}@{HOST}:{server.port}")) as channel:
        await channel.saw("down")
    assert told.lower() in caplog.text.lower()
    assert "reconnecting in 300.0 s" in caplog.text
    assert CANARY not in f"{caplog.text}{channel.error}{channel.error.__cause__}"


async def test_a_given_client_supplies_the_connection_settings_and_stays_open(server):
    async with redis.asyncio.Redis(port=server.port, decode_responses=True, protocol=3) as client:
        async with listening(at(server, url=client)) as channel:
            await channel.saw("up")
            await client.publish("orders", "x")
            await channel.saw("up", Push())
        assert await client.ping()


# A server with a certificate


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


class SecureServer(Raw):
    """Records the data that the client sends inside TLS, or its failed handshake."""

    def __init__(self, certificate):
        super().__init__(self._talk)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self.heard = []

    def _talk(self, accepted, number):
        try:
            with self._context.wrap_socket(accepted.dup(), server_side=True) as secure:
                self.heard.append(secure.recv(65536))
        except ssl.SSLError:
            self.heard.append(None)
        finally:
            accepted.shutdown(socket.SHUT_RDWR)


def as_in_version_5(init):
    """Return the constructor with the default of redis-py before version 6, which did not check names."""
    return lambda self, **settings: init(self, **{"ssl_check_hostname": False, **settings})


async def heard(server, url):
    """Return the data that a server received before the connection failed."""
    async with listening(at(None, url=url)) as channel:
        await channel.saw("down")
    return server.heard, channel


async def test_the_password_is_not_sent_to_a_server_with_the_certificate_of_another_host(
    real_time, authority, tmp_path, monkeypatch
):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setattr(
        redis.asyncio.SSLConnection, "__init__", as_in_version_5(redis.asyncio.SSLConnection.__init__)
    )
    with SecureServer(authority.issue_cert("other.example")) as server:
        where = f"rediss://:{CANARY}@{HOST}:{server.port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
        told, channel = await heard(server, where)
    assert told == [None]
    assert "certificate" in str(channel.error)


@pytest.mark.parametrize("chosen", ["ssl_check_hostname=false", "ssl_cert_reqs=none"])
async def test_a_url_may_permit_any_name_or_any_certificate(real_time, authority, tmp_path, chosen):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with SecureServer(authority.issue_cert("other.example")) as server:
        where = f"rediss://:{CANARY}@{HOST}:{server.port}?ssl_ca_certs={tmp_path / 'ca.pem'}&{chosen}"
        (told,), _ = await heard(server, where)
    assert CANARY.encode() in told


GARBAGE = (b"", b"\0\xff" * 999, b"*1\r\n" * 5000, b"$999999999999\r\nx", b":" + b"9" * 5000 + b"\r\n", b"*-5\r\n")


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_server_that_sends_nothing_or_garbage_is_a_failure(real_time, garbage):
    with Raw(lambda accepted, number: accepted.sendall(garbage)) as raw, contextlib.ExitStack() as left:
        left.callback(gc.collect)
        async with listening(at(None, url=f"redis://{HOST}:{raw.port}", open_timeout=0.5)) as channel:
            await channel.saw("down")
