"""What a webhook takes on: requests a second, bodies at a time, and no request twice.

Only what is authentic is kept, so a stranger cannot push anything out. Whoever can have more than `MAX_REPLAYS`
requests signed can repeat the oldest, and gains a poll within the rate.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

from push_to_poll_client.listeners._webhook.types import BUSY, RequestRejected, Verified, too_many_requests

__all__ = [
    "MAX_BODIES",
    "MAX_REPLAYS",
    "ROUNDING",
    "ReplayCache",
    "Slots",
    "TokenBucket",
]


MAX_BODIES = 64
"""Bodies in hand at a time. With the default `max_body` they take 64 MiB, however slowly they are sent."""

ROUNDING = 1e-6
"""Seconds: a shorter wait is what is left when numbers that should cancel out are rounded. Nobody waits for it."""


class TokenBucket:
    """Lets so many pass in any window of T seconds as burst + rate·T; from any thread.

    As in the schedule of polls, all that is kept is when the bucket is full again (GCRA).

    Args:
        rate: A second, in the long run; `None`: no limit.
        burst: At once.
    """

    def __init__(self, rate: float | None, burst: int) -> None:
        self._spacing = 0.0 if rate is None else 1.0 / rate
        self._slack = self._spacing * (burst - 1)
        self._full_at = -math.inf
        self._lock = threading.Lock()

    def take(self, now: float) -> float:
        """Take a token.

        Args:
            now: Seconds on a clock that never goes back.

        Returns:
            0 if there was one; else the seconds until there is one, and none was taken.
        """
        with self._lock:
            wait = self._full_at - self._slack - now
            if wait > ROUNDING:
                return wait
            self._full_at = max(self._full_at, now) + self._spacing
            return 0.0

    def take_or_reject(self, now: float) -> None:
        """Take a token, or refuse.

        Raises:
            Refusal: There is none.
        """
        if wait := self.take(now):
            raise RequestRejected(too_many_requests(wait), "limited", hides_pushes=True)


class Slots:
    """Those whose body is in hand; from any thread.

    Args:
        most: How many there may be.
    """

    def __init__(self, most: int = MAX_BODIES) -> None:
        self._free = most
        self._lock = threading.Lock()

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Have one for the length of the block.

        Raises:
            Refusal: There is none.
        """
        with self._lock:
            if not self._free:
                raise RequestRejected(BUSY, "busy", hides_pushes=True)
            self._free -= 1
        try:
            yield
        finally:
            with self._lock:
                self._free += 1


MAX_REPLAYS = 10_000
"""Texts that are kept, at 16 bytes each: some 2 MiB. At one push a second, with two texts each, they reach back
for an hour and a half; a tolerance is five minutes as a rule."""


class ReplayCache:
    """Remembers; from any thread.

    Args:
        most: Texts that are kept; the oldest goes first.
    """

    def __init__(self, most: int = MAX_REPLAYS) -> None:
        self._most = most
        self._expiry: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._expiry)

    def seen(self, verified: Verified, names: Sequence[str] | None, now: float) -> bool:
        """Whether it came before. Then it is kept for as long as this copy of it would pass.

        Of a repetition nothing is kept that was not there: whoever has one body that was signed may send it with
        as many ids as he likes, where ids are not signed, and must not push out the others.

        Args:
            verified: What it has.
            names: For whom it is: an equal body for another is no repetition.
            now: Seconds since the epoch.
        """
        with self._lock:
            known = [one for one in _digests(verified, names) if self._expiry.get(one, -math.inf) > now]
            for digest in known:
                self._expiry[digest] = max(self._expiry[digest], _expiry_of(verified))
            return bool(known)

    def add(self, verified: Verified, names: Sequence[str] | None) -> None:
        """It came, and has done what it can do.

        Args:
            verified: What it has.
            names: For whom it is.
        """
        with self._lock:
            for digest in _digests(verified, names):
                self._expiry[digest] = _expiry_of(verified)
                self._expiry.move_to_end(digest)
            while len(self._expiry) > self._most:
                self._expiry.popitem(last=False)


def _expiry_of(verified: Verified) -> float:
    return math.inf if verified.until is None else verified.until


def _digests(verified: Verified, names: Sequence[str] | None) -> Iterator[bytes]:
    """However long a text is that a server signed, it takes no more memory than another."""
    whose = blake2b(repr(names).encode(errors="surrogatepass"), digest_size=32).digest()
    return (blake2b(text, digest_size=16, key=whose).digest() for text in verified.once)
