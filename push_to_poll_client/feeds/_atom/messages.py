"""The messages of a document, the newest first. An entry that cannot be read fails alone."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from push_to_poll_client._exceptions import UndecodableMessage
from push_to_poll_client._types import Message, UnreadableMessage
from push_to_poll_client.feeds._atom.document import Found
from push_to_poll_client.feeds._atom.entry import AtomEntry, entry_of
from push_to_poll_client.feeds._atom.tree import outline, parse
from push_to_poll_client.feeds._reading import MAX_ID, MAX_UNREADABLE, unreadable_key

__all__ = ["UnreadableEntry", "messages_of", "order"]

_NEWEST = "9999"
_NEVER: Mapping[str, int] = MappingProxyType({})


class UnreadableEntry(UnreadableMessage):
    """An entry without an id or a date.

    Args:
        found: In its document.
        why: It cannot be read.
        order: Of an entry that stands beside it, since it has none of its own.
    """

    __slots__ = ("order",)

    def __init__(self, found: Found, why: str, order: str) -> None:
        key = unreadable_key(found.source.markup)
        name = found.name if 0 < len(found.name) <= MAX_ID else key
        error = UndecodableMessage(f"an entry cannot be read: it {why}; its publisher has to correct it")
        super().__init__(name, error, key=key, raw=found.source.alone)
        self.order = order


def order(message: Message) -> str:
    """What sorts the messages of this feed from the oldest to the newest."""
    return message.order if isinstance(message, AtomEntry | UnreadableEntry) else ""


def messages_of(entries: Sequence[Found], again: Mapping[str, int] = _NEVER) -> list[Message]:
    """The messages of a document, the newest first; of the same instant those that stand first.

    Args:
        entries: As they stand.
        again: How often entries were gone before, by their ids.

    Raises:
        ValueError: Too many cannot be read.
    """
    return sorted(_read(entries, again), key=order, reverse=True)


def _read(entries: Sequence[Found], again: Mapping[str, int]) -> Iterator[Message]:
    beside, unreadable = _NEWEST, 0
    for found in entries:
        try:
            message: Message = entry_of(found, again=0 if found.deleted else again.get(found.name, 0))
        except ValueError as error:
            unreadable += 1
            if unreadable > MAX_UNREADABLE:
                raise ValueError(f"has more than {MAX_UNREADABLE} unreadable entries") from None
            message = UnreadableEntry(found, f"{error}; there is {_outlined(found)}", beside)
        beside = order(message)
        yield message


def _outlined(found: Found) -> str:
    try:
        return outline(parse(found.source.alone))
    except ValueError:
        return "too much"
