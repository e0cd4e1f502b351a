"""WHAT IS GONE: a complete feed (RFC 5005 §2) has all there is, so what it had before and has no more was deleted.

What it had is written into the cursor, all of it or nothing: only what was there is reported as deleted. An entry
that comes back as it was is a new message, which dedupe must not take for the old one: its name says how often it
was gone. That, too, is remembered, as long as there is room.
"""

import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import msgspec

from push_to_poll_client._json import Decoder
from push_to_poll_client._types import MAX_CURSOR, Message
from push_to_poll_client.feeds._atom.document import Found
from push_to_poll_client.feeds._atom.entry import AtomEntry
from push_to_poll_client.feeds._atom.instants import Instant
from push_to_poll_client.feeds._atom.source import Source
from push_to_poll_client.feeds._seen import KEPT, MOST_KEPT

__all__ = ["Kept", "Memory", "compared", "noted", "recalled"]

MOST_UNPACKED = 4 * 1024 * 1024
"""Bytes that a note may become: ours are below a tenth of that."""

_DIGEST = 12
_BESIDE = 5_000
"""Characters of a cursor for what is neither a digest nor the note."""

_COMMENT = "It is no longer in its feed, which is complete."


class Kept(NamedTuple):
    """What is remembered of an entry.

    Attributes:
        order: Of its newest version.
        again: How often it was gone.
        gone: It is.
    """

    order: str
    again: int = 0
    gone: bool = False


Memory = Mapping[str, Kept]
"""By the ids of entries."""

_decode_rows = Decoder(list[tuple[str, Kept]]).decode


def recalled(note: str) -> Memory:
    """What `noted` wrote; nothing if it is not that."""
    try:
        text = zlib.decompressobj().decompress(urlsafe_b64decode(note), MOST_UNPACKED)
        memory = dict(_decode_rows(text))
        for kept in memory.values():
            Instant.read(kept.order)
    except (ValueError, zlib.error, RecursionError):
        return {}
    return memory


def noted(memory: Memory, messages: int) -> str:
    """What can be written into a cursor: all that is there, and of what is gone as much as there is room for.

    Args:
        memory: What was gone last stands first.
        messages: Of the document, whose digests are in the cursor too.

    Returns:
        "" if there is no room for all that is there.
    """
    room = MAX_CURSOR - _BESIDE - _DIGEST * (min(messages, MOST_KEPT) + 2 * KEPT)
    here = sorted((name, kept) for name, kept in memory.items() if not kept.gone)
    gone = [(name, kept) for name, kept in memory.items() if kept.gone]
    while len(note := _packed([*here, *gone])) > room:
        if not gone:
            return ""
        gone = gone[: len(gone) // 2]
    return note


def compared(
    before: Memory, entries: Sequence[Found], messages: Sequence[Message]
) -> tuple[list[AtomEntry], Memory]:
    """What is gone, and what is to be remembered.

    Args:
        before: What was there.
        entries: Of the document.
        messages: Made of them, the newest first.
    """
    named = {found.name for found in entries}
    if "" in named:  # it could be any of those that seem to be gone
        return [], before
    here = _here(before, messages)
    lost = {name: kept for name, kept in before.items() if name not in here}
    gone = {name: kept._replace(again=kept.again + 1, gone=True) for name, kept in lost.items() if not kept.gone}
    deletions = [_deletion(name, before[name]) for name in gone if name not in named]
    return deletions, here | gone | {name: kept for name, kept in lost.items() if kept.gone}


def _here(before: Memory, messages: Sequence[Message]) -> dict[str, Kept]:
    """Of an entry that cannot be read stays what was known."""
    here: dict[str, Kept] = {}
    for message in messages:
        if not isinstance(message, AtomEntry):
            here |= {message.id: before[message.id]} if message.id in before else {}
        elif not message.deleted:
            again = before[message.entry_id].again if message.entry_id in before else 0
            here.setdefault(message.entry_id, Kept(message.order, again))
    return here


def _deletion(name: str, kept: Kept) -> AtomEntry:
    markup = (
        f'<deleted-entry xmlns="http://purl.org/atompub/tombstones/1.0" ref={quoteattr(name)} '
        f'when="{kept.order}Z"><comment>{_COMMENT}</comment></deleted-entry>'
    )
    return AtomEntry(Source(markup.encode()), name, Instant.read(kept.order), deleted=True, again=kept.again)


def _packed(rows: Sequence[tuple[str, Kept]]) -> str:
    return urlsafe_b64encode(zlib.compress(msgspec.json.encode(rows))).decode()
