"""State of the reference server: events, pushes, and held requests."""

import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import anyio
import msgspec

from push_to_poll_client.testing._reference.asgi import Exchange, run_until
from push_to_poll_client.testing._reference.control import Faults, PushRecord, Stats
from push_to_poll_client.testing._virtual_time import Bell

DEFAULT_DATA = {"note": "x" * 80}
"""Default data of an event, which then has about 300 bytes."""

_DIGITS = 12


@dataclass(eq=False)
class ReferenceState:
    """State that the endpoints share."""

    page_size: int
    keep_alive: float | None
    faults: Faults = field(default_factory=Faults)
    stats: Stats = field(default_factory=Stats)
    events: list[bytes] = field(default_factory=list)  # encoded; ids are padded so that they sort as text
    previous_body: bytes = b"[]"  # of the last page
    pushes: list[PushRecord] = field(default_factory=list)
    closings: list[int] = field(default_factory=list)  # a close code for each call of close_all()
    bell: Bell = field(default_factory=Bell)  # rings for a new push or closing, and when the server stops
    _is_shut: bool = False

    def append(self, datas: Iterable[Any]) -> list[str]:
        """Append one event for each of `datas` without a push, and return their ids."""
        # `sent` is on the clock of `time.monotonic()`, which all processes of one machine share.
        ids = []
        for data in datas:
            place = f"{len(self.events) + 1:0{_DIGITS}d}"
            event = {
                "specversion": "1.0",
                "id": place,
                # A number makes it a JSON object that is not a CloudEvent.
                "source": 7 if self.faults.takes("undecodable_next") else "https://reference.example/orders",
                "type": "example.order",
                "time": datetime.now(UTC).isoformat(),
                "subject": f"orders/{place}",
                "region": "north",  # an extension attribute, which clients must keep
                "data": {"sent": time.monotonic(), **data} if isinstance(data, dict) else data,
            }
            self.events.append(msgspec.json.encode(event))
            ids.append(place)
        self.stats.count(published=len(ids))
        return ids

    @property
    def newest(self) -> str:
        """Id of the newest event, or "" if there is none."""
        return f"{len(self.events):0{_DIGITS}d}" if self.events else ""

    def page(self, after: str, size: int) -> list[bytes]:
        """Return at most `size` events after the id, or from the first one if the id is unknown."""
        known = len(after) == _DIGITS and after.isdecimal() and int(after) <= len(self.events)
        start = int(after) if known else 0
        return self.events[start : start + size]

    def push(self, cursor: str) -> None:
        times = 1 + self.faults.takes("push_twice_next")
        record = PushRecord(cursor, time.monotonic(), dropped=self.faults.drops_push(), times=times)
        self.stats.count(pushes_dropped=record.dropped)
        self.pushes.append(record)
        self.bell.ring()

    def close_all(self, code: int) -> None:
        self.closings.append(code)
        self.bell.ring()

    def open(self) -> None:
        """Prepare for a new server, whose event loop differs from the last one's."""
        self.bell = Bell()
        self._is_shut = False

    def shut(self) -> None:
        """End held requests. A server that stops would wait for them."""
        self._is_shut = True
        self.bell.ring()

    async def _until_shut(self) -> None:
        while not self._is_shut:
            await self.bell.wait()

    async def hold(
        self, exchange: Exchange, work: Callable[[], Awaitable[None]], *counters: str, until_shut: bool = True
    ) -> None:
        """Run `work` until it ends, the client disconnects, or the server stops; count it while it runs."""
        ends = [exchange.wait_for_disconnect, *([self._until_shut] if until_shut else [])]
        self.stats.count(**dict.fromkeys(counters, 1))
        try:
            await run_until(work, *ends)
        finally:
            self.stats.count(**dict.fromkeys(counters, -1))


class PushSubscription:
    """Pushes that one connection must still send: those published after its creation."""

    # `closes`: the subscription ends when all connections are closed.

    def __init__(self, state: ReferenceState, *, closes: bool = True) -> None:
        self._state = state
        self._pushed = len(state.pushes)
        self._closed = len(state.closings) if closes else sys.maxsize
        self._due: list[PushRecord] = []

    @property
    def code(self) -> int | None:
        """Code to close the connection with. None means stay open."""
        return next(iter(self._state.closings[self._closed :]), None)

    async def next(self) -> PushRecord | None:
        """Wait for the next push to send, and count it. None means close the connection."""
        state = self._state
        while self.code is None:
            if self._due:
                return self._due.pop()
            if self._pushed == len(state.pushes):
                await state.bell.wait()
                continue
            record = state.pushes[self._pushed]
            if state.faults.push_latency:
                await anyio.sleep(record.at + state.faults.push_latency - time.monotonic())
            self._pushed += 1
            if not (record.dropped or state.faults.half_open):
                record.sent += 1
                state.stats.count(pushes_sent=record.times)
                self._due = [record] * record.times
        return None
