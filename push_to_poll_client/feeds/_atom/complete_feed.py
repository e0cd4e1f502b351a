"""Make a document of a response: complete feeds, their deletions, and missing documents.

A complete feed (RFC 5005 §2) has all of its entries in one document. An entry that left it was deleted, and
becomes a message. So the cursor lists the entries of the last document, in a note. The note has all of them or
none: only a known entry is ever reported as deleted.

An entry that comes back unchanged is a new message, not a duplicate. So its id and key contain the number of times
it was gone. The note stores this number too, as long as there is room.

A document that another one links to can be gone: status 410. A 404 may be caused by a deployment, so the document
is requested several times before it counts as gone, since it is not requested again after that.
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
from push_to_poll_client.feeds._atom.parser import AtomDocument, RawEntry, read_document
from push_to_poll_client.feeds._newest_first_cursor import MAX_OLDER_DIGESTS, MAX_TOP_DIGESTS
from push_to_poll_client.feeds._newest_first_walk import Document

NOT_FOUND_ATTEMPTS = 3
"""Responses with 404 after which a document counts as gone: a deployment has ended by then."""

NOT_FOUND_WAIT = 60.0
"""Seconds between two attempts."""

MAX_ADDRESSES = 16
"""Addresses remembered: one per consumer of the feed."""


class MissingDocuments:
    """Counts how often documents of one feed were not found; the oldest address is forgotten first."""

    def __init__(self) -> None:
        self._not_found_counts: OrderedDict[str, int] = OrderedDict()

    def is_gone(self, address: str, response: Response) -> bool:
        """Return True if the document no longer exists; raise FeedError for a 404 that must be retried first."""
        attempts = self._not_found_counts.pop(address, 0) + 1
        if response.status != HTTPStatus.NOT_FOUND or attempts >= NOT_FOUND_ATTEMPTS:
            return response.status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
        self._not_found_counts[address] = attempts
        if len(self._not_found_counts) > MAX_ADDRESSES:
            self._not_found_counts.popitem(last=False)
        wait = max(NOT_FOUND_WAIT, response.retry_after or 0.0)
        raise FeedError(f"{response.where} links to a document that was not found (404)", retry_after=wait)


MAX_UNPACKED = 4 * 1024 * 1024
"""Bytes of a note after decompression: written notes have less than a tenth of that."""

_DIGEST_LENGTH = 12
_CURSOR_OVERHEAD = 5_000
"""Characters of a cursor besides the digests and the note."""

_COMMENT = "This entry is no longer in its feed, and the feed lists all its entries."


class EntryState(NamedTuple):
    """State of one entry in a note."""

    order: str  # sort key of its newest version
    again: int = 0  # number of times it was gone
    gone: bool = False  # now


EntryStates = Mapping[str, EntryState]
_decode_rows = Decoder(list[tuple[str, EntryState]]).decode


def decode_note(note: str) -> EntryStates:
    """Read a note that `encode_note` wrote; empty for anything else."""
    try:
        text = zlib.decompressobj().decompress(urlsafe_b64decode(note), MAX_UNPACKED)
        states = dict(_decode_rows(text))
        for state in states.values():
            Instant.read(state.order)
    except (ValueError, zlib.error, RecursionError):
        return {}
    return states


def encode_note(states: EntryStates, message_count: int) -> str:
    """Write a note: all present entries, and as many gone ones as fit; "" if the present ones do not fit."""
    # The entry that went last comes first in `states`. The cursor also has digests of `message_count` messages.
    digests = min(message_count, MAX_TOP_DIGESTS) + 2 * MAX_OLDER_DIGESTS
    room = MAX_CURSOR - _CURSOR_OVERHEAD - _DIGEST_LENGTH * digests
    present = sorted((name, state) for name, state in states.items() if not state.gone)
    gone = [(name, state) for name, state in states.items() if state.gone]
    while len(note := _compress([*present, *gone])) > room:
        if not gone:
            return ""
        gone = gone[: len(gone) // 2]
    return note


def find_deletions(
    before: EntryStates, entries: Sequence[RawEntry], messages: Sequence[Message]
) -> tuple[list[AtomEntry], EntryStates]:
    """Return messages for entries that left a complete feed, and the new states of its entries."""
    ids = {entry.name for entry in entries}
    if "" in ids:  # an entry without an id could be any missing entry
        return [], before
    present = _present_entries(before, messages)
    absent = {name: state for name, state in before.items() if name not in present}
    lost = {
        name: state._replace(again=state.again + 1, gone=True) for name, state in absent.items() if not state.gone
    }
    # An entry that the document itself marks as deleted has a message already.
    deletions = [_deletion(name, before[name]) for name in lost if name not in ids]
    return deletions, present | lost | {name: state for name, state in absent.items() if state.gone}


def _present_entries(before: EntryStates, messages: Sequence[Message]) -> dict[str, EntryState]:
    """Return the states of the present entries. An unreadable entry keeps its state."""
    present: dict[str, EntryState] = {}
    for message in messages:
        if not isinstance(message, AtomEntry):
            present |= {message.id: before[message.id]} if message.id in before else {}
        elif not message.deleted:
            again = before[message.entry_id].again if message.entry_id in before else 0
            present.setdefault(message.entry_id, EntryState(message.order, again))
    return present


def _deletion(name: str, state: EntryState) -> AtomEntry:
    markup = (
        f'<deleted-entry xmlns="http://purl.org/atompub/tombstones/1.0" ref={quoteattr(name)} '
        f'when="{state.order}Z"><comment>{_COMMENT}</comment></deleted-entry>'
    )
    entry = RawEntry(markup.encode(), name, state.order, deleted=True)
    return AtomEntry(entry, Instant.read(state.order), again=state.again)


def _compress(rows: Sequence[tuple[str, EntryState]]) -> str:
    return urlsafe_b64encode(zlib.compress(msgspec.json.encode(rows))).decode()


def document_from_response(response: Response, note: str, *, newest: bool, max_entries: int) -> Document:
    """Read the document of a successful response; `note` belongs to the previous newest document."""
    if not response.body.strip():
        raise FeedError(f"{response.where} sent an empty body instead of a document (status {response.status})")
    content_type = response.headers.get("content-type", "")
    try:
        document = read_document(response.body, content_type, _base_url(response), max_entries=max_entries)
        messages, note = (
            _complete_messages(document, note) if document.complete else (messages_of(document.entries), "")
        )
    except ValueError as error:
        raise FeedError(
            f"{response.where} sent a document that {error}", retry_after=response.retry_after
        ) from None
    if newest:
        _check_is_newest(document, response)
    archive = None if document.complete else document.links.get("prev-archive")
    return Document(
        messages,
        older=archive or (None if document.complete else document.links.get("next")),
        stable=archive is not None,
        size=document.size,
        validators=response.validators,
        note=note,
        retry_after=response.within_poll,
        poll_interval=response.retry_after,
        whole=document.complete,
        fresh_for=fresh_for(response.headers),
    )


def _complete_messages(document: AtomDocument, note: str) -> tuple[list[Message], str]:
    before = decode_note(note)
    again = {name: state.again for name, state in before.items()}
    messages = messages_of(document.entries, again)
    deletions, states = find_deletions(before, document.entries, messages)
    return [*deletions, *messages], encode_note(states, len(messages))


def _base_url(response: Response) -> str:
    """Return the URL without its query, which may contain a secret."""
    return str(httpx.URL(response.url).copy_with(query=None, fragment=None))


def _check_is_newest(document: AtomDocument, response: Response) -> None:
    """Refuse an archive: it does not change (RFC 5005 §4), so no new entry would ever appear."""
    current = document.links.get("current")
    if document.archive and current is not None and current not in {response.url, _base_url(response)}:
        raise FeedRefused(
            f"{response.where} is an archive of a feed, which does not change; use the URL of the newest "
            f"document, {without_secrets(current)}"
        )
