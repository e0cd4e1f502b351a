"""The types that all parts share: messages, pages, pushes, records, dead letters.

Feeds, listeners and stores import these types and not each other; only the consumer knows all of them. They hold
data and decide nothing, except `CycleDetector`, which each walk along the pages of a feed uses.
"""

import enum
from abc import ABCMeta
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias

import msgspec
from typing_extensions import TypeVar

from push_to_poll_client._exceptions import DecodeError
from push_to_poll_client._json import decode

Cursor: TypeAlias = str
"""An opaque string, handed back to the feed unchanged. Equality is the only comparison. Where a cursor may be
`None`, that is the inception: the beginning of the feed."""

MAX_CURSOR = 65_536
"""Characters. The longest that are known are URLs and tokens of a few thousand; each commit writes one."""

MAX_ID = 4_096
"""Characters of an id or a key: both are kept for each message. The feeds of this library make up to 1,200."""


D = TypeVar("D", default=Any)
D_co = TypeVar("D_co", default=Any, covariant=True)


class Message(Generic[D_co], metaclass=ABCMeta):  # for classes that are one without inheriting it
    """One version of one entry of the feed.

    Immutable, so that what a handler does to it cannot change what it is remembered by (`data` is the
    handler's own). A feed whose data is dear to decode subclasses this and decodes in `data`. `Message[Order]` is
    one whose data is an `Order`. A subclass may know more of an entry: `CloudEvent` and `Entry` have its `type`,
    which is "" if it has none.

    Args:
        id: Names this version of the entry, in 1 to 4,096 characters. A state feed that repeats an entity's id
            makes it from the id and the etag, sequence number or time of change.
        data: What the entry carries, any type.
        dedupe_key: What "already processed" is asked of; `None` takes the id.
        cursor: Safe to save when this message and all before it are settled; `None` when only the page has
            such a cursor.
    """

    __slots__ = ("_cursor", "_data", "_id", "_key")

    def __init__(
        self, id: str, data: Any = None, *, dedupe_key: str | None = None, cursor: Cursor | None = None
    ) -> None:
        self._id = id
        self._data = data
        self._key = id if dedupe_key is None else dedupe_key
        self._cursor = cursor

    @property
    def id(self) -> str:
        """What the feed calls this version of the entry."""
        return self._id

    @property
    def dedupe_key(self) -> str:
        """The dedupe key: what "already processed" is asked of."""
        return self._key

    @property
    def cursor(self) -> Cursor | None:
        """Safe to save when this message and all before it are settled; `None`: only the page has one."""
        return self._cursor

    @property
    def data(self) -> D_co:
        """What the entry carries.

        Raises:
            DecodeError: A feed that decodes lazily found that it cannot. Let it pass through the
                handler: the message then fails as undecodable, not as the handler's fault.
        """
        return self._data  # type: ignore[no-any-return]

    @property
    def raw(self) -> bytes:
        """The entry as a dead letter keeps it: what the feed's `restore` makes the message of again.

        As it is, the data as JSON. A message whose data is no JSON overrides this, and its feed `restore`.

        Raises:
            TypeError: JSON has no word for the data, or would give something else back.
        """
        try:
            raw = msgspec.json.encode(self.data)
            again = decode(raw)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"the data of {self!r} is no JSON: {error}") from error
        if again != self.data:
            raise TypeError(f"the data of {self!r} would not come back from JSON as it is")
        return raw

    @property
    def error(self) -> DecodeError | None:
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
        dedupe_key: A digest of the entry's bytes, so that a repaired entry is another message.
        cursor: As for any message; `None` when it could not be read.
        raw: The entry's bytes, for a dead letter.
    """

    __slots__ = ("_error", "_raw")

    def __init__(
        self,
        id: str,
        error: DecodeError,
        *,
        dedupe_key: str | None = None,
        cursor: Cursor | None = None,
        raw: bytes = b"",
    ) -> None:
        super().__init__(id, dedupe_key=dedupe_key, cursor=cursor)
        self._error = error
        self._raw = raw

    @property
    def raw(self) -> bytes:
        """The entry's bytes."""
        return self._raw

    @property
    def data(self) -> Any:
        """Raises why the entry could not be read."""
        raise self._error

    @property
    def error(self) -> DecodeError:
        """Why the entry could not be read."""
        return self._error


M = TypeVar("M", bound=Message, default=Message)
M_co = TypeVar("M_co", bound=Message, default=Message, covariant=True)
M_contra = TypeVar("M_contra", bound=Message, default=Message, contravariant=True)


class Push(msgspec.Struct, frozen=True):
    """What arrived on a push channel. It becomes a wake and is never data.

    Attributes:
        cursor: The newest cursor that the server spoke of, a hint: a push whose cursor is the saved one may be
            dropped, and a feed may use it as a floor. Never saved as progress. `None` when the push had none.
        topics: What changed, a hint for the feed. Empty when the push did not say. Of a list a tuple is made.
        count: How many messages the server says there are; `None` when it did not. Nothing here believes it.

    Raises:
        TypeError: Something else, as JSON that somebody wrote may hold: it would fail far from here, or not be
            equal to any cursor.
    """

    cursor: Cursor | None = None
    topics: tuple[str, ...] = ()
    count: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.topics, list):
            msgspec.structs.force_setattr(self, "topics", tuple(self.topics))
        if not isinstance(self.cursor, str | None):
            raise TypeError(f"cursor of a Push must be a str or None, not {type(self.cursor).__name__}")
        if not isinstance(self.topics, tuple) or not all(isinstance(topic, str) for topic in self.topics):
            raise TypeError("topics of a Push must be a tuple of str")
        if not isinstance(self.count, int | None):
            raise TypeError(f"count of a Push must be an int or None, not {type(self.count).__name__}")


NO_HINT = Push()
"""A push that says nothing, except that there is something to poll."""


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What a feed is asked.

    Attributes:
        cursor: Where to go on: a cursor or a `Page.next_page` that this feed returned; `None` is the inception.
        wait: Seconds for which the server may hold its answer when it has nothing new; 0 means answer now.
            Above 0 only for a feed that has `max_wait`.
        hint: What the pushes since the last poll said, or `None`. It may tell a feed what to look at first, never
            what to leave out: wakes without a hint are answered by the same poll. After a failed poll the next one
            has it too, unless the feed refused: whoever may push can write anything into it.
        bypass_cache: Go past caches: a push or the user said that there is something new.
    """

    cursor: Cursor | None = None
    wait: float = 0.0
    hint: Push | None = None
    bypass_cache: bool = False


@dataclass(frozen=True)  # without slots, which make `Page[Entry]()` a TypeError on CPython 3.11
class Page(Generic[M_co]):
    """One answer of a feed.

    Attributes:
        messages: In the order in which they are to be processed.
        cursor: Safe to save when the whole page is settled; `None` leaves the saved one.
        next_page: Where to fetch the following page at once; `None` when this was the last: caught up.
        retry_after: Seconds that the server asks to be left alone, counted from now, also after a success
            (`Backoff`, `X-Poll-Interval`); `None` when it did not ask.
        closed: The feed has ended: nothing will ever follow this page, which has no `next_page`. When all of it is
            settled, `Consumer.run()` returns.
        gap: What may be missing before the messages of this page, in words, when the feed can no longer give it
            (the message that was read last is listed no more, Matrix' `limited`); empty when nothing is.
        poll_within: Seconds from the end of this poll within which the feed asks to be polled again, if that is
            sooner than the fallback interval: for a feed that knows of messages which it cannot give yet, as rows
            behind a transaction that has not committed. `None` when it does not ask. The rate and what the server
            asks for come first, and only the last page of a poll counts.
    """

    messages: Sequence[M_co | UnreadableMessage] = ()
    cursor: Cursor | None = None
    next_page: Cursor | None = None
    retry_after: float | None = None
    closed: bool = False
    gap: str = ""
    poll_within: float | None = None


class Settlement(enum.StrEnum):
    """How a message was settled."""

    PROCESSED = "processed"
    DEAD_LETTERED = "dead"
    SKIPPED = "skipped"


class Record(msgspec.Struct, frozen=True, gc=False):
    """That the message with this dedupe key was settled, and how.

    Attributes:
        key: The dedupe key.
        state: How.
        fingerprint: A number of up to 63 bits that stands for the message's content; `None`: it is not looked at.
    """

    key: str
    state: Settlement = Settlement.PROCESSED
    fingerprint: int | None = None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message given up on, kept with its error. Times are seconds since the epoch.

    Attributes:
        dedupe_key: The dedupe key, by which it is asked for.
        id: What the feed calls the message.
        raw: The entry as it came (`Message.raw`).
        error: The last one, in one line.
        traceback: Where it was raised; the end of a long one.
        attempts: How often it was tried to process it; 0 for one that could not be read.
        first_failed: When it failed first.
        last_failed: When it failed last.
        retry_requested: The next run tries it again.
    """

    dedupe_key: str
    id: str
    raw: bytes
    error: str
    traceback: str = ""
    attempts: int = 1
    first_failed: float = 0.0
    last_failed: float = 0.0
    retry_requested: bool = False


class SavedCursor(NamedTuple):
    """A cursor that was saved once; `None` is the inception.

    Attributes:
        cursor: The cursor.
        read_at: When the page arrived that it is of, in seconds since the epoch.
    """

    cursor: Cursor | None
    read_at: float


class FailureAction(enum.StrEnum):
    """What becomes of a message that failed."""

    RETRY = "retry"
    STOP = "stop"
    DEAD_LETTER = "dead_letter"
    SKIP = "skip"


Clock: TypeAlias = Callable[[], float]
"""Seconds since some start, never going back."""

MAX_NOT_BEFORE = 86_400.0
"""Seconds. A server that asks to be left alone for longer gets a day, so that a slip, or a `Retry-After` of a
century, does not end a consumer (G3)."""


@dataclass(slots=True, eq=False)
class CycleDetector:
    """Detects that a walk along cursors goes in a circle, after three rounds at most (Brent's algorithm)."""

    _mark: Cursor | None = None
    _steps: int = 0
    _limit: int = 1

    def repeats_at(self, position: Cursor) -> bool:
        """Return True if the walk was at this position before."""
        if position == self._mark:
            return True
        self._steps += 1
        if self._steps == self._limit:
            self._mark, self._steps, self._limit = position, 0, self._limit * 2
        return False
