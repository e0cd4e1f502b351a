"""PostgreSQL as a channel: scripted connections in virtual time, and a server that is killed and paused."""

import contextlib
import gc
import logging
import sys

import anyio
import psycopg
import pytest
from anyio.to_thread import run_sync

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.listeners import JSONHint, ReconnectAction
from push_to_poll_client.listeners._hints import Notification
from push_to_poll_client.listeners.postgres import PostgresListener, failure_of
from push_to_poll_client.testing import virtual_time
from tests.support.channels import HOST, Raw, TimedChannel, listening
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"


# Scripted connections, in virtual time


@pytest.fixture
def anyio_backend(request):
    """Only asyncio, since psycopg does not support trio. Tests with the server use real time."""
    return (
        "asyncio"
        if "server" in request.fixturenames or "real_time" in request.fixturenames
        else virtual_time("asyncio")
    )


@pytest.fixture
def real_time():
    """Use real time for sockets."""


class Scripted:
    """A scripted connection: a number is a delay, a text a notification, an error is raised; then silence."""

    def __init__(self, *happenings, answers=True):
        self._happenings = iter(happenings)
        self._answers = answers
        self.executed = []
        self.closed = self.autocommit = False

    async def set_autocommit(self, value):
        self.autocommit = value

    async def execute(self, statement):
        self.executed.append(statement if isinstance(statement, str) else statement.as_string())
        if statement == "SELECT 1" and not self._answers:
            await anyio.sleep_forever()

    async def notifies(self, *, timeout, stop_after):  # noqa: ASYNC109  # as psycopg has it
        with anyio.move_on_after(timeout):
            for happening in self._happenings:
                if isinstance(happening, Exception):
                    raise happening
                if isinstance(happening, str):
                    yield psycopg.Notify("orders", happening, 7)
                    return
                await anyio.sleep(happening)
            await anyio.sleep_forever()

    async def close(self):
        await anyio.lowlevel.checkpoint()
        self.closed = True


def to(*connections, channel="orders", max_age=None, **options):
    """Opens scripted connections in turn: an error is raised, `None` never connects."""
    following = iter(connections)

    async def connect():
        connection = next(following, None)
        if isinstance(connection, Exception):
            raise connection
        return connection or await anyio.sleep_forever()

    listener = PostgresListener(connect, channel, max_age=max_age, **options)
    listener._fraction = lambda: 0.0
    return listener


async def run(listener, seconds):
    channel = TimedChannel()
    with anyio.move_on_after(seconds):
        await listener.listen(channel)
    return channel


async def test_a_new_connection_and_each_notification_wake_the_consumer():
    connection = Scripted(5, "a", "b")
    channel = await run(to(connection, hint=lambda said: Push(topics=(said.channel, said.data))), 10)
    assert channel.events == [(0, "up"), (5, Push(topics=("orders", "a"))), (5, Push(topics=("orders", "b")))]
    assert connection.executed == ['LISTEN "orders"']
    assert connection.autocommit
    assert connection.closed


async def test_channel_names_are_quoted_and_listened_to_once():
    connection = Scripted()
    await run(to(connection, channel=["Orders", 'a"; DROP', "Orders"]), 1)
    assert connection.executed == ['LISTEN "Orders"', 'LISTEN "a""; DROP"']


async def test_a_query_checks_the_connection_after_max_silence():
    connection = Scripted(99, 99, 10, "a")
    channel = await run(to(connection, max_silence=60), 200)
    assert connection.executed[1:] == ["SELECT 1"] * 3
    assert channel.events == [(0, "up"), (130, Push())]


async def test_a_connection_that_does_not_answer_the_check_is_replaced():
    connection = Scripted(answers=False)
    channel = await run(to(connection, Scripted(), max_silence=60, open_timeout=10), 80)
    assert channel.events == [(0, "up"), (70, "down"), (70, "up")]
    assert "no response to a ping within 10 s" in str(channel.errors[0])
    assert connection.closed


async def test_no_check_is_sent_without_max_silence():
    connection = Scripted()
    await run(to(connection, max_silence=None), 1000)
    assert len(connection.executed) == 1


async def test_a_connect_that_exceeds_open_timeout_is_a_failure():
    channel = await run(to(None, Scripted(), open_timeout=10), 20)
    assert channel.events == [(10, "down"), (10, "up")]
    assert "not subscribed within 10 s" in str(channel.errors[0])


async def test_a_connection_is_replaced_at_max_age():
    connections = [Scripted(), Scripted()]
    assert (await run(to(*connections, max_age=100), 99)).events == [(0, "up"), (50, "up")]
    assert connections[0].closed


async def test_a_lost_connection_is_reopened():
    ended = psycopg.OperationalError("server closed the connection unexpectedly")
    channel = await run(to(Scripted(5, ended), Scripted(), ended), 10)
    assert channel.events == [(0, "up"), (5, "down"), (5, "up")]
    assert "server closed the connection unexpectedly" in str(channel.errors[0])


async def test_a_refused_connection_is_retried_slowly_unless_classify_returns_retry():
    refused = psycopg.OperationalError("FATAL:  password authentication failed for user")
    assert (await run(to(refused, Scripted()), 301)).events == [(0, "down"), (300, "up")]
    assert (await run(to(refused, Scripted(), classify=lambda error: ReconnectAction.RETRY), 9)).events[1] == (
        0,
        "up",
    )


async def test_an_undecodable_payload_is_a_push_and_reopens_the_connection():
    garbage = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x")
    channel = await run(to(Scripted(5, garbage), Scripted()), 9)
    assert channel.events == [(0, "up"), (5, Push()), (5, "down"), (5, "up")]


@pytest.mark.parametrize("anyio_backend", [virtual_time("trio")])
async def test_trio_is_refused_at_once():
    with pytest.raises(ListenerError, match="psycopg runs only on asyncio"):
        await to(Scripted()).listen(TimedChannel())


# Classification of failures


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ("57P01", ReconnectAction.RETRY),  # shut down
        ("57P03", ReconnectAction.RETRY),  # starting
        ("53300", ReconnectAction.RETRY),  # too many clients
        ("08006", ReconnectAction.RETRY),
        ("XX000", ReconnectAction.RETRY),
        ("28P01", ReconnectAction.SLOW_RETRY),  # wrong password
        ("3D000", ReconnectAction.SLOW_RETRY),  # no such database
        ("42501", ReconnectAction.SLOW_RETRY),  # not permitted
        ("25006", ReconnectAction.SLOW_RETRY),  # a standby
    ],
)
def test_an_sqlstate_decides_between_retry_and_slow_retry(state, action):
    assert failure_of(psycopg.errors.lookup(state)("said")).action is action


@pytest.mark.parametrize(
    ("error", "action", "sentence"),
    [
        (psycopg.OperationalError("the database system is starting up"), ReconnectAction.RETRY, "starting up"),
        (psycopg.OperationalError('database "x" does not exist'), ReconnectAction.SLOW_RETRY, "does not exist"),
        (
            psycopg.InterfaceError("cannot use the 'ProactorEventLoop'"),
            ReconnectAction.SLOW_RETRY,
            "ProactorEventLoop",
        ),
        (psycopg.DataError('no equivalent in "LATIN1"'), ReconnectAction.SLOW_RETRY, "no equivalent"),
        (psycopg.ProgrammingError(CANARY), ReconnectAction.SLOW_RETRY, "failed with ProgrammingError"),
        (OSError("no route"), ReconnectAction.RETRY, "no route"),
        (ValueError(CANARY), ReconnectAction.RETRY, "failed with ValueError"),
    ],
)
def test_an_error_without_an_sqlstate_has_an_action_and_hides_secrets(error, action, sentence):
    failure = failure_of(error)
    assert failure.action is action
    assert sentence in failure.sentence
    assert CANARY not in f"{failure.sentence}{failure.cause}"


# Declarations


@pytest.mark.parametrize(
    ("conninfo", "name"),
    [
        (
            f"postgresql://me:{CANARY}@db.example:6432/shop?sslmode=require",
            "postgresql://db.example:6432/shop a,b",
        ),
        (f"host=db.example user=me password={CANARY}", "postgresql://db.example a,b"),
        ("dbname=shop", "postgresql:///shop a,b"),
        ("", "postgresql a,b"),
        ("host=a\x1b", "postgresql://a\N{REPLACEMENT CHARACTER} a,b"),
    ],
)
def test_the_name_of_a_listener_shows_the_server_but_no_secret(conninfo, name):
    listener = PostgresListener(conninfo, ["a", "b"])
    assert listener.name == name
    assert repr(listener) == f"PostgresListener({name!r})"


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "text"),
    [
        (("", ""), {}, ValueError, "an empty name"),
        (("", []), {}, ValueError, "must name at least one channel"),
        (("", ["a", 7]), {}, TypeError, "channel must be a str or a sequence of str"),
        (("", "x" * 64), {}, ValueError, "63 bytes"),
        (("", "é" * 32), {}, ValueError, "63 bytes"),
        (("", "a\0"), {}, ValueError, "no zero byte"),
        ((7, "a"), {}, TypeError, "conninfo must be a str or an async function"),
        ((f"host {CANARY}", "a"), {}, ValueError, "libpq cannot parse conninfo"),
        (("", "a"), {"max_silence": 0}, ValueError, "max_silence"),
        (("", "a"), {"max_age": -1}, ValueError, "max_age"),
        (("", "a"), {"open_timeout": None}, TypeError, "open_timeout"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, options, kind, text):
    with pytest.raises(kind, match=text) as refused:
        PostgresListener(*arguments, **options)
    assert CANARY not in str(refused.value)


def test_a_missing_psycopg_is_an_import_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"pip install 'push-to-poll-client\[postgres\]'"):
        PostgresListener("", "orders")


def test_psycopg_without_libpq_is_an_import_error_with_the_install_command(monkeypatch, tmp_path):
    (tmp_path / "psycopg.py").write_text("raise ImportError('no pq wrapper available.\\nAttempts made: none')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "psycopg")
    with pytest.raises(ImportError) as raised:
        PostgresListener("", "orders")
    assert str(raised.value) == (
        "PostgresListener needs psycopg, which is installed but cannot be imported: "
        "pip install 'psycopg[binary]', or install PostgreSQL's client library libpq "
        "(no pq wrapper available. Attempts made: none)"
    )


# Real servers


@pytest.fixture
def server(request, nothing_is_left_unclosed):
    return shared_server(request.config)


def at(server, channel="orders", conninfo=None, **options):
    listener = PostgresListener(conninfo or server.conninfo, channel, **{"open_timeout": 2 * GUARD, **options})
    listener._fraction = lambda: 0.0
    return listener


async def wait_until_disconnected(server):
    with anyio.fail_after(GUARD):
        while await run_sync(server.listeners):
            pass


async def test_notifications_carry_hints_and_a_stop_closes_the_connection(server):
    hint = JSONHint(cursor="cursor")
    async with listening(at(server, ["orders", 'O"dd;'], hint=hint)) as channel:
        await channel.saw("up")
        assert await run_sync(server.listeners) == 1
        await run_sync(server.notify, "others", "x")
        await run_sync(server.notify, "orders", '{"cursor": "7"}')
        await run_sync(server.notify, 'O"dd;', "x" * 7999)
        await run_sync(server.notify, "orders", "")
        await channel.saw("up", Push(cursor="7"), Push(), Push())
    await wait_until_disconnected(server)


@pytest.mark.usefixtures("quick_backoff")
@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_the_listener_reconnects_after_the_server_was_killed_or_stopped(server, caplog, end):
    caplog.set_level(logging.INFO, "push_to_poll_client")
    async with listening(at(server)) as channel:
        await channel.saw("up")
        await run_sync(getattr(server, end))
        await channel.saw("up", "down")
        await run_sync(server.start)
        await channel.sees("up", after="down")
        await run_sync(server.notify, "orders")
        await channel.sees(Push(), after="down")
    assert "closed the connection unexpectedly" in caplog.text


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
            await run_sync(server.notify, "orders")


async def test_the_listener_reconnects_after_its_session_was_terminated(server):
    async with listening(at(server)) as channel:
        await channel.saw("up")
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        await run_sync(server.execute, ended)
        await channel.saw("up", "down", "up")
    assert isinstance(channel.error.__cause__, psycopg.OperationalError)


async def test_a_connection_to_a_real_server_is_replaced_at_max_age(server):
    async with listening(at(server, max_age=0.1)) as channel:
        await channel.saw("up", "up", "up")
    await wait_until_disconnected(server)


@pytest.mark.parametrize(
    ("user", "database", "said"),
    [(f"locked:{CANARY}", "postgres", "password authentication failed"), ("me", "nowhere", "does not exist")],
)
async def test_a_connection_refused_by_a_real_server_is_retried_slowly_and_hides_secrets(
    server, caplog, user, database, said
):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    await run_sync(server.execute, "DROP ROLE IF EXISTS locked", "CREATE ROLE locked LOGIN PASSWORD 'right'")
    conninfo = f"postgresql://{user}@{HOST}:{server.port}/{database}"
    async with listening(at(server, conninfo=conninfo)) as channel:
        await channel.saw("down")
    assert said in caplog.text
    assert "reconnecting in 300.0 s" in caplog.text
    assert CANARY not in f"{caplog.text}{channel.error}{channel.error.__cause__}"


async def test_an_async_function_may_connect(server):
    async def connect():
        return await psycopg.AsyncConnection.connect(server.conninfo)

    async with listening(at(server, conninfo=connect)) as channel:
        await channel.saw("up")
        await run_sync(server.notify, "orders")
        await channel.saw("up", Push())


async def test_a_payload_with_an_invalid_encoding_is_a_push(server):
    made = "CREATE DATABASE raw ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
    await run_sync(server.execute, "DROP DATABASE IF EXISTS raw", made)
    conninfo = server.conninfo.replace("/postgres", "/raw")
    async with listening(at(server, conninfo=conninfo)) as channel:
        await channel.saw("up")
        with psycopg.connect(conninfo, autocommit=True) as other:
            other.execute(r"SELECT pg_notify('orders', convert_from('\xff', 'SQL_ASCII'))")
        await channel.sees(Push(), after="up")


@pytest.mark.parametrize(
    "treat", [lambda accepted, _: None, lambda accepted, _: accepted.sendall(b"\0E\xff" * 999)]
)
async def test_a_server_that_sends_nothing_or_garbage_is_a_failure(real_time, treat):
    with Raw(treat) as raw, contextlib.ExitStack() as left:
        left.callback(gc.collect)
        conninfo = f"host={HOST} port={raw.port} user=me"
        async with listening(at(None, conninfo=conninfo, open_timeout=0.5)) as channel:
            await channel.saw("down")


def test_a_notification_is_a_pair_of_channel_and_data():
    assert Notification("orders", "x") == ("orders", "x")
