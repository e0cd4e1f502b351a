"""Rate limit and replay cache of a webhook.

Only authentic requests are stored in the cache, so a stranger cannot evict entries. A sender with more than
`MAX_REPLAYS` signed requests can repeat the oldest; that costs one poll, within the rate limit. The cache is in
memory: another process, or this one after a restart, treats a repeated request once as new, at the same cost.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import product

from push_to_poll_client.listeners._webhook.types import EVERYONE, Recipient, Verified

ROUNDING = 1e-6
"""Seconds. A shorter wait is a rounding error and counts as no wait."""


class TokenBucket:
    """Passes at most burst + rate·T requests in any window of T seconds (GCRA). Thread-safe."""

    def __init__(self, rate: float | None, burst: int) -> None:
        self._spacing = 0.0 if rate is None else 1.0 / rate
        self._slack = self._spacing * (burst - 1)
        self._full_at = -math.inf
        self._lock = threading.Lock()

    def take(self, now: float) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        with self._lock:
            wait = self._full_at - self._slack - now
            # Threads may arrive in another order than their times, even without a limit.
            if wait > ROUNDING and self._spacing:
                return wait
            self._full_at = max(self._full_at, now) + self._spacing
            return 0.0


# With one push a second for one name, and two digests each, this covers seven hours; signatures usually expire
# after five minutes. If `route` reads the name from the path, an attacker who sends one request to 25,000 names in
# turn outlasts the cache.
MAX_REPLAYS = 50_000
"""Digests of 16 bytes, one for each name that the request is for: about 15 MiB."""


class ReplayCache:
    """Expiry times of the authentic requests received, oldest evicted first. Thread-safe."""

    # Many protocols do not sign the address of a webhook, and names may be read from it. So the same body for
    # another name is not a repetition. An attacker with one signed request wakes once for each name with a
    # listening consumer, once for all other names together, and once for all consumers.

    def __init__(self, max_replays: int = MAX_REPLAYS) -> None:
        self._max_replays = max_replays
        self._expiries: OrderedDict[tuple[bytes, Recipient], float] = OrderedDict()
        self._lock = threading.Lock()

    def unseen(self, verified: Verified, recipients: Sequence[Recipient], now: float) -> Sequence[Recipient]:
        """Return the recipients for whom this request is new. Known entries live until this copy expires."""
        # Do not add the other digests of a repeated request: where the delivery id is not signed, one captured
        # body can be sent under endless ids and would evict everything else.
        with self._lock:
            known = [
                entry
                for entry in _entries(verified, {EVERYONE, *recipients})
                if self._expiries.get(entry, -math.inf) > now
            ]
            for entry in known:
                self._expiries[entry] = max(self._expiries[entry], _expiry_of(verified))
        seen = {recipient for _, recipient in known}
        return () if EVERYONE in seen else [one for one in recipients if one not in seen]

    def add(self, verified: Verified, recipients: Iterable[Recipient]) -> None:
        """Remember a request that was delivered to these recipients, until it expires."""
        with self._lock:
            for entry in _entries(verified, recipients):
                self._expiries[entry] = _expiry_of(verified)
                self._expiries.move_to_end(entry)
            while len(self._expiries) > self._max_replays:
                self._expiries.popitem(last=False)


def _expiry_of(verified: Verified) -> float:
    return math.inf if verified.until is None else verified.until


def _entries(verified: Verified, recipients: Iterable[Recipient]) -> Iterator[tuple[bytes, Recipient]]:
    # A digest has the same size for a signed text of any length.
    return product((blake2b(text, digest_size=16).digest() for text in verified.once), recipients)
