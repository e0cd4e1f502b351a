"""Cursor of a feed that lists its newest entries first: digests of the newest seen entries.

It has the digests of all entries of the newest document and of some older ones, so that a walk finds the seen
entries even if some were deleted. For archives it has digests of their addresses. The validators of the newest
document are saved too, so that a poll without news costs a 304.
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
"""Digests of entries that left the newest document, to recognise one that returns after a deletion."""

MAX_TOP_DIGESTS = 4_000
"""Digests of the newest document. Further messages are recognised by the dedupe store alone."""
# With all other digests they take 54,000 of the 65,536 characters that a cursor may have.

_DIGEST_BYTES = 9
_DIGEST_CHARS = 12
_EncodedDigests: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^(?:[A-Za-z0-9_-]{{{_DIGEST_CHARS}}})*+\Z")]

Digests = dict[bytes, None]
"""Digests in an order, as made by `digest`."""


def digest(text: str) -> bytes:
    """Return nine bytes for a key or an address."""
    # Among 10⁹ keys, the chance that one equals one of 4,000 others is 10⁻⁹.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


class _CursorFields(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    seen: _EncodedDigests
    read: _EncodedDigests = ""
    etag: str | None = None
    modified: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class SeenEntries:
    """Seen entries, the content of a cursor."""

    messages: Digests = field(default_factory=dict)  # newest first
    archives: Digests = field(default_factory=dict)  # of the addresses of archives that were read, newest first
    validators: Validators | None = None  # of the newest document
    note: str = ""  # of the feed, about the newest document

    @classmethod
    def parse(cls, cursor: Cursor | None, where: str) -> "SeenEntries":
        """Read a cursor, None for a new consumer; raise CursorExpired if it is from another kind of feed."""
        if cursor is None:
            return cls()
        try:
            fields = decode(cursor, type=_CursorFields)
        except DECODE_ERRORS:
            raise CursorExpired(
                f"the cursor does not belong to {where}, but to another kind of feed; use another name, or rewind"
            ) from None
        validators = Validators(fields.etag, fields.modified)
        known = validators if any(validators) else None
        return cls(_decode_digests(fields.seen), _decode_digests(fields.read), known, fields.note)

    def cursor(self) -> Cursor:
        """Write the cursor that `parse` reads. If it is too long, the oldest digests are dropped."""
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
        """Return the seen entries with others added, without validators and note."""
        # `top` and `others` are digests of dedupe keys. `top` and `archives` begin with the newest.
        messages = _merge_digests(self.messages, dict.fromkeys(top[:MAX_TOP_DIGESTS]), others)
        return SeenEntries(messages, _merge_digests(self.archives, {}, map(digest, archives)))


def _merge_digests(before: Digests, first: Digests, others: Iterable[bytes]) -> Digests:
    """Return all digests of `first` and some others; earlier digests keep their order."""
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
