"""Every feed under every server fault: G5, G11 and G12 hold, and the feed recovers.

A consumer runs for two or three minutes of virtual time under a fault, with messages published meanwhile. If an
error stops it (410, an expired cursor, an unreadable message), the test restarts it a minute later, as an operator
would. Then the fault ends.

`make chaos` tries every fault on every feed at each of four times, which takes minutes. `make test` tries every
fault on one feed, and every feed under three of six faults, at one of the four times and on one of the two event
loops.
"""

import logging
import traceback
import tracemalloc
import zlib

import anyio
import httpx
import pytest

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    FeedError,
    FeedGone,
    FetchRequest,
    ProcessError,
    SQLiteStore,
)
from push_to_poll_client.testing import virtual_time
from push_to_poll_client.testing._feed_suite import walk
from tests.support.faulty_feeds import SECRETS, SUBJECTS
from tests.support.faulty_transport import ELSEWHERE, FAULTS, PIECE, FaultyTransport
from tests.support.forms import LONG, form
from tests.support.in_flight import Ledger
from tests.vendors.vendor import SECRET

pytestmark = [pytest.mark.anyio, pytest.mark.no_cover]  # lines are counted in the faster tests

LASTS = form(120.0, 180.0)
"""Duration of a fault in seconds."""

DAY = 86_400.0
MAX_BODY = 256 * 1024

PUBLISHED = 8
"""Number of entries, unless the server adds more: five before the fault, two during it, one after."""

POLLS = form(12, 14)
"""Maximum number of polls in `LASTS`.

Backoff takes 0.5 to 1, 2, …, 60 s, so the first six failures are over after 32 s at the earliest. One failure each
30 s follows; that is 9 or 11. The start, a running poll and a message come on top.
"""

REQUESTS = 12
"""Maximum requests of a poll: the pages, up to five redirects, and each again for a new token."""

SHOWN = 2_000
"""Maximum characters of a log line or an error."""

WHEN = ("at first", "in the middle", "now and then", "at the end")
"""From the first request; from the second one; at each second one; after the end of the feed."""

SIX = (
    "cut without a word",
    "304 to an unconditional request",
    "status 410",
    "an earlier page again",
    "each page twice",
    "leads elsewhere",
)
"""Faults whose effect depends most on the feed's implementation; each feed meets three of them, in turn."""

HARMLESS = {
    "slow headers",
    "packed",
    "packed by deflate",
    "packed by raw deflate",
    "an invalid type",
    "a BOM",
    "204",
    "304 to a conditional request",
    "one ETag for everything",
    "an earlier page again",
    "each page twice",
    "pages in a circle",
    "endless new pages",
    "leads elsewhere",
    "asks for a day of quiet",
    "asks for ages of quiet",
    "asks for nonsense",
    "may be kept for ever",
    "a long etag",
    "an invalid etag",
    "invalid links",
    "links without an end",
    "cookies",
}
"""Faults that need not fail a poll. All others must fail a poll or stop the consumer, except `TAKES_IT`."""

TAKES_IT = {
    "Nextcloud": {"304 to an unconditional request"},  # 304 is its end of the feed
    "Ntfy": {  # a line is an entry
        "nothing",
        "spaces",
        "two pages in one",
        "cut without a word",
        "a length that is too small",
    },
    "AtomFeed": {"the wrong type", "UTF-16"},  # the XML declares its own type and encoding
}


GAPS = {"status 404", "status 410"}
"""Faults by which a missed archive is reported."""

LIES = {"an earlier page again", "each page twice", "pages in a circle"}
"""Faults that send another page than the requested one. They change the message order of newest-first feeds."""

EMPTY_PAGES = 10
"""Empty pages under such a fault. After ten in a row, each further one is a poll within the rate."""

SILENCE = {"no headers", "stalls", "stalls at once", "drips", "empty chunks"}
"""Faults without a response. If a held response does not come, the feed asks again at once, without a failure."""

BELIEVED = {
    "AtomFeed, archived": {*LIES, *GAPS},  # an archive does not change, and may be gone
    "AtomFeed, paged": GAPS,  # an older page may be gone too
}
"""Faults that a feed cannot detect; the entries of that page are missed."""


def cells():
    """All combinations in the long form; in the short one every fault on one feed, and three of `SIX` on each."""
    for place, fault in enumerate(FAULTS):
        for number, subject in enumerate(SUBJECTS):
            for at, when in enumerate(WHEN):
                in_turn = fault in SIX and SIX.index(fault) % 2 == number % 2
                chosen = in_turn or number == place % len(SUBJECTS)
                short = chosen and (number + place - at) % len(WHEN) == 0
                if LONG or short:
                    yield pytest.param(subject, fault, when, id=f"{subject}-{fault}-{when}")


def thinned(rows, columns):
    """Return pairs of both: all in the long form; in the short one each row with one column, in turn."""
    columns = list(columns)
    for number, row in enumerate(rows):
        for column in form([columns[number % len(columns)]], columns):
            yield pytest.param(row, column, id=f"{row}-{column}")


class Reading(Consumer):
    """Record the processed entries and the errors that stopped the consumer."""

    def __init__(self, subject, feed, **settings):
        super().__init__(feed, start=subject.start, name="a name", **settings)
        self.subject = subject
        self.places = []
        self.place_of = {}
        self.stopped = []
        self.more = anyio.Event()

    async def process(self, message):
        self.place_of[message.dedupe_key] = place = self.subject.place(message)
        self.places.append(place)
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
    """Record the results and errors of a feed."""

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
    """One feed and its consumer."""

    def __init__(self, subject, *, store=None, **options):
        self.name = subject
        self.subject = SUBJECTS[subject](5)
        self.server = self.subject.server
        self.transport = FaultyTransport(self.server)
        self.client = httpx.AsyncClient(transport=self.transport, headers={"x-client": SECRET})
        self.feed = self.subject.make(self.client, max_body=MAX_BODY, **options)
        self.spied = Spied(self.feed)
        self.store = store or Ledger()
        self.consumer = Reading(self.subject, self.feed, store=self.store)
        self.fault = ""
        self.polls = self.requests = 0

    async def live(self, fault, when):
        self.fault = fault
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.consumer.run_by_an_operator)
            if when == "at the end":
                await self.consumer.has_read(5)
                await anyio.sleep(70)
            await self.suffer(when)
            self.server.publish(1)
            await self.recover()
            tasks.cancel_scope.cancel()
        await self.client.aclose()

    async def suffer(self, when):
        polls, requests = self.consumer.status().counters.polls, len(self.transport.asked)
        spares = 1 if when in {"in the middle", "now and then"} else 0
        self.transport.break_with(FAULTS[self.fault], spares=spares, every=when == "now and then")
        await anyio.sleep(LASTS / 3)
        self.server.publish(2)
        await anyio.sleep(LASTS * 2 / 3)
        self.transport.mend()
        self.polls = self.consumer.status().counters.polls - polls
        self.requests = len(self.transport.asked) - requests

    async def recover(self):
        """Wait as long as G4 allows, plus one fallback interval. Refused polls are retried within 5 minutes."""
        with anyio.move_on_after(600.0 if self.believes else 1.2 * DAY):
            await self.consumer.has_read(len(self.server.entries))
            await anyio.sleep(70)

    # Checks

    @property
    def in_order(self):
        return self.subject.in_order and self.fault not in LIES and not self.believes

    @property
    def believes(self):
        return self.fault in BELIEVED.get(self.name, set())

    def check_messages(self):
        """Check that each entry is processed once, in order."""
        places = self.consumer.places
        places = list(dict.fromkeys(places)) if self.subject.repeats else places
        expected = {*places} if self.believes else range(1, len(self.server.entries) + 1)
        why = self.consumer.status().last_error, self.consumer.stopped
        assert (places if self.in_order else sorted(places)) == sorted(expected), why
        assert self.consumer.status().last_gap or self.fault not in GAPS or len(places) == len(self.server.entries)

    async def check_cursors(self):
        """Check G5: saved cursors come from a fetch, and everything before them is recorded, as a prefix."""
        recorded = set[int]()
        saved = dict[str, set[int]]()
        for cursor, records in self.store.commits:
            recorded |= {self.consumer.place_of[key] for key, _ in records}
            assert not self.in_order or recorded == set(range(1, len(recorded) + 1))
            saved |= {cursor: recorded.copy()} if cursor is not None else {}
        assert saved.keys() <= self.spied.cursors | {self.subject.start}
        some = [] if self.believes else list(saved)
        for cursor in {*some[: form(0, 1)], *some[len(some) // 2 :][:1], *some[-1:]}:
            assert saved[cursor] | await self._rest(cursor) == recorded

    async def _rest(self, cursor):
        """Return the entries that the server has after a cursor."""
        known = self.subject.rest(cursor)
        if known is None:
            async with httpx.AsyncClient(transport=FaultyTransport(self.server)) as client:
                found = await walk(self.subject.make(client), cursor)
            known = map(self.subject.place, found.messages)
        return {*known}

    def check_rate(self):
        """Check for backoff, not a busy loop (G3, G4). A held response takes two requests: at once, and held."""
        held = getattr(self.feed, "max_wait", None)
        turns, waits = (2, LASTS / held) if held else (1, 1)
        endless = len(self.server.entries) - PUBLISHED + (EMPTY_PAGES if self.fault in LIES else 0)
        assert not self.transport.overrun
        assert self.polls <= turns * POLLS + 1.5 * waits + endless
        assert self.requests <= (self.polls + 1) * REQUESTS + endless

    def check_bounds(self, log):
        """Check G11."""
        assert self.transport.largest <= MAX_BODY + PIECE
        assert max(map(len, [*log, *self.spied.errors, ""])) <= SHOWN

    def check_secrets(self, log):
        """Check G12."""
        errors = [*self.spied.errors.values(), *self.consumer.stopped]
        shown = [*log, *map(traced, errors), repr(self.feed), repr(self.consumer), str(self.consumer.status())]
        told = [asked.text for asked in self.transport.elsewhere]
        assert not [text for text in shown + told for secret in SECRETS if secret in text]


def traced(error):
    return "".join(traceback.format_exception(error))


@pytest.fixture
def anyio_backend(request):
    """Choose one of the two event loops for each cell."""
    return virtual_time(("asyncio", "trio")[zlib.crc32(request.node.name.encode()) % 2])


@pytest.fixture(autouse=True)
def said(caplog):
    """Return the log, without the traceback of each failed poll: `traced` formats each error once."""
    caplog.set_level(logging.WARNING, "httpx")  # a user's httpx client logs URLs, as always
    caplog.set_level(logging.INFO, "push_to_poll_client")  # last, as it also sets the level of the handler
    return lambda: [record.getMessage() + (record.exc_text or "") for record in caplog.records]


@pytest.mark.parametrize(("subject", "fault", "when"), list(cells()))
async def test_a_consumer_of_any_feed_recovers_after_any_fault(subject, fault, when, said):
    cell = Cell(subject)
    await cell.live(fault, when)
    cell.check_rate()
    cell.check_messages()
    await cell.check_cursors()
    cell.check_bounds(said())
    cell.check_secrets(said())
    assert cell.transport.met
    assert not cell.transport.elsewhere
    if cell.transport.harmed and not takes(subject, fault, when):
        assert cell.spied.errors or cell.consumer.stopped


def takes(subject, fault, when):
    """Return True if the fault may be harmless. CouchDB holds every second request."""
    taken = HARMLESS | TAKES_IT.get(subject.partition(",")[0], set())
    each_second = "redirects" in fault or (subject == "CouchDB" and fault in SILENCE)
    return fault in taken or (when == "now and then" and each_second)


@pytest.mark.parametrize("fault", ["cut in the middle", "status 410", "gzip bomb", "pages in a circle"])
@pytest.mark.parametrize("subject", ["HTTPFeed", "DurableStreamFeed", "AtomFeed, paged", "Stripe", "Plaid"])
@pytest.mark.usefixtures("inline_threads")
async def test_a_consumer_with_a_store_on_disk_recovers_after_a_fault(subject, fault, tmp_path):
    store = SQLiteStore(tmp_path / "state.db")
    cell = Cell(subject, store=store)
    await cell.live(fault, "now and then")
    cell.check_messages()
    cell.check_rate()


# Other origins that the feed may be redirected to


@pytest.mark.parametrize(
    ("subject", "fault"),
    list(thinned(SUBJECTS, [f"{status} to another origin" for status in (301, 302, 303, 307, 308)])),
)
async def test_a_redirect_to_a_trusted_origin_is_followed_without_sending_secrets(subject, fault, said):
    """Except where that is impossible: a posted body, and a URL with a secret in it."""
    cell = Cell(subject, trusted_origins=[ELSEWHERE])
    await cell.live(fault, "at first")
    cell.check_messages()
    await cell.check_cursors()
    cell.check_secrets(said())
    may_be_led = subject != "Telegram" and not (cell.subject.posts and fault[:3] in {"307", "308"})
    assert bool(cell.transport.elsewhere) == may_be_led
    assert bool(cell.spied.errors) == (subject == "Telegram" or cell.subject.posts)


# Bombs


@pytest.mark.parametrize(
    ("subject", "fault"),
    list(
        thinned(
            SUBJECTS, ["gzip bomb", "deflate bomb", "bomb in a bomb", "never ends", "503 with an endless page"]
        )
    ),
)
async def test_an_oversized_body_is_never_held_in_memory(subject, fault):
    cell = Cell(subject)
    cell.transport.break_with(FAULTS[fault])
    request = FetchRequest(None if cell.subject.start == "inception" else cell.subject.start)
    await refused(cell.feed, request)  # warm up: imports and caches
    tracemalloc.start()
    try:
        await refused(cell.feed, request)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await cell.client.aclose()
    assert peak < 4 * MAX_BODY


async def refused(feed, request):
    with pytest.raises(FeedError):
        await feed.fetch(request)
