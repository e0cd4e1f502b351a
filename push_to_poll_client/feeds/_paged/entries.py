"""Make messages from the entries of a page, as `Entries` declares them.

A page is read by columns: all ids, then all versions, and so on; a call per value would be slower. If an entry
cannot be read, each half of the page is read alone, down to that entry. It becomes an `UnreadableMessage`; the
others are not affected.

The poll fails if no entry of a first page can be read: the declaration is wrong. It also fails if all entries of a
first page are in the opposite order by time: the feed would look for new entries among the old ones. A list need
not be sorted by time, so a wrong order on a later page is only a WARNING.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from datetime import UTC, datetime
from itertools import pairwise, repeat
from typing import Any, Final, Literal, TypeAlias

import msgspec

from push_to_poll_client._exceptions import DecodeError, FeedError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Cursor, D_co, DeadLetter, Message, UnreadableMessage
from push_to_poll_client._validation import describe
from push_to_poll_client.feeds._data_decoder import DataDecoder
from push_to_poll_client.feeds._decoding import MAX_ID, MAX_UNREADABLE, UNREADABLE_KEY_PREFIX, unreadable_key
from push_to_poll_client.feeds._paged.body import (
    DeclarationMismatch,
    EntryList,
    ListSpec,
    Reply,
    Sentinel,
    declare_lists,
    find_lists,
    outline,
    restore_list,
    text_of,
)
from push_to_poll_client.feeds._paged.readers import Field, FieldSpec, texts_of

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))


class Entry(Message[D_co]):
    """Message of a `PagedFeed`. Its `data` is the entry as parsed JSON, or the result of `decode=`.

    An entry keeps the whole text of its page in memory. Do not collect entries; copy the values that you need.

    Args:
        id: As for any message.
        data: As for any message.
        dedupe_key: As for any message.
        cursor: As for any message.
        type: Type of the event, as declared; "" if the entry has none.
        time: Time of the event as the feed wrote it; `None` if the entry has none.
        deleted: True if the entry is a deletion.
    """

    __slots__ = ("_decoder", "_deleted", "_part", "_place", "_time", "_type")

    def __init__(
        self,
        id: str,
        data: Any = None,
        *,
        dedupe_key: str | None = None,
        cursor: Cursor | None = None,
        type: str = "",
        time: Any = None,
        deleted: bool = False,
    ) -> None:
        super().__init__(id, data, dedupe_key=dedupe_key, cursor=cursor)
        self._type = type
        self._time = time
        self._deleted = deleted
        self._part: EntryList | None = None
        self._place = 0
        self._decoder: DataDecoder[D_co] | None = None

    @classmethod
    def _of_rows(cls, rows: Iterable[tuple[Any, ...]], decoder: DataDecoder[Any] | None) -> "list[Entry]":
        entries = list[Entry]()
        for row in rows:
            self = cls.__new__(cls)
            (
                self._id,
                self._data,
                self._key,
                self._cursor,
                self._type,
                self._time,
                self._deleted,
                self._part,
                self._place,
            ) = row
            self._decoder = decoder
            entries.append(self)
        return entries

    @property
    def data(self) -> D_co:
        """The entry as parsed JSON, or the result of `decode=`, which runs at first use.

        Raises:
            DecodeError: The entry does not fit `decode=`. Do not catch this in the handler.
        """
        if self._decoder is not None:
            self._data = self._decoder.decode(self._data, self)
            self._decoder = None
        return self._data  # type: ignore[no-any-return]

    @property
    def type(self) -> str:
        """Type of the event, as declared; "" if the entry has none."""
        return self._type

    @property
    def time(self) -> Any:
        """Time of the event as the feed wrote it, or None. It does not determine the order."""
        return self._time

    @property
    def deleted(self) -> bool:
        """True if the entry is a deletion."""
        return self._deleted

    @property
    def raw(self) -> bytes:
        """The entry as received; with several lists, in an object under the name of its list."""
        return super().raw if self._part is None else self._part.raw(self._place)


CONTENTS: Final = Sentinel("CONTENTS")
"""Version for a feed of states that has no versions: a digest of the entry and the cursor of its page.

An entry read at a later cursor is a new message, even with the same content. This includes an old page that the
server returns again at a later cursor. An entry that is read again because a poll failed is not a new message.
`NewestFirst` has no such cursor: the version is the content alone.
"""


class Entries:
    """Location of the messages on a page, and of the fields in each entry.

    Args:
        where: Path of the list: `"data"`, or `("result", "items")`. Without a path the body itself is the list.
            Several paths are several lists, read in this order. With `LINES` each line of the body is an entry. A
            function gets the whole body and returns the list.
        optional: True if the server omits an empty list. Otherwise a missing list is an error.
        id: The id of an entry.
        version: Distinguishes the versions of an entry, for feeds of states: a sequence number, a time of change,
            an etag, or `CONTENTS`. `None` means that an id names an event, which never changes. An entry without
            its version cannot be read, except for a deletion, which is treated as with `CONTENTS`.
        type: The type of the event. `None` means the name of the list, if there are several lists.
        time: The time of the event. It is also used to detect entries in the wrong order.
        deleted: An entry is a deletion if this field is present and truthy.
        deletions: Name of the list whose entries are all deletions.
        newest_first: True if each page lists its newest entry first although the pages go forward.
        only: Function of an entry that returns True for messages; other entries are skipped. `None` means all.

    Raises:
        TypeError: An argument is neither a path nor a function.
        ValueError: A path is empty, or `deletions` does not name one of several lists.
    """

    def __init__(
        self,
        *where: ListSpec,
        optional: bool = False,
        id: FieldSpec = "id",
        version: FieldSpec | Sentinel | None = None,
        type: FieldSpec | None = None,
        time: FieldSpec | None = None,
        deleted: FieldSpec | None = None,
        deletions: str | None = None,
        newest_first: bool = False,
        only: Callable[[Any], Any] | None = None,
    ) -> None:
        self._lists, self._optional = declare_lists(where), optional
        if deletions is not None and (not deletions or deletions not in self._lists):
            raise ValueError(f"deletions must be the name of one of several lists, got {deletions!r}")
        if only is not None and not callable(only):
            raise TypeError(f"only must be a function of an entry, got {only!r}")
        if isinstance(version, Sentinel) and version is not CONTENTS:
            raise TypeError(f"version must be a path, a function of an entry, or CONTENTS, got {version!r}")
        self._deletions = deletions
        self._id = Field(id)
        self._version_from_contents = version is CONTENTS
        self._version = None if isinstance(version, Sentinel) else _optional_field(version)
        self._type, self._time, self._deleted = map(_optional_field, (type, time, deleted))
        self._newest_first = newest_first
        self._only = only
        self._has_read_page = False
        self._decoder: DataDecoder[Any] | None = None

    def for_feed(self, decoder: DataDecoder[Any] | None) -> "Entries":
        """Return a copy for one feed, which remembers if a page of this feed could be read."""
        own = copy(self)
        own._decoder = decoder  # noqa: SLF001
        return own

    def find(self, reply: Reply, most: int) -> list[EntryList]:
        """Return the lists of a page in order, and note their entries in the reply.

        Raises:
            DeclarationMismatch: A list is missing, or the page has more than `most` entries.
        """
        lists = find_lists(self._lists, reply, most, optional=self._optional)
        if self._newest_first:
            lists.reverse()
            for part in lists:
                part.reverse()
        reply.size = sum(len(part.entries) for part in lists)
        reply.entries = [
            entry
            for part in lists
            for entry in part.entries
            if not (part.broken and isinstance(entry, DecodeError))
        ]
        reply.listed = any(part.listed for part in lists)
        return lists

    def read(
        self, parts: Sequence[EntryList], *, each: Field | None, start: Cursor | None
    ) -> list[Entry | UnreadableMessage]:
        """Return the messages of a page.

        Args:
            parts: The lists that `find` returned.
            each: Reads the cursor of an entry; `None` if entries have no cursors.
            start: The cursor at which the chain of pages began.

        Raises:
            DeclarationMismatch: No entry of the first page, or too few of another page, can be read.
        """
        messages, unreadable = list[Entry | UnreadableMessage](), list[UnreadableMessage]()
        for part in parts:
            spans = [range(len(part.entries))]
            while spans:
                places = spans.pop()
                try:
                    messages += self._read_all(part, places, each, start)
                except Exception as error:  # noqa: BLE001  # user functions read untrusted data
                    if len(places) > 1:  # each half alone, down to the entry that cannot be read
                        middle = len(places) // 2
                        spans += [places[middle:], places[:middle]]
                        continue
                    unreadable.append(_unreadable_message(part, places[0], error, each))
                    messages.append(unreadable[-1])
                    if len(unreadable) > MAX_UNREADABLE:
                        raise DeclarationMismatch(
                            f"a page has more than {MAX_UNREADABLE} unreadable entries"
                        ) from None
        if unreadable and len(unreadable) == len(messages) and not self._has_read_page:
            first = unreadable[0]
            raise DeclarationMismatch(
                f"no entry of the first page can be read; the first is {outline(first.raw)}: {first.error}"
            )
        self._has_read_page = self._has_read_page or bool(messages)
        return messages

    def restore(self, letter: DeadLetter) -> Entry | UnreadableMessage:
        """Return the message of a dead letter; an `UnreadableMessage` if skipped by `only` or unreadable."""
        try:
            messages = self._read_all(restore_list(self._lists, letter.raw), [0], None, None)
            if not messages:
                raise DecodeError("only= skips this entry now; drop its dead letter")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  # user functions read untrusted data
            return UnreadableMessage(
                letter.id, _as_decode_error(error), dedupe_key=letter.dedupe_key, raw=letter.raw
            )
        message = messages[0]
        message._key = letter.dedupe_key  # noqa: SLF001  # it may contain a cursor, which is unknown here
        if not letter.dedupe_key.startswith(UNREADABLE_KEY_PREFIX):
            message._id = letter.id  # noqa: SLF001
        return message

    def _read_all(
        self, part: EntryList, places: Sequence[int], each: Field | None, start: Cursor | None
    ) -> list[Entry]:
        """Read these entries without those that `only` skips; raise if one is unreadable."""
        entries = _entries_at(part, places)
        if self._only is not None:
            places = [place for place, entry in zip(places, entries, strict=True) if self._only(entry)]
            entries = [part.entries[place] for place in places]
        gone: Iterable[bool] = repeat(part.group == self._deletions)
        if self._deleted is not None and part.group != self._deletions:
            gone = list(map(bool, self._deleted.read_all(entries)))
        ids, keys = self._ids_and_keys(entries, part.group, gone, start)
        types: Iterable[str] = repeat(part.group)
        if self._type is not None:
            types = [kind or part.group for kind in texts_of(self._type.read_all(entries))]
        cursors = repeat(None) if each is None else texts_of(each.read_all(entries))
        times = repeat(None) if self._time is None else self._time.read_all(entries)
        return Entry._of_rows(  # noqa: SLF001  # used only in this module
            zip(ids, entries, keys, cursors, types, times, gone, repeat(part), places, strict=False), self._decoder
        )

    def _ids_and_keys(
        self, entries: Sequence[Any], group: str, gone: Iterable[bool], start: Cursor | None
    ) -> tuple[list[str], list[str]]:
        names = _require_all(texts_of(self._id.read_all(entries)), f"an entry has no id at {self._id}")
        versions = self._versions(entries, group, gone, start)
        ids = keys = names
        if versions is not None:
            ids = [f"{name}@{version}" for name, version in zip(names, versions, strict=True)]
        if versions is not None or group:
            middle = f":{group}:" if group else ":"
            keys = [f"{len(name)}{middle}{named}" for name, named in zip(names, ids, strict=True)]
        both = ids if keys is ids else (*ids, *keys)
        if max(map(len, both), default=0) > MAX_ID or "\0" in "".join(both):
            raise DecodeError(
                f"an entry's id or key is longer than {MAX_ID} characters, or contains a zero character"
            )
        return ids, keys

    def _versions(
        self, entries: Sequence[Any], group: str, gone: Iterable[bool], start: Cursor | None
    ) -> list[str] | None:
        if self._version is None:
            return _digests(entries, start, group) if self._version_from_contents else None
        versions = texts_of(self._version.read_all(entries))
        # A deletion without its version is treated as with `CONTENTS`.
        if None in versions:
            known = zip(versions, _digests(entries, start, group), gone, strict=False)
            versions = [digest if version is None and is_gone else version for version, digest, is_gone in known]
        return _require_all(versions, f"an entry has no version at {self._version}")


def _optional_field(where: FieldSpec | None) -> Field | None:
    return None if where is None else Field(where)


def _entries_at(part: EntryList, places: Sequence[int]) -> Sequence[Any]:
    """Return the entries at these places; raise the DecodeError of an invalid one."""
    entries = part.entries if len(places) == len(part.entries) else [part.entries[place] for place in places]
    for entry in entries if part.broken else ():
        if isinstance(entry, DecodeError):
            raise entry
    return entries


def _require_all(column: list[str | None], error: str) -> list[str]:
    if None in column:
        raise DecodeError(error)
    return column  # type: ignore[return-value]  # checked above


_encode = msgspec.json.Encoder(order="sorted").encode


def _digests(entries: Sequence[Any], start: Cursor | None, group: str) -> list[str]:
    """Digest each entry together with its list and the cursor of its page."""
    prefix = hashlib.blake2b(_encode((start, group)), digest_size=12)
    digests = list[str]()
    for entry in entries:
        digest = prefix.copy()
        digest.update(_encode(entry))
        digests.append(digest.hexdigest())
    return digests


def _unreadable_message(part: EntryList, place: int, error: Exception, each: Field | None) -> UnreadableMessage:
    raw, entry, cursor = part.raw(place), part.entries[place], None
    if each is not None and not isinstance(entry, DecodeError):
        with suppress(Exception):
            cursor = text_of(each(entry))
    name = unreadable_key(raw)
    return UnreadableMessage(name, _as_decode_error(error), dedupe_key=name, cursor=cursor, raw=raw)


def _as_decode_error(error: Exception) -> DecodeError:
    reason = error if isinstance(error, DecodeError) else f"an entry cannot be read: {describe(error)}"
    return DecodeError(f"{reason}; correct the declaration, or report it to the publisher")


# If times are in no order, 4 of them are sorted by chance on one page in 24, and 10 on one page in 3.6 million.
MIN_TIMES = 4
"""Different times on a page, all in the opposite order, that show a wrong declaration."""

Order: TypeAlias = Literal["oldest first", "newest first"]

_REMEDIES: Mapping[Order, str] = {
    "oldest first": "declare NewestFirst(…), or Entries(newest_first=True)",
    "newest first": "declare OldestFirst(…)",
}


def check_order(messages: Sequence[Message], order: Order, where: str, *, first: bool) -> bool:
    """Log a WARNING and return False if all entries of a page are in the opposite order by time."""
    other: Order = "newest first" if order == "oldest first" else "oldest first"
    if not _stand_in_order(messages, other):
        return True
    remedy = f"{_REMEDIES[order]}, or remove time= if the list is not sorted by time"
    if first:  # the first page of a new consumer: fail before any message is processed
        raise FeedError(
            f"{where} does not match its declaration: its entries are {other} by time, but declared {order}; "
            f"{remedy}"
        )
    logger.warning(
        "%s does not match its declaration: its entries are %s by time, but declared %s; %s",
        where,
        other,
        order,
        remedy,
    )
    return False


def _stand_in_order(messages: Sequence[Message], order: Order) -> bool:
    """Return True if one list has enough different times, and all are in this order."""
    sign, times = (1 if order == "oldest first" else -1), 1
    for one, other in pairwise(message for message in messages if isinstance(message, Entry)):
        time, next_time = _instant(one.time), _instant(other.time)
        is_one_list = one._part is other._part  # noqa: SLF001  # `Entry` is of this module
        if time is None or next_time is None or (next_time - time) * sign < 0 or not is_one_list:
            return False
        times += time != next_time
    return times >= MIN_TIMES


def _instant(time: Any) -> float | None:
    """Return a number or ISO 8601 text as seconds; None if it cannot be read."""
    if isinstance(time, bool) or not isinstance(time, int | float | str):
        return None
    try:
        seconds = float(time)
    except OverflowError:
        return None
    except ValueError:
        try:
            read = datetime.fromisoformat(str(time))
        except ValueError:
            return None
        seconds = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    return seconds if math.isfinite(seconds) else None
