"""An entry as it stands in its document, and as one of its own, into which is written what it inherits."""

import re
from html import unescape
from typing import NamedTuple
from urllib.parse import urljoin
from xml.sax.saxutils import quoteattr

__all__ = ["MAX_URL", "Scope", "Source", "resolved", "start_tag"]

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


class Source(NamedTuple):
    """An element as it stands in its document, in UTF-8.

    Attributes:
        markup: From its first byte to its last.
        scope: What it inherits; `None`: nothing, it is a document of its own.
    """

    markup: bytes
    scope: Scope | None = None

    @property
    def alone(self) -> bytes:
        """As a document of its own, which says the same."""
        if self.scope is None:
            return self.markup
        tag = start_tag(self.markup)
        text = tag.decode()
        own = dict(_ATTRIBUTE.findall(text))
        if "xml:base" in own:
            own["xml:base"] = quoteattr(resolved(self.scope.base, unescape(own["xml:base"][1:-1])))
        attributes = "".join(f" {name}={value}" for name, value in (self.scope.attributes | own).items())
        end, authors = ("/>", b"") if text.endswith("/>") else (">", self.scope.authors)
        return f"{_NAME.findall(text)[0]}{attributes}{end}".encode() + authors + self.markup[len(tag) :]


def start_tag(document: bytes, start: int = 0) -> bytes:
    """The start tag, or the tag of the empty element, at a place of a well-formed document."""
    return next(_START_TAG.finditer(document, start))[0]


def resolved(base: str, reference: str) -> str:
    """A reference, absolute (RFC 3986 §5.2); one that is none, or is too long, as it was written."""
    if len(base) + len(reference) > MAX_URL:
        return reference
    try:
        return urljoin(base, reference.strip())
    except ValueError:
        return reference
