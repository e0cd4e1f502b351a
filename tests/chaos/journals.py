"""Journals: records of the processes in chaos tests, written and read.

A journal is a file that is only appended to, one line by each `os.write`. So the lines of a killed or stopped
process are complete. All times are seconds of `time.monotonic()`, which the processes of a machine share.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Journal:
    """Append lines."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words):
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def close(self):
        os.close(self._file)


class Lines:
    """Read appended lines; only whole ones, since a killed process may leave half a line."""

    def __init__(self, path):
        self._path = Path(path)
        self._offset = 0
        self._rest = b""

    def new(self):
        """Return the words of each new line."""
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
    """The handler was entered and left in the process of a life; `left` is `inf` if it was not left."""

    life: int
    id: str
    entered: float
    left: float = math.inf


class Said(NamedTuple):
    """A listener reported "up", "down" or "pushed" in the process of a life."""

    life: int
    what: str
    at: float


@dataclass
class Fetch:
    """One fetch, as the consumer saw it, on its own clock.

    On a busy machine a server sees requests closer together than they were sent. These times do not change.

    Attributes:
        client: Name of the consumer and number of its life, as sent to the server.
        at: When the fetch began.
        after: The requested cursor; `None` is the beginning of the feed.
        ended: When it ended; `inf` if it did not.
        next: Cursor of the next page, if there is one.
        failed: True if it raised or was cancelled.
        heard_at: Arrival of an error answer with `Retry-After`.
        retry_after: Requested pause in seconds; 0 if there was none.
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
    """Journal of a consumer, over all its lives.

    Attributes:
        said: Reports of its listeners.
        fetches: Fetches of its feed.
        dialled: Attempts of its listeners to connect, at their start.
        handled: Calls of the handler.
        ids: Ids of the messages that the handler finished.
        begun: Lives that reached `run()`.
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
    """A client opened a push channel, or tried to. `path` identifies the channel."""

    client: str
    at: float
    path: str


class ServerJournal:
    """Journal of the reference server, over all its lives."""

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
    """Let time pass where a random moment is needed, and there is no condition to wait for."""
    time.sleep(seconds)


def until(happened, timeout, what):
    """Return when a condition is true. Journals of processes that may be killed need polling.

    Raises:
        TimeoutError: It was not true within `timeout` seconds.
    """
    ends = time.monotonic() + timeout
    while not (result := happened()):
        if time.monotonic() > ends:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.002)
    return result
