"""What is read and written for one claimed consumer name? In worker threads, never two on one file at a time.

What is known of the file here changes when the file has changed: when a transaction is committed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec

from push_to_poll_client._exceptions import OwnershipLost, StoreMismatch
from push_to_poll_client._types import Cursor, DeadLetter, SavedCursor
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._retention import Retention
from push_to_poll_client.stores._sqlite_file import OpenFile, named_damage, named_errors
from push_to_poll_client.stores._sqlite_letters import Letters
from push_to_poll_client.stores._sqlite_place import Places
from push_to_poll_client.stores._sqlite_records import Given, Records
from push_to_poll_client.stores._sqlite_text import restored, stored

__all__ = ["ClaimedName", "lost"]

_CLAIM = """
    INSERT INTO push_to_poll_consumer(name, feed, token, at) VALUES (?, ?, 1, ?)
    ON CONFLICT(name) DO UPDATE SET token = token + 1
"""
_ROW = "SELECT id, token, cursor, at, feed, first, behind FROM push_to_poll_consumer WHERE name = ?"

_FEED = 300
"""Characters of a feed's name that are shown: most addresses are shorter, and the two can be compared."""

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""No consumer gets that far, and what is added to it is still an integer to SQLite."""


class _Row(NamedTuple):
    """What stands in the file for a name."""

    id: int
    token: _Count
    cursor: str | None
    at: float
    feed: str
    first: _Count
    behind: _Count


class ClaimedName:
    """A name of a `SQLiteStore` that is claimed by being made. For the arguments see `SQLiteSession`.

    Attributes:
        name: What is claimed.
        token: The fencing token.
        place: Where the name stands.
        letters: What is known of its dead letters.
        records: Its records.

    Raises:
        StoreMismatch: The name was used with another feed.
        StoreError: The file cannot be written, or holds what this library does not write.
    """

    def __init__(
        self, file: OpenFile, name: str, feed: str, *, retention: Retention, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._file = file
        self._clock = clock
        with file.transaction():
            row = self._claim(stored(name), feed)
            which = (file.connection, file.path, row.id)
            self.records = Records(*which, retention, first=row.first, behind=row.behind)
            self._letters = Letters(*which)
            self.letters = self._letters.known()
            self._places = Places(*which, row.token)
            self.place = self._places.read(SavedCursor(row.cursor, row.at))
        self.token = row.token

    def _claim(self, name: str | bytes, feed: str) -> _Row:
        execute = self._file.connection.execute
        execute(_CLAIM, (name, stored(feed), self._clock()))
        with named_damage(self._file.path):
            row = msgspec.convert(list(map(restored, execute(_ROW, (name,)).fetchone())), _Row)
        if row.feed != feed:
            raise StoreMismatch(
                f"{self._file.path}: the name {quoted(self.name)} was used with the feed "
                f"{quoted(row.feed, _FEED)}, not {quoted(feed, _FEED)}; use another name"
            )
        return row

    def seen(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys, as they stand in the file, that have a record."""
        with named_errors(self._file.path):
            return self.records.search.find(keys)

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        """The fingerprints of the keys, as they stand in the file, whose newest record has one."""
        with named_errors(self._file.path), named_damage(self._file.path):
            return msgspec.convert(self.records.search.fingerprints(keys), dict[str, int])

    def some_letters(self, after: DeadLetter | None, marked: bool) -> Sequence[DeadLetter]:  # noqa: FBT001
        """See `Session.dead_letters`."""
        with named_errors(self._file.path):
            return self._letters.some(after, marked=marked)

    def letter(self, key: str) -> DeadLetter | None:
        """See `Session.dead_letter`."""
        with named_errors(self._file.path):
            return self._letters.of(key)

    def commit(
        self,
        cursor: Cursor | None,
        given: Given,
        letters: Sequence[DeadLetter],
        state: Mapping[str, str | None],
        read_at: float | None,
    ) -> None:
        """See `Session.commit`."""
        with self._file.transaction():
            now, saved = self._clock(), self.place.saved
            if cursor is not None and cursor != saved.cursor:
                saved = SavedCursor(cursor, now if read_at is None else read_at)
            behind = self.records.behind(now, moves=cursor is not None)
            self._save(saved, behind)
            change = self.records.write(given, behind=behind, now=now)
            known = self._letters.write(self.letters, given.settled, letters)
            place = self._places.move(self.place, saved, state)
        self.records.take(change)
        self.letters, self.place = known, place

    def reset(self, cursor: Cursor | None, forget: bool, state: Mapping[str, str | None]) -> None:  # noqa: FBT001
        """See `Session.reset`."""
        with self._file.transaction():
            now = self._clock()
            saved, behind = SavedCursor(cursor, now), self.records.behind(now, moves=True)
            self._save(saved, behind)
            place = self._places.restart(self.place, saved, state)
            if forget:
                self.records.write_forgotten()
        self.place = place
        self.records.moved(behind, forget=forget)

    def _save(self, saved: SavedCursor, behind: int) -> None:
        """Still the owner? Locks beside the database can be deleted, the token cannot."""
        if not self._places.save(saved, behind=behind):
            raise lost(self._file.path, self.name, "was claimed by somebody else")


def lost(path: str, name: str, why: str) -> OwnershipLost:
    """The error of who does not own a name any more."""
    return OwnershipLost(f"{path}: the name {quoted(name)} {why}; nothing was written; claim it again")
