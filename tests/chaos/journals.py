"""What everybody under fire writes down, and how it is read again.

A journal is a file that is only appended to, a line by one `os.write`: whoever is killed or stopped, what he
wrote is there to be counted. All times are seconds on the clock of `time.monotonic()`, which the processes of a
machine share.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Journal:
    """Appends lines."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words):
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def close(self):
        os.close(self._file)


class Lines:
    """Reads what is appended, whole lines only, since a killed process may leave half a one."""

    def __init__(self, path):
        self._path = Path(path)
        self._offset = 0
        self._rest = b""

    def new(self):
        """The words of each line that came since."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            read = file.read()
        self._offset += len(read)
        *lines, self._rest = (self._rest + read).split(b"\n")
        return [line.decode().split() for line in lines]


@dataclass
class Handled:
    """The handler was entered, in the process of this number, and left; `left` is `inf` when it was not."""

    life: int
    id: str
    entered: float
    left: float = math.inf


class Said(NamedTuple):
    """A listener told its channel "up", "down" or "pushed", in the process of this number."""

    life: int
    what: str
    at: float


@dataclass
class Fetch:
    """One fetch, as the consumer saw it, on its own clock.

    On a busy machine a server sees requests closer together than they were sent. These times do not change.

    Attributes:
        client: The name of the consumer and the number of its life, as the server knows it.
        at: When the fetch began.
        after: The cursor that it asked for; `None` is the beginning of the feed.
        ended: When it ended; `inf` if it did not.
        next: The cursor of the next page, if this page said that there is one.
        failed: Whether it raised or was cancelled.
        heard_at: When an error answer with `Retry-After` came.
        retry_after: Seconds for which that answer asked to be left alone; 0 if there was none.
    """

    client: str
    at: float
    after: str | None
    ended: float = math.inf
    next: str | None = None
    failed: bool = False
    heard_at: float = 0.0
    retry_after: float = 0.0


class ConsumerJournal:
    """What a consumer wrote, over all its lives.

    Attributes:
        said: What its listeners told their channels.
        fetches: Each fetch of its feed.
        dialled: Each attempt of its listeners to connect, as it began.
        handled: Each time that the handler was entered.
        ids: Of the messages that it was done with.
        begun: The lives that came as far as `run()`.
    """

    def __init__(self, path, name="consumer"):
        self._lines = Lines(path)
        self._name = name
        self.said = []
        self.fetches = []
        self.dialled = []
        self.handled = []
        self.ids = set()
        self.begun = set()

    def read(self):
        for kind, life, *rest in self._lines.new():
            getattr(self, f"_{kind}")(int(life), *rest)
        return self

    def _client(self, life):
        return f"{self._name}-{life}"

    def _channel(self, life, what, at):
        self.said.append(Said(life, what, float(at)))

    def _fetches(self, life, at, after):
        self.fetches.append(Fetch(self._client(life), float(at), None if after == "-" else after))

    def _fetched(self, life, began, ended, following, *heard):
        fetch = next(fetch for fetch in reversed(self.fetches) if fetch.at == float(began))
        fetch.ended, fetch.failed = float(ended), following == "failed"
        fetch.next = None if following in {"-", "failed"} else following
        fetch.heard_at, fetch.retry_after = map(float, heard)

    def _dials(self, life, at, path):
        self.dialled.append(Dialled(self._client(life), float(at), path))

    def _begins(self, life):
        self.begun.add(life)

    def _enters(self, life, name, at):
        self.handled.append(Handled(life, name, float(at)))

    def _leaves(self, life, name, at):
        entered = (line for line in reversed(self.handled) if (line.life, line.id) == (life, name))
        next(entered).left = float(at)
        self.ids.add(name)


@dataclass
class Asked:
    """One request to the feed, as the server saw it."""

    client: str
    at: float
    after: str | None


class Dialled(NamedTuple):
    """A client opened a push channel, or tried to. `path` tells its channels apart."""

    client: str
    at: float
    path: str


class ServerJournal:
    """What the reference server wrote, over all its lives."""

    def __init__(self, path):
        self._lines = Lines(path)
        self.asked = []
        self.dialled = []

    def read(self):
        for kind, *rest in self._lines.new():
            getattr(self, f"_{kind}")(*rest)
        return self

    def _asked(self, client, at, after):
        self.asked.append(Asked(client, float(at), None if after == "-" else after))

    def _dialled(self, client, at, path):
        self.dialled.append(Dialled(client, float(at), path))


def elapse(seconds):
    """Let time pass, where it is the moment that is tried and nothing is waited for."""
    time.sleep(seconds)


def until(happened, timeout, what):
    """Return when it is so. A journal of a process that may be killed can only be looked at, again and again.

    Raises:
        TimeoutError: It was not so within `timeout` seconds.
    """
    ends = time.monotonic() + timeout
    while not (result := happened()):
        if time.monotonic() > ends:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.002)
    return result
