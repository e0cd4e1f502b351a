"""Figures of the demo, from the records of handler and server, never from the counters of the client."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class HandlerCall(NamedTuple):
    """One line of the handler, written when it was called.

    Attributes:
        id: The id of the message.
        published: When the server published it, in seconds on the clock of `time.monotonic()`.
        entered: When the handler was called, on the same clock.
        pid: The process of the handler.
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
    """One push, as the server recorded it. The demo publishes one message at a time, so each message has one.

    Attributes:
        id: The id of the message.
        at: When the push was due, on the same clock.
        sent: The number of connections it was sent to.
    """

    id: str
    at: float
    sent: int


class FaultPeriod(NamedTuple):
    """The time from the begin of a fault to the observed recovery."""

    began: float
    ended: float


class HandlerFile:
    """Reads the whole lines that the handler has appended: a killed process may leave half of one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[HandlerCall] = []
        self.ids: set[str] = set()
        self._rest = b""
        self._offset = 0

    def read(self) -> None:
        """Read the lines that came since the last call."""
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
    """Ids with which the handler was called more than once."""
    return {name for name, times in Counter(line.id for line in lines).items() if times > 1}


def beyond_g7(lines: Sequence[HandlerCall], *, killed: int, commit_interval: float) -> set[str]:
    """Ids that were processed again although G7 does not allow it.

    A kill may repeat the messages that the killed process handled after its last commit: the last of its lines,
    within `commit_interval`. The next process may handle these once again; no other message may be handled twice.

    Args:
        lines: All lines of the handler.
        killed: The process that was killed.
        commit_interval: The interval of the consumer, in seconds.
    """
    last = max((line.entered for line in lines if line.pid == killed), default=0.0)
    entered: dict[str, list[HandlerCall]] = defaultdict(list)
    for line in lines:
        entered[line.id].append(line)
    return {name for name in processed_twice(lines) if not _allowed(entered[name], killed, last - commit_interval)}


def _allowed(entered: list[HandlerCall], killed: int, since: float) -> bool:
    by_killed = [line for line in entered if line.pid == killed]
    return len(entered) == 2 and len(by_killed) == 1 and by_killed[0].entered >= since


class Latencies(NamedTuple):
    """Seconds from publication to handler, sorted, by the cause of the poll that found the message.

    Attributes:
        push: The push of the message was sent.
        later_push: It was dropped, but the push of a later message was sent before the handler was called.
        fallback: No push was sent meanwhile: the timer caused the poll.
        fault: There was a fault meanwhile.
    """

    push: list[float]
    later_push: list[float]
    fallback: list[float]
    fault: list[float]


def latencies(
    lines: Iterable[HandlerCall], pushes: Sequence[ObservedPush], faults: Sequence[FaultPeriod]
) -> Latencies:
    """Sort the messages by the cause of the poll, each by the first call of the handler with it."""
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
