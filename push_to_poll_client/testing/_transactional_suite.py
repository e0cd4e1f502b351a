"""Conformance suite for transactional stores (G8), in a file or on a server."""
# ruff: noqa: S101 - a suite asserts; pytest explains asserts of the module that a test class comes from

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import to_thread

from push_to_poll_client._exceptions import CommitInDoubt, OwnershipLost, StoreError
from push_to_poll_client._protocols import Store, TransactionConflict, is_transactional
from push_to_poll_client._types import Record, Settlement
from push_to_poll_client.testing._leased_suite import LeasedStoreSuite, Outcome, lease_hooks
from push_to_poll_client.testing._store_suite import StoreSuite


class _HandlerFailed(Exception):
    """Raised by the handlers of this suite."""


class TransactionalStoreSuite(StoreSuite):
    """The `StoreSuite` with more tests for transactional stores: effects and records together, or neither.

    Also write `write` and `written`.

        class TestMyStore(TransactionalStoreSuite):
            async def make_store(self):
                return MyStore(..., transactional=True)

            async def write(self, store, text):
                await store.connection.execute("INSERT INTO note VALUES (?)", text)
    """

    async def write(self, store: Store, text: str) -> None:
        """Write a text to a table of the application through the store's `connection`, as a handler does."""
        raise NotImplementedError

    async def written(self, store: Store) -> Sequence[str]:
        """Read the committed texts in the order of their writing, as another program would."""
        raise NotImplementedError

    async def _handle(self, store: Store, session: Any, *texts: str, fails: bool = False) -> None:
        """Process messages with these texts as keys, or fail at the end."""
        async with session.transaction([Record(text) for text in texts]):
            for text in texts:
                await self.write(store, text)
            if fails:
                raise _HandlerFailed

    async def _handle_and_commit(self, store: Any, session: Any, text: str) -> None:
        await self._handle(store, session, text)
        await session.commit(cursor=None, records=[Record(text)])

    @asynccontextmanager
    async def _transactional(self) -> AsyncIterator[tuple[Any, Any]]:
        async with self._store() as store:
            if not getattr(store, "transactional", False):
                pytest.skip("the store is not transactional")
            async with self._claimed(store) as session:
                assert is_transactional(session)
                yield store, session

    async def _both_or_neither(self, store: Any, session: Any, *texts: str) -> set[str]:
        """Return the recorded texts after a restart; check that exactly these are written."""
        await session.release()
        async with self._claimed(await self.reopen(store)) as reader:
            written, seen = await self.written(store), await self._seen(reader, texts)
        assert sorted(written) == sorted(seen)
        return seen

    async def test_effects_are_durable_when_the_handler_returns(self) -> None:
        """The store must commit writes and records when a handler returns; a later record replaces them."""
        async with self._transactional() as (store, session):
            await self._handle(store, session, "1")
            assert await self.written(store) == ["1"]
            await self._handle(store, session, "2", "3")
            assert await self.written(store) == ["1", "2", "3"]
            await session.commit(cursor="c1", records=[Record("2", Settlement.SKIPPED), Record("other")])
            assert await self.written(store) == ["1", "2", "3"]
            assert session.cursor == "c1"
            assert await self._seen(session, ["1", "2", "3", "4", "other"]) == {"1", "2", "3", "other"}
            await self._handle(store, session, "4")
            assert await self._both_or_neither(store, session, *"12345") == {*"1234"}

    async def test_a_commit_does_not_cut_a_message_in_two(self) -> None:
        """The store must not commit half of a handler's writes because another task commits."""
        async with self._transactional() as (store, session):
            async with anyio.create_task_group() as tasks:
                begun = anyio.Event()
                commit = partial(session.commit, cursor="c1", records=[Record("other")])
                tasks.start_soon(self._call_after, begun, commit)
                async with session.transaction([Record("1")]):
                    await self.write(store, "1")
                    begun.set()
                    await anyio.wait_all_tasks_blocked()
                    await self.write(store, "2")
            await session.commit(cursor=None, records=[Record("1")])
            assert await self.written(store) == ["1", "2"]
            assert await self._seen(session, ["1", "other"]) == {"1", "other"}

    async def _call_after(self, begun: anyio.Event, call: Callable[[], Awaitable[None]]) -> None:
        await begun.wait()
        await call()

    async def test_a_handler_that_raises_takes_back_its_own(self) -> None:
        """The store must roll back the writes of a failed handler, and no others."""
        async with self._transactional() as (store, session):
            await self._handle(store, session, "1")
            with pytest.raises(_HandlerFailed):
                await self._handle(store, session, "2", "3", fails=True)
            await self._handle(store, session, "4")
            await session.commit(cursor=None, records=[Record("1"), Record("4")])
            assert await self._both_or_neither(store, session, "1", "2", "3", "4") == {"1", "4"}

    async def test_a_handler_that_raises_at_first_leaves_nothing_open(self) -> None:
        """The store must leave no transaction open after a failed handler: a retry may take hours."""
        async with self._transactional() as (store, session), self._claimed(store, "b") as other:
            with pytest.raises(_HandlerFailed):
                await self._handle(store, session, "1", fails=True)
            await self._handle_and_commit(store, other, "2")
            await self._handle_and_commit(store, session, "1")
            assert await self.written(store) == ["2", "1"]

    async def test_a_cancelled_handler_takes_back_its_own(self) -> None:
        """The store must roll back the writes of a cancelled handler."""
        async with self._transactional() as (store, session):
            with anyio.CancelScope() as scope:
                async with session.transaction([Record("1")]):
                    await self.write(store, "1")
                    scope.cancel()
                    await anyio.sleep_forever()
            await session.commit(cursor="c1", records=[])
            assert await self._both_or_neither(store, session, "1") == set()

    async def test_a_commit_that_fails_takes_back_no_effects(self) -> None:
        """The store must keep a handler's writes if a later commit fails, and record nothing of that commit."""
        async with self._transactional() as (store, session):
            await self._handle(store, session, "1")
            with self.failing(store), pytest.raises(StoreError):
                await session.commit(cursor="c1", records=[Record("1"), Record("3")], state={"a": "b"})
            assert session.cursor is None
            await self._handle(store, session, "2")
            await session.commit(cursor="c2", records=[Record("1"), Record("2")])
            assert await self._both_or_neither(store, session, "1", "2", "3") == {"1", "2"}

    async def test_a_handler_that_wrote_nothing_is_recorded_by_the_commit(self) -> None:
        """The store must record a handler without writes in the next commit at the latest."""
        async with self._transactional() as (_, session):
            async with session.transaction([Record("1")]):
                pass
            await session.commit(cursor="c1", records=[Record("1")])
            assert await self._seen(session, ["1", "2"]) == {"1"}

    async def test_an_owner_that_was_replaced_has_no_effects(self) -> None:
        """The store must check the fencing token in the handler's transaction (G10)."""
        async with self._transactional() as (store, session):
            await self.steal(store, "a")
            with pytest.raises(OwnershipLost):
                await self._handle_and_commit(store, session, "1")
            assert await self._both_or_neither(store, session, "1") == set()

    async def test_a_lease_that_ends_during_a_handler_takes_back_its_effects(self) -> None:
        """The store must not commit a handler's writes after the end of the lease (G10)."""
        leases = lease_hooks(self)
        async with self._transactional() as (store, session):
            with pytest.raises(OwnershipLost):
                await self._handle_until_the_lease_ends(leases, store, session, "1")
            assert await self._both_or_neither(store, session, "1") == set()

    async def _handle_until_the_lease_ends(
        self, leases: LeasedStoreSuite, store: Store, session: Any, text: str
    ) -> None:
        async with session.transaction([Record(text)]):
            await self.write(store, text)
            await leases.expire(store, "a")

    @pytest.mark.parametrize("outcome", ["lost", "landed", "late"])
    async def test_effects_in_doubt_are_committed_with_their_records_or_not_at_all(self, outcome: Outcome) -> None:
        """The store must decide a handler's commit in doubt by `again()`, for effects and records together."""
        leases = lease_hooks(self)
        async with self._transactional() as (store, session):
            async with leases.in_doubt(store, outcome):
                with pytest.raises(CommitInDoubt):
                    await self._handle(store, session, "1")
                new = await session.again()
                seen = await self._seen(new, ["1"])
            assert seen == ({"1"} if outcome == "landed" else set())
            assert await self._both_or_neither(store, new, "1") == seen

    async def test_a_released_session_has_no_effects(self) -> None:
        """The store must reject writes of a released session, also while another name has an owner."""
        async with self._transactional() as (store, session):
            async with self._claimed(store, "b"):
                await session.release()
                with pytest.raises(StoreError):
                    await self._handle(store, session, "1")
            assert await self._both_or_neither(store, session, "1") == set()

    async def test_a_reset_loses_no_effects(self) -> None:
        """The store must keep a handler's writes and their records together on reset."""
        async with self._transactional() as (store, session):
            await self._handle(store, session, "1")
            await session.reset("c1", forget=False)
            assert session.cursor == "c1"
            assert await self._both_or_neither(store, session, "1", "2") == {"1"}

    async def test_the_session_reads_while_its_effects_are_not_committed(self) -> None:
        """The store must allow reads of the session, for example for the next page, between handlers."""
        async with self._transactional() as (store, session):
            await session.commit(cursor=None, records=[Record("1"), Record("9")])
            await self._handle(store, session, "2")
            assert await session.unseen(["1", "5", "9"]) == {"5"}
            assert await session.dead_letters() == []
            await session.commit(cursor=None, records=[Record("2")])

    async def test_the_connection_is_for_handlers_alone(self) -> None:
        """The store must reject the connection outside a handler, with an error that names the alternative."""
        async with self._transactional() as (store, session):
            for _ in range(2):
                await self._check_no_connection(store)
                await self._handle(store, session, "1")
            async with anyio.create_task_group() as tasks:
                begun = anyio.Event()
                tasks.start_soon(self._call_after, begun, partial(self._check_no_connection, store))
                await anyio.wait_all_tasks_blocked()
                async with session.transaction([]):
                    begun.set()
                    await anyio.wait_all_tasks_blocked()

    async def _check_no_connection(self, store: Any) -> None:
        with pytest.raises(RuntimeError, match="while a message is processed"):
            store.connection  # noqa: B018 - a property

    async def test_a_handler_has_the_connection_in_its_threads_and_tasks(self) -> None:
        """The store must allow the connection in threads and tasks of the handler."""
        async with self._transactional() as (store, session):
            async with session.transaction([Record("1")]):
                assert await to_thread.run_sync(lambda: store.connection is not None)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self.write, store, "1")
            await session.commit(cursor=None, records=[Record("1")])
            assert await self.written(store) == ["1"]

    async def test_sessions_of_a_store_do_not_mix(self) -> None:
        """The store must commit each session's writes with its own records."""
        async with self._transactional() as (store, session), self._claimed(store, "b") as other:
            async with anyio.create_task_group() as tasks:
                for one, name in ((session, "a"), (other, "b")):
                    tasks.start_soon(self._handle_many, store, one, name)
            for one, name in ((session, "a"), (other, "b")):
                keys = [f"{name}{number}" for number in range(10)]
                assert await self._seen(one, keys) == set(keys[1:])
            written = await self.written(store)
            assert sorted(written) == sorted(f"{name}{number}" for name in "ab" for number in range(1, 10))

    async def _again(self, handle: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Call a handler again if its transaction could not begin, as a consumer does."""
        while True:
            with suppress(TransactionConflict):
                return await handle(*args)

    async def _handle_many(self, store: Any, session: Any, name: str) -> None:
        with pytest.raises(_HandlerFailed):
            await self._again(partial(self._handle, fails=True), store, session, f"{name}0")
        for number in range(1, 10):
            await self._again(self._handle, store, session, f"{name}{number}")
            await anyio.lowlevel.checkpoint()
            if not number % 3:
                records = [Record(f"{name}{done}") for done in range(number - 2, number + 1)]
                await session.commit(cursor=str(number), records=records)

    async def test_a_handler_cannot_wait_for_what_waits_for_it(self) -> None:
        """The store must raise an error at once instead of a deadlock between a handler and its store."""
        async with self._transactional() as (store, session), self._claimed(store, "b") as other:
            if store.concurrent_transactions:
                pytest.skip("transactions of the store do not wait for each other")
            async with session.transaction([Record("1")]):
                await self.write(store, "1")
                for wait in (
                    partial(other.commit, cursor="c1", records=[]),
                    partial(other.reset, "c1", forget=False),
                    partial(other.dead_letters),
                    partial(self._handle, store, other, "2"),
                    partial(self._handle, store, session, "2"),
                    partial(session.commit, cursor="c1", records=[]),
                    partial(session.reset, "c1", forget=False),
                    partial(store.claim, "c", feed="f"),
                ):
                    with pytest.raises(RuntimeError, match="cannot wait"):
                        await wait()
            await session.commit(cursor=None, records=[Record("1")])
            assert await self.written(store) == ["1"]
