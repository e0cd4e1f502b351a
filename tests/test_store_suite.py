"""The suite finds stores out: each lie below is caught by the test named beside it."""

import contextlib

import anyio
import pytest

from push_to_poll_client import OwnershipLost, StoreError
from push_to_poll_client.stores import MemoryStore
from push_to_poll_client.testing._store_suite import StoreSuite

pytestmark = pytest.mark.anyio


async def test_the_suite_wants_a_store():
    with pytest.raises(NotImplementedError):
        await StoreSuite().make_store()


async def test_what_a_store_cannot_offer_is_skipped():
    suite, store = StoreSuite(), MemoryStore()
    with pytest.raises(pytest.skip.Exception, match=r"steal\(\)"):
        await suite.steal(store, "a")
    with pytest.raises(pytest.skip.Exception, match=r"state\(\)"):
        await suite.state(store, "a", "1")
    with pytest.raises(pytest.skip.Exception, match=r"failing\(\)"):
        suite.failing(store)


async def test_a_store_with_a_close_is_closed():
    closed = []

    class Closing(MemoryStore):
        async def aclose(self):
            closed.append(self)

    class Suite(StoreSuite):
        async def make_store(self):
            return Closing()

    await Suite().test_a_new_name_begins_at_the_inception()
    assert len(closed) == 1


class Liar(MemoryStore):
    """A store that misbehaves: `lie` gets each session that was claimed."""

    def __init__(self, lie):
        super().__init__()
        self.lie = lie
        self.broken = False

    async def claim(self, name, *, feed):
        session = await super().claim(name, feed=feed)
        self.lie(self, session)
        return session


def changed(session, **methods):
    """Make the session behave otherwise."""
    session.__class__ = type("Changed", (type(session),), methods)


def save_the_cursor_first(store, session):
    honest = session.commit

    async def commit(self, *, cursor, records):
        await honest(cursor=cursor, records=[])
        if store.broken:
            raise StoreError("planted")
        await honest(cursor=None, records=records)

    changed(session, commit=commit)


def save_records_first(store, session):
    honest = session.commit

    async def commit(self, *, cursor, records):
        await honest(cursor=None, records=records)
        if store.broken:
            raise StoreError("planted")
        await honest(cursor=cursor, records=[])

    changed(session, commit=commit)


def take_none_for_a_cursor(store, session):
    honest = session.commit

    async def commit(self, *, cursor, records):
        await honest(cursor=cursor or "", records=records)

    changed(session, commit=commit)


def spell_keys(spell):
    def lie(store, session):
        honest, unseen = session.commit, session.unseen

        async def commit(self, *, cursor, records):
            spelled = [type(record)(spell(record.key), record.state) for record in records]
            await honest(cursor=cursor, records=spelled)

        async def ask(self, keys):
            spelled = {key: spell(key) for key in keys}
            answer = await unseen(list(spelled.values()))
            return {key for key in keys if spelled[key] in answer}

        changed(session, commit=commit, unseen=ask)

    return lie


def forget_the_token(store, session):
    changed(session, _check=lambda self: None)


def release_for_others(store, session):
    async def release(self):
        store._owners.pop(self._name, None)

    changed(session, release=release)


def share_everything(store, session):
    first = store._progress.setdefault("a", session._progress)
    session._progress = store._progress[session._name] = first


def forget_the_feed(store, session):
    session._progress.feed = "https://other.example/"


def stand_still(store, session):
    session._token = 1


def let_everybody_in(store, session):
    store._owners.clear()
    changed(session, _check=lambda self: None)


def keep_the_first_state(store, session):
    records = session._progress.records
    honest = session.commit

    async def commit(self, *, cursor, records):
        known = self._progress.records
        await honest(cursor=cursor, records=[record for record in records if record.key not in known])

    assert records is session._progress.records
    changed(session, commit=commit)


LIES = [
    (save_the_cursor_first, "test_a_commit_that_fails_has_written_nothing"),
    (save_records_first, "test_a_commit_that_fails_has_written_nothing"),
    (take_none_for_a_cursor, "test_a_commit_without_a_cursor_leaves_the_saved_one"),
    (spell_keys(str.strip), "test_a_key_may_be_any_string"),
    (spell_keys(str.lower), "test_a_key_may_be_any_string"),
    (spell_keys(lambda key: key[:1000]), "test_a_key_may_be_any_string"),
    (spell_keys(lambda key: key.split("\0", maxsplit=1)[0]), "test_a_key_may_be_any_string"),
    (spell_keys(lambda key: key.encode("utf-8", "replace")), "test_a_key_may_be_any_string"),
    (forget_the_token, "test_a_released_session_writes_nothing"),
    (forget_the_token, "test_an_owner_that_was_replaced_writes_nothing"),
    (release_for_others, "test_releasing_twice_is_releasing_once"),
    (share_everything, "test_names_have_nothing_in_common"),
    (forget_the_feed, "test_a_name_is_bound_to_its_feed"),
    (stand_still, "test_the_token_grows_with_each_claim"),
    (let_everybody_in, "test_a_name_has_one_owner"),
    (keep_the_first_state, "test_a_record_replaces_the_one_with_the_same_key"),
]


@pytest.mark.parametrize(("lie", "test"), LIES)
async def test_the_suite_catches(lie, test):
    class Caught(StoreSuite):
        async def make_store(self):
            return Liar(lie)

        async def state(self, store, name, key):
            record = store._progress[name].records.get(key)
            return record and record[2]

        async def steal(self, store, name):
            store._owners.pop(name)

        @contextlib.contextmanager
        def failing(self, store):
            store.broken = True
            yield
            store.broken = False

    with anyio.fail_after(100), pytest.raises((AssertionError, pytest.fail.Exception, StoreError)) as caught:
        await getattr(Caught(), test)()
    assert not isinstance(caught.value, OwnershipLost)
