"""A small store of your own: all progress is in one file, and each commit replaces the file.

    Consumer(feed, store=FileStore("orders.state"), name="orders", process=process)

It passes `StoreSuite`, so a consumer that uses it keeps its guarantees. Use it as a model for a store on your own
database. Do not use it instead of `SQLiteStore`: each commit writes the whole file, records are never removed, and
only one `FileStore` object may use the file. It uses pickle: a user who can write to the file can run code in your
process.
"""

import os
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from push_to_poll_client import (
    Cursor,
    DeadLetter,
    OwnershipLost,
    Record,
    SavedCursor,
    Settlement,
    StoreBusy,
    StoreError,
    StoreMismatch,
)

MAX_HISTORY = 256
MAX_DEAD_LETTERS, MAX_BYTES = 100, 16 << 20
"""Most dead letters, and most bytes of them, that one call of `dead_letters()` returns."""


@dataclass(frozen=True)
class Progress:
    """Progress of one consumer name. A change creates a new object, so a failed write changes nothing."""

    feed: str
    token: int = 0
    history: tuple[SavedCursor, ...] = ()
    records: Mapping[str, Record] = field(default_factory=dict)
    letters: Mapping[str, DeadLetter] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)

    def saving(self, cursor: Cursor | None, read_at: float) -> tuple[SavedCursor, ...]:
        """Return the history with this cursor as the saved cursor. None means no change."""
        *earlier, saved = self.history
        if cursor is None or cursor == saved.cursor:
            return self.history
        if not earlier or not 0 <= saved.read_at - earlier[-1].read_at < 1:  # one cursor a second is enough
            earlier.append(saved)
        return (*earlier[1 - MAX_HISTORY :], SavedCursor(cursor, read_at))

    def changing(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Return the state with these changes. A value of None removes the name."""
        return {name: text for name, text in {**self.state, **changes}.items() if text is not None}


class FileStore:
    """Keeps the progress of each consumer name in one file.

    Args:
        path: The file. The first claim creates it. Only this object may use it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.owners: dict[str, FileSession] = {}

    async def claim(self, name: str, *, feed: str) -> "FileSession":
        """Become the owner of a name."""
        if name in self.owners:
            raise StoreBusy(f"{name!r} is in use by another consumer of this process")
        saved = self.load().get(name) or Progress(feed, history=(SavedCursor(None, time.time()),))
        if saved.feed != feed:
            raise StoreMismatch(f"{name!r} belongs to {saved.feed}, not to {feed}", bound_to=saved.feed)
        claimed = replace(saved, token=saved.token + 1)
        self.save(name, claimed)
        session = self.owners[name] = FileSession(self, name, claimed)
        return session

    def load(self) -> dict[str, Progress]:
        """Read the progress of all names."""
        try:
            names: dict[str, Progress] = pickle.loads(self.path.read_bytes())  # noqa: S301  # our own file
        except FileNotFoundError:
            return {}
        except (OSError, pickle.UnpicklingError, EOFError) as error:
            raise StoreError(f"cannot read {self.path}: {error}") from error
        return names

    def save(self, name: str, progress: Progress) -> None:
        """Replace the file by a new one in one step, so a crash leaves the old or the new file."""
        temporary = self.path.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                pickle.dump({**self.load(), name: progress}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error}") from error


class FileSession:
    """A claimed name: the right to read and write its progress."""

    def __init__(self, store: FileStore, name: str, progress: Progress) -> None:
        self.store, self.name, self.progress = store, name, progress

    def owned(self) -> Progress:
        """Return the progress, or raise if the name has another owner now."""
        if self.store.owners.get(self.name) is not self:
            raise OwnershipLost(f"{self.name!r} was released or claimed again since this session began")
        return self.progress

    def write(self, progress: Progress) -> None:
        """Save the progress. If that fails, this session still shows what was saved before."""
        self.store.save(self.name, progress)
        self.progress = progress

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor."""
        return self.progress.history[-1].cursor

    @property
    def fencing_token(self) -> int:
        """Number of this claim; each claim of the name has a higher one."""
        return self.progress.token

    @property
    def record_count(self) -> int:
        """Number of records."""
        return len(self.progress.records)

    @property
    def dead_letter_count(self) -> int:
        """Number of dead letters."""
        return len(self.progress.letters)

    @property
    def state(self) -> Mapping[str, str]:
        """Short texts by name, such as the attempts of failing messages, and subscriptions."""
        return self.progress.state

    @property
    def history(self) -> Sequence[SavedCursor]:
        """The saved cursors, oldest first."""
        return self.progress.history

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Return the keys without a record."""
        records = self.owned().records
        return {key for key in keys if key not in records}

    async def fingerprints(self, keys: Sequence[str], /) -> Mapping[str, int]:
        """Return the fingerprints of the keys that have one."""
        found = [record for key in keys if (record := self.owned().records.get(key))]
        return {record.key: record.fingerprint for record in found if record.fingerprint is not None}

    async def commit(
        self,
        *,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = {},
        read_at: float | None = None,
    ) -> None:
        """Save all of this, or nothing."""
        old = self.owned()
        added = {record.key: record for record in records}  # the last one of a key counts
        settled = {key for key, record in added.items() if record.state is not Settlement.DEAD_LETTERED}
        letters = {key: letter for key, letter in old.letters.items() if key not in settled}
        letters |= {letter.dedupe_key: letter for letter in dead_letters}
        new = replace(
            old,
            history=old.saving(cursor, time.time() if read_at is None else read_at),
            records={**old.records, **added},
            letters=letters,
            state=old.changing(state),
        )
        self.write(new)

    async def reset(
        self,
        cursor: Cursor | None,
        *,
        forget: bool,
        state: Mapping[str, str | None] = {},
    ) -> None:
        """Continue from another place of the feed. With `forget`, delete the records of processed messages."""
        old = self.owned()
        history = (SavedCursor(cursor, time.time()),)
        records = {} if forget else old.records
        self.write(replace(old, history=history, records=records, state=old.changing(state)))

    async def dead_letters(
        self, *, after: DeadLetter | None = None, retry_requested: bool = False
    ) -> Sequence[DeadLetter]:
        """Return some dead letters in the order of their keys: at most 100, at most 16 MiB, at least one."""
        page: list[DeadLetter] = []
        size = 0
        for key, letter in sorted(self.owned().letters.items()):
            is_marked = letter.retry_requested or letter.drop_requested
            if (after and key <= after.dedupe_key) or (retry_requested and not is_marked):
                continue
            size += len(letter.raw) + len(letter.traceback)
            if page and (size > MAX_BYTES or len(page) == MAX_DEAD_LETTERS):
                break
            page.append(letter)
        return page

    async def dead_letter(self, key: str, /) -> DeadLetter | None:
        """Return the dead letter of a key, or None."""
        return self.owned().letters.get(key)

    async def release(self) -> None:
        """Release the name. A second call does nothing."""
        if self.store.owners.get(self.name) is self:
            del self.store.owners[self.name]
