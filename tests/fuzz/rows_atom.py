"""Rows for Atom: documents, entries, dates, encodings, and the record of a complete feed."""

import re
import zlib
from base64 import urlsafe_b64encode
from datetime import datetime
from xml.etree import ElementTree as ET

from push_to_poll_client import AtomFeed, DecodeError, FeedError
from push_to_poll_client.feeds._atom.complete_feed import decode_note, document_from_response, encode_note
from push_to_poll_client.feeds._atom.constructs import Instant
from push_to_poll_client.feeds._atom.parser import as_utf8
from push_to_poll_client.feeds.atom import AtomEntry
from tests.fuzz.answers import URL, answer_of, assert_readable, direct_client, look_at, walk, written
from tests.fuzz.fuzzed import Fuzzed, around, nested, words
from tests.fuzz.fuzzed import text_of as anything
from tests.fuzz.rows_feeds import restored_from

__all__ = ["ROWS"]

MOST = 200


def read_document(data):
    """Read a response with a document, and all fields of its entries."""
    answer = answer_of(data)
    leaf = document_from_response(answer, "", newest=True, max_entries=MOST)
    assert leaf.size <= 4 * len(answer.body)
    assert leaf.older is None or isinstance(leaf.older, str)
    for message in leaf.messages:
        look_at(message)
        if isinstance(message, AtomEntry):
            look_at_entry(message)
    document_from_response(answer, leaf.note, newest=True, max_entries=MOST)


def look_at_entry(entry):
    assert isinstance(entry.updated, datetime)
    assert entry.order
    assert "\0" not in entry.dedupe_key
    for part in ("published", "title", "summary", "content", "links", "authors", "categories", "base", "data"):
        assert_readable(entry, part)
    try:
        _ = entry.data
    except DecodeError:
        return
    again = AtomEntry.from_xml(entry.raw)
    assert (again.id, again.dedupe_key, again.updated, again.deleted) == (
        entry.id,
        entry.dedupe_key,
        entry.updated,
        entry.deleted,
    )
    assert ET.canonicalize(ET.tostring(again.data, "unicode")) == ET.canonicalize(
        ET.tostring(entry.data, "unicode")
    )


def read_entry(data):
    entry = AtomEntry.from_xml(data)
    look_at(entry)
    look_at_entry(entry)


def read_instant(data):
    text = anything(data)
    instant = Instant.read(text)
    again = Instant.read(instant.text)
    assert again.text == instant.text
    assert again.time == instant.time or instant.time.year in {1, 9999}  # UTC may be out of range
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d*[1-9])?Z", instant.text)


def read_encoding(data):
    content_type, _, body = data.partition(b"\n")
    document = as_utf8(body, content_type.decode("latin-1"))
    assert len(document) <= 4 * len(body)


def read_note(data):
    memory = decode_note(anything(data))
    assert decode_note(encode_note(memory, 0)) == memory or not encode_note(memory, 0)


def read_feed(data):
    feed = AtomFeed(URL, client=direct_client(data), max_body=8192)
    for message in walk(feed):
        restored_from(feed, message)


NAMESPACES = b'xmlns="http://www.w3.org/2005/Atom" xmlns:fh="http://purl.org/syndication/history/1.0" xmlns:at="http://purl.org/atompub/tombstones/1.0"'
ENTRY = (
    b"<entry xml:lang='en'><id>urn:1</id><updated>2023-11-14T22:13:20Z</updated><title type='html'>&lt;b></title>"
    b"<link href='a' rel='self'/><author><name>A</name><uri>x</uri></author><category term='t'/>"
    b"<content type='xhtml'><div xmlns='http://www.w3.org/1999/xhtml'>x<br/></div></content></entry>"
)
GONE = (
    b"<at:deleted-entry ref='urn:2' when='2023-11-14T22:13:20.5+01:00'><at:comment>c</at:comment>"
    b"</at:deleted-entry>"
)
FEED = b"<?xml version='1.0'?><feed " + NAMESPACES + b" xml:base='http://h.example/a/'>"
DOCUMENTS = (
    FEED + b"<link rel='next' href='?p=2'/>" + ENTRY + GONE + b"</feed>",
    FEED + b"<fh:complete/>" + ENTRY + b"<entry><id>urn:3</id></entry></feed>",
    FEED + b"<fh:archive/><link rel='prev-archive' href='b'/><link rel='current' href='.'/>" + ENTRY + b"</feed>",
    (
        b"<a:feed xmlns:a='http://www.w3.org/2005/Atom'><a:entry   ><a:id>1</a:id>"
        b"<a:updated>2023-11-14</a:updated>"
        b"</a:entry></a:feed>"
    ),
    (FEED + ENTRY + b"</feed>")
    .decode()
    .replace("?xml version='1.0'", "?xml version='1.0' encoding='utf-16'")
    .encode("utf-16"),
    b"<!DOCTYPE feed [<!ENTITY a 'b'>]>" + FEED + b"&a;</feed>",
)
XML_TOKENS = words(
    r"< > /> </ <entry> </entry> <id> </id> <updated> <link\x20 rel='next'\x20 href='a'\x20 "
    r"""xml:base='b/'\x20 xmlns:p='q'\x20 <!-- --> <![CDATA[ ]]> <? ?> &amp; &#x0; &#10; ' "  """
    r"<!DOCTYPE \x20 \n x \xff \xc3\xbc <fh:complete/> <at:deleted-entry\x20 //[ "
)
ALONE = b"<entry xmlns='http://www.w3.org/2005/Atom'><id>1</id><updated>2023-11-14</updated>"
IN_ENTRY = FEED + b"<entry><id>1</id><updated>2023-11-14</updated>"

ROWS = (
    Fuzzed(
        name="documents of atom",
        modules=tuple(f"feeds._atom.{name}" for name in ("parser", "constructs", "entry", "complete_feed")),
        read=read_document,
        errors=(FeedError,),
        examples=tuple(b"200\ncontent-type: application/atom+xml\n\n" + document for document in DOCUMENTS),
        tokens=XML_TOKENS,
        frame=(b"200\n\n" + IN_ENTRY, b"</entry></feed>"),
        hostile={
            "entries": around(
                b"200\n\n" + FEED, b"<entry><id>1</id><updated>2023-11-14</updated></entry>", b"</feed>"
            ),
            "entries without an id": around(b"200\n\n" + FEED, b"<entry/>", b"</feed>"),
            "elements in elements": nested(b"<x>", b"</x>", b"200\n\n" + IN_ENTRY, b"</entry></feed>"),
            "bases in bases": nested(
                b"<content type='xhtml' xml:base='b/'>", b"</content>", b"200\n\n" + IN_ENTRY, b"</entry></feed>"
            ),
            "spaces in a tag": around(b"200\n\n" + FEED + b"<entry", b" ", b"><id>1</id></entry></feed>"),
            "spaces in an empty tag": around(b"200\n\n" + FEED + b"<entry", b" ", b"/></feed>"),
            "attributes": lambda n: (
                b"200\n\n" + FEED + b"<entry" + b"".join(b" a%d='b'" % i for i in range(n)) + b"/></feed>"
            ),
            "namespaces": lambda n: (
                b"200\n\n"
                + FEED[:-1]
                + b"".join(b" xmlns:a%d='b'" % i for i in range(n))
                + b">"
                + b"<entry/>" * n
                + b"</feed>"
            ),
            "a base and links": lambda n: (
                b"200\n\n" + FEED[:-2] + b"b" * n + b"'>" + b"<link rel='next' href='x'/>" * n + b"</feed>"
            ),
            "a base and entries": lambda n: (
                b"200\n\n" + FEED[:-2] + b"b" * n + b"'>" + b"<entry/>" * n + b"</feed>"
            ),
            "comments": around(b"200\n\n" + FEED, b"<!-- -->", b"</feed>"),
            "texts of an id": around(
                b"200\n\n" + FEED + b"<entry><id>",
                b"a<!-- -->",
                b"</id><updated>2023-11-14</updated></entry></feed>",
            ),
            "a root": around(b"200\n\n<", b"x", b"/>"),
            "a charset": around(b"200\ncontent-type: a", b"; charset", b"\n\n<feed/>"),
            "a type": around(b"200\ncontent-type: a;", b" ", b"\n\n<feed/>"),
            "references": around(b"200\n\n" + IN_ENTRY + b"<title>", b"&amp;", b"</title></entry></feed>"),
        },
    ),
    Fuzzed(
        name="entries of atom",
        modules=("feeds._atom.entry", "feeds._atom.parser", "feeds._atom.constructs"),
        read=read_entry,
        errors=(DecodeError,),
        examples=(
            ENTRY.replace(b"<entry", b"<entry " + NAMESPACES),
            GONE.replace(b"<at:deleted-entry", b"<at:deleted-entry " + NAMESPACES),
            ALONE.replace(b"'>", b"' xml:base='//['>", 1) + b"<content src='//[' type='a/xml'/></entry>",
        ),
        tokens=XML_TOKENS,
        frame=(
            ALONE + b"<title type='xhtml'>",
            b"</title></entry>",
        ),
        hostile={
            "titles": around(
                ALONE,
                b"<title/>",
                b"</entry>",
            ),
            "authors": around(
                ALONE,
                b"<author/>",
                b"</entry>",
            ),
            "links": around(
                ALONE,
                b"<link href=''/>",
                b"</entry>",
            ),
            "a base and links": lambda n: (
                b"<entry xmlns='http://www.w3.org/2005/Atom' xml:base='http://h/"
                + b"b" * 40 * n
                + b"'><id>1</id><updated>2023-11-14</updated>"
                + b"<link href='x'/>" * n
                + b"</entry>"
            ),
            "xml in xml": nested(
                b"<x xmlns:a='b'>",
                b"</x>",
                ALONE + b"<content type='a/xml'>",
                b"</content></entry>",
            ),
        },
    ),
    Fuzzed(
        name="dates of atom",
        modules=("feeds._atom.constructs",),
        read=read_instant,
        errors=(ValueError,),
        examples=(
            b"2003-12-13T18:30:02.25+01:00",
            b"2003-12-13T18:30:60Z",
            b" 2003-12-13 ",
            b"0001-01-01T00:00:00+14:00",
            b"9999-12-31T23:59:59-14:00",
            b"Sat, 13 Dec 2003 18:30:02 GMT",
        ),
        tokens=words(r"2003 0001 9999 - T : 12 13 60 . Z + 0 9 \x20 Sat,\x20 GMT"),
        frame=(b"2003-12-13T18:30:02.", b"Z"),
    ),
    Fuzzed(
        name="encodings of atom",
        modules=("feeds._atom.parser",),
        read=read_encoding,
        errors=(ValueError,),
        examples=(
            b"application/xml; charset=iso-8859-1\n<feed>\xfc</feed>",
            b'text/xml; charset="utf-16le"\n<\0',
            b"\n<?xml version='1.0' encoding='shift_jis'?><feed/>",
            b"\n\xef\xbb\xbf<feed/>",
            b"\n\0<\0f",
        ),
        tokens=words(
            r";\x20charset= utf-7 idna zlib_codec hz iso2022_jp cp1252 \n <?xml\x20 encoding= ' "
            r"\xff\xfe \xfe\xff \x00 + \x1b ~{ utf_32 "
        ),
        frame=(b"text/xml; charset=utf-7\n", b""),
        hostile={
            f"text in {name}": around(b"text/xml; charset=" + name.encode() + b"\n", text)
            for name, text in (
                ("utf-7", b"+AGE-"),
                ("hz", b"~{"),
                ("iso2022_jp", b"\x1b$B"),
                ("utf-16", b"a\0"),
                ("big5", b"\xa4\xa4"),
            )
        },
    ),
    Fuzzed(
        name="notes of a complete feed",
        modules=("feeds._atom.complete_feed",),
        read=read_note,
        examples=(
            encode_note(
                decode_note(
                    urlsafe_b64encode(
                        zlib.compress(
                            b'[["urn:1",["2023-11-14T22:13:20",0,false]],["urn:2",["2023-11-14T22:13:20",3,true]]]'
                        )
                    ).decode()
                ),
                0,
            ).encode(),
            b"",
        ),
        tokens=words(r"eJ A _ - = \xff \n"),
        hostile={"zeros": lambda n: urlsafe_b64encode(zlib.compress(b"[" * n))},
    ),
    Fuzzed(
        name="atom feeds",
        modules=("feeds.atom", "feeds._atom.complete_feed", "feeds._newest_first", "_http.client"),
        read=read_feed,
        examples=(
            written(
                b"200\n\n" + DOCUMENTS[0],
                b'200\netag: "1"\n\n' + DOCUMENTS[0].replace(b"urn:1", b"urn:9").replace(b"?p=2", b"?p=3"),
                b"304\n",
            ),
            written(
                b"200\ncache-control: max-age=9\n\n" + DOCUMENTS[1],
                b"200\n\n" + DOCUMENTS[1].replace(b"urn:1", b"urn:7"),
            ),
            written(b"200\n\n" + DOCUMENTS[2], b"404\n"),
            b"429\nretry-after: 4\n",
        ),
        tokens=(
            *words(r"200\n 304\n 404\n \n\n \n=====\n"),
            *XML_TOKENS,
        ),
        frame=(b"200\n\n" + FEED, b"</feed>"),
    ),
)
