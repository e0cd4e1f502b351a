"""WHICH MESSAGES a page has, and what each is called."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from push_to_poll_client._exceptions import UndecodableMessage
from push_to_poll_client._text import describe
from push_to_poll_client._types import Cursor, DeadLetter, Message, UnreadableMessage
from push_to_poll_client.feeds._paged.entry import Entry
from push_to_poll_client.feeds._paged.lists import Found, Lists, Where, Word
from push_to_poll_client.feeds._paged.reply import Path, Reply, Unfit, get, members, outline, text_of

__all__ = ["CONTENTS", "Entries"]

MAX_ID = 1024
"""Characters of an id with its version. Real ones have some dozens, and each is kept as long as its record."""

MAX_UNREADABLE = 10_000
"""Unreadable entries on one page: each costs a kilobyte."""

CONTENTS: Final = Word("CONTENTS")
"""For a feed of states that names no versions: what the entry says, and from which cursor it was read. What comes
later is another message, also when it says again what it said before; what comes again because pages are fetched
again, one of which failed, is not."""

Field: TypeAlias = Path | Callable[[Any], Any]
"""Where something stands in an entry, or a function of the entry."""


class Entries:
    """Where the messages are on a page, and where in each stands what it is called.

    Args:
        where: The path that leads to the list: `"data"`, or `("result", "items")`. None: the body itself is the
            list. Several: several lists, one after the other. `LINES`: each line of the body is an entry. A
            function: it is given the whole body and returns the list.
        optional: The server leaves out a list that is empty. Else its absence is taken for a mistake.
        id: What the entry is called.
        version: What tells the versions of an entry apart, for feeds of states: a sequence number, a time of
            change, an etag, or `CONTENTS`. `None`: the id is that of an event, which never changes.
        key: The dedupe key; `None`: made of id and version.
        type: What happened; `None`: with several lists, the name of the list.
        time: When it happened.
        deleted: What is there, and neither false nor empty, in an entry which says that something is gone.
        deletions: The name of the list whose entries all say that.
        newest_first: The entries of a page stand the newest first, though the pages go forward.
        only: Which entries are messages, a function of the entry; the others are passed over. `None`: all.

    Raises:
        TypeError: An argument is neither a path nor a function.
        ValueError: A path is empty, or `deletions` is the name of no list.
    """

    def __init__(
        self,
        *where: Where,
        optional: bool = False,
        id: Field = "id",
        version: Field | Word | None = None,
        key: Field | None = None,
        type: Field | None = None,
        time: Field | None = None,
        deleted: Field | None = None,
        deletions: str | None = None,
        newest_first: bool = False,
        only: Callable[[Any], Any] | None = None,
    ) -> None:
        self._lists = Lists(where, optional=optional)
        if deletions is not None and deletions not in self._lists.names:
            raise ValueError(f"deletions is {deletions!r}, which is the name of none of several lists")
        self._deletions = deletions
        self._id_at, self._id = id, _field(id)
        self._by_contents = version is CONTENTS
        self._version = _nothing if version is None or isinstance(version, Word) else _field(version)
        self._key, self._type, self._time, self._deleted = (
            _nothing if part is None else _field(part) for part in (key, type, time, deleted)
        )
        self._newest_first = newest_first
        self._only = only
        self._proved = False

    def read(
        self, reply: Reply, *, each: Callable[[Any], Any] | None, start: Cursor | None, most: int
    ) -> list[Message]:
        """Read a page, in its order, and set the `entries` of the reply.

        Args:
            reply: The page.
            each: Reads the cursor of an entry; `None`: entries have none.
            start: The cursor that the chain of pages began with.
            most: Entries that a page may have.

        Raises:
            Unfit: There is no list where one should be, it is too long, or nothing in it can be read.
        """
        found = self._lists.find(reply, most)
        if self._newest_first:
            found.reverse()
        values = [_decoded(entry.raw) for entry in found]
        reply.entries = [value for value in values if not isinstance(value, UndecodableMessage)]
        read = (self._message(entry, value, each, start) for entry, value in zip(found, values, strict=True))
        messages = [message for message in read if message is not None]
        self._check(messages, found)
        return messages

    def restore(self, letter: DeadLetter) -> Message:
        """The message of a dead letter; an `UnreadableMessage` if it still is one."""
        groups = {*self._lists.names} & members(letter.raw).keys()
        entry = Found("", letter.raw)
        for group in groups if len(self._lists.names) > 1 else ():
            entry = Found(group, members(letter.raw)[group])
        value = _decoded(entry.raw)
        if isinstance(value, UndecodableMessage):
            return UnreadableMessage(letter.id, value, key=letter.key, raw=letter.raw)
        return self._entry(entry, value, letter.id, letter.key, None)

    def _message(
        self, entry: Found, value: Any, each: Callable[[Any], Any] | None, start: Cursor | None
    ) -> Message | None:
        """A message of an entry; `None`: it is passed over."""
        cursor = None
        try:
            if isinstance(value, UndecodableMessage):
                raise value  # noqa: TRY301  # one way for all that is wrong with an entry
            cursor = None if each is None else text_of(each(value))
            if self._only is not None and not self._only(value):
                return None
            return self._entry(entry, value, *self._names(entry, value, start), cursor)
        except Exception as error:  # noqa: BLE001  # functions of the user read what others wrote
            return _unreadable(entry, describe(error), cursor)

    def _entry(self, entry: Found, value: Any, id: str, key: str, cursor: Cursor | None) -> Entry:
        return Entry(
            id,
            value,
            key=key,
            raw=entry.raw,
            group=entry.group,
            type=text_of(self._type(value)) or entry.group,
            time=self._time(value),
            deleted=bool(self._deleted(value)) or entry.group == self._deletions,
            cursor=cursor,
        )

    def _names(self, entry: Found, value: Any, start: Cursor | None) -> tuple[str, str]:
        """Id and dedupe key."""
        name = text_of(self._id(value))
        if name is None:
            raise UndecodableMessage(f"it has no id at {self._id_at!r}")
        version = _digest(entry, value, start) if self._by_contents else text_of(self._version(value)) or ""
        whole = f"{name}@{version}" if version else name
        parts = [part for part in (entry.group, version) if part]
        key = text_of(self._key(value)) or (":".join((str(len(name)), name, *parts)) if parts else name)
        if max(len(whole), len(key)) > MAX_ID or "\0" in whole + key:
            raise UndecodableMessage(f"its id or key is longer than {MAX_ID} characters, or has a NUL in it")
        return whole, key

    def _check(self, messages: Sequence[Message], found: Sequence[Found]) -> None:
        unreadable = sum(message.error is not None for message in messages)
        if unreadable > MAX_UNREADABLE:
            raise Unfit(f"a page has more than {MAX_UNREADABLE} unreadable entries")
        if not self._proved and unreadable == len(messages) > 0:
            why = next(message.error for message in messages)
            raise Unfit(f"no entry of the first page can be read: {why}; the first is {outline(found[0].raw)}")
        self._proved = self._proved or bool(messages)


def _field(where: Field) -> Callable[[Any], Any]:
    return where if callable(where) else get(where)


def _nothing(_value: Any) -> None:
    """Reads what was not declared."""


def _decoded(raw: bytes | msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError) as error:
        return UndecodableMessage(f"it is no JSON: {describe(error)}")


def _digest(entry: Found, value: Any, start: Cursor | None) -> str:
    said = msgspec.json.encode((start, entry.group, value), order="sorted")
    return hashlib.blake2b(said, digest_size=12).hexdigest()


def _unreadable(entry: Found, why: str, cursor: Cursor | None) -> UnreadableMessage:
    raw = bytes(entry.raw)
    digest = f"unreadable:{hashlib.sha256(raw).hexdigest()[:32]}"
    error = UndecodableMessage(f"an entry cannot be read: {why}; its publisher has to correct it")
    return UnreadableMessage(digest, error, key=digest, cursor=cursor, raw=raw)
