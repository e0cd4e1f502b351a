"""Limits of a webhook: requests a second, bodies at a time, and no request twice.

Replay cache: only authentic requests are stored, so a stranger cannot evict entries. A sender that gets more than
`MAX_REPLAYS` requests signed can repeat the oldest, and gains a poll within the rate. The cache is in memory: each
process, and each restart, takes a request that it has not received itself for new once, at the same cost.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

from push_to_poll_client.listeners._webhook.types import (
    BUSY,
    EVERYONE,
    Recipient,
    RequestRejected,
    Verified,
    too_many_requests,
)

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
            if wait > ROUNDING:
                return wait
            self._full_at = max(self._full_at, now) + self._spacing
            return 0.0

    def take_or_reject(self, now: float) -> None:
        """Take a token, or reject the request if there is none."""
        if wait := self.take(now):
            raise RequestRejected(too_many_requests(wait), "limited", hides_pushes=True)


MAX_BODIES = 64
"""Bodies held at a time. With the default `max_body` they take 64 MiB, however slowly they are sent."""


class Slots:
    """Slots for the requests whose body is held. Thread-safe."""

    def __init__(self, slots: int = MAX_BODIES) -> None:
        self._free = slots
        self._lock = threading.Lock()

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Hold a slot for the length of the block, or reject the request if none is free."""
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
"""Digests of 16 bytes each: some 3 MiB. At one push a second, with two digests each, they cover an hour and a
half; signatures usually expire after five minutes."""

MAX_RECIPIENTS = 50_000
"""Names that are kept with all digests: some 5 MiB. Only names for which a consumer listens are kept."""


class _Received:
    """The recipients and the expiry of the requests with one digest."""

    __slots__ = ("expires_at", "recipients")

    def __init__(self) -> None:
        self.expires_at = -math.inf
        self.recipients = set[Recipient]()


class ReplayCache:
    """Digests of the authentic requests that were received, and for whom. Thread-safe.

    The oldest are evicted first.

    In many protocols the address of a webhook is not signed, and names may be read from it. So an equal body for
    another name is not a repetition. But an attacker with one signed request can send it with any names: it wakes
    once for each name for which a consumer listens, once for all other names together, and once for everyone.
    """

    def __init__(self, max_replays: int = MAX_REPLAYS, max_recipients: int = MAX_RECIPIENTS) -> None:
        self._max_replays = max_replays
        self._max_recipients = max_recipients
        self._received: OrderedDict[bytes, _Received] = OrderedDict()
        self._recipients = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._received)

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
        seen = set[Recipient]()
        with self._lock:
            for digest in _digests(verified):
                received = self._received.get(digest)
                if received is not None and received.expires_at > now:
                    received.expires_at = max(received.expires_at, _expiry_of(verified))
                    seen |= received.recipients
        if EVERYONE in seen:
            return ()
        return [one for one in recipients if one not in seen]

    def add(self, verified: Verified, recipients: Iterable[Recipient], now: float) -> None:
        """Remember a request, which has had its effect for these recipients, until it expires."""
        with self._lock:
            for digest in _digests(verified):
                received = self._received.get(digest)
                if received is None or received.expires_at <= now:
                    self._forget(digest)
                    received = self._received[digest] = _Received()
                received.expires_at = _expiry_of(verified)
                self._recipients -= len(received.recipients)
                received.recipients.update(recipients)
                self._recipients += len(received.recipients)
                self._received.move_to_end(digest)
            while len(self._received) > self._max_replays or self._recipients > self._max_recipients:
                self._forget(next(iter(self._received)))

    def _forget(self, digest: bytes) -> None:
        received = self._received.pop(digest, None)
        self._recipients -= len(received.recipients) if received is not None else 0


def _expiry_of(verified: Verified) -> float:
    return math.inf if verified.until is None else verified.until


def _digests(verified: Verified) -> Iterator[bytes]:
    # A text of any length, signed by the server, takes the same memory as a digest.
    return (blake2b(text, digest_size=16).digest() for text in verified.once)
