"""The cursor of a feed that shows the newest first: digests of the entries seen at its top."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain, islice

import msgspec

from push_to_poll_client._exceptions import CursorExpired
from push_to_poll_client._http.caching import Validators
from push_to_poll_client._json import DECODE_ERRORS, decode
from push_to_poll_client._types import MAX_CURSOR, Cursor

__all__ = [
    "Digests",
    "SeenEntries",
    "digest",
]


MAX_OLDER_DIGESTS = 256
"""Digests of what is no longer at the top. If each of these messages is gone from the feed before the next poll,
messages may have gone with them; one that comes back, since another was deleted, is not handed out again."""

MAX_TOP_DIGESTS = 4_000
"""Digests of a document that has more messages: those beyond are left to the dedupe store each time. With all the
others they take 54,000 characters of the 65,536 that a cursor may have."""

_DIGEST_BYTES = 9
_DIGEST_CHARS = 12
_DIGESTS = re.compile(rf"(?:[A-Za-z0-9_-]{{{_DIGEST_CHARS}}})*+")

Digests = dict[bytes, None]
"""What `digest` makes, in an order."""


def digest(text: str) -> bytes:
    """Nine bytes for a key or an address: one of 10⁹ passes for one of 4,000 in 10⁻⁹ of feeds."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


class _CursorFields(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    seen: str
    read: str = ""
    etag: str | None = None
    modified: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class SeenEntries:
    """The cursor's content.

    Attributes:
        messages: Digests of the messages that were seen, the newest first.
        archives: Digests of the addresses of documents that were read and do not change, the newest first.
        validators: Of the newest document; `None`: it had none.
        note: What else the feed wants to remember of it.
    """

    messages: Digests = field(default_factory=dict)
    archives: Digests = field(default_factory=dict)
    validators: Validators | None = None
    note: str = ""

    @classmethod
    def parse(cls, cursor: Cursor | None, where: str) -> "SeenEntries":
        """Read a cursor; `None`: nothing was seen.

        Raises:
            CursorExpired: It is not one that `cursor` wrote.
        """
        if cursor is None:
            return cls()
        try:
            written = decode(cursor, type=_CursorFields)
        except DECODE_ERRORS:
            written = _CursorFields("?")
        if not _DIGESTS.fullmatch(written.seen) or not _DIGESTS.fullmatch(written.read):
            raise CursorExpired(f"the cursor is none of {where}: another kind of feed wrote it")
        validators = Validators(written.etag, written.modified)
        known = validators if any(validators) else None
        return cls(_decode_digests(written.seen), _decode_digests(written.read), known, written.note)

    def cursor(self) -> Cursor:
        """What `parse` reads. If it were longer than a cursor may be, the oldest digests are left out."""
        etag, modified = self.validators or (None, None)
        written = _CursorFields(
            _encode_digests(self.messages), _encode_digests(self.archives), etag, modified, self.note
        )
        text = msgspec.json.encode(written).decode()
        beyond = len(text) - MAX_CURSOR
        if beyond <= 0 or not self.messages:
            return text
        fit = max(len(self.messages) + -beyond // _DIGEST_CHARS, 0)
        return replace(self, messages=dict.fromkeys(islice(self.messages, fit))).cursor()

    def has_archive(self, address: str) -> bool:
        """Whether the archive at this address was read."""
        return digest(address) in self.archives

    def updated(self, top: Sequence[bytes], others: Iterable[bytes], archives: Iterable[str]) -> "SeenEntries":
        """What was seen when these were, too; nothing is known of the newest document yet.

        Args:
            top: Digests of the dedupe keys of the newest document, the newest first.
            others: Those of older ones.
            archives: Addresses that were read, the newest first.
        """
        messages = _merge_digests(self.messages, dict.fromkeys(top[:MAX_TOP_DIGESTS]), others)
        return SeenEntries(messages, _merge_digests(self.archives, {}, map(digest, archives)))


def _merge_digests(before: Digests, first: Digests, others: Iterable[bytes]) -> Digests:
    """All of `first`, and some of the rest.

    What was there before keeps its order: a document that is only shuffled makes no other cursor.
    """
    new = {one: None for one in chain(first, others) if one not in before}
    if not new and len(before) <= len(first) + MAX_OLDER_DIGESTS:
        return before
    together = new | before
    rest = set(islice((one for one in together if one not in first), MAX_OLDER_DIGESTS))
    return {one: None for one in together if one in first or one in rest}


def _encode_digests(digests: Digests) -> str:
    return urlsafe_b64encode(b"".join(digests)).decode()


def _decode_digests(text: str) -> Digests:
    digests = urlsafe_b64decode(text)
    return dict.fromkeys(digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))
