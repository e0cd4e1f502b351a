"""Store in memory, for tests and for consumers that start over at each start.

`MemoryProgress` is what the store keeps for one name, and `_MemorySession` a claim of the name. A session is the
owner as long as the store's table of owners has it, so each call checks that first.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TypeVar
from weakref import WeakValueDictionary

from anyio.lowlevel import checkpoint

from push_to_poll_client._types import Cursor, DeadLetter, Record, SavedCursor, Settlement
from push_to_poll_client.stores._names import (
    ClaimedSession,
    Rebind,
    bound_elsewhere,
    name_in_use,
    ownership_lost,
)
from push_to_poll_client.stores._retention import (
    DEFAULT_MAX_RECORDS,
    DEFAULT_RETENTION,
    CursorState,
    Retention,
    Segments,
    limit_dead_letters,
)

__all__ = ["MemoryStore"]

_WHERE = "this MemoryStore"

_T = TypeVar("_T")


class MemoryProgress:
    """Progress of one name. `token` is the fencing token of the last claim."""

    def __init__(self, feed: str, retention: Retention, clock: Callable[[], float]) -> None:
        self.feed: str = feed
        self.token: int = 0
        self.cursor_state: CursorState = CursorState(SavedCursor(None, clock()))
        self.segments: Segments = Segments(retention)
        self.records: dict[str, Record] = {}
        self._keys: dict[int, list[str]] = {}  # of each segment
        self._dead_letters: dict[str, DeadLetter] = {}  # by their keys
        self._clock = clock

    @property
    def dead_letter_count(self) -> int:
        return len(self._dead_letters)

    def unseen(self, keys: Sequence[str]) -> set[str]:
        return {key for key in keys if key not in self.records}

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        known = ((key, self.records[key].fingerprint) for key in keys if key in self.records)
        return {key: fingerprint for key, fingerprint in known if fingerprint is not None}

    def commit(
        self,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter],
        state: Mapping[str, str | None],
        read_at: float | None,
    ) -> None:
        now, segments = self._clock(), self.segments
        prunable_before = segments.prunable_before if cursor is None else segments.current(now).number
        given = {record.key: record for record in records}
        keys, written = [key for key in given if key not in self.records], []
        for segment, number in segments.allocate(len(keys), now):
            taken, keys = keys[:number], keys[number:]
            self._keys.setdefault(segment.number, []).extend(taken)
            written.append(segment.with_keys(taken, now))
        self.records.update(given)
        for key, record in given.items():
            if record.state is not Settlement.DEAD_LETTERED:
                self._dead_letters.pop(key, None)
        self._dead_letters.update((letter.dedupe_key, letter) for letter in dead_letters)
        changes = segments.plan_changes(written, prunable_before=prunable_before, now=now)
        segments.apply(changes)
        for dropped in changes.dropped:
            for key in self._keys.pop(dropped):
                del self.records[key]
        saved = self.cursor_state.saving(cursor, now if read_at is None else read_at)
        self.cursor_state = saved.changing(state)

    def reset(self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None]) -> None:
        now = self._clock()
        self.cursor_state = CursorState(SavedCursor(cursor, now), (), self.cursor_state.state).changing(state)
        self.segments.prunable_before = self.segments.current(now).number
        if forget:
            self.segments.forget()
            self.records.clear()
            self._keys.clear()

    def some_dead_letters(self, after: DeadLetter | None, *, retry_requested: bool) -> list[DeadLetter]:
        keys = sorted(key for key in self._dead_letters if after is None or key > after.dedupe_key)
        letters = (self._dead_letters[key] for key in keys)
        if retry_requested:
            letters = (letter for letter in letters if letter.retry_requested or letter.drop_requested)
        return limit_dead_letters(letters)

    def dead_letter(self, key: str) -> DeadLetter | None:
        return self._dead_letters.get(key)


class MemoryStore:
    """Keeps the state of consumers in memory, for one process and until this object is dropped.

    A new consumer on the same object continues where the last one stopped, so a test can simulate a restart. Use
    it in one thread at a time.

    Args:
        retention: Seconds until a dedupe record may be dropped; None keeps records of any age. See `SQLiteStore`.
        max_records: Smallest number of dedupe records that each name keeps; None keeps any number. See
            `SQLiteStore`.
        clock: Returns the time in seconds since the epoch.

    Raises:
        ValueError: `retention` or `max_records` is not positive.
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
        self._progress: dict[str, MemoryProgress] = {}
        # Weak: a session that was dropped without `release()` must not hold its name for ever.
        self._owners: WeakValueDictionary[str, _MemorySession] = WeakValueDictionary()

    async def claim(self, name: str, *, feed: str) -> "_MemorySession":
        """Become the one owner of `name`. The first claim binds the name to `feed`.

        Raises:
            StoreBusy: The name has an owner.
            StoreMismatch: The name is bound to another feed.
        """
        await checkpoint()
        self._check_unowned(name)
        progress = self._progress.get(name)
        if progress is None:
            progress = self._progress[name] = MemoryProgress(feed, self._retention, self._clock)
        if progress.feed != feed:
            raise bound_elsewhere(_WHERE, name, bound_to=progress.feed, feed=feed)
        progress = self._progress[name] = copy(progress)  # the last session keeps showing its own cursor
        progress.token += 1
        session = self._owners[name] = _MemorySession(name, progress, self._owners)
        return session

    async def rebind(
        self, name: str, *, feed: str | None = None, new_name: str | None = None, replace: bool = False
    ) -> None:
        """Bind a name to another feed, or rename it; see `SQLiteStore.rebind`.

        Raises:
            StoreBusy: One of the names has an owner.
            ValueError: The name does not exist, the new name exists already, or an argument is invalid.
            TypeError: An argument is not a `str`.
        """
        await checkpoint()
        asked = Rebind(name, feed, new_name, replace)
        self._check_unowned(name)
        progress = self._progress.get(name)
        if progress is None:
            raise asked.unknown_name(_WHERE)
        target = asked.target(progress.feed)
        if target != name:
            self._check_unowned(target)
            if target in self._progress:
                asked.check_free(_WHERE, target)
            self._progress[target] = self._progress.pop(name)
        progress.feed = progress.feed if feed is None else feed
        progress.token += 1

    def _check_unowned(self, name: str) -> None:
        if name in self._owners:
            raise name_in_use(_WHERE, name)

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._progress)} names)"


class _MemorySession(ClaimedSession):
    """A claimed name of a `MemoryStore`."""

    def __init__(
        self, name: str, progress: MemoryProgress, owners: WeakValueDictionary[str, "_MemorySession"]
    ) -> None:
        super().__init__(progress)
        self._name = name
        self._owners = owners

    async def release(self) -> None:
        if self._owners.get(self._name) is self:
            del self._owners[self._name]

    async def _run(self, work: Callable[[], _T]) -> _T:
        await checkpoint()  # before any change: a cancelled commit must not write
        if self._owners.get(self._name) is not self:
            raise ownership_lost(_WHERE, self._name, "was released or claimed again since this session began")
        return work()
