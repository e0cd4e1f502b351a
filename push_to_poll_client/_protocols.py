"""The protocols of feeds, listeners and stores, for those who write their own.

The consumer knows its feed, listeners and store only by these protocols.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Protocol, TypeGuard

from push_to_poll_client._exceptions import StoreUnavailable
from push_to_poll_client._types import (
    Cursor,
    DeadLetter,
    FetchRequest,
    M_co,
    Page,
    Push,
    Record,
    SavedCursor,
)

_EMPTY_STATE: Mapping[str, str | None] = MappingProxyType({})


class Feed(Protocol[M_co]):
    """Where messages are read: `Feed[CloudEvent]` has `CloudEvent`s, a bare `Feed` any `Message`.

    A feed may also have, and the consumer looks for them with `getattr`:

    - `max_wait: float | None`: seconds for which the server can hold an answer (long polling). Without it
      `FetchRequest.wait` is always 0.
    - `read_ahead: bool`: a page may be fetched while the one before it is processed, one page ahead, and before
      what was processed is committed. Without it the next fetch starts only after the commit: some feeds take a
      fetch for an acknowledgement.
    - `identity: str`: what the feed is, without secrets. A consumer's default name and the store's check that a
      name is not used with another feed come from it. Without it: the class's qualified name.
    - `former_identity: str | Sequence[str] | None`: what earlier versions of the feed's class had as `identity`,
      newest first. A name that a store bound to one of them goes on, and is bound to `identity`.
    - `async latest() -> Cursor | None`: the cursor of the feed's end, from which only what is new follows;
      `None`: the feed is empty. Without it a consumer cannot start there.
    - `restore(letter: DeadLetter) -> Message`: the message of a dead letter, made from `letter.raw`. Without it:
      `Message(letter.id, <raw, read as JSON>, dedupe_key=letter.dedupe_key)`.
    - `async aclose()`: give back connections; a later `fetch` opens them again. Called when the last consumer of
      this process that uses the feed object stops.
    """

    async def fetch(self, request: FetchRequest, /) -> Page[M_co]:
        """Ask for what comes after `request.cursor`.

        It has to end by itself, by a timeout of its own: a fetch that hangs is a poll that hangs.

        Raises:
            FeedError: The fetch failed; it is tried again later and the cursor does not move. Any other exception
                means the same, and is named in the log by its class. What `raise_for_status()` of httpx raises is
                read as the library's own feeds read answers: for `FeedRefused`, `FeedGone`, and how long the
                server asks to be left alone.
        """
        ...


class Channel(Protocol):
    """What a listener reports to."""

    def up(self) -> None:
        """The channel is connected. Wakes the consumer too: what was pushed before is gone."""
        ...

    def down(self, error: BaseException | None = None) -> None:
        """The channel is not connected, because of `error` if there was one."""
        ...

    def wake(self, push: Push | None = None, /) -> None:
        """A push arrived: poll soon. `None` is one that said nothing. Never blocks; from any thread."""
        ...

    def request_poll(self) -> None:
        """Poll soon, though no push arrived: one may have been lost."""
        ...

    def subscribed(self, until: float | None, /) -> None:
        """The server was asked to push, and does until then, in seconds since the epoch.

        `math.inf`: until it is asked to stop; `None`: it was not, or does no longer.
        """
        ...

    @property
    def missed_in_a_row(self) -> int:
        """Polls in a row that found, by the timer, messages which no push had announced.

        They are counted while a channel of the consumer is up, and begin at 0 again when a push, of any channel,
        is followed by messages. One may be a push that is still on its way; two or more say that the server may
        have forgotten whom to push to.
        """
        ...

    @property
    def state(self) -> str | None:
        """What this listener saved last, in this run or an earlier one; `None`: nothing."""
        ...

    async def save(self, state: str | None, /) -> None:
        """Keep a short text in the consumer's store, under the listener's name; between two polls.

        Args:
            state: Replaces what was saved before; `None` takes it away. 16,384 characters at most.

        Raises:
            StoreError: It could not be kept.
            ValueError: It is too long.
        """
        ...


class Listener(Protocol):
    """Turns one push channel into wakes.

    A listener may have a `name: str`, without secrets, by which status and log call it.
    """

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled, reconnect alone, report to `channel`.

        Returning means that the server asked to be left alone: the channel stays down and the consumer polls.

        Raises:
            ListenerError: The channel is broken for good; `Consumer.run()` raises it.
        """
        ...


class Session(Protocol):
    """A claimed name of a store: the right to read and write its progress.

    Provisional until there is a store that is shared by several machines.
    """

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        ...

    @property
    def fencing_token(self) -> int:
        """The fencing token: one more for each claim of the name. Every write carries it."""
        ...

    @property
    def record_count(self) -> int:
        """Number of dedupe records of the name."""
        ...

    @property
    def dead_letter_count(self) -> int:
        """How many dead letters the name has."""
        ...

    @property
    def state(self) -> Mapping[str, str]:
        """What was committed as `state`: a few short texts, as for the attempts of failing messages."""
        ...

    @property
    def history(self) -> Sequence[SavedCursor]:
        """The cursors that were saved, the oldest first; the last is the saved one.

        Those before it are a second apart or more, 256 at most. Where the name began (`None`, or the cursor of the
        last `reset`) is the first, until it falls out.
        """
        ...

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Those of `keys` without a record.

        Raises:
            StoreError: The store cannot be read.
        """
        ...

    async def fingerprints(self, keys: Sequence[str], /) -> Mapping[str, int]:
        """The fingerprints of those of `keys` that have a record with one; of several, the newest.

        Raises:
            StoreError: The store cannot be read.
        """
        ...

    async def commit(
        self,
        *,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = _EMPTY_STATE,
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
            OwnershipLost: The name was claimed by somebody else since; nothing was written.
            StoreUnavailable: Nothing was written, and it may work later: the consumer waits.
            StoreError: Nothing was written, and waiting does not help: `run()` ends.
        """
        ...

    async def reset(
        self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None] = _EMPTY_STATE
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
        ...

    async def dead_letters(
        self, *, after: DeadLetter | None = None, retry_requested: bool = False
    ) -> Sequence[DeadLetter]:
        """Some dead letters, in the order of their keys: 100 at most, or fewer that have 16 MiB together.

        Args:
            after: The last one that the caller has; `None`: from the first.
            retry_requested: Only those that the next run is to try again.

        Raises:
            StoreError: The store cannot be read.
        """
        ...

    async def dead_letter(self, key: str, /) -> DeadLetter | None:
        """The dead letter of a key; `None`: it has none.

        Raises:
            StoreError: The store cannot be read.
        """
        ...

    async def release(self) -> None:
        """Give the name back. Never raises; a second call does nothing."""
        ...


class TransactionalSession(Session, Protocol):
    """A session of a store that is the application's database too: effects and records are committed together.

    Such a store has `transactional = True`, and `concurrent_transactions: bool`: whether several may be open at a
    time, as on a server with a connection for each.
    """

    def transaction(self, records: Sequence[Record], /) -> AbstractAsyncContextManager[None]:
        """Make what a handler writes within durable together with `records`, or neither (G8).

        That is when the block ends, also if its task is cancelled meanwhile. If the handler wrote nothing, the
        store may leave the records to the next `commit`, which is given them in any case. What raises out of the
        block takes back what was written within it. So does a `StoreError` of the block itself, as it begins or
        ends: then the message is not processed. Within the block, and nowhere else, the store's `connection` may
        be used.

        Raises:
            StoreError: A transaction cannot be begun or committed, or the handler ended it.
        """
        ...


class TransactionConflict(StoreUnavailable):
    """Raised by a block of effects if the handler has to be called again, in another block, at once.

    Its transaction could not be begun in the thread of the event loop, which must not wait. The next block waits.
    """


def is_transactional(session: Session) -> TypeGuard[TransactionalSession]:
    """Whether the session commits a handler's effects too."""
    return callable(getattr(session, "transaction", None))


class Store(Protocol):
    """Where a consumer's progress lives: cursor and dedupe records, committed together.

    A store may also have, and the consumer looks for it with `getattr`:

    - `async rebind(name, *, feed: str | None, new_name: str | None)`: bind a name to another feed, or rename it;
      see `SQLiteStore.rebind`. Called for a feed with `former_identity`. Raises `ValueError` if the
      name does not exist, or the new one does.
    """

    async def claim(self, name: str, *, feed: str) -> Session:
        """Become the one owner of `name`, which is bound to the feed called `feed` by its first claim.

        Raises:
            StoreBusy: The name has an owner.
            StoreMismatch: The name is bound to another feed.
            StoreUnavailable: The store cannot be opened now; `run()` tries again.
            StoreError: The store cannot be opened.
        """
        ...
