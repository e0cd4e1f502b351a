"""The pushes of the reference server: what is owed to each connection, whatever kind of channel it is."""

import sys
import time

import anyio

from push_to_poll_client.testing._asgi import Header, Scope, header, retry_after
from push_to_poll_client.testing._bell import Bell
from push_to_poll_client.testing._faults import Faults
from push_to_poll_client.testing._stats import PushRecord, Stats

__all__ = ["PushLog", "Subscription"]


class PushLog:
    """All pushes so far, and what goes wrong with them on every channel.

    Args:
        faults: The switches.
        stats: The counters.

    Attributes:
        pushes: The push of each publication, oldest first.
        closings: The code of each time that all connections were to be closed.
        bell: Rings when there is something new in either.
    """

    def __init__(self, faults: Faults, stats: Stats) -> None:
        self.pushes: list[PushRecord] = []
        self.closings: list[int] = []
        self.bell = Bell()
        self._faults = faults
        self._stats = stats

    def open(self) -> None:
        """A server begins, in another event loop than the one before: what that one left waiting is nobody's."""
        self.bell = Bell()

    def push(self, cursor: str) -> None:
        """Tell every connection that `cursor` is the newest."""
        record = PushRecord(cursor, time.monotonic(), dropped=self._faults.drops_push())
        record.times += self._faults.takes("push_twice_next")
        self._stats.count(pushes_dropped=record.dropped)
        self.pushes.append(record)
        self.bell.ring()

    def close_all(self, code: int) -> None:
        """Close all connections with this code."""
        self.closings.append(code)
        self.bell.ring()

    def refusal(self, scope: Scope) -> tuple[int, list[Header]] | None:
        """The status and headers with which a connection is refused; `None`: it is not."""
        wanted = self._faults.authorization
        if wanted is not None and header(scope, b"authorization") != wanted:
            return 401, []
        status = self._faults.refuse_status
        return None if status is None else (status, retry_after(self._faults.retry_after))

    def sends(self, record: PushRecord) -> bool:
        """Whether this push goes out on one more connection; counts it."""
        if record.dropped or self._faults.half_open:
            return False
        record.sent += 1
        self._stats.count(pushes_sent=record.times)
        return True

    async def until_due(self, record: PushRecord) -> None:
        """Wait for as long as pushes are late."""
        if self._faults.push_latency:
            await anyio.sleep(record.at + self._faults.push_latency - time.monotonic())


class Subscription:
    """One connection's place in the log: it hears what comes after it was made.

    Args:
        log: The log.
        closes: Whether it ends when all connections are closed.
    """

    def __init__(self, log: PushLog, *, closes: bool = True) -> None:
        self._log = log
        self._pushed = len(log.pushes)
        self._closed = len(log.closings) if closes else sys.maxsize
        self._again: list[PushRecord] = []

    @property
    def code(self) -> int | None:
        """The code with which to close; `None`: stay open."""
        return next(iter(self._log.closings[self._closed :]), None)

    async def next(self) -> PushRecord | None:
        """Wait for the next push to send; `None`: close instead."""
        while self.code is None:
            if self._again:
                return self._again.pop()
            if self._pushed == len(self._log.pushes):
                await self._log.bell.wait()
                continue
            record = self._log.pushes[self._pushed]
            await self._log.until_due(record)
            self._pushed += 1
            if self._log.sends(record):
                self._again = [record] * (record.times - 1)
                return record
        return None
