"""What was seen at the top of a feed that shows what is newest first, as a cursor."""

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

import msgspec

from push_to_poll_client._exceptions import CursorExpired
from push_to_poll_client._types import Cursor
from push_to_poll_client.feeds._manners.validators import Validators

__all__ = ["Seen", "digest"]

KEPT = 256
"""Digests that are kept at least, of what was newest: if each of these messages is gone from the feed before the
next poll, messages may have gone with them."""

MOST_KEPT = 4_000
"""Digests, of a document that has more messages: those beyond are left to the dedupe store each time."""

_LENGTH = 12
_DIGESTS = re.compile(rf"(?:[A-Za-z0-9_-]{{{_LENGTH}}})*+")


def digest(key: str) -> str:
    """Twelve characters for a dedupe key. One of 10⁹ messages is taken for one of 4,000 once in 10⁹ feeds."""
    return urlsafe_b64encode(blake2b(key.encode(errors="surrogatepass"), digest_size=9).digest()).decode()


class _Written(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    seen: str
    etag: str | None = None
    modified: str | None = None
    more: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """The cursor's content.

    Attributes:
        digests: Of the messages that were seen, the newest first.
        validators: Of the document that they were seen in; `None`: it had none.
        more: What else the feed wants to remember.
    """

    digests: dict[str, None] = field(default_factory=dict)
    validators: Validators | None = None
    more: str = ""

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
        if not _DIGESTS.fullmatch(written.seen):
            raise CursorExpired(f"the cursor is none of {where}: another kind of feed wrote it")
        ends = range(0, len(written.seen), _LENGTH)
        digests = dict.fromkeys(written.seen[at : at + _LENGTH] for at in ends)
        validators = Validators(written.etag, written.modified)
        return cls(digests, validators if any(validators) else None, written.more)

    def cursor(self) -> Cursor:
        """What `read` reads."""
        etag, modified = self.validators or (None, None)
        return msgspec.json.encode(_Written("".join(self.digests), etag, modified, self.more)).decode()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and digest(key) in self.digests

    def then(self, keys: Iterable[str], *, newest: int, validators: Validators | None, more: str = "") -> "Seen":
        """What was seen when these were, too.

        Args:
            keys: Dedupe keys, the newest first.
            newest: How many of them the newest document has.
            validators: Of the newest document.
            more: As the attribute.
        """
        digests = dict.fromkeys((*map(digest, keys), *self.digests))
        most = min(max(newest, KEPT), MOST_KEPT)
        return Seen(dict.fromkeys(islice(digests, most)), validators, more)
