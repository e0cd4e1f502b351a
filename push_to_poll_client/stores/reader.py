"""Read a store without owning a name, for pages and programs that show the state of consumers.

    snapshot = await anyio.to_thread.run_sync(store.reader().snapshot)
    for owner in snapshot.owners:
        print(owner.name, owner.owner)

`SQLiteStore.reader()` and `PostgresStore.reader()` return a `StoreReader`. It takes no lock that a consumer would
wait for, and changes nothing. Each call reads anew, and what it returns belongs to one instant.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeAlias

import msgspec

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._types import Cursor, DeadLetter, SavedCursor
from push_to_poll_client._validation import quoted

__all__ = ["ConsumerProgress", "NameOwner", "StoreReader", "StoreSnapshot", "all_dead_letters"]

_YEAR_10000 = 253_402_300_800

Timestamp: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=_YEAR_10000)]
"""Seconds since the epoch that can be shown as a date."""

Request: TypeAlias = Literal["retry", "drop"]
"""A request to the owner of a name about a dead letter."""

MAX_FOUND = 5
"""Keys that `find_dead_letters` returns for one message id; an error lists them."""


@dataclass(frozen=True, slots=True)
class ConsumerProgress:
    """The saved progress of one consumer name. Times are in seconds since the epoch, by the store's clock.

    Attributes:
        name: The consumer's name.
        feed: Identity of the feed that the name is bound to.
        cursor: The saved cursor; None means the inception.
        records: Number of dedupe records.
        dead_letters: Number of dead letters.
        failing: Number of failed messages that will be retried.
        fencing_token: Number of the last claim of the name.
        gap: The feed's last report of messages that it no longer has; None if there was none.
        gap_at: Time of that report.
        last_progress: Time of the newest dedupe record; None if there is none.
    """

    name: str
    feed: str
    cursor: Cursor | None
    records: int
    dead_letters: int
    failing: int
    fencing_token: int
    gap: str | None
    gap_at: Timestamp | None
    last_progress: Timestamp | None


@dataclass(frozen=True, slots=True)
class NameOwner:
    """The owner of one consumer name.

    Attributes:
        name: The consumer's name.
        owner: Text that names the process; None if no owner is visible.
        seconds_left: Seconds until its lease ends if it is not renewed. None if the name has no owner, or if the
            store has no leases: a `SQLiteStore` has its file until the process ends.
        wanted: True if the owner is asked to hand over.
        fencing_token: Number of the last claim of the name.
    """

    name: str
    owner: str | None
    seconds_left: float | None
    wanted: bool
    fencing_token: int


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """All consumer names of a store at one instant.

    Attributes:
        where: The file or the tables, without secrets.
        size: Bytes on the disk.
        time: The store's time of day, in seconds since the epoch.
        progress: Progress of each name, ordered by name.
        owners: Owner of each name, in the same order.
    """

    where: str
    size: int
    time: float
    progress: tuple[ConsumerProgress, ...]
    owners: tuple[NameOwner, ...]


class StoreReader(Protocol):
    """Reads a store. Each method raises `StoreError` if that fails, or if the name does not exist."""

    @property
    def where(self) -> str:
        """The file or the tables, without secrets."""
        ...

    def snapshot(self) -> StoreSnapshot:
        """Read progress and owner of each name."""
        ...

    def history(self, name: str, /) -> Sequence[SavedCursor]:
        """Read the cursors that a consumer saved, oldest first; the last one is the current one."""
        ...

    def dead_letters(self, name: str, /, *, after: DeadLetter | None = None) -> Sequence[DeadLetter]:
        """Read one page of dead letters, ordered by key: at most 100, and at most 16 MiB unless there is only one.

        Args:
            name: The consumer's name.
            after: The last dead letter of the previous page; None for the first page.
        """
        ...

    def dead_letter(self, name: str, key: str, /) -> DeadLetter | None:
        """Read the dead letter with this dedupe key; None if there is none."""
        ...

    def find_dead_letters(self, name: str, text: str, /) -> tuple[Sequence[str], bool]:
        """Find dead letters by dedupe key, else by message id.

        Returns:
            At most 5 keys, and True if there are more.
        """
        ...


def all_dead_letters(reader: StoreReader, name: str) -> Iterator[DeadLetter]:
    """Read the dead letters of a consumer page by page, ordered by key."""
    last: DeadLetter | None = None
    while page := reader.dead_letters(name, after=last):
        yield from page
        last = page[-1]


def unknown_name(where: str, name: str) -> StoreError:
    """Build the error for a name that the store does not have."""
    return StoreError(f"{where} has no consumer {quoted(name)}; push-to-poll status shows the names in the store")
