"""Conformance suite for stores that several machines share: leases, fencing, doubts, forwarded wakes (G1, G10)."""
# ruff: noqa: S101 - a suite asserts; pytest explains asserts of the module that a test class comes from

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import anyio
import pytest
from anyio import to_thread

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._exceptions import (
    CommitInDoubt,
    OwnershipLost,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from push_to_poll_client._protocols import LeasedSession, Session, Store, is_leased
from push_to_poll_client._types import Push, Record
from push_to_poll_client.testing._store_suite import (
    FEED,
    GUARD,
    READS,
    WRITES,
    StoreSuite,
    cancel_after,
    claim_often,
)
from push_to_poll_client.testing._virtual_time import Bell

Outcome = Literal["lost", "landed", "late"]

_CALLS = {**WRITES, **READS}

_SKEW = 86_400.0
"""Seconds that a host's clock is wrong. The test accepts an error of an hour, so that no slow machine fails it."""

_AFTER: dict[str, dict[str, object]] = {
    "commit": {"cursor": "c2", "unseen": set[str](), "state": {"s": "2"}, "dead letters": ["2"]},
    "commit without a cursor": {"cursor": "c1", "unseen": {"3"}, "state": {"s": "2"}, "dead letters": ["4"]},
    "reset": {"cursor": None, "unseen": {*"1234"}, "state": {"s": "2"}, "dead letters": ["4"]},
}
"""State after each write of `WRITES`, as `_outline` shows it."""

_BEFORE: dict[str, object] = {"cursor": "c1", "unseen": {*"23"}, "state": {"s": "1"}, "dead letters": ["4"]}


class Calls:
    """Calls that a store makes, from any thread."""

    def __init__(self) -> None:
        self.arguments: list[Any] = []
        self._loop = EventLoop()
        self._bell = Bell()

    def __call__(self, *arguments: Any) -> None:
        self._loop.call(partial(self._add, *arguments))

    def _add(self, *arguments: Any) -> None:
        self.arguments.append(arguments[0] if arguments else None)
        self._bell.ring()

    async def wait(self, count: int = 1) -> None:
        """Wait until the store has made this number of calls."""
        with anyio.fail_after(GUARD):
            while len(self.arguments) < count:
                await self._bell.wait()


class LeasedStoreSuite(StoreSuite):
    """The `StoreSuite` with more tests for stores that several machines share.

    Their sessions are `LeasedSession`s. Also write `second` and `expire`; the other methods are optional. If the
    store is transactional too, derive from both suites.

        class TestMyStore(LeasedStoreSuite, TransactionalStoreSuite):
            async def make_store(self):
                return MyStore(...)

            async def second(self, store):
                return MyStore(...)
    """

    async def second(self, store: Store) -> Store:  # noqa: ARG002 - for overrides
        """Open the data of `store` as another replica does. `close` closes it after the test."""
        pytest.skip("the store's suite does not override second()")

    async def expire(self, store: Store, name: str) -> None:  # noqa: ARG002 - for overrides
        """Let the lease of a name run out, as if the process with `store` had been stopped past its end.

        Afterwards the owner's session is `lost`, and other replicas can claim the name.
        """
        pytest.skip("the store's suite does not override expire()")

    async def want(self, store: Store, name: str) -> None:  # noqa: ARG002 - for overrides
        """Ask the owner of a name to hand it over, so that its session is `wanted`."""
        pytest.skip("the store's suite does not override want()")

    def in_doubt(self, store: Store, outcome: Outcome) -> AbstractAsyncContextManager[object]:  # noqa: ARG002 - for overrides
        """Let the next commit of `store` raise `CommitInDoubt`.

        Args:
            store: The store.
            outcome: "lost": the commit never reaches the server. "landed": the commit takes effect. "late": the
                commit reaches the server only when the block ends; the block ends after the server has answered.
        """
        pytest.skip("the store's suite does not override in_doubt()")

    def unreachable(self, store: Store) -> AbstractAsyncContextManager[object]:  # noqa: ARG002 - for overrides
        """Let `store` not reach its data within the block. Other store objects still do."""
        pytest.skip("the store's suite does not override unreachable()")

    async def store_time(self, store: Store) -> float:  # noqa: ARG002 - for overrides
        """Read the store's own clock, such as the server's, in seconds since the epoch."""
        pytest.skip("the store's suite does not override store_time()")

    async def steal(self, store: Store, name: str) -> None:
        """Claim the name for a new owner after its lease ran out. The default uses `expire` and `second`."""
        await self.expire(store, name)
        async with self._replica(store) as other:
            await (await other.claim(name, feed=FEED)).release()

    @asynccontextmanager
    async def _replica(self, store: Store) -> AsyncIterator[Any]:
        other = await self.second(store)
        try:
            yield other
        finally:
            await self.close(other)

    @asynccontextmanager
    async def _leased(self) -> AsyncIterator[tuple[Any, LeasedSession]]:
        """Yield a store and a session with the progress of `_BEFORE`."""
        async with self._store() as store, self._claimed_with_progress(store) as (session, _):
            if not is_leased(session):
                pytest.skip("the sessions of the store have no lease: derive the test class from StoreSuite")
            yield store, session

    async def _outline(self, session: Session) -> dict[str, object]:
        shown = await self._shown(session, *"1234")
        letters: Any = shown["dead letters"]
        return {**{name: shown[name] for name in _BEFORE}, "dead letters": [one.dedupe_key for one in letters]}

    async def _next_owner(self, store: Store) -> dict[str, object]:
        """Return what the next owner sees."""
        async with self._claimed(await self.reopen(store)) as session:
            return await self._outline(session)

    # Ownership

    async def test_a_session_begins_with_a_lease(self) -> None:
        """The store must return a session that is neither lost nor wanted, and tell others how long it lasts."""
        async with self._leased() as (store, session):
            assert (session.lost, session.wanted) == (False, False)
            with pytest.raises(StoreBusy) as busy:
                await store.claim("a", feed=FEED)
            assert busy.value.seconds_left is not None
            assert busy.value.seconds_left > 0
            assert busy.value.owner is None or isinstance(busy.value.owner, str)

    async def test_a_session_can_be_read_from_any_thread(self) -> None:
        """The store must allow `lost`, `wanted` and `time()` in worker threads, where handlers run."""
        async with self._leased() as (_, session):
            read = await to_thread.run_sync(lambda: (session.lost, session.wanted, session.time()))
            assert read[:2] == (False, False)
            assert isinstance(read[2], float)

    async def test_many_replicas_that_claim_at_once_have_one_winner(self) -> None:
        """The store must give a name to one of many replicas, also at its first claim, with a new token."""
        async with self._leased() as (store, _), self._replica(store) as second, self._replica(store) as third:
            for name in ("new", "other"):
                await claim_often([store, second, third], name)

    async def test_a_name_with_an_owner_is_busy_for_another_replica(self) -> None:
        """The store must reject a claim by another replica, and keep the owner's session."""
        async with self._leased() as (store, session), self._replica(store) as other:
            with pytest.raises(StoreBusy):
                await other.claim("a", feed=FEED)
            await session.commit(cursor="c2", records=[])
            assert not session.lost

    async def test_a_released_name_is_free_at_once(self) -> None:
        """The store must accept a claim by another replica right after a release, with the saved progress."""
        async with self._leased() as (store, session), self._replica(store) as other:
            await session.release()
            async with self._claimed(other) as new:
                assert new.fencing_token > session.fencing_token
                assert await self._outline(new) == _BEFORE

    async def _stand_by(self, store: Any) -> Any:
        """Claim the name as a consumer does that stands by."""
        if not hasattr(store, "freed"):
            pytest.skip("the store has no freed(), so replicas that stand by claim each second")
        with anyio.fail_after(GUARD):
            while True:
                try:
                    return await store.claim("a", feed=FEED)
                except StoreBusy:
                    await store.freed("a")

    @pytest.mark.parametrize("how", ["release", "expire"])
    async def test_a_replica_that_stands_by_hears_that_the_name_is_free(self, how: str) -> None:
        """The store must return from `freed()` after the owner's release, and after the end of its lease."""
        async with self._leased() as (store, session), self._replica(store) as other:
            claimed: list[Session] = []

            async def stand_by() -> None:
                claimed.append(await self._stand_by(other))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stand_by)
                await anyio.wait_all_tasks_blocked()
                assert not claimed
                await (session.release() if how == "release" else self.expire(store, "a"))
            await claimed[0].release()

    async def test_a_name_that_was_released_before_the_wait_is_free(self) -> None:
        """The store must return from `freed()` if the release came between the claim and the call."""
        async with self._leased() as (store, session), self._replica(store) as other:
            with pytest.raises(StoreBusy):
                await other.claim("a", feed=FEED)
            await session.release()
            if hasattr(other, "freed"):
                with anyio.fail_after(GUARD):
                    await other.freed("a")
            await (await self._stand_by(other)).release()

    async def test_an_owner_is_told_that_it_is_wanted(self) -> None:
        """The store must call `changed` for a wanted name, and keep the session until it is released."""
        async with self._leased() as (store, session), self._replica(store) as other:
            changed = Calls()
            session.subscribe(changed=changed, wake=Calls())
            await self.want(other, "a")
            await changed.wait()
            assert (session.wanted, session.lost) == (True, False)
            await session.commit(cursor="c2", records=[])
            await session.release()
            async with self._claimed(other) as new:
                assert (new.cursor, getattr(new, "wanted", None)) == ("c2", False)

    # The end of a lease

    async def test_a_name_is_free_after_its_lease_ran_out(self) -> None:
        """The store must give the name to another replica after the lease, with a larger token."""
        async with self._leased() as (store, session), self._replica(store) as other:
            await self.expire(store, "a")
            assert session.lost
            async with self._claimed(other) as new:
                assert new.fencing_token > session.fencing_token
                assert await self._outline(new) == _BEFORE
                assert session.lost
                with pytest.raises(StoreBusy):
                    await store.claim("a", feed=FEED)

    @pytest.mark.parametrize("call", _CALLS)
    async def test_a_lost_session_reads_and_writes_nothing(self, call: str) -> None:
        """The store must raise `OwnershipLost` after the lease, before and after another replica claims."""
        async with self._leased() as (store, session), self._replica(store) as other:
            await self.expire(store, "a")
            with pytest.raises(OwnershipLost):
                await _CALLS[call](session)
            async with self._claimed(other) as new:
                with pytest.raises(OwnershipLost):
                    await _CALLS[call](session)
                assert await self._outline(new) == _BEFORE
            with pytest.raises(OwnershipLost):
                await _CALLS[call](session)
        assert session.cursor == "c1"

    async def test_a_lost_session_takes_nothing_from_the_next_owner(self) -> None:
        """The store must ignore the release of a lost session, and reject its `again()`."""
        async with self._leased() as (store, session), self._replica(store) as other:
            await self.expire(store, "a")
            async with self._claimed(other) as new:
                with pytest.raises(OwnershipLost):
                    await session.again()
                await session.release()
                with pytest.raises(StoreBusy):
                    await store.claim("a", feed=FEED)
                await new.commit(cursor="c2", records=[])

    async def test_a_replica_can_claim_a_name_that_it_has_lost(self) -> None:
        """The store must give a lost name to the same store object again, in a new session."""
        async with self._leased() as (store, session):
            await self.expire(store, "a")
            async with self._claimed(store) as new:
                assert new.fencing_token > session.fencing_token
                await session.release()
                with pytest.raises(OwnershipLost):
                    await session.commit(cursor="old", records=[])
                await new.commit(cursor="c2", records=[])
                assert (new.cursor, getattr(new, "lost", None)) == ("c2", False)

    # A store that cannot be reached

    @pytest.mark.parametrize("write", WRITES)
    async def test_a_write_to_an_unreachable_store_can_be_repeated(self, write: str) -> None:
        """The store must raise `StoreUnavailable` if nothing was sent, and write nothing."""
        async with self._leased() as (store, session):
            async with self.unreachable(store):
                with pytest.raises(StoreUnavailable) as raised:
                    await WRITES[write](session)
            owner = await session.again() if isinstance(raised.value, CommitInDoubt) else session
            assert await self._outline(owner) == _BEFORE
            await WRITES[write](owner)
            assert await self._outline(owner) == _AFTER[write]
            await owner.release()
            assert await self._next_owner(store) == _AFTER[write]

    async def test_an_unreachable_store_raises_and_blocks_nothing_else(self) -> None:
        """The store must raise `StoreUnavailable` for a claim; `forward` and `release` must not raise."""
        async with self._leased() as (store, session):
            async with self.unreachable(store):
                with pytest.raises(StoreUnavailable):
                    await store.claim("b", feed=FEED)
                if hasattr(store, "forward"):
                    store.forward("a", Push())
                await session.release()
            async with self._claimed(store, "b"):
                pass

    async def test_a_lease_ends_while_the_store_is_unreachable(self) -> None:
        """The store must know from its own clock that a session is lost, and reject its calls."""
        async with self._leased() as (store, session), self.unreachable(store):
            await self.expire(store, "a")
            assert session.lost
            for call in _CALLS.values():
                with pytest.raises(OwnershipLost):
                    await call(session)

    # A commit in doubt

    @asynccontextmanager
    async def _doubtful(self, outcome: Outcome, write: str) -> AsyncIterator[tuple[Any, LeasedSession]]:
        """Yield a store and its session after a write in doubt; on leaving, a late write reaches the server."""
        async with self._leased() as (store, session), self.in_doubt(store, outcome):
            with pytest.raises(CommitInDoubt):
                await WRITES[write](session)
            yield store, session

    @pytest.mark.parametrize("write", WRITES)
    @pytest.mark.parametrize("outcome", ["lost", "landed", "late"])
    async def test_a_commit_in_doubt_is_decided_by_claiming_again(self, outcome: Outcome, write: str) -> None:
        """The store must show in the session of `again()` whether the commit took effect, and refuse it later."""
        expected = _AFTER[write] if outcome == "landed" else _BEFORE
        async with self._leased() as (store, session):
            async with self.in_doubt(store, outcome):
                with pytest.raises(CommitInDoubt):
                    await WRITES[write](session)
                new = await session.again()
                assert new.fencing_token > session.fencing_token
                assert await self._outline(new) == expected
            assert await self._outline(new) == expected
            await new.commit(cursor=None, records=[], state={"s": "3"})
            await new.release()
            assert await self._next_owner(store) == {**expected, "state": {"s": "3"}}

    async def test_a_session_in_doubt_is_lost(self) -> None:
        """The store must reject all calls except `again()` and `release()` after a commit in doubt."""
        async with self._doubtful("lost", "commit") as (_, session):
            assert session.lost
            for call in _CALLS.values():
                with pytest.raises(StoreError):
                    await call(session)
            new = await session.again()
            assert await self._outline(new) == _BEFORE
            await new.release()

    @pytest.mark.parametrize("outcome", ["lost", "landed", "late"])
    async def test_a_session_in_doubt_can_be_released(self, outcome: Outcome) -> None:
        """The store must free a name after a commit in doubt, and refuse the commit after the next claim."""
        async with self._leased() as (store, session):
            async with self.in_doubt(store, outcome), self._replica(store) as other:
                with pytest.raises(CommitInDoubt):
                    await WRITES["commit"](session)
                await session.release()
                async with self._claimed(other) as new:
                    seen = await self._outline(new)
                    await new.commit(cursor="c3", records=[])
            assert seen == (_AFTER["commit"] if outcome == "landed" else _BEFORE)
            assert await self._next_owner(store) == {**seen, "cursor": "c3"}

    async def test_a_session_that_claimed_again_has_ended(self) -> None:
        """The store must refuse a second `again()` and ignore a release of the old session."""
        async with self._doubtful("lost", "commit") as (store, session):
            new = await session.again()
            with pytest.raises(OwnershipLost):
                await session.again()
            await session.release()
            with pytest.raises(StoreBusy):
                await store.claim("a", feed=FEED)
            await new.commit(cursor="c3", records=[])
            await new.release()

    @pytest.mark.parametrize("outcome", ["lost", "landed", "late"])
    async def test_a_name_in_doubt_may_go_to_another_replica(self, outcome: Outcome) -> None:
        """The store must refuse `again()` after another replica has claimed the name, and the commit too."""
        async with self._leased() as (store, session), self._replica(store) as other:
            async with self.in_doubt(store, outcome):
                with pytest.raises(CommitInDoubt):
                    await WRITES["commit"](session)
                await self.expire(store, "a")
                new = await other.claim("a", feed=FEED)
                with pytest.raises(OwnershipLost):
                    await session.again()
            assert await self._outline(new) == (_AFTER["commit"] if outcome == "landed" else _BEFORE)
            await new.commit(cursor="c3", records=[])
            await new.release()

    async def test_claiming_again_can_be_tried_again(self) -> None:
        """The store must raise `StoreUnavailable` from `again()` while unreachable, and accept a later call."""
        async with self._doubtful("landed", "commit") as (store, session):
            async with self.unreachable(store):
                with pytest.raises(StoreUnavailable):
                    await session.again()
            new = await session.again()
            assert await self._outline(new) == _AFTER["commit"]
            await new.release()

    async def test_a_cancelled_again_leaves_the_name_free(self) -> None:
        """The store must free the name if `again()` is cancelled and the old session is released."""
        for steps in range(8):
            async with self._doubtful("lost", "commit") as (store, session):
                await cancel_after(steps, session.again)
                await session.release()
                async with self._claimed(store) as new:
                    assert await self._outline(new) == _BEFORE

    # Wakes

    async def _forward(self, store: Any, push: Push | None, wakes: Calls) -> Push | None:
        """Forward a wake from a worker thread; return the wake that arrives."""
        if not hasattr(store, "forward"):
            pytest.skip("the store has no forward(), so wakes reach only the replica that they arrive at")
        before = len(wakes.arguments)
        await to_thread.run_sync(store.forward, "a", push)
        await wakes.wait(before + 1)
        last: Push | None = wakes.arguments[-1]
        return last

    @pytest.mark.parametrize("cursor", [None, "c2", "\0\ud83d", "x" * 10_240], ids=["none", "c2", "odd", "long"])
    async def test_a_wake_at_another_replica_reaches_the_owner(self, cursor: str | None) -> None:
        """The store must forward each wake; it may drop a hint, but must not change it."""
        async with self._leased() as (store, session), self._replica(store) as other:
            wakes = Calls()
            session.subscribe(changed=Calls(), wake=wakes)
            for replica in (other, store, other):
                for push in (None, Push(), Push(cursor=cursor, topics=("a", "b"), count=2)):
                    arrived = await self._forward(replica, push, wakes)
                    assert arrived in {None, Push(), push, Push(cursor=cursor)}

    async def test_a_wake_reaches_only_the_owner_of_its_name(self) -> None:
        """The store must not pass a wake to other names, nor to a session that was released."""
        async with self._leased() as (store, session), self._replica(store) as other:
            old, new, of_b = Calls(), Calls(), Calls()
            session.subscribe(changed=Calls(), wake=old)
            await session.release()
            async with self._claimed(store) as owner, self._claimed(other, "b") as another:
                assert is_leased(owner)
                assert is_leased(another)
                owner.subscribe(changed=Calls(), wake=new)
                another.subscribe(changed=Calls(), wake=of_b)
                await self._forward(other, Push(cursor="of a"), new)
            assert Push(cursor="of a") not in old.arguments  # it may have got one when the store connected
            assert Push(cursor="of a") not in of_b.arguments

    async def test_a_wake_reaches_the_session_that_claimed_again(self) -> None:
        """The store must forward wakes to the session of `again()`."""
        async with self._doubtful("lost", "commit") as (store, session), self._replica(store) as other:
            wakes = Calls()
            session.subscribe(changed=Calls(), wake=Calls())
            new = await session.again()
            new.subscribe(changed=Calls(), wake=wakes)
            await self._forward(other, Push(), wakes)
            await new.release()

    async def test_a_wake_without_an_owner_is_no_error(self) -> None:
        """The store must ignore a wake for a name without an owner: each claim starts with a poll."""
        async with self._leased() as (store, _):
            if hasattr(store, "forward"):
                store.forward("b", Push())
                store.forward("b", None)
            async with self._claimed(store, "b"):
                pass

    # Clocks

    @contextmanager
    def _skewed(self, seconds: float) -> Iterator[None]:
        """Let the clock of this host be wrong."""
        clock = time.time
        with patch("time.time", lambda: clock() + seconds):
            yield

    @pytest.mark.parametrize("seconds", [-_SKEW, _SKEW])
    async def test_the_time_of_a_session_is_the_time_of_its_store(self, seconds: float) -> None:
        """The store must use its own clock for `time()` and history, not the clock of the host."""
        async with self._leased() as (store, session):
            await session.release()
            with self._skewed(seconds):
                async with self._claimed(store) as new:
                    assert is_leased(new)
                    await new.commit(cursor="c2", records=[])
                    shown = (new.time(), new.history[-1].read_at)
            now = await self.store_time(store)
            assert [abs(at - now) < _SKEW / 24 for at in shown] == [True, True]

    @pytest.mark.parametrize("seconds", [-_SKEW, _SKEW])
    async def test_a_host_with_a_wrong_clock_takes_no_name_and_loses_none(self, seconds: float) -> None:
        """The store must not compare leases with the clock of a host."""
        async with self._leased() as (store, session), self._replica(store) as other:
            with self._skewed(seconds):
                assert not session.lost
                with pytest.raises(StoreBusy):
                    await other.claim("a", feed=FEED)
                await session.commit(cursor="c2", records=[Record("2")])
            assert not session.lost


def lease_hooks(suite: StoreSuite) -> LeasedStoreSuite:
    """Return the suite with the methods of `LeasedStoreSuite`, or skip the test."""
    if not isinstance(suite, LeasedStoreSuite):
        pytest.skip("the test class is not derived from LeasedStoreSuite")
    return suite
