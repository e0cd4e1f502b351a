"""Parts of an Atom entry: dates, texts, links, people and categories (RFC 4287 §3, §4.2).

Markup is returned as its publisher wrote it. Nothing is removed, so it is only as safe as its publisher.
"""

import re
from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime
from typing import NamedTuple
from xml.etree.ElementTree import Element, tostring
from xml.sax.saxutils import escape

from push_to_poll_client._http.headers import http_date
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._atom.parser import XML, resolve_reference

MAX_DATE = 64
"""Characters of a date. A date with nanoseconds and an offset has 35."""

_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[Tt ]((?:[01]\d|2[0-3]):\d\d)(?::(\d\d)(?:[.,](\d+))?)?([Zz]|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?)?",
    re.ASCII,
)


class Instant(NamedTuple):
    """A point in time, to the last digit that the feed wrote."""

    text: str  # RFC 3339 in UTC, without trailing zeros: the same for all spellings
    time: datetime  # in the zone as written, to the microsecond; a leap second becomes the second before it

    @classmethod
    def read(cls, text: str) -> "Instant":
        """Read a date of RFC 3339, or of mail (RFC 5322), as RSS has it."""
        # Also accepted: space around the date; no time of day, seconds, zone (then UTC), or colon in the zone.
        text = text.strip()
        found = _DATE.fullmatch(text) if len(text) <= MAX_DATE else None
        if found is None:
            seconds = http_date({"date": text}, "date") if len(text) <= MAX_DATE else None
            if seconds is None:
                raise ValueError(f"{quoted(text, 40)} is not a date such as 2024-01-31T12:00:00Z (RFC 3339)")
            time = datetime.fromtimestamp(seconds, UTC)
            return cls(_format_instant(time, f"{time.second:02}", ""), time)
        day, minute, second, fraction, zone = found.groups("")
        second, fraction = second or "00", fraction.rstrip("0")
        if second > "60":
            raise ValueError(f"{quoted(text)} is not a date: its seconds must be 60 or less")
        clock = f"{minute or '00:00'}:{min(second, '59')}.{fraction[:6]:0<6}"
        try:
            time = datetime.fromisoformat(f"{day}T{clock}{zone.upper() or 'Z'}")
        except ValueError as error:
            raise ValueError(f"{quoted(text)} is not a date: {error}") from None
        return cls(_format_instant(time, second, fraction), time)

    @property
    def order(self) -> str:
        """Text that sorts as instants do."""
        return self.text.removesuffix("Z")


def _format_instant(time: datetime, second: str, fraction: str) -> str:
    with suppress(OverflowError):  # at either end of the calendar, used for default dates: treated as UTC
        time = time.astimezone(UTC)
    minute = time.isoformat(timespec="minutes")[:16]
    return f"{minute}:{second}{'.' if fraction else ''}{fraction}Z"


_XHTML = "{http://www.w3.org/1999/xhtml}"
_HTML_NAMESPACES = (_XHTML, "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1998/Math/MathML}")
"""Namespaces whose elements are written without a prefix in HTML: browsers know the names."""


def inner_html(element: Element) -> str:
    """Return the content of an element as HTML."""
    copy = deepcopy(element)
    for one in copy.iter():
        namespace = next((uri for uri in _HTML_NAMESPACES if one.tag.startswith(uri)), "")
        one.tag = one.tag.removeprefix(namespace)
    copy.tag, copy.tail = "div", None
    copy.attrib.clear()
    text = tostring(copy, encoding="unicode", method="html")
    return text[text.index(">") + 1 : text.rindex("<")]


def inner_xml(element: Element) -> str:
    """Return the content of an element as XML; each child declares its namespaces."""
    children = (tostring(child, encoding="unicode") for child in element)
    return escape(element.text or "") + "".join(children)


BASE = f"{{{XML}base"
_XML_SUFFIXES = ("+xml", "/xml")


class AtomText(NamedTuple):
    """A title, a summary or a content (RFC 4287 §3.1, §4.1.3).

    Attributes:
        text: Text for "text"; HTML, as safe as its publisher, for "html" and "xhtml"; XML for a media type of XML;
            for other media types the text, which is base64 unless the type is a text type.
        type: "text", "html", "xhtml", or a media type.
        base: Base URL of relative references in the text.
        src: Absolute URL of content stored elsewhere; `None` if the content is in the entry.
    """

    text: str
    type: str = "text"
    base: str = ""
    src: str | None = None


class AtomLink(NamedTuple):
    """A link (RFC 4287 §4.2.7).

    Attributes:
        href: Absolute URL.
        rel: Relation, "alternate" if missing; the short name of a registered relation.
        type: Expected media type; "" if missing.
        hreflang: Expected language; "" if missing.
        title: Title for people; "" if missing.
        length: Expected length in bytes; "" if missing.
    """

    href: str
    rel: str = "alternate"
    type: str = ""
    hreflang: str = ""
    title: str = ""
    length: str = ""


class AtomPerson(NamedTuple):
    """An author or a contributor (RFC 4287 §3.2). A missing value is "".

    Attributes:
        name: Name for people.
        uri: Absolute URL.
        email: E-mail address.
    """

    name: str
    uri: str = ""
    email: str = ""


class AtomCategory(NamedTuple):
    """A category (RFC 4287 §4.2.2). A missing value is "".

    Attributes:
        term: Name of the category.
        scheme: URI of the vocabulary that defines the term.
        label: Label for people.
    """

    term: str
    scheme: str = ""
    label: str = ""


def text_content(element: Element) -> str:
    """Return all text within an element."""
    return "".join(element.itertext()).strip()


def text_construct(element: Element, base: str) -> AtomText:
    """Read a title, a summary or a content; `base` is the base URL of its references."""
    type_ = element.get("type", "text").strip()
    src = element.get("src")
    if src is not None:
        return AtomText("", type_ if "type" in element.attrib else "", base, resolve_reference(base, src))
    if type_ == "xhtml":
        div = element.find(f"{_XHTML}div")  # contains the content (RFC 4287 §3.1.1.3)
        if div is None:
            return AtomText(inner_html(element), type_, base)
        return AtomText(inner_html(div), type_, resolve_reference(base, div.get(BASE, "")))
    is_xml = type_.partition(";")[0].strip().lower().endswith(_XML_SUFFIXES)
    return AtomText(inner_xml(element).strip() if is_xml else text_content(element), type_, base)
