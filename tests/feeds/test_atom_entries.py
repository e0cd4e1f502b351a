"""Atom entries: parts, names, and an entry as its own document."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from push_to_poll_client import AtomEntry, AtomFeed, DeadLetter, DecodeError, Message, UnreadableMessage
from push_to_poll_client.feeds._atom import entry as entry_module
from push_to_poll_client.feeds._atom.entry import messages_of
from push_to_poll_client.feeds._atom.parser import MAX_AUTHORS, MAX_DEPTH, read_document
from push_to_poll_client.feeds.atom import AtomCategory, AtomLink, AtomPerson, AtomText
from tests.support.forms import form
from tests.vendors.atom import ROOT, document

ATOM = "http://www.w3.org/2005/Atom"
BASE = "https://shop.example/orders/"
URL = "https://shop.example/feed"
NAMES = "<id>urn:1</id><updated>2024-01-01T12:00:00+01:00</updated>"
XHTML, SVG = 'xmlns="http://www.w3.org/1999/xhtml"', 'xmlns="http://www.w3.org/2000/svg"'
PREFIXED = XHTML.replace("=", ":h=", 1)
SECRET = "s3cr3t-c4n4ry"


def messages(markup, *, root=ROOT):
    return messages_of(
        read_document(document([], marks=markup, root=root).encode(), "", URL, max_entries=100).entries
    )


def entry(inner="", *, tag="entry", root=ROOT):
    (message,) = messages(f"<{tag}>{NAMES}{inner}</entry>", root=root)
    return message


def deletion(inner=""):
    (message,) = messages(f'<at:deleted-entry ref="urn:1" when="2024-01-01T11:00:00Z">{inner}</at:deleted-entry>')
    return message


def restored(message):
    letter = DeadLetter(dedupe_key=message.dedupe_key, id=message.id, raw=message.raw, error="")
    return AtomFeed(URL).restore(letter)


# Names


def test_the_id_and_key_of_a_message_combine_entry_id_and_updated():
    message = entry()
    assert isinstance(message, Message)
    assert message.entry_id == "urn:1"
    assert message.id == "urn:1@2024-01-01T11:00:00Z"
    assert message.dedupe_key == "5:urn:1:2024-01-01T11:00:00Z"
    assert message.updated == datetime(2024, 1, 1, 11, tzinfo=UTC)
    assert message.updated.tzinfo == timezone(timedelta(hours=1))
    assert (message.deleted, message.error, message.cursor) == (False, None, None)
    assert repr(message) == "AtomEntry(id='urn:1@2024-01-01T11:00:00Z')"


def test_two_spellings_of_an_instant_are_one_version():
    (other,) = messages("<entry><id>urn:1</id><updated>2024-01-01T11:00:00.000Z</updated></entry>")
    assert (other.id, other.dedupe_key) == (entry().id, entry().dedupe_key)


def test_a_changed_title_with_the_same_updated_gives_the_same_key():
    assert entry("<title>a</title>").dedupe_key == entry("<title>b</title>").dedupe_key


def test_different_entries_and_deletions_have_different_ids_and_keys():
    ids = ["urn:1", "urn:1:2024", "urn", "5:urn:1", "deleted:urn:1", "urn:1@2024-01-01T11:00:00Z"]
    marks = [f"<entry><id>{one}</id><updated>2024-01-01</updated></entry>" for one in ids]
    marks += [f'<at:deleted-entry ref="{one}" when="2024-01-01"/>' for one in ids]
    found = messages("".join(marks))
    assert len({message.dedupe_key for message in found}) == len({message.id for message in found}) == len(marks)


def test_an_entry_id_is_kept_as_written_and_not_resolved_against_a_base():
    (message,) = messages(
        '<entry xml:base="https://other.example/"><id>HTTP://a.example/%7e</id><updated>2024-01-01</updated></entry>'
    )
    assert message.entry_id == "HTTP://a.example/%7e"
    (message,) = messages('<entry xml:base="https://b/"><id>relative</id><updated>2024-01-01</updated></entry>')
    assert message.entry_id == "relative"


def test_a_deleted_entry_becomes_a_message_marked_deleted():
    message = deletion("<at:comment type='html'>&lt;b>spam&lt;/b></at:comment><link href='why'/>")
    assert (message.entry_id, message.deleted) == ("urn:1", True)
    assert message.updated == datetime(2024, 1, 1, 11, tzinfo=UTC)
    assert message.id == "urn:1@2024-01-01T11:00:00Z deleted"
    assert message.dedupe_key == "deleted:5:urn:1:2024-01-01T11:00:00Z"
    assert message.summary == AtomText("<b>spam</b>", "html", "https://shop.example/orders/")
    assert message.link() == "https://shop.example/orders/why"
    assert message.data.tag == "{http://purl.org/atompub/tombstones/1.0}deleted-entry"
    assert (message.title, message.content, message.published) == (None, None, None)


# Parts


def test_an_entry_with_only_id_and_updated_has_empty_fields():
    message = entry()
    assert (message.title, message.summary, message.content, message.published) == (None, None, None, None)
    assert (message.links, message.authors, message.categories, message.link()) == ([], [], [], None)


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<title> a &lt;b&gt; </title>", AtomText("a <b>", "text", BASE)),
        ('<title type="text"/>', AtomText("", "text", BASE)),
        ('<title type="html">&lt;b>a&lt;/b></title>', AtomText("<b>a</b>", "html", BASE)),
        ('<title type="html"><![CDATA[<b>a</b>]]></title>', AtomText("<b>a</b>", "html", BASE)),
        (
            f'<title type="xhtml"><div {XHTML}>a<br/><b x="&quot;">b</b> &lt;</div></title>',
            AtomText('a<br><b x="&quot;">b</b> &lt;', "xhtml", BASE),
        ),
        (
            f'<title type="xhtml" xml:base="a/"><div {XHTML} xml:base="b/" id="i"><img src="c"/></div> </title>',
            AtomText('<img src="c">', "xhtml", f"{BASE}a/b/"),
        ),
        (
            f'<title type="xhtml"><b {XHTML}>no div</b></title>',
            AtomText("<b>no div</b>", "xhtml", BASE),
        ),
        (
            f'<title type="xhtml"><h:div {PREFIXED}><h:p>a</h:p><svg {SVG}><g d="M 0"/></svg></h:div></title>',
            AtomText('<p>a</p><svg><g d="M 0"></g></svg>', "xhtml", BASE),
        ),
        ('<title xml:base="https://a.example/b">a</title>', AtomText("a", "text", "https://a.example/b")),
    ],
)
def test_a_text_construct_is_read_by_its_type(markup, text):
    assert entry(markup).title == text
    assert entry(markup.replace("title", "summary")).summary == text
    assert entry(markup.replace("title", "content")).content == text


@pytest.mark.parametrize(
    ("markup", "content"),
    [
        ('<content src="a.png" type="image/png"/>', AtomText("", "image/png", BASE, f"{BASE}a.png")),
        ('<content src="https://a.example/b"/>', AtomText("", "", BASE, "https://a.example/b")),
        ('<content src="http://["/>', AtomText("", "", BASE, "http://[")),
        ('<content type="text/plain">a\n</content>', AtomText("a", "text/plain", BASE)),
        ('<content type="image/png">aGk=</content>', AtomText("aGk=", "image/png", BASE)),
        ('<content type="application/xml">\n<a xmlns="">b</a> c &amp;\n</content>', None),
        (
            '<content type="Image/SVG+XML; charset=utf-8">1 &lt; <s:svg xmlns:s="urn:s"><s:g/></s:svg></content>',
            AtomText(
                '1 &lt; <ns0:svg xmlns:ns0="urn:s"><ns0:g /></ns0:svg>', "Image/SVG+XML; charset=utf-8", BASE
            ),
        ),
    ],
)
def test_content_may_have_any_media_type_or_a_src(markup, content):
    expected = content or AtomText("<a>b</a> c &amp;", "application/xml", BASE)
    assert entry(markup).content == expected


def test_links_are_absolute():
    message = entry(
        '<link href="a"/><link rel="enclosure" type="audio/mpeg" length="3" hreflang="de" title="T" href="/b"/>'
        '<link rel="http://www.iana.org/assignments/relation/Related" xml:base="c/" href="d"/>'
        '<link rel="self"/><link rel="via" href=""/>'
    )
    assert message.links == [
        AtomLink(f"{BASE}a"),
        AtomLink("https://shop.example/b", "enclosure", "audio/mpeg", "de", "T", "3"),
        AtomLink(f"{BASE}c/d", "Related"),
        AtomLink(BASE, "via"),
    ]
    assert message.link() == f"{BASE}a"
    assert message.link("related") == f"{BASE}c/d"
    assert message.link("self") is None


def test_an_entry_has_its_own_authors_or_else_the_authors_of_its_source():
    own = "<author><name> A </name><uri>a</uri><email>a@b.example</email></author>"
    own += "<author xml:base='b/'><uri>c</uri></author>"
    source = "<source><author><name>S</name></author></source>"
    assert entry(own + source).authors == [
        AtomPerson("A", f"{BASE}a", "a@b.example"),
        AtomPerson("", f"{BASE}b/c"),
    ]
    assert entry(source).authors == [AtomPerson("S")]


def person(name, inner="", tag="author"):
    return f"<{tag}><name>{name}</name>{inner}</{tag.split()[0]}>"


@pytest.mark.parametrize("marks", ["{author}{entry}", "{entry}{author}"])
def test_an_entry_without_authors_has_the_authors_of_its_feed_before_or_after_it(marks):
    author = person("F", "<uri>f</uri>") + person("G", "<email>g@b.example</email>", tag="author xml:base='b/'")
    text = marks.format(author=author, entry=f"<entry xml:base='elsewhere/'>{NAMES}<title>T</title></entry>")
    (message,) = messages(text)
    assert message.authors == [AtomPerson("F", f"{BASE}f"), AtomPerson("G", "", "g@b.example")]
    assert restored(message).authors == AtomEntry.from_xml(message.raw).authors == message.authors
    assert (restored(message).raw, restored(message).title) == (
        message.raw,
        AtomText("T", base=f"{BASE}elsewhere/"),
    )


@pytest.mark.parametrize(
    ("inner", "authors"),
    [
        (person("E"), ["E"]),
        (f"<source>{person('S')}</source>", ["S"]),
        ("<source><title>S</title></source>", ["F"]),
        (f"<content type='application/xml'>{person('C')}</content>", ["F"]),
        (f"<source><x>{person('X')}</x></source>", ["F"]),
        ("<x:author xmlns:x='urn:x'/>", ["F"]),
        (person("K", tag="contributor"), ["F"]),
    ],
)
def test_authors_are_taken_from_entry_then_source_then_feed(inner, authors):
    (message,) = messages(f"{person('F')}<entry>{NAMES}{inner}</entry>")
    assert [author.name for author in message.authors] == authors
    assert [author.name for author in restored(message).authors] == authors


def test_feed_authors_are_read_even_if_the_entry_redefines_their_prefix():
    root = f'<a:feed xmlns:a="{ATOM}" xml:base="{BASE}">'
    author = "<a:author><a:name>F</a:name><a:uri>f</a:uri></a:author>"
    entry = f'<entry xmlns="{ATOM}" xmlns:a="urn:a">{NAMES}</entry>'
    found = read_document(f"{root}{author}{entry}</a:feed>".encode(), "", URL, max_entries=1).entries
    assert messages_of(found)[0].authors == [AtomPerson("F", f"{BASE}f")]


def test_feed_authors_beyond_the_size_limit_are_left_out():
    author = person("x" * (MAX_AUTHORS // 2))
    (message,) = messages(f"{author}{author}{person('F')}<entry>{NAMES}</entry>")
    assert [len(author.name) for author in message.authors] == [MAX_AUTHORS // 2, 1]
    assert len(message.raw) < MAX_AUTHORS + 1_000


def test_deleted_and_unreadable_entries_do_not_inherit_authors():
    deleted, unreadable = messages(
        f'{person("F")}<entry/><at:deleted-entry ref="urn:1" when="2024-01-01T11:00:00Z"></at:deleted-entry>'
    )[::-1]
    assert deleted.authors == []
    assert b"author" not in deleted.raw
    assert b"author" not in unreadable.raw


def test_a_category_without_a_term_is_left_out():
    message = entry('<category term="a" scheme="urn:s" label="L"/><category/><category term="b"/>')
    assert message.categories == [AtomCategory("a", "urn:s", "L"), AtomCategory("b")]


def test_an_invalid_published_date_is_an_error_only_when_published_is_read():
    assert entry("<published>2023-01-01T00:00:00Z</published>").published == datetime(2023, 1, 1, tzinfo=UTC)
    with pytest.raises(
        DecodeError, match=r"the publication date of entry 'urn:1@2024-.*' cannot be read: 'soon' is not a date"
    ):
        _ = entry("<published>soon</published>").published


def test_other_elements_of_an_entry_are_in_data():
    message = entry('<x:price xmlns:x="urn:x" x:currency="EUR">3</x:price><rights>none</rights><!-- c --><?p i?>')
    assert message.data.tag == f"{{{ATOM}}}entry"
    assert message.data.findtext("{urn:x}price") == "3"
    assert message.data.find("{urn:x}price").attrib == {"{urn:x}currency": "EUR"}
    assert message.data.findtext(f"{{{ATOM}}}rights") == "none"
    assert len(message.data) == 4
    assert message.data is message.data


# The base


@pytest.mark.parametrize(
    ("root", "tag", "base"),
    [
        ("", "entry", URL),
        ("https://a.example/b/", "entry", "https://a.example/b/"),
        ("a/", "entry xml:base='b/'", "https://shop.example/a/b/"),
        ("a/", "entry a='1' xml:base = \"/c?d=&quot;&amp;e=&#x66;\"", 'https://shop.example/c?d="&e=f'),
        ("a/", "entry xml:base='https://b.example/&lt;'", "https://b.example/<"),
    ],
)
def test_the_base_of_an_entry_combines_the_xml_base_of_feed_and_entry(root, tag, base):
    message = entry('<link href=""/>', tag=tag, root=f'<feed xmlns="{ATOM}" xml:base="{root}">')
    assert (message.base, message.links) == (base, [AtomLink(base)])
    assert restored(message).base == base


# Standalone documents


@pytest.mark.parametrize(
    "tag",
    [
        "entry",
        "entry xml:lang='fr'",
        'entry xmlns="http://www.w3.org/2005/Atom"',
        "entry\n a='>'\txmlns:y = 'urn:other'",
    ],
)
def test_an_entry_restored_from_raw_has_the_same_content(tag):
    root = f'<feed xmlns="{ATOM}" xmlns:y="urn:y&amp;&quot;&#10;" xmlns:z="urn:z" xml:base="/b/" xml:lang="de">'
    inner = '<y:a z:b="1"/><title>\u00fc</title><link href="c"/>'
    message = entry(inner, tag=tag, root=root)
    again = restored(message)
    assert again.raw == message.raw
    assert message.raw.count(b"xmlns:y") == message.raw.count(b"xml:lang") == message.raw.count(b"xmlns=") == 1
    assert message.raw.endswith(f"{NAMES}{inner}</entry>".encode())
    for one in (message, again):
        assert (one.id, one.dedupe_key, one.updated, one.entry_id) == (
            message.id,
            message.dedupe_key,
            message.updated,
            "urn:1",
        )
        assert (one.title.text, one.link()) == ("\u00fc", "https://shop.example/b/c")
        assert one.data[2].tag == ("{urn:other}a" if "urn:other" in tag else '{urn:y&"\n}a')
        assert one.data[2].attrib == {"{urn:z}b": "1"}
        assert one.data.get("{http://www.w3.org/XML/1998/namespace}lang") == ("fr" if "fr" in tag else "de")


def test_an_empty_element_can_be_restored_from_raw():
    (message,) = messages('<at:deleted-entry ref="a" when="2024-01-01"/>')
    assert message.raw.endswith(b' ref="a" when="2024-01-01"/>')
    assert restored(message).entry_id == "a"


def test_an_entry_with_a_namespace_prefix_can_be_restored_from_raw():
    text = (
        f'<a:feed xmlns:a="{ATOM}"><a:entry>{NAMES.replace("<", "<a:").replace("<a:/", "</a:")}</a:entry></a:feed>'
    )
    (message,) = messages_of(read_document(text.encode(), "", URL, max_entries=1).entries)
    assert restored(message).data.tag == f"{{{ATOM}}}entry"


def test_a_deletion_restored_from_raw_has_the_same_content():
    message = deletion("<at:comment>spam</at:comment>")
    again = restored(message)
    assert (again.id, again.dedupe_key, again.raw, again.deleted) == (
        message.id,
        message.dedupe_key,
        message.raw,
        True,
    )
    assert again.summary == message.summary


def test_from_xml_reads_an_entry():
    message = AtomEntry.from_xml(f'<entry xmlns="{ATOM}">{NAMES}<title>T</title><link href="a"/></entry>'.encode())
    assert (message.id, message.title, message.links) == (entry().id, AtomText("T"), [AtomLink("a")])
    assert message.base == ""


@pytest.mark.parametrize(
    ("markup", "why"),
    [
        ("", "it is not well-formed XML: it is cut off"),
        ("<!DOCTYPE a><a/>", "it declares a doctype 'a'"),
        (f'<feed xmlns="{ATOM}"/>', "it is not an Atom entry: its root is 'feed'"),
        ("<entry/>", "it is not an Atom entry: its root is 'entry'"),
        (f'<entry xmlns="{ATOM}"/>', "it has no id; found nothing"),
        (f'<entry xmlns="{ATOM}"><id>a</id><x/><x/></entry>', "it has no updated; found 'id', 'x' (2)"),
        (
            f'<entry xmlns="{ATOM}"><id>a</id><updated>b</updated></entry>',
            "it has an invalid updated: 'b' is not a date",
        ),
        ('<deleted-entry xmlns="http://purl.org/atompub/tombstones/1.0"/>', "it has no ref"),
        ('<deleted-entry xmlns="http://purl.org/atompub/tombstones/1.0" ref="a"/>', "it has no when"),
        (
            f'<entry xmlns="{ATOM}"><id>{"x" * 1025}</id><updated>b</updated></entry>',
            "has an id of more than 1024",
        ),
    ],
)
def test_from_xml_refuses_a_document_that_is_not_an_entry(markup, why):
    with pytest.raises(DecodeError) as error:
        AtomEntry.from_xml(markup.encode())
    assert str(error.value).startswith("an entry cannot be read: it ")
    assert why in str(error.value)
    letter = DeadLetter(dedupe_key="k", id="i", raw=markup.encode(), error="")
    message = AtomFeed(URL).restore(letter)
    assert isinstance(message, UnreadableMessage)
    assert (message.id, message.dedupe_key, message.raw, str(message.error)) == (
        "i",
        "k",
        letter.raw,
        str(error.value),
    )


# Unreadable entries


@pytest.mark.parametrize(
    ("markup", "why", "name"),
    [
        ("<entry/>", "it has no id; found nothing", None),
        (f"<entry><id> </id><title>{SECRET}</title></entry>", "it has no id; found 'id', 'title'", None),
        ("<entry><id>a</id></entry>", "it has no updated; found 'id'", "a"),
        (
            "<entry><id>a</id><updated>soon</updated></entry>",
            "it has an invalid updated: 'soon' is not a date",
            "a",
        ),
        ("<entry><id>a</id>" + "".join(f"<x{n}/>" for n in range(20)) + "</entry>", "'x10', ...", "a"),
        (f"<entry><id>{'x' * 1025}</id><updated>2024-01-01</updated></entry>", "an id of more than 1024", None),
        ("<entry><id>a</id>" + "<a>" * 200 + "</a>" * 200 + "</entry>", "no updated; found too much", "a"),
        ("<at:deleted-entry when='2024-01-01'/>", "it has no ref", None),
        ("<at:deleted-entry ref='a'/>", "it has no when", "a"),
        ("<at:deleted-entry ref='a' when='x'/>", "it has an invalid when", "a"),
    ],
)
def test_an_unreadable_entry_does_not_affect_its_neighbours(markup, why, name):
    other = NAMES.replace("urn:1", "urn:2")
    before, message, after = messages(f"<entry>{NAMES}</entry>{markup}<entry>{other}</entry>")
    assert [before.entry_id, after.entry_id] == ["urn:1", "urn:2"]
    assert isinstance(message, UnreadableMessage)
    assert message.id == (name or message.dedupe_key)
    assert message.dedupe_key.startswith("unreadable:")
    assert why in str(message.error)
    assert SECRET not in str(message.error)
    assert isinstance(restored(message), UnreadableMessage)
    with pytest.raises(DecodeError):
        _ = message.data


def test_an_unreadable_entry_gets_another_key_when_its_content_changes():
    (broken,), (another,) = messages("<entry><id>a</id></entry>"), messages("<entry><id>a</id><b/></entry>")
    assert broken.dedupe_key != another.dedupe_key
    (moved,) = messages("<entry><id>a</id></entry>", root=f'<feed xmlns="{ATOM}" xml:base="/elsewhere/">')
    assert broken.dedupe_key == moved.dedupe_key


ELEMENTS = form(2_000, entry_module.MAX_ELEMENTS)


@pytest.mark.parametrize(
    ("inner", "why"),
    [
        ("<a>" * MAX_DEPTH + "</a>" * MAX_DEPTH, f"has elements nested deeper than {MAX_DEPTH} levels"),
        ("<a/>" * ELEMENTS, f"has more than {ELEMENTS} elements"),
    ],
)
def test_an_entry_with_too_many_elements_fails_when_a_field_is_read(inner, why, monkeypatch):
    monkeypatch.setattr(entry_module, "MAX_ELEMENTS", ELEMENTS)
    message = entry(inner)
    assert message.entry_id == "urn:1"
    for read in (lambda: message.data, lambda: message.title, lambda: message.links, lambda: message.base):
        with pytest.raises(DecodeError, match=f"entry 'urn:1@.*' cannot be read: it {why}"):
            read()
    assert isinstance(restored(message), UnreadableMessage)


# Order


def test_entries_are_sorted_newest_first_and_by_document_order_within_an_instant():
    def one(id, updated):
        return f"<entry><id>{id}</id><updated>{updated}</updated></entry>"

    found = messages(
        one("b", "2024-01-01T00:00:00Z")
        + one("d", "2024-01-02T01:00:00+02:00")
        + one("a", "2023-12-31T23:59:59.5Z")
        + one("c", "2024-01-01T00:00:00.0Z")
        + one("e", "2024-01-02T00:00:00+00:00")
    )
    assert [message.entry_id for message in found] == ["e", "d", "b", "c", "a"]


def test_an_unreadable_entry_stays_after_the_entry_before_it():
    def one(id, updated):
        return f"<entry><id>{id}</id><updated>{updated}</updated></entry>"

    found = messages(one("x", "") + one("a", "2023-01-01") + one("y", "?") + one("b", "2024-01-01"))
    assert [message.id.partition("@")[0] for message in found] == ["x", "b", "a", "y"]
