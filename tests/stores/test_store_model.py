"""MemoryStore, SQLiteStore and PostgresStore give the same answers, lose no record, and count each once."""

import itertools
import pathlib
import tempfile

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from push_to_poll_client import PushToPollError, StoreBusy, StoreMismatch
from push_to_poll_client._types import DeadLetter, Record, Settlement
from push_to_poll_client.stores import MemoryStore, SQLiteStore, _bloom
from push_to_poll_client.stores._postgres import records as postgres_records
from push_to_poll_client.stores._postgres.progress import ClaimedName
from push_to_poll_client.stores._sqlite import records as records_module
from push_to_poll_client.stores.postgres import PostgresStore
from tests.support.clock import DAY
from tests.support.forms import form
from tests.support.postgres_server import shared_server

ALL_KEYS = [*"abcdefghij", "", "a\0", "\ud800", "é", "\uffff", "x" * 201, "x" * 202]
KEYS = st.sampled_from(ALL_KEYS)
NAMES = st.sampled_from(["n", "N"])
FINGERPRINTS = st.none() | st.integers(0, 3)
STATE = st.dictionaries(st.sampled_from("st"), st.none() | st.sampled_from(["", "1", "\ud800"]))


@st.composite
def letters(draw):
    return DeadLetter(dedupe_key=draw(KEYS), id="i", raw=b"r", error="e", retry_requested=draw(st.booleans()))


class Stores(RuleBasedStateMachine):
    """Run each operation on both stores and compare the values or the classes of the errors."""

    backend = "asyncio"
    limits = {}  # noqa: RUF012  # each machine gets another one
    sessions = Bundle("sessions")

    def __init__(self):
        super().__init__()
        self.now = DAY
        self.directory = tempfile.TemporaryDirectory()
        self.memory = MemoryStore(clock=lambda: self.now, **self.limits)
        self.sqlite = self.open()
        self.open_portal = start_blocking_portal(self.backend)
        self.portal = self.open_portal.__enter__()
        self.live = []
        self.recorded = {}

    def open(self):
        path = pathlib.Path(self.directory.name, "store.db")
        return SQLiteStore(path, synchronous="NORMAL", clock=lambda: self.now, **self.limits)

    def released(self, session):
        return session._released

    def both(self, memory, sqlite):
        answers = self.portal.call(self.answers, memory, sqlite)
        assert answers[0][0] == answers[1][0]
        return [value for _, value in answers]

    async def answers(self, memory, sqlite):
        return [await self.answer(memory), await self.answer(sqlite)]

    async def answer(self, call):
        try:
            return None, await call()
        except PushToPollError as error:
            return type(error), None

    @rule(target=sessions, name=NAMES, feed=st.sampled_from("fg"))
    def claim(self, name, feed):
        pair = self.both(lambda: self.memory.claim(name, feed=feed), lambda: self.sqlite.claim(name, feed=feed))
        if pair == [None, None]:
            return multiple()
        self.live.append(pair)
        return pair

    @rule(
        pair=sessions,
        cursor=st.none() | KEYS,
        records=st.lists(st.builds(Record, KEYS, st.sampled_from(Settlement), FINGERPRINTS), max_size=8),
        dead_letters=st.lists(letters(), max_size=2),
        state=STATE,
        read_at=st.none() | st.floats(0, 100),
    )
    def commit(self, pair, cursor, records, **others):
        self.both(*(lambda s=session: s.commit(cursor=cursor, records=records, **others) for session in pair))
        self.note(pair, records)

    @rule(pair=sessions, records=st.lists(st.builds(Record, KEYS), max_size=8))
    def commit_plainly(self, pair, records):
        self.commit(pair, "c", records)

    @rule(pair=sessions, keys=st.lists(KEYS, max_size=8))
    def commit_unseen(self, pair, keys):
        """Commit new messages, as a consumer does."""
        unseen, _ = self.both(*(lambda s=session: s.unseen(keys) for session in pair))
        if unseen is not None:
            self.commit(pair, "c", [Record(key) for key in keys if key in unseen])

    def note(self, pair, records):
        if not self.released(pair[1]):
            self.recorded.setdefault(pair[1].name, set()).update(record.key for record in records)

    @rule(pair=sessions, cursor=st.none() | KEYS, forget=st.booleans(), state=STATE)
    def reset(self, pair, cursor, **others):
        self.both(*(lambda s=session: s.reset(cursor, **others) for session in pair))
        if others["forget"] and not self.released(pair[1]):
            self.recorded[pair[1].name] = set()

    @rule(pair=sessions, keys=st.lists(KEYS))
    def unseen(self, pair, keys):
        unseen = self.both(*(lambda s=session: s.unseen(keys) for session in pair))
        assert unseen[0] == unseen[1]

    @rule(pair=sessions, keys=st.lists(KEYS))
    def fingerprints(self, pair, keys):
        found = self.both(*(lambda s=session: s.fingerprints(keys) for session in pair))
        assert found[0] == found[1]

    @rule(pair=sessions, after=st.none() | letters(), marked=st.booleans(), key=KEYS)
    def dead_letters(self, pair, after, marked, key):
        some = self.both(
            *(lambda s=session: s.dead_letters(after=after, retry_requested=marked) for session in pair)
        )
        assert some[0] == some[1]
        one = self.both(*(lambda s=session: s.dead_letter(key) for session in pair))
        assert one[0] == one[1]

    @rule(pair=sessions)
    def release(self, pair):
        self.both(*(session.release for session in pair))

    @rule(seconds=st.floats(0, 8) | st.sampled_from([-1e9, -9, 9, 1e9]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def restart(self):
        for pair in self.live:
            self.release(pair)
        self.live.clear()
        self.close()
        self.sqlite = self.open()

    def close(self):
        """End what the store has open."""

    @invariant()
    def sessions_are_alike(self):
        for memory, sqlite in self.live:
            assert (memory.cursor, memory.fencing_token) == (sqlite.cursor, sqlite.fencing_token)

    @invariant()
    def owners_are_alike(self):
        for memory, sqlite in self.live:
            if not self.released(sqlite):
                assert memory.record_count == sqlite.record_count
                assert (memory.history, memory.state) == (sqlite.history, sqlite.state)
                assert memory.dead_letter_count == sqlite.dead_letter_count == self.rows(sqlite, "dead_letter")

    @invariant()
    def each_record_is_there_and_counts_once(self):
        for pair in self.live:
            if not self.released(pair[1]):
                unseen = self.both(*(lambda s=session: s.unseen(ALL_KEYS) for session in pair))
                seen, recorded = set(ALL_KEYS) - unseen[0], self.recorded.get(pair[1].name, set())
                assert unseen[0] == unseen[1]
                assert len(seen) == pair[0].record_count
                most = self.limits["max_records"]
                assert seen <= recorded if most is not None and len(recorded) > most else seen == recorded

    @invariant()
    def removed_records_leave_the_file(self):
        """The file has as many segments as memory, plus those that wait for removal."""
        for _, sqlite in self.live:
            if not self.released(sqlite):
                records = sqlite._progress.records
                kept = len(records.segments.live) + len(records._forgotten)
                assert self.rows(sqlite, "segment") == kept
                assert self.rows(sqlite, "record") >= sqlite.record_count
                assert records._forgotten or self.rows(sqlite, "record") == sqlite.record_count

    def rows(self, sqlite, table):
        query = f"""
            SELECT count(*) FROM push_to_poll_{table} AS t JOIN push_to_poll_consumer AS c ON c.id = t.consumer
            WHERE token = ? AND name = ?
        """  # noqa: S608
        return sqlite._file.connection.execute(query, (sqlite.fencing_token, sqlite.name)).fetchone()[0]

    def teardown(self):
        for pair in self.live:
            self.release(pair)
        self.close()
        self.open_portal.__exit__(None, None, None)
        self.directory.cleanup()


class PostgresStores(Stores):
    """The same with a PostgresStore in place of the SQLiteStore."""

    server = None
    names = itertools.count(1)

    def __init__(self):
        self.schema = f"model_{next(self.names)}"
        type(self).running = self
        super().__init__()

    def open(self):
        return PostgresStore(self.server.conninfo, schema=self.schema, lease=60.0, **self.limits)

    def close(self):
        self.portal.call(self.sqlite.aclose)

    async def answer(self, call):
        error, value = await super().answer(call)
        # This store compares the feed first, so that a replica with a wrong one does not stand by.
        return StoreBusy if error is StoreMismatch else error, value

    def released(self, session):
        return session._lease.is_released

    def rows(self, session, table):
        statement = f"""
            SELECT count(*) FROM {self.schema}.{table} AS t JOIN {self.schema}.consumer AS c ON c.id = t.consumer
            WHERE token = %s AND c.name = %s
        """  # noqa: S608
        with session._database.connection() as connection:
            values = (session.fencing_token, session.name.encode())
            return connection.execute(statement.encode(), values).fetchone()[0]

    @invariant()
    def removed_records_leave_the_file(self):
        for _, session in self.live:
            if not self.released(session):
                records = session._progress.records
                assert self.rows(session, "record") >= session.record_count
                assert records._to_sweep > 0 or self.rows(session, "record") == session.record_count

    def teardown(self):
        super().teardown()
        self.server.execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")


def with_clock(read_name, machine):
    """Let a name begin at the time of the machine."""

    def read(claimed, database, connection, row, **options):
        if row.token == 1:
            now = machine.running.now
            begin = "UPDATE {s}.consumer SET at = %(now)s WHERE id = %(id)s"
            connection.execute(database.sql(begin), {"now": now, "id": row.id})
            row = row._replace(at=now)
        read_name(claimed, database, connection, row, **options)

    return read


LIMITS = {
    "little": {"retention": 10.0, "max_records": 4},
    "more": {"retention": None, "max_records": 40},
    "all": {"max_records": None},
}

# Both event loops would draw the same examples, so the short form tries each setting on one of them.
CASES = form(
    [
        ("little", 3, "trio"),
        ("little", 0, "asyncio"),
        ("more", 3, "asyncio"),
        ("more", 0, "trio"),
        ("all", 3, "trio"),
        ("all", 0, "asyncio"),
    ],
    [*itertools.product(LIMITS, [3, 0], ["asyncio", "trio"])],
)


@pytest.mark.no_cover  # lines are counted where it is quick
@pytest.mark.slow
@pytest.mark.parametrize(("limits", "few", "backend"), CASES)
def test_memory_store_and_sqlite_store_give_the_same_answers(limits, few, backend, monkeypatch):
    """Also with a filter that is always used, and is so small that it often suspects keys and is soon replaced."""
    monkeypatch.setattr(records_module, "_MAX_UNFILTERED", few)
    monkeypatch.setattr(_bloom, "_MIN_KEYS", 8)
    machine = type("StoresOn", (Stores,), {"backend": backend, "limits": LIMITS[limits]})
    run_state_machine_as_test(machine, settings=settings(max_examples=form(10, 25), stateful_step_count=40))


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(("limits", "backend"), [("little", "trio"), ("more", "asyncio")])
def test_memory_store_and_postgres_store_give_the_same_answers(limits, backend, monkeypatch, request):
    monkeypatch.setattr(postgres_records, "_SWEPT_AT_LEAST", 2)
    machine = type("StoresOn", (PostgresStores,), {"backend": backend, "limits": LIMITS[limits]})
    machine.server = shared_server(request.config)
    monkeypatch.setattr(ClaimedName, "__init__", with_clock(ClaimedName.__init__, machine))
    monkeypatch.setattr(ClaimedName, "time", lambda _: machine.running.now)
    # To shrink an example takes minutes.
    quick = settings(max_examples=form(8, 25), stateful_step_count=40, phases=[Phase.generate])
    run_state_machine_as_test(machine, settings=quick)
