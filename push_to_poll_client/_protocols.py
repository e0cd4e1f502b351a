"""The protocols of feeds, listeners and stores, for authors of their own.

The consumer uses its feed, listeners and store only through these protocols.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Protocol, TypeGuard

from push_to_poll_client._exceptions import StoreError, StoreUnavailable
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
    """A source of messages.

    A `Feed[CloudEvent]` returns `CloudEvent` messages; a bare `Feed` returns any `Message`.

    A feed may define these optional attributes, which the consumer reads with `getattr`:

    - `max_wait: float | None`: longest time in seconds that the server can hold an answer (long polling). Without
      it, `FetchRequest.wait` is always 0.
    - `read_ahead: bool`: True if the next page may be fetched while the current page is processed and before its
      progress is committed. At most one page is read ahead. Without it, the next fetch starts after the commit,
      because some servers treat a fetch as an acknowledgement.
    - `identity: str`: identifies the feed, without secrets. It is the default name of a consumer, and the store
      uses it to refuse a name that belongs to another feed. Without it: the qualified name of the class.
    - `former_identity: str | Sequence[str] | None`: the `identity` of earlier versions of this class, newest
      first. A name that the store bound to one of them continues, and is bound to `identity`.
    - `async latest() -> Cursor | None`: return the cursor of the feed's end, after which only new messages follow;
      `None` if the feed is empty. Without it, a consumer cannot start at "latest".
    - `restore(dead_letter: DeadLetter) -> Message`: make the message of a dead letter from `dead_letter.raw`.
      Without it: `Message(dead_letter.id, <raw decoded as JSON>, dedupe_key=dead_letter.dedupe_key)`.
    - `prepare()`: import or read what the first `fetch` needs, without a request. Called when `run()`
      begins to stand by, so that this replica polls sooner when it takes over. May take a tenth of a second.
    - `async aclose()`: close connections. A later `fetch` opens them again. Called when the last consumer of this
      process that uses the feed object stops.
    """

    async def fetch(self, request: FetchRequest, /) -> Page[M_co]:
        """Return the page after `request.cursor`.

        The method must end by itself: use a timeout. While it hangs, the poll hangs.

        Raises:
            FeedError: The fetch failed. It is retried later, and the cursor does not move. Any other exception has
                the same effect and is logged with its class name. An error that httpx' `raise_for_status()` raises
                is treated like an error of the library's own feeds: as `FeedRefused` or `FeedGone` by its status,
                and with the wait that the server asks for.
        """
        ...


class Channel(Protocol):
    """The interface through which a listener reports to the consumer."""

    def up(self) -> None:
        """Report that the channel is connected, and wake the consumer.

        It polls because earlier pushes may be lost.
        """
        ...

    def down(self, error: BaseException | None = None) -> None:
        """Report that the channel is not connected, with the error if any."""
        ...

    def wake(self, push: Push | None = None, /) -> None:
        """Report a push; `None` if it has no hint.

        Never blocks; callable from any thread.
        """
        ...

    def request_poll(self) -> None:
        """Request a poll soon although no push arrived, because one may be lost."""
        ...

    def subscribed(self, until: float | None, /) -> None:
        """Report the time until which the server has agreed to push.

        Args:
            until: Seconds since the epoch. `math.inf` means: until the subscription is ended. `None` means: no
                subscription now.
        """
        ...

    @property
    def missed_in_a_row(self) -> int:
        """Number of consecutive timer polls that found messages without a push.

        Counted while a channel of the consumer is up. Returns to 0 when a push of any channel is followed by
        messages. 1 can be a push that is only late. 2 or more suggest that the server no longer knows the
        subscription.
        """
        ...

    @property
    def state(self) -> str | None:
        """Text that this listener saved last, in any run; `None` if none, or while this consumer stands by."""
        ...

    async def while_owner(self, work: Callable[[], Awaitable[None]], /) -> None:
        """Run a function whenever this consumer owns its name, until the function returns.

        Use it for work that only one replica may do, such as to keep a subscription. The function is cancelled
        when the ownership ends, and called again when the consumer owns the name again. `state` and `save` are
        usable inside. An exception of the function is raised here.
        """
        ...

    async def save(self, state: str | None, /) -> None:
        """Save a short text in the consumer's store, under the listener's name.

        It is written between two polls.

        Args:
            state: The text, at most 16,384 characters. It replaces the previous one; `None` deletes it.

        Raises:
            StoreError: The text could not be saved.
            ValueError: The text is too long.
        """
        ...


class Listener(Protocol):
    """A push channel: wakes the consumer when a push arrives.

    A listener may define `name: str`, without secrets, as its name in the status and the log.
    """

    async def listen(self, channel: Channel, /) -> None:
        """Listen until cancelled, reconnect by itself, and report to `channel`.

        Return only if the server asked not to reconnect: the channel then stays down, and the consumer polls by
        its timer.

        Raises:
            ListenerError: The channel cannot work; `Consumer.run()` raises the error.
        """
        ...


class Session(Protocol):
    """A claimed name of a store: the right to access its progress.

    Methods that read raise `StoreError` if the store cannot be read. A store that several machines share returns a
    `LeasedSession`.
    """

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        ...

    @property
    def fencing_token(self) -> int:
        """Number of this claim, one higher with each claim of the name.

        Each write carries it, so a write of a former owner fails.
        """
        ...

    @property
    def record_count(self) -> int:
        """Number of dedupe records of the name."""
        ...

    @property
    def dead_letter_count(self) -> int:
        """Number of dead letters of the name."""
        ...

    @property
    def state(self) -> Mapping[str, str]:
        """The committed `state`: short texts, such as attempts of failing messages."""
        ...

    @property
    def history(self) -> Sequence[SavedCursor]:
        """The saved cursors, oldest first; the last one is the current one.

        At most 257: the current one, and 256 before it that are at least one second apart. The first one is the
        place where the name began (`None`, or the cursor of the last `reset`), until that limit drops it.
        """
        ...

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Return the keys that have no record."""
        ...

    async def fingerprints(self, keys: Sequence[str], /) -> Mapping[str, int]:
        """Return the fingerprints of the keys that have a record with one.

        If a key has several, return the newest.
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
        """Save everything that is given, or nothing.

        Args:
            cursor: The cursor to save; `None` keeps the saved one.
            records: Records to add. A record replaces an existing record with the same key. Unless its state is
                `DEAD_LETTERED`, it also deletes the dead letter with that key.
            dead_letters: Dead letters to add. Each replaces an existing one with the same key.
            state: Changes to `state`; the value `None` deletes a name.
            read_at: Time at which the page of `cursor` arrived, in seconds since the epoch; for a `LeasedSession`
                by the clock of `LeasedSession.time()`. `None` means now.

        Raises:
            OwnershipLost: The name has been claimed by another owner. Nothing was written.
            CommitInDoubt: The outcome is unknown. Only for a `LeasedSession`.
            StoreUnavailable: Nothing was written, but a retry may succeed; the consumer waits.
            StoreError: Nothing was written, and a retry does not help; `run()` ends.
        """
        ...

    async def reset(
        self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None] = _EMPTY_STATE
    ) -> None:
        """Continue from another place: `history` starts again with this cursor.

        Args:
            cursor: The place to continue; `None` is the inception.
            forget: Start a new dedupe epoch: ignore all existing records. Dead letters are kept.
            state: As for `commit`.

        Raises:
            OwnershipLost: As for `commit`.
            StoreError: As for `commit`.
        """
        ...

    async def dead_letters(
        self, *, after: DeadLetter | None = None, retry_requested: bool = False
    ) -> Sequence[DeadLetter]:
        """Return one page of dead letters, ordered by key.

        A page has at most 100 dead letters and 16 MiB.

        Args:
            after: The last dead letter of the previous page; `None` for the first page.
            retry_requested: True for only those that have `retry_requested` or `drop_requested`.
        """
        ...

    async def dead_letter(self, key: str, /) -> DeadLetter | None:
        """Return the dead letter with this key; `None` if there is none."""
        ...

    async def release(self) -> None:
        """Release the name. Never raises; a second call does nothing."""
        ...


class LeasedSession(Session, Protocol):
    """A session of a store that several machines share. It ends by itself unless the store renews it.

    The store renews the lease in the background, independent of the event loop, so that a slow handler does not
    lose it. Once the lease is lost, the consumer starts no handler, drops everything that it has in memory, and
    claims the name again.
    """

    @property
    def lost(self) -> bool:
        """True if the session has ended: its lease ran out, the name has another owner, or a commit is in doubt.

        Read before each call of a handler, from any thread. It must not block, and must compare the end of the
        lease with a clock that also counts while the machine is suspended.
        """
        ...

    @property
    def wanted(self) -> bool:
        """True if the owner is asked to hand over: it finishes the message in flight, commits and releases."""
        ...

    def subscribe(self, *, changed: Callable[[], None], wake: Callable[[Push | None], None]) -> None:
        """Set the functions that the store calls, from any thread, until the session is released.

        Args:
            changed: Called after `lost` or `wanted` has become True. If the store cannot be reached, the lease can
                run out without this call.
            wake: Called for a wake that another replica has forwarded, and with None after the store may have
                missed one.
        """
        ...

    def time(self) -> float:
        """Return the store's time of day, in seconds since the epoch.

        History, attempts and overlap use it, because the clocks of several machines differ. It must not block: the
        store reads its clock when the name is claimed, and adds the time that has passed since.
        """
        ...

    async def again(self) -> "LeasedSession":
        """Claim the name again after `CommitInDoubt`, and read its state anew.

        Afterwards the commit in doubt can no longer take effect, or its effects are in the new session. This
        session has ended, also if the call fails. If the call is cancelled, `release()` must free the name.

        Raises:
            OwnershipLost: Another owner has claimed the name.
            StoreUnavailable: The store cannot be used now. Call it again later, or `release()`.
            StoreError: The store cannot be used.
        """
        ...


def is_leased(session: Session) -> TypeGuard[LeasedSession]:
    """Return True if the session can end by itself."""
    return callable(getattr(session, "again", None))


class TransactionalSession(Session, Protocol):
    """A session of a store that is also the application's database.

    The writes of a handler are committed together with the records. Such a store has `transactional = True`, and
    `concurrent_transactions: bool`: True if several transactions can be open at a time, as on a server with one
    connection for each.

    A session may define `transaction_in_thread(records)`: the same as a plain context manager. It is entered and
    left in the worker thread of a plain handler (`def`), and `transaction` is then only for `async def` handlers.
    """

    def transaction(self, records: Sequence[Record], /) -> AbstractAsyncContextManager[None]:
        """Commit the writes of a handler together with `records`, or neither (G8).

        The commit happens when the block ends, even if its task is cancelled meanwhile. If the handler wrote
        nothing, the store may leave the records to the next `commit`, which gets them in any case.

        An exception that leaves the block rolls back everything written in it. So does a `StoreError` at the start
        or end of the block: the message then counts as not processed. Use the store's `connection` only inside the
        block.

        Raises:
            StoreError: The transaction cannot start or commit, or the handler ended it.
        """
        ...


class TransactionConflict(StoreUnavailable):
    """The handler must be called again at once, in a new block.

    Raised by `TransactionalSession.transaction`. The transaction could not start in the event loop's thread, which
    must not wait. The next block waits.
    """


class EffectsRefused(StoreError):
    """The handler's writes cannot be committed, which counts as a failure of its message.

    Raised by `TransactionalSession.transaction`, for example if they violate a constraint that is checked at the
    end of the transaction. Every other `StoreError` of it is the store's failure, and not counted.
    """


def is_transactional(session: Session) -> TypeGuard[TransactionalSession]:
    """Return True if the session can commit a handler's writes."""
    return callable(getattr(session, "transaction", None))


class Store(Protocol):
    """A place that saves a consumer's progress: cursor and dedupe records.

    A store may define optional methods, which the consumer reads with `getattr`:

    - `async freed(name)`: return when the name may be free, after `claim` raised `StoreBusy`. It may return too
      early, but should return soon after the owner's release or the end of its lease. Without it, a replica that
      stands by tries again each second.
    - `forward(name, push)`: send a wake to the replica that owns the name. Callable from any thread; never blocks
      and never raises. The store sends it when it can, and may merge wakes of the same name. Without it, a wake
      reaches only this consumer.
    - `async forwarded()`: return when the wakes given to `forward` are sent, or after a short time. Called at the
      end of `run()`, after which the process may end.
    - `async rebind(name, *, feed: str | None, new_name: str | None)`: bind a name to another feed, or rename it;
      see `SQLiteStore.rebind`. Called for a feed with `former_identity`. Raises `ValueError` if `name` does not
      exist, or `new_name` already does.
    """

    async def claim(self, name: str, *, feed: str) -> Session:
        """Become the only owner of `name`. If the call is cancelled, the name must be free afterwards.

        Args:
            name: The consumer's name.
            feed: The feed's identity. The first claim binds the name to it.

        Raises:
            StoreBusy: The name has an owner. `run()` stands by until the name is free.
            StoreMismatch: The name is bound to another feed.
            StoreUnavailable: The store cannot be opened now; `run()` retries.
            StoreError: The store cannot be opened.
        """
        ...
