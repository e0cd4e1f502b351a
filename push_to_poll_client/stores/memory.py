"""Store in memory, for tests and for consumers that begin anew at each start.

`MemoryProgress` is what the store keeps for one name, and `_MemorySession` a claim of the name. A session is the
owner as long as the store's table of owners has it, so each call checks that first.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from weakref import WeakValueDictionary

from anyio.lowlevel import checkpoint

from push_to_poll_client._exceptions import OwnershipLost, StoreBusy, StoreMismatch
from push_to_poll_client._types import Cursor, DeadLetter, Record, SavedCursor, Settlement
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._rebind import Rebind
from push_to_poll_client.stores._retention import (
    DEFAULT_MAX_RECORDS,
    DEFAULT_RETENTION,
    Retention,
    Segments,
    extend_history,
    limit_dead_letters,
)

__all__ = ["MemoryStore"]


class MemoryProgress:
    """The progress of one name.

    Args:
        feed: The feed that the name is bound to.
        retention: Which records may be dropped.
        now: When the name is claimed first, in seconds since the epoch.

    Attributes:
        feed: As given.
        token: The fencing token of the last claim.
        saved: The saved cursor.
        previous: The remembered cursors that were saved before it, the oldest first.
        state: The names and values committed as state.
        segments: The segments in which the records are counted.
        records: The records by their keys.
        dead_letters: The dead letters by their keys.
    """

    def __init__(self, feed: str, retention: Retention, now: float) -> None:
        self.feed = feed
        self.token = 0
        self.saved: SavedCursor = SavedCursor(None, now)
        self.previous: tuple[SavedCursor, ...] = ()
        self.state: Mapping[str, str] = MappingProxyType({})
        self.segments: Segments = Segments(retention)
        self.records: dict[str, Record] = {}
        self.dead_letters: dict[str, DeadLetter] = {}
        self._keys: dict[int, list[str]] = {}  # of each segment

    def save(self, cursor: Cursor | None, records: Mapping[str, Record], now: float, read_at: float) -> None:
        """Save the cursor (None leaves the saved one), add the records, and drop what retention lets go."""
        prunable_before = self.segments.prunable_before if cursor is None else self.segments.current(now).number
        if cursor is not None and cursor != self.saved.cursor:
            self.previous, self.saved = extend_history(self.previous, self.saved), SavedCursor(cursor, read_at)
        keys, written = [key for key in records if key not in self.records], []
        for segment, number in self.segments.allocate(len(keys), now):
            taken, keys = keys[:number], keys[number:]
            self._keys.setdefault(segment.number, []).extend(taken)
            written.append(segment.with_keys(number, taken, now))
        self.records.update(records)
        for key, record in records.items():
            if record.state is not Settlement.DEAD_LETTERED:
                self.dead_letters.pop(key, None)
        changes = self.segments.plan_changes(written, prunable_before=prunable_before, now=now)
        self.segments.apply(changes)
        for dropped in changes.dropped:
            for key in self._keys.pop(dropped):
                del self.records[key]

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        """Return the fingerprints of those of the keys whose record has one."""
        known = ((key, self.records[key].fingerprint) for key in keys if key in self.records)
        return {key: fingerprint for key, fingerprint in known if fingerprint is not None}

    def restart(self, cursor: Cursor | None, now: float, *, forget: bool) -> None:
        """Go on from this cursor and forget the history, with `forget` the records too."""
        self.previous, self.saved = (), SavedCursor(cursor, now)
        self.segments.prunable_before = self.segments.current(now).number
        if forget:
            self.segments.forget()
            self.records.clear()
            self._keys.clear()

    def change_state(self, state: Mapping[str, str | None]) -> None:
        """Change these names of the state; None removes a name."""
        changed = {**self.state, **state}
        self.state = MappingProxyType({name: value for name, value in changed.items() if value is not None})

    def add_dead_letters(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Add dead letters; each replaces the one of its key."""
        self.dead_letters.update((letter.dedupe_key, letter) for letter in dead_letters)

    def some_dead_letters(self, after: DeadLetter | None, *, retry_requested: bool) -> list[DeadLetter]:
        """See `Session.dead_letters`."""
        keys = sorted(key for key in self.dead_letters if after is None or key > after.dedupe_key)
        return limit_dead_letters(
            self.dead_letters[key] for key in keys if self.dead_letters[key].retry_requested or not retry_requested
        )


_NO_CHANGES: Mapping[str, str | None] = MappingProxyType({})


class MemoryStore:
    """Keeps cursors and dedupe records in memory: gone with this object, and not seen by other processes.

    A consumer made again on the same object goes on where the last one stopped, so a test can play a restart.
    For one thread at a time.

    Args:
        retention: Seconds after which a dedupe record may go; `None` keeps it however old it is. It must outlast
            the longest replay of the feed. It may stay for an eighth longer, as records go together. Between two
            commits a record ages by an eighth of it at most, and not at all if the clock steps by more than all of
            it: a clock that is set removes nothing.
        max_records: How many dedupe records each name keeps at least before the oldest go, 8,000 together or an
            eighth; `None` keeps any number. It must outnumber the longest replay of the feed. Those of the last
            commit that saved a cursor, and all since, stay in any case. A record that is made again, as by
            `replay()`, counts once, and is as old as the first one.
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
        self._progress: dict[str, MemoryProgress] = {}
        # Weak: a session that was dropped without `release()` must not hold its name for ever.
        self._owners: WeakValueDictionary[str, _MemorySession] = WeakValueDictionary()

    async def claim(self, name: str, *, feed: str) -> "_MemorySession":
        """Become the one owner of `name`, which is bound to the feed called `feed` by its first claim.

        Raises:
            StoreBusy: The name has an owner.
            StoreMismatch: The name is bound to another feed.
        """
        await checkpoint()
        self._check_unowned(name)
        progress = self._progress.get(name)
        if progress is None:
            progress = self._progress[name] = MemoryProgress(feed, self._retention, self._clock())
        if progress.feed != feed:
            raise StoreMismatch(
                f"the name {quoted(name)} of this MemoryStore is bound to the feed {quoted(progress.feed)}, not "
                f"to {quoted(feed)}; if that is the same feed at another address, call rebind() of the store, "
                "else use another name",
                bound_to=progress.feed,
            )
        progress.token += 1
        session = self._owners[name] = _MemorySession(name, progress, self._owners, self._clock)
        return session

    async def rebind(
        self, name: str, *, feed: str | None = None, new_name: str | None = None, replace: bool = False
    ) -> None:
        """Bind a name to another feed, or rename it; see `SQLiteStore.rebind`.

        Raises:
            StoreBusy: One of the names has an owner.
            ValueError: There is no such name, or the new one exists already; or an argument has no meaning.
            TypeError: An argument is not a `str`.
        """
        await checkpoint()
        asked = Rebind(name, feed, new_name, replace)
        self._check_unowned(name)
        progress = self._progress.get(name)
        if progress is None:
            raise asked.unknown_name("this MemoryStore")
        target = asked.target(progress.feed)
        if target != name:
            self._check_unowned(target)
            if target in self._progress:
                asked.check_free("this MemoryStore", target)
            self._progress[target] = self._progress.pop(name)
        progress.feed = progress.feed if feed is None else feed
        progress.token += 1

    def _check_unowned(self, name: str) -> None:
        if name in self._owners:
            raise StoreBusy(
                f"the name {quoted(name)} of this MemoryStore has an owner; release it, or use another name"
            )

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._progress)} names)"


class _MemorySession:
    """A claimed name of a `MemoryStore`."""

    def __init__(
        self,
        name: str,
        progress: MemoryProgress,
        owners: WeakValueDictionary[str, "_MemorySession"],
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._progress = progress
        self._owners = owners
        self._clock = clock
        self._saved = progress.saved
        self._token = progress.token

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        return self._saved.cursor

    @property
    def fencing_token(self) -> int:
        """The fencing token: one more for each claim of the name."""
        return self._token

    @property
    def record_count(self) -> int:
        """Number of dedupe records of the name."""
        return self._progress.segments.size

    @property
    def dead_letter_count(self) -> int:
        """How many dead letters the name has."""
        return len(self._progress.dead_letters)

    @property
    def state(self) -> Mapping[str, str]:
        """What was committed as `state`."""
        return self._progress.state

    @property
    def history(self) -> Sequence[SavedCursor]:
        """The cursors that were saved, the oldest first; the last is the saved one."""
        return (*self._progress.previous, self._progress.saved)

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Those of `keys` without a record.

        Raises:
            OwnershipLost: The session was released.
        """
        await self._checkpoint()
        return {key for key in keys if key not in self._progress.records}

    async def fingerprints(self, keys: Sequence[str], /) -> Mapping[str, int]:
        """The fingerprints of those of `keys` that have a record with one; of several, the newest.

        Raises:
            OwnershipLost: The session was released.
        """
        await self._checkpoint()
        return self._progress.fingerprints(keys)

    async def commit(
        self,
        *,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = _NO_CHANGES,
        read_at: float | None = None,
    ) -> None:
        """Save all of it, or nothing.

        Args:
            cursor: The cursor to save; `None` leaves the saved one.
            records: To add. One whose key has a record already replaces it; one that is not dead takes the dead
                letter of its key away.
            dead_letters: To add; one whose key has a dead letter already replaces it.
            state: What to change of `state`; `None` takes a name away.
            read_at: When the page arrived that the cursor is of, in seconds since the epoch;
                `None`: now.

        Raises:
            OwnershipLost: The session was released, or the name claimed by somebody else; nothing was written.
        """
        await self._checkpoint()
        now = self._clock()
        self._progress.save(
            cursor, {record.key: record for record in records}, now, now if read_at is None else read_at
        )
        self._progress.add_dead_letters(dead_letters)
        self._progress.change_state(state)
        self._saved = self._progress.saved

    async def reset(
        self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None] = _NO_CHANGES
    ) -> None:
        """Go on from another place: `history` begins anew with this cursor.

        Args:
            cursor: Where to go on; `None` is the inception.
            forget: Begin a new dedupe epoch: what was recorded counts no more. Dead letters stay.
            state: As for `commit`.

        Raises:
            OwnershipLost: As for `commit`.
        """
        await self._checkpoint()
        self._progress.restart(cursor, self._clock(), forget=forget)
        self._progress.change_state(state)
        self._saved = self._progress.saved

    async def dead_letters(
        self, *, after: DeadLetter | None = None, retry_requested: bool = False
    ) -> Sequence[DeadLetter]:
        """Some dead letters, in the order of their keys: 100 at most, or fewer that have 16 MiB together.

        Args:
            after: The last one that the caller has; `None`: from the first.
            retry_requested: Only those that the next run is to try again.

        Raises:
            OwnershipLost: The session was released.
        """
        await self._checkpoint()
        return self._progress.some_dead_letters(after, retry_requested=retry_requested)

    async def dead_letter(self, key: str, /) -> DeadLetter | None:
        """The dead letter of a key; `None`: it has none.

        Raises:
            OwnershipLost: The session was released.
        """
        await self._checkpoint()
        return self._progress.dead_letters.get(key)

    async def release(self) -> None:
        """Give the name back. Never raises; a second call does nothing."""
        if self._owners.get(self._name) is self:
            del self._owners[self._name]

    async def _checkpoint(self) -> None:
        """Let other tasks run, then check the ownership. Before any change: a cancelled commit must not write."""
        await checkpoint()
        self._check()

    def _check(self) -> None:
        if self._owners.get(self._name) is not self:
            raise OwnershipLost(
                f"the name {quoted(self._name)} of this MemoryStore was released or claimed again since this "
                "session began; nothing was written; claim it again"
            )
