"""Parse an Atom document into its entries, safely and in linear time.

Documents may be hostile. Doctypes are refused, and with them entities and their expansion. Depth, tags, references
and inherited data are bounded.

expat before version 2.6 scans a long tag or comment again with each piece of the document, which takes quadratic
time. So pieces are large, and longer tags and comments are refused.

`read_document` makes one pass, and reads only the id and the date of each entry: most entries of a polled feed are
already known. The rest is read when the handler asks for it, from the entry's bytes (`RawEntry`) and from the data
inherited from the root of the document (`Scope`).

Texts of errors continue after a subject such as "a document that".
"""

import codecs
import re
from dataclasses import dataclass, field
from html import unescape
from typing import NamedTuple
from urllib.parse import urljoin
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from push_to_poll_client._validation import quoted

MAX_DEPTH = 100
"""Levels of nested elements, counted from the entry. Articles have about 20."""

MAX_TAG = 1024 * 1024
"""Bytes of a tag, a comment or a processing instruction. It bounds attributes, at 100 bytes each."""

_PIECE_SIZE = 256 * 1024

ATOM = "http://www.w3.org/2005/Atom}"
HISTORY = "http://purl.org/syndication/history/1.0}"
TOMBSTONES = "http://purl.org/atompub/tombstones/1.0}"
XML = "http://www.w3.org/XML/1998/namespace}"
"""Prefixes of the names of RFC 4287, RFC 5005, RFC 6721 and XML itself, as expat gives them."""

_TRUNCATED_ERRORS = {
    expat.errors.XML_ERROR_NO_ELEMENTS,
    expat.errors.XML_ERROR_UNCLOSED_TOKEN,
    expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
    expat.errors.XML_ERROR_PARTIAL_CHAR,
}


class InvalidXML(ValueError):
    """A document cannot be parsed; the text continues after the name of the document."""


def new_parser() -> expat.XMLParserType:
    """Make a parser for UTF-8 that refuses doctypes. It gives names as `uri}local`."""
    parser = expat.ParserCreate("utf-8", "}")
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.buffer_text = True
    return parser


def run_parser(parser: expat.XMLParserType, document: bytes) -> None:
    """Parse a document in UTF-8; raise InvalidXML, or the ValueError of a handler."""
    try:
        for start in range(0, len(document), _PIECE_SIZE):
            piece = document[start : start + _PIECE_SIZE]
            parser.Parse(piece, False)  # noqa: FBT003  # it takes no keywords
            if start + len(piece) - parser.CurrentByteIndex > MAX_TAG:
                raise InvalidXML(f"has a tag or a comment of more than {MAX_TAG} bytes")
        parser.Parse(b"", True)  # noqa: FBT003
    except expat.ExpatError as error:
        text = expat.ErrorString(error.code)
        reason = "it is cut off" if text in _TRUNCATED_ERRORS else text
        where = f"at line {error.lineno}, column {error.offset}"
        raise InvalidXML(f"is not well-formed XML: {reason} {where}") from None


def local_name(name: str) -> str:
    """Return a name without its namespace, shortened and quoted for an error."""
    return quoted(name.rpartition("}")[2], 40)


def _refuse_doctype(name: str, *_: object) -> None:
    raise InvalidXML(
        f"declares a doctype {quoted(name, 40)}, which is refused: it can be an attack, and no feed needs it"
    )


_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the start of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_UTF16_WITHOUT_BOM = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}

_HTTP_CHARSET = re.compile(r';[ \t]*charset[ \t]*=[ \t]*"?([^\s";]+)', re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""<\?xml[^>]{1,200}?\sencoding\s{0,20}=\s{0,20}["']([^"'>]*)""")
_CODEC_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,39}")

_NOT_FOR_TEXT = frozenset({"idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})
"""Codecs of Python that no server sends; some take quadratic time."""

_UTF8_CODECS = frozenset({"utf-8", "ascii"})
"""Not transcoded. Unconfigured servers say "ascii", and the document is parsed as UTF-8."""


def as_utf8(body: bytes, content_type: str) -> bytes:
    """Convert a document to UTF-8; raise ValueError if its encoding is unknown or wrong."""
    # A byte order mark wins over the `charset` of the header, which wins over the XML declaration.
    for mark, name in _BOMS:
        if body.startswith(mark):
            return _transcode(body[len(mark) :], name)
    stated = _HTTP_CHARSET.search(content_type)
    if stated:
        return _transcode(body, stated[1])
    without_bom = _UTF16_WITHOUT_BOM.get(body[:2])
    declared = _XML_ENCODING.match(body)
    return _transcode(body, without_bom or (declared[1].decode("latin-1") if declared else "utf-8"))


def _transcode(body: bytes, name: str) -> bytes:
    try:
        codec = codecs.lookup(name).name if _CODEC_NAME.fullmatch(name) else ""
        if codec in _UTF8_CODECS:
            return body
        if codec and codec not in _NOT_FOR_TEXT:
            return body.decode(codec).encode()
    except LookupError:  # unknown, or not a text codec
        pass
    except UnicodeError as error:
        raise ValueError(f"is not in its stated encoding {quoted(name)}: {quoted(error)}") from None
    raise ValueError(f"has the unknown encoding {quoted(name)}; ask its publisher for UTF-8")


MAX_URL = 8_192
"""Characters of a reference and its base together, since each link copies the base."""

# These run on parsed, well-formed documents only, so they need not be strict.
_START_TAG = re.compile(rb"""<(?:[^>"']++|"[^"]*+"|'[^']*+')*+>""")

_NAME = re.compile(r"<[^\s/>]++")
_ATTRIBUTE = re.compile(r"""(?<!\s)\s++([^\s=]++)\s*+=\s*+("[^"]*+"|'[^']*+')""")


@dataclass(slots=True)
class Scope:
    """Data that entries inherit from the root of their document."""

    base: str  # absolute
    attributes: dict[str, str] = field(default_factory=dict)  # namespaces, base and language, each quoted
    authors: bytes = b""  # each as a standalone document (RFC 4287 §4.2.1)

    def apply(self, markup: bytes, authors: bytes = b"") -> bytes:
        """Make a standalone document of an element, in UTF-8, with the same meaning."""
        tag = start_tag(markup)
        text = tag.decode()
        own = dict(_ATTRIBUTE.findall(text))
        if "xml:base" in own:
            own["xml:base"] = quoteattr(resolve_reference(self.base, unescape(own["xml:base"][1:-1])))
        attributes = "".join(f" {name}={value}" for name, value in (self.attributes | own).items())
        end, authors = ("/>", b"") if text.endswith("/>") else (">", authors)
        return f"{_NAME.findall(text)[0]}{attributes}{end}".encode() + authors + markup[len(tag) :]


def start_tag(document: bytes, start: int = 0) -> bytes:
    """Return the start tag, or empty-element tag, at a position of a well-formed document."""
    return next(_START_TAG.finditer(document, start))[0]


def resolve_reference(base: str, reference: str) -> str:
    """Make a reference absolute (RFC 3986 §5.2); an invalid or too long one stays unchanged."""
    if len(base) + len(reference) > MAX_URL:
        return reference
    try:
        return urljoin(base, reference.strip())
    except ValueError:
        return reference


MAX_SCOPE = 8_192
"""Characters of inherited namespaces, base and language. Each entry that is read copies them."""

MAX_AUTHORS = 16_384
"""Bytes of a feed's inherited authors, about fifty; others are dropped. Entries copy them."""

MAX_DOCUMENT_DEPTH = 1_000
"""Levels of nested elements, at a hundred bytes each in expat. An entry alone may have far fewer."""

_RELATIONS = frozenset({"next", "prev-archive", "current"})
REGISTERED = "http://www.iana.org/assignments/relation/"

_HTML_PAGE_ERROR = "is an HTML page; check that the URL leads to the feed and not to a login page"
_is_html_page = re.compile(rb"\s*+(?:<\?xml[^>]{,200}+>\s*+)?<(?:!doctype\s+)?html\b", re.IGNORECASE).match

_OTHER_ROOTS = {
    "rss": "is RSS, which does not mark changed entries; ask its publisher for Atom",
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#}RDF": "is RSS 1.0; ask its publisher for Atom",
    "http://purl.org/atom/ns#}feed": "is Atom 0.3, a draft of 2003; ask its publisher for Atom 1.0",
    f"{ATOM}entry": "is a single entry; use the URL of the feed",
    "feed": "has the root 'feed', but not in the Atom namespace",
    "html": _HTML_PAGE_ERROR,
    "http://www.w3.org/1999/xhtml}html": _HTML_PAGE_ERROR,
}
"""Roots of documents that are often configured instead of an Atom feed."""

_ENTRY, _DELETED_ENTRY = f"{ATOM}entry", f"{TOMBSTONES}deleted-entry"
_DELETED_FIELDS = ("ref", "when")
_ENTRY_FIELDS = {_ENTRY: (f"{ATOM}id", f"{ATOM}updated"), _DELETED_ENTRY: _DELETED_FIELDS}
"""Id and date: child elements of an entry, attributes of a deletion."""

_AUTHOR, _SOURCE = f"{ATOM}author", f"{ATOM}source"

_FEED_CHILD_DEPTH, _ENTRY_CHILD_DEPTH, _SOURCE_CHILD_DEPTH = 2, 3, 4
"""The depth of the children of each; the root has depth 1."""


class RawEntry(NamedTuple):
    """An entry, or an `at:deleted-entry` (RFC 6721), of which only id and date are read."""

    markup: bytes  # as in its document, in UTF-8
    name: str  # its `atom:id`, or the `ref` of a deletion; "" if missing
    when: str  # its `atom:updated`, or the `when` of a deletion, as written; "" if missing
    deleted: bool
    scope: Scope | None = None  # None for a standalone document
    inherits_authors: bool = False

    @property
    def standalone(self) -> bytes:
        """The entry as a standalone document with the same meaning."""
        if self.scope is None:
            return self.markup
        return self.scope.apply(self.markup, self.scope.authors if self.inherits_authors else b"")


def read_document(body: bytes, content_type: str, url: str, *, max_entries: int) -> "AtomDocument":
    """Read a document of a feed; raise ValueError if it is invalid or exceeds a limit."""
    # `url` is the base of relative references if the document declares none; it must not hold a secret.
    try:
        document = as_utf8(body, content_type)
        found = AtomDocument(document, url, max_entries)
        found.parse()
    except ValueError as error:
        raise ValueError(_HTML_PAGE_ERROR if _is_html_page(body) else str(error)) from None
    return found


class AtomDocument:
    """A document of a feed in UTF-8, collected from the events of expat."""

    def __init__(self, document: bytes, url: str, max_entries: int) -> None:
        self.entries: list[RawEntry] = []  # their order has no meaning (RFC 4287 §4.1.1)
        self.links: dict[str, str] = {}  # by the relations of RFC 5005; absolute, or as written if invalid
        self.complete = self.archive = False  # RFC 5005 §2 and §4
        self.size = len(document)
        self._document = document
        self._max_entries = max_entries
        self._scope = Scope(base=url)
        self._namespaces: dict[str, str] = {}
        self._depth = self._start_index = 0
        self._child = self._grandchild = ""  # of the root
        self._texts: dict[str, list[str]] = {}  # of the entry that is being read
        self._has_authors = False  # or a source with authors, or is a deletion: then it inherits none
        self._authors: list[bytes] = []
        self._parser = new_parser()
        self._parser.StartNamespaceDeclHandler = self._declare_namespace
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end

    def parse(self) -> None:
        """Read the document; raise ValueError with the reason and the position."""
        try:
            run_parser(self._parser, self._document)
        except InvalidXML as error:
            raise ValueError(f"{error}{self._describe_position()}") from None
        for markup in self._authors:  # they can follow the entries
            author = self._scope.apply(markup)
            if len(self._scope.authors) + len(author) <= MAX_AUTHORS:
                self._scope.authors += author

    def _describe_position(self) -> str:
        """Describe the position of a fault, without quoting the document, which may be secret."""
        if not self._depth:
            first = self._document.lstrip()[:1].decode("latin-1")
            return f" ({len(self._document)} bytes that begin with {quoted(first)})"
        count = len(self.entries)
        return f", in entry {count + 1}" if self._child in _ENTRY_FIELDS else f", after {count} entries"

    def _declare_namespace(self, prefix: str | None, uri: str | None) -> None:
        self._namespaces[f"xmlns:{prefix}" if prefix else "xmlns"] = uri or ""

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _ENTRY_CHILD_DEPTH:
            if self._depth > MAX_DOCUMENT_DEPTH:
                raise InvalidXML(f"has elements nested deeper than {MAX_DOCUMENT_DEPTH} levels")
            if self._depth == _SOURCE_CHILD_DEPTH and self._grandchild == _SOURCE and name == _AUTHOR:
                self._has_authors = True
        elif self._depth == _ENTRY_CHILD_DEPTH:
            self._grandchild = name
            self._has_authors = self._has_authors or name == _AUTHOR
            if self._child == _ENTRY and name in _ENTRY_FIELDS[_ENTRY] and name not in self._texts:
                self._parser.CharacterDataHandler = self._texts.setdefault(name, []).append
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
        if self._child in _ENTRY_FIELDS:
            name, when = ("".join(self._texts.get(key, ())).strip() for key in _ENTRY_FIELDS[self._child])
            deleted, inherits = self._child == _DELETED_ENTRY, not self._has_authors
            self.entries.append(RawEntry(self._element_bytes(), name, when, deleted, self._scope, inherits))
        elif self._child == _AUTHOR:
            self._authors.append(self._element_bytes())
        self._child = ""

    def _start_root(self, name: str, attributes: dict[str, str]) -> None:
        if name != f"{ATOM}feed":
            raise ValueError(_OTHER_ROOTS.get(name) or f"is not an Atom feed: its root is {local_name(name)}")
        self._parser.StartNamespaceDeclHandler = None
        base = self._scope.base = resolve_reference(self._scope.base, attributes.get(f"{XML}base", ""))
        inherited = {**self._namespaces, "xml:base": base, "xml:lang": attributes.get(f"{XML}lang", "")}
        if sum(len(name) + len(value) for name, value in inherited.items()) > MAX_SCOPE:
            raise ValueError(
                f"has more than {MAX_SCOPE} characters of namespaces, xml:base and xml:lang at its root"
            )
        self._scope.attributes = {
            name: quoteattr(value, {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})
            for name, value in inherited.items()
            if value or name.startswith("xmlns")
        }

    def _start_child(self, name: str, attributes: dict[str, str]) -> None:
        self._child, self._start_index = name, self._parser.CurrentByteIndex
        if name in _ENTRY_FIELDS:
            if len(self.entries) >= self._max_entries:
                raise ValueError(f"has more than {self._max_entries} entries; raise max_body= to accept it")
            self._has_authors = name == _DELETED_ENTRY
            self._texts = {key: [attributes[key]] for key in _DELETED_FIELDS if key in attributes}
        elif name == f"{ATOM}link":
            self._add_link(attributes)
        elif name.startswith(HISTORY):
            self.complete = self.complete or name == f"{HISTORY}complete"
            self.archive = self.archive or name == f"{HISTORY}archive"

    def _add_link(self, attributes: dict[str, str]) -> None:
        relation = attributes.get("rel", "").strip().removeprefix(REGISTERED).lower()
        if relation in _RELATIONS and relation not in self.links and "href" in attributes:
            base = resolve_reference(self._scope.base, attributes.get(f"{XML}base", ""))
            self.links[relation] = resolve_reference(base, attributes["href"])

    def _element_bytes(self) -> bytes:
        """Return the bytes of the child of the root that ends now."""
        end = self._parser.CurrentByteIndex  # after an empty element; else before the end tag
        if not start_tag(self._document, self._start_index).endswith(b"/>"):
            end = self._document.index(b">", end) + 1
        return self._document[self._start_index : end]
