"""Limits of a webhook: requests a second, and no request twice.

Replay cache: only authentic requests are stored, so a stranger cannot evict entries. A sender that gets more than
`MAX_REPLAYS` requests signed can repeat the oldest, and gains a poll within the rate. The cache is in memory: each
process, and each restart, takes a request that it has not received itself for new once, at the same cost.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import product

from push_to_poll_client.listeners._webhook.types import EVERYONE, Recipient, Verified

ROUNDING = 1e-6
"""Seconds. A shorter wait is a rounding error of numbers that should cancel out, and counts as no wait."""


class TokenBucket:
    """Passes at most burst + rate·T requests in any window of T seconds. Thread-safe.

    As in the schedule of polls, the only state is the time when the bucket is full again (GCRA).

    Args:
        rate: Requests a second, in the long run; None if there is no limit.
        burst: Requests at once.
    """

    def __init__(self, rate: float | None, burst: int) -> None:
        self._spacing = 0.0 if rate is None else 1.0 / rate
        self._slack = self._spacing * (burst - 1)
        self._full_at = -math.inf
        self._lock = threading.Lock()

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one and take none.

        Args:
            now: Seconds on a clock that never goes back.
        """
        with self._lock:
            wait = self._full_at - self._slack - now
            # Without a limit, too, threads may come in another order than that of their times.
            if wait > ROUNDING and self._spacing:
                return wait
            self._full_at = max(self._full_at, now) + self._spacing
            return 0.0


MAX_REPLAYS = 50_000
"""Digests of 16 bytes, each kept once for each name that the request is for: some 15 MiB. At one push a second for
one name, with two digests, they cover seven hours; signatures usually expire after five minutes. A request that is
sent to 25,000 names in turn, which some route reads from its path, is forgotten before it comes round."""


class ReplayCache:
    """When the authentic requests expire that were received, by their digests and recipients. Thread-safe.

    The oldest are evicted first.

    In many protocols the address of a webhook is not signed, and names may be read from it. So an equal body for
    another name is not a repetition. But an attacker with one signed request can send it with any names: it wakes
    once for each name for which a consumer listens, once for all other names together, and once for everyone.
    """

    def __init__(self, max_replays: int = MAX_REPLAYS) -> None:
        self._max_replays = max_replays
        self._expiries: OrderedDict[tuple[bytes, Recipient], float] = OrderedDict()
        self._lock = threading.Lock()

    def unseen(self, verified: Verified, recipients: Sequence[Recipient], now: float) -> Sequence[Recipient]:
        """Return the recipients for whom this request was not received before; none for a repetition.

        What was received before is kept until this copy expires.

        Args:
            verified: What a repetition has in common with the request.
            recipients: For whom the request is.
            now: Seconds since the epoch.
        """
        # Do not add the other digests of a repeated request: where the delivery id is not signed, one captured
        # body can be sent under endless ids, and would evict everything else.
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
        """Remember a request, which has had its effect for these recipients, until it expires."""
        with self._lock:
            for entry in _entries(verified, recipients):
                self._expiries[entry] = _expiry_of(verified)
                self._expiries.move_to_end(entry)
            while len(self._expiries) > self._max_replays:
                self._expiries.popitem(last=False)


def _expiry_of(verified: Verified) -> float:
    return math.inf if verified.until is None else verified.until


def _entries(verified: Verified, recipients: Iterable[Recipient]) -> Iterator[tuple[bytes, Recipient]]:
    # A text of any length, signed by the server, takes the same memory as a digest.
    return product((blake2b(text, digest_size=16).digest() for text in verified.once), recipients)
