"""Deletions in a complete feed (RFC 5005 §2), and documents that are missing.

What it had is written into the cursor, all of it or nothing: only what was there is reported as deleted. An entry
that comes back as it was is a new message, which dedupe must not take for the old one: its name says how often it
was gone. That, too, is remembered, as long as there is room.
"""

import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import httpx
import msgspec

from push_to_poll_client._exceptions import FeedError, FeedRefused
from push_to_poll_client._http.caching import fresh_for
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._http.response import Response
from push_to_poll_client._json import Decoder
from push_to_poll_client._types import MAX_CURSOR, Message
from push_to_poll_client.feeds._atom.constructs import Instant
from push_to_poll_client.feeds._atom.entry import AtomEntry, messages_of
from push_to_poll_client.feeds._atom.parser import AtomDocument, ElementSource, RawEntry, read_document
from push_to_poll_client.feeds._newest_first_cursor import MAX_OLDER_DIGESTS, MAX_TOP_DIGESTS
from push_to_poll_client.feeds._newest_first_walk import Document

__all__ = [
    "EntryState",
    "EntryStates",
    "MissingDocuments",
    "decode_note",
    "document_from_response",
    "encode_note",
    "find_deletions",
]


NOT_FOUND_ATTEMPTS = 3
"""Not found (404) so often, a document is taken for gone: a deployment is over then."""

NOT_FOUND_WAIT = 60.0
"""Seconds in between."""

MOST_ADDRESSES = 16
"""Remembered: one for each consumer of the feed."""


class MissingDocuments:
    """Documents of one feed that others led to."""

    def __init__(self) -> None:
        self._not_found_counts: OrderedDict[str, int] = OrderedDict()

    def is_gone(self, address: str, answer: Response) -> bool:
        """Whether there is no such document any more. 410 says so; of 404 nobody knows for how long it is true.

        Raises:
            FeedError: It is to be asked for again: what is taken for gone once is never asked for again.
        """
        times = self._not_found_counts.pop(address, 0) + 1
        if answer.status != HTTPStatus.NOT_FOUND or times >= NOT_FOUND_ATTEMPTS:
            return answer.status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
        self._not_found_counts[address] = times
        if len(self._not_found_counts) > MOST_ADDRESSES:
            self._not_found_counts.popitem(last=False)
        wait = max(NOT_FOUND_WAIT, answer.retry_after or 0.0)
        raise FeedError(f"{answer.where} led to a document that is not found (404)", retry_after=wait)


MOST_UNPACKED = 4 * 1024 * 1024
"""Bytes that a note may become: ours are below a tenth of that."""

_DIGEST_LENGTH = 12
_CURSOR_OVERHEAD = 5_000
"""Characters of a cursor for what is neither a digest nor the note."""

_COMMENT = "It is no longer in its feed, which is complete."


class EntryState(NamedTuple):
    """What is remembered of an entry.

    Attributes:
        order: Of its newest version.
        again: How often it was gone.
        gone: It is.
    """

    order: str
    again: int = 0
    gone: bool = False


EntryStates = Mapping[str, EntryState]
"""By the ids of entries."""

_decode_rows = Decoder(list[tuple[str, EntryState]]).decode


def decode_note(note: str) -> EntryStates:
    """What `encode_note` wrote; nothing if it is not that."""
    try:
        text = zlib.decompressobj().decompress(urlsafe_b64decode(note), MOST_UNPACKED)
        memory = dict(_decode_rows(text))
        for kept in memory.values():
            Instant.read(kept.order)
    except (ValueError, zlib.error, RecursionError):
        return {}
    return memory


def encode_note(memory: EntryStates, messages: int) -> str:
    """What can be written into a cursor: all that is there, and of what is gone as much as there is room for.

    Args:
        memory: What was gone last stands first.
        messages: Of the document, whose digests are in the cursor too.

    Returns:
        "" if there is no room for all that is there.
    """
    room = (
        MAX_CURSOR - _CURSOR_OVERHEAD - _DIGEST_LENGTH * (min(messages, MAX_TOP_DIGESTS) + 2 * MAX_OLDER_DIGESTS)
    )
    here = sorted((name, kept) for name, kept in memory.items() if not kept.gone)
    gone = [(name, kept) for name, kept in memory.items() if kept.gone]
    while len(note := _compress([*here, *gone])) > room:
        if not gone:
            return ""
        gone = gone[: len(gone) // 2]
    return note


def find_deletions(
    before: EntryStates, entries: Sequence[RawEntry], messages: Sequence[Message]
) -> tuple[list[AtomEntry], EntryStates]:
    """What is gone, and what is to be remembered.

    Args:
        before: What was there.
        entries: Of the document.
        messages: Made of them, the newest first.
    """
    named = {found.name for found in entries}
    if "" in named:  # it could be any of those that seem to be gone
        return [], before
    here = _present_entries(before, messages)
    lost = {name: kept for name, kept in before.items() if name not in here}
    gone = {name: kept._replace(again=kept.again + 1, gone=True) for name, kept in lost.items() if not kept.gone}
    deletions = [_deletion(name, before[name]) for name in gone if name not in named]
    return deletions, here | gone | {name: kept for name, kept in lost.items() if kept.gone}


def _present_entries(before: EntryStates, messages: Sequence[Message]) -> dict[str, EntryState]:
    """Of an entry that cannot be read stays what was known."""
    here: dict[str, EntryState] = {}
    for message in messages:
        if not isinstance(message, AtomEntry):
            here |= {message.id: before[message.id]} if message.id in before else {}
        elif not message.deleted:
            again = before[message.entry_id].again if message.entry_id in before else 0
            here.setdefault(message.entry_id, EntryState(message.order, again))
    return here


def _deletion(name: str, kept: EntryState) -> AtomEntry:
    markup = (
        f'<deleted-entry xmlns="http://purl.org/atompub/tombstones/1.0" ref={quoteattr(name)} '
        f'when="{kept.order}Z"><comment>{_COMMENT}</comment></deleted-entry>'
    )
    return AtomEntry(
        ElementSource(markup.encode()), name, Instant.read(kept.order), deleted=True, again=kept.again
    )


def _compress(rows: Sequence[tuple[str, EntryState]]) -> str:
    return urlsafe_b64encode(zlib.compress(msgspec.json.encode(rows))).decode()


def document_from_response(answer: Response, note: str, *, newest: bool, most: int) -> Document:
    """Read a document.

    Args:
        answer: With it.
        note: What was remembered of the newest document.
        newest: It is that one.
        most: Entries that it may have.

    Raises:
        FeedRefused: It is an archive, and should be the newest.
        FeedError: It cannot be read.
    """
    if not answer.body.strip():
        raise FeedError(f"{answer.where} sent nothing where a document should be ({answer.status})")
    content_type = answer.headers.get("content-type", "")
    try:
        document = read_document(answer.body, content_type, _base_url(answer), max_entries=most)
        messages, note = (
            _complete_messages(document, note) if document.complete else (messages_of(document.entries), "")
        )
    except ValueError as error:
        raise FeedError(f"{answer.where} sent a document that {error}", retry_after=answer.retry_after) from None
    if newest:
        _check_is_newest(document, answer)
    archive = None if document.complete else document.links.get("prev-archive")
    return Document(
        messages,
        older=archive or (None if document.complete else document.links.get("next")),
        stable=archive is not None,
        size=document.size,
        validators=answer.validators,
        note=note,
        retry_after=answer.within_poll,
        poll_interval=answer.retry_after,
        whole=document.complete,
        fresh_for=fresh_for(answer.headers),
    )


def _complete_messages(document: AtomDocument, note: str) -> tuple[list[Message], str]:
    """The messages of a complete feed, of what is gone the newest, and what is to be remembered of them."""
    before = decode_note(note)
    again = {name: kept.again for name, kept in before.items()}
    messages = messages_of(document.entries, again)
    deletions, memory = find_deletions(before, document.entries, messages)
    return [*deletions, *messages], encode_note(memory, len(messages))


def _base_url(answer: Response) -> str:
    """Without the query, in which a secret may be, and to which nothing is relative but "" and "?"."""
    return str(httpx.URL(answer.url).copy_with(query=None, fragment=None))


def _check_is_newest(document: AtomDocument, answer: Response) -> None:
    """An archive does not change (RFC 5005 §4): whoever begins there would never see anything new."""
    current = document.links.get("current")
    if document.archive and current is not None and current not in {answer.url, _base_url(answer)}:
        raise FeedRefused(
            f"{answer.where} is an archive of a feed, which does not change; give the URL of its newest document, "
            f"{without_secrets(current)}"
        )
