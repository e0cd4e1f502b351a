"""How a feed in Atom is walked: pages, archives, one document; what fails, and what is gone. In virtual time."""

from base64 import b64encode

import anyio
import httpx
import pytest
from consumers import Log
from vendors.atom import Atom, document
from vendors.vendor import SECRET

from push_to_poll_client import (
    AtomFeed,
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    FetchRequest,
    UnreadableMessage,
)
from push_to_poll_client.testing import FakeFeed  # noqa: F401

pytestmark = pytest.mark.anyio

URL = f"https://user:{SECRET}@shop.example/feed?key={SECRET}"
WHERE = "https://shop.example/feed?key=…"
TYPE = {"content-type": "application/atom+xml"}


def entry(name, day=1, title=""):
    return f"<entry><id>{name}</id><updated>2024-01-{day:02}T00:00:00Z</updated><title>{title}</title></entry>"


def feed(*entries, links=None, marks=""):
    return httpx.Response(200, text=document([], links, marks + "".join(entries)), headers=TYPE)


class Site:
    """Documents by their paths with queries; what is no answer is called for one."""

    def __init__(self, documents):
        self.documents = documents
        self.requests = []

    async def __call__(self, request):
        self.requests.append(request)
        found = self.documents.get(request.url.raw_path.decode(), httpx.Response(404))
        return await found(request) if callable(found) else httpx.Response(
            found.status_code, headers=found.headers, content=found.content
        )

    @property
    def paths(self):
        return [request.url.raw_path.decode() for request in self.requests]

    def feed(self, url=URL, **options):
        return AtomFeed(url, client=httpx.AsyncClient(transport=httpx.MockTransport(self)), **options)


TOP = f"/feed?key={SECRET}"


async def walk(feed, cursor=None):
    """The messages from a cursor to the end, the last cursor, and what is missing."""
    messages, gaps = [], []
    at = cursor
    while True:
        page = await feed.fetch(FetchRequest(at))
        messages += page.messages
        gaps += [page.gap] if page.gap else []
        cursor = page.cursor or cursor
        at = page.next
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


# What it is


def test_it_says_what_it_is_without_secrets():
    feed = AtomFeed(URL)
    assert repr(feed) == f"AtomFeed({WHERE!r})"
    assert SECRET not in feed.identity
    assert feed.identity.startswith(f"{WHERE}#")
    assert AtomFeed(URL, identity="orders").identity == "orders"


@pytest.mark.parametrize(
    ("options", "error"),
    [({"timeout": 0}, ValueError), ({"max_body": "1"}, TypeError), ({"trusted": "x"}, TypeError), ({"auth": 3}, TypeError)],
)
def test_an_argument_without_a_meaning_is_refused(options, error):
    with pytest.raises(error):
        AtomFeed("https://shop.example/feed", **options)


async def test_it_asks_as_a_reader_of_atom_does():
    site = Site({TOP: feed()})
    await walk(site.feed(headers={"x-key": "1"}))
    sent = site.requests[0].headers
    assert sent["accept"].startswith("application/atom+xml, ")
    assert sent["authorization"] == f"Basic {b64encode(f'user:{SECRET}'.encode()).decode()}"
    assert sent["x-key"] == "1"
    assert "cache-control" not in sent
    await site.feed().fetch(FetchRequest(fresh=True))
    assert site.requests[1].headers["cache-control"] == "no-cache"


# One document


async def test_entries_are_handed_out_oldest_first_and_then_what_is_new():
    site = Site({TOP: feed(entry("c", 3), entry("a", 1), entry("b", 2))})
    atom = site.feed()
    before, cursor, _ = await walk(atom)
    site.documents[TOP] = feed(entry("a", 4), entry("d", 4), entry("c", 3), entry("b", 2))
    after, cursor, gaps = await walk(atom, cursor)
    assert (ids(before), ids(after), gaps) == (["a", "b", "c"], ["d", "a"], [])
    assert ids((await walk(atom, cursor))[0]) == []


async def test_each_version_of_an_entry_comes_the_newest_last():
    site = Site({TOP: feed(entry("a", 2, "new"), entry("b", 1), entry("a", 1, "old"), entry("a", 1, "old"))})
    messages, _, _ = await walk(site.feed())
    assert [(message.entry_id, message.title.text) for message in messages] == [("a", "old"), ("b", ""), ("a", "new")]


async def test_when_nothing_that_was_seen_is_there_any_more_some_may_be_missing():
    site = Site({TOP: feed(entry("a", 1), entry("b", 1))})
    _, cursor, _ = await walk(site.feed())
    site.documents[TOP] = feed(entry("y", 9), entry("x", 9))
    messages, _, (gap,) = await walk(site.feed(), cursor)
    assert ids(messages) == ["x", "y"]
    assert "none of the messages that were seen last" in gap


async def test_an_entry_that_cannot_be_read_keeps_nobody_waiting():
    site = Site({TOP: feed(entry("c", 3), "<entry><id>b</id></entry>", entry("a", 1))})
    messages, cursor, _ = await walk(site.feed())
    assert [type(message) is UnreadableMessage or message.error is not None for message in messages] == [False, True, False]
    assert (await walk(site.feed(), cursor))[0] == []


async def test_what_is_known_is_asked_for_by_what_it_is_known_by():
    async def answer(request):
        if request.headers.get("if-none-match") == '"1"':
            return httpx.Response(304, headers={"retry-after": "7"})
        return httpx.Response(200, text=document([], marks=entry("a")), headers={"etag": '"1"', "x-poll-interval": "9"})

    site = Site({TOP: answer})
    atom = site.feed()
    page = await atom.fetch(FetchRequest())
    assert page.retry_after == 9
    assert await atom.fetch(FetchRequest(page.cursor)) == await site.feed().fetch(FetchRequest(page.cursor))
    again = await atom.fetch(FetchRequest(page.cursor))
    assert (list(again.messages), again.cursor, again.next, again.retry_after) == ([], None, None, 7)
    assert ids((await atom.fetch(FetchRequest())).messages) == ["a"]


async def test_it_starts_at_the_end():
    site = Site({TOP: feed(entry("b", 2), entry("a", 1), links={"next": "two"})})
    atom = site.feed()
    cursor = await atom.latest()
    assert site.paths == [TOP]
    site.documents[TOP] = feed(entry("c", 3), entry("b", 2), entry("a", 1))
    assert ids((await walk(atom, cursor))[0]) == ["c"]


@pytest.mark.parametrize("size", [2_000, 200_000])
async def test_a_large_document_is_read_aside(size):
    """In a worker thread, beyond a megabyte."""
    site = Site({TOP: feed(entry("a", 1), f"<subtitle>{'x' * size * 8}</subtitle>")})
    assert ids((await walk(site.feed()))[0]) == ["a"]


async def test_secrets_of_the_url_are_not_in_messages():
    site = Site({TOP: feed(entry("a"), "<entry/>")})
    messages, cursor, _ = await walk(site.feed())
    assert messages[0].base == messages[0].link("self") or messages[0].base == "https://shop.example/orders/"
    assert SECRET not in f"{[message.raw for message in messages]} {messages} {cursor}"


# Pages (RFC 5005 §3)


async def test_pages_are_walked_back_to_what_was_seen():
    site = Site({
        TOP: feed(entry("e", 5), entry("d", 4), links={"next": "/2"}),
        "/2": feed(entry("c", 3), links={"next": "/3", "previous": "/feed"}),
        "/3": feed(entry("b", 2), entry("a", 1)),
    })
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
    site = Site({TOP: feed(entry("a", 1), entry("d", 4), links={"next": "/2"}), "/2": feed(entry("c", 3), entry("b", 2))})
    assert ids((await walk(site.feed()))[0]) == ["a", "b", "c", "d"]


async def test_a_circle_of_pages_is_an_error():
    site = Site({TOP: feed(entry("b", 2), links={"next": "/2"}), "/2": feed(entry("a", 1), links={"next": "/2"})})
    assert "leads from document to document" in await refused(site.feed())


@pytest.mark.parametrize(
    ("href", "why"),
    [
        ("https://other.example/2", "links to another origin, https://other.example/, which credentials must not"),
        ("http://shop.example/2", "links to another origin, http://shop.example/"),
        ("http://[", "links to what is no URL"),
    ],
)
@pytest.mark.parametrize("rel", ["next", "prev-archive"])
async def test_a_link_to_another_origin_is_not_followed(href, why, rel):
    site = Site({TOP: feed(entry("a"), links={rel: href})})
    assert why in await refused(site.feed())
    assert site.paths == [TOP]


async def test_a_trusted_origin_is_asked_without_credentials():
    site = Site({TOP: feed(entry("b", 2), links={"prev-archive": "https://cdn.example/1"}), "/1": feed(entry("a", 1))})
    messages, _, _ = await walk(site.feed(trusted=["https://cdn.example"], headers={"x-key": SECRET}))
    assert ids(messages) == ["a", "b"]
    assert "authorization" not in site.requests[1].headers
    assert "x-key" not in site.requests[1].headers


# Archives (RFC 5005 §4)


def archived():
    return Site({
        TOP: feed(entry("e", 5), links={"prev-archive": "/a/2", "next": "/2"}),
        "/a/2": feed(entry("d", 4), entry("c", 3), links={"prev-archive": "/a/1", "current": URL}, marks="<fh:archive/>"),
        "/a/1": feed(entry("b", 2), entry("a", 1), links={"next-archive": "/a/2"}, marks="<fh:archive/>"),
    })


async def test_archives_are_read_once():
    site = archived()
    atom = site.feed()
    messages, cursor, gaps = await walk(atom)
    assert (ids(messages), gaps) == (["a", "b", "c", "d", "e"], [])
    site.requests.clear()
    site.documents[TOP] = feed(entry("f", 6), entry("e", 5), links={"prev-archive": "/a/2"})
    messages, cursor, _ = await walk(atom, cursor)
    assert (ids(messages), {*site.paths}) == (["f"], {TOP})


async def test_what_went_into_an_archive_unseen_is_found_there():
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


@pytest.mark.parametrize("status", [404, 410])
async def test_an_archive_that_is_missing_is_a_gap_and_nobody_waits_for_it(status):
    site = archived()
    site.documents["/a/1"] = httpx.Response(status)
    messages, cursor, (gap,) = await walk(site.feed())
    assert ids(messages) == ["c", "d", "e"]
    assert gap == (
        f"a document that {WHERE} led to is not there any more ({status}), nor is what came before it"
    )
    site.documents[TOP] = feed(entry("f", 6), links={"prev-archive": "/a/2"})
    messages, _, gaps = await walk(site.feed(), cursor)
    assert (ids(messages), gaps) == (["f"], [])


async def test_an_archive_that_is_not_to_be_had_now_is_waited_for():
    site = archived()
    first, site.documents["/a/1"] = site.documents["/a/1"], httpx.Response(503, headers={"retry-after": "5"})
    atom = site.feed()
    with pytest.raises(FeedError) as error:
        await walk(atom)
    assert error.value.retry_after == 5
    site.documents["/a/1"] = first
    assert ids((await walk(atom))[0]) == ["a", "b", "c", "d", "e"]


async def test_an_archive_is_no_feed_to_begin_with():
    site = archived()
    text = await refused(site.feed(f"https://shop.example/a/2"), FeedRefused)
    assert text == (
        "https://shop.example/a/2 is an archive of a feed, which does not change; give the URL of its newest "
        f"document, {WHERE}"
    )
    alone = Site({"/feed": feed(entry("a"), marks="<fh:archive/>")})
    assert ids((await walk(alone.feed("https://shop.example/feed")))[0]) == ["a"]
    itself = Site({TOP: feed(entry("a"), links={"current": "/feed"}, marks="<fh:archive/>")})
    assert ids((await walk(itself.feed()))[0]) == ["a"]


# All there is (RFC 5005 §2)

ALL = "<fh:complete/>"


async def changes(*documents):
    """What is handed out for each document of a complete feed, by feeds that know nothing but the cursor."""
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


async def test_what_a_complete_feed_has_no_more_is_deleted():
    first, second, third = await changes(
        [entry("b", 2), entry("a", 1), entry("c", 3)], [entry("d", 4), entry("b", 2)], []
    )
    assert (said(first), said(second), said(third)) == (["+a", "+b", "+c"], ["+d", "-c", "-a"], ["-b", "-d"])
    gone = second[1]
    assert (gone.key, gone.updated.day, gone.summary.text) == (
        "deleted:1:c:2024-01-03T00:00:00",
        3,
        "It is no longer in its feed, which is complete.",
    )
