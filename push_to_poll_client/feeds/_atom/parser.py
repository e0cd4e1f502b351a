"""Parse an Atom document into its entries, safely and in linear time.

expat looks at a tag or a comment again with each piece of the document that it is given, from its beginning: its
versions before 2.6 take quadratic time for a long one. So pieces are large, and what is longer is refused.

One pass, which reads of an entry its id and its date alone: of a feed that is polled nearly everything is known.
"""

import codecs
import re
from collections.abc import Callable, Mapping
from html import unescape
from typing import NamedTuple
from urllib.parse import urljoin
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from push_to_poll_client._validation import quoted

__all__ = [
    "ATOM",
    "HISTORY",
    "MAX_DEPTH",
    "MAX_URL",
    "TOMBSTONES",
    "XML",
    "AtomDocument",
    "ElementSource",
    "InvalidXML",
    "RawEntry",
    "Scope",
    "as_utf8",
    "local_name",
    "new_parser",
    "read_document",
    "resolve_reference",
    "run_parser",
    "start_tag",
]


MAX_DEPTH = 100
"""Elements within each other, from the entry on. Articles have some 20."""

MAX_TAG = 1024 * 1024
"""Bytes of a tag, a comment or a processing instruction. It bounds its attributes, each of which takes 100."""

_PIECE_SIZE = 256 * 1024

ATOM = "http://www.w3.org/2005/Atom}"
HISTORY = "http://purl.org/syndication/history/1.0}"
TOMBSTONES = "http://purl.org/atompub/tombstones/1.0}"
XML = "http://www.w3.org/XML/1998/namespace}"
"""What stands before a name of RFC 4287, RFC 5005, RFC 6721 and XML itself."""

_TRUNCATED_ERRORS = frozenset(
    expat.errors.codes[text]
    for text in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
    )
)


class InvalidXML(ValueError):
    """A document is not to be parsed; the text goes on after its name."""


def new_parser() -> expat.XMLParserType:
    """One for UTF-8 that refuses doctypes. Names are given as `uri}local`."""
    parser = expat.ParserCreate("utf-8", "}")
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.buffer_text = True
    return parser


def run_parser(parser: expat.XMLParserType, document: bytes) -> None:
    """Parse a document, in UTF-8.

    Raises:
        NoXML: It is no well-formed XML, declares a doctype, or has too long a tag.
        ValueError: A handler said so.
    """
    try:
        for start in range(0, len(document), _PIECE_SIZE):
            piece = document[start : start + _PIECE_SIZE]
            parser.Parse(piece, False)  # noqa: FBT003  # it takes no keywords
            if start + len(piece) - parser.CurrentByteIndex > MAX_TAG:
                raise InvalidXML(f"has a tag or a comment of more than {MAX_TAG} bytes")
        parser.Parse(b"", True)  # noqa: FBT003
    except expat.ExpatError as error:
        what = "ends in the middle" if error.code in _TRUNCATED_ERRORS else expat.ErrorString(error.code)
        raise InvalidXML(f"is no well-formed XML: {what} at line {error.lineno}, column {error.offset}") from None


def local_name(name: str) -> str:
    """A name without its namespace, fit to be shown."""
    return quoted(name.rpartition("}")[2], 40)


def _refuse_doctype(name: str, *_: object) -> None:
    raise InvalidXML(
        f"declares a doctype {quoted(name, 40)}, which no feed needs and is refused: it can be an attack"
    )


_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before that of UTF-16, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_UTF16_WITHOUT_BOM = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}

_HTTP_CHARSET = re.compile(r';[ \t]*charset[ \t]*=[ \t]*"?([^\s";]+)', re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""<\?xml[^>]{1,200}?\sencoding\s{0,20}=\s{0,20}["']([^"'>]*)""")
_CODEC_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,39}")

_NOT_FOR_TEXT = frozenset({"idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})
"""What Python can decode and no server sends; some take quadratic time."""

_UTF8_CODECS = frozenset({"utf-8", "ascii"})
"""The latter is what servers say who were told nothing; what is none of it is looked at as UTF-8."""


def as_utf8(body: bytes, content_type: str) -> bytes:
    """A document in UTF-8, whatever it calls its encoding itself.

    Args:
        body: As it came.
        content_type: The header; "" when there is none. Its `charset` wins over what the document says.

    Raises:
        ValueError: The encoding is unknown, or the document is not in it.
    """
    for mark, name in _BOMS:
        if body.startswith(mark):
            return _transcode(body[len(mark) :], name)
    stated = _HTTP_CHARSET.search(content_type)
    if stated:
        return _transcode(body, stated[1])
    unmarked = _UTF16_WITHOUT_BOM.get(body[:2])
    declared = _XML_ENCODING.match(body)
    return _transcode(body, unmarked or (declared[1].decode("latin-1") if declared else "utf-8"))


def _transcode(body: bytes, name: str) -> bytes:
    codec = _codec(name)
    if codec in _UTF8_CODECS:
        return body
    try:
        return body.decode(codec).encode()
    except LookupError:  # a codec for something else than text
        raise _unknown_encoding(name) from None
    except UnicodeError as error:
        raise ValueError(f"is not in {quoted(name)}, in which it is said to be: {quoted(error)}") from None


def _codec(name: str) -> str:
    """What Python calls it."""
    try:
        codec = codecs.lookup(name).name if _CODEC_NAME.fullmatch(name) else ""
    except LookupError:
        codec = ""
    if not codec or codec in _NOT_FOR_TEXT:
        raise _unknown_encoding(name)
    return codec


def _unknown_encoding(name: str) -> ValueError:
    return ValueError(f"is in the encoding {quoted(name)}, which is unknown here; ask for UTF-8")


MAX_URL = 8_192
"""Characters of a reference and of what it is relative to: each link would copy that once more. It is what most
servers take."""

# What was parsed is well-formed, and need not be looked at closely.
_START_TAG = re.compile(rb"""<(?:[^>"']++|"[^"]*+"|'[^']*+')*+>""")

_NAME = re.compile(r"<[^\s/>]++")
_ATTRIBUTE = re.compile(r"""(?<!\s)\s++([^\s=]++)\s*+=\s*+("[^"]*+"|'[^']*+')""")


class Scope(NamedTuple):
    """What an entry inherits from the root of its document.

    Attributes:
        namespaces: By their prefixes; "" is the default one.
        base: What relative references are relative to, absolute.
        language: Its `xml:lang`; "": it says nothing.
        authors: Each as a document of its own (RFC 4287 §4.2.1).
    """

    namespaces: tuple[tuple[str, str], ...] = ()
    base: str = ""
    language: str = ""
    authors: bytes = b""

    @property
    def size(self) -> int:
        """Characters of all that, without the authors."""
        return sum(len(prefix) + len(uri) for prefix, uri in self.namespaces) + len(self.base) + len(self.language)

    @property
    def attributes(self) -> dict[str, str]:
        """The same, likewise, as attributes of an element, each quoted."""
        declared = {f"xmlns:{prefix}" if prefix else "xmlns": uri for prefix, uri in self.namespaces}
        inherited = {"xml:base": self.base, "xml:lang": self.language}
        given = declared | {name: value for name, value in inherited.items() if value}
        return {
            name: quoteattr(value, {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}) for name, value in given.items()
        }


class ElementSource(NamedTuple):
    """An element as it stands in its document, in UTF-8.

    Attributes:
        markup: From its first byte to its last.
        scope: What it inherits; `None`: nothing, it is a document of its own.
    """

    markup: bytes
    scope: Scope | None = None

    @property
    def standalone(self) -> bytes:
        """As a document of its own, which says the same."""
        if self.scope is None:
            return self.markup
        tag = start_tag(self.markup)
        text = tag.decode()
        own = dict(_ATTRIBUTE.findall(text))
        if "xml:base" in own:
            own["xml:base"] = quoteattr(resolve_reference(self.scope.base, unescape(own["xml:base"][1:-1])))
        attributes = "".join(f" {name}={value}" for name, value in (self.scope.attributes | own).items())
        end, authors = ("/>", b"") if text.endswith("/>") else (">", self.scope.authors)
        return f"{_NAME.findall(text)[0]}{attributes}{end}".encode() + authors + self.markup[len(tag) :]


def start_tag(document: bytes, start: int = 0) -> bytes:
    """The start tag, or the tag of the empty element, at a place of a well-formed document."""
    return next(_START_TAG.finditer(document, start))[0]


def resolve_reference(base: str, reference: str) -> str:
    """A reference, absolute (RFC 3986 §5.2); one that is none, or is too long, as it was written."""
    if len(base) + len(reference) > MAX_URL:
        return reference
    try:
        return urljoin(base, reference.strip())
    except ValueError:
        return reference


MAX_SCOPE = 8_192
"""Characters of what entries inherit from the root of a feed: namespaces, base and language. Each entry that is
read has them once more. Most feeds declare five namespaces, of 40 characters each."""

MAX_AUTHORS = 16_384
"""Bytes of a feed's authors that its entries inherit: each that is read, and has none, has them once more. Those
that do not fit are left out; there is room for some fifty."""

MAX_DOCUMENT_DEPTH = 1_000
"""Elements within each other. Far fewer make an entry fail, alone; for each expat takes a hundred bytes."""

_RELATIONS = frozenset({"next", "prev-archive", "current"})
_REGISTERED = "http://www.iana.org/assignments/relation/"

_HTML_PAGE_ERROR = "is a page for people; check that the URL is that of a feed and no login page stands before it"
_is_html_page = re.compile(rb"\s*+(?:<\?xml[^>]{,200}+>\s*+)?<(?:!doctype\s+)?html\b", re.IGNORECASE).match

_OTHER_ROOTS = {
    "rss": "is RSS, which does not say what has changed; ask its publisher for Atom",
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#}RDF": "is RSS 1.0; ask its publisher for Atom",
    "http://purl.org/atom/ns#}feed": "is Atom 0.3, a draft of 2003; ask its publisher for Atom 1.0",
    f"{ATOM}entry": "is a single entry; give the URL of the feed",
    "feed": "has 'feed' for its root, but not in the namespace of Atom",
    "html": _HTML_PAGE_ERROR,
    "http://www.w3.org/1999/xhtml}html": _HTML_PAGE_ERROR,
}
"""What else a root may be."""

_ENTRY_FIELDS = (f"{ATOM}id", f"{ATOM}updated")
_DELETED_FIELDS = ("ref", "when")
"""What tells entries apart: elements, and of what was deleted attributes."""

_ENTRY_TAGS = frozenset({f"{ATOM}entry", f"{TOMBSTONES}deleted-entry"})

_AUTHOR, _SOURCE = f"{ATOM}author", f"{ATOM}source"

_FEED_CHILD_DEPTH, _ENTRY_CHILD_DEPTH, _SOURCE_CHILD_DEPTH = 2, 3, 4
"""How deep what stands in them is."""


class RawEntry(NamedTuple):
    """An entry, or what says that one was deleted (RFC 6721), before it is read.

    Attributes:
        source: Where it stands.
        name: Its `atom:id`, or its `ref`; "": it has none.
        when: Its `atom:updated`, or its `when`, as written; "": it has none.
        deleted: It says that an entry was deleted.
    """

    source: ElementSource
    name: str
    when: str
    deleted: bool


class AtomDocument(NamedTuple):
    """A document of a feed.

    Attributes:
        entries: In its order, which says nothing (RFC 4287 §4.1.1).
        links: By the relations of RFC 5005 that lead on; absolute, or as written where that is no URL.
        complete: It is the entire feed (RFC 5005 §2).
        archive: It is an archive (RFC 5005 §4).
        size: Bytes.
    """

    entries: list[RawEntry]
    links: Mapping[str, str]
    complete: bool
    archive: bool
    size: int


def read_document(body: bytes, content_type: str, url: str, *, most: int) -> AtomDocument:
    """Read a document of a feed.

    Args:
        body: As it came.
        content_type: The header; "" when there is none.
        url: What relative references are relative to, where the document says nothing; without secrets.
        most: Entries that it may have.

    Raises:
        ValueError: It is no feed of Atom 1.0, is no well-formed XML, or has too much of something. The text goes
            on after "a document that".
    """
    try:
        document = as_utf8(body, content_type)
        reader = _FeedParser(document, url, most)
        reader.run()
    except ValueError as error:
        raise ValueError(_HTML_PAGE_ERROR if _is_html_page(body) else str(error)) from None
    return AtomDocument(reader.entries, reader.links, reader.complete, reader.archive, len(document))


class _FeedParser:
    """Sees elements begin and end.

    Args:
        document: In UTF-8.
        url: As for `read_document`.
        most: Likewise.

    Attributes:
        entries: As of a `AtomDocument`.
        links: Likewise.
        complete: Likewise.
        archive: Likewise.
    """

    def __init__(self, document: bytes, url: str, most: int) -> None:
        self.entries: list[RawEntry] = []
        self.links: dict[str, str] = {}
        self.complete = self.archive = False
        self._document = document
        self._max_entries = most
        self._scope = Scope(base=url)
        self._namespaces: dict[str, str] = {}
        self._depth = 0
        self._entry: _EntryBuilder | None = None
        self._without_authors: list[int] = []
        self._author: int | None = None
        self._authors: list[bytes] = []
        self._parser = new_parser()
        self._parser.StartNamespaceDeclHandler = self._declare_namespace
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end

    def run(self) -> None:
        """Read it.

        Raises:
            ValueError: It is not to be read; the text says why, and where.
        """
        try:
            run_parser(self._parser, self._document)
        except InvalidXML as error:
            raise ValueError(f"{error}{self._describe_position()}") from None
        self._inherit_authors()

    def _describe_position(self) -> str:
        """Where a fault was found, as far as it can be said without saying what stands there."""
        if not self._depth:
            first = self._document.lstrip()[:1].decode("latin-1")
            return f" ({len(self._document)} bytes that begin with {quoted(first)})"
        return f", in entry {len(self.entries) + 1}" if self._entry else f", after {len(self.entries)} entries"

    def _declare_namespace(self, prefix: str | None, uri: str | None) -> None:
        self._namespaces[prefix or ""] = uri or ""

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _ENTRY_CHILD_DEPTH:
            if self._depth > MAX_DOCUMENT_DEPTH:
                raise InvalidXML(f"has more than {MAX_DOCUMENT_DEPTH} elements within each other")
            if self._depth == _SOURCE_CHILD_DEPTH and self._entry is not None:
                self._entry.start_grandchild(name)
        elif self._depth == _ENTRY_CHILD_DEPTH:
            if self._entry is not None:
                self._parser.CharacterDataHandler = self._entry.start_child(name)
        elif self._depth == _FEED_CHILD_DEPTH:
            self._start_child(name, attributes)
        else:
            self._start_root(name, attributes)

    def _end(self, _name: str) -> None:
        if self._depth == _ENTRY_CHILD_DEPTH:
            self._parser.CharacterDataHandler = None
        elif self._depth == _FEED_CHILD_DEPTH:
            self._end_child()
        self._depth -= 1

    def _end_child(self) -> None:
        if self._entry is not None:
            self._add_entry(self._entry)
        elif self._author is not None:
            self._authors.append(self._element_bytes(self._author))
        self._entry = self._author = None

    def _start_root(self, name: str, attributes: dict[str, str]) -> None:
        if name != f"{ATOM}feed":
            raise ValueError(
                _OTHER_ROOTS.get(name) or f"has {local_name(name)} for its root, and is no feed of Atom"
            )
        self._parser.StartNamespaceDeclHandler = None
        base = resolve_reference(self._scope.base, attributes.get(f"{XML}base", ""))
        self._scope = Scope(tuple(self._namespaces.items()), base, attributes.get(f"{XML}lang", ""))
        if self._scope.size > MAX_SCOPE:
            raise ValueError(f"declares namespaces, a base and a language of more than {MAX_SCOPE} characters")

    def _start_child(self, name: str, attributes: dict[str, str]) -> None:
        if name in _ENTRY_TAGS:
            if len(self.entries) >= self._max_entries:
                raise ValueError(f"has more than {self._max_entries} entries; raise max_body= if that is right")
            self._entry = _EntryBuilder(self._parser.CurrentByteIndex, name, attributes)
        elif name == f"{ATOM}link":
            self._link(attributes)
        elif name == _AUTHOR:
            self._author = self._parser.CurrentByteIndex
        elif name.startswith(HISTORY):
            self.complete = self.complete or name == f"{HISTORY}complete"
            self.archive = self.archive or name == f"{HISTORY}archive"

    def _link(self, attributes: dict[str, str]) -> None:
        relation = attributes.get("rel", "").strip().removeprefix(_REGISTERED).lower()
        if relation in _RELATIONS and relation not in self.links and "href" in attributes:
            base = resolve_reference(self._scope.base, attributes.get(f"{XML}base", ""))
            self.links[relation] = resolve_reference(base, attributes["href"])

    def _add_entry(self, entry: "_EntryBuilder") -> None:
        if not entry.authored:
            self._without_authors.append(len(self.entries))
        self.entries.append(entry.build(ElementSource(self._element_bytes(entry.start), self._scope)))

    def _inherit_authors(self) -> None:
        """Give the authors of the feed, wherever in it they stand, to the entries that have none."""
        authors = b""
        for markup in self._authors:
            alone = ElementSource(markup, self._scope).standalone
            authors += alone if len(authors) + len(alone) <= MAX_AUTHORS else b""
        scope = self._scope._replace(authors=authors)
        for place in self._without_authors if authors else ():
            found = self.entries[place]
            self.entries[place] = found._replace(source=found.source._replace(scope=scope))

    def _element_bytes(self, start: int) -> bytes:
        """What ends now, from its first byte."""
        return self._document[start : self._end_offset(start)]

    def _end_offset(self, start: int) -> int:
        """Behind the tag that ends now: a tag of its own, or for an empty element the one that it began with."""
        at = self._parser.CurrentByteIndex
        if start_tag(self._document, start).endswith(b"/>"):
            return at
        return self._document.index(b">", at) + 1


class _EntryBuilder:
    """What is known of an entry so far.

    Args:
        start: Its first byte.
        name: Of the element.
        attributes: Its.

    Attributes:
        start: As given.
        authored: It has authors, or an `atom:source` that has, or was deleted: it inherits none.
    """

    def __init__(self, start: int, name: str, attributes: Mapping[str, str]) -> None:
        self.start = start
        self._child = ""
        self.authored = self._deleted = name == f"{TOMBSTONES}deleted-entry"
        self._texts: dict[str, list[str]] = {}
        if self._deleted:
            self._texts = {part: [attributes.get(part, "")] for part in _DELETED_FIELDS}

    def start_child(self, name: str) -> Callable[[str], None] | None:
        """What is to be given the text of a child, which begins; `None`: nobody wants it."""
        self._child = name
        self.authored = self.authored or name == _AUTHOR
        if self._deleted or name not in _ENTRY_FIELDS or name in self._texts:
            return None
        self._texts[name] = []
        return self._texts[name].append

    def start_grandchild(self, name: str) -> None:
        """An element begins in a child."""
        self.authored = self.authored or (self._child == _SOURCE and name == _AUTHOR)

    def build(self, source: ElementSource) -> RawEntry:
        """When it has ended."""
        name, when = _DELETED_FIELDS if self._deleted else _ENTRY_FIELDS
        return RawEntry(source, self._text(name), self._text(when), self._deleted)

    def _text(self, part: str) -> str:
        return "".join(self._texts.get(part, ())).strip()
