"""Consumer names in every store: the session of a name's owner, and the rules of `rebind()`."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec

from push_to_poll_client._exceptions import OwnershipLost, StoreBusy, StoreMismatch
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Cursor, DeadLetter, Record, SavedCursor
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._retention import CursorState, Segments

_MAX_FEED_SHOWN = 300
"""Most characters of a feed's identity in an error, so that two identities can be compared."""

_NO_CHANGES: Mapping[str, str | None] = MappingProxyType({})

_T = TypeVar("_T")


class StoredName(Protocol):
    """State of a claimed name in a store. `ClaimedSession` documents the methods."""

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
    """A claimed name of a store. Each claim increases `fencing_token`."""

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
        """Number of dead letters of the name."""
        return self._progress.dead_letter_count

    @property
    def state(self) -> Mapping[str, str]:
        """The committed `state`."""
        return self._progress.cursor_state.state

    @property
    def history(self) -> Sequence[SavedCursor]:
        """The saved cursors, oldest first; the last one is the current cursor."""
        cursor_state = self._progress.cursor_state
        return (*cursor_state.previous, cursor_state.saved)

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Return the keys that have no record."""
        return await self._run(partial(self._progress.unseen, keys))

    async def fingerprints(self, keys: Sequence[str], /) -> Mapping[str, int]:
        """Return the newest fingerprint of each key that has one."""
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
        """Save everything or nothing, even if the task is cancelled; see `Session.commit`."""
        async with self._gate:
            prepared = self._prepare(records)
            commit = partial(self._progress.commit, cursor, prepared, tuple(dead_letters), dict(state), read_at)
            await self._run(commit)

    async def reset(
        self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None] = _NO_CHANGES
    ) -> None:
        """Continue at `cursor` and start `history` over; see `Session.reset`."""
        async with self._gate:
            await self._run(partial(self._progress.reset, cursor, forget=forget, state=dict(state)))

    async def dead_letters(
        self, *, after: DeadLetter | None = None, retry_requested: bool = False
    ) -> Sequence[DeadLetter]:
        """Return some dead letters, ordered by key: at most 100, and at most 16 MiB unless there is only one."""
        return await self._run(partial(self._progress.some_dead_letters, after, retry_requested=retry_requested))

    async def dead_letter(self, key: str, /) -> DeadLetter | None:
        """Return the dead letter of a key, or None."""
        return await self._run(partial(self._progress.dead_letter, key))

    @abstractmethod
    async def release(self) -> None:
        """Release the name. Never raises; a second call does nothing."""

    @property
    def _gate(self) -> AbstractAsyncContextManager[object]:
        """Lock held during each write."""
        return nullcontext()

    def _prepare(self, records: Sequence[Record]) -> Any:
        """Prepare records for `StoredName.commit`, in the event loop."""
        return records

    @abstractmethod
    async def _run(self, work: Callable[[], _T]) -> _T:
        """Call `work` if the session owns the name, else raise `OwnershipLost`."""


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


MAX_OTHERS_SHOWN = 3
"""Other names that the log shows beside a new one."""


def log_new_name(log: ConsumerLog, where: str, name: str, feed: str, others: Sequence[tuple[str, bool]]) -> None:
    """Log that a name is new, if there are others.

    Args:
        log: The log of the store.
        where: The store.
        name: The new name.
        feed: Its feed.
        others: Other names, at most one more than are shown, each with True if it has the same feed.
    """
    if not others:
        return
    # INFO for a name that is not its feed's identity, with a feed that no other name has: it shares the store on
    # purpose, because a changed URL would have been a `StoreMismatch`.
    have_feed = any(same_feed for _, same_feed in others)
    log.log(
        logging.WARNING if name == feed or have_feed else logging.INFO,
        "%s: the new name %s starts at the beginning; there are already %s. If one of them is the former name of "
        "this consumer, stop it and see push-to-poll rebind --help",
        where,
        quoted(name),
        ", ".join(quoted(other) for other, _ in others[:MAX_OTHERS_SHOWN])
        + (" and others" * (len(others) > MAX_OTHERS_SHOWN)),
    )


class Rebind(msgspec.Struct, frozen=True):
    """Bind a consumer name to another feed, rename it, or both."""

    name: str  # the current name
    feed: str | None  # None keeps the feed
    new_name: str | None  # None keeps the name, or follows `feed` if the name is the old identity
    replace: bool  # delete the state of an existing `new_name`

    def __post_init__(self) -> None:
        if self.feed is None and self.new_name is None:
            raise ValueError("rebind needs feed= or new_name=")
        for argument, value in (("feed", self.feed), ("new_name", self.new_name)):
            if value is not None and (not isinstance(value, str) or not value):
                kind = ValueError if isinstance(value, str) else TypeError
                raise kind(f"{argument} must be a str of at least 1 character, not {quoted(value)}")

    def target(self, bound_to: str) -> str:
        """Return the new name. `bound_to` is the identity of the current feed."""
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
        """Raise a ValueError for an existing target, unless `replace` is True."""
        if not self.replace:
            raise ValueError(
                f"{where}: the name {quoted(target)} exists already; choose another name, or delete its state "
                "with replace=True"
            )
