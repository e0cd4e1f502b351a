"""Fake of a store on a server that several replicas share, with leases, fencing, faults and forwarded wakes.

    shared = SharedMemory()
    first, second = shared.replica("first"), shared.replica("second")

`SharedMemory` is the server: progress, lease rows and the only clock that decides. A `LeasedMemoryStore` is the
store object of one replica. Nothing runs in the background: a lease does not end as long as its replica runs.
"""

import itertools
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from push_to_poll_client import (
    CommitInDoubt,
    DeadLetter,
    OwnershipLost,
    Push,
    Record,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from push_to_poll_client.stores._names import ClaimedSession, bound_elsewhere
from push_to_poll_client.stores._retention import DEFAULT_MAX_RECORDS, DEFAULT_RETENTION, Retention
from push_to_poll_client.stores.memory import MemoryProgress
from push_to_poll_client.testing._virtual_time import Bell

__all__ = [
    "EPOCH",
    "LEASE",
    "LeasedMemorySession",
    "LeasedMemoryStore",
    "SharedMemory",
    "TransactionalMemorySession",
]

LEASE = 10.0
EPOCH = 1_800_000_000.0
_NO_STATE: Mapping[str, str | None] = MappingProxyType({})
_HANDLER: ContextVar["_Transaction | None"] = ContextVar("handler", default=None)


@dataclass(eq=False)
class Lease:
    """The lease row of a name. `owner` is None after a release."""

    token: int = 0
    commits: int = 0
    owner: int | None = None
    session: "LeasedMemorySession | None" = None  # of the owner: how it is reached
    wanted: bool = False


@dataclass(eq=False)
class Written:
    """One row of the server's own history: who wrote what."""

    name: str
    token: int
    replica: str
    cursor: str | None
    keys: tuple[str, ...]
    at: float


class SharedMemory:
    """The server that replicas share.

    Args:
        clock: Seconds of a clock that all replicas can read. `None` means the event loop's clock; outside an event
            loop it is the last reading. `advance` adds to it.
        lease: Seconds without renewal after which a name is free.
        transactional: True if handlers can write texts with `LeasedMemoryStore.write`.

    Attributes:
        history: All commits, in the order in which they took effect.
        effects: Texts that handlers have written.
        lose_wakes: Number of forwarded wakes that are lost from now on.
        wakes: Forwarded wakes that were sent, with their names.
        watch: Called at each claim, release and commit with its kind, its session and further facts.
    """

    def __init__(
        self, *, clock: Callable[[], float] | None = None, lease: float = LEASE, transactional: bool = False
    ) -> None:
        self.lease = lease
        self.transactional = transactional
        self.progress: dict[str, MemoryProgress] = {}
        self.leases: dict[str, Lease] = {}
        self.history: list[Written] = []
        self.effects: list[str] = []
        self.wakes: list[tuple[str, Push | None]] = []
        self.lose_wakes = 0
        self.watch: Callable[..., object] = lambda kind, session, **facts: None
        self.bell = Bell()
        self._clock = clock
        self._reading = 0.0
        self._advanced = 0.0
        self._owners = itertools.count(1)

    def replica(self, instance: str = "replica") -> "LeasedMemoryStore":
        """Open the data as a replica does."""
        return LeasedMemoryStore(self, instance)

    def now(self) -> float:
        """Return seconds of the clock on which leases end."""
        with suppress(anyio.NoEventLoopError):
            self._reading = (self._clock or anyio.current_time)()
        return self._reading + self._advanced

    def time_of_day(self) -> float:
        """Return the server's time of day."""
        return EPOCH + self.now()

    def advance(self, seconds: float) -> None:
        """Move the clock of the leases."""
        self._advanced += seconds
        self.ring()

    def ring(self) -> None:
        """Wake the replicas that wait for a name."""
        self.bell.ring()

    def owner_of(self, name: str) -> "LeasedMemorySession | None":
        """Return the session whose lease has not ended."""
        lease = self.leases.get(name)
        if lease is None or lease.session is None or lease.session.ends <= self.now():
            return None
        return lease.session

    def want(self, name: str) -> None:
        """Ask the owner to hand over."""
        if (lease := self.leases.get(name)) and lease.session:
            lease.wanted = True
            lease.session.note_change()

    def request(self, name: str, key: str, **marks: bool) -> None:
        """Mark a dead letter and wake the owner, as the command line does beside it."""
        letters = self.progress[name]._dead_letters
        letters[key] = msgspec.structs.replace(letters[key], **marks)
        if (owner := self.owner_of(name)) is not None:
            owner.wake(None)

    def expire(self, name: str, *, tells: bool = False) -> None:
        """Let the lease of a name run out, as after a pause of its owner. `tells`: its store notices that."""
        if session := self.owner_of(name):
            session.ends = self.now()
            if tells:
                session.note_change()
            session.is_renewed = False
            self.ring()

    def next_owner(self) -> int:
        """Return the bytes of the next claim; here a number."""
        return next(self._owners)


class LeasedMemoryStore:
    """Store object of one replica.

    Attributes:
        unreachable: True while the server cannot be reached. Leases are not renewed meanwhile.
        doubts: Outcomes of the next commits that are to be in doubt: "lost", "landed" or "late".
        late: Commits that have not reached the server yet; `deliver` lets them arrive.
        failing: Error of all commits, after the rest of the commit was checked.
        trip: Awaited on the way to the server and back.
    """

    concurrent_transactions = True

    def __init__(self, shared: SharedMemory, instance: str = "replica") -> None:
        self.shared = shared
        self.instance = instance
        self.doubts: deque[str] = deque()
        self.late: list[Callable[[], None]] = []
        self.failing: StoreError | None = None
        self.sessions: list[LeasedMemorySession] = []
        self.is_dead = False
        self.trip: Callable[[], Awaitable[None]] | None = None
        self._is_unreachable = False
        self._is_paused = False

    @property
    def transactional(self) -> bool:
        return self.shared.transactional

    @property
    def unreachable(self) -> bool:
        return self._is_unreachable

    @unreachable.setter
    def unreachable(self, value: bool) -> None:
        self._is_unreachable = value
        self._renew()

    def pause(self) -> None:
        """Stop renewing leases, as a stopped process does."""
        self._is_paused = True
        self._renew()

    def resume(self) -> None:
        """Renew the leases that have not ended."""
        self._is_paused = False
        self._renew()

    async def travel(self, *, back: bool = False) -> None:
        """Let a request or, if `back`, its answer travel."""
        if self.trip is not None:
            await self.trip()
        elif not back:
            await checkpoint()  # before any change: a cancelled commit must not write

    def crash(self) -> None:
        """End without a release: all further calls fail, and the leases run out."""
        self.is_dead = True
        self._renew()

    def _renew(self) -> None:
        """Set the end of each lease: infinite while it is renewed, otherwise `lease` seconds after now."""
        renews = not (self._is_paused or self._is_unreachable or self.is_dead)
        for session in self.sessions:
            if renews and not session.lost and self._owns(session):
                if not session.is_renewed:
                    session.wake(None)  # wakes may have been missed
                session.is_renewed, session.ends = True, math.inf
            elif session.is_renewed and not renews:
                session.is_renewed, session.ends = False, self.shared.now() + self.shared.lease
            elif renews and session.lost:
                session.note_loss()
        self.shared.ring()

    def _owns(self, session: "LeasedMemorySession") -> bool:
        return self.shared.leases[session.name].session is session

    async def claim(self, name: str, *, feed: str) -> "LeasedMemorySession":
        """Become the owner of a name if its lease has ended."""
        await self.travel()
        self.check()
        shared = self.shared
        if (owner := shared.owner_of(name)) is not None:
            left = min(owner.ends - shared.now(), shared.lease)
            raise StoreBusy(
                f"the name {name!r} is owned by {owner.store.instance}",
                owner=owner.store.instance,
                seconds_left=left,
            )
        retention = Retention(DEFAULT_RETENTION, DEFAULT_MAX_RECORDS)
        progress = shared.progress.get(name) or MemoryProgress(feed, retention, shared.time_of_day)
        if progress.feed != feed:
            raise bound_elsewhere("the shared memory", name, bound_to=progress.feed, feed=feed)
        shared.progress[name] = progress
        return await self.answered(self.enter(name, shared.next_owner()))

    async def answered(self, session: "LeasedMemorySession") -> "LeasedMemorySession":
        """Return the session of a claim. A cancelled claim frees the name: nobody would release it."""
        try:
            await self.travel(back=True)
        except BaseException:
            session.free()
            raise
        return session

    def enter(self, name: str, owner: int) -> "LeasedMemorySession":
        """Write the lease row of a claim, and open its session."""
        lease = self.shared.leases.setdefault(name, Lease())
        lease.token += 1
        lease.owner, lease.wanted = owner, False
        self.shared.progress[name].token = lease.token
        session_class = TransactionalMemorySession if self.transactional else LeasedMemorySession
        lease.session = session = session_class(self, name, lease)
        self.sessions.append(session)
        self._renew()  # a paused process may claim, but renews nothing
        self.shared.watch("claimed", session)
        return session

    async def freed(self, name: str) -> None:
        """Return when a name has no owner."""
        while (owner := self.shared.owner_of(name)) is not None:
            self.check()
            with anyio.move_on_after(max(0.0, min(owner.ends - self.shared.now(), self.shared.lease))):
                await self.shared.bell.wait()
        await self.travel()

    def forward(self, name: str, push: Push | None) -> None:
        """Send a wake to the owner of a name."""
        shared = self.shared
        if self.unreachable or self.is_dead:
            return
        shared.wakes.append((name, push))
        if shared.lose_wakes:
            shared.lose_wakes -= 1
        elif (owner := shared.owner_of(name)) is not None and owner.is_renewed:
            owner.wake(push)

    def check(self) -> None:
        """Raise the error of a server that cannot be reached."""
        if self.is_dead:
            raise StoreError("the process of this replica was killed")
        if self.unreachable:
            raise StoreUnavailable("cannot connect to the shared memory: planted")

    def deliver(self) -> None:
        """Let late commits reach the server, which may refuse them."""
        late, self.late = self.late, []
        for commit in late:
            with suppress(OwnershipLost):
                commit()

    @asynccontextmanager
    async def in_doubt(self, outcome: str) -> AsyncIterator[None]:
        """Let the outcome of the next commit be unknown."""
        self.doubts.append(outcome)
        try:
            yield
        finally:
            self.doubts.clear()
            self.deliver()

    @contextmanager
    def without_server(self) -> Iterator[None]:
        """Let the server be unreachable in this block."""
        self.unreachable = True
        try:
            yield
        finally:
            self.unreachable = False

    @property
    def connection(self) -> "_Transaction":
        """The connection of a handler: `connection.write(text)`."""
        transaction = _HANDLER.get()
        if transaction is None or transaction.has_ended or transaction.store is not self:
            raise RuntimeError("the connection can be used only while a message is processed")
        return transaction

    async def aclose(self) -> None:
        """Release nothing: a test sees which sessions it has left."""

    def __repr__(self) -> str:
        return f"LeasedMemoryStore({self.instance!r})"


@dataclass(eq=False)
class _Transaction:
    """Texts that a handler has written, before its commit."""

    store: LeasedMemoryStore
    texts: list[str] = field(default_factory=list)
    has_ended: bool = False

    def write(self, text: str) -> None:
        self.texts.append(text)


class LeasedMemorySession(ClaimedSession):
    """A claimed name of a `LeasedMemoryStore`."""

    _progress: MemoryProgress

    def __init__(self, store: LeasedMemoryStore, name: str, lease: Lease) -> None:
        self.store = store
        self.name = name
        self.is_renewed = True
        self.ends = math.inf
        self.fence = (lease.token, lease.owner, lease.commits)
        self._shared = store.shared
        self._lease = lease
        self.doubted = False  # True after a commit in doubt
        self._is_over = False  # released, in doubt, or claimed again
        self._claimed_at = (self._shared.now(), self._shared.time_of_day())
        self._changed: Callable[[], None] | None = None
        self._wake: Callable[[Push | None], None] | None = None
        super().__init__(copy(self._shared.progress[name]))  # a former session keeps showing its own cursor

    @property
    def lost(self) -> bool:
        return self._is_over or self.ends <= self._shared.now()

    @property
    def wanted(self) -> bool:
        return self._lease.session is self and self._lease.wanted

    def subscribe(self, *, changed: Callable[[], None], wake: Callable[[Push | None], None]) -> None:
        self._changed, self._wake = changed, wake

    def note_change(self) -> None:
        """Tell the consumer that the session is lost or wanted, as far as the store can know."""
        if self._changed is not None and self.is_renewed:
            self._changed()

    def note_loss(self) -> None:
        """Tell the consumer once that the session is lost."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed()

    def wake(self, push: Push | None) -> None:
        """Pass a forwarded wake on."""
        if self._wake is not None and not self.lost:
            self._wake(push)

    def time(self) -> float:
        at, time_of_day = self._claimed_at
        return time_of_day + self._shared.now() - at

    async def again(self) -> "LeasedMemorySession":
        await self.store.travel()
        was_released = self._lease.session is not self
        if was_released or self.ends <= self._shared.now():
            self._is_over = True
            raise self._ownership_lost()
        self._is_over = True
        self.store.check()
        assert self._lease.owner is not None
        return await self.store.answered(self.store.enter(self.name, self._lease.owner))

    async def release(self) -> None:
        self._is_over = True
        self._changed = self._wake = None
        await self.store.travel()
        self.free()

    def free(self) -> None:
        """Free the name at the server, if the session still has it."""
        self._is_over = True
        if self._lease.session is self and not (self.store.unreachable or self.store.is_dead):
            self._lease.session = self._lease.owner = None
            self._shared.watch("released", self)
            self._shared.ring()

    async def commit(
        self,
        *,
        cursor: str | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = _NO_STATE,
        read_at: float | None = None,
    ) -> None:
        given = (cursor, tuple(records), tuple(dead_letters), dict(state), read_at)
        await self._write(cursor, records, lambda progress: progress.commit(*given))

    async def reset(
        self, cursor: str | None, *, forget: bool, state: Mapping[str, str | None] = _NO_STATE
    ) -> None:
        await self._write(cursor, (), lambda progress: progress.reset(cursor, forget=forget, state=dict(state)))

    async def _write(
        self,
        cursor: str | None,
        records: Sequence[Record],
        change: Callable[[MemoryProgress], None],
        effects: Sequence[str] = (),
    ) -> None:
        store = self.store
        await store.travel()
        self._check()
        if store.unreachable or store.is_dead:
            store.check()
        if store.failing is not None:
            raise store.failing
        apply = partial(self._apply, cursor, tuple(record.key for record in records), change, tuple(effects))
        if not store.doubts:
            apply()
            self._progress = copy(self._shared.progress[self.name])
            await store.travel(back=True)
            return
        self._is_over = self.doubted = True
        outcome = store.doubts.popleft()
        if outcome == "landed":
            apply()
        elif outcome == "late":
            store.late.append(apply)
        raise CommitInDoubt("the connection was lost during the commit: planted")

    def _apply(
        self,
        cursor: str | None,
        keys: tuple[str, ...],
        change: Callable[[MemoryProgress], None],
        effects: tuple[str, ...],
    ) -> None:
        """Write at the server, if nobody has claimed or written since."""
        lease, shared = self._lease, self._shared
        if self.fence != (lease.token, lease.owner, lease.commits):
            self._is_over = True
            raise self._ownership_lost()
        lease.commits += 1
        self.fence = (lease.token, lease.owner, lease.commits)
        change(shared.progress[self.name])
        shared.effects.extend(effects)
        written = Written(self.name, lease.token, self.store.instance, cursor, keys, shared.now())
        shared.history.append(written)
        shared.watch("commit", self, cursor=cursor, keys=keys)

    def _check(self) -> None:
        if self.lost or self._lease.session is not self:
            raise self._ownership_lost()

    def _ownership_lost(self) -> OwnershipLost:
        return OwnershipLost(f"the session of the name {self.name!r} has ended; claim it again")

    async def _run(self, work: Callable[[], Any]) -> Any:
        await self.store.travel()
        self._check()
        self.store.check()
        result = work()
        await self.store.travel(back=True)
        return result


class TransactionalMemorySession(LeasedMemorySession):
    """A session that commits the texts of a handler together with its records."""

    @asynccontextmanager
    async def transaction(self, records: Sequence[Record], /) -> AsyncIterator[None]:
        self._check()
        await self.store.travel()
        transaction = _Transaction(self.store)
        token = _HANDLER.set(transaction)
        try:
            yield
        finally:
            transaction.has_ended = True
            _HANDLER.reset(token)
        if transaction.texts:
            commit = partial(MemoryProgress.commit, **_records_only(records))
            with anyio.CancelScope(shield=True):
                await self._write(None, records, commit, transaction.texts)


def _records_only(records: Sequence[Record]) -> dict[str, Any]:
    return {"cursor": None, "records": tuple(records), "dead_letters": (), "state": {}, "read_at": None}
