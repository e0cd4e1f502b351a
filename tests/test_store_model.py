"""MemoryStore and SQLiteStore give the same answer to whatever is asked, and both that of a few lines of sets."""

import pathlib
import tempfile

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from push_to_poll_client import PushToPollError
from push_to_poll_client._types import Record, RecordState
from push_to_poll_client.stores import MemoryStore, SQLiteStore

KEYS = st.sampled_from([*"abcdefghij", "", "a\0", "\ud800", "é", "x" * 201, "x" * 202])
NAMES = st.sampled_from(["n", "N"])
LIMITS = {"retention": 10.0, "max_records": 4}


class Stores(RuleBasedStateMachine):
    """Each operation is done on both; what is compared is the value or the class of the error."""

    backend = "asyncio"
    sessions = Bundle("sessions")

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.directory = tempfile.TemporaryDirectory()
        self.memory = MemoryStore(clock=lambda: self.now, **LIMITS)
        self.sqlite = self.open()
        self.open_portal = start_blocking_portal(self.backend)
        self.portal = self.open_portal.__enter__()
        self.live = []

    def open(self):
        path = pathlib.Path(self.directory.name, "store.db")
        return SQLiteStore(path, synchronous="NORMAL", clock=lambda: self.now, **LIMITS)

    def both(self, memory, sqlite):
        answers = [self.answer(memory), self.answer(sqlite)]
        assert answers[0][0] == answers[1][0]
        return [value for _, value in answers]

    def answer(self, call):
        try:
            value = self.portal.call(call)
        except PushToPollError as error:
            return type(error), None
        return (value if isinstance(value, set) else None), value

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
        records=st.lists(st.builds(Record, KEYS, st.sampled_from(RecordState)), max_size=8),
    )
    def commit(self, pair, cursor, records):
        self.both(*(lambda s=session: s.commit(cursor=cursor, records=records) for session in pair))

    @rule(pair=sessions, keys=st.lists(KEYS))
    def unseen(self, pair, keys):
        self.both(*(lambda s=session: s.unseen(keys) for session in pair))

    @rule(pair=sessions)
    def release(self, pair):
        self.both(*(session.release for session in pair))

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def restart(self):
        for pair in self.live:
            self.release(pair)
        self.live.clear()
        self.sqlite = self.open()

    @invariant()
    def sessions_are_alike(self):
        for memory, sqlite in self.live:
            assert (memory.cursor, memory.token) == (sqlite.cursor, sqlite.token)

    @invariant()
    def owners_count_alike(self):
        for memory, sqlite in self.live:
            if not sqlite._released:
                assert memory.size == sqlite.size == self.rows(sqlite)

    def rows(self, sqlite):
        query = "SELECT count(*) FROM record WHERE consumer = ?"
        return sqlite._file.connection.execute(query, (sqlite._consumer,)).fetchone()[0]

    def teardown(self):
        self.restart()
        self.open_portal.__exit__(None, None, None)
        self.directory.cleanup()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_both_stores_answer_alike(backend):
    machine = type("StoresOn", (Stores,), {"backend": backend})
    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=40))
