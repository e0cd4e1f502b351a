"""What the demo counts, from what the handler and the server wrote down; never from the client's own counters."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "FaultPeriod",
    "HandlerCall",
    "HandlerFile",
    "Latencies",
    "ObservedPush",
    "beyond_g7",
    "latencies",
    "percentile",
    "processed_twice",
]


class HandlerCall(NamedTuple):
    """One line of the handler: it was entered with this message.

    Attributes:
        id: The message's.
        published: When the server published it, in seconds on the clock of `time.monotonic()`.
        entered: When the handler was entered, on the same clock.
        pid: In which process.
    """

    id: str
    published: float
    entered: float
    pid: int

    @property
    def latency(self) -> float:
        """Seconds from publication to handler."""
        return self.entered - self.published


class ObservedPush(NamedTuple):
    """One push, as the server recorded it. The demo publishes one message at a time, so each has its own.

    Attributes:
        id: Of the message.
        at: When, on the same clock.
        sent: To how many connections it was sent.
    """

    id: str
    at: float
    sent: int


class FaultPeriod(NamedTuple):
    """A time in which something was broken, from the order to the observed recovery."""

    began: float
    ended: float


class HandlerFile:
    """Reads what the handler appends, whole lines only: a killed process may leave half a one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[HandlerCall] = []
        self.ids: set[str] = set()
        self._rest = b""
        self._offset = 0

    def read(self) -> None:
        """Read what came since."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            name, published, entered, pid = line.decode().split()
            self.lines.append(HandlerCall(name, float(published), float(entered), int(pid)))
            self.ids.add(name)


def processed_twice(lines: Iterable[HandlerCall]) -> set[str]:
    """The ids with which the handler was entered more than once."""
    return {name for name, times in Counter(line.id for line in lines).items() if times > 1}


def beyond_g7(lines: Sequence[HandlerCall], *, killed: int, flush_interval: float) -> set[str]:
    """The ids that were processed again although G7 does not allow it.

    A kill may cost what the killed process did since its last commit: the end of its lines, entered within
    `flush_interval`. The next process may do these again, once; nothing else may happen twice.

    Args:
        lines: All that the handler wrote.
        killed: The process that was killed.
        flush_interval: That of the consumer, in seconds.
    """
    last = max((line.entered for line in lines if line.pid == killed), default=0.0)
    entered: dict[str, list[HandlerCall]] = defaultdict(list)
    for line in lines:
        entered[line.id].append(line)
    return {name for name in processed_twice(lines) if not _allowed(entered[name], killed, last - flush_interval)}


def _allowed(entered: list[HandlerCall], killed: int, since: float) -> bool:
    by_killed = [line for line in entered if line.pid == killed]
    return len(entered) == 2 and len(by_killed) == 1 and by_killed[0].entered >= since


class Latencies(NamedTuple):
    """Seconds from publication to handler, sorted, by what brought the message.

    Attributes:
        push: Its own push was sent.
        later_push: Its own push was not, and that of a later message was, before the handler was entered.
        fallback: No push was sent meanwhile: the timer found it.
        fault: Something was broken meanwhile.
    """

    push: list[float]
    later_push: list[float]
    fallback: list[float]
    fault: list[float]


def latencies(
    lines: Iterable[HandlerCall], pushes: Sequence[ObservedPush], faults: Sequence[FaultPeriod]
) -> Latencies:
    """Sort the messages by what brought them, each by the first time that the handler was entered with it."""
    found = Latencies([], [], [], [])
    sent = {push.id: push.at for push in pushes if push.sent}
    for line in {line.id: line for line in sorted(lines, key=lambda line: -line.entered)}.values():
        if any(fault.began <= line.entered and line.published <= fault.ended for fault in faults):
            found.fault.append(line.latency)
        elif line.id in sent:
            found.push.append(line.latency)
        elif any(line.published <= at <= line.entered for at in sent.values()):
            found.later_push.append(line.latency)
        else:
            found.fallback.append(line.latency)
    return Latencies(*(sorted(values) for values in found))


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of the sorted values that is not below `percent` of them (nearest rank)."""
    return values[max(0, -(-len(values) * percent // 100) - 1)]
