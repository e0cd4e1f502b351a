"""What does a `MemoryStore` keep for one consumer name?"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from push_to_poll_client._types import Cursor, DeadLetter, Record, RecordState, SavedCursor
from push_to_poll_client.stores._history import with_saved
from push_to_poll_client.stores._letters import some_of
from push_to_poll_client.stores._retention import Retention
from push_to_poll_client.stores._segments import Segments

__all__ = ["MemoryProgress"]


class MemoryProgress:
    """The progress of one name.

    Args:
        feed: What the name is bound to.
        retention: Which records go.
        now: When it begins, in seconds since the epoch.

    Attributes:
        token: The fencing token of the last claim.
        saved: The saved cursor.
        before: Those that were saved before, as far as they are remembered, the oldest first.
        state: What was committed as state.
        segments: In which the records are counted.
        records: For each key the number of its segment, and its newest record.
        letters: The dead letters by their keys.
    """

    def __init__(self, feed: str, retention: Retention, now: float) -> None:
        self.feed = feed
        self.token = 0
        self.saved = SavedCursor(None, now)
        self.before: tuple[SavedCursor, ...] = ()
        self.state: Mapping[str, str] = MappingProxyType({})
        self.segments = Segments(retention)
        self.records: dict[str, tuple[int, Record]] = {}
        self.letters: dict[str, DeadLetter] = {}
        self._keys: dict[int, list[str]] = {}

    def settle(self, cursor: Cursor | None, records: Mapping[str, Record], now: float, read_at: float) -> None:
        """Save the cursor (`None` leaves the saved one) and add the records; what may go goes."""
        behind = self.segments.behind if cursor is None else self.segments.taking(now).number
        if cursor is not None and cursor != self.saved.cursor:
            self.before, self.saved = with_saved(self.before, self.saved), SavedCursor(cursor, read_at)
        keys, written = list(records), []
        for segment, number in self.segments.shares(len(keys), now):
            taken, keys = keys[:number], keys[number:]
            written.append(segment.with_more(self._add(segment.number, taken, records), taken, now))
        step = self.segments.step(written, behind=behind, now=now)
        self.segments.take(step)
        for number in step.dropped:
            self._drop(number)

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        """The fingerprints of those of the keys whose record has one."""
        known = ((key, self.records[key][1].fingerprint) for key in keys if key in self.records)
        return {key: fingerprint for key, fingerprint in known if fingerprint is not None}

    def restart(self, cursor: Cursor | None, now: float, *, forget: bool) -> None:
        """Go on from this cursor, with nothing remembered of those before; `forget` the records too."""
        self.before, self.saved = (), SavedCursor(cursor, now)
        self.segments.behind = self.segments.taking(now).number
        if forget:
            self.segments.forget()
            self.records.clear()
            self._keys.clear()

    def change(self, state: Mapping[str, str | None]) -> None:
        """Change these names of the state; `None` takes one away."""
        changed = {**self.state, **state}
        self.state = MappingProxyType({name: value for name, value in changed.items() if value is not None})

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Add dead letters; one whose key has one already replaces it."""
        self.letters.update((letter.key, letter) for letter in letters)

    def some_letters(self, after: DeadLetter | None, *, marked: bool) -> list[DeadLetter]:
        """See `Session.dead_letters`."""
        keys = sorted(key for key in self.letters if after is None or key > after.key)
        return some_of(self.letters[key] for key in keys if self.letters[key].marked or not marked)

    def _add(self, segment: int, keys: Sequence[str], records: Mapping[str, Record]) -> int:
        """Add the records of these keys to a segment; how many more it has then."""
        added = [key for key in keys if self.records.get(key, (0,))[0] != segment]
        self._keys.setdefault(segment, []).extend(added)
        for key in keys:
            self.records[key] = segment, records[key]
            if records[key].state is not RecordState.DEAD:
                self.letters.pop(key, None)
        return len(added)

    def _drop(self, segment: int) -> None:
        for key in self._keys.pop(segment, ()):
            if self.records[key][0] == segment:
                del self.records[key]
