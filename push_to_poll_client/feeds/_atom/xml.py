"""HOW XML IS PARSED: by expat, without a doctype, hence without entities and without anything from elsewhere.

expat looks at a tag or a comment again with each piece of the document that it is given, from its beginning: its
versions before 2.6 take quadratic time for a long one. So pieces are large, and what is longer is refused.
"""

from xml.parsers import expat

from push_to_poll_client._validation import quoted

__all__ = ["ATOM", "HISTORY", "MAX_DEPTH", "TOMBSTONES", "XML", "NoXML", "local", "new_parser", "run"]

MAX_DEPTH = 100
"""Elements within each other, from the entry on. Articles have some 20."""

MAX_TAG = 1024 * 1024
"""Bytes of a tag, a comment or a processing instruction. It bounds its attributes, each of which takes 100."""

_PIECE = 256 * 1024

ATOM = "http://www.w3.org/2005/Atom}"
HISTORY = "http://purl.org/syndication/history/1.0}"
TOMBSTONES = "http://purl.org/atompub/tombstones/1.0}"
XML = "http://www.w3.org/XML/1998/namespace}"
"""What stands before a name of RFC 4287, RFC 5005, RFC 6721 and XML itself."""

_ENDS_EARLY = frozenset(
    expat.errors.codes[text]
    for text in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
    )
)


class NoXML(ValueError):
    """A document is not to be parsed; the text goes on after its name."""


def new_parser() -> expat.XMLParserType:
    """One for UTF-8 that refuses doctypes. Names are given as `uri}local`."""
    parser = expat.ParserCreate("utf-8", "}")
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.buffer_text = True
    return parser


def run(parser: expat.XMLParserType, document: bytes) -> None:
    """Parse a document, in UTF-8.

    Raises:
        NoXML: It is no well-formed XML, declares a doctype, or has too long a tag.
        ValueError: A handler said so.
    """
    try:
        for start in range(0, len(document), _PIECE):
            piece = document[start : start + _PIECE]
            parser.Parse(piece, False)  # noqa: FBT003  # it takes no keywords
            if start + len(piece) - parser.CurrentByteIndex > MAX_TAG:
                raise NoXML(f"has a tag or a comment of more than {MAX_TAG} bytes")
        parser.Parse(b"", True)  # noqa: FBT003
    except expat.ExpatError as error:
        what = "ends in the middle" if error.code in _ENDS_EARLY else expat.ErrorString(error.code)
        raise NoXML(f"is no well-formed XML: {what} at line {error.lineno}, column {error.offset}") from None


def local(name: str) -> str:
    """A name without its namespace, fit to be shown."""
    return quoted(name.rpartition("}")[2], 40)


def _refuse_doctype(name: str, *_: object) -> None:
    raise NoXML(f"declares a doctype {quoted(name, 40)}, which no feed needs and is refused: it can be an attack")
