"""Arbitrary documents: only declared errors, no lost entry, and work in proportion to the size.

And arbitrary changes between two polls: a consumer ends with the state of the server.
"""

import sys
from xml.etree.ElementTree import Element, SubElement, tostring

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push_to_poll_client import AtomEntry, AtomFeed, DeadLetter, DecodeError, FetchRequest
from push_to_poll_client.feeds._atom.constructs import Instant
from push_to_poll_client.feeds._atom.entry import messages_of, parse
from push_to_poll_client.feeds._atom.parser import as_utf8, read_document
from tests.support.forms import form
from tests.vendors.atom import FORMS, Atom, document

ATOM = "{http://www.w3.org/2005/Atom}"
URL = "https://shop.example/feed"
MARKUP = """
    <entry> </entry> <entry/> <id>a</id> <id> </id> <updated>2024-01-01</updated> <content> </content> <div> </div>
    <fh:complete/> <![CDATA[ ]]> <!-- --> <?a ?> &lt; &#0; &a; < > ' " \xfc \0 <!DOCTYPE x:
"""
WORDS = MARKUP.encode().split()
WORDS += [
    b"<link rel='next' href='b'/>",
    b"<link href='http://['/>",
    b" xml:base='http://['",
    b"<at:deleted-entry ref='a' when='2024-01-01'/>",
    b"<content type='xhtml'>",
    b"<content src='a'/>",
    b"<div xmlns='http://www.w3.org/1999/xhtml'>",
    b" xmlns=''",
    b"\xff",
    b"\xc3",
    b" ",
]


def fits_a_log(error):
    assert str(error).isprintable()
    assert len(str(error)) < 500


def looked_at(message):
    """Read everything that a handler may read."""
    try:
        _ = (message.data, message.title, message.summary, message.content, message.links, message.link())
        _ = (message.authors, message.categories, message.base, message.published)
    except DecodeError:
        pass
    letter = DeadLetter(dedupe_key=message.dedupe_key, id=message.id, raw=message.raw, error="")
    again = AtomFeed(URL).restore(letter)
    assert (again.id, again.dedupe_key, again.raw) == (message.id, message.dedupe_key, message.raw)
    assert message.error is None or again.error is not None


def read(body, content_type="", most=1_000):
    """Return the messages of a document, with all parts read; None if it is invalid."""
    try:
        found = read_document(body, content_type, URL, max_entries=most).entries
    except ValueError as error:
        fits_a_log(error)
        return None
    messages = messages_of(found)
    assert len(messages) == len(found)
    for message in messages:
        looked_at(message)
    return messages


@given(st.lists(st.sampled_from(WORDS) | st.binary(max_size=4), max_size=12).map(b"".join))
def test_words_of_atom_in_a_feed_are_read_or_refused(inner):
    read(document([], marks="@").encode().replace(b"@", inner))


@given(st.data())
def test_a_document_with_a_random_change_is_read_or_refused(data):
    whole = document([{"id": "urn:1", "updated": "2024-01-01T00:00:00Z", "number": n} for n in range(2)]).encode()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(start + 20, len(whole))))
    read(whole[:start] + data.draw(st.sampled_from(WORDS) | st.binary(max_size=3)) + whole[end:])


@given(st.binary(max_size=60), st.text(max_size=40).map("text/xml; charset={}".format) | st.text(max_size=20))
def test_any_bytes_in_any_encoding_are_read_or_refused(body, content_type):
    read(body, content_type)
    try:
        as_utf8(b"<?xml version='1.0' encoding='%b'?>" % body, content_type)
    except ValueError as error:
        fits_a_log(error)


@given(st.binary(max_size=80) | st.lists(st.sampled_from(WORDS), max_size=8).map(b"".join))
def test_from_xml_reads_any_bytes_as_an_entry_or_raises_undecodable_message(raw):
    try:
        looked_at(AtomEntry.from_xml(raw))
    except DecodeError as error:
        fits_a_log(error)


@given(
    st.text(max_size=40)
    | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", fullmatch=True)
)
def test_any_text_is_read_as_an_instant_or_refused(text):
    try:
        instant = Instant.read(text)
    except ValueError:
        return
    assert Instant.read(instant.text).text == instant.text
    assert instant.time.tzinfo is not None


# Nothing is lost

LEGAL = st.characters(exclude_categories=["Cs", "Cc", "Cn"], include_characters="\n")
TEXT = st.text(LEGAL, max_size=12)
NAME = st.text(LEGAL, min_size=1, max_size=12).filter(str.strip)
URIS = st.sampled_from(["a", "../b?c=d&e", "https://x.example/", "", "urn:x"])


@st.composite
def entries(draw):
    entry = Element(f"{ATOM}entry")
    SubElement(entry, f"{ATOM}id").text = draw(NAME)
    SubElement(entry, f"{ATOM}updated").text = draw(st.datetimes()).isoformat() + "Z"
    for name in draw(st.lists(st.sampled_from(["title", "summary", "rights", "{urn:x}a"]), max_size=3)):
        child = SubElement(
            entry, name if "{" in name else ATOM + name, {"type": draw(st.sampled_from(["text", "html"]))}
        )
        child.text, child.tail = draw(TEXT), draw(TEXT)
        SubElement(child, "{urn:y}b", {"{urn:x}c": draw(TEXT)})
    SubElement(entry, f"{ATOM}link", {"href": draw(URIS)})
    if draw(st.booleans()):
        entry.set("{http://www.w3.org/XML/1998/namespace}base", draw(URIS))
    return entry


def shape(element):
    """Return the content of an element, without bases: they are absolute in a standalone entry."""
    attributes = {name: value for name, value in element.attrib.items() if not name.endswith("}base")}
    return element.tag, attributes, element.text or "", [(shape(child), child.tail or "") for child in element]


@given(st.lists(entries(), max_size=4), st.sampled_from(["utf-8", "utf-16", "iso-8859-1", "us-ascii"]), URIS)
def test_every_entry_is_found_as_it_was_written(written, encoding, base):
    feed = Element(f"{ATOM}feed", {"{http://www.w3.org/XML/1998/namespace}base": base})
    feed.extend(written)
    found = read_document(tostring(feed, encoding, xml_declaration=True), "", URL, max_entries=9).entries
    assert [one.name for one in found] == [entry.findtext(f"{ATOM}id").strip() for entry in written]
    assert [shape(parse(one.standalone)) for one in found] == [shape(parse(tostring(entry))) for entry in written]
    assert [message.error for message in messages_of(found)] == [None] * len(written)


# Changes between two polls

DEEDS = st.lists(
    st.tuples(st.sampled_from(["publish", "change", "delete", "late"]), st.integers(0, 9)) | st.none(), max_size=25
)


def happens(vendor, deed, place):
    """Let a publisher do one thing."""
    there = [index for index, entry in enumerate(vendor.entries) if not entry.get("deleted")]
    if deed == "publish" or not there:
        vendor.publish()
    elif deed == "late":
        vendor.publish_late()
    else:
        getattr(vendor, deed)(there[place % len(there)])


def there(vendor):
    """Return the server's state: the newest version of each entry by id."""
    state = {}
    for entry in vendor.entries:
        state[entry["id"]] = None if entry.get("deleted") else entry["number"]
    return {name: number for name, number in state.items() if number is not None}


async def follow(vendor, deeds):
    """Poll after the changes, and apply each message."""
    client, cursor, known, keys = vendor.client(), None, {}, []
    for deed in [*deeds, None]:
        if deed is not None:
            happens(vendor, *deed)
            # Pages below the first are not read again. A late entry must be found before it moves there.
            if vendor.form != "paged" or deed[0] != "late":
                continue
        feed, at = AtomFeed(vendor.url, client=client, headers=vendor.headers), cursor
        while True:
            page = await feed.fetch(FetchRequest(at))
            for message in page.messages:
                keys.append(message.dedupe_key)
                known[message.entry_id] = (
                    None if message.deleted else int(message.title.text.removeprefix("Order "))
                )
            cursor, at = page.cursor or cursor, page.next_page
            if at is None:
                break
    return {name: number for name, number in known.items() if number is not None}, keys


@pytest.mark.parametrize("form", FORMS)
@given(deeds=DEEDS)
@settings(max_examples=form(20, 60))
def test_a_consumer_ends_with_the_state_of_the_server_after_any_changes(form, deeds):
    vendor = Atom(form=form, page_size=3)
    known, keys = anyio.run(follow, vendor, deeds)
    assert known == there(vendor)
    assert len(keys) == len(set(keys))


# Work in proportion to the size

HOSTILE = {
    "entries": lambda n: b"<entry/>" * n,
    "entries with a long tag": lambda n: b"<entry a='" + b"x" * n + b"'/>",
    "entries in one": lambda n: b"<entry>" + b"<entry/>" * n + b"</entry>",
    "ids": lambda n: b"<entry>" + b"<id>a</id>" * n + b"</entry>",
    "pieces of an id": lambda n: b"<entry><id>" + b"a&lt;" * n + b"</id></entry>",
    "attributes": lambda n: b"<entry %b/>" % b" ".join(b"a%d=''" % i for i in range(n)),
    "namespaces": lambda n: b"<entry %b/>" % b" ".join(b"xmlns:a%d='b'" % i for i in range(n)),
    "quotes": lambda n: b"<entry a='>' b=\"" + b"'>" * n + b'"></entry>',
    "comments": lambda n: b"<!-- -->" * n,
    "sections": lambda n: b"<entry><![CDATA[" + b"]" * n + b"]]></entry>",
    "authors": lambda n: b"<author/>" * n + b"<entry/>" * n,
    "links": lambda n: b"<link rel='next' href='a'/>" * n,
    "space": lambda n: b" \n" * n,
    "elements": lambda n: b"<entry><id>a</id><updated>2024-01-01</updated>" + b"<a/>" * n + b"</entry>",
}


def work(body):
    """Count the calls of functions, Python's and C's, while a document is read."""
    calls = 0

    def count(_frame, event, _arg):
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        read(body, most=10**6)
    finally:
        sys.setprofile(before)
    return calls


SIZE = form(150, 1_000)
"""Number of repetitions at first."""


@pytest.mark.parametrize("family", HOSTILE)
def test_reading_twice_the_bytes_takes_at_most_about_twice_the_work(family):
    def body(n):
        return document([], marks="@").encode().replace(b"@", HOSTILE[family](n))

    less, more = work(body(SIZE)), work(body(2 * SIZE))
    assert less - 100 <= more <= 2.1 * less + 100
