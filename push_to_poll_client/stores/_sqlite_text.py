"""How does a string stand in the file, and what is there instead when somebody else wrote it?

Any string may come from a feed, also one that UTF-8 and SQLite's JSON have no word for.
"""

import hashlib
import re
from collections.abc import Sequence

import msgspec

__all__ = ["as_json", "restored", "stored", "stored_keys"]

_LONGEST_KEY = 200
"""Characters. A longer key is kept as a digest: what spills out of its page of the index is slow to find."""

_DIGEST = "\x7f"
"""What the digest of a key begins with. A key that has it anywhere is kept as a digest too, so that no digest is
another key's spelling."""

_SPECIAL = re.compile(f"[\0{_DIGEST}\ud800-\udfff]")
"""What else makes a key be kept as a digest: SQLite's JSON ends a text at a NUL, and UTF-8 has no word for half a
surrogate pair, which JSON can spell."""


def stored(text: str) -> str | bytes:
    """Any string as SQLite can keep it: TEXT, or a BLOB, which equals no TEXT, when UTF-8 has no word for it."""
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        return text.encode("utf-8", "surrogatepass")
    return text


def restored(value: object) -> object:
    """The string that was stored. What is none (a number, NULL) is handed back, for its reader to refuse.

    Raises:
        UnicodeDecodeError: A BLOB that no string was stored as.
    """
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def as_json(values: Sequence[object]) -> str:
    """An array, as one value for SQLite."""
    return msgspec.json.encode(values).decode()


def stored_keys(keys: Sequence[str]) -> Sequence[str]:
    """The keys as they stand in the file; looked at together first, for hardly a page has one that is special."""
    text = "".join(keys)
    plain = text.isascii() and "\0" not in text and _DIGEST not in text
    if plain and max(map(len, keys), default=0) <= _LONGEST_KEY:
        return keys
    return [_stored_key(key) for key in keys]


def _stored_key(key: str) -> str:
    if len(key) <= _LONGEST_KEY and not _SPECIAL.search(key):
        return key
    return _DIGEST + hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
