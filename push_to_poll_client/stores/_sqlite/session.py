"""Consumer names of a file: claim one, save its progress, and bind one to another feed.

`ClaimedName` runs in the thread of the store. Its copy of the progress in memory changes only after the
transaction is committed, so an error leaves file and memory as they were. `SQLiteSession` calls it with at most
one hop to that thread. `TransactionalSQLiteSession` commits a handler's writes and the records of its messages
together.

A consumer without `name=` is named after its feed's identity. If the feed's URL changes, a new name begins, and
everything is processed again. With `name=` such a change is a `StoreMismatch`, but a changed name starts at the
beginning too. So a new name in a file that has others is logged once, and `rebind` gives it the old progress.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, TypeVar

import anyio
import msgspec
from anyio import CancelScope

from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Cursor, DeadLetter, Record, SavedCursor
from push_to_poll_client.stores._names import (
    MAX_OTHERS_SHOWN,
    ClaimedSession,
    Rebind,
    bound_elsewhere,
    log_new_name,
    ownership_lost,
)
from push_to_poll_client.stores._retention import MAX_HISTORY, Count, CursorState, Retention
from push_to_poll_client.stores._sqlite.dead_letters import StoredDeadLetters
from push_to_poll_client.stores._sqlite.file import OpenFile
from push_to_poll_client.stores._sqlite.records import EncodedRecords, Records, encode_keys, encode_records
from push_to_poll_client.stores._sqlite.schema import decode_text, encode_text, warn_of_old_sqlite
from push_to_poll_client.stores._sqlite.transaction import Effects, SharedFile, Transaction

_logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_CLAIM = """
    INSERT INTO push_to_poll_consumer(name, feed, token, at) VALUES (?, ?, 1, ?)
    ON CONFLICT(name) DO UPDATE SET token = token + 1
"""
_SELECT_CONSUMER = """
    SELECT id, feed, token, cursor, at, first, behind FROM push_to_poll_consumer WHERE name = ?
"""
_SELECT_OTHERS = """
    SELECT name, feed = :feed FROM push_to_poll_consumer WHERE name != :name
    ORDER BY feed != :feed, name LIMIT :limit
"""
_HISTORY = """
    SELECT cursor, at FROM push_to_poll_history WHERE consumer = ? ORDER BY number
"""
_REMEMBER = """
    INSERT OR REPLACE INTO push_to_poll_history(consumer, slot, number, cursor, at)
    SELECT :consumer, number % :most, number, :cursor, :at
    FROM (SELECT coalesce(max(number), 0) + 1 AS number FROM push_to_poll_history WHERE consumer = :consumer)
"""
_SAVE = """
    UPDATE push_to_poll_consumer SET cursor = ?, at = ?, behind = ? WHERE id = ? AND token = ?
"""
_REBIND = "UPDATE push_to_poll_consumer SET name = ?, feed = ?, token = token + 1 WHERE id = ?"

TABLES_OF_A_NAME = (
    "push_to_poll_segment",
    "push_to_poll_record",
    "push_to_poll_dead_letter",
    "push_to_poll_history",
    "push_to_poll_state",
)
"""Tables with rows of a consumer name, besides its own row."""


class ConsumerRow(NamedTuple):
    """Row of a name, in the order of `_SELECT_CONSUMER`."""

    id: int
    feed: str
    token: Count
    cursor: str | None
    at: float
    first: Count
    prunable_before: Count

    @property
    def saved(self) -> SavedCursor:
        return SavedCursor(self.cursor, self.at)


def select_consumer(connection: sqlite3.Connection, name: str) -> ConsumerRow | None:
    """Read the row of a name; None if there is none."""
    row = connection.execute(_SELECT_CONSUMER, (encode_text(name),)).fetchone()
    return None if row is None else msgspec.convert(tuple(map(decode_text, row)), ConsumerRow)


def read_history(connection: sqlite3.Connection, consumer: int) -> tuple[SavedCursor, ...]:
    """Read the remembered cursors that were saved before the saved one, the oldest first."""
    rows = connection.execute(_HISTORY, (consumer,))
    return msgspec.convert(tuple((decode_text(cursor), at) for cursor, at in rows), tuple[SavedCursor, ...])


def read_state(connection: sqlite3.Connection, consumer: int) -> Mapping[str, str]:
    rows = connection.execute("SELECT name, value FROM push_to_poll_state WHERE consumer = ?", (consumer,))
    state = {decode_text(name): decode_text(value) for name, value in rows}
    return MappingProxyType(msgspec.convert(state, dict[str, str]))  # a session shows it to its user


_T = TypeVar("_T")

OnRelease: TypeAlias = Callable[["SQLiteSession"], Callable[[], None] | None]


class ClaimedName:
    """A name of a `SQLiteStore`, claimed by the constructor."""

    def __init__(
        self, file: OpenFile, name: str, feed: str, *, retention: Retention, clock: Callable[[], float]
    ) -> None:
        self._file = file
        self.name = name
        self._clock = clock
        with file.transaction():
            file.connection.execute(_CLAIM, (encode_text(name), encode_text(feed), clock()))
            row = select_consumer(file.connection, name)
            assert row is not None  # it was just claimed  # noqa: S101
            if row.feed != feed:
                raise bound_elsewhere(file.path, name, bound_to=row.feed, feed=feed)
            self.token = row.token
            self._consumer = row.id
            consumer = (file.connection, row.id)
            self.records = Records(*consumer, retention, first=row.first, prunable_before=row.prunable_before)
            self.segments = self.records.segments
            self._dead_letters = StoredDeadLetters(*consumer)
            self._dead_letter_index = self._dead_letters.read_index()
            self.cursor_state = CursorState(row.saved, read_history(*consumer), read_state(*consumer))
        if row.token == 1:
            self._log_new(feed)

    def _log_new(self, feed: str) -> None:
        """Log that the name is new, if there are others."""
        values = {"name": encode_text(self.name), "feed": encode_text(feed), "limit": MAX_OTHERS_SHOWN + 1}
        rows = self._file.connection.execute(_SELECT_OTHERS, values).fetchall()
        others = [(str(decode_text(name)), bool(same_feed)) for name, same_feed in rows]
        log_new_name(_logger, self._file.path, self.name, feed, others)

    @property
    def dead_letter_count(self) -> int:
        return self._dead_letter_index.total

    def unseen(self, keys: Sequence[str]) -> set[str]:
        stored_keys = encode_keys(keys)
        seen = self.records.find(stored_keys)
        if not seen:
            return set(keys)
        return {key for key, stored_key in zip(keys, stored_keys, strict=True) if stored_key not in seen}

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        stored_keys = encode_keys(keys)
        found = self.records.fingerprints(stored_keys)
        stored = zip(keys, stored_keys, strict=True)
        return msgspec.convert({key: found[each] for key, each in stored if each in found}, dict[str, int])

    def some_dead_letters(self, after: DeadLetter | None, *, retry_requested: bool) -> Sequence[DeadLetter]:
        key = None if after is None else after.dedupe_key
        return self._dead_letters.read_some(key, retry_requested=retry_requested)

    def dead_letter(self, key: str) -> DeadLetter | None:
        return self._dead_letters.read_one(key)

    def commit(
        self,
        cursor: Cursor | None,
        records: EncodedRecords,
        dead_letters: Sequence[DeadLetter],
        state: Mapping[str, str | None],
        read_at: float | None,
    ) -> None:
        replaced = self.records.segments_of(records)
        with self._file.transaction():
            now, before = self._clock(), self.cursor_state
            cursor_state = before.saving(cursor, now if read_at is None else read_at)
            prunable_before = (
                self.segments.prunable_before if cursor is None else self.segments.current(now).number
            )
            self._save(cursor_state.saved, prunable_before)
            if cursor_state.previous is not before.previous:
                cursor_before, at = encode_text(before.saved.cursor), before.saved.read_at
                # By name: Python 3.12.0 to 3.12.3 warn of numbers.
                values = {"consumer": self._consumer, "most": MAX_HISTORY, "cursor": cursor_before, "at": at}
                self._file.connection.execute(_REMEMBER, values)
            if state:
                self._change_state(state)
            changes = self.records.write(records, replaced, prunable_before=prunable_before, now=now)
            index = self._dead_letter_index
            if dead_letters or index.total:
                index = self._dead_letters.write(index, records.settled, dead_letters)
        self.records.apply(changes)
        self._dead_letter_index, self.cursor_state = index, cursor_state.changing(state)

    def reset(self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None]) -> None:
        with self._file.transaction():
            now = self._clock()
            saved, prunable_before = SavedCursor(cursor, now), self.segments.current(now).number
            self._save(saved, prunable_before)
            self._file.connection.execute("DELETE FROM push_to_poll_history WHERE consumer = ?", (self._consumer,))
            self._change_state(state)
            if forget:
                self.records.forget_all()
        self.cursor_state = CursorState(saved, (), self.cursor_state.state).changing(state)
        self.records.apply_reset(prunable_before, forget=forget)

    def _save(self, saved: SavedCursor, prunable_before: int) -> None:
        values = (encode_text(saved.cursor), saved.read_at, prunable_before, self._consumer, self.token)
        # Fails unless the fencing token is still ours: the lock file can be deleted, the token cannot.
        if not self._file.connection.execute(_SAVE, values).rowcount:
            raise ownership_lost(self._file.path, self.name, "was claimed by another session")

    def _change_state(self, changes: Mapping[str, str | None]) -> None:
        execute = self._file.connection.execute
        for name, value in changes.items():
            key = (self._consumer, encode_text(name))
            if value is None:
                execute("DELETE FROM push_to_poll_state WHERE consumer = ? AND name = ?", key)
            else:
                execute("INSERT OR REPLACE INTO push_to_poll_state VALUES (?, ?, ?)", (*key, encode_text(value)))


class SQLiteSession(ClaimedSession):
    """A claimed name of a `SQLiteStore`."""

    # The first `release()` calls `on_release`, which returns work left for the store's thread, or None.

    _progress: ClaimedName
    _transaction: Transaction | None = None

    def __init__(self, file: OpenFile, progress: ClaimedName, on_release: OnRelease) -> None:
        super().__init__(progress)
        self.name: str = progress.name
        self._file = file
        self._on_release = on_release
        self._released = False
        self._calls = 0  # that wait for the thread

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Return the keys that have no record; see `ClaimedSession.unseen`."""
        self._check_caller()
        self._check_released()
        if self._progress.records.are_new(encode_keys(keys)):  # then no thread has to ask the file
            return set(keys)
        return await super().unseen(keys)

    async def release(self) -> None:
        """Release the name. Never raises; a second call does nothing."""
        if self._file.process != os.getpid():
            return
        finish = None if self._released else self._on_release(self)
        self._released = True
        if self._calls or finish is not None or (self._transaction is not None and self._transaction.is_open):
            with CancelScope(shield=True):
                await self._file.thread.run(partial(self._finish_release, finish), urgent=True)

    def _finish_release(self, finish: Callable[[], None] | None) -> None:
        if self._transaction is not None:
            self._transaction.abandon()
        if finish is not None:
            finish()

    def _prepare(self, records: Sequence[Record]) -> EncodedRecords:
        encoded = encode_records(records)
        # Before the thread starts: it goes on writing when this task is cancelled.
        self._progress.records.expect_keys(encoded.keys)
        return encoded

    async def _run(self, work: Callable[[], _T]) -> _T:
        self._check_caller()
        self._calls += 1
        try:
            return await self._file.thread.run(partial(self._do, work), self._transaction)
        finally:
            self._calls -= 1

    def _do(self, work: Callable[[], _T]) -> _T:
        self._check_released()
        return work()

    def _check_caller(self) -> None:
        if self._file.process != os.getpid():  # a forked child has no thread of the store
            why = "belongs to the process that this one was forked from"
            raise ownership_lost(self._file.path, self.name, why)

    def _check_released(self) -> None:
        if self._released:
            raise ownership_lost(self._file.path, self.name, "was released")


class TransactionalSQLiteSession(SQLiteSession):
    """A claimed name of a `SQLiteStore` that is transactional. For the arguments see `SQLiteSession`."""

    _file: SharedFile
    _transaction: Transaction

    def __init__(self, file: SharedFile, progress: ClaimedName, on_release: OnRelease) -> None:
        super().__init__(file, progress, on_release)
        self._transaction = Transaction(file)
        # Written by `transaction` and not given to `commit` yet, which is not to write them again.
        self._written: dict[str, Record] = {}

    def transaction(self, records: Sequence[Record], /) -> Effects:
        """Commit the handler's writes together with `records` at the end of the block, or neither (G8)."""
        # The handler's first statement begins the transaction. Without a statement, the next `commit` saves the
        # records; it gets them in any case.
        super()._check_caller()
        warn_of_old_sqlite(shared=True)
        return Effects(
            self._transaction,
            partial(self._commit_effects, records),
            check=self._check_released,
        )

    def _commit_effects(self, records: Sequence[Record]) -> None:
        self._progress.commit(None, encode_records(records), (), {}, None)
        self._written.update((record.key, record) for record in records)

    def _prepare(self, records: Sequence[Record]) -> EncodedRecords:
        return super()._prepare([record for record in records if self._written.pop(record.key, None) != record])

    @property
    def _gate(self) -> anyio.Lock:
        self._file.guard.check_outside()
        return self._transaction.gate

    def _check_caller(self) -> None:
        super()._check_caller()
        if not self._transaction.is_open:  # else the jobs of other sessions wait for this one
            self._file.guard.check_outside()

    def _do(self, work: Callable[[], _T]) -> _T:
        self._check_released()  # else the file may be closed
        with self._file.access():
            return work()


def rebind(file: OpenFile, asked: Rebind, check_unowned: Callable[[str], None]) -> None:
    """See `SQLiteStore.rebind`. The caller has access to the file."""
    execute = file.connection.execute
    with file.transaction():
        row = select_consumer(file.connection, asked.name)
        if row is None:
            raise asked.unknown_name(file.path)
        target = asked.target(row.feed)
        if target != asked.name:
            check_unowned(target)
            if (other := select_consumer(file.connection, target)) is not None:
                asked.check_free(file.path, target)
                for table in TABLES_OF_A_NAME:
                    execute(f"DELETE FROM {table} WHERE consumer = ?", (other.id,))  # noqa: S608  # a constant
                execute("DELETE FROM push_to_poll_consumer WHERE id = ?", (other.id,))
        # The token too, for a former owner whose lock file was deleted.
        feed = row.feed if asked.feed is None else asked.feed
        execute(_REBIND, (encode_text(target), encode_text(feed), row.id))
