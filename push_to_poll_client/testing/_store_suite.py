"""What every store must do, so that what holds in memory holds on a disk and on a server."""
# ruff: noqa: S101 - a suite asserts; pytest explains asserts of the module that a test class comes from

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager

import pytest

from push_to_poll_client._exceptions import OwnershipLost, StoreBusy, StoreError, StoreMismatch
from push_to_poll_client._types import Record, RecordState, Session, Store

__all__ = ["StoreSuite"]

_FEED = "https://feed.example/"

_STRINGS = (
    "",
    " ",
    "a",
    "A",
    "a ",
    " a",
    "a\n",
    "a\0",
    "a\0b",
    "\0",
    "0",
    "00",
    "1",
    "1.0",
    "NULL",
    "%",
    "a%",
    "_",
    "'",
    '"',
    "';--",
    "\\",
    "?",
    "{}",
    "é",
    "e\u0301",
    "ß",
    "SS",
    "\N{LATIN SMALL LETTER DOTLESS I}",
    "\N{PILE OF POO}",
    "\ufeff",
    "\ufffd",
    "\uffff",
    "\ud83d",  # half a surrogate pair: JSON can spell it, UTF-8 cannot
    "\ud83d\udca9",  # both halves, which are not the character
    "x" * 100,
    "x" * 255,
    "x" * 256,
    "x" * 10_240,
    "x" * 10_239 + "y",
    "\N{PILE OF POO}" * 10_240,
)
"""No two are the same, and a store must not think so: no collation, no trimming, no normal form, no numbers."""

_MANY = 10_000
"""Keys of one page, the largest that is common among feeds."""


class StoreSuite:
    """Derive a test class from it, write `make_store`, and pytest does the rest.

    The tests run on each backend of your `anyio_backend` fixture. Tests of what you cannot offer are skipped.

        class TestMyStore(StoreSuite):
            async def make_store(self):
                return MyStore(...)
    """

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    async def make_store(self) -> Store:
        """Make an empty store, another one for each test."""
        raise NotImplementedError

    async def reopen(self, store: Store) -> Store:
        """Open again what `store` keeps, as after a restart. As it is, the same object."""
        return store

    async def close(self, store: Store) -> None:
        """Close the store when a test is over. As it is, by `aclose()` if it has one."""
        if hasattr(store, "aclose"):
            await store.aclose()

    async def steal(self, store: Store, name: str) -> None:  # noqa: ARG002 - for those who override it
        """Let somebody else claim the name although it has an owner, as after a lease that ran out."""
        pytest.skip("the store's suite does not override steal()")

    async def state(self, store: Store, name: str, key: str) -> RecordState | None:  # noqa: ARG002 - likewise
        """Read the state of a record; `None` when there is none."""
        pytest.skip("the store's suite does not override state()")

    def failing(self, store: Store) -> AbstractContextManager[object]:  # noqa: ARG002 - likewise
        """Within it, each commit fails with a `StoreError` when it has done all but the last of its writes."""
        pytest.skip("the store's suite does not override failing()")

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[Store]:
        store = await self.make_store()
        try:
            yield store
        finally:
            await self.close(store)

    @asynccontextmanager
    async def _claimed(self, store: Store, name: str = "a", *, feed: str = _FEED) -> AsyncIterator[Session]:
        session = await store.claim(name, feed=feed)
        try:
            yield session
        finally:
            await session.release()

    async def _seen(self, session: Session, keys: Sequence[str]) -> set[str]:
        return set(keys) - await session.unseen(keys)

    async def test_a_new_name_begins_at_the_inception(self) -> None:
        """No cursor, nothing seen."""
        async with self._store() as store, self._claimed(store) as session:
            assert session.cursor is None
            assert await session.unseen(["1", "2"]) == {"1", "2"}

    async def test_nothing_is_unseen_among_no_keys(self) -> None:
        """A page may be empty."""
        async with self._store() as store, self._claimed(store) as session:
            assert await session.unseen([]) == set()

    async def test_a_commit_saves_cursor_and_records_together(self) -> None:
        """And the session that made it sees them at once."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor="c1", records=[Record("1"), Record("2")])
            assert session.cursor == "c1"
            assert await session.unseen(["1", "2", "3"]) == {"3"}

    async def test_what_was_committed_is_there_after_a_restart(self) -> None:
        """Cursor and records, to the next owner."""
        async with self._store() as store:
            async with self._claimed(store) as session:
                await session.commit(cursor="c1", records=[Record("1")])
            async with self._claimed(await self.reopen(store)) as session:
                assert session.cursor == "c1"
                assert await session.unseen(["1", "2"]) == {"2"}

    async def test_a_commit_without_a_cursor_leaves_the_saved_one(self) -> None:
        """Progress in the middle of a page is records alone."""
        async with self._store() as store:
            async with self._claimed(store) as session:
                await session.commit(cursor=None, records=[Record("1")])
                assert session.cursor is None
                await session.commit(cursor="c1", records=[])
                await session.commit(cursor=None, records=[Record("2")])
                assert session.cursor == "c1"
            async with self._claimed(await self.reopen(store)) as session:
                assert session.cursor == "c1"
                assert await session.unseen(["1", "2"]) == set()

    async def test_a_commit_of_nothing_changes_nothing(self) -> None:
        """It need not be avoided."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor="c1", records=[Record("1")])
            await session.commit(cursor=None, records=[])
            assert session.cursor == "c1"
            assert await self._seen(session, ["1"]) == {"1"}

    async def test_a_cursor_may_go_back(self) -> None:
        """Cursors have no order."""
        async with self._store() as store, self._claimed(store) as session:
            for cursor in ("2", "1"):
                await session.commit(cursor=cursor, records=[])
                assert session.cursor == cursor

    async def test_keys_asked_for_twice_are_answered_once(self) -> None:
        """A page may repeat a message."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[Record("1")])
            assert await session.unseen(["1", "2", "2", "1"]) == {"2"}

    async def test_a_message_that_was_settled_stays_so_however(self) -> None:
        """Dead and skipped messages are not unseen either."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[Record(state, state) for state in RecordState])
            assert await session.unseen([*RecordState, "other"]) == {"other"}

    async def test_a_record_replaces_the_one_with_the_same_key(self) -> None:
        """A dead letter that is replayed becomes processed; within a commit the last one counts."""
        async with self._store() as store, self._claimed(store) as session:
            await session.commit(cursor=None, records=[Record("1", RecordState.DEAD), Record("2")])
            assert await self.state(store, "a", "1") is RecordState.DEAD
            replayed = [Record("1", RecordState.SKIPPED), Record("3"), Record("1", RecordState.PROCESSED)]
            await session.commit(cursor=None, records=replayed)
            assert await self.state(store, "a", "1") is RecordState.PROCESSED
            assert await self.state(store, "a", "4") is None
            assert await self._seen(session, ["1", "2", "3", "4"]) == {"1", "2", "3"}

    async def test_names_have_nothing_in_common(self) -> None:
        """Each has its owner, cursor, feed and records, at the same time."""
        async with self._store() as store, self._claimed(store, "a") as a:
            async with self._claimed(store, "A", feed="https://other.example/") as other:
                await a.commit(cursor="c1", records=[Record("1")])
                assert other.cursor is None
                assert await other.unseen(["1"]) == {"1"}
                await other.commit(cursor="d1", records=[Record("2")])
            assert a.cursor == "c1"
            assert await a.unseen(["1", "2"]) == {"2"}

    async def test_a_name_is_bound_to_its_feed(self) -> None:
        """Another feed's cursor would mean nothing; refusing takes nothing from the name."""
        async with self._store() as store:
            async with self._claimed(store) as session:
                await session.commit(cursor="c1", records=[])
            with pytest.raises(StoreMismatch, match="other"):
                await store.claim("a", feed="https://other.example/")
            async with self._claimed(await self.reopen(store)) as session:
                assert session.cursor == "c1"

    async def test_a_name_has_one_owner(self) -> None:
        """The second is refused, and the first goes on."""
        async with self._store() as store, self._claimed(store) as session:
            with pytest.raises(StoreBusy, match="a"):
                await store.claim("a", feed=_FEED)
            await session.commit(cursor="c1", records=[Record("1")])
            assert session.cursor == "c1"

    async def test_the_token_grows_with_each_claim(self) -> None:
        """Also over a restart."""
        async with self._store() as store:
            tokens = []
            for _ in range(3):
                async with self._claimed(store) as session:
                    tokens.append(session.token)
                store = await self.reopen(store)  # noqa: PLW2901 - the same data
            assert tokens == sorted(set(tokens))

    async def test_releasing_twice_is_releasing_once(self) -> None:
        """And the second time does not take the name from its next owner."""
        async with self._store() as store:
            first = await store.claim("a", feed=_FEED)
            await first.release()
            await first.release()
            async with self._claimed(store) as second:
                await first.release()
                with pytest.raises(StoreBusy):
                    await store.claim("a", feed=_FEED)
                await second.commit(cursor="c1", records=[])

    async def test_a_released_session_writes_nothing(self) -> None:
        """Whether or not there is a new owner."""
        async with self._store() as store:
            async with self._claimed(store) as old:
                await old.commit(cursor="c1", records=[Record("1")])
            with pytest.raises(StoreError):
                await old.commit(cursor="c2", records=[Record("2")])
            async with self._claimed(store) as new:
                with pytest.raises(StoreError):
                    await old.commit(cursor="c2", records=[Record("2")])
                with pytest.raises(StoreError):
                    await old.unseen(["2"])
                assert (new.cursor, await new.unseen(["1", "2"])) == ("c1", {"2"})

    async def test_an_owner_that_was_replaced_writes_nothing(self) -> None:
        """The fencing token is checked with each commit: what slept through its lease is refused (G10)."""
        async with self._store() as store:
            async with self._claimed(store) as old:
                await old.commit(cursor="c1", records=[Record("1")])
                await self.steal(store, "a")
                for cursor in ("c2", None):
                    with pytest.raises(OwnershipLost):
                        await old.commit(cursor=cursor, records=[Record("2")])
                assert old.cursor == "c1"
            async with self._claimed(await self.reopen(store)) as new:
                assert (new.cursor, await new.unseen(["1", "2"])) == ("c1", {"2"})

    async def test_a_commit_that_fails_has_written_nothing(self) -> None:
        """Neither cursor nor records, neither for this session nor after a restart; the next commit works."""
        async with self._store() as store:
            async with self._claimed(store) as session:
                await session.commit(cursor="c1", records=[Record("1")])
                with self.failing(store), pytest.raises(StoreError):
                    await session.commit(cursor="c2", records=[Record("2"), Record("3")])
                assert (session.cursor, await session.unseen(["1", "2", "3"])) == ("c1", {"2", "3"})
                await session.commit(cursor=None, records=[Record("3")])
            async with self._claimed(await self.reopen(store)) as session:
                assert (session.cursor, await session.unseen(["1", "2", "3"])) == ("c1", {"2"})

    async def test_a_page_may_be_huge(self) -> None:
        """Ten thousand keys at once."""
        keys = [f"{number:036}" for number in range(_MANY)]
        async with self._store() as store, self._claimed(store) as session:
            assert await session.unseen(keys) == set(keys)
            await session.commit(cursor="c1", records=[Record(key) for key in keys[1:]])
            assert await session.unseen(keys) == {keys[0]}

    async def test_a_key_may_be_any_string(self) -> None:
        """And is no other's: each is recorded while all the rest stay unseen."""
        assert len(set(_STRINGS)) == len(_STRINGS)
        async with self._store() as store:
            async with self._claimed(store) as session:
                for number, key in enumerate(_STRINGS):
                    assert await session.unseen(_STRINGS) == set(_STRINGS[number:])
                    await session.commit(cursor=None, records=[Record(key)])
            async with self._claimed(await self.reopen(store)) as session:
                assert await session.unseen([*_STRINGS, "other"]) == {"other"}

    async def test_a_cursor_may_be_any_string(self) -> None:
        """It comes back unchanged, and the empty string is not the inception."""
        async with self._store() as store:
            for cursor in _STRINGS:
                async with self._claimed(store) as session:
                    await session.commit(cursor=cursor, records=[])
                store = await self.reopen(store)  # noqa: PLW2901 - the same data
                async with self._claimed(store) as session:
                    assert session.cursor == cursor

    async def test_a_name_and_a_feed_may_be_any_string(self) -> None:
        """Each name is another, bound to its own feed."""
        async with self._store() as store:
            for text in _STRINGS:
                async with self._claimed(store, text, feed=text) as session:
                    assert session.cursor is None
                    await session.commit(cursor=text, records=[])
            for text in _STRINGS:
                async with self._claimed(store, text, feed=text) as session:
                    assert session.cursor == text
