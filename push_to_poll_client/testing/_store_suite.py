"""Conformance suite for stores in memory, on a disk or on a server."""
# ruff: noqa: S101 - a suite asserts; pytest explains asserts of the module that a test class comes from

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from push_to_poll_client._exceptions import OwnershipLost, StoreBusy, StoreError, StoreMismatch
from push_to_poll_client._protocols import Session, Store, is_leased
from push_to_poll_client._types import DeadLetter, Record, Settlement

FEED = "https://feed.example/"

GUARD = 60.0
"""Seconds after which a wait fails instead of hanging. A wait usually takes milliseconds."""

_STRINGS = (
    *("", " ", "a", "A", "a ", " a", "a\n", "a\0", "a\0b", "\0"),
    *("0", "00", "1", "1.0", "NULL", "%", "a%", "_", "'", '"', "';--", "\\", "?", "{}"),
    *("é", "e\u0301", "ß", "SS", "\N{LATIN SMALL LETTER DOTLESS I}", "\N{PILE OF POO}"),
    *("\ufeff", "\ufffd", "\ufffe", "\uffff", "a\uffff"),
    "\ud83d",  # half a surrogate pair: JSON can spell it, UTF-8 cannot
    "\ud83d\udca9",  # both halves, which are not the character
    *("x" * 100, "x" * 255, "x" * 256, "x" * 10_240, "x" * 10_239 + "y", "\N{PILE OF POO}" * 10_240),
)
"""All different. A store must not treat two as equal by collation, trimming, normal forms or numbers."""

_MANY = 10_000
"""Keys of one page: the largest page that is common among feeds."""

_LARGE = 6 << 20
"""Bytes. Two dead letters of this size are returned together, three are not."""


def _dead_letter(key: str, **others: Any) -> DeadLetter:
    return DeadLetter(
        dedupe_key=key, id=f"id of {key}", raw=key.encode("utf-8", "surrogatepass"), error="broken", **others
    )


WRITES: dict[str, Callable[[Session], Awaitable[object]]] = {
    "commit": lambda session: session.commit(
        cursor="c2",
        records=[Record("2"), Record("3", fingerprint=3), Record("4")],
        dead_letters=[_dead_letter("2")],
        state={"s": "2"},
    ),
    "commit without a cursor": lambda session: session.commit(
        cursor=None, records=[Record("2")], state={"s": "2"}
    ),
    "reset": lambda session: session.reset(None, forget=True, state={"s": "2"}),
}
"""Each of these would change the state saved by `_claimed_with_progress`."""

READS: dict[str, Callable[[Session], Awaitable[object]]] = {
    "unseen": lambda session: session.unseen(["2"]),
    "fingerprints": lambda session: session.fingerprints(["1"]),
    "dead_letters": lambda session: session.dead_letters(),
    "dead_letter": lambda session: session.dead_letter("4"),
}


async def claim_often(stores: Sequence[Store], name: str) -> None:
    """Claim a name with many tasks at once, several times; check that each time one of them gets it."""
    tokens: list[int] = []
    for _ in range(5):
        won: list[Session] = []
        lost: list[StoreBusy] = []

        async def claim(store: Store, won: list[Session] = won, lost: list[StoreBusy] = lost) -> None:
            try:
                won.append(await store.claim(name, feed=FEED))
            except StoreBusy as busy:
                lost.append(busy)

        async with anyio.create_task_group() as tasks:
            for store in [*stores] * 4:
                tasks.start_soon(claim, store)
        assert (len(won), len(lost)) == (1, 4 * len(stores) - 1)
        tokens.append(won[0].fencing_token)
        await won[0].commit(cursor=str(tokens[-1]), records=[])
        await won[0].release()
    assert tokens == sorted(set(tokens)), "each claim has a larger token"


async def cancel_after(steps: int, claim: Callable[[], Awaitable[Session]]) -> None:
    """Cancel a claim after this number of checkpoints. If it succeeds first, release its session."""
    claimed: list[Session] = []

    async def call() -> None:
        claimed.append(await claim())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    for session in claimed:
        await session.release()


class StoreSuite:
    """Base of the test class for your store: write `make_store`, and pytest runs the tests.

    The tests run on each backend of your `anyio_backend` fixture. Tests that need a method you do not override are
    skipped.

        class TestMyStore(StoreSuite):
            async def make_store(self):
                return MyStore(...)
    """

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    async def make_store(self) -> Store:
        """Make a new empty store for each test."""
        raise NotImplementedError

    async def reopen(self, store: Store) -> Store:
        """Open the data of `store` again, as after a restart. The default returns the same object."""
        return store

    async def close(self, store: Store) -> None:
        """Close the store after a test. The default calls `aclose()` if the store has it."""
        if hasattr(store, "aclose"):
            await store.aclose()

    async def steal(self, store: Store, name: str) -> None:  # noqa: ARG002 - for overrides
        """Claim the name for a new owner although it has one, as after an expired lease."""
        pytest.skip("the store's suite does not override steal()")

    async def state(self, store: Store, name: str, key: str) -> Settlement | None:  # noqa: ARG002 - for overrides
        """Read the settlement of a record. Return None without a record."""
        pytest.skip("the store's suite does not override state()")

    def failing(self, store: Store) -> AbstractContextManager[object]:  # noqa: ARG002 - for overrides
        """Make writes of `state` fail with a `StoreError`, after the rest of the commit is written."""
        pytest.skip("the store's suite does not override failing()")

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[Store]:
        store = await self.make_store()
        try:
            yield store
        finally:
            await self.close(store)

    @asynccontextmanager
    async def _claimed(self, store: Store, name: str = "a", *, feed: str = FEED) -> AsyncIterator[Session]:
        session = await store.claim(name, feed=feed)
        try:
            yield session
        finally:
            await session.release()

    @asynccontextmanager
    async def _durable(self, store: Store, *keys: str) -> AsyncIterator[Session]:
        """Yield a session; check that the next owner, after a restart, sees the same state."""
        async with self._claimed(store) as session:
            yield session
            before = await self._shown(session, *keys)
        async with self._claimed(await self.reopen(store)) as session:
            assert await self._shown(session, *keys) == before

    @asynccontextmanager
    async def _claimed_with_progress(self, store: Store) -> AsyncIterator[tuple[Session, dict[str, object]]]:
        """Yield a session with saved progress, and the state that it shows."""
        async with self._claimed(store) as session:
            await session.commit(
                cursor="c1",
                records=[Record("1"), Record("4", Settlement.DEAD_LETTERED)],
                dead_letters=[_dead_letter("4")],
                state={"s": "1"},
            )
            yield session, await self._shown(session, *"1234")

    async def _shown(self, session: Session, *keys: str) -> dict[str, object]:
        letters = [*await session.dead_letters()]
        return {
            "cursor": session.cursor,
            "history": [*session.history],
            "state": dict(session.state),
            "record count": session.record_count,
            "dead letter count": session.dead_letter_count,
            "unseen": await session.unseen(keys),
            "fingerprints": dict(await session.fingerprints(keys)),
            "dead letters": letters,
            "dead letters by key": [await session.dead_letter(letter.dedupe_key) for letter in letters],
        }

    async def _seen(self, session: Session, keys: Sequence[str]) -> set[str]:
        return set(keys) - await session.unseen(keys)

    def test_trio_is_installed_so_that_both_event_loops_are_tested(self) -> None:
        """The suite should also run on trio; without trio this test is skipped and names the package."""
        pytest.importorskip(
            "trio", reason="trio is not installed, so the suite ran on asyncio alone: pip install trio"
        )

    async def test_a_new_name_begins_at_the_inception(self) -> None:
        """The store must start a new name without cursor and records, and accept an empty list of keys."""
        async with self._store() as store, self._durable(store) as session:
            assert session.cursor is None
            assert await session.unseen(["1", "2"]) == {"1", "2"}
            assert await session.unseen([]) == set()

    async def test_what_was_committed_is_there_at_once_and_after_a_restart(self) -> None:
        """The store must show a committed cursor and its records at once, and to the next owner."""
        async with self._store() as store, self._durable(store, *"123") as session:
            await session.commit(cursor="c1", records=[Record("1"), Record("2")])
            assert session.cursor == "c1"
            assert await session.unseen(["1", "2", "3"]) == {"3"}
            assert await session.unseen(["3", "1", "1", "3"]) == {"3"}, "a page may repeat a message"

    async def test_a_commit_without_a_cursor_leaves_the_saved_one(self) -> None:
        """The store must keep the saved cursor if a commit has records only, or nothing."""
        async with self._store() as store, self._durable(store, *"12") as session:
            await session.commit(cursor=None, records=[Record("1")])
            assert session.cursor is None
            await session.commit(cursor="c1", records=[])
            for records in ([Record("2")], []):
                await session.commit(cursor=None, records=records)
                assert session.cursor == "c1"
                assert await session.unseen(["1", "2"]) == set()

    async def test_a_message_that_was_settled_stays_so_however(self) -> None:
        """The store must treat skipped and dead-lettered messages as seen."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[Record(state, state) for state in Settlement])
            assert await session.unseen([*Settlement, "other"]) == {"other"}

    async def test_a_record_replaces_the_one_with_the_same_key(self) -> None:
        """The store must keep only the last record of a key, also within one commit."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[Record("1", Settlement.DEAD_LETTERED), Record("2")])
            assert await self.state(store, "a", "1") is Settlement.DEAD_LETTERED
            replayed = [Record("1", Settlement.SKIPPED), Record("3"), Record("1", Settlement.PROCESSED)]
            await session.commit(cursor=None, records=replayed)
            assert await self.state(store, "a", "1") is Settlement.PROCESSED
            assert await self.state(store, "a", "4") is None
            assert await self._seen(session, ["1", "2", "3", "4"]) == {"1", "2", "3"}

    async def test_names_have_nothing_in_common(self) -> None:
        """The store must keep owner, cursor, feed, records and state separate for each name."""
        async with self._store() as store, self._claimed(store, "a") as a:
            async with self._claimed(store, "A", feed="https://other.example/") as other:
                await a.commit(cursor="c1", records=[Record("1")], state={"a": "1"})
                assert (other.cursor, dict(other.state)) == (None, {})
                assert await other.unseen(["1"]) == {"1"}
                await other.commit(cursor="d1", records=[Record("2")])
            assert a.cursor == "c1"
            assert await a.unseen(["1", "2"]) == {"2"}

    async def test_a_name_is_bound_to_its_feed(self) -> None:
        """The store must reject a claim for another feed, and keep the state of the name."""
        async with self._store() as store:
            async with self._claimed(store) as session:
                await session.commit(cursor="c1", records=[])
            with pytest.raises(StoreMismatch, match="other"):
                await store.claim("a", feed="https://other.example/")
            async with self._claimed(await self.reopen(store)) as session:
                assert session.cursor == "c1"

    async def test_a_name_has_one_owner(self) -> None:
        """The store must reject a second claim while the first session continues."""
        async with self._store() as store, self._claimed(store) as session:
            with pytest.raises(StoreBusy, match="a"):
                await store.claim("a", feed=FEED)
            await session.commit(cursor="c1", records=[Record("1")])
            assert session.cursor == "c1"

    async def test_many_claims_at_once_have_one_winner(self) -> None:
        """The store must give a name to one of many tasks that claim it at once, with a new token."""
        async with self._store() as store:
            await claim_often([store], "a")

    async def test_a_cancelled_claim_leaves_the_name_free(self) -> None:
        """The store must free the name if a claim is cancelled: the caller has no session to release."""
        async with self._store() as store:
            for steps in range(8):
                await cancel_after(steps, lambda: store.claim("a", feed=FEED))
                await (await store.claim("a", feed=FEED)).release()

    async def test_a_store_with_leases_is_tested_with_their_suite(self) -> None:
        """The test class of a store with `LeasedSession`s must derive from `LeasedStoreSuite`."""
        async with self._store() as store, self._claimed(store) as session:
            if is_leased(session) and not hasattr(self, "expire"):
                pytest.fail("the sessions of this store have a lease: derive the test class from LeasedStoreSuite")

    async def test_the_token_grows_with_each_claim(self) -> None:
        """The store must increase the fencing token with each claim, also across a restart."""
        async with self._store() as store:
            tokens = []
            for _ in range(3):
                async with self._claimed(store) as session:
                    tokens.append(session.fencing_token)
                store = await self.reopen(store)  # noqa: PLW2901 - the same data
            assert tokens == sorted(set(tokens))

    async def test_releasing_twice_is_releasing_once(self) -> None:
        """The store must ignore a second release, even if the name has a new owner."""
        async with self._store() as store:
            first = await store.claim("a", feed=FEED)
            await first.release()
            await first.release()
            async with self._claimed(store) as second:
                await first.release()
                with pytest.raises(StoreBusy):
                    await store.claim("a", feed=FEED)
                await second.commit(cursor="c1", records=[])

    @pytest.mark.parametrize("call", [*WRITES, *READS])
    async def test_a_released_session_writes_and_reads_nothing(self, call: str) -> None:
        """The store must reject all reads and writes of a released session."""
        perform = {**WRITES, **READS}[call]
        async with self._store() as store:
            async with self._claimed_with_progress(store) as (old, before):
                pass
            with pytest.raises(StoreError):
                await perform(old)
            async with self._claimed(store) as new:
                with pytest.raises(StoreError):
                    await perform(old)
                assert await self._shown(new, *"1234") == before

    @pytest.mark.parametrize("write", WRITES)
    async def test_an_owner_that_was_replaced_writes_nothing(self, write: str) -> None:
        """The store must check the fencing token with each write and reject a former owner (G10)."""
        async with self._store() as store:
            async with self._claimed_with_progress(store) as (old, before):
                await self.steal(store, "a")
                with pytest.raises(OwnershipLost):
                    await WRITES[write](old)
                assert old.cursor == "c1"
            async with self._claimed(await self.reopen(store)) as new:
                assert await self._shown(new, *"1234") == before

    @pytest.mark.parametrize("write", WRITES)
    async def test_a_write_that_fails_has_written_nothing(self, write: str) -> None:
        """The store must write nothing of a failed commit, and accept the next commit."""
        async with self._store() as store:
            async with self._claimed_with_progress(store) as (session, before):
                with self.failing(store), pytest.raises(StoreError):
                    await WRITES[write](session)
                assert await self._shown(session, *"1234") == before
                await session.commit(cursor=None, records=[Record("3")])
                after = {**before, "record count": 3, "unseen": {"2"}}
                assert await self._shown(session, *"1234") == after
            async with self._claimed(await self.reopen(store)) as session:
                assert await self._shown(session, *"1234") == after

    async def test_a_page_may_be_huge(self) -> None:
        """The store must accept ten thousand keys in one call."""
        keys = [f"{number:036}" for number in range(_MANY)]
        async with self._store() as store, self._claimed(store) as session:
            assert await session.unseen(keys) == set(keys)
            await session.commit(cursor="c1", records=[Record(key) for key in keys[1:]])
            assert await session.unseen(keys) == {keys[0]}

    async def test_a_key_may_be_any_string(self) -> None:
        """The store must accept any string as a key, and never confuse two keys."""
        assert len(set(_STRINGS)) == len(_STRINGS)
        async with self._store() as store, self._durable(store, *_STRINGS, "other") as session:
            for number, key in enumerate(_STRINGS):
                assert await session.unseen(_STRINGS) == set(_STRINGS[number:])
                await session.commit(cursor=None, records=[Record(key)])
            assert await session.unseen([*_STRINGS, "other"]) == {"other"}

    async def test_a_cursor_may_be_any_string(self) -> None:
        """The store must return a cursor unchanged; the empty string is not the inception."""
        async with self._store() as store:
            for cursor in _STRINGS:
                async with self._durable(store) as session:
                    await session.commit(cursor=cursor, records=[])
                    assert session.cursor == cursor

    async def test_a_name_and_a_feed_may_be_any_string(self) -> None:
        """The store must accept any string as a name and a feed, and never confuse two names."""
        async with self._store() as store:
            for text in _STRINGS:
                async with self._claimed(store, text, feed=text) as session:
                    assert session.cursor is None
                    await session.commit(cursor=text, records=[])
            for text in _STRINGS:
                async with self._claimed(store, text, feed=text) as session:
                    assert session.cursor == text

    async def test_the_size_counts_the_records(self) -> None:
        """The store must count one record per key."""
        async with self._store() as store, self._durable(store) as session:
            assert session.record_count == 0
            await session.commit(cursor=None, records=[Record("1"), Record("2"), Record("1")])
            assert session.record_count == len({"1", "2"})
            await session.commit(cursor="c1", records=[Record("2", Settlement.DEAD_LETTERED)])
            await session.commit(cursor="c2", records=[Record("2")])
            assert session.record_count == len({"1", "2"})

    async def test_a_fingerprint_comes_back(self) -> None:
        """The store must return fingerprints of up to 63 bits, only for keys that have one."""
        records = [Record("0", fingerprint=0), Record("1", fingerprint=(1 << 63) - 1), Record("2")]
        async with self._store() as store, self._durable(store, *"01234") as session:
            assert dict(await session.fingerprints([])) == {}
            await session.commit(cursor=None, records=[*records, Record("3", Settlement.DEAD_LETTERED, 3)])
            assert dict(await session.fingerprints([*"01234"])) == {"0": 0, "1": (1 << 63) - 1, "3": 3}

    async def test_the_newest_fingerprint_counts(self) -> None:
        """The store must return the newest fingerprint of a key, however old the previous one is."""
        between = [Record(f"{number:036}", fingerprint=number) for number in range(_MANY)]
        async with self._store() as store, self._durable(store, "1", between[7].key) as session:
            await session.commit(cursor=None, records=[Record("1", fingerprint=1), Record("1", fingerprint=2)])
            assert dict(await session.fingerprints(["1"])) == {"1": 2}
            await session.commit(cursor=None, records=between)
            await session.commit(cursor=None, records=[Record("1", fingerprint=3)])
            assert dict(await session.fingerprints(["1", between[7].key])) == {"1": 3, between[7].key: 7}
            await session.commit(cursor=None, records=[Record("1", fingerprint=4)])
            assert dict(await session.fingerprints(["1"])) == {"1": 4}

    async def test_a_dead_letter_comes_back_as_it_was(self) -> None:
        """The store must return each field of a dead letter unchanged, also invalid text and bytes."""
        full = DeadLetter(
            dedupe_key="k",
            id="i\0\ud83d",
            raw=bytes(range(256)),
            error="e\0\ud83d",
            traceback="t\n\0\ud83d",
            attempts=7,
            first_failed=1e9 + 0.25,
            last_failed=1e9 + 0.5,
            retry_requested=True,
        )
        plain = DeadLetter(dedupe_key="p", id="", raw=b"", error="")
        buried = [Record("k", Settlement.DEAD_LETTERED)]
        async with self._store() as store, self._durable(store) as session:
            assert (session.dead_letter_count, await session.dead_letter("k")) == (0, None)
            await session.commit(cursor=None, records=buried, dead_letters=[full, plain])
            assert session.dead_letter_count == len([full, plain])
            assert [await session.dead_letter(key) for key in "kp"] == [full, plain]
            assert list(await session.dead_letters()) == [full, plain]

    async def test_a_dead_letter_may_be_large(self) -> None:
        """The store must accept a dead letter of 20 MiB, and return at most 16 MiB or one dead letter."""
        letters = [_dead_letter(str(number)) for number in range(4)]
        huge = DeadLetter(dedupe_key="huge", id="huge", raw=bytes(20 << 20), error="")
        large = [DeadLetter(dedupe_key=one.dedupe_key, id=one.id, raw=bytes(_LARGE), error="") for one in letters]
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[], dead_letters=[*large, huge])
            first = await session.dead_letters()
            assert [letter.dedupe_key for letter in first] == ["0", "1"]
            then = await session.dead_letters(after=first[-1])
            assert [letter.dedupe_key for letter in then] == ["2", "3"]
            assert list(await session.dead_letters(after=then[-1])) == [huge]
            assert list(await session.dead_letters(after=huge)) == []

    async def test_dead_letters_are_read_in_the_order_of_their_keys(self) -> None:
        """The store must return dead letters in batches of 100, ordered by the code points of their keys."""
        letters = [_dead_letter(key) for key in {*_STRINGS, *map(str, range(250))}]
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[], dead_letters=letters)
            read: list[DeadLetter] = []
            while some := await session.dead_letters(after=read[-1] if read else None):
                assert len(some) == min(100, len(letters) - len(read))
                read.extend(some)
            assert read == sorted(letters, key=lambda letter: letter.dedupe_key)
            assert session.dead_letter_count == len(letters)

    async def test_marked_dead_letters_are_found_among_others(self) -> None:
        """The store must find dead letters to retry or drop, and replace a dead letter with the same key."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[], dead_letters=[_dead_letter(key) for key in "abcd"])
            assert list(await session.dead_letters(retry_requested=True)) == []
            marked = [_dead_letter("d", retry_requested=True), _dead_letter("b", drop_requested=True)]
            await session.commit(cursor=None, records=[], dead_letters=marked)
            assert session.dead_letter_count == len("abcd")
            assert list(await session.dead_letters(retry_requested=True)) == marked[::-1]
            assert list(await session.dead_letters(after=_dead_letter("b"), retry_requested=True)) == marked[:1]
            await session.commit(cursor=None, records=[], dead_letters=[_dead_letter("b")])
            assert list(await session.dead_letters(retry_requested=True)) == marked[:1]

    async def test_a_record_that_is_not_dead_takes_the_dead_letter_away(self) -> None:
        """The store must remove the dead letter of a processed or skipped key, for this name only."""
        keys = [*_STRINGS, "dead", "other"]
        async with self._store() as store, self._claimed(store) as session, self._claimed(store, "b") as other:
            for one in (session, other):
                await one.commit(cursor=None, records=[], dead_letters=[_dead_letter(key) for key in keys])
            await session.commit(
                cursor=None,
                records=[Record("dead", Settlement.DEAD_LETTERED), *(Record(key) for key in _STRINGS[::2])],
            )
            await session.commit(cursor=None, records=[Record(key, Settlement.SKIPPED) for key in _STRINGS[1::2]])
            assert [letter.dedupe_key for letter in await session.dead_letters()] == ["dead", "other"]
            assert session.dead_letter_count == len(["dead", "other"])
            assert (other.dead_letter_count, await other.dead_letter("1")) == (len(keys), _dead_letter("1"))

    async def test_a_dead_letter_is_added_with_the_record_of_its_key(self) -> None:
        """The store must keep a dead letter added by a commit that also settles its key."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[Record("1")], dead_letters=[_dead_letter("1")])
            assert await session.dead_letter("1") == _dead_letter("1")
            again = _dead_letter("1", attempts=2)
            await session.commit(cursor=None, records=[Record("1")], dead_letters=[again])
            assert (session.dead_letter_count, await session.dead_letter("1")) == (1, again)
            await session.commit(cursor=None, records=[Record("1", Settlement.DEAD_LETTERED), Record("1")])
            assert session.dead_letter_count == 0

    async def test_the_state_is_a_few_texts(self) -> None:
        """The store must change `state` by name, together with the commit, and accept any strings."""
        texts = {text: text for text in _STRINGS if text}
        async with self._store() as store, self._durable(store) as session:
            assert dict(session.state) == {}
            await session.commit(cursor="c", records=[Record("1")], state={**texts, "": "of no name"})
            assert dict(session.state) == {**texts, "": "of no name"}
            await session.commit(cursor=None, records=[])
            await session.commit(cursor=None, records=[], state={"": None, "none": None, "new": "1"})
            await session.commit(cursor=None, records=[], state={"new": "2"})
            assert dict(session.state) == {**texts, "new": "2"}

    async def test_the_state_that_was_read_does_not_change(self) -> None:
        """The store must not change a `state` mapping that the caller has read."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[], state={"a": "1"})
            before = session.state
            await session.commit(cursor=None, records=[], state={"a": "2"})
            assert (dict(before), dict(session.state)) == ({"a": "1"}, {"a": "2"})

    async def test_the_history_begins_where_the_name_does(self) -> None:
        """The store must start the history with the inception and end it with the saved cursor."""
        async with self._store() as store, self._durable(store) as session:
            assert [cursor for cursor, _ in session.history] == [None]
            await session.commit(cursor=None, records=[Record("1")])
            assert [cursor for cursor, _ in session.history] == [None]
            await session.commit(cursor="c1", records=[])
            assert [cursor for cursor, _ in session.history] == [None, "c1"]

    async def test_a_cursor_is_as_old_as_its_page(self) -> None:
        """The store must keep the arrival time of a cursor's page, not the time of the commit."""
        async with self._store() as store, self._durable(store) as session:
            await session.commit(cursor="c1", records=[], read_at=1_000.5)
            assert session.history[-1] == ("c1", 1_000.5)

    async def test_the_history_has_a_cursor_of_a_second(self) -> None:
        """The store must keep at most one earlier cursor per second, and ignore a repeated cursor."""
        async with self._store() as store, self._claimed(store) as session:
            for number in range(200):
                await session.commit(cursor=str(number), records=[])
            history = [*session.history]
            await session.commit(cursor="199", records=[])
            assert [*session.history] == history
            *before, saved = history
            assert saved.cursor == "199"
            times = [at for _, at in before]
            assert all(later - earlier >= 1 for earlier, later in pairwise(times))
            assert times[-1] <= saved.read_at

    async def test_a_reset_goes_on_from_another_place(self) -> None:
        """The store must start a new history on reset, and keep records, dead letters and other state."""
        records, letters = [Record("1", fingerprint=1)], [_dead_letter("2")]
        async with self._store() as store, self._durable(store, *"12") as session:
            await session.commit(cursor="c1", records=records, dead_letters=letters, state={"a": "1", "b": "1"})
            for cursor in ("c0", None):
                await session.reset(cursor, forget=False, state={"a": cursor})
                assert session.cursor == cursor
                assert [cursor for cursor, _ in session.history] == [cursor]
            assert await session.unseen(["1", "2"]) == {"2"}
            await session.commit(cursor="c2", records=[])
            assert [cursor for cursor, _ in session.history] == [None, "c2"]
            assert (session.dead_letter_count, session.record_count) == (1, 1)
            assert dict(session.state) == {"b": "1"}

    async def test_a_reset_may_begin_a_new_dedupe_epoch(self) -> None:
        """The store must ignore earlier records after `forget=True`, and count later ones."""
        keys = [f"{number:036}" for number in range(_MANY)]
        records, letters = [Record(key, fingerprint=1) for key in keys], [_dead_letter("2")]
        async with self._store() as store, self._durable(store, *keys) as session:
            await session.commit(cursor="c1", records=records, dead_letters=letters)
            await session.reset(None, forget=True)
            assert (session.cursor, session.record_count, session.dead_letter_count) == (None, 0, 1)
            assert await session.unseen(keys) == set(keys)
            assert dict(await session.fingerprints(keys)) == {}
            await session.commit(cursor="c1", records=[Record(keys[5])])
            assert await self._seen(session, keys) == {keys[5]}
            assert (session.record_count, dict(await session.fingerprints(keys))) == (1, {})
