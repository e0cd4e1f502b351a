"""Reading of Atom documents, valid and invalid. Errors show the value seen, and no secret."""

import codecs

import pytest

from push_to_poll_client.feeds._atom import entry as entry_module
from push_to_poll_client.feeds._atom.constructs import Instant
from push_to_poll_client.feeds._atom.entry import messages_of
from push_to_poll_client.feeds._atom.parser import (
    MAX_DOCUMENT_DEPTH,
    MAX_SCOPE,
    MAX_TAG,
    MAX_URL,
    as_utf8,
    read_document,
    resolve_reference,
)
from tests.support.forms import form
from tests.vendors.atom import document, written

ATOM = "http://www.w3.org/2005/Atom"
FH = "http://purl.org/syndication/history/1.0"
ENTRY = {"id": "urn:1", "updated": "2024-01-01T00:00:00Z", "number": 1}
SECRET = "s3cr3t-c4n4ry"


def read(text, content_type="", *, url="https://shop.example/orders", most=100):
    body = text if isinstance(text, bytes) else text.encode()
    return read_document(body, content_type, url, max_entries=most)


def refused(text, content_type="", **options):
    with pytest.raises(ValueError) as error:
        read(text, content_type, **options)
    return str(error.value)


def names(read):
    return [found.name for found in read.entries]


# Links and marks


def test_entries_are_read_in_document_order():
    two = [ENTRY, ENTRY | {"id": "urn:2"}]
    read_ = read(document(two))
    assert names(read_) == ["urn:1", "urn:2"]
    assert [found.markup.decode() for found in read_.entries] == [written(entry) for entry in two]


def test_a_feed_without_entries_has_an_empty_entry_list():
    assert read(document([])).entries == []


@pytest.mark.parametrize(
    ("base", "href", "target"),
    [
        ("", "two", "https://shop.example/two"),
        ("", "/two?a=b", "https://shop.example/two?a=b"),
        ("", "?page=2", "https://shop.example/orders?page=2"),
        ("", "https://cdn.example/two", "https://cdn.example/two"),
        ("/archive/", "two", "https://shop.example/archive/two"),
        ("https://cdn.example/a/b", " two ", "https://cdn.example/a/two"),
        ("", "http://[", "http://["),
    ],
)
def test_next_links_are_resolved_to_absolute_urls(base, href, target):
    root = f'<feed xmlns="{ATOM}" xml:base="{base}">'
    assert read(document([], {"next": href}, root=root)).links == {"next": target}


def test_a_link_may_have_its_own_base():
    link = '<link rel="prev-archive" xml:base="/archive/" href="1"/>'
    assert read(document([], marks=link)).links == {"prev-archive": "https://shop.example/archive/1"}


@pytest.mark.parametrize("rel", ["next", " NEXT", "http://www.iana.org/assignments/relation/next"])
def test_a_link_relation_is_read_in_any_spelling(rel):
    assert read(document([], {rel: "two"})).links == {"next": "https://shop.example/orders/two"}


def test_the_first_of_two_next_links_is_used_and_other_links_are_ignored():
    links = '<link rel="next" href="2"/><link rel="next" href="3"/><link href="4"/><link rel="next"/>'
    other = '<x:link xmlns:x="urn:x" rel="current" href="5"/>'
    assert read(document([], marks=links + other)).links == {"next": "https://shop.example/orders/2"}


@pytest.mark.parametrize("mark", ["complete", "archive"])
def test_complete_and_archive_elements_set_the_kind_of_document(mark):
    marked, plain = read(document([], marks=f"<fh:{mark}/>")), read(document([]))
    assert (marked.complete, marked.archive) == (mark == "complete", mark == "archive")
    assert (plain.complete, plain.archive) == (False, False)


@pytest.mark.parametrize("mark", ["<fh:other/>", "<complete/>", "<entry><fh:complete/></entry>"])
def test_complete_and_archive_elements_count_only_in_the_feed_and_its_namespace(mark):
    found = read(document([], marks=mark))
    assert (found.complete, found.archive) == (False, False)


def test_an_entry_may_be_an_empty_element():
    found = read(document([], marks='<entry a=">/>"/><entry a="/>"></entry ><entry/>')).entries
    assert [one.markup for one in found] == [b'<entry a=">/>"/>', b'<entry a="/>"></entry >', b"<entry/>"]


def test_the_first_id_and_updated_directly_in_an_entry_are_used():
    inner = f"<source><id>urn:other</id></source><id> urn:<!-- a -->1\n</id><id>urn:2</id>{written(ENTRY)}"
    found = read(document([], marks=f"<entry>{inner}<updated>2024</updated></entry>")).entries
    assert (found[0].name, found[0].when) == ("urn:1", "2024")


def test_an_id_is_unescaped_from_entities_and_cdata():
    found = read(document([], marks="<entry><id>a&amp;<![CDATA[b&]]>&#x63;<b>d</b></id></entry>"))
    assert names(found) == ["a&b&cd"]


def test_a_deleted_entry_is_read_from_its_ref_and_when_attributes():
    found = read(document([], marks='<at:deleted-entry ref=" urn:1" when="2024"><id>x</id></at:deleted-entry>'))
    assert [(one.name, one.when, one.deleted) for one in found.entries] == [("urn:1", "2024", True)]


def test_a_feed_may_use_any_namespace_prefix():
    text = f'<a:feed xmlns:a="{ATOM}" xmlns:b="{FH}"><b:archive/><a:entry><a:id>urn:1</a:id></a:entry></a:feed>'
    assert (names(read(text)), read(text).archive) == (["urn:1"], True)


def test_elements_and_comments_beside_entries_are_not_read_as_entries():
    author = "<author><name>A</name><id>urn:2</id></author>"
    text = f"<?xml version='1.0'?>\n<!-- a --><?b c?>{document([ENTRY], marks=author)}\n<!-- d -->\n"
    assert names(read(text)) == ["urn:1"]


# Invalid documents


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<rss version='2.0'><channel/></rss>", "is RSS, which does not mark"),
        ('<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>', "is RSS 1.0"),
        ('<feed xmlns="http://purl.org/atom/ns#"/>', "is Atom 0.3"),
        (f'<entry xmlns="{ATOM}"/>', "is a single entry"),
        ("<feed/>", "not in the Atom namespace"),
        ("<html><body>", "is an HTML page"),
        ("\n<!DOCTYPE html><html>", "is an HTML page"),
        ("<!doctype html><html>", "is an HTML page"),
        ('<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0//EN" "x">', "is an HTML page"),
        ('<!--x--><html xmlns="http://www.w3.org/1999/xhtml">', "is an HTML page"),
        ('<opml version="2.0"/>', "its root is 'opml'"),
        ('<x:a\u00fc xmlns:x="urn:x"/>', "its root is 'a\\xfc'"),
        (
            '{"error": "none"}',
            "(invalid token) at line 1, column 0 (17 bytes that begin with '{')",
        ),
        ("no feed", "(7 bytes that begin with 'n')"),
        ("\0\0\0", "is not well-formed XML"),
    ],
)
def test_a_document_that_is_not_an_atom_feed_is_refused_with_its_kind(text, why):
    assert why in refused(text)


@pytest.mark.parametrize("cut", [1, 20, 200, 250, 300, 410])
def test_a_truncated_document_is_reported_as_ending_in_the_middle(cut):
    whole = document([ENTRY, ENTRY])
    assert cut < len(whole)
    assert "is not well-formed XML: it is cut off at line 1" in refused(whole[:cut])


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("<entry><id>a</id>&nbsp;", "undefined entity"),
        ("<entry><id>a</title>", "mismatched tag"),
        ("<entry><id>a</id></entry><a", "not well-formed (invalid token)"),
        ("<x:y/>", "unbound prefix"),
        ("<a b='' b=''/>", "duplicate attribute"),
        ("\1", "not well-formed (invalid token)"),
    ],
)
def test_a_syntax_error_is_reported_with_its_position_and_without_document_text(broken, what):
    text = refused(document([ENTRY]).replace("</feed>", f"\n{broken} {SECRET}</feed>"))
    place = "in entry 2" if broken.startswith("<entry") and "</entry>" not in broken else "after "
    assert text.startswith(f"is not well-formed XML: {what} at line 2, column ")
    assert f", {place}" in text
    assert SECRET not in text


def test_content_after_the_root_element_is_refused():
    assert "junk after document element" in refused(document([]) + "<feed/>")


# Attacks

LAUGHS = '<!DOCTYPE feed [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE feed [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("doctype", [LAUGHS, OUTSIDE, "<!DOCTYPE feed>", '<!DOCTYPE feed SYSTEM "https://x/">'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-32", "latin-1", "utf-8-sig"])
def test_a_doctype_is_refused_in_any_encoding(doctype, encoding):
    declared = "" if encoding.startswith("utf") else f'<?xml version="1.0" encoding="{encoding}"?>'
    text = (declared + doctype + document([]).replace("Orders", "&a;")).encode(encoding)
    assert "declares a doctype 'feed', which is refused" in refused(text)


def test_elements_nested_too_deep_are_refused():
    deep = "<a>" * MAX_DOCUMENT_DEPTH + "</a>" * MAX_DOCUMENT_DEPTH
    text = refused(document([], marks=f"<entry>{deep}</entry>"))
    assert f"has elements nested deeper than {MAX_DOCUMENT_DEPTH} levels, in entry 1" in text
    assert names(read(document([], marks=f"<entry>{deep[12:-16]}<id>urn:1</id></entry>"))) == ["urn:1"]


def test_a_document_with_too_many_entries_is_refused():
    assert "has more than 3 entries; raise max_body=" in refused(document([ENTRY] * 4), most=3)
    assert len(read(document([ENTRY] * 3), most=3).entries) == 3


def test_a_tag_or_comment_that_is_too_long_is_refused():
    enough = f'<entry a="{"x" * (MAX_TAG // 2)}"/>'
    assert len(read(document([], marks=enough)).entries) == 1
    for tag in (f'<a b="{"x" * 2 * MAX_TAG}"/>', f"<!--{'x' * 2 * MAX_TAG}-->", f"<{'x' * 2 * MAX_TAG}/>"):
        assert f"has a tag or a comment of more than {MAX_TAG} bytes" in refused(document([], marks=tag))


@pytest.mark.parametrize("text", ["x" * 4 * MAX_TAG, f"<![CDATA[{'x' * 4 * MAX_TAG}]]>", "\n" * 4 * MAX_TAG])
def test_a_long_text_is_read(text):
    assert names(read(document([], marks=f"<entry><content>{text}</content><id>urn:1</id></entry>"))) == ["urn:1"]


@pytest.mark.parametrize("attribute", ["xmlns:x", "xml:base", "xml:lang"])
def test_namespaces_base_and_language_that_are_too_long_are_refused(attribute):
    root = f'<feed xmlns="{ATOM}" {attribute}="urn:{"x" * MAX_SCOPE}">'
    said = f"has more than {MAX_SCOPE} characters of namespaces, xml:base and xml:lang at its root"
    assert said in refused(document([], root=root))


def test_a_relative_url_that_is_too_long_is_not_resolved():
    assert resolve_reference("https://a.example/b", "c" * MAX_URL) == "c" * MAX_URL
    assert resolve_reference("https://a.example/" + "b" * MAX_URL, "c") == "c"


def test_a_document_with_too_many_unreadable_entries_is_refused(monkeypatch):
    most = form(300, entry_module.MAX_UNREADABLE)
    monkeypatch.setattr(entry_module, "MAX_UNREADABLE", most)
    found = read(document([], marks="<entry/>" * (most + 1)), most=most * 2).entries
    with pytest.raises(ValueError, match=f"has more than {most} unreadable entries"):
        messages_of(found)
    assert len(messages_of(found[1:])) == most


# Encodings (RFC 7303 §3)

UMLAUT = document([ENTRY | {"id": "urn:\u00fc"}])


def declared(name):
    return f'<?xml version="1.0" encoding="{name}"?>{UMLAUT}'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (UMLAUT.encode(), ""),
        (UMLAUT.encode(), "application/atom+xml"),
        (UMLAUT.encode(), "text/xml; charset=us-ascii"),
        (UMLAUT.encode(), 'application/atom+xml; type=feed; Charset = "UTF-8"'),
        (declared("ISO-8859-1").encode("latin-1"), ""),
        (declared("windows-1252").encode("cp1252"), "text/xml"),
        (f"<?xml version='1.0'  encoding = 'koi8-r' ?>{UMLAUT}".replace("\u00fc", "&#xfc;").encode("koi8-r"), ""),
        # HTTP has priority over the document,
        (declared("utf-8").encode("latin-1"), "application/xml;charset=iso-8859-1"),
        (declared("latin-1").encode(), "application/xml; charset=utf-8"),
        (declared("utf-8").encode("utf-16-le"), "application/xml; charset=utf-16-le"),
        # the byte order mark has priority over both,
        (codecs.BOM_UTF8 + declared("latin-1").encode(), "text/xml; charset=latin-1"),
        (codecs.BOM_UTF16_LE + declared("utf-8").encode("utf-16-le"), "text/xml; charset=utf-8"),
        (codecs.BOM_UTF16_BE + declared("utf-16").encode("utf-16-be"), ""),
        (codecs.BOM_UTF32_LE + UMLAUT.encode("utf-32-le"), ""),
        (codecs.BOM_UTF32_BE + UMLAUT.encode("utf-32-be"), ""),
        # and two encodings are recognised without it.
        (declared("utf-16").encode("utf-16-le"), ""),
        (UMLAUT.encode("utf-16-be"), ""),
        (declared("Shift_JIS").replace("\u00fc", "&#252;").encode("shift_jis"), ""),
    ],
)
def test_the_encoding_is_taken_from_bom_http_or_xml_declaration(body, content_type):
    found = read(body, content_type)
    assert names(found) == ["urn:\u00fc"]
    assert found.entries[0].markup.startswith(b"<entry><id>urn:")


@pytest.mark.parametrize(
    "name",
    ["klingon", "rot13", "zip", "base64", "idna", "punycode", "unicode_escape", "undefined", "x" * 99, "a b", ""],
)
def test_an_unknown_encoding_of_the_xml_declaration_is_named_in_the_error(name):
    assert f"has the unknown encoding {name[:99]!r}" in refused(declared(name))


@pytest.mark.parametrize("name", ["klingon", "\u00fc", "zlib_codec", "../x", "__init__", "aliases"])
def test_an_unknown_charset_of_the_content_type_is_refused(name):
    assert "has the unknown encoding" in refused(UMLAUT, f"text/xml; charset={name}")


@pytest.mark.parametrize(("body", "name"), [(b"<feed>\xff", "euc-jp"), (b"<feed", "utf-16")])
def test_a_document_that_does_not_match_its_declared_encoding_is_refused(body, name):
    assert f"is not in its stated encoding {name!r}" in refused(body, f"text/xml; charset={name}")


def test_bytes_that_are_not_utf_8_are_a_syntax_error():
    assert "not well-formed (invalid token)" in refused(UMLAUT.encode("latin-1"))


def test_a_document_in_utf_8_is_not_copied():
    body = UMLAUT.encode()
    assert as_utf8(body, "") is body


# Times (RFC 4287 §3.3, RFC 3339)


@pytest.mark.parametrize(
    ("text", "instant", "time"),
    [
        ("2024-02-29T12:30:45Z", "2024-02-29T12:30:45Z", "2024-02-29T12:30:45+00:00"),
        ("2024-02-29t12:30:45z", "2024-02-29T12:30:45Z", "2024-02-29T12:30:45+00:00"),
        (" 2024-02-29 12:30:45+00:00\n", "2024-02-29T12:30:45Z", "2024-02-29T12:30:45+00:00"),
        ("2024-02-29T13:30:45+01:00", "2024-02-29T12:30:45Z", "2024-02-29T13:30:45+01:00"),
        ("2024-02-29T07:00:45-0530", "2024-02-29T12:30:45Z", "2024-02-29T07:00:45-05:30"),
        ("2024-02-29T14:30:45+02", "2024-02-29T12:30:45Z", "2024-02-29T14:30:45+02:00"),
        ("2024-02-29T12:30:45", "2024-02-29T12:30:45Z", "2024-02-29T12:30:45+00:00"),
        ("2024-02-29T12:30Z", "2024-02-29T12:30:00Z", "2024-02-29T12:30:00+00:00"),
        ("2024-02-29", "2024-02-29T00:00:00Z", "2024-02-29T00:00:00+00:00"),
        ("2024-02-29T12:30:45.500Z", "2024-02-29T12:30:45.5Z", "2024-02-29T12:30:45.500000+00:00"),
        ("2024-02-29T12:30:45,000Z", "2024-02-29T12:30:45Z", "2024-02-29T12:30:45+00:00"),
        ("2024-02-29T12:30:45.1234567890Z", "2024-02-29T12:30:45.123456789Z", "2024-02-29T12:30:45.123456+00:00"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:60Z", "2016-12-31T23:59:59+00:00"),
        ("2017-01-01T00:59:60+01:00", "2016-12-31T23:59:60Z", "2017-01-01T00:59:59+01:00"),
        ("0001-01-01T00:00:00+01:00", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00"),
        ("9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-01:00"),
        ("Thu, 29 Feb 2024 13:30:45 +0100", "2024-02-29T12:30:45Z", "2024-02-29T12:30:45+00:00"),
        ("Thu, 29 Feb 2024 12:30:45 GMT", "2024-02-29T12:30:45Z", "2024-02-29T12:30:45+00:00"),
    ],
)
def test_different_spellings_of_an_instant_are_normalised_to_one_text(text, instant, time):
    read_ = Instant.read(text)
    assert (read_.text, read_.time.isoformat()) == (instant, time)
    assert Instant.read(read_.text).text == read_.text
    assert Instant.read(read_.order).text == read_.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2024",
        "2024-13-01T00:00:00Z",
        "2023-02-29T00:00:00Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T00:60:00Z",
        "2024-01-01T00:00:61Z",
        "2024-01-01T00:00:00+24:00",
        "2024-01-01T00:00:00+00:60",
        "2024-01-01T00:00:00Zulu",
        "0000-01-01T00:00:00Z",
        "\u0662\u0660\u0662\u0664-01-01T00:00:00Z",
        "1704067200",
        "2024-01-01T00:00:00." + "1" * 99 + "Z",
        "Thu, 32 Feb 2024 12:30:45 GMT",
    ],
)
def test_a_text_that_is_not_a_date_is_refused_with_a_short_error(text):
    with pytest.raises(ValueError) as error:
        Instant.read(text)
    assert len(str(error.value)) < 120


def test_the_order_text_of_instants_sorts_by_time():
    texts = ["2023-12-31T23:59:59.9Z", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00.05Z", "2024-01-01T00:00:00.5Z"]
    orders = [Instant.read(text).order for text in (*texts, "2024-01-01T00:00:00.51Z", "2024-01-01T00:00:01Z")]
    assert orders == sorted(set(orders))
