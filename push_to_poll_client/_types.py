"""What the parts speak of: the nouns, and the protocols between the rooms of the house.

Nothing here does anything. Feeds, listeners and stores know these nouns and not each other; the consumer
alone knows all of them.
"""

import enum
from abc import ABCMeta
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import msgspec

from push_to_poll_client._exceptions import UndecodableMessage

__all__ = [
    "MAX_CURSOR",
    "MAX_NOT_BEFORE",
    "Channel",
    "Cursor",
    "Feed",
    "FetchRequest",
    "Listener",
    "Message",
    "Page",
    "Push",
    "Record",
    "RecordState",
    "Session",
    "Store",
    "UnreadableMessage",
]

Cursor: TypeAlias = str
"""An opaque string, handed back to the feed unchanged. Equality is the only comparison. Where a cursor may be
`None`, that is the inception: the beginning of the feed."""

MAX_CURSOR = 65_536
"""Characters. The longest that are known are URLs and tokens of a few thousand; each commit writes one."""


class Message(metaclass=ABCMeta):  # noqa: B024  # for classes that are one without inheriting it
    """One version of one entry of the feed.

    Immutable, so that what a handler does to it cannot change what it is remembered by (`data` is the
    handler's own). A feed whose data is dear to decode subclasses this and decodes in `data`.

    Args:
        id: Names this version of the entry. A state feed that repeats an entity's id makes it from the id and
            the etag, sequence number or time of change.
        data: What the entry carries, any type.
        key: What "already processed" is asked of; `None` takes the id.
        cursor: Safe to save when this message and all before it are settled; `None` when only the page has
            such a cursor.
    """

    __slots__ = ("_cursor", "_data", "_id", "_key")

    def __init__(self, id: str, data: Any = None, *, key: str | None = None, cursor: Cursor | None = None) -> None:
        self._id = id
        self._data = data
        self._key = id if key is None else key
        self._cursor = cursor

    @property
    def id(self) -> str:
        """What the feed calls this version of the entry."""
        return self._id

    @property
    def key(self) -> str:
        """The dedupe key: what "already processed" is asked of."""
        return self._key

    @property
    def cursor(self) -> Cursor | None:
        """Safe to save when this message and all before it are settled; `None`: only the page has one."""
        return self._cursor

    @property
    def data(self) -> Any:
        """What the entry carries.

        Raises:
            UndecodableMessage: A feed that decodes lazily found that it cannot. Let it pass through the
                handler: the message then fails as undecodable, not as the handler's fault.
        """
        return self._data

    @property
    def error(self) -> UndecodableMessage | None:
        """Why the entry could not be read; `None` for one that could."""
        return None

    def __repr__(self) -> str:
        # Data may be large or secret and stays out of logs.
        return f"{type(self).__name__}(id={self.id!r})"


class UnreadableMessage(Message):
    """An entry that the feed could not read at all. It fails without reaching the handler (G9).

    Args:
        id: The entry's id if that much could be read, else a digest of its bytes.
        error: Why it could not be read.
        key: The dedupe key; a digest of the entry's bytes, so that a repaired entry is another message.
        cursor: As for any message; `None` when it could not be read.
    """

    __slots__ = ("_error",)

    def __init__(
        self, id: str, error: UndecodableMessage, *, key: str | None = None, cursor: Cursor | None = None
    ) -> None:
        super().__init__(id, key=key, cursor=cursor)
        self._error = error

    @property
    def data(self) -> Any:
        """Raises why the entry could not be read."""
        raise self._error

    @property
    def error(self) -> UndecodableMessage:
        """Why the entry could not be read."""
        return self._error


@dataclass(frozen=True, slots=True)
class Push:
    """What arrived on a push channel. It becomes a wake and is never data.

    Attributes:
        cursor: The newest cursor that the server spoke of, a hint: a push whose cursor is the saved one may be
            dropped, and a feed may use it as a floor. Never saved as progress. `None` when the push had none.
        topics: What changed, a hint for the feed. Empty when the push did not say.
    """

    cursor: Cursor | None = None
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What a feed is asked.

    Attributes:
        cursor: Where to go on: a cursor or a `Page.next` that this feed returned; `None` is the inception.
        wait: Seconds for which the server may hold its answer when it has nothing new; 0 means answer now.
            Above 0 only for a feed that has `max_wait`.
        hint: What the pushes since the last poll said, or `None`. It may tell a feed what to look at first, never
            what to leave out: wakes without a hint are answered by the same poll.
        fresh: Go past caches: a push or the user said that there is something new.
    """

    cursor: Cursor | None = None
    wait: float = 0.0
    hint: Push | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of a feed.

    Attributes:
        messages: In the order in which they are to be processed.
        cursor: Safe to save when the whole page is settled; `None` leaves the saved one.
        next: Where to fetch the following page at once; `None` when this was the last: caught up.
        retry_after: Seconds that the server asks to be left alone, counted from now, also after a success
            (`Backoff`, `X-Poll-Interval`); `None` when it did not ask.
    """

    messages: Sequence[Message] = ()
    cursor: Cursor | None = None
    next: Cursor | None = None
    retry_after: float | None = None


class Feed(Protocol):
    """Where messages are read.

    A feed may also have, and the consumer looks for them with `getattr`:

    - `max_wait: float | None`: seconds for which the server can hold an answer (long polling). Without it
      `FetchRequest.wait` is always 0.
    - `read_ahead: bool`: a page may be fetched while the one before it is processed, one page ahead, and before
      what was processed is committed. Without it the next fetch starts only after the commit: some feeds take a
      fetch for an acknowledgement.
    - `identity: str`: what the feed is, without secrets. A consumer's default name and the store's check that a
      name is not used with another feed come from it. Without it: the class's qualified name.
    - `async aclose()`: give back connections; a later `fetch` opens them again.
    """

    async def fetch(self, request: FetchRequest, /) -> Page:
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


class RecordState(enum.StrEnum):
    """How a message was settled."""

    PROCESSED = "processed"
    DEAD = "dead"
    SKIPPED = "skipped"


class Record(msgspec.Struct, frozen=True, gc=False):
    """That the message with this dedupe key was settled, and how."""

    key: str
    state: RecordState = RecordState.PROCESSED


class Session(Protocol):
    """A claimed name of a store: the right to read and write its progress.

    Provisional until there is a store that is shared by several machines.
    """

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        ...

    @property
    def token(self) -> int:
        """The fencing token: larger for each claim of the name. Every write carries it."""
        ...

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Those of `keys` without a record.

        Raises:
            StoreError: The store cannot be read.
        """
        ...

    async def commit(self, *, cursor: Cursor | None, records: Sequence[Record]) -> None:
        """Save the cursor (`None` leaves the saved one) and add the records: both or neither.

        A record whose key has one already replaces it.

        Raises:
            OwnershipLost: The name was claimed by somebody else since; nothing was written.
            StoreError: Nothing was written.
        """
        ...

    async def release(self) -> None:
        """Give the name back. Never raises; a second call does nothing."""
        ...


class Store(Protocol):
    """Where a consumer's progress lives: cursor and dedupe records, committed together."""

    async def claim(self, name: str, *, feed: str) -> Session:
        """Become the one owner of `name`, which is bound to the feed called `feed` by its first claim.

        Raises:
            StoreBusy: The name has an owner.
            StoreMismatch: The name was used with another feed.
            StoreError: The store cannot be opened.
        """
        ...


MAX_NOT_BEFORE = 86_400.0
"""Seconds for which a server is obeyed that asks to be left alone: who asks for more is taken to mean a day, so
that a slip, or a `Retry-After` of a century, does not end a consumer (G3)."""

Clock: TypeAlias = Callable[[], float]
"""Seconds since some start, never going back."""
