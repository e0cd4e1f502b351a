"""The store suite rejects misbehaving stores: the test named beside a lie must catch it."""

import contextlib
import functools

import anyio
import msgspec
import pytest

from push_to_poll_client import OwnershipLost, StoreBusy, StoreError
from push_to_poll_client._types import SavedCursor
from push_to_poll_client.stores import MemoryStore
from push_to_poll_client.testing._store_suite import StoreSuite

pytestmark = pytest.mark.anyio


async def test_a_suite_without_make_store_raises_not_implemented_error():
    with pytest.raises(NotImplementedError):
        await StoreSuite().make_store()


async def test_optional_methods_missing_in_a_suite_skip_the_test():
    suite, store = StoreSuite(), MemoryStore()
    with pytest.raises(pytest.skip.Exception, match=r"steal\(\)"):
        await suite.steal(store, "a")
    with pytest.raises(pytest.skip.Exception, match=r"state\(\)"):
        await suite.state(store, "a", "1")
    with pytest.raises(pytest.skip.Exception, match=r"failing\(\)"):
        suite.failing(store)


async def test_the_suite_closes_a_store_that_has_aclose():
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
    """A misbehaving store: `lie` changes each claimed session."""

    def __init__(self, lie):
        super().__init__()
        self.lie = lie
        self.broken = False

    async def claim(self, name, *, feed):
        session = await super().claim(name, feed=feed)
        self.lie(self, session)
        return session


def changed(session, **methods):
    """Replace methods of the session."""
    session.__class__ = type("Changed", (type(session),), methods)


def save_the_cursor_first(store, session):
    honest = session.commit

    async def commit(self, *, cursor, records, **others):
        await honest(cursor=cursor, records=[])
        if store.broken:
            raise StoreError("planted")
        await honest(cursor=None, records=records, **others)

    changed(session, commit=commit)


def save_records_first(store, session):
    honest = session.commit

    async def commit(self, *, cursor, records, **others):
        await honest(cursor=None, records=records, **others)
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


async def run_unchecked(self, work):
    return work()


def forget_the_token(store, session):
    changed(session, _run=run_unchecked)


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
    session.fencing_token = 1


def let_everybody_in(store, session):
    store._owners.clear()
    changed(session, _run=run_unchecked)


def keep_the_first_state(store, session):
    records = session._progress.records
    honest = session.commit

    async def commit(self, *, cursor, records, **others):
        known = self._progress.records
        await honest(cursor=cursor, records=[record for record in records if record.key not in known], **others)

    assert records is session._progress.records
    changed(session, commit=commit)


def planted(**methods):
    """A store whose progress has these methods; each gets the honest method first."""

    def lie(store, session):
        progress = session._progress
        for name, method in methods.items():
            setattr(progress, name, functools.partial(method, progress, getattr(type(progress), name)))

    return lie


def save_first(what):
    """The commit saves this part and then fails."""

    def lie(store, session):
        honest = session.commit

        async def commit(self, **given):
            if store.broken:
                await honest(**{"cursor": None, "records": [], what: given[what]})
                raise StoreError("planted")
            await honest(**given)

        changed(session, commit=commit)

    return lie


def write_with_the_next_commit(store, session):
    honest, failed = session.commit, []

    async def commit(self, **given):
        if store.broken:
            failed.append(given)
            raise StoreError("planted")
        for write in (*failed, given):
            await honest(**write)

    changed(session, commit=commit)


def reset_first(store, session):
    honest = session.reset

    async def reset(self, cursor, **given):
        await honest(cursor, **given)
        if store.broken:
            raise StoreError("planted")

    changed(session, reset=reset)


def lose_at_a_restart(*, records=None, dead_letters=None, **cursor_state):
    """The next owner gets these parts of the progress as the functions return them."""

    def lie(store, session):
        progress = session._progress
        if session.fencing_token > 1:
            progress.records = (records or dict)(progress.records)
            progress._dead_letters = (dead_letters or dict)(progress._dead_letters)
            change(
                progress,
                **{name: lose(getattr(progress.cursor_state, name)) for name, lose in cursor_state.items()},
            )

    return lie


def change(progress, **cursor_state):
    progress.cursor_state = progress.cursor_state._replace(**cursor_state)


def without_fingerprints(records):
    return {key: msgspec.structs.replace(record, fingerprint=None) for key, record in records.items()}


def clear_the_cursor_if_nothing_comes(store, session):
    honest = session.commit

    async def commit(self, *, cursor, records):
        if cursor is None and not records:
            change(self._progress, saved=SavedCursor(None, 0))
        else:
            await honest(cursor=cursor, records=records)

    changed(session, commit=commit)


def never_go_back(store, session):
    honest = session.commit

    async def commit(self, *, cursor, records):
        await honest(cursor=max(cursor, session.cursor or cursor), records=records)

    changed(session, commit=commit)


def take_no_keys_for_one(store, session):
    honest = session.unseen

    async def unseen(self, keys):
        return await honest(keys or [""])

    changed(session, unseen=unseen)


def answer_each_time(store, session):
    honest = session.unseen

    async def unseen(self, keys):
        unseen = await honest(keys)
        return unseen if len(set(keys)) == len(keys) else [key for key in keys if key in unseen]

    changed(session, unseen=unseen)


def forget_unprocessed(store, session):
    honest = session.unseen

    async def unseen(self, keys):
        states = {key: record.state for key, record in self._progress.records.items()}
        return await honest(keys) | {key for key in keys if states.get(key, "processed") != "processed"}

    changed(session, unseen=unseen)


def refuse_large_pages(store, session):
    honest = session.unseen

    async def unseen(self, keys):
        if len(keys) > 999:
            raise StoreError("too many SQL variables")
        return await honest(keys)

    changed(session, unseen=unseen)


def count_all(store, session):
    changed(session, record_count=property(lambda self: sum(map(len, self._progress._keys.values())) + 1))


def keep_no_fingerprints(self, honest, keys):
    return {}


def keep_small_fingerprints(self, honest, keys):
    return {key: fingerprint & 0xFFFFFFFF for key, fingerprint in honest(self, keys).items()}


def keep_fingerprints_of_the_processed(self, honest, keys):
    processed = [key for key in keys if key in self.records and self.records[key].state == "processed"]
    return honest(self, processed)


def keep_the_first_fingerprint(self, honest, keys):
    known = self.__dict__.setdefault("known", {})
    return {key: known.setdefault(key, fingerprint) for key, fingerprint in honest(self, keys).items()}


def bury_without(**less):
    def bury(self, honest, cursor, records, letters, *others):
        honest(self, cursor, records, [msgspec.structs.replace(letter, **less) for letter in letters], *others)

    return bury


def bury_once(self, honest, cursor, records, letters, *others):
    new = [letter for letter in letters if letter.dedupe_key not in self._dead_letters]
    honest(self, cursor, records, new, *others)


def hand_out(select):
    def some_dead_letters(self, honest, after, *, retry_requested):
        return select(self, lambda: honest(self, after, retry_requested=retry_requested), after, retry_requested)

    return some_dead_letters


def everything(self, honest, after, marked):
    letters = sorted(self._dead_letters.values(), key=lambda letter: letter.dedupe_key)
    return [letter for letter in letters if after is None or letter.dedupe_key > after.dedupe_key]


def from_the_first_on(self, honest, after, marked):
    return type(self).some_dead_letters(self, None, retry_requested=marked)


def all_but_the_large(self, honest, after, marked):
    return [letter for letter in honest() if len(letter.raw) < 10 << 20]


def in_bytes(self, honest, after, marked):
    letters = [
        letter for letter in everything(self, honest, after, marked) if letter.retry_requested or not marked
    ]
    return sorted(letters, key=lambda letter: letter.dedupe_key.encode("utf-16", "surrogatepass"))[:100]


def settle_without_taking_away(self, honest, *given):
    letters = dict(self._dead_letters)
    honest(self, *given)
    self._dead_letters.update(letters)


def settle_and_take_all_away(self, honest, cursor, records, letters, *others):
    honest(self, cursor, records, (), *others)
    for record in records:
        self._dead_letters.pop(record.key, None)
    self._dead_letters.update((letter.dedupe_key, letter) for letter in letters)


def bury_first(store, session):
    honest = session.commit

    async def commit(self, *, dead_letters=(), **others):
        await honest(cursor=None, records=[], dead_letters=dead_letters)
        await honest(**others)

    changed(session, commit=commit)


def kept(state):
    return {name: value for name, value in state.items() if value is not None}


def change_all(self, honest, *given):
    *_, state, _ = given
    honest(self, *given)
    change(self, state=kept(state))


def change_in_place(self, honest, *given):
    *others, state, read_at = given
    honest(self, *others, {}, read_at)
    self.__dict__.setdefault("kept", {}).update(kept(state))
    change(self, state=self.kept)


def change_without_end(self, honest, *given):
    *others, state, read_at = given
    honest(self, *others, kept(state), read_at)


def remember_none(self, honest, *given):
    honest(self, *given)
    change(self, previous=())


def save_the_time_of_the_commit(self, honest, *given):
    honest(self, *given[:-1], None)


def remember_all(self, honest, *given):
    before = self.cursor_state
    honest(self, *given)
    if self.cursor_state.saved is not before.saved:
        change(self, previous=(*before.previous, before.saved))


def restart_without_state(self, honest, cursor, **given):
    honest(self, cursor, **given)
    change(self, state={})


def restart_without_dead_letters(self, honest, cursor, **given):
    honest(self, cursor, **given)
    self._dead_letters = {}


def restart_with_history(self, honest, cursor, **given):
    before = self.cursor_state
    honest(self, cursor, **given)
    change(self, previous=(*before.previous, before.saved))


def restart_without_forgetting(self, honest, cursor, *, forget, state):
    honest(self, cursor, forget=False, state=state)


def restart_and_forget(self, honest, cursor, *, forget, state):
    honest(self, cursor, forget=True, state=state)


FAILS = "test_a_write_that_fails_has_written_nothing[commit]"
FINGERPRINT = "test_a_fingerprint_comes_back"
AS_IT_WAS = "test_a_dead_letter_comes_back_as_it_was"
LARGE = "test_a_dead_letter_may_be_large"
ORDER = "test_dead_letters_are_read_in_the_order_of_their_keys"
MARKED = "test_marked_dead_letters_are_found_among_others"
AWAY = "test_a_record_that_is_not_dead_takes_the_dead_letter_away"
STATE = "test_the_state_is_a_few_texts"
RESET = "test_a_reset_goes_on_from_another_place"
EPOCH = "test_a_reset_may_begin_a_new_dedupe_epoch"

WRITES = ["commit", "commit without a cursor", "reset"]
CALLS = [*WRITES, "unseen", "fingerprints", "dead_letters", "dead_letter"]

LIES = [
    (save_first("dead_letters"), FAILS),
    (save_first("state"), FAILS),
    (save_first("records"), FAILS),
    (write_with_the_next_commit, FAILS),
    (reset_first, "test_a_write_that_fails_has_written_nothing[reset]"),
    (lose_at_a_restart(records=lambda _: {}), "test_what_was_committed_is_there_at_once_and_after_a_restart"),
    (forget_unprocessed, "test_a_message_that_was_settled_stays_so_however"),
    (refuse_large_pages, "test_a_page_may_be_huge"),
    (answer_each_time, "test_what_was_committed_is_there_at_once_and_after_a_restart"),
    (lose_at_a_restart(saved=lambda _: SavedCursor(None, 0)), "test_a_cursor_may_be_any_string"),
    (lose_at_a_restart(saved=lambda saved: SavedCursor(saved.cursor, 0)), "test_a_cursor_is_as_old_as_its_page"),
    (lose_at_a_restart(previous=lambda _: ()), "test_the_history_begins_where_the_name_does"),
    (lose_at_a_restart(state=lambda _: {}), STATE),
    (lose_at_a_restart(dead_letters=lambda _: {}), AS_IT_WAS),
    (lose_at_a_restart(records=without_fingerprints), FINGERPRINT),
    (clear_the_cursor_if_nothing_comes, "test_a_commit_without_a_cursor_leaves_the_saved_one"),
    (never_go_back, "test_a_cursor_may_be_any_string"),
    (take_no_keys_for_one, "test_a_new_name_begins_at_the_inception"),
    (count_all, "test_the_size_counts_the_records"),
    (planted(fingerprints=keep_no_fingerprints), FINGERPRINT),
    (planted(fingerprints=keep_small_fingerprints), FINGERPRINT),
    (planted(fingerprints=keep_fingerprints_of_the_processed), FINGERPRINT),
    (planted(fingerprints=keep_the_first_fingerprint), "test_the_newest_fingerprint_counts"),
    (planted(commit=bury_without(traceback="")), AS_IT_WAS),
    (planted(commit=bury_without(retry_requested=False)), AS_IT_WAS),
    (planted(commit=bury_without(first_failed=1e9)), AS_IT_WAS),
    (planted(some_dead_letters=hand_out(everything)), LARGE),
    (planted(some_dead_letters=hand_out(all_but_the_large)), LARGE),
    (planted(some_dead_letters=hand_out(from_the_first_on)), LARGE),
    (planted(some_dead_letters=hand_out(everything)), ORDER),
    (planted(some_dead_letters=hand_out(in_bytes)), ORDER),
    (planted(some_dead_letters=hand_out(everything)), MARKED),
    (planted(commit=bury_once), MARKED),
    (planted(commit=settle_without_taking_away), AWAY),
    (planted(commit=settle_and_take_all_away), AWAY),
    (bury_first, "test_a_dead_letter_is_added_with_the_record_of_its_key"),
    (planted(commit=change_all), STATE),
    (planted(commit=change_without_end), STATE),
    (planted(commit=change_in_place), "test_the_state_that_was_read_does_not_change"),
    (planted(commit=remember_none), "test_the_history_begins_where_the_name_does"),
    (planted(commit=save_the_time_of_the_commit), "test_a_cursor_is_as_old_as_its_page"),
    (planted(commit=remember_all), "test_the_history_has_a_cursor_of_a_second"),
    (planted(reset=restart_with_history), RESET),
    (planted(reset=restart_and_forget), RESET),
    (planted(reset=restart_without_dead_letters), RESET),
    (planted(reset=restart_without_state), RESET),
    (planted(reset=restart_without_forgetting), EPOCH),
    (planted(reset=restart_without_dead_letters), EPOCH),
    *((forget_the_token, f"test_a_released_session_writes_and_reads_nothing[{call}]") for call in CALLS),
    *((forget_the_token, f"test_an_owner_that_was_replaced_writes_nothing[{write}]") for write in WRITES),
    (save_the_cursor_first, FAILS),
    (save_records_first, FAILS),
    (save_records_first, "test_a_write_that_fails_has_written_nothing[commit without a cursor]"),
    (take_none_for_a_cursor, "test_a_commit_without_a_cursor_leaves_the_saved_one"),
    (spell_keys(str.strip), "test_a_key_may_be_any_string"),
    (spell_keys(str.lower), "test_a_key_may_be_any_string"),
    (spell_keys(lambda key: key[:1000]), "test_a_key_may_be_any_string"),
    (spell_keys(lambda key: key.split("\0", maxsplit=1)[0]), "test_a_key_may_be_any_string"),
    (spell_keys(lambda key: key.encode("utf-8", "replace")), "test_a_key_may_be_any_string"),
    (release_for_others, "test_releasing_twice_is_releasing_once"),
    (share_everything, "test_names_have_nothing_in_common"),
    (forget_the_feed, "test_a_name_is_bound_to_its_feed"),
    (stand_still, "test_the_token_grows_with_each_claim"),
    (let_everybody_in, "test_a_name_has_one_owner"),
    (let_everybody_in, "test_many_claims_at_once_have_one_winner"),
    (keep_the_first_state, "test_a_record_replaces_the_one_with_the_same_key"),
]


async def test_the_suite_detects_a_store_whose_cancelled_claim_keeps_the_name():
    class Keeping(MemoryStore):
        async def claim(self, name, *, feed):
            self.kept = await super().claim(name, feed=feed)
            await anyio.lowlevel.checkpoint()
            return self.kept

    class Caught(StoreSuite):
        async def make_store(self):
            return Keeping()

    with pytest.raises(StoreBusy):
        await Caught().test_a_cancelled_claim_leaves_the_name_free()


@pytest.mark.parametrize(("lie", "test"), LIES)
async def test_the_suite_detects_a_misbehaving_store(lie, test):
    class Caught(StoreSuite):
        async def make_store(self):
            return Liar(lie)

        async def state(self, store, name, key):
            record = store._progress[name].records.get(key)
            return record and record.state

        async def steal(self, store, name):
            store._owners.pop(name)

        @contextlib.contextmanager
        def failing(self, store):
            store.broken = True
            yield
            store.broken = False

    test, *case = test.removesuffix("]").split("[")
    with anyio.fail_after(100), pytest.raises((AssertionError, pytest.fail.Exception, StoreError)) as caught:
        await getattr(Caught(), test)(*case)
    assert not isinstance(caught.value, OwnershipLost)
