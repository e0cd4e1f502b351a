"""Cursor of a feed that shows the newest entries first: digests of the newest entries that were seen.

It holds the digests of all entries of the newest document and of some older ones, so that a walk recognises where
the seen entries begin even if some of them were deleted. For archives it holds digests of their addresses. The
validators of the newest document are saved with them, so that a poll without news costs a 304.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain, islice
from typing import Annotated, TypeAlias

import msgspec

from push_to_poll_client._exceptions import CursorExpired
from push_to_poll_client._http.caching import Validators
from push_to_poll_client._json import DECODE_ERRORS, decode
from push_to_poll_client._types import MAX_CURSOR, Cursor

MAX_OLDER_DIGESTS = 256
"""Digests of entries that are no longer in the newest document. They recognise an entry that returns there since
another was deleted. If all these entries are gone from the feed before the next poll, other messages may be gone
with them."""

MAX_TOP_DIGESTS = 4_000
"""Digests of the newest document. If it has more messages, the others are handed out each time and left to the
dedupe store. With all other digests they take 54,000 of the 65,536 characters that a cursor may have."""

_DIGEST_BYTES = 9
_DIGEST_CHARS = 12
_EncodedDigests: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^(?:[A-Za-z0-9_-]{{{_DIGEST_CHARS}}})*+\Z")]

Digests = dict[bytes, None]
"""Digests in an order, as made by `digest`."""


def digest(text: str) -> bytes:
    """Return nine bytes for a key or an address."""
    # Among 10⁹ keys, the chance that one is taken for another of 4,000 is 10⁻⁹.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


class _CursorFields(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    seen: _EncodedDigests
    read: _EncodedDigests = ""
    etag: str | None = None
    modified: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class SeenEntries:
    """Entries seen, the content of a cursor.

    Attributes:
        messages: Digests of the messages that were seen, the newest first.
        archives: Digests of the addresses of archives that were read, the newest first.
        validators: Validators of the newest document; `None` if it had none.
        note: Text of the feed about the newest document.
    """

    messages: Digests = field(default_factory=dict)
    archives: Digests = field(default_factory=dict)
    validators: Validators | None = None
    note: str = ""

    @classmethod
    def parse(cls, cursor: Cursor | None, where: str) -> "SeenEntries":
        """Read a cursor; `None` means that nothing was seen.

        Raises:
            CursorExpired: It was not written by `cursor`.
        """
        if cursor is None:
            return cls()
        try:
            fields = decode(cursor, type=_CursorFields)
        except DECODE_ERRORS:
            raise CursorExpired(f"the cursor does not belong to {where}: another kind of feed wrote it") from None
        validators = Validators(fields.etag, fields.modified)
        known = validators if any(validators) else None
        return cls(_decode_digests(fields.seen), _decode_digests(fields.read), known, fields.note)

    def cursor(self) -> Cursor:
        """Write the cursor that `parse` reads. If it is too long, the oldest digests are left out."""
        etag, modified = self.validators or (None, None)
        fields = _CursorFields(
            _encode_digests(self.messages), _encode_digests(self.archives), etag, modified, self.note
        )
        text = msgspec.json.encode(fields).decode()
        excess = len(text) - MAX_CURSOR
        if excess <= 0 or not self.messages:
            return text
        kept = max(len(self.messages) + -excess // _DIGEST_CHARS, 0)
        return replace(self, messages=dict.fromkeys(islice(self.messages, kept))).cursor()

    def has_archive(self, address: str) -> bool:
        """Return True if the archive at this address was read."""
        return digest(address) in self.archives

    def updated(self, top: Sequence[bytes], others: Iterable[bytes], archives: Iterable[str]) -> "SeenEntries":
        """Add entries to those that were seen; the result has no validators and no note.

        Args:
            top: Digests of the dedupe keys of the newest document, the newest first.
            others: Digests of the dedupe keys of older documents.
            archives: Addresses of archives that were read, the newest first.
        """
        messages = _merge_digests(self.messages, dict.fromkeys(top[:MAX_TOP_DIGESTS]), others)
        return SeenEntries(messages, _merge_digests(self.archives, {}, map(digest, archives)))


def _merge_digests(before: Digests, first: Digests, others: Iterable[bytes]) -> Digests:
    """Return all digests of `first` and some of the others.

    Earlier digests keep their order, so that a document whose entries were only shuffled has the same cursor.
    """
    new = {one: None for one in chain(first, others) if one not in before}
    if not new and len(before) <= len(first) + MAX_OLDER_DIGESTS:
        return before
    merged = new | before
    older = set(islice((one for one in merged if one not in first), MAX_OLDER_DIGESTS))
    return {one: None for one in merged if one in first or one in older}


def _encode_digests(digests: Digests) -> str:
    return urlsafe_b64encode(b"".join(digests)).decode()


def _decode_digests(text: str) -> Digests:
    digests = urlsafe_b64decode(text)
    return dict.fromkeys(digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))
