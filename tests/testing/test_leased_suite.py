"""The suite of stores with leases rejects misbehaving stores: the test named beside a lie must catch it."""

import time

import anyio
import pytest

from push_to_poll_client import CommitInDoubt, Push, StoreBusy, StoreError
from push_to_poll_client._event_loop import sole_cause
from push_to_poll_client.testing import LeasedStoreSuite
from tests.support.shared_memory import (
    LEASE,
    LeasedMemorySession,
    LeasedMemoryStore,
    SharedMemory,
    TransactionalMemorySession,
)
from tests.testing.test_leased_store import TestLeasedMemoryStore as Honest

pytestmark = pytest.mark.anyio


class Lying(SharedMemory):
    """Shared memory whose stores and sessions have other methods."""

    def __init__(self, stores, sessions):
        super().__init__(transactional=True)
        self.opened = []
        self.store_class = type("Store", (LeasedMemoryStore,), stores)
        self.session_class = type("Session", (TransactionalMemorySession,), sessions)

    def replica(self, instance="replica"):
        store = self.store_class(self, instance)
        enter = store.enter

        def enter_changed(name, owner):
            session = enter(name, owner)
            session.__class__ = self.session_class
            self.opened.append(session)
            return session

        store.enter = enter_changed
        return store


def stores(**methods):
    return lambda: Lying(methods, {})


def sessions(**methods):
    return lambda: Lying({}, methods)


# Claims of a store


async def claim_without_telling(self, name, *, feed):
    try:
        return await LeasedMemoryStore.claim(self, name, feed=feed)
    except StoreBusy as busy:
        raise StoreBusy(str(busy)) from None


async def look_before_the_claim(self, name, *, feed):
    if self.shared.owner_of(name) is not None or name not in self.shared.leases:
        return await LeasedMemoryStore.claim(self, name, feed=feed)
    await anyio.lowlevel.checkpoint()
    return self.enter(name, self.shared.next_owner())


async def lock_in_this_process_only(self, name, *, feed):
    owner = self.shared.owner_of(name)
    if owner is not None and owner.store is not self:
        self.shared.leases[name].session = None
    return await LeasedMemoryStore.claim(self, name, feed=feed)


async def claim_without_a_new_token(self, name, *, feed):
    session = await LeasedMemoryStore.claim(self, name, feed=feed)
    session.fencing_token = 1
    return session


async def refuse_a_name_that_was_lost(self, name, *, feed):
    if any(session.name == name and session.ends < float("inf") for session in self.sessions):
        raise StoreBusy("this store has the name")
    return await LeasedMemoryStore.claim(self, name, feed=feed)


async def wait_for_a_release(self, name, *, feed):
    lease = self.shared.leases.get(name)
    if lease is not None and lease.session is not None:
        raise StoreBusy("never released", seconds_left=1.0)
    return await LeasedMemoryStore.claim(self, name, feed=feed)


async def claim_wanted(self, name, *, feed):
    lease = self.shared.leases.get(name)
    was_wanted = lease is not None and lease.wanted
    session = await LeasedMemoryStore.claim(self, name, feed=feed)
    session._lease.wanted = was_wanted
    return session


async def begin_wanted(self, name, *, feed):
    session = await LeasedMemoryStore.claim(self, name, feed=feed)
    session._lease.wanted = True
    return session


async def fail_for_good(self, name, *, feed):
    if self.unreachable:
        raise StoreError("no route to host")
    return await LeasedMemoryStore.claim(self, name, feed=feed)


async def compare_with_the_clock_of_the_host(self, name, *, feed):
    claimed = self.shared.__dict__.setdefault("claimed", {})
    if time.time() > claimed.get(name, time.time()) + LEASE:
        self.shared.leases[name].session = None
    session = await LeasedMemoryStore.claim(self, name, feed=feed)
    claimed[name] = time.time()
    return session


# Free names and wakes


async def hear_nothing(self, name):
    await anyio.sleep_forever()


async def hear_releases_only(self, name):
    while self.shared.leases[name].session is not None:
        await self.shared.bell.wait()


async def wait_before_looking(self, name):
    await self.shared.bell.wait()


def forward_once(self, name, push):
    if not self.shared.wakes:
        LeasedMemoryStore.forward(self, name, push)


def forward_hints_only(self, name, push):
    if push is not None:
        LeasedMemoryStore.forward(self, name, push)


def forward_another_hint(self, name, push):
    if push and push.cursor:
        push = Push(cursor=push.cursor.encode("ascii", "replace").decode()[:1000])
    LeasedMemoryStore.forward(self, name, push)


def forward_to_others_only(self, name, push):
    if (owner := self.shared.owner_of(name)) and owner.store is not self:
        LeasedMemoryStore.forward(self, name, push)


def forward_in_the_event_loop_only(self, name, push):
    anyio.current_time()
    LeasedMemoryStore.forward(self, name, push)


def forward_to_all(self, name, push):
    for lease in self.shared.leases.values():
        lease.session.wake(push)


def forward_to_the_first(self, name, push):
    first = next(session for session in self.shared.opened if session.name == name)
    for session in (first, self.shared.owner_of(name)):
        if session._wake is not None:
            session._wake(push)


def forward_to_the_first_only(self, name, push):
    if (wake := self.shared.first.get(name)) is not None:
        wake(push)


def forward_or_raise(self, name, push):
    self.shared.leases[name].session.wake(push)


def forward_if_reachable(self, name, push):
    self.check()
    LeasedMemoryStore.forward(self, name, push)


# Methods of sessions


def needs_the_event_loop(self):
    return self.ends <= anyio.current_time()


async def leave_the_lease(self):
    self.is_renewed, self.ends = False, self._shared.now() + LEASE
    self._shared.ring()


async def free_anyway(self):
    self._lease.session = None


async def release_or_raise(self):
    self.store.check()
    await LeasedMemorySession.release(self)


async def release_unless_in_doubt(self):
    if not self._is_over:
        await LeasedMemorySession.release(self)


def say_nothing(self):
    pass


def end_when_wanted(self):
    self._is_over = True
    LeasedMemorySession.note_change(self)


def check_nothing(self):
    pass


def check_the_claim_only(self):
    if self._lease.session is not self:
        raise self._ownership_lost()


def check_the_end_only(self):
    if self.ends <= self._shared.now() and self._lease.session is None:
        raise self._ownership_lost()


def apply_without_a_fence(self, *given):
    self.fence = (self._lease.token, self._lease.owner, self._lease.commits)
    LeasedMemorySession._apply(self, *given)


def check_the_store_only(self):
    owner = self._lease.session
    if owner is None or owner.store is not self.store:
        raise self._ownership_lost()


async def again_at_any_time(self):
    self._is_over = True
    self.store.check()
    return self.store.enter(self.name, self._lease.owner or 0)


async def again_after_all(self):
    self.ends = self._lease.session.ends = float("inf")
    self._lease.session = self
    return await LeasedMemorySession.again(self)


async def again_from_memory(self):
    before = self._progress
    session = await LeasedMemorySession.again(self)
    session._progress = before
    return session


async def again_with_the_same_token(self):
    session = await LeasedMemorySession.again(self)
    self.fence = session.fence
    return session


async def again_once(self):
    try:
        return await LeasedMemorySession.again(self)
    except StoreError:
        self.ends = 0.0
        raise


async def again_or_fail_for_good(self):
    if self.store.unreachable:
        raise StoreError("no route to host")
    return await LeasedMemorySession.again(self)


async def again_until_cancelled(self):
    session = await LeasedMemorySession.again(self)
    await anyio.lowlevel.checkpoint()
    return session


async def commit_without_a_server(self, *given):
    was, self.store._is_unreachable = self.store._is_unreachable, False
    try:
        await LeasedMemorySession._write(self, *given)
    finally:
        self.store._is_unreachable = was
    self.store.check()


async def continue_in_doubt(self, *given):
    try:
        await LeasedMemorySession._write(self, *given)
    except CommitInDoubt:
        self._is_over = False
        raise


async def raise_nothing_in_doubt(self, *given):
    try:
        await LeasedMemorySession._write(self, *given)
    except CommitInDoubt as doubt:
        self._is_over = False
        raise StoreError(str(doubt)) from None


def lost_as_the_server_says(self):
    return False if self.store.unreachable else LeasedMemorySession.lost.fget(self)


def lost_by_the_clock_of_the_host(self):
    began = self.__dict__.setdefault("began", time.time())
    return abs(time.time() - began) > LEASE or LeasedMemorySession.lost.fget(self)


def time_of_the_host(self):
    return time.time()


async def history_of_the_host(self, *, read_at=None, **given):
    await LeasedMemorySession.commit(self, read_at=time.time() if read_at is None else read_at, **given)


def subscribe_the_first(self, *, changed, wake):
    self._shared.__dict__.setdefault("first", {}).setdefault(self.name, wake)
    LeasedMemorySession.subscribe(self, changed=changed, wake=wake)


async def records_without_effects(self, cursor, records, change, effects=()):
    await LeasedMemorySession._write(self, cursor, records, change)


async def effects_without_records(self, cursor, records, change, effects=()):
    self._shared.effects.extend(effects)
    await LeasedMemorySession._write(self, cursor, records, change)


def first_wakes():
    return Lying({"forward": forward_to_the_first_only}, {"subscribe": subscribe_the_first})


def wakes_after_release():
    async def release(self):
        wake = self._wake
        await LeasedMemorySession.release(self)
        self._wake = wake

    return Lying({"forward": forward_to_the_first}, {"release": release})


def unfenced():
    return Lying({}, {"_check": check_nothing, "_apply": apply_without_a_fence})


BEGINS = "test_a_session_begins_with_a_lease"
WAKE = "test_a_wake_at_another_replica_reaches_the_owner"
ONLY = "test_a_wake_reaches_only_the_owner_of_its_name"
LOST = "test_a_lost_session_reads_and_writes_nothing"
DECIDED = "test_a_commit_in_doubt_is_decided_by_claiming_again"
NOTHING_ELSE = "test_an_unreachable_store_raises_and_blocks_nothing_else"
EFFECTS = "test_effects_in_doubt_are_committed_with_their_records_or_not_at_all"

WRITES = ["commit", "commit without a cursor", "reset"]
CALLS = [*WRITES, "unseen", "fingerprints", "dead_letters", "dead_letter"]
OUTCOMES = ["lost", "landed", "late"]

LIES = [
    (stores(claim=claim_without_telling), BEGINS),
    (stores(claim=begin_wanted), BEGINS),
    (sessions(lost=property(needs_the_event_loop)), "test_a_session_can_be_read_from_any_thread"),
    (stores(claim=look_before_the_claim), "test_many_replicas_that_claim_at_once_have_one_winner"),
    (stores(claim=claim_without_a_new_token), "test_many_replicas_that_claim_at_once_have_one_winner"),
    (stores(claim=lock_in_this_process_only), "test_a_name_with_an_owner_is_busy_for_another_replica"),
    (sessions(release=leave_the_lease), "test_a_released_name_is_free_at_once"),
    (stores(claim=claim_without_a_new_token), "test_a_released_name_is_free_at_once"),
    (stores(freed=hear_nothing), "test_a_replica_that_stands_by_hears_that_the_name_is_free", "release"),
    (stores(freed=hear_releases_only), "test_a_replica_that_stands_by_hears_that_the_name_is_free", "expire"),
    (stores(freed=wait_before_looking), "test_a_name_that_was_released_before_the_wait_is_free"),
    (sessions(note_change=say_nothing), "test_an_owner_is_told_that_it_is_wanted"),
    (sessions(note_change=end_when_wanted), "test_an_owner_is_told_that_it_is_wanted"),
    (stores(claim=claim_wanted), "test_an_owner_is_told_that_it_is_wanted"),
    (stores(claim=wait_for_a_release), "test_a_name_is_free_after_its_lease_ran_out"),
    (stores(claim=claim_without_a_new_token), "test_a_name_is_free_after_its_lease_ran_out"),
    *((sessions(_check=check_the_claim_only), LOST, call) for call in CALLS),
    *((sessions(_check=check_the_end_only), LOST, call) for call in CALLS if call not in WRITES),
    *((unfenced, LOST, call) for call in CALLS),
    (sessions(release=free_anyway), "test_a_lost_session_takes_nothing_from_the_next_owner"),
    (sessions(again=again_after_all), "test_a_lost_session_takes_nothing_from_the_next_owner"),
    (stores(claim=refuse_a_name_that_was_lost), "test_a_replica_can_claim_a_name_that_it_has_lost"),
    (
        lambda: Lying({}, {"_check": check_the_store_only, "_apply": apply_without_a_fence}),
        "test_a_replica_can_claim_a_name_that_it_has_lost",
    ),
    *(
        (sessions(_write=commit_without_a_server), "test_a_write_to_an_unreachable_store_can_be_repeated", write)
        for write in WRITES
    ),
    (stores(claim=fail_for_good), NOTHING_ELSE),
    (stores(forward=forward_if_reachable), NOTHING_ELSE),
    (sessions(release=release_or_raise), NOTHING_ELSE),
    (sessions(lost=property(lost_as_the_server_says)), "test_a_lease_ends_while_the_store_is_unreachable"),
    *((sessions(again=again_from_memory), DECIDED, "landed", write) for write in WRITES),
    *((sessions(_apply=apply_without_a_fence), DECIDED, "late", write) for write in WRITES),
    *((sessions(again=again_with_the_same_token), DECIDED, "late", write) for write in WRITES),
    *((sessions(_write=raise_nothing_in_doubt), DECIDED, "lost", write) for write in WRITES),
    (sessions(_write=continue_in_doubt), "test_a_session_in_doubt_is_lost"),
    (sessions(_check=check_nothing), "test_a_session_in_doubt_is_lost"),
    *(
        (sessions(release=release_unless_in_doubt), "test_a_session_in_doubt_can_be_released", outcome)
        for outcome in OUTCOMES
    ),
    (sessions(_apply=apply_without_a_fence), "test_a_session_in_doubt_can_be_released", "late"),
    (sessions(again=again_at_any_time), "test_a_session_that_claimed_again_has_ended"),
    (sessions(release=free_anyway), "test_a_session_that_claimed_again_has_ended"),
    *(
        (sessions(again=again_at_any_time), "test_a_name_in_doubt_may_go_to_another_replica", outcome)
        for outcome in OUTCOMES
    ),
    (sessions(_apply=apply_without_a_fence), "test_a_name_in_doubt_may_go_to_another_replica", "late"),
    (sessions(again=again_once), "test_claiming_again_can_be_tried_again"),
    (sessions(again=again_or_fail_for_good), "test_claiming_again_can_be_tried_again"),
    (sessions(again=again_until_cancelled), "test_a_cancelled_again_leaves_the_name_free"),
    (stores(forward=forward_once), WAKE, None),
    (stores(forward=forward_hints_only), WAKE, None),
    (stores(forward=forward_to_others_only), WAKE, None),
    (stores(forward=forward_in_the_event_loop_only), WAKE, None),
    (stores(forward=forward_another_hint), WAKE, "\0\ud83d"),
    (stores(forward=forward_another_hint), WAKE, "x" * 10_240),
    (stores(forward=forward_to_all), ONLY),
    (wakes_after_release, ONLY),
    (first_wakes, "test_a_wake_reaches_the_session_that_claimed_again"),
    (stores(forward=forward_or_raise), "test_a_wake_without_an_owner_is_no_error"),
    *(
        (sessions(time=time_of_the_host), "test_the_time_of_a_session_is_the_time_of_its_store", s)
        for s in (-1, 1)
    ),
    *(
        (sessions(commit=history_of_the_host), "test_the_time_of_a_session_is_the_time_of_its_store", s)
        for s in (-1, 1)
    ),
    (
        sessions(lost=property(lost_by_the_clock_of_the_host)),
        "test_a_host_with_a_wrong_clock_takes_no_name_and_loses_none",
        -1,
    ),
    (
        stores(claim=compare_with_the_clock_of_the_host),
        "test_a_host_with_a_wrong_clock_takes_no_name_and_loses_none",
        1,
    ),
    (unfenced, "test_a_lease_that_ends_during_a_handler_takes_back_its_effects"),
    (sessions(_write=effects_without_records), EFFECTS, "lost"),
    (sessions(_write=records_without_effects), EFFECTS, "landed"),
    (sessions(_apply=apply_without_a_fence), EFFECTS, "late"),
]


@pytest.mark.parametrize("case", LIES, ids=lambda case: f"{case[1]} {LIES.index(case)}")
async def test_the_suite_detects_a_misbehaving_store(case):
    make, test, *arguments = case

    class Caught(Honest):
        async def make_store(self):
            return make().replica("first")

    arguments = [one * 86_400.0 if isinstance(one, int) else one for one in arguments]
    expected = (AssertionError, pytest.fail.Exception, StoreError, TimeoutError, KeyError, anyio.NoEventLoopError)
    with pytest.raises(expected):
        await unwrapped(getattr(Caught(), test), *arguments)


async def unwrapped(test, *arguments):
    """Run a test; raise the error of its task group as it is."""
    try:
        await test(*arguments)
    except BaseExceptionGroup as group:
        raise sole_cause(group) from None


def test_each_test_of_leases_catches_a_misbehaving_store():
    tests = {name for name in vars(LeasedStoreSuite) if name.startswith("test_")}
    tests |= {EFFECTS, "test_a_lease_that_ends_during_a_handler_takes_back_its_effects"}
    assert {test for _, test, *_ in LIES} == tests
