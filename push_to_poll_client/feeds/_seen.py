"""What was seen at the top of a feed that shows what is newest first, as a cursor."""

import re
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

import msgspec

from push_to_poll_client._exceptions import CursorExpired
from push_to_poll_client._types import Cursor
from push_to_poll_client.feeds._manners.validators import Validators

__all__ = ["Digests", "Seen", "digest"]

KEPT = 256
"""Digests of what is no longer at the top. If each of these messages is gone from the feed before the next poll,
messages may have gone with them; one that comes back, since another was deleted, is not handed out again."""

MOST_KEPT = 4_000
"""Digests of a document that has more messages: those beyond are left to the dedupe store each time. With all the
others they take 54,000 characters of the 65,536 that a cursor may have."""

_LENGTH = 12
_DIGESTS = re.compile(rf"(?:[A-Za-z0-9_-]{{{_LENGTH}}})*+")

Digests = dict[str, None]
"""What `digest` makes, in an order."""


def digest(text: str) -> str:
    """Twelve characters for a key or an address: one of 10⁹ passes for one of 4,000 in 10⁻⁹ of feeds."""
    return urlsafe_b64encode(blake2b(text.encode(errors="surrogatepass"), digest_size=9).digest()).decode()


class _Written(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    seen: str
    read: str = ""
    etag: str | None = None
    modified: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
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
    def read(cls, cursor: Cursor | None, where: str) -> "Seen":
        """Read a cursor; `None`: nothing was seen.

        Raises:
            CursorExpired: It is not one that `cursor` wrote.
        """
        if cursor is None:
            return cls()
        try:
            written = msgspec.json.decode(cursor, type=_Written)
        except (ValueError, RecursionError):
            written = _Written("?")
        if not _DIGESTS.fullmatch(written.seen) or not _DIGESTS.fullmatch(written.read):
            raise CursorExpired(f"the cursor is none of {where}: another kind of feed wrote it")
        validators = Validators(written.etag, written.modified)
        known = validators if any(validators) else None
        return cls(_split(written.seen), _split(written.read), known, written.note)

    def cursor(self) -> Cursor:
        """What `read` reads."""
        etag, modified = self.validators or (None, None)
        written = _Written("".join(self.messages), "".join(self.archives), etag, modified, self.note)
        return msgspec.json.encode(written).decode()

    def has(self, key: str) -> bool:
        """Whether the message with this dedupe key was seen."""
        return digest(key) in self.messages

    def has_read(self, address: str) -> bool:
        """Whether the archive at this address was read."""
        return digest(address) in self.archives

    def then(self, top: Iterable[str], others: Iterable[str], archives: Iterable[str]) -> "Seen":
        """What was seen when these were, too; nothing is known of the newest document yet.

        Args:
            top: Dedupe keys of the newest document, the newest first.
            others: Those of older ones.
            archives: Addresses that were read, the newest first.
        """
        at_top = dict.fromkeys(islice(map(digest, top), MOST_KEPT))
        messages = _kept(self.messages, at_top, map(digest, others))
        return Seen(messages, _kept(self.archives, {}, map(digest, archives)))


def _kept(before: Digests, first: Collection[str], others: Iterable[str]) -> Digests:
    """All of `first`, and some of the rest.

    What was there before keeps its order: a document that is only shuffled makes no other cursor.
    """
    new = [one for one in dict.fromkeys((*first, *others)) if one not in before]
    rest = set(islice((one for one in (*new, *before) if one not in first), KEPT))
    return dict.fromkeys(one for one in (*new, *before) if one in first or one in rest)


def _split(digests: str) -> Digests:
    return dict.fromkeys(digests[at : at + _LENGTH] for at in range(0, len(digests), _LENGTH))
