"""Simulated store: a real one, whose calls fail, are slow, or hang for a while.

After a crash, the sessions of the crashed consumer change nothing any more.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from random import Random
from types import MappingProxyType
from typing import Any

import anyio

from push_to_poll_client import DeadLetter, Record, Session, Store, StoreError, StoreUnavailable
from tests.simulation.journal import Journal
from tests.simulation.plan import StorePlan

__all__ = ["CLIENT", "SimulatedSession", "SimulatedStore"]

CLIENT: ContextVar[int] = ContextVar("client", default=0)
"""Number of the consumer object of this task."""

_NO_STATE: Mapping[str, str | None] = MappingProxyType({})


class SimulatedStore:
    """The simulated store.

    Args:
        inner: The real store.
        plan: Its faults.
        seed: Decides which calls meet faults.
        journal: Records each call.

    Attributes:
        troubled: True while the plan has faults.
        dead: Numbers of the crashed consumer objects.
    """

    def __init__(self, inner: Store, plan: StorePlan, seed: int, journal: Journal) -> None:
        self.troubled = True
        self.dead: set[int] = set()
        self.owner: SimulatedSession | None = None
        self.inner = inner
        self.plan = plan
        self.journal = journal
        self._began = journal.clock()
        self._chance = Random(f"store {seed}")  # noqa: S311  # not for secrets

    async def claim(self, name: str, *, feed: str) -> "SimulatedSession":
        """Claim a name."""
        client = CLIENT.get()
        await self.call("claim", client)
        session = await self.inner.claim(name, feed=feed)
        self.owner = SimulatedSession(self, session, client)
        self.journal.add("claimed", client, cursor=session.cursor, token=session.fencing_token)
        return self.owner

    async def call(self, what: str, client: int, *, records: int = 0) -> None:
        """Apply the faults to one call.

        Args:
            what: Name of the call.
            client: Number of the calling consumer object.
            records: Number of messages that it would record.
        """
        plan, chance = self.plan, self._chance
        if client in self.dead:
            raise StoreError("crashed")
        if not self.troubled or not (plan.failing or plan.slow or plan.hanging or plan.outages):
            return
        takes = 0.0
        if chance.random() < plan.hanging:
            takes = plan.hanging_time
        elif chance.random() < plan.slow:
            takes = plan.slow_time
        fails, for_good = chance.random() < plan.failing, chance.random() < plan.for_good
        if takes:
            self.journal.add("store begins", client, what=what, takes=takes)
            cut = True
            try:
                await anyio.sleep(takes)
                cut = False
            finally:
                self.journal.add("store ends", client, what=what)
                if cut:
                    self.journal.add("store fails", client, what=what, records=records or None)
        if client in self.dead:
            raise StoreError("crashed")
        if fails and for_good:
            self.journal.add("store fails", client, what=what, records=records or None, for_good=True)
            raise StoreError(f"{what} failed: damaged")
        now = self.journal.clock() - self._began
        if fails or any(begin <= now < end for begin, end in plan.outages):
            self.journal.add("store fails", client, what=what, records=records or None)
            raise StoreUnavailable(f"{what} failed: disk full")


class SimulatedSession:
    """A claimed name."""

    def __init__(self, store: SimulatedStore, session: Session, client: int) -> None:
        self._store = store
        self._session = session
        self._client = client

    cursor = property(lambda self: self._session.cursor)
    fencing_token = property(lambda self: self._session.fencing_token)
    record_count = property(lambda self: self._session.record_count)
    dead_letter_count = property(lambda self: self._session.dead_letter_count)
    state = property(lambda self: self._session.state)
    history = property(lambda self: self._session.history)

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """See `Session.unseen`."""
        await self._store.call("unseen", self._client)
        return await self._session.unseen(keys)

    async def fingerprints(self, keys: Sequence[str], /) -> Mapping[str, int]:
        """See `Session.fingerprints`."""
        await self._store.call("fingerprints", self._client)
        return await self._session.fingerprints(keys)

    async def commit(
        self,
        *,
        cursor: str | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = _NO_STATE,
        read_at: float | None = None,
    ) -> None:
        """See `Session.commit`."""
        await self._store.call("commit", self._client, records=len(records))
        more: dict[str, Any] = {} if read_at is None else {"read_at": read_at}
        await self._session.commit(cursor=cursor, records=records, dead_letters=dead_letters, state=state, **more)
        self._store.journal.add(
            "commit",
            self._client,
            cursor=cursor,
            records=tuple(record.key for record in records),
            dead=tuple(letter.dedupe_key for letter in dead_letters) or None,
            _records=records,
            _owner=self._store.owner is self,
        )

    async def reset(
        self, cursor: str | None, *, forget: bool, state: Mapping[str, str | None] = _NO_STATE
    ) -> None:
        """See `Session.reset`."""
        await self._store.call("reset", self._client)
        before = self._session.cursor
        await self._session.reset(cursor, forget=forget, state=state)
        self._store.journal.add("reset", self._client, cursor=cursor, forget=forget, before=before)

    async def dead_letters(
        self, *, after: DeadLetter | None = None, retry_requested: bool = False
    ) -> Sequence[DeadLetter]:
        """See `Session.dead_letters`."""
        await self._store.call("dead_letters", self._client)
        return await self._session.dead_letters(after=after, retry_requested=retry_requested)

    async def dead_letter(self, key: str, /) -> DeadLetter | None:
        """See `Session.dead_letter`."""
        await self._store.call("dead_letter", self._client)
        return await self._session.dead_letter(key)

    async def release(self) -> None:
        """See `Session.release`."""
        await self._session.release()
        if self._store.owner is self:
            self._store.owner = None
        self._store.journal.add("released", self._client)
