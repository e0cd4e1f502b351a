"""Several messages in flight: a consumer that records their times, and a store that records its commits."""

from dataclasses import dataclass

import anyio

from push_to_poll_client import MemoryStore
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log


def lane(message):
    """Return the lane of a message. Names are the lane and a number: a1, a2, b1."""
    return message.id.rstrip("0123456789")


def feed_of(names, **settings):
    """Return a feed of messages; blanks separate the names."""
    feed = FakeFeed(**settings)
    feed.publish(*names.split())
    return feed


@dataclass
class Span:
    """One call of the handler; `end` is None while it runs, or if it was cancelled."""

    name: str
    start: float
    end: float | None = None
    error: BaseException | None = None


class Many(Log):
    """Process four messages at a time, or `concurrency`.

    `times` gives the seconds for each message (else `takes`). `errors` gives the error for a message: an
    exception, or a list with one for each attempt.
    """

    def __init__(self, feed, *, times=None, errors=None, concurrency=4, ordering_key=lane, **settings):
        super().__init__(feed, concurrency=concurrency, ordering_key=ordering_key, **settings)
        self.times = times or {}
        self.errors = errors or {}
        self.spans = []
        self.most = 0

    async def process(self, message):
        span = Span(message.id, anyio.current_time())
        self.spans.append(span)
        self.most = max(self.most, len(self.under_way))
        try:
            await anyio.sleep(self.times.get(message.id, self.takes))
            self.fail(message.id)
            self.processed.append(message.id)
            self.got.set()
        except BaseException as error:
            span.error = error
            if not isinstance(error, anyio.get_cancelled_exc_class()):
                span.end = anyio.current_time()
            raise
        span.end = anyio.current_time()

    def fail(self, name):
        error = self.errors.get(name)
        if isinstance(error, list):
            error = error.pop(0) if error else None
        if error is not None:
            raise error

    @property
    def under_way(self):
        return [span.name for span in self.spans if span.end is None and span.error is None]

    def calls_of(self, name):
        return [span for span in self.spans if span.name == name]


class Ledger(MemoryStore):
    """Record each commit: its cursor, and the keys and states of its records."""

    def __init__(self, before=()):
        super().__init__()
        self.commits = []
        self.takes = 0.0
        self.broken = 0
        self.whole = list(before)
        self.saw = lambda what: None
        self._before = list(before)

    async def claim(self, name, *, feed):
        session = await super().claim(name, feed=feed)
        commit = session.commit
        while self._before:
            await commit(**self._before.pop(0))

        async def watched(**what):
            await anyio.sleep(self.takes)
            if self.broken:
                self.broken -= 1
                raise OSError("the disk is full")
            await commit(**what)
            self.whole.append(what)
            self.commits.append((what["cursor"], [(record.key, str(record.state)) for record in what["records"]]))
            self.saw(what)

        session.commit = watched
        return session

    @property
    def recorded(self):
        return [key for _, records in self.commits for key, _ in records]

    @property
    def states(self):
        return dict(record for _, records in self.commits for record in records)

    def as_of_now(self):
        """Return the state that a new process finds after a crash now: the committed part only."""
        return Ledger(self.whole)

    @property
    def all_states(self):
        """Return all states, those of earlier lives included."""
        return {record.key: str(record.state) for what in self.whole for record in what["records"]}


def check_prefix(store, names):
    """Assert for every commit that all messages before its cursor have a record (G5)."""
    known = set()
    for cursor, records in store.commits:
        known.update(key for key, _ in records)
        if cursor is not None:
            before = int(cursor.removeprefix("after-").removesuffix(".0"))
            assert known >= set(names[:before]), f"{cursor} was saved before {set(names[:before]) - known} were"
