"""The data types that all parts share: messages, pages, pushes, records, dead letters.

Feeds, listeners and stores import these types and not each other.
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
"""Position in a feed: an opaque string, returned to the feed unchanged.

Cursors can only be compared for equality. Where `None` is allowed, it is the inception: the beginning of the feed.
"""

# Characters. The longest known cursors are URLs and tokens of a few thousand. Each commit writes one.
MAX_CURSOR = 65_536

# Characters of an id or a key. Both are stored for each message. The feeds of this library make up to 1,200.
MAX_ID = 4_096


D = TypeVar("D", default=Any)
D_co = TypeVar("D_co", default=Any, covariant=True)


_OWN_RAW = "override raw in the message class and restore() in the feed"


class Message(Generic[D_co], metaclass=ABCMeta):  # ABCMeta: other classes can register as messages
    """One version of one entry of the feed.

    Immutable: a handler cannot change what the message is recorded by. (`data` may be mutable.) `Message[Order]`
    is a message whose `data` is an `Order`. A feed with data that is expensive to decode can subclass `Message`
    and decode in `data`. Subclasses may have more fields of an entry: `CloudEvent` and `Entry` have `type`, which
    is "" if the entry has none.

    Args:
        id: Identifies this version of the entry, 1 to 4,096 characters. A feed of current states, which repeats an
            entity's id, must combine the id with an etag, a sequence number or the time of the change.
        data: The content of the entry, of any type.
        dedupe_key: The key by which a processed message is recognised. `None` means: use the id.
        cursor: A cursor that is safe to save when this message and all before it are settled. `None` if only the
            page has one.
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
        """The feed's id of this version of the entry."""
        return self._id

    @property
    def dedupe_key(self) -> str:
        """The key by which a processed message is recognised.

        The id, unless the feed gave another key.
        """
        return self._key

    @property
    def cursor(self) -> Cursor | None:
        """Cursor to save once this message and all before are settled.

        `None` if only the page has such a cursor.
        """
        return self._cursor

    @property
    def data(self) -> D_co:
        """The content of the entry.

        Raises:
            DecodeError: A feed that decodes lazily cannot read the data. Do not catch it in the handler: the
                message then fails as undecodable and is not retried.
        """
        return self._data  # type: ignore[no-any-return]

    @property
    def raw(self) -> bytes:
        """The entry as bytes, as a dead letter stores it.

        The feed's `restore` makes the message from these bytes again. By default: `data` as JSON. If your data is
        not JSON, override this property and define `restore` in your feed.

        Raises:
            TypeError: The data cannot be written as JSON, or would be read back differently.
        """
        try:
            raw = msgspec.json.encode(self.data)
            again = decode(raw)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"cannot write the data of {self!r} as JSON: {error}; {_OWN_RAW}") from error
        if again != self.data:
            raise TypeError(f"the data of {self!r} would change if written as JSON and read again; {_OWN_RAW}")
        return raw

    @property
    def error(self) -> DecodeError | None:
        """The reason why the entry cannot be read; `None` for a readable entry."""
        return None

    def __repr__(self) -> str:
        # Without the data, which may be large or secret.
        return f"{type(self).__name__}(id={self.id!r})"


class UnreadableMessage(Message):
    """An entry that the feed cannot read.

    It fails without a call of the handler (G9).

    Args:
        id: The entry's id if it is readable, otherwise a digest of the entry's bytes.
        error: The reason why the entry cannot be read.
        dedupe_key: A digest of the entry's bytes, so that a corrected entry is a new message.
        cursor: As for `Message`; `None` if it cannot be read.
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
        """Always raises the error with which the entry could not be read."""
        raise self._error

    @property
    def error(self) -> DecodeError:
        """The reason why the entry cannot be read."""
        return self._error


M = TypeVar("M", bound=Message, default=Message)
M_co = TypeVar("M_co", bound=Message, default=Message, covariant=True)
M_contra = TypeVar("M_contra", bound=Message, default=Message, contravariant=True)


class Push(msgspec.Struct, frozen=True):
    """One push from a push channel: a request to poll, with optional hints.

    Attributes:
        cursor: The newest cursor according to the server; `None` if the push has none. A hint: a push that names
            the saved cursor may be ignored, and a feed may read at least up to this cursor. It is never saved as
            progress.
        topics: Names of changed things, as a hint for the feed. Empty if the push has none. A list becomes a
            tuple.
        count: Number of messages according to the server; `None` if the push has none. This library does not rely
            on it.

    Raises:
        TypeError: A value has another type. JSON from a server can hold any type.
    """

    cursor: Cursor | None = None
    topics: tuple[str, ...] = ()
    count: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.topics, list):
            msgspec.structs.force_setattr(self, "topics", tuple(self.topics))
        if not isinstance(self.cursor, str | None):
            raise TypeError(f"cursor of a Push must be a str or None, got {type(self.cursor).__name__}")
        if not isinstance(self.topics, tuple) or not all(isinstance(topic, str) for topic in self.topics):
            raise TypeError("topics of a Push must be a tuple of str")
        if not isinstance(self.count, int | None):
            raise TypeError(f"count of a Push must be an int or None, got {type(self.count).__name__}")


NO_HINT = Push()


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """The arguments of one fetch.

    Attributes:
        cursor: The position to read from: a cursor or a `Page.next_page` of this feed. `None` is the inception.
        wait: Seconds for which the server may hold its answer if it has nothing new. 0 means: answer at once.
            Above 0 only for a feed that has `max_wait`.
        hint: The hints of the pushes since the last poll; `None` if there were none. Use it only to choose what to
            read first, never to leave something out: the same poll also answers wakes without a hint. Not
            trustworthy: anyone who can push can write anything into it. After a failed poll the next poll gets it
            again, unless the feed refused the request.
        bypass_cache: True if caches must be bypassed, because a push or the user announced something new.
    """

    cursor: Cursor | None = None
    wait: float = 0.0
    hint: Push | None = None
    bypass_cache: bool = False


@dataclass(frozen=True)  # without slots: with them `Page[Entry]()` is a TypeError on CPython 3.11
class Page(Generic[M_co]):
    """One answer of a feed.

    Attributes:
        messages: The messages, in the order in which they are to be processed.
        cursor: A cursor that is safe to save when the whole page is settled. `None` means: keep the saved one.
        next_page: The position of the following page, which is fetched at once. `None` means: this is the last
            page; the consumer has caught up.
        retry_after: Seconds, from now, for which the server asks not to be polled, even after a success
            (`Backoff`, `X-Poll-Interval`). `None` if it did not ask.
        closed: True if the feed has ended and nothing will follow this page. Such a page has no `next_page`.
            `Consumer.run()` returns when the page is settled.
        gap: A description of messages that may be missing before this page and that the feed can no longer return.
            For example: the message read last is no longer listed, or Matrix answers `limited`. Empty if nothing
            is missing.
        poll_within: Poll again within this many seconds after the end of this poll, if that is sooner than the
            fallback interval. For a feed that knows of messages that it cannot return yet, such as rows behind an
            uncommitted transaction. `None` if not needed. The rate limit and waits that the server asks for come
            first. Only the value of a poll's last page counts.
    """

    messages: Sequence[M_co | UnreadableMessage] = ()
    cursor: Cursor | None = None
    next_page: Cursor | None = None
    retry_after: float | None = None
    closed: bool = False
    gap: str = ""
    poll_within: float | None = None


class Settlement(enum.StrEnum):
    """The way in which a message was settled."""

    PROCESSED = "processed"
    DEAD_LETTERED = "dead"
    SKIPPED = "skipped"


class Record(msgspec.Struct, frozen=True, gc=False):
    """The record that a message with this dedupe key was settled.

    Attributes:
        key: The dedupe key.
        state: The way in which it was settled.
        fingerprint: A number of at most 63 bits computed from the message's content. `None` if the content is not
            compared.
    """

    key: str
    state: Settlement = Settlement.PROCESSED
    fingerprint: int | None = None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that failed for good and was kept with its error.

    All times are seconds since the epoch.

    Attributes:
        dedupe_key: The dedupe key, which identifies the dead letter.
        id: The feed's id of the message.
        raw: The entry as the feed returned it (`Message.raw`).
        error: The last error, on one line.
        traceback: The traceback of the last error; if it is long, its end.
        attempts: Number of attempts to process it; 0 for an entry that cannot be read.
        first_failed: Time of the first failure.
        last_failed: Time of the last failure.
        retry_requested: True if the owner of the name, or the next run, is to retry it.
        drop_requested: True if the owner of the name, or the next run, is to drop it; then `retry_requested` is
            False.
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
    drop_requested: bool = False


class SavedCursor(NamedTuple):
    """A cursor that was saved; `None` is the inception.

    Attributes:
        cursor: The cursor.
        read_at: Time at which the page of the cursor arrived, in seconds since the epoch.
    """

    cursor: Cursor | None
    read_at: float


class FailureAction(enum.StrEnum):
    """The action after a message has failed."""

    RETRY = "retry"
    STOP = "stop"
    DEAD_LETTER = "dead_letter"
    SKIP = "skip"


Clock: TypeAlias = Callable[[], float]
"""Function that returns seconds since an arbitrary start and never goes back."""

# Seconds. Longest wait that a server can ask for, so that a mistake, or a `Retry-After` of a century, does not end
# a consumer (G3).
MAX_NOT_BEFORE = 86_400.0


@dataclass(slots=True, eq=False)
class CycleDetector:
    """Detect within three rounds that a walk along cursors goes in a circle (Brent's algorithm)."""

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
