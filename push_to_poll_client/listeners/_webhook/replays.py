"""WHETHER it came before: what authentic requests have that no other one has, kept for as long as that matters.

Only what is authentic is kept, so a stranger cannot push anything out. Whoever can have more than `MAX_REPLAYS`
requests signed can repeat the oldest, and gains a poll within the rate.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from push_to_poll_client.listeners._webhook.request import Verified

__all__ = ["MAX_REPLAYS", "Replays"]

MAX_REPLAYS = 10_000
"""Texts that are kept, at 16 bytes each: some 2 MiB. At one push a second, with two texts each, they reach back
for an hour and a half; a tolerance is five minutes as a rule."""


class Replays:
    """Remembers; from any thread.

    Args:
        most: Texts that are kept; the oldest goes first.
    """

    def __init__(self, most: int = MAX_REPLAYS) -> None:
        self._most = most
        self._until: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._until)

    def knows(self, verified: Verified, names: Sequence[str] | None, now: float) -> bool:
        """Whether it came before. Then it is kept for as long as this copy of it would pass.

        Of a repetition nothing is kept that was not there: whoever has one body that was signed may send it with
        as many ids as he likes, where ids are not signed, and must not push out the others.

        Args:
            verified: What it has.
            names: For whom it is: an equal body for another is no repetition.
            now: Seconds since the epoch.
        """
        with self._lock:
            known = [one for one in _digests(verified, names) if self._until.get(one, -math.inf) > now]
            for digest in known:
                self._until[digest] = max(self._until[digest], _end(verified))
            return bool(known)

    def remember(self, verified: Verified, names: Sequence[str] | None) -> None:
        """It came, and has done what it can do.

        Args:
            verified: What it has.
            names: For whom it is.
        """
        with self._lock:
            for digest in _digests(verified, names):
                self._until[digest] = _end(verified)
                self._until.move_to_end(digest)
            while len(self._until) > self._most:
                self._until.popitem(last=False)


def _end(verified: Verified) -> float:
    return math.inf if verified.until is None else verified.until


def _digests(verified: Verified, names: Sequence[str] | None) -> Iterator[bytes]:
    """However long a text is that a server signed, it takes no more memory than another."""
    whose = blake2b(repr(names).encode(errors="surrogatepass"), digest_size=32).digest()
    return (blake2b(text, digest_size=16, key=whose).digest() for text in verified.once)
