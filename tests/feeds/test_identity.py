"""Identity of a feed in the store: it survives harmless changes, and changes with the feed."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push_to_poll_client import (
    AtomFeed,
    Consumer,
    HTTPFeed,
    MemoryStore,
    PagedFeed,
    SQLiteStore,
    StoreMismatch,
)
from push_to_poll_client._http.origins import identity
from push_to_poll_client._validation import MAX_IDENTITY
from push_to_poll_client.durable_streams import DurableStreamFeed
from push_to_poll_client.feeds.paged import Entries, OldestFirst, from_last, to_query
from push_to_poll_client.testing import FakeFeed
from tests.support.identities import cheap_identities

URL = "https://shop.example/orders"


def paged(url, **options):
    pages = OldestFirst(cursor=from_last("id"), send=to_query("after"))
    return PagedFeed(url, entries=Entries(id="id"), pages=pages, **options)


FEEDS = {
    "HTTPFeed": HTTPFeed,
    "PagedFeed": paged,
    "AtomFeed": AtomFeed,
    "DurableStreamFeed": DurableStreamFeed,
    "FakeFeed": lambda _, **options: FakeFeed(**options),
}
every_feed = pytest.mark.parametrize("make", FEEDS.values(), ids=FEEDS)
every_feed_with_url = pytest.mark.parametrize(
    "make", [make for name, make in FEEDS.items() if name != "FakeFeed"], ids=lambda make: make.__name__
)


@every_feed
def test_every_feed_has_the_identity_that_it_is_given(make):
    feed = make(f"{URL}?topic=a&limit=7", identity="orders of the shop")
    assert feed.identity == "orders of the shop"
    assert Consumer(feed, store=MemoryStore(), process=print).name == "orders of the shop"
    assert not getattr(feed, "former_identity", None)
    assert make(URL, identity="x" * MAX_IDENTITY).identity == "x" * MAX_IDENTITY


def test_an_identity_that_is_given_replaces_the_framing_of_a_stream_too():
    assert DurableStreamFeed(URL, messages="lines", identity="log").identity == "log"
    assert DurableStreamFeed(URL, messages="lines").identity == f"{URL} as lines"


@every_feed
@pytest.mark.parametrize(
    ("wrong", "error"),
    [("", ValueError), ("x" * (MAX_IDENTITY + 1), ValueError), (7, TypeError), (b"a", TypeError)],
)
def test_an_identity_must_be_a_text_that_is_not_empty_and_not_too_long(make, wrong, error):
    with pytest.raises(error, match=r"identity must be a str of 1 to 1,000 characters, got ") as raised:
        make(URL, identity=wrong)
    assert len(str(raised.value)) < 200


SAME = [
    ("?per_page=2", "?per_page=5"),
    ("?per_page=2", ""),
    ("?perPage=2", "?pageSize=100&"),
    ("?limit=50", "?page_size=500"),
    ("?$top=10", "?%24top=999"),
    ("?maxResults=10", "?max-results=10&max_results=4"),
    ("?page%5Bsize%5D=10", "?page[size]=30"),
    ("?topic=a&limit=10", "?limit=20&topic=a"),
    ("?b=1&a=2&b=0", "?a=2&b=1&b=0"),
    ("?topic=a#top", "?topic=a"),
]
DIFFERENT = [
    ("?topic=a", "?topic=b"),
    ("?topic=a", ""),
    ("?topic=a&limit=10", "?topic=b&limit=10"),
    ("?b=1&b=0", "?b=0&b=1"),
    ("?limit=europe", "?limit=asia"),  # another kind of limit
    ("?limit=", "?limit"),
    ("?limit=١٢", ""),
    ("?count=1", "?count=2"),  # a flag on some servers
    ("?size=42", "?size=43"),  # of shoes
    ("?topic=a;limit=5", "?topic=a;limit=6"),  # most servers read this as one value
    ("/archive", ""),
    ("/Archive", "/archive"),
    ("/", ""),
]


@every_feed_with_url
@pytest.mark.parametrize(("one", "other"), SAME)
def test_a_feed_is_the_same_with_another_page_size(make, one, other):
    assert make(URL + one).identity == make(URL + other).identity


@every_feed_with_url
@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_feeds_that_differ_in_anything_else_have_different_identities(make, one, other):
    assert make(URL + one).identity != make(URL + other).identity


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://shop.example", "https://shop.example/"),
        ("HTTPS://Shop.Example:443/a", "https://shop.example/a"),
        ("http://shop.example:80/a", "http://shop.example/a"),
        ("https://me:secret@shop.example/a", "https://shop.example/a"),
    ],
)
def test_ways_to_write_one_address_make_one_identity(one, other):
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://shop.example/a", "https://shop.example/a"),
        ("http://shop.example:443/a", "http://shop.example/a"),
        ("https://shop.example:80/a", "https://shop.example/a"),
        ("https://shop.example:8443/a", "https://shop.example/a"),
        ("https://[::1]:443/a", "https://[::443]/a"),
    ],
)
def test_other_addresses_make_other_identities(one, other):
    assert identity(one) != identity(other)


PARAMETERS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "topic", "since"]), st.text("ab1;", max_size=3)), max_size=4
)


@given(PARAMETERS, PARAMETERS, st.sampled_from(["limit=10", "per_page=2", "$top=5"]))
def test_the_identities_of_two_queries_are_equal_only_if_each_parameter_has_the_same_values(one, other, size):
    def url(parameters):
        return f"{URL}?" + "&".join([*(f"{name}={value}" for name, value in parameters), size])

    def values(parameters):
        return {name: [value for n, value in parameters if n == name] for name, _ in parameters}

    with cheap_identities():
        assert (identity(url(one)) == identity(url(other))) is (values(one) == values(other))


@every_feed_with_url
def test_the_identities_of_earlier_versions_are_known_where_they_were_others(make):
    assert make(URL).former_identity == ()
    assert make(f"{URL}?topic=a").former_identity == (f"{URL}?topic=…#6f6a77c3",)
    assert make(f"{URL}?topic=a&limit=10").former_identity == (
        f"{URL}?topic=…#6f6a77c3",
        f"{URL}?topic=…&limit=…#cd8e017e",
    )


def test_the_identities_of_earlier_versions_have_the_framing_of_a_stream():
    stream = DurableStreamFeed(f"{URL}?limit=10", messages="lines")
    assert (stream.identity, stream.former_identity) == (f"{URL} as lines", (f"{URL}?limit=…#9c21d9e6 as lines",))


def bot(token, size=10):
    return paged(f"https://api.example/bot{{token}}/updates?limit={size}", url_secrets={"token": token})


def test_a_secret_of_the_url_is_part_of_the_identity_and_the_page_size_beside_it_is_not():
    """Another token belongs to another account, with other cursors."""
    assert bot("s3cret", 10).identity == bot("s3cret", 100).identity
    assert bot("s3cret", 10).identity != bot("another", 10).identity
    assert bot("s3cret", 10).identity == "https://api.example/bot{token}/updates#76df46"
    former = bot("s3cret", 10).former_identity
    assert former == (
        "https://api.example/bot{token}/updates#28968d8f",
        "https://api.example/bot{token}/updates?limit=…#7069d896",
    )
    assert len(paged("https://api.example/bot{token}/u", url_secrets={"token": "s"}).former_identity) == 1


def test_the_digest_of_a_secret_takes_long_and_is_short_and_differs_from_feed_to_feed(monkeypatch):
    """An attacker who sees an identity can guess secrets; each guess costs as much as one digest here."""
    costs = []

    def scrypt(password, *, salt, n, r, p, dklen):
        costs.append((n * r * 128, p))
        return hashlib.sha256(salt + password).digest()[:dklen]

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    digests = {
        feed.identity.partition("#")[2]
        for feed in (
            bot("0000-of-one"),
            paged("https://api.example/v2/{token}", url_secrets={"token": "0000-of-one"}),
        )
    }
    assert len(digests) == 2, "a table made for one feed is of no use for another"
    assert {len(digest) for digest in digests} == {6}
    assert costs == [(16 * 1024 * 1024, 1)] * 2


def test_a_python_without_scrypt_asks_for_an_identity(monkeypatch):
    def scrypt(*_, **__):
        raise ValueError("[digital envelope routines] unsupported")

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    assert paged(URL).identity == URL
    with pytest.raises(ValueError, match="pass identity=") as failed:
        _ = bot("never-seen-before").identity
    assert "never-seen-before" not in str(failed.value)


@pytest.mark.anyio
async def test_a_state_file_of_the_version_before_goes_on_for_the_same_secret_alone(tmp_path):
    (former, _) = bot("s3cret").former_identity
    async with Consumer(FakeFeed(identity=former), store=SQLiteStore(tmp_path / "a.db"), name="a", process=print):
        pass
    with pytest.raises(StoreMismatch):
        async with Consumer(bot("another"), store=SQLiteStore(tmp_path / "a.db"), name="a", process=print):
            pass
    async with Consumer(bot("s3cret"), store=SQLiteStore(tmp_path / "a.db"), name="a", process=print):
        pass
