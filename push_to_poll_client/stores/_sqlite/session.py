"""Session of a `SQLiteStore`: one claimed name, read and written in the thread of the store.

`SQLiteSession` calls its `ClaimedName` in that thread, with at most one hop for each call.
`TransactionalSQLiteSession` puts the writes of a handler and the records of its messages into one transaction.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, TypeVar, TypeVarTuple

import anyio
from anyio import CancelScope

from push_to_poll_client._types import Cursor, DeadLetter, Record, SavedCursor
from push_to_poll_client.stores._retention import Retention
from push_to_poll_client.stores._sqlite.claimed_name import ClaimedName, ownership_lost
from push_to_poll_client.stores._sqlite.file import OpenFile
from push_to_poll_client.stores._sqlite.records import encode_keys, encode_records
from push_to_poll_client.stores._sqlite.schema import warn_of_old_sqlite
from push_to_poll_client.stores._sqlite.thread import StoreThread
from push_to_poll_client.stores._sqlite.transaction import Effects, SharedFile, Transaction

NO_CHANGES: Mapping[str, str | None] = MappingProxyType({})

_Ts = TypeVarTuple("_Ts")
_T = TypeVar("_T")


class SQLiteSession:
    """A claimed name of a `SQLiteStore`.

    Args:
        file: The open file. The session is made in the thread of the store, within access to the file.
        name: The name to claim.
        feed: The feed that the name is bound to.
        retention: Which records may be dropped.
        clock: Seconds since the epoch.
        thread: The thread of the store.
        on_release: Called with the session by its first `release()`; returns what is left to be done in the thread
            of the store, or None.

    Raises:
        StoreMismatch: The name is bound to another feed.
        StoreError: The file cannot be written, or holds what this library does not write.
    """

    def __init__(
        self,
        file: OpenFile,
        name: str,
        feed: str,
        *,
        retention: Retention,
        clock: Callable[[], float],
        thread: StoreThread,
        on_release: Callable[["SQLiteSession"], Callable[[], None] | None],
    ) -> None:
        self.name = name
        self._file = file
        self._thread = thread
        self._transaction: Transaction | None = None
        self._on_release = on_release
        self._released = False
        self._calls = 0  # that wait for the thread
        self._claimed = ClaimedName(file, name, feed, retention=retention, clock=clock)

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        return self._claimed.cursor_state.saved.cursor

    @property
    def fencing_token(self) -> int:
        """The fencing token: one more for each claim of the name."""
        return self._claimed.token

    @property
    def record_count(self) -> int:
        """Number of dedupe records of the name."""
        return self._claimed.records.segments.size

    @property
    def dead_letter_count(self) -> int:
        """How many dead letters the name has."""
        return self._claimed.dead_letter_index.total

    @property
    def state(self) -> Mapping[str, str]:
        """What was committed as `state`."""
        return self._claimed.cursor_state.state

    @property
    def history(self) -> Sequence[SavedCursor]:
        """The cursors that were saved, the oldest first; the last is the saved one."""
        cursor_state = self._claimed.cursor_state
        return (*cursor_state.previous, cursor_state.saved)

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Those of `keys` without a record.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read.
        """
        self._check_process()
        self._check_released()
        stored_keys = encode_keys(keys)
        if self._claimed.records.are_new(stored_keys):  # then no thread has to ask the file
            return set(keys)
        seen = await self._run_in_thread(self._claimed.known_keys, tuple(stored_keys))
        if not seen:
            return set(keys)
        return {key for key, stored_key in zip(keys, stored_keys, strict=True) if stored_key not in seen}

    async def fingerprints(self, keys: Sequence[str], /) -> Mapping[str, int]:
        """The fingerprints of those of `keys` that have a record with one; of several, the newest.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read.
        """
        stored_keys = tuple(encode_keys(keys))
        found = await self._run_in_thread(self._claimed.fingerprints, stored_keys)
        return {
            key: found[stored_key]
            for key, stored_key in zip(keys, stored_keys, strict=True)
            if stored_key in found
        }

    async def commit(
        self,
        *,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = NO_CHANGES,
        read_at: float | None = None,
    ) -> None:
        """Save all of it, or nothing. Once begun, a commit ends even when its task is cancelled.

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
            StoreError: The file cannot be written, or holds what this library does not write; nothing was written.
        """
        encoded = encode_records(records)
        # Before the thread starts: it goes on writing when this task is cancelled.
        self._claimed.records.expect_keys(encoded.keys)
        await self._run_in_thread(self._claimed.commit, cursor, encoded, tuple(dead_letters), dict(state), read_at)

    async def reset(
        self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None] = NO_CHANGES
    ) -> None:
        """Go on from another place: `history` begins anew with this cursor.

        Args:
            cursor: Where to go on; `None` is the inception.
            forget: Begin a new dedupe epoch: what was recorded counts no more. Dead letters stay.
            state: As for `commit`.

        Raises:
            OwnershipLost: As for `commit`.
            StoreError: As for `commit`.
        """
        await self._run_in_thread(self._claimed.reset, cursor, forget, dict(state))

    async def dead_letters(
        self, *, after: DeadLetter | None = None, retry_requested: bool = False
    ) -> Sequence[DeadLetter]:
        """Some dead letters, in the order of their keys: 100 at most, or fewer that have 16 MiB together.

        Args:
            after: The last one that the caller has; `None`: from the first.
            retry_requested: Only those that the next run is to try again.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read, or holds what this library does not write.
        """
        return await self._run_in_thread(self._claimed.some_dead_letters, after, retry_requested)

    async def dead_letter(self, key: str, /) -> DeadLetter | None:
        """The dead letter of a key; `None`: it has none.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read, or holds what this library does not write.
        """
        return await self._run_in_thread(self._claimed.dead_letter, key)

    async def release(self) -> None:
        """Give the name back. Never raises; a second call does nothing."""
        if self._file.process != os.getpid():
            return
        finish = None if self._released else self._on_release(self)
        self._released = True
        if self._calls or finish is not None or (self._transaction is not None and self._transaction.is_open):
            with CancelScope(shield=True):
                await self._thread.run(partial(self._finish_release, finish), urgent=True)

    def _finish_release(self, finish: Callable[[], None] | None) -> None:
        if self._transaction is not None:
            self._transaction.abandon()
        if finish is not None:
            finish()

    async def _run_in_thread(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        self._check_process()
        self._calls += 1
        try:
            return await self._thread.run(partial(self._do, work, *args), self._transaction)
        finally:
            self._calls -= 1

    def _do(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        self._check_released()
        return work(*args)

    def _check_process(self) -> None:
        if self._file.process != os.getpid():  # a forked child has no thread of the store
            raise ownership_lost(
                self._file.path, self.name, "belongs to the process that this one was forked from"
            )

    def _check_released(self) -> None:
        if self._released:
            raise ownership_lost(self._file.path, self.name, "was released")


class TransactionalSQLiteSession(SQLiteSession):
    """A claimed name of a `SQLiteStore` that is transactional.

    For the arguments see `SQLiteSession`.
    """

    _file: SharedFile
    _transaction: Transaction

    def __init__(self, file: SharedFile, name: str, feed: str, **others: Any) -> None:
        super().__init__(file, name, feed, **others)
        self._transaction = Transaction(file.connection, self._thread, file.gaps)
        # Written by `transaction` and not given to `commit` yet, which is not to write them again.
        self._written: dict[str, Record] = {}

    def transaction(self, records: Sequence[Record], /) -> Effects:
        """Make what a handler writes within durable together with `records`, or neither (G8).

        That is when the block ends. The handler's first statement begins the transaction; without one, the records
        are left to the next `commit`, which is given them in any case. What raises out of the block takes back
        what was written within it. So does a `StoreError` of the block itself.

        Raises:
            RuntimeError: Within another block of the store.
            OwnershipLost: The session was released, or the name claimed by somebody else.
            TransactionConflict: The handler has to be called again, in another block with the same records.
            StoreError: The transaction could not be begun or committed, or the handler ended it.
        """
        self._check_process()
        warn_of_old_sqlite(shared=True)
        return Effects(
            self._transaction,
            partial(self._commit_effects, records),
            gate=self._gate,
            check=self._check_released,
        )

    def _commit_effects(self, records: Sequence[Record]) -> None:
        try:
            with self._file.access(self._transaction):
                self._claimed.commit(None, encode_records(records), (), NO_CHANGES, None)
        except BaseException:  # it may have failed before it wrote
            self._transaction.abandon()
            raise
        self._written.update((record.key, record) for record in records)

    async def commit(
        self,
        *,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = NO_CHANGES,
        read_at: float | None = None,
    ) -> None:
        """Save all of it, or nothing; see `SQLiteSession.commit`. Records of effects are not written again.

        Raises:
            RuntimeError: Within a block of effects of the store.
            OwnershipLost: The session was released, or the name claimed by somebody else; nothing was written.
            StoreError: The file cannot be written, or holds what this library does not write; nothing was written.
        """
        self._file.guard.check_outside()
        async with self._gate:
            await super().commit(
                cursor=cursor,
                records=[record for record in records if self._written.get(record.key) != record],
                dead_letters=dead_letters,
                state=state,
                read_at=read_at,
            )
            for record in records:
                self._written.pop(record.key, None)

    async def reset(
        self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None] = NO_CHANGES
    ) -> None:
        """Go on from another place; see `SQLiteSession.reset`.

        Raises:
            RuntimeError: As for `commit`.
            OwnershipLost: As for `commit`.
            StoreError: As for `commit`.
        """
        self._file.guard.check_outside()
        async with self._gate:
            await super().reset(cursor, forget=forget, state=state)

    @cached_property
    def _gate(self) -> anyio.Lock:
        # Made at its first use, in the event loop.
        return anyio.Lock(fast_acquire=True)

    async def _run_in_thread(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        if not self._transaction.is_open:  # else the jobs of other sessions wait for this one
            self._check_process()
            self._file.guard.check_outside()
        return await super()._run_in_thread(work, *args)

    def _do(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        with self._file.access(self._transaction):
            return super()._do(work, *args)
