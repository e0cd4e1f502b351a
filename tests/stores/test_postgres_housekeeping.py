"""The thread of a PostgresStore: it renews leases, frees dropped names, sends and hears notices."""

import gc
import json
import math
import runpy
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from unittest.mock import patch

import anyio
import psycopg
import pytest
from anyio import to_thread

from push_to_poll_client import OwnershipLost, Push, StoreBusy
from push_to_poll_client._types import DeadLetter, Record
from push_to_poll_client.stores._postgres import housekeeping as housekeeping_module
from push_to_poll_client.stores._postgres import lease as lease_module
from push_to_poll_client.stores._postgres import session as session_module
from push_to_poll_client.stores._postgres.notices import Kind, Notice, digest_of, merge_pushes
from push_to_poll_client.stores.postgres import PostgresStore
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import LEASE, PostgresStores, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # a server takes real time


ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""For tests of the thread, where the event loop has no part in it."""


@pytest.fixture
async def stores(request, anyio_backend):
    opened = PostgresStores(shared_server(request.config))
    yield opened
    await opened.aclose()


def threads(stores):
    return [thread for thread in threading.enumerate() if thread.name == f"PostgresStore {stores.schema}"]


def renewals(session):
    """Return a function that tells whether the lease was renewed since now."""
    ends = session._lease.ends
    return lambda: session._lease.ends > ends


async def renew(store, session):
    """Let the thread renew now, and wait for it, also for the renewal that the last request may cause."""
    await until(renew_soon(store, session))
    await until(lambda: store._housekeeping._next_renewal > 0)


def renew_soon(store, session):
    """Return a function that lets the thread renew now, and tells whether it has renewed since the first call."""
    renewed = renewals(session)

    def has_renewed():
        store._housekeeping._next_renewal = -1.0  # each time: the thread may just be setting it
        store._housekeeping.poke()
        return renewed()

    return has_renewed


# Leases


async def test_a_lease_is_renewed_while_the_event_loop_is_blocked(stores):
    store = stores.store()
    session = await store.claim("a", feed="f")
    for _ in range(2):
        renewed, began = renew_soon(store, session), time.monotonic()
        while not renewed():
            assert time.monotonic() - began < GUARD
            time.sleep(0.001)  # noqa: ASYNC251  # blocks the event loop, as a handler may
    assert not session.lost
    await session.commit(cursor="c", records=[])
    await session.release()


async def test_a_lease_is_not_renewed_if_the_event_loop_is_blocked_too_long(stores, monkeypatch):
    monkeypatch.setattr(lease_module, "MAX_SILENCE", 0.1)
    store = stores.store(lease=1.0)
    session = await store.claim("a", feed="f")
    time.sleep(1.6)  # noqa: ASYNC251  # a lease, and the renewal that may come within the 0.1 s
    assert session.lost
    with pytest.raises(OwnershipLost):
        await session.commit(cursor="c", records=[])
    await session.release()


@ON_ASYNCIO
async def test_a_long_lease_is_renewed_although_the_event_loop_is_asked_rarely(stores):
    store = stores.store(lease=600.0)
    session = await store.claim("a", feed="f")
    for _ in range(4):
        await renew(store, session)
        await until(lambda: session._lease._asked_at is None)
        store.jump += 190.0  # the next renewal is due at 200
        assert session._lease.may_be_renewed
    assert not session.lost
    await session.release()


async def test_a_session_that_is_dropped_frees_its_name(stores):
    store, other = stores.store(), stores.store()
    session = await store.claim("a", feed="f")
    assert not session.lost
    del session
    gc.collect()
    with anyio.fail_after(GUARD):
        while True:
            try:
                session = await other.claim("a", feed="f")
                break
            except StoreBusy:
                await other.freed("a")
    await session.release()


async def test_a_session_that_was_claimed_again_does_not_free_its_name_when_it_is_dropped(stores):
    store, other = stores.store(), stores.store()
    session = await store.claim("a", feed="f")
    async with stores.in_doubt(store, "lost"):
        with pytest.raises(Exception, match="planted"):
            await session.commit(cursor="c", records=[])
    new = await session.again()
    del session
    gc.collect()
    await renew(store, new)
    await renew(store, new)  # the first one may have begun before the session was dropped
    with pytest.raises(StoreBusy):
        await other.claim("a", feed="f")
    await new.release()


def test_a_lease_ends_after_its_event_loop(stores_without_loop):
    stores = stores_without_loop
    opened = []

    async def claim():
        opened.append(await stores.store(lease=1.0).claim("a", feed="f"))

    async def take_over():
        other = stores.store(lease=1.0)
        with anyio.fail_after(GUARD):
            while True:
                try:
                    session = await other.claim("a", feed="f")
                    break
                except StoreBusy:
                    await other.freed("a")
        await session.release()
        await stores.aclose()

    anyio.run(claim)
    anyio.run(take_over)
    assert opened[0].lost


@pytest.fixture
def stores_without_loop(request):
    return PostgresStores(shared_server(request.config))


@ON_ASYNCIO
async def test_the_end_of_an_outage_is_logged_also_by_a_later_thread(stores, caplog):
    """A replica that stands by may try the name again only when its thread has ended."""
    caplog.set_level("INFO")
    store = stores.store()
    session = await store.claim("a", feed="f")
    async with stores.unreachable(store):
        await until(lambda: "leases are not renewed" in caplog.text)
        await session.release()
        await to_thread.run_sync(store._housekeeping.stop)
    assert "heard again" not in caplog.text
    again = await store.claim("b", feed="f")
    await until(lambda: "leases are renewed and wakes heard again" in caplog.text)
    await again.release()


@ON_ASYNCIO
async def test_a_renewal_compares_the_owner(stores):
    """A session that lost its name must not stay alive through another session of the same store."""
    store = stores.store()
    first = await store.claim("a", feed="f")
    changed = threading.Event()
    first.subscribe(changed=changed.set, wake=lambda push: None)
    await renew(store, first)
    stores.execute("UPDATE {s}.lease SET until = clock_timestamp()")
    second = await store.claim("a", feed="f")
    store._housekeeping._next_renewal = -1.0
    store._housekeeping.poke()
    await until(lambda: first.lost)
    await until(changed.is_set)
    assert not second.lost
    await first.release()
    await second.commit(cursor="c", records=[])
    await second.release()


@ON_ASYNCIO
async def test_a_former_owner_does_not_renew_the_lease_of_the_next_one(stores):
    former, latter = stores.store(), stores.store(lease=10 * LEASE)
    first = await former.claim("a", feed="f")
    await renew(former, first)
    stores.execute("UPDATE {s}.lease SET until = clock_timestamp()")
    second = await latter.claim("a", feed="f")
    await renew(latter, second)  # else its first heartbeat could hide what the former owner does
    former._housekeeping._next_renewal = -1.0
    former._housekeeping.poke()
    await until(lambda: first.lost)
    is_unchanged = "SELECT extract(epoch FROM until - clock_timestamp()) > %(least)s FROM {s}.lease"
    assert stores.execute(is_unchanged, least=2 * LEASE) == [(True,)]
    await first.release()
    assert stores.execute(is_unchanged, least=2 * LEASE) == [(True,)]
    await second.release()


@ON_ASYNCIO
async def test_the_lease_ends_before_the_server_ends_it(stores):
    """However long the answers take: it counts from the time before the request."""
    store = stores.store()
    store._housekeeping._next_renewal = math.inf  # no other renewals than those of this test
    store.proxy.delay(0.02)
    before = store._now()
    session = await store.claim("a", feed="f")
    after = store._now()
    assert before + LEASE <= session._lease.ends <= after - 0.02 + LEASE

    def check():
        ends = session._lease.ends  # before `left`, which the next renewal increases
        ((left,),) = stores.execute("SELECT extract(epoch FROM until - clock_timestamp())::float8 FROM {s}.lease")
        assert ends - store._now() <= left

    check()
    await renew(store, session)
    check()
    store.proxy.heal()
    await session.release()


async def test_a_restarted_instance_takes_its_name_back_after_half_a_lease(stores):
    first, second, third = (stores.store(instance=name) for name in ("pod-1", "pod-1", "pod-2"))
    session = await first.claim("a", feed="f")
    first._housekeeping.stop()  # it renews nothing, as after a kill
    with pytest.raises(StoreBusy):
        await second.claim("a", feed="f")
    missed = "UPDATE {s}.lease SET until = clock_timestamp() + make_interval(secs => %(left)s)"
    stores.execute(missed, left=LEASE - 1)
    with pytest.raises(StoreBusy):
        await second.claim("a", feed="f")
    stores.execute(missed, left=LEASE / 2)
    with pytest.raises(StoreBusy, match="pod-1"):
        await third.claim("a", feed="f")
    taken = await second.claim("a", feed="f")
    with pytest.raises(OwnershipLost):
        await session.commit(cursor="c", records=[])
    await session.release()
    await taken.commit(cursor="c", records=[])
    await taken.release()


@ON_ASYNCIO
@pytest.mark.parametrize("what", ["renewed", "released"])
async def test_a_lease_is_written_although_transactions_are_serializable_by_default(stores, caplog, what):
    """Another transaction, such as a request to hand over, changes its row at the same time."""
    options = "-c default_transaction_isolation=serializable"
    conninfo = psycopg.conninfo.make_conninfo(stores.server.conninfo, options=options)
    store = PostgresStore(conninfo, schema=stores.schema, lease=LEASE)
    session = await store.claim("a", feed="f")
    await renew(store, session)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ %(schema)s"
    with psycopg.connect(stores.server.conninfo) as other:
        other.execute(f"UPDATE {stores.schema}.lease SET wanted = wanted".encode())  # noqa: S608
        renewed = renewals(session)
        async with anyio.create_task_group() as tasks:
            if what == "renewed":
                store._housekeeping._next_renewal = -1.0
                store._housekeeping.poke()
            else:
                tasks.start_soon(session.release)
            await until(lambda: stores.execute(waits, schema=stores.schema) == [(1,)])
            other.commit()
    if what == "renewed":
        await until(renewed)
        await session.release()
    assert "retrying" not in caplog.text
    assert stores.execute("SELECT owner FROM {s}.lease") == [(None,)]
    await store.aclose()


UNUSUAL = {
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "bytea_output": "escape",
    "search_path": "",
    "client_encoding": "LATIN1",
    "row_security": "off",
    "default_transaction_isolation": "serializable",
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "extra_float_digits": "-10",
}


@ON_ASYNCIO
async def test_a_store_works_with_unusual_settings_of_its_role(stores):
    options = " ".join(f"-c {name}={value}" for name, value in UNUSUAL.items())
    conninfo = psycopg.conninfo.make_conninfo(stores.server.conninfo, options=options)
    store = PostgresStore(conninfo, schema=stores.schema, lease=LEASE, transactional=True)
    session = await store.claim("ä", feed="f")
    letter = DeadLetter(dedupe_key="d", id="d", raw=b"\\\0'", error="'\\")
    await session.commit(cursor="c'\\", records=[Record("k")], dead_letters=[letter], state={"s": "\\"})
    async with session.transaction([Record("t")]):
        await store.connection.execute("SELECT 1")
    await renew(store, session)
    assert await session.unseen(["k", "t", "new"]) == {"new"}
    assert await store.request("ä", ["d"], "drop") == 1
    assert [one.raw for one in await session.dead_letters(retry_requested=True)] == [letter.raw]
    snapshot = await to_thread.run_sync(store.reader().snapshot)
    assert [(one.name, one.cursor) for one in snapshot.progress] == [("ä", "c'\\")]
    history = await to_thread.run_sync(store.reader().history, "ä")
    assert history == session.history  # with exact times
    await session.release()
    again = await store.claim("ä", feed="f")
    assert (again.cursor, dict(again.state)) == ("c'\\", {"s": "\\"})
    await again.release()
    await store.aclose()


async def test_an_owner_that_was_wanted_before_it_subscribed_is_told(stores):
    store = stores.store()
    session = await store.claim("a", feed="f")
    await stores.want("a")
    await until(lambda: session.wanted)
    told = threading.Event()
    session.subscribe(changed=told.set, wake=lambda push: None)
    assert told.is_set()
    await session.release()


def test_the_clock_of_leases_works_on_a_system_without_clock_gettime(monkeypatch):
    """As Windows."""
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC", "clock_gettime"):
        monkeypatch.delattr(time, name)
    lease_clock = runpy.run_path(lease_module.__file__)["lease_clock"]
    before = time.monotonic()
    assert before <= lease_clock() <= time.monotonic()


# The thread


@ON_ASYNCIO
async def test_leases_are_renewed_again_after_an_unexpected_error_of_the_thread(stores, monkeypatch, caplog):
    caplog.set_level("INFO")
    store = stores.store()
    session = await store.claim("a", feed="f")
    await renew(store, session)
    pauses = []
    monkeypatch.setattr(store._housekeeping, "_pause", lambda *_: pauses.append(time.sleep(0.01)))
    with monkeypatch.context() as patch:
        patch.setattr(store._housekeeping, "_renew", lambda _: 1 / 0)
        store._housekeeping._next_renewal = -1.0
        store._housekeeping.poke()
        await until(lambda: len(pauses) >= 3)
    assert "ZeroDivisionError" in caplog.text
    await renew(store, session)
    await until(lambda: "leases are renewed and wakes heard again" in caplog.text)
    assert caplog.text.count("the thread that renews leases failed") == 1
    await session.release()


@ON_ASYNCIO
async def test_the_thread_ends_without_leases_and_starts_again(stores, monkeypatch):
    store = stores.store()

    def has_ended():
        store._housekeeping.ring()
        return not threads(stores)

    for _ in range(2):
        session = await store.claim("a", feed="f")
        await renew(store, session)
        assert len(threads(stores)) == 1
        await session.release()
        with monkeypatch.context() as patched:
            patched.setattr(housekeeping_module, "_LINGER", 0.01)
            await until(has_ended)
        assert store._database._idle == []
    monkeypatch.setattr(housekeeping_module, "_LINGER", 0.01)
    store.forward("a", None)
    await until(has_ended)


@ON_ASYNCIO
async def test_the_thread_does_not_end_during_a_release(stores, monkeypatch):
    """Else the connection of the release would stay open: the thread closes unused ones when it ends."""
    store = stores.store()
    session = await store.claim("a", feed="f")
    store.jump += 2 * housekeeping_module._LINGER  # owned for longer than that
    ends = []

    def free(*_):
        ends.append(store._housekeeping._is_done())

    monkeypatch.setattr(session_module, "free_name", free)
    await session.release()
    assert ends == [False]


@ON_ASYNCIO
async def test_a_store_can_be_used_after_it_was_closed(stores):
    store = stores.store()
    session = await store.claim("a", feed="f")
    await session.release()
    await PostgresStore.aclose(store)
    assert threads(stores) == []
    session = await store.claim("a", feed="f")
    await renew(store, session)
    await session.release()


@ON_ASYNCIO
async def test_forward_never_raises(stores):
    store = stores.store()
    with patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
        store.forward("a", Push("c"))
    assert threads(stores) == []


FORKED = """
import os, sys, warnings
import anyio
from push_to_poll_client import OwnershipLost, StoreBusy
from push_to_poll_client.stores.postgres import PostgresStore

store = PostgresStore(sys.argv[1], schema=sys.argv[2], lease=60.0)


async def in_parent():
    session = await store.claim("a", feed="f")
    await session.commit(cursor="c1", records=[])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            await in_child(session)
            code = 0
        finally:
            os._exit(code)
    _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
    assert status == 0, status
    await session.commit(cursor="c2", records=[])
    assert session.cursor == "c2"
    await session.release()
    await store.aclose()


async def in_child(session):
    for call in (lambda: session.commit(cursor="x", records=[]), lambda: session.unseen(["k"])):
        try:
            await call()
        except OwnershipLost as error:
            assert "forked" in str(error)
        else:
            raise AssertionError
    await session.release()


async def forked():
    try:
        await store.claim("a", feed="f")
    except StoreBusy as error:
        assert not error.owner.endswith(f":{os.getpid()}"), error.owner
    else:
        raise AssertionError
    store.forward("a", None)
    session = await store.claim("b", feed="f")
    await session.commit(cursor="c", records=[])
    await session.release()
    await store.aclose()


anyio.run(in_parent)


async def hold():
    session = await store.claim("a", feed="f")
    release, ready = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(ready[0], 1)
        os.execv(sys.executable, [sys.executable, "-c", "pass"])
    os.write(ready[1], b"x")
    await anyio.to_thread.run_sync(os.waitpid, child, 0)
    await session.commit(cursor="c3", records=[])  # the end of the child has closed nothing of the parent
    await session.release()
    await store.aclose()


anyio.run(hold)


async def own():
    return await store.claim("a", feed="f")


session = anyio.run(own)
child = os.fork()
if child == 0:
    code = 1
    try:
        anyio.run(forked)
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@ON_ASYNCIO
async def test_a_forked_process_uses_connections_of_its_own(stores):
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        FORKED,
        stores.server.conninfo,
        stores.schema,
    ]
    ended = await to_thread.run_sync(
        lambda: subprocess.run(command, check=False, capture_output=True, text=True, timeout=GUARD)
    )
    assert ended.returncode == 0, ended.stderr


# Notices


@contextmanager
def listening(stores):
    """Hear all wakes of the stores until now."""
    with psycopg.connect(stores.server.conninfo, autocommit=True) as connection:
        connection.execute(f'LISTEN "{stores.schema}"')

        def heard():
            stores.server.notify(stores.schema, '{"kind": "end"}')
            wakes = []
            for notify in connection.notifies(timeout=GUARD):
                notice = json.loads(notify.payload)
                if notice["kind"] == "end":
                    return wakes
                if notice["kind"] == "wake":
                    wakes.append(notice)
            raise TimeoutError

        yield heard


def test_merged_wakes_do_not_grow_while_the_server_is_away():
    merged = Push(topics=("t0",))
    for number in range(1, 1000):
        merged = merge_pushes(merged, Push(topics=(f"t{number}",)))
        assert len(merged.topics) <= 64
    assert merged.topics == ()  # all


@ON_ASYNCIO
async def test_a_storm_of_wakes_becomes_one_notice_each_20_ms(stores):
    store = stores.store()
    session = await store.claim("owned", feed="f")
    await until(lambda: store.hears_wakes)
    wakes = []
    session.subscribe(changed=lambda: None, wake=wakes.append)
    with listening(stores) as heard:
        began = time.monotonic()
        for number in range(10_000):
            store.forward("owned", Push(f"c{number}"))
            if number % 100 == 0:
                await anyio.sleep(0.002)
        await to_thread.run_sync(store._housekeeping.wait_until_sent, GUARD)
        elapsed = time.monotonic() - began
        notices = await to_thread.run_sync(heard)
    assert 1 <= len(notices) <= elapsed / 0.02 + 2
    await until(lambda: len(wakes) >= len(notices))
    assert not store._housekeeping.has_wakes
    await session.release()


GARBAGE = [
    "",
    "null",
    "[]",
    "7",
    '"wake"',
    "{",
    "NaN",
    "9" * 7_900,
    "[" * 7_900,
    '{"a":' * 1_500,
    "{}",
    '{"kind": "wake"}',
    '{"kind": "unknown", "name": "00"}',
    '{"kind": ["wake"], "name": "00"}',
    '{"kind": {}, "name": "00"}',
    '{"kind": "wake", "name": 7}',
    '{"kind": "wake", "name": "zz"}',
    '{"kind": "test", "name": "%s"}',
    '{"kind": "freed", "name": "%s", "push": []}',
    '{"kind": "wake", "name": "%s", "push": 7}',
    '{"kind": "wake", "name": "%s", "push": {"cursor": 7}}',
    '{"kind": "wake", "name": "%s", "push": {"cursor": {"a": 1}}}',
    '{"kind": "wake", "name": "%s", "push": {"topics": "abc"}}',
    '{"kind": "wake", "name": "%s", "push": {"topics": [1]}}',
    '{"kind": "wake", "name": "%s", "push": {"count": 1e999}}',
    '{"kind": "wake", "name": "%s", "push": {"count": "many"}}',
    "\x01\x7f\u00e4\U0001f600",
]


@ON_ASYNCIO
async def test_garbage_on_the_channel_is_ignored(stores, caplog):
    store = stores.store()
    session = await store.claim("a", feed="f")
    await until(lambda: store.hears_wakes)
    wakes, changes = [], []
    session.subscribe(changed=lambda: changes.append(1), wake=wakes.append)
    (thread,) = threads(stores)
    for payload in GARBAGE:
        stores.server.notify(stores.schema, payload.replace("%s", digest_of("a").hex()))
    stores.notify(Kind.WANTED, "a")  # a lie: the row tells
    stores.notify(Kind.FREED, "a")  # a lie
    stores.server.notify(stores.schema, Notice(Kind.WAKE, digest_of("a"), Push("c")).encode())
    await until(lambda: wakes)
    assert wakes == [Push("c")]
    assert changes == []
    assert not session.wanted
    assert threads(stores) == [thread]
    assert [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []
    await session.release()


@ON_ASYNCIO
async def test_a_flood_of_notices_keeps_no_lease_from_being_renewed(stores):
    store = stores.store()
    session = await store.claim("a", feed="f")
    await until(lambda: store.hears_wakes)
    count = [0]

    def wake(push):
        count[0] += 1

    session.subscribe(changed=lambda: None, wake=wake)
    payload = json.dumps({"kind": "wake", "name": digest_of("a").hex(), "push": {"cursor": "x" * 1000}})
    flood = "SELECT pg_notify(%(channel)s, %(payload)s || repeat(' ', i)) FROM generate_series(1, 5000) AS i"
    renewed = renewals(session)
    stores.execute(flood, channel=stores.schema, payload=payload)
    stores.notify(Kind.WANTED, "a")
    stores.execute(flood.replace("repeat(' ', i)", "repeat(E'\\n', i)"), channel=stores.schema, payload=payload)
    await until(renewed)
    await until(lambda: count[0] == 10_000)
    keeper = store._housekeeping
    assert (len(keeper._leases), keeper._waiting, keeper._outgoing, keeper._sent) == (1, {}, {}, {})
    await session.release()


@ON_ASYNCIO
async def test_leases_are_renewed_although_the_server_refuses_notices(stores, caplog):
    """As with a full queue. Each release still frees the name."""
    await (await stores.store().claim("x", feed="f")).release()
    role = f"role_{stores.schema}"
    stores.execute(f"CREATE ROLE {role} LOGIN")
    stores.execute(f"GRANT USAGE ON SCHEMA {{s}} TO {role}")
    stores.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {{s}} TO {role}")
    stores.execute("REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC")
    store = PostgresStore(stores.server.conninfo.replace("me@", f"{role}@"), schema=stores.schema, lease=LEASE)
    try:
        session = await store.claim("a", feed="f")
        store.forward("b", Push("c"))
        await renew(store, session)
        await until(lambda: store.hears_wakes is False)
        await renew(store, session)
        await session.release()
        assert stores.execute("SELECT until FROM {s}.lease WHERE owner IS NOT NULL") == []
        await store.aclose()
    finally:
        stores.execute("GRANT EXECUTE ON FUNCTION pg_notify(text, text) TO PUBLIC")
        stores.execute(f"DROP OWNED BY {role}")
        stores.execute(f"DROP ROLE {role}")
    warnings = [
        record.getMessage() for record in caplog.records if "the server refuses notices" in record.getMessage()
    ]
    assert len(warnings) == 1
    assert "permission denied for function pg_notify" in warnings[0]
    assert store.hears_wakes is False
