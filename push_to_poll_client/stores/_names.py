"""Consumer names, the same for every store: the session of a name's owner, and how a name is rebound."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec

from push_to_poll_client._exceptions import OwnershipLost, StoreBusy, StoreMismatch
from push_to_poll_client._types import Cursor, DeadLetter, Record, SavedCursor
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._retention import CursorState, Segments

_MAX_FEED_SHOWN = 300
"""Characters of a feed's name that are shown: most addresses are shorter, and the two can be compared."""

_NO_CHANGES: Mapping[str, str | None] = MappingProxyType({})

_T = TypeVar("_T")


class StoredName(Protocol):
    """What a store keeps of a claimed name. For the methods see those of `ClaimedSession`.

    Attributes:
        token: The fencing token.
        cursor_state: Its cursor, history and state.
        segments: The segments in which its records are counted.
    """

    token: int
    cursor_state: CursorState
    segments: Segments

    @property
    def dead_letter_count(self) -> int: ...

    def unseen(self, keys: Sequence[str]) -> set[str]: ...

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]: ...

    def commit(
        self,
        cursor: Cursor | None,
        records: Any,
        dead_letters: Sequence[DeadLetter],
        state: Mapping[str, str | None],
        read_at: float | None,
    ) -> None: ...

    def reset(self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None]) -> None: ...

    def some_dead_letters(self, after: DeadLetter | None, *, retry_requested: bool) -> Sequence[DeadLetter]: ...

    def dead_letter(self, key: str) -> DeadLetter | None: ...


class ClaimedSession(ABC):
    """A claimed name of a store.

    Args:
        progress: What the store keeps of the name.

    Attributes:
        fencing_token: The fencing token: one more for each claim of the name.
    """

    def __init__(self, progress: StoredName) -> None:
        self.fencing_token: int = progress.token
        self._progress = progress

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        return self._progress.cursor_state.saved.cursor

    @property
    def record_count(self) -> int:
        """Number of dedupe records of the name."""
        return self._progress.segments.size

    @property
    def dead_letter_count(self) -> int:
        """How many dead letters the name has."""
        return self._progress.dead_letter_count

    @property
    def state(self) -> Mapping[str, str]:
        """What was committed as `state`."""
        return self._progress.cursor_state.state

    @property
    def history(self) -> Sequence[SavedCursor]:
        """The cursors that were saved, the oldest first; the last is the saved one."""
        cursor_state = self._progress.cursor_state
        return (*cursor_state.previous, cursor_state.saved)

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Those of `keys` without a record.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The store cannot be read.
        """
        return await self._run(partial(self._progress.unseen, keys))

    async def fingerprints(self, keys: Sequence[str], /) -> Mapping[str, int]:
        """The fingerprints of those of `keys` that have a record with one; of several, the newest.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The store cannot be read.
        """
        return await self._run(partial(self._progress.fingerprints, keys))

    async def commit(
        self,
        *,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = _NO_CHANGES,
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
            StoreError: The store cannot be written, or holds what this library does not write; nothing was
                written.
            RuntimeError: Within a handler that writes to this store.
        """
        async with self._gate:
            prepared = self._prepare(records)
            commit = partial(self._progress.commit, cursor, prepared, tuple(dead_letters), dict(state), read_at)
            await self._run(commit)

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
            StoreError: As for `commit`.
            RuntimeError: As for `commit`.
        """
        async with self._gate:
            await self._run(partial(self._progress.reset, cursor, forget=forget, state=dict(state)))

    async def dead_letters(
        self, *, after: DeadLetter | None = None, retry_requested: bool = False
    ) -> Sequence[DeadLetter]:
        """Some dead letters, in the order of their keys: 100 at most, or fewer that have 16 MiB together.

        Args:
            after: The last one that the caller has; `None`: from the first.
            retry_requested: Only those that the next run is to try again.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The store cannot be read, or holds what this library does not write.
        """
        return await self._run(partial(self._progress.some_dead_letters, after, retry_requested=retry_requested))

    async def dead_letter(self, key: str, /) -> DeadLetter | None:
        """The dead letter of a key; `None`: it has none.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The store cannot be read, or holds what this library does not write.
        """
        return await self._run(partial(self._progress.dead_letter, key))

    @abstractmethod
    async def release(self) -> None:
        """Give the name back. Never raises; a second call does nothing."""

    @property
    def _gate(self) -> AbstractAsyncContextManager[object]:
        """Held by whatever writes."""
        return nullcontext()

    def _prepare(self, records: Sequence[Record]) -> Any:
        """Prepare records for `StoredName.commit`, in the event loop."""
        return records

    @abstractmethod
    async def _run(self, work: Callable[[], _T]) -> _T:
        """Call a method of the progress, if the session owns the name.

        Raises:
            OwnershipLost: It does not.
        """


def name_in_use(where: str, name: str) -> StoreBusy:
    """Build the error for a name that has an owner."""
    return StoreBusy(f"{where}: the name {quoted(name)} has an owner; release it, or use another name")


def bound_elsewhere(where: str, name: str, *, bound_to: str, feed: str) -> StoreMismatch:
    """Build the error for a name that is bound to another feed."""
    return StoreMismatch(
        f"{where}: the name {quoted(name)} is bound to the feed {quoted(bound_to, _MAX_FEED_SHOWN)}, not to "
        f"{quoted(feed, _MAX_FEED_SHOWN)}; if that is the same feed at another address, rebind the name "
        "(push-to-poll rebind, or rebind() of the store), else use another name",
        bound_to=bound_to,
    )


def ownership_lost(where: str, name: str, why: str) -> OwnershipLost:
    """Build the error for a session that does not own its name any more."""
    return OwnershipLost(f"{where}: the name {quoted(name)} {why}; nothing was written; claim it again")


class Rebind(msgspec.Struct, frozen=True):
    """Bind a consumer name to another feed, or rename it.

    Args:
        name: The name.
        feed: The identity of the feed to bind it to; `None` leaves it bound as it is.
        new_name: The name from then on; `None` leaves it, or follows `feed` if it is the feed's identity.
        replace: Whether a name that exists already is dropped for it.

    Raises:
        TypeError: `feed` or `new_name` is not a `str`.
        ValueError: One of them is empty, or there is neither.
    """

    name: str
    feed: str | None
    new_name: str | None
    replace: bool

    def __post_init__(self) -> None:
        if self.feed is None and self.new_name is None:
            raise ValueError("rebind needs feed= or new_name=")
        for argument, value in (("feed", self.feed), ("new_name", self.new_name)):
            if value is not None and (not isinstance(value, str) or not value):
                kind = ValueError if isinstance(value, str) else TypeError
                raise kind(f"{argument} must be a str of at least 1 character, not {quoted(value)}")

    def target(self, bound_to: str) -> str:
        """Return what the name is called then.

        Args:
            bound_to: The feed that it is bound to now.
        """
        if self.new_name is not None:
            return self.new_name
        # The name of a consumer without `name=` is its feed's identity.
        return self.feed if self.feed is not None and self.name == bound_to else self.name

    def unknown_name(self, where: str) -> ValueError:
        """Build the error for a name that the store does not have."""
        return ValueError(
            f"{where} has no name {quoted(self.name)} to rebind; push-to-poll status shows its names"
        )

    def check_free(self, where: str, target: str) -> None:
        """Raise for a target that exists, unless it is to be replaced.

        Raises:
            ValueError: It exists.
        """
        if not self.replace:
            raise ValueError(
                f"{where}: the name {quoted(target)} exists already; choose another one, or drop all that it has "
                "with replace=True"
            )
