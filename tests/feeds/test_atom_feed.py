"""Walks through an Atom feed: pages, archives, one document; failures and gaps. In virtual time."""

import uuid
import zlib
from base64 import b64encode

import anyio
import httpx
import pytest

from push_to_poll_client import (
    AtomFeed,
    CursorExpired,
    DeadLetter,
    FeedError,
    FeedGone,
    FeedRefused,
    FetchRequest,
    UnreadableMessage,
)
from push_to_poll_client.feeds._atom.complete_feed import MAX_UNPACKED, decode_note
from tests.support.consumers import Log
from tests.vendors.atom import document
from tests.vendors.vendor import SECRET

pytestmark = pytest.mark.anyio

URL = f"https://user:{SECRET}@shop.example/feed?key={SECRET}"
WHERE = "https://shop.example/feed?key=…"
TYPE = {"content-type": "application/atom+xml"}


def entry(name, day=1, title=""):
    return f"<entry><id>{name}</id><updated>2024-01-{day:02}T00:00:00Z</updated><title>{title}</title></entry>"


def feed(*entries, links=None, marks=""):
    return httpx.Response(200, text=document([], links, marks + "".join(entries)), headers=TYPE)


class Site:
    """Serve documents by path and query; a callable is called for a response."""

    def __init__(self, documents):
        self.documents = documents
        self.requests = []

    async def __call__(self, request):
        self.requests.append(request)
        found = self.documents.get(request.url.raw_path.decode(), httpx.Response(404))
        return (
            await found(request)
            if callable(found)
            else httpx.Response(found.status_code, headers=found.headers, content=found.content)
        )

    @property
    def paths(self):
        return [request.url.raw_path.decode() for request in self.requests]

    def feed(self, url=URL, **options):
        return AtomFeed(url, client=httpx.AsyncClient(transport=httpx.MockTransport(self)), **options)


TOP = f"/feed?key={SECRET}"


async def walk(feed, cursor=None):
    """Return the messages from a cursor to the end, the last cursor, and the gaps."""
    messages, gaps = [], []
    at = cursor
    while True:
        page = await feed.fetch(FetchRequest(at))
        messages += page.messages
        gaps += [page.gap] if page.gap else []
        cursor = page.cursor or cursor
        at = page.next_page
        if at is None:
            return messages, cursor, gaps


def ids(messages):
    return [message.entry_id for message in messages]


async def refused(feed, kind=FeedError, cursor=None):
    with pytest.raises(kind) as error:
        await walk(feed, cursor)
    assert type(error.value) is kind
    assert SECRET not in str(error.value)
    return str(error.value)


# Identity


def test_the_repr_and_identity_of_an_atom_feed_hide_secrets():
    feed = AtomFeed(URL)
    assert repr(feed) == f"AtomFeed({WHERE!r})"
    assert SECRET not in feed.identity
    assert feed.identity.startswith(f"{WHERE}#")
    assert AtomFeed(URL, identity="orders").identity == "orders"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 0}, ValueError),
        ({"max_body": "1"}, TypeError),
        ({"trusted_origins": "x"}, TypeError),
        ({"auth": 3}, TypeError),
    ],
)
def test_invalid_arguments_are_refused_at_construction(options, error):
    with pytest.raises(error):
        AtomFeed("https://shop.example/feed", **options)


async def test_a_request_has_accept_authorization_and_cache_control_headers():
    site = Site({TOP: feed()})
    await walk(site.feed(headers={"x-key": "1"}))
    sent = site.requests[0].headers
    assert sent["accept"].startswith("application/atom+xml, ")
    assert sent["authorization"] == f"Basic {b64encode(f'user:{SECRET}'.encode()).decode()}"
    assert sent["x-key"] == "1"
    assert "cache-control" not in sent
    await site.feed().fetch(FetchRequest(bypass_cache=True))
    assert site.requests[1].headers["cache-control"] == "no-cache"


# One document


async def test_entries_are_returned_oldest_first_and_later_polls_return_new_entries():
    site = Site({TOP: feed(entry("c", 3), entry("a", 1), entry("b", 2))})
    atom = site.feed()
    before, cursor, _ = await walk(atom)
    site.documents[TOP] = feed(entry("a", 4), entry("d", 4), entry("c", 3), entry("b", 2))
    after, cursor, gaps = await walk(atom, cursor)
    assert (ids(before), ids(after), gaps) == (["a", "b", "c"], ["d", "a"], [])
    assert ids((await walk(atom, cursor))[0]) == []


async def test_each_version_of_an_entry_is_returned_with_the_newest_last():
    site = Site({TOP: feed(entry("a", 2, "new"), entry("b", 1), entry("a", 1, "old"), entry("a", 1, "old"))})
    messages, _, _ = await walk(site.feed())
    assert [(message.entry_id, message.title.text) for message in messages] == [
        ("a", "old"),
        ("b", ""),
        ("a", "new"),
    ]


async def test_a_document_without_any_known_entry_is_reported_as_a_gap():
    site = Site({TOP: feed(entry("a", 1), entry("b", 1))})
    _, cursor, _ = await walk(site.feed())
    site.documents[TOP] = feed(entry("y", 9), entry("x", 9))
    messages, _, (gap,) = await walk(site.feed(), cursor)
    assert ids(messages) == ["x", "y"]
    assert "none of the last seen messages" in gap


async def test_an_unreadable_entry_is_returned_in_its_place_among_the_others():
    site = Site({TOP: feed(entry("c", 3), "<entry><id>b</id></entry>", entry("a", 1))})
    messages, cursor, _ = await walk(site.feed())
    assert [message.id[0] for message in messages] == ["a", "b", "c"]
    assert [isinstance(message, UnreadableMessage) for message in messages] == [False, True, False]
    assert (await walk(site.feed(), cursor))[0] == []


async def test_a_fetch_sends_the_etag_of_its_cursor_and_handles_304():
    async def answer(request):
        if request.headers.get("if-none-match") == '"1"':
            return httpx.Response(304, headers={"retry-after": "7"})
        return httpx.Response(
            200, text=document([], marks=entry("a")), headers={"etag": '"1"', "x-poll-interval": "9"}
        )

    site = Site({TOP: answer})
    atom = site.feed()
    page = await atom.fetch(FetchRequest())
    assert page.retry_after == 9
    assert await atom.fetch(FetchRequest(page.cursor)) == await site.feed().fetch(FetchRequest(page.cursor))
    again = await atom.fetch(FetchRequest(page.cursor))
    assert (list(again.messages), again.cursor, again.next_page, again.retry_after) == ([], None, None, 7)
    assert ids((await atom.fetch(FetchRequest())).messages) == ["a"]


async def test_latest_returns_a_cursor_after_the_current_entries():
    site = Site({TOP: feed(entry("b", 2), entry("a", 1), links={"next": "two"})})
    atom = site.feed()
    cursor = await atom.latest()
    assert site.paths == [TOP]
    site.documents[TOP] = feed(entry("c", 3), entry("b", 2), entry("a", 1))
    assert ids((await walk(atom, cursor))[0]) == ["c"]


@pytest.mark.parametrize("size", [2_000, 200_000])
async def test_small_and_large_documents_are_read(size):
    """Documents above a megabyte are read in a worker thread."""
    site = Site({TOP: feed(entry("a", 1), f"<subtitle>{'x' * size * 8}</subtitle>")})
    assert ids((await walk(site.feed()))[0]) == ["a"]


async def test_secrets_of_the_url_are_not_in_messages_or_cursors():
    site = Site({TOP: feed(entry("a"), "<entry/>")})
    messages, cursor, _ = await walk(site.feed())
    assert len(messages) == 2
    assert SECRET not in f"{[message.raw for message in messages]} {messages} {cursor}"


# Pages (RFC 5005 §3)


async def test_pages_are_followed_back_to_the_last_known_entry():
    site = Site(
        {
            TOP: feed(entry("e", 5), entry("d", 4), links={"next": "/2"}),
            "/2": feed(entry("c", 3), links={"next": "/3", "previous": "/feed"}),
            "/3": feed(entry("b", 2), entry("a", 1)),
        }
    )
    atom = site.feed()
    messages, cursor, _ = await walk(atom)
    assert ids(messages) == ["a", "b", "c", "d", "e"]
    site.documents[TOP] = feed(entry("g", 7), entry("f", 6), links={"next": "/2"})
    site.documents["/2"] = feed(entry("e", 5), entry("d", 4), links={"next": "/3"})
    site.requests.clear()
    messages, _, gaps = await walk(atom, cursor)
    assert (ids(messages), gaps) == (["f", "g"], [])
    assert "/3" not in site.paths


async def test_entries_of_several_pages_are_sorted():
    site = Site(
        {TOP: feed(entry("a", 1), entry("d", 4), links={"next": "/2"}), "/2": feed(entry("c", 3), entry("b", 2))}
    )
    assert ids((await walk(site.feed()))[0]) == ["a", "b", "c", "d"]


async def test_a_page_chain_that_loops_is_an_error():
    site = Site({TOP: feed(entry("b", 2), links={"next": "/2"}), "/2": feed(entry("a", 1), links={"next": "/2"})})
    assert "its links form a cycle" in await refused(site.feed())


@pytest.mark.parametrize(
    ("href", "why"),
    [
        (
            "https://other.example/2",
            "links to another origin, https://other.example/, which must not get credentials",
        ),
        ("http://shop.example/2", "links to another origin, http://shop.example/"),
        ("https://shop.example:port/", "links to an invalid URL"),
    ],
)
@pytest.mark.parametrize("rel", ["next", "prev-archive"])
async def test_a_link_to_another_origin_is_not_followed(href, why, rel):
    site = Site({TOP: feed(entry("a"), links={rel: href})})
    assert why in await refused(site.feed())
    assert site.paths == [TOP]


async def test_a_trusted_origin_is_requested_without_credentials():
    site = Site(
        {TOP: feed(entry("b", 2), links={"prev-archive": "https://cdn.example/1"}), "/1": feed(entry("a", 1))}
    )
    messages, _, _ = await walk(site.feed(trusted_origins=["https://cdn.example"], headers={"x-key": SECRET}))
    assert ids(messages) == ["a", "b"]
    assert "authorization" not in site.requests[1].headers
    assert "x-key" not in site.requests[1].headers


# Archives (RFC 5005 §4)


def archived():
    return Site(
        {
            TOP: feed(entry("e", 5), links={"prev-archive": "/a/2", "next": "/2"}),
            "/a/2": feed(
                entry("d", 4), entry("c", 3), links={"prev-archive": "/a/1", "current": URL}, marks="<fh:archive/>"
            ),
            "/a/1": feed(entry("b", 2), entry("a", 1), links={"next-archive": "/a/2"}, marks="<fh:archive/>"),
        }
    )


async def test_archives_are_read_once():
    site = archived()
    atom = site.feed()
    messages, cursor, gaps = await walk(atom)
    assert (ids(messages), gaps) == (["a", "b", "c", "d", "e"], [])
    site.requests.clear()
    site.documents[TOP] = feed(entry("f", 6), entry("e", 5), links={"prev-archive": "/a/2"})
    messages, cursor, _ = await walk(atom, cursor)
    assert (ids(messages), {*site.paths}) == (["f"], {TOP})


async def test_entries_moved_into_a_new_archive_before_they_were_seen_are_found_there():
    site = archived()
    _, cursor, _ = await walk(site.feed())
    site.documents[TOP] = feed(entry("h", 8), links={"prev-archive": "/a/3"})
    site.documents["/a/3"] = feed(
        entry("g", 7), entry("f", 6), entry("e", 5), links={"prev-archive": "/a/2"}, marks="<fh:archive/>"
    )
    site.requests.clear()
    messages, _, gaps = await walk(site.feed(), cursor)
    assert (ids(messages), gaps) == (["f", "g", "h"], [])
    assert "/a/2" not in site.paths


async def test_a_new_archive_is_read_even_if_the_current_document_has_only_known_entries():
    """Only an archive that was read proves that all older entries were read."""
    site = archived()
    _, cursor, _ = await walk(site.feed())
    site.documents[TOP] = feed(entry("e", 5), entry("d", 4), links={"prev-archive": "/a/3"})
    site.documents["/a/3"] = feed(
        entry("late", 4), entry("d", 4), links={"prev-archive": "/a/2"}, marks="<fh:archive/>"
    )
    assert ids((await walk(site.feed(), cursor))[0]) == ["late"]


async def test_an_archive_answered_with_410_is_reported_as_a_gap():
    site = archived()
    site.documents["/a/1"] = httpx.Response(410)
    messages, cursor, (gap,) = await walk(site.feed())
    assert ids(messages) == ["c", "d", "e"]
    assert gap == (
        f"a document that {WHERE} links to no longer exists (status 410); its entries and older ones are missed"
    )
    site.documents[TOP] = feed(entry("f", 6), links={"prev-archive": "/a/2"})
    messages, _, gaps = await walk(site.feed(), cursor)
    assert (ids(messages), gaps) == (["f"], [])


async def not_found(atom, *, times, wait=60):
    for _ in range(times):
        with pytest.raises(FeedError, match=r"links to a document that was not found \(404\)") as error:
            await walk(atom)
        assert error.value.retry_after == wait


async def test_an_archive_answered_with_404_in_three_polls_is_reported_as_a_gap():
    site = archived()
    first, site.documents["/a/1"] = site.documents["/a/1"], httpx.Response(404)
    atom = site.feed()
    await not_found(atom, times=2)
    messages, _, (gap,) = await walk(atom)
    assert ids(messages) == ["c", "d", "e"]
    assert "no longer exists (status 404)" in gap
    await not_found(atom, times=2)
    site.documents["/a/1"] = first
    assert ids((await walk(atom))[0]) == ["a", "b", "c", "d", "e"]
    site.documents["/a/1"] = httpx.Response(404, headers={"retry-after": "90"})
    await not_found(atom, times=2, wait=90)


@pytest.mark.parametrize("status", [302, 308])
@pytest.mark.parametrize("answer", [404, 410])
async def test_a_redirect_of_an_archive_to_a_missing_page_is_an_error_and_not_a_gap(status, answer):
    site = archived()
    first = site.documents["/a/1"]
    site.documents["/a/1"] = httpx.Response(status, headers={"location": "/maintenance"})
    site.documents["/maintenance"] = httpx.Response(answer)
    atom = site.feed()
    for _ in range(5):
        with pytest.raises(FeedError, match=f"was redirected to .*/maintenance, which answered {answer}"):
            await walk(atom)
    site.documents["/a/1"] = first
    messages, _, gaps = await walk(atom)
    assert (ids(messages), gaps) == (["a", "b", "c", "d", "e"], [])


@pytest.mark.parametrize("content", ["<h1>We are back soon</h1>", "<html/>", ""])
async def test_a_permanent_redirect_to_a_page_that_is_not_a_feed_is_not_remembered(content):
    site = archived()
    first = site.documents["/a/1"]
    site.documents["/a/1"] = httpx.Response(308, headers={"location": "/maintenance"})
    site.documents["/maintenance"] = httpx.Response(200, text=content)
    atom = site.feed()
    with pytest.raises(FeedError, match="sent "):
        await walk(atom)
    site.documents["/a/1"] = first
    del site.documents["/maintenance"]
    assert ids((await walk(atom))[0]) == ["a", "b", "c", "d", "e"]
    assert site.paths.count("/maintenance") == 1


async def test_a_permanent_redirect_of_an_archive_is_remembered_once_it_was_read():
    site = archived()
    site.documents["/b/1"] = site.documents["/a/1"]
    site.documents["/a/1"] = httpx.Response(308, headers={"location": "/b/1"})
    for times in (1, 1):
        atom = site.feed()
        for _ in range(2):
            assert ids((await walk(atom))[0]) == ["a", "b", "c", "d", "e"]
        assert (site.paths.count("/a/1"), site.paths.count("/b/1")) == (times, 2)
        site.requests.clear()


async def test_the_number_of_remembered_missing_archives_is_limited(monkeypatch):
    monkeypatch.setattr("push_to_poll_client.feeds._atom.complete_feed.MAX_ADDRESSES", 1)
    site, other = archived(), archived()
    site.documents["/a/1"] = other.documents["/a/2"] = httpx.Response(404)
    one, two = site.feed(), other.feed()
    two._missing_documents = one._missing_documents
    await not_found(one, times=2)
    await not_found(two, times=1)
    await not_found(one, times=2)


async def test_an_archive_answered_with_503_is_retried():
    site = archived()
    first, site.documents["/a/1"] = site.documents["/a/1"], httpx.Response(503, headers={"retry-after": "5"})
    atom = site.feed()
    with pytest.raises(FeedError) as error:
        await walk(atom)
    assert error.value.retry_after == 5
    site.documents["/a/1"] = first
    assert ids((await walk(atom))[0]) == ["a", "b", "c", "d", "e"]


async def test_an_archive_that_links_to_another_current_document_is_refused_as_the_feed_url():
    site = archived()
    text = await refused(site.feed("https://shop.example/a/2"), FeedRefused)
    assert text == (
        "https://shop.example/a/2 is an archive of a feed, which does not change; use the URL of the newest "
        f"document, {WHERE}"
    )
    alone = Site({"/feed": feed(entry("a"), marks="<fh:archive/>")})
    assert ids((await walk(alone.feed("https://shop.example/feed")))[0]) == ["a"]
    itself = Site({TOP: feed(entry("a"), links={"current": "/feed"}, marks="<fh:archive/>")})
    assert ids((await walk(itself.feed()))[0]) == ["a"]


# Complete feeds (RFC 5005 §2)

ALL = "<fh:complete/>"
ROWS = b'[["a",["2024-01-01T00:00:00",0,false]]'
BOMB = ROWS + b" " * MAX_UNPACKED + b"]"


async def changes(*documents):
    """Return the messages of each document of a complete feed, read by new feeds that share only the cursor."""
    cursor, found, gaps = None, [], []
    for entries in documents:
        site = Site({TOP: feed(*entries, marks=ALL, links={"next": "/2", "prev-archive": "/1"})})
        messages, cursor, missing = await walk(site.feed(), cursor)
        again, same, _ = await walk(site.feed(), cursor)
        assert (again, same, site.paths) == ([], cursor, [TOP, TOP])
        found.append(messages)
        gaps += missing
    assert gaps == []
    return found


def said(messages):
    return [f"-{message.entry_id}" if message.deleted else f"+{message.entry_id}" for message in messages]


async def test_an_entry_missing_from_a_complete_feed_is_reported_as_deleted():
    found = await changes([entry("b", 2), entry("a", 1), entry("c", 3)], [entry("d", 4), entry("b", 2)], [])
    assert [said(messages) for messages in found] == [["+a", "+b", "+c"], ["+d", "-c", "-a"], ["-d", "-b"]]
    gone = found[1][1]
    assert (gone.id, gone.dedupe_key) == ("c@2024-01-03T00:00:00Z deleted", "deleted:1:c:2024-01-03T00:00:00Z")
    assert (gone.updated.day, gone.summary.text) == (
        3,
        "This entry is no longer in its feed, and the feed lists all its entries.",
    )
    again = AtomFeed(URL).restore(DeadLetter(dedupe_key=gone.dedupe_key, id=gone.id, raw=gone.raw, error=""))
    assert (again.id, again.dedupe_key, again.deleted, again.entry_id, again.updated) == (
        gone.id,
        gone.dedupe_key,
        True,
        "c",
        gone.updated,
    )


async def test_an_entry_that_returns_unchanged_to_a_complete_feed_is_a_new_message():
    here, gone = [entry('a&amp;"', 1)], []
    found = [message for messages in await changes(here, gone, here, gone, here) for message in messages]
    assert said(found) == ['+a&"', '-a&"'] * 2 + ['+a&"']
    assert len({message.dedupe_key for message in found}) == len({message.id for message in found}) == 5
    assert found[4].id == 'a&"@2024-01-01T00:00:00Z (2)'
    assert {type(message.data.tag) for message in found} == {str}


async def test_a_consumer_processes_an_entry_that_returns_to_a_complete_feed():
    """A version is not a duplicate of another version of the same entry."""
    site = Site({TOP: feed(entry("a"), marks=ALL)})
    consumer = Log(site.feed())
    async with consumer:
        for entries in ([entry("a")], [], [entry("a")]):
            site.documents[TOP] = feed(*entries, marks=ALL)
            await consumer.poll_now(timeout=None)
    assert len(consumer.processed) == 3


async def test_a_deleted_entry_element_is_not_reported_as_deleted_twice():
    deletion = '<at:deleted-entry ref="a" when="2024-01-05T00:00:00Z"/>'
    found = await changes([entry("a"), entry("b")], [deletion, entry("b")], [deletion], [entry("a"), deletion])
    assert [said(messages) for messages in found] == [["+b", "+a"], ["-a"], ["-b"], ["+a"]]
    assert len({message.dedupe_key for messages in found for message in messages}) == 5


async def test_a_deletion_has_the_date_of_the_newest_version_of_the_entry():
    found = await changes([entry("a", 1), entry("a", 3), entry("a", 2)], [])
    assert found[1][0].updated.day == 3


async def test_an_unreadable_entry_of_a_complete_feed_is_not_reported_as_deleted():
    broken = "<entry><id>a</id></entry>"
    site = Site({TOP: feed(entry("a"), entry("b"), marks=ALL)})
    _, cursor, _ = await walk(site.feed())
    site.documents[TOP] = feed(broken, "<entry><id>new</id></entry>", entry("b"), marks=ALL)
    messages, cursor, _ = await walk(site.feed(), cursor)
    assert [message.id for message in messages] == ["new", "a"]
    site.documents[TOP] = feed(marks=ALL)
    messages, _, _ = await walk(site.feed(), cursor)
    assert sorted(said(messages)) == ["-a", "-b"]


async def test_no_deletion_is_reported_while_an_entry_of_a_complete_feed_has_no_id():
    site = Site({TOP: feed(entry("a"), entry("b"), marks=ALL)})
    _, cursor, _ = await walk(site.feed())
    site.documents[TOP] = feed("<entry/>", entry("b"), marks=ALL)
    (unreadable,), cursor, _ = await walk(site.feed(), cursor)
    assert unreadable.error is not None
    site.documents[TOP] = feed(entry("b"), marks=ALL)
    assert said((await walk(site.feed(), cursor))[0]) == ["-a"]


async def test_an_entry_missing_from_a_feed_that_is_not_complete_is_not_reported_as_deleted():
    site = Site({TOP: feed(entry("a"), entry("b"), marks=ALL)})
    _, cursor, _ = await walk(site.feed())
    site.documents[TOP] = feed(entry("b"))
    messages, cursor, _ = await walk(site.feed(), cursor)
    assert messages == []
    site.documents[TOP] = feed(marks=ALL)
    assert (await walk(site.feed(), cursor))[0] == []


async def test_a_complete_feed_started_at_latest_reports_deletions_of_existing_entries():
    site = Site({TOP: feed(entry("a"), marks=ALL)})
    cursor = await site.feed().latest()
    site.documents[TOP] = feed(marks=ALL)
    assert said((await walk(site.feed(), cursor))[0]) == ["-a"]


@pytest.mark.parametrize("count", [1_000, 5_000])
async def test_deletions_are_reported_only_if_the_whole_complete_feed_fits_in_the_cursor(count):
    """A cursor holds at most 65,536 characters."""
    names = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(n))) for n in range(count)]
    site = Site({TOP: feed(*map(entry, names), marks=ALL)})
    messages, cursor, _ = await walk(site.feed())
    assert len(messages) == count
    assert len(cursor) <= 65_536
    site.documents[TOP] = feed(*map(entry, names[2:]), marks=ALL)
    messages, cursor, _ = await walk(site.feed(), cursor)
    assert sorted(said(message for message in messages if message.deleted)) == sorted(
        [f"-{name}" for name in names[:2]] if count == 1_000 else []
    )


@pytest.mark.no_cover  # lines are counted in the faster tests
async def test_the_cursor_of_a_complete_feed_stays_small_and_remembers_recent_deletions():
    """The current entries have priority; an older deleted entry that returns counts as new."""
    names = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(n))) for n in range(3_000)]
    cursor = None
    for start in range(0, 3_000, 500):
        site = Site({TOP: feed(*map(entry, names[start : start + 500]), marks=ALL)})
        messages, cursor, _ = await walk(site.feed(), cursor)
        assert len(messages) == (1_000 if start else 500)
        assert len(cursor) <= 65_536
    site = Site({TOP: feed(*map(entry, names[2_250:3_000]), marks=ALL)})
    assert [message.id[-3:] for message in (await walk(site.feed(), cursor))[0]] == ["(1)"] * 250


@pytest.mark.parametrize(
    "note", ["", "x", "AAAA", b64encode(zlib.compress(b"[]x")), b64encode(zlib.compress(BOMB))]
)
def test_recalled_ignores_an_invalid_or_oversized_cursor_note(note):
    assert decode_note(note if isinstance(note, str) else note.decode()) == {}
    assert decode_note(b64encode(zlib.compress(ROWS + b"]")).decode()).keys() == {"a"}


# Failures


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        (httpx.Response(410), FeedGone, "410"),
        (httpx.Response(404), FeedRefused, "404"),
        (httpx.Response(401), FeedRefused, "401"),
        (httpx.Response(503), FeedError, "503"),
        (httpx.Response(304), FeedError, "to a request without an ETag or a date"),
        (httpx.Response(204), FeedError, "sent an empty body instead of a document (status 204)"),
        (httpx.Response(200), FeedError, "sent an empty body instead of a document (status 200)"),
        (httpx.Response(200, text=" \n"), FeedError, "sent an empty body instead of a document"),
        (httpx.Response(200, html="<html>Sign in"), FeedError, "sent a document that is an HTML page"),
        (httpx.Response(200, json={"token": SECRET}), FeedError, "sent a document that is not well-formed XML"),
        (httpx.Response(200, text="<rss/>"), FeedError, "sent a document that is RSS"),
        (httpx.Response(200, text="<!DOCTYPE a><a/>"), FeedError, "sent a document that declares a doctype 'a'"),
        (httpx.Response(200, text=document([]) + SECRET), FeedError, "junk after document element"),
        (
            httpx.Response(200, text=document([], marks="<entry/>" * 10_001)),
            FeedError,
            "more than 10000 unreadable",
        ),
        (
            httpx.Response(302, headers={"location": "https://other.example/"}),
            FeedError,
            "redirects to another origin",
        ),
    ],
)
async def test_an_answer_without_a_feed_document_is_an_error_that_names_the_cause(answer, kind, why):
    text = await refused(Site({TOP: answer}).feed(), kind)
    assert text.startswith(WHERE)
    assert why in text


async def test_an_error_names_the_url_of_the_linked_document_that_failed():
    site = Site(
        {
            TOP: feed(entry("b", 2), links={"prev-archive": "https://cdn.example/1?token=a"}),
            "/1?token=a": httpx.Response(200, text="<rss/>"),
        }
    )
    text = await refused(site.feed(trusted_origins=["https://cdn.example"]))
    assert text.startswith(f"{WHERE}, which led to https://cdn.example/1?token=…, sent a document that is RSS")


async def test_a_cursor_of_another_feed_is_refused():
    assert "but to another kind of feed" in await refused(Site({TOP: feed()}).feed(), CursorExpired, "12")


async def test_a_document_above_max_body_is_refused():
    site = Site({TOP: feed(entry("a", 1, "x" * 5_000))})
    assert "max_body=" in await refused(site.feed(max_body=4_000))


async def test_a_fresh_document_is_not_requested_again_until_it_expires_or_the_feed_is_closed():
    site = Site({TOP: httpx.Response(200, text=document([]), headers={"etag": '"1"'})})
    atom = site.feed()
    _, cursor, _ = await walk(atom)
    site.documents[TOP] = httpx.Response(304, headers={"cache-control": "max-age=60"})
    for _ in range(3):
        await walk(atom, cursor)
    assert len(site.requests) == 2
    await anyio.sleep(61)
    await walk(atom, cursor)
    assert len(site.requests) == 3
    await atom.aclose()
    await walk(atom, cursor)
    assert len(site.requests) == 4
