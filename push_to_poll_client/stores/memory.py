"""Where was I, while this object lives: a store for tests, and for consumers that begin anew at each start."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakValueDictionary

from anyio.lowlevel import checkpoint

from push_to_poll_client._exceptions import OwnershipLost, StoreBusy, StoreMismatch
from push_to_poll_client._text import quoted
from push_to_poll_client._types import Cursor, Record, RecordState
from push_to_poll_client.stores._retention import DEFAULT_MAX_RECORDS, DEFAULT_RETENTION, Retention

__all__ = ["MemoryStore"]


class MemoryStore:
    """Keeps cursors and dedupe records in memory: gone with this object, and not seen by other processes.

    A consumer made again on the same object goes on where the last one stopped, so a test can play a restart.
    For one thread at a time.

    Args:
        retention: Seconds after which a dedupe record may go; `None` keeps it however old it is. It must outlast
            the longest replay of the feed.
        max_records: How many dedupe records each name may have before the oldest go; `None` keeps any number.
            Those since the last commit but one that saved a cursor stay in any case.
        clock: The time in seconds since the epoch.

    Raises:
        ValueError: `retention` or `max_records` is not above 0.
    """

    def __init__(
        self,
        *,
        retention: float | None = DEFAULT_RETENTION,
        max_records: int | None = DEFAULT_MAX_RECORDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._retention = Retention(retention, max_records)
        self._clock = clock
        self._progress: dict[str, _Progress] = {}
        # Weak: a session that was dropped without `release()` must not hold its name for ever.
        self._owners: WeakValueDictionary[str, _Session] = WeakValueDictionary()

    async def claim(self, name: str, *, feed: str) -> "_Session":
        """Become the one owner of `name`, which is bound to the feed called `feed` by its first claim.

        Raises:
            StoreBusy: The name has an owner.
            StoreMismatch: The name was used with another feed.
        """
        await checkpoint()
        if name in self._owners:
            raise StoreBusy(
                f"the name {quoted(name)} of this MemoryStore has an owner; release it, or use another name"
            )
        progress = self._progress.setdefault(name, _Progress(feed))
        if progress.feed != feed:
            raise StoreMismatch(
                f"the name {quoted(name)} of this MemoryStore was used with the feed {quoted(progress.feed)}, not "
                f"{quoted(feed)}; use another name"
            )
        progress.token += 1
        session = self._owners[name] = _Session(name, progress, self._owners, self._retention, self._clock)
        return session

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._progress)} names)"


class _Progress:
    """What is kept for one name. `last` is the position of the newest record; up to `behind` records may go."""

    def __init__(self, feed: str) -> None:
        self.feed = feed
        self.token = 0
        self.cursor: Cursor | None = None
        self.last = 0
        self.behind = 0
        # An OrderedDict, since taking the first of a plain dict again and again is quadratic.
        self.records: OrderedDict[str, tuple[int, float, RecordState]] = OrderedDict()

    def settle(self, cursor: Cursor | None, states: dict[str, RecordState], now: float) -> None:
        if cursor is not None:
            self.cursor, self.behind = cursor, self.last
        for key, state in states.items():
            self.last += 1
            self.records[key] = (self.last, now, state)
            self.records.move_to_end(key)

    def oldest(self) -> Iterator[tuple[int, float]]:
        for position, at, _ in self.records.values():
            if position > self.behind:
                return
            yield position, at

    def forget(self, last: int | None) -> None:
        while last is not None and self.records and next(iter(self.records.values()))[0] <= last:
            self.records.popitem(last=False)


class _Session:
    """A claimed name of a `MemoryStore`."""

    def __init__(
        self,
        name: str,
        progress: _Progress,
        owners: WeakValueDictionary[str, "_Session"],
        retention: Retention,
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._progress = progress
        self._owners = owners
        self._retention = retention
        self._clock = clock
        self._cursor = progress.cursor
        self._token = progress.token

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        return self._cursor

    @property
    def token(self) -> int:
        """The fencing token: larger for each claim of the name."""
        return self._token

    @property
    def size(self) -> int:
        """How many dedupe records the name has."""
        return len(self._progress.records)

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Those of `keys` without a record.

        Raises:
            OwnershipLost: The session was released.
        """
        await checkpoint()
        self._check()
        return {key for key in keys if key not in self._progress.records}

    async def commit(self, *, cursor: Cursor | None, records: Sequence[Record]) -> None:
        """Save the cursor (`None` leaves the saved one) and add the records: both or neither.

        Raises:
            OwnershipLost: The session was released, or the name claimed by somebody else; nothing was written.
        """
        # First: a cancelled commit must not have written.
        await checkpoint()
        self._check()
        progress, before, now = self._progress, self.size, self._clock()
        progress.settle(cursor, {record.key: record.state for record in records}, now)
        self._cursor = progress.cursor
        added = self.size - before
        progress.forget(self._retention.sweep(progress.oldest(), size=self.size, added=added, now=now))

    async def release(self) -> None:
        """Give the name back. Never raises; a second call does nothing."""
        if self._owners.get(self._name) is self:
            del self._owners[self._name]

    def _check(self) -> None:
        if self._owners.get(self._name) is not self:
            raise OwnershipLost(
                f"the name {quoted(self._name)} of this MemoryStore was released or claimed again since this "
                "session began; nothing was written; claim it again"
            )
