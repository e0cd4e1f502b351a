"""Every feed × everything that can go wrong with a server: G5, G11 and G12 hold, and then all is well again.

A consumer runs for four minutes of virtual time while a fault lasts, and messages are published in it. What stops
it (410, an expired cursor, a message that cannot be read) is met as by an operator, who starts it again a minute
later. Then the fault is over.
"""

import logging
import random
import traceback
import zlib
from functools import cache

import anyio
import httpx
import pytest
from faulty_feeds import SECRETS, SUBJECTS
from faulty_transport import ELSEWHERE, FAULTS, PIECE, FaultyTransport
from lanes import Ledger
from vendors.vendor import SECRET

from push_to_poll_client import Consumer, CursorExpired, FeedError, FeedGone, FetchRequest, ProcessError
from push_to_poll_client.testing import virtual_time

pytestmark = pytest.mark.anyio

LASTS = 240.0
"""Seconds."""

MAX_BODY = 256 * 1024
DAY = 86_400.0

PUBLISHED = 8
"""Entries: five before, two in the fault, one after it; where the server makes no more."""

POLLS = 16
"""In `LASTS`: backoff takes 0.5 to 1, 2, …, 60 s, so the first six failures are over in 32 s at the earliest, and
what follows them are one each 30 s; that is 13. The start, one under way and a message come on top."""

REQUESTS = 12
"""For each poll: the pages of the feed, a redirect or five, and each once more for a new token."""

SHOWN = 2_000
"""Characters of a log line."""

WHEN = ("at first", "in the middle", "now and then", "at the end")
"""From the first request on; from the second one on; at each second one; when all was read."""

ALWAYS = (
    "cut in the middle",
    "stalls",
    "status 503",
    "429 for two minutes",
    "304 to whoever asked for all",
    "302 to another origin",
    "the wrong type",
    "brotli",
    "truncated gzip",
    "gzip bomb",
    "garbage",
    "an earlier page again",
    "endless new pages",
)
"""Those that issue 5 names: at each of the times. The others at one of them, in turn."""


def cells():
    for number, subject in enumerate(SUBJECTS):
        for place, fault in enumerate(FAULTS):
            for at, when in enumerate(WHEN):
                if fault in ALWAYS or (number + place) % len(WHEN) == at:
                    yield pytest.param(subject, fault, when, id=f"{subject}-{fault}-{when}")


class Reading(Consumer):
    """Writes down which entries it processed, and how often somebody had to start it again."""

    def __init__(self, subject, feed, **settings):
        super().__init__(feed, start=subject.start, **settings)
        self.subject = subject
        self.places = []
        self.stopped = []
        self.more = anyio.Event()

    async def process(self, message):
        self.places.append(self.subject.place(message))
        self.more.set()
        self.more = anyio.Event()

    async def run_by_an_operator(self):
        while True:
            try:
                await self.run()
            except (ProcessError, FeedGone, CursorExpired) as error:
                self.stopped.append(error)
                await anyio.sleep(60)

    async def has_read(self, count):
        while len({*self.places}) < count:
            await self.more.wait()


class Spied:
    """Keeps what a feed returned and raised."""

    def __init__(self, feed):
        self.cursors, self.errors = set(), {}
        self._fetch, feed.fetch = feed.fetch, self.fetch

    async def fetch(self, request):
        try:
            page = await self._fetch(request)
        except FeedError as error:
            self.errors[str(error)] = error
            raise
        self.cursors |= {page.cursor, *(message.cursor for message in page.messages)}
        return page


class Cell:
    """One feed, one fault, one time."""

    def __init__(self, subject, *, trusted=()):
        self.subject = SUBJECTS[subject](5)
        self.server = self.subject.server
        self.transport = FaultyTransport(self.server)
        self.client = httpx.AsyncClient(transport=self.transport, headers={"x-client": SECRET})
        self.feed = self.subject.make(self.client, max_body=MAX_BODY, trusted=trusted)
        self.spied = Spied(self.feed)
        self.ledger = Ledger()
        self.consumer = Reading(self.subject, self.feed, store=self.ledger, name="a name")
        self.polls = self.requests = 0

    async def live(self, fault, when):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.consumer.run_by_an_operator)
            if when == "at the end":
                await self.consumer.has_read(5)
                await anyio.sleep(70)
            await self.suffer(fault, when)
            self.server.publish(1)
            await self.recover()
            tasks.cancel_scope.cancel()

    async def suffer(self, fault, when):
        before = self.consumer.status().counters.polls, len(self.transport.asked)
        self.transport.break_with(
            fault, spares=0 if when in {"at first", "at the end"} else 1, every=when == "now and then"
        )
        await anyio.sleep(LASTS / 3)
        self.server.publish(2)
        await anyio.sleep(LASTS * 2 / 3)
        self.transport.mend()
        self.polls = self.consumer.status().counters.polls - before[0]
        self.requests = len(self.transport.asked) - before[1]

    async def recover(self):
        """Within what G4 allows for."""
        with anyio.move_on_after(1.2 * DAY):
            await self.consumer.has_read(len(self.server.entries))
            await anyio.sleep(70)

    # What must hold

    def check_messages(self):
        expected = list(range(1, len(self.server.entries) + 1))
        places = list(dict.fromkeys(self.consumer.places)) if self.subject.repeats else self.consumer.places
        assert places == expected, (self.consumer.status().last_error, self.consumer.stopped)

    async def check_cursors(self):
        """G5: only what a fetch returned is saved, and what follows it is all that was not recorded by then."""
        saved = {cursor for cursor, _ in self.ledger.commits} - {None}
        assert saved <= self.spied.cursors | {self.subject.start}

    def check_rate(self):
        assert not self.transport.overrun
        waits = LASTS / (getattr(self.feed, "max_wait", None) or LASTS)
        assert self.polls <= POLLS + 1.5 * waits + len(self.server.entries) - PUBLISHED
        assert self.requests <= (self.polls + 1) * REQUESTS + len(self.server.entries) - PUBLISHED

    def check_bounds(self):
        """G11."""
        assert self.transport.largest <= MAX_BODY + PIECE

    def check_secrets(self, log):
        """G12."""
        told = [*self.transport.elsewhere]
        shown = [*map(traced, self.spied.errors.values()), *map(traced, self.consumer.stopped)]
        shown += [repr(self.feed), repr(self.consumer), repr(self.consumer.status()), log]
        for secret in SECRETS:
            assert not [one for one in told if secret in one.text]
            assert not [one for one in shown if secret in one]
        assert not told


def traced(error):
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(("subject", "fault", "when"), list(cells()))
async def test_all_is_well_again_after_any_fault(subject, fault, when, caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    random.seed(0)  # jitter is drawn from it
    cell = Cell(subject)
    await cell.live(FAULTS[fault], when)
    cell.check_rate()
    cell.check_messages()
    await cell.check_cursors()
    cell.check_bounds()
    cell.check_secrets(caplog.text)
    await cell.client.aclose()


@pytest.fixture
def anyio_backend(request):
    """One of the two for each cell."""
    return virtual_time(("asyncio", "trio")[zlib.crc32(request.node.name.encode()) % 2])
