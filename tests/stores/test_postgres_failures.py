"""PostgresStore when connections are cut, and when the server stops, hangs or refuses.

A commit has happened, has not, or is in doubt. The store never takes one of these for another.
"""

import resource
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import anyio
import psycopg
import pytest
from anyio import to_thread
from psycopg import pq

from push_to_poll_client import CommitInDoubt, OwnershipLost, Push, StoreBusy, StoreError, StoreUnavailable
from push_to_poll_client._types import DeadLetter, Record
from push_to_poll_client.stores._postgres.connection import Connection
from push_to_poll_client.stores._postgres.errors import commit_error
from push_to_poll_client.stores._postgres.housekeeping import Housekeeping
from push_to_poll_client.stores.postgres import PostgresStore
from tests.support.forms import GUARD, form
from tests.support.postgres_server import PostgresServer, shared_server
from tests.support.postgres_stores import PostgresStores, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # a server takes real time


ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""For tests of what happens in worker threads, where the event loop has no part in it."""


@pytest.fixture
async def stores(request, anyio_backend):
    opened = PostgresStores(shared_server(request.config))
    yield opened
    await opened.aclose()


@pytest.fixture
def store(stores):
    """Store whose calls go through the proxy, and whose thread does not: the next bytes are those of a call."""
    return stores.store(listen_conninfo=stores.server.conninfo)


async def outline(session):
    """Return what a session knows, and what it finds."""
    keys = await session.unseen(["k0", "k1", "new"])
    return session.cursor, sorted(keys), dict(session.state), session.dead_letter_count, session.record_count


def change(number):
    """Return a commit that changes every table."""
    return {
        "cursor": f"c{number}",
        "records": [Record("new")],
        "state": {"a": str(number)},
        "dead_letters": [DeadLetter(dedupe_key="d", id="d", raw=b"raw", error="broken")],
    }


BEFORE = ("c", ["k1", "new"], {"a": "0"}, 0, 1)


async def begin(session):
    await session.reset("c", forget=True, state={"a": "0"})
    await session.commit(cursor=None, records=[Record("k0"), Record("d")])
    await session.reset("c", forget=True)
    await session.commit(cursor=None, records=[Record("k0")])


# Connections that are cut


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("rst", [True, False], ids=["rst", "fin"])
async def test_a_cut_commit_has_happened_or_not_and_never_half(store, up, rst):
    """Up: before BEGIN, within the changes, after COMMIT. Down: before and within the answer."""
    session = await store.claim("a", feed="f")
    after = ("c1", ["k1"], {"a": "1"}, 1, 2)
    outcomes = set()
    for count in [0, 1, *(range(5, 5000, form(700, 20)) if up else range(5, 600, form(90, 5)))]:
        await begin(session)
        assert await outline(session) == BEFORE
        store.proxy.cut_after(count, rst=rst, up=up)
        error = None
        try:
            await session.commit(**change(1))
        except StoreUnavailable as raised:
            error = raised
            assert session.lost is isinstance(error, CommitInDoubt)
        store.proxy.heal()
        if isinstance(error, CommitInDoubt):
            with pytest.raises(OwnershipLost):
                await session.unseen(["k0"])
            session = await session.again()
        found = await outline(session)
        if error is None:
            assert found == after
        elif isinstance(error, CommitInDoubt):
            assert found in (BEFORE, after)
        else:
            assert found == BEFORE
        outcomes.add((type(error).__name__, found == after))
        await session.commit(cursor="x", records=[], state={"a": None})
        if session.dead_letter_count:
            await session.commit(cursor="y", records=[Record("d")])
    assert ("CommitInDoubt", not up) in outcomes
    await session.release()


async def test_a_cut_read_or_reset_can_be_tried_again(store):
    session = await store.claim("a", feed="f")
    for count in range(0, 120, 30):
        await begin(session)
        store.proxy.cut_after(count)
        with pytest.raises(StoreUnavailable) as caught:
            await session.unseen(["k0", "k1"])
        assert not isinstance(caught.value, CommitInDoubt)
        assert not session.lost
        assert await outline(session) == BEFORE
        store.proxy.cut_after(count)
        with pytest.raises(CommitInDoubt):
            await session.reset("r", forget=True)
        session = await session.again()
        assert (session.cursor, session.record_count) in {("c", 1), ("r", 0)}
    await session.release()


async def test_a_cut_claim_can_be_tried_again(store, stores):
    """If the answer of its COMMIT is lost, the name is owned until its lease ends."""
    await (await store.claim("a", feed="f")).release()
    outcomes = set()
    for pieces in range(50):  # until no statement of a claim is left to be cut
        store.proxy.heal()
        with cut_at(store, pieces):
            try:
                session = await store.claim("a", feed="f")
                break
            except StoreUnavailable:
                outcomes.add("cut")
        try:
            session = await store.claim("a", feed="f")
        except StoreBusy:
            outcomes.add("busy")
            await stores.expire(store, "a")
            store.jump = 0
            session = await store.claim("a", feed="f")
        await session.commit(cursor=f"c{pieces}", records=[])
        await session.release()
    assert pieces < 49
    assert session.cursor == f"c{pieces - 1}"
    assert outcomes == {"cut", "busy"}
    await session.release()


@contextmanager
def cut_at(store, pieces):
    """Cut a connection of the store's calls while it answers a statement, after so many statements."""
    seen = []

    def execute(connection, *arguments, **options):
        if connection.info.port == store.proxy.port:  # not one of the store's thread
            seen.append(arguments)
            if len(seen) == pieces + 1:
                store.proxy.cut_after(3)
        return EXECUTE(connection, *arguments, **options)

    with patch.object(Connection, "execute", execute):
        yield


EXECUTE = Connection.execute


async def test_a_cut_again_can_be_tried_again_and_a_cut_release_ends_the_lease_later(store, stores):
    session = await store.claim("a", feed="f")
    for count in (0, 10, 60, 200):
        store.proxy.cut_after(0)
        with pytest.raises(CommitInDoubt):
            await session.commit(cursor="c", records=[])
        for _ in range(3):
            store.proxy.cut_after(count)
            with pytest.raises(StoreUnavailable):
                await session.again()
        store.proxy.heal()
        session = await session.again()
    store.proxy.cut_after(0)
    await session.release()
    await session.release()
    store.proxy.heal()
    await stores.expire(store, "a")
    store.jump = 0
    await (await store.claim("a", feed="f")).release()


@contextmanager
def behind_commit(statement):
    """Send a statement behind each COMMIT of a pipeline."""

    def execute(connection, query, *arguments, **options):
        result = EXECUTE(connection, query, *arguments, **options)
        if query == "COMMIT":
            EXECUTE(connection, statement)
        return result

    with patch.object(Connection, "execute", execute):
        yield


async def test_an_error_that_ends_the_connection_behind_a_commit_leaves_it_in_doubt(store):
    """A server that shuts down can answer COMMIT and then 57P01; the commit has happened."""
    session = await store.claim("a", feed="f")
    await begin(session)
    with behind_commit("SELECT pg_terminate_backend(pg_backend_pid())"), pytest.raises(CommitInDoubt):
        await session.commit(**change(1))
    session = await session.again()
    assert session.cursor == "c1"
    await session.release()


@ON_ASYNCIO
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("ACTIVE", CommitInDoubt),
        ("UNKNOWN", CommitInDoubt),
        ("INERROR", StoreUnavailable),
        ("IDLE", StoreUnavailable),
    ],
)
async def test_a_commit_was_refused_only_if_the_answer_of_the_server_is_complete(status, kind):
    """Otherwise the end of the connection may be behind the error, and COMMIT before it."""
    pgconn = SimpleNamespace(status=pq.ConnStatus.OK, transaction_status=pq.TransactionStatus[status])
    error = commit_error("there", psycopg.errors.AdminShutdown("ends"), SimpleNamespace(pgconn=pgconn))
    assert type(error) is kind


@ON_ASYNCIO
async def test_a_terminated_connection_is_replaced(stores, anyio_backend):
    store = PostgresStore(stores.server.conninfo, schema=stores.schema)
    session = await store.claim("a", feed="f")
    for _ in range(2):
        stores.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
            "WHERE application_name = 'push-to-poll-client'"
        )
        await session.commit(cursor="c", records=[])
        assert await session.unseen(["k"]) == {"k"}
    await session.release()
    await store.aclose()


# A server that does not answer


@contextmanager
def ends_within(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize(("anyio_backend", "how"), [("asyncio", "paused"), ("trio", "blackhole")])
async def test_each_call_ends_if_the_server_does_not_answer(store, stores, how):
    """Within 0.4 s, and to connect within 2 s. The bound is generous."""
    session = await store.claim("a", feed="f")
    await session.commit(cursor="c", records=[Record("k")])
    other = await store.claim("b", feed="f")
    store._database.timeout = 0.4
    if how == "blackhole":
        store.proxy.blackhole()
        unpause = None
    else:
        unpause = stores.server.paused()
        unpause.__enter__()
    try:
        with pytest.raises(StoreUnavailable), ends_within(GUARD):
            await session.unseen(["k"])
        # Its connection was closed, and the next calls cannot connect.
        with patch.object(store._database, "_settings", {"connect_timeout": "2"}):

            async def fails(call):
                with pytest.raises(StoreUnavailable):
                    await call()

            with ends_within(GUARD):
                async with anyio.create_task_group() as calls:
                    calls.start_soon(fails, lambda: store.claim("c", feed="f"))
                    calls.start_soon(fails, lambda: store.freed("a"))
                    calls.start_soon(other.release)
    finally:
        if unpause is not None:
            unpause.__exit__(None, None, None)
        store.proxy.heal()
    store._database.timeout = GUARD
    await session.commit(cursor="c", records=[])
    await session.release()


@ON_ASYNCIO
async def test_a_commit_without_an_answer_is_in_doubt_after_its_timeout(store):
    session = await store.claim("a", feed="f")
    store._database.timeout = 0.3
    store.proxy.blackhole(up=False)
    with pytest.raises(CommitInDoubt, match="did not answer in time"):
        await session.commit(cursor="c1", records=[])
    store.proxy.heal()
    store._database.timeout = GUARD
    session = await session.again()
    assert session.cursor == "c1", "only the answer was lost"
    await session.release()


@ON_ASYNCIO
async def test_a_session_is_lost_in_time_although_the_server_does_not_answer(stores):
    """No thread has to end for this: `lost` compares the clock."""
    store = stores.store(lease=1.0)
    session = await store.claim("a", feed="f")
    lost_after = session._lease.ends
    store.proxy.blackhole()
    with anyio.fail_after(GUARD):
        while not session.lost:
            lost_after = max(lost_after, session._lease.ends)  # renewed once more before the hole
            await anyio.sleep(0.01)
    assert store._now() >= lost_after
    with pytest.raises(OwnershipLost):
        await session.commit(cursor="c", records=[])
    store.proxy.heal()
    await session.release()


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("PostgresStore")}


async def test_a_store_can_be_closed_while_the_server_does_not_answer(stores):
    store = stores.store()
    before = threads()
    session = await store.claim("a", feed="f")
    await until(lambda: store.hears_wakes)
    (thread,) = threads() - before
    store._housekeeping._lease = store._listening.timeout = store._database.timeout = 1.0
    store.proxy.blackhole()
    with ends_within(GUARD):
        await store.aclose()
    await to_thread.run_sync(thread.join, GUARD)
    assert not thread.is_alive()
    assert not session._database._idle


# A server that stops and starts again


@pytest.fixture
async def own_server(request, anyio_backend):
    server = request.config.stash.get(_own, None)
    if server is None:
        server = request.config.stash[_own] = PostgresServer()
        request.config.add_cleanup(server.close)
    if not server.is_running:
        await to_thread.run_sync(server.start)
    # So that a killed server keeps what it has confirmed.
    server.execute("ALTER DATABASE postgres SET synchronous_commit = on")
    return server


_own = pytest.StashKey["PostgresServer"]()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_work_goes_on_after_a_restart_of_the_server(own_server, end, monkeypatch):
    pause = Housekeeping._pause  # a twelfth of the lease, which must not end while the server starts
    monkeypatch.setattr(Housekeeping, "_pause", lambda thread, bell, seconds: pause(thread, bell, 0.1))
    stores = PostgresStores(own_server)
    store, other = stores.store(), stores.store()
    session = await store.claim("a", feed="f")
    await session.commit(cursor="c1", records=[Record("k")])
    await until(lambda: store.hears_wakes)
    wakes = []
    session.subscribe(changed=lambda: None, wake=wakes.append)
    wakes.clear()
    await to_thread.run_sync(getattr(own_server, end))
    for call in (session.unseen, lambda keys: other.claim("b", feed="f"), lambda keys: other.freed("a")):
        with pytest.raises(StoreUnavailable) as caught:
            await call(["k"])
        assert "\n" not in str(caught.value)
    await to_thread.run_sync(own_server.start)
    assert await session.unseen(["k", "new"]) == {"new"}
    await session.commit(cursor="c2", records=[])
    await until(lambda: None in wakes)  # because some may have been missed
    other.forward("a", Push("c3"))
    await until(lambda: Push("c3") in wakes)
    await session.release()
    await stores.aclose()


# Errors of the server


@contextmanager
def raising(stores, table, code, *, deferred=False, what="INSERT OR UPDATE"):
    """Let changes of a table fail with an SQLSTATE, at once or at COMMIT."""
    stores.execute(f"""
        CREATE OR REPLACE FUNCTION {{s}}.raise() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '{code}', DETAIL = 'secret of a row'; END $$
    """)
    kind = f"CONSTRAINT TRIGGER raises AFTER {what}" if deferred else f"TRIGGER raises BEFORE {what}"
    when = "DEFERRABLE INITIALLY DEFERRED" if deferred else ""
    stores.execute(f"CREATE {kind} ON {{s}}.{table} {when} FOR EACH ROW EXECUTE FUNCTION {{s}}.raise()")
    try:
        yield
    finally:
        stores.execute(f"DROP TRIGGER raises ON {{s}}.{table}")


PASSING = ["53100", "53200", "40001", "40P01", "57014", "55P03", "58030", "25P03"]
LASTING = ["23505", "42501", "22003", "P0001"]


@ON_ASYNCIO
@pytest.mark.parametrize("deferred", [False, True], ids=["at-once", "at-commit"])
async def test_an_error_that_the_server_answers_says_that_nothing_was_written(stores, deferred):
    """Only those that pass by themselves are waited for. The text shows neither rows nor statements."""
    store = stores.store()
    session = await store.claim("a", feed="f")
    for code in PASSING + LASTING:
        await begin(session)
        with raising(stores, "state", code, deferred=deferred), pytest.raises(StoreError) as caught:
            await session.commit(**change(1))
        assert isinstance(caught.value, StoreUnavailable) is (code in PASSING), code
        assert not isinstance(caught.value, CommitInDoubt)
        assert f"planted ({code})" in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "push_to_poll_client" not in str(caught.value)
        assert await outline(session) == BEFORE
        await session.commit(**change(1))
        await session.commit(cursor="c", records=[Record("d")], state={"a": "0"})
    await session.release()


@ON_ASYNCIO
async def test_a_table_that_is_locked_is_waited_for(store, stores):
    session = await store.claim("a", feed="f")
    store._database.timeout = 0.4
    with psycopg.connect(stores.server.conninfo) as blocking:
        blocking.execute(f"LOCK TABLE {stores.schema}.state IN EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match="55P03") as caught:
            await session.commit(cursor="c", records=[], state={"a": "1"})
        assert not isinstance(caught.value, CommitInDoubt)
    store._database.timeout = GUARD
    await session.commit(cursor="c", records=[], state={"a": "1"})
    await session.release()


@contextmanager
def role(stores, *grants, password=""):
    """Make a role with these rights."""
    name = f"role_{stores.schema}"
    stores.execute(f"CREATE ROLE {name} LOGIN {password}")
    try:
        for grant in grants:
            stores.execute(f"{grant} TO {name}")
        yield f"postgresql://{name}@127.0.0.1:{stores.server.port}/postgres"
    finally:
        stores.execute(f"DROP OWNED BY {name}")
        stores.execute(f"DROP ROLE {name}")


async def refused(conninfo, stores, match, *, kind=StoreError, **options):
    store = PostgresStore(conninfo, schema=stores.schema, **options)
    try:
        with pytest.raises(kind, match=match) as caught:
            await (await store.claim("a", feed="f")).commit(cursor="c", records=[Record("k")])
    finally:
        await store.aclose()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert "FROM" not in str(caught.value)
    return str(caught.value)


@ON_ASYNCIO
async def test_wrong_access_data_are_refused_for_good(stores):
    port = stores.server.port
    stores.execute(
        "DO $$ BEGIN CREATE ROLE locked LOGIN PASSWORD 'right'; EXCEPTION WHEN duplicate_object THEN END $$"
    )
    for conninfo, says in (
        (f"postgresql://locked:wr0ng@127.0.0.1:{port}/postgres", "password authentication failed"),
        (f"postgresql://locked@127.0.0.1:{port}/postgres", "no password supplied"),
        (f"postgresql://me@127.0.0.1:{port}/nosuch", 'database "nosuch" does not exist'),
        (f"postgresql://nobody_here@127.0.0.1:{port}/postgres", 'role "nobody_here" does not exist'),
        (f"postgresql://me@127.0.0.1:{port}/postgres?sslmode=require", "does not support SSL"),
    ):
        assert "wr0ng" not in await refused(conninfo, stores, says)
        assert "wr0ng" not in await refused(lambda conninfo=conninfo: conninfo, stores, says)


@ON_ASYNCIO
async def test_missing_rights_are_refused_for_good(stores):
    with role(stores) as conninfo:
        await refused(conninfo, stores, r"permission denied for database postgres \(42501\)")
        await (await stores.store().claim("x", feed="f")).release()
        await refused(conninfo, stores, "permission denied for schema")
        usage = f"GRANT USAGE ON SCHEMA {stores.schema}"
    with role(stores, usage) as conninfo:
        await refused(conninfo, stores, "permission denied for table version")
    reading = f"GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA {stores.schema}"
    with role(stores, usage, reading) as conninfo:
        await refused(conninfo, stores, "permission denied for table consumer")


@ON_ASYNCIO
async def test_few_rights_are_enough(stores):
    """A role that may read and write the tables needs no right to create any."""
    await (await stores.store().claim("x", feed="f")).release()
    rights = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {stores.schema}"
    with role(stores, f"GRANT USAGE ON SCHEMA {stores.schema}", rights) as conninfo:
        store = PostgresStore(conninfo, schema=stores.schema)
        session = await store.claim("a", feed="f")
        await session.commit(**change(1))
        await session.release()
        await store.rebind("a", new_name="b")
        await store.aclose()


@ON_ASYNCIO
async def test_a_server_that_was_made_read_only_is_waited_for(stores):
    """As providers do with a full disk, and as a standby is after a fail-over."""
    await (await stores.store().claim("x", feed="f")).release()
    rights = f"GRANT ALL ON ALL TABLES IN SCHEMA {stores.schema}"
    with role(stores, f"GRANT ALL ON SCHEMA {stores.schema}", rights) as it:
        name = it.split("//")[1].split("@")[0]
        stores.execute(f"ALTER ROLE {name} SET default_transaction_read_only = on")
        text = await refused(it, stores, "25006", kind=StoreUnavailable)
        assert "target_session_attrs=read-write" in text
        store = PostgresStore(it, schema=stores.schema)
        with pytest.raises(StoreUnavailable):
            await store.claim("a", feed="f")
        stores.execute(f"ALTER ROLE {name} RESET default_transaction_read_only")
        session = await store.claim("a", feed="f")  # by a new connection: the old ones are read-only for ever
        await session.release()
        await store.aclose()


@ON_ASYNCIO
async def test_a_conninfo_function_that_fails_is_called_again(stores):
    answers = [ConnectionError("the vault is away"), stores.server.conninfo]

    def conninfo():
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    store = PostgresStore(conninfo, schema=stores.schema)
    with pytest.raises(
        StoreUnavailable, match=r"the function conninfo failed: ConnectionError: the vault is away"
    ):
        await store.claim("a", feed="f")
    await (await store.claim("a", feed="f")).release()
    await store.aclose()


@ON_ASYNCIO
@pytest.mark.parametrize(
    "wrong", [None, 7, b"host=x", "host=x pa55word", "postgresql://u:p@a55word@h/d", "nosuch=1"]
)
async def test_an_invalid_answer_of_a_conninfo_function_is_refused_without_its_text(stores, wrong):
    text = await refused(lambda: wrong, stores, "the function conninfo returned an invalid value")
    assert "a55word" not in text


@ON_ASYNCIO
async def test_a_process_with_many_open_files_can_use_the_store(store):
    """`select()` takes only files below 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip("this process may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    sockets = [socket.socket() for _ in range(1050)]
    try:
        session = await store.claim("a", feed="f")
        for _ in range(2):
            await session.commit(cursor="c", records=[])
        await until(lambda: store.hears_wakes)
        await session.release()
    finally:
        for each in sockets:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
