"""The parts of an entry by RFC 4287 §3 and §4.2, made of elements. What they refer to is absolute."""

from collections.abc import Iterator
from typing import NamedTuple
from xml.etree.ElementTree import Element

from push_to_poll_client.feeds._atom.markup import division, html_within, xml_within
from push_to_poll_client.feeds._atom.source import resolved
from push_to_poll_client.feeds._atom.xml import ATOM, XML

__all__ = ["AtomCategory", "AtomLink", "AtomPerson", "AtomText", "Parts"]

_BASE = f"{{{XML}base"
_REGISTERED = "http://www.iana.org/assignments/relation/"
_XML = ("+xml", "/xml")


class AtomText(NamedTuple):
    """A title, a summary or a content (RFC 4287 §3.1, §4.1.3).

    Attributes:
        text: For "text" what it says; for "html" and "xhtml" HTML, which is as safe as its publisher; for a media
            type of XML the XML; for another one the text, which is base64 unless the type is one of text.
        type: "text", "html", "xhtml", or a media type.
        base: What is relative in it is relative to this URL.
        src: Where a content is that does not stand here, absolute; `None`: it stands here.
    """

    text: str
    type: str = "text"
    base: str = ""
    src: str | None = None


class AtomLink(NamedTuple):
    """A link (RFC 4287 §4.2.7).

    Attributes:
        href: Absolute.
        rel: Its relation, "alternate" if it does not say; a registered one by its short name.
        type: The media type to expect; "": it does not say.
        hreflang: The language to expect; "": likewise.
        title: For people; "": it has none.
        length: Bytes to expect; "": it does not say.
    """

    href: str
    rel: str = "alternate"
    type: str = ""
    hreflang: str = ""
    title: str = ""
    length: str = ""


class AtomPerson(NamedTuple):
    """An author or a contributor (RFC 4287 §3.2); "" is what it does not say.

    Attributes:
        name: For people.
        uri: Absolute.
        email: An address.
    """

    name: str
    uri: str = ""
    email: str = ""


class AtomCategory(NamedTuple):
    """A category (RFC 4287 §4.2.2); "" is what it does not say.

    Attributes:
        term: Its name.
        scheme: Whose name.
        label: For people.
    """

    term: str
    scheme: str = ""
    label: str = ""


class Parts:
    """Reads the parts of an entry.

    Args:
        entry: Its element, whose `xml:base` is absolute if it has one.
    """

    def __init__(self, entry: Element) -> None:
        self._entry = entry

    @property
    def base(self) -> str:
        """What references in it are relative to; "": nothing."""
        return self._entry.get(_BASE, "")

    def said(self, name: str) -> str | None:
        """The text of a child, without the space around it; `None`: there is none."""
        child = self._entry.find(f"{{{ATOM}{name}")
        return None if child is None else _said(child)

    def text(self, name: str, space: str = ATOM) -> AtomText | None:
        """A text construct, or the content; `None`: there is none."""
        child = self._entry.find(f"{{{space}{name}")
        return None if child is None else _text(child, self._base_of(child))

    def links(self) -> Iterator[AtomLink]:
        """Those that have a target."""
        for child in self._entry.iterfind(f"{{{ATOM}link"):
            if (href := child.get("href")) is not None:
                relation = child.get("rel", "").strip().removeprefix(_REGISTERED) or "alternate"
                about = (child.get(name, "") for name in AtomLink._fields[2:])
                yield AtomLink(resolved(self._base_of(child), href), relation, *about)

    def persons(self, name: str) -> Iterator[AtomPerson]:
        """Authors or contributors: the entry's, else those of the feed that it was taken from (§4.2.1).

        Those of its own feed are the entry's by now.
        """
        entry = self._entry
        found = entry.findall(f"{{{ATOM}{name}") or entry.findall(f"{{{ATOM}source/{{{ATOM}{name}")
        for child in found:
            person = Parts(child)
            uri = person.said("uri")
            base = self._base_of(child)
            yield AtomPerson(
                person.said("name") or "", resolved(base, uri) if uri else "", person.said("email") or ""
            )

    def categories(self) -> Iterator[AtomCategory]:
        """Those that have a term."""
        for child in self._entry.iterfind(f"{{{ATOM}category"):
            if term := child.get("term"):
                yield AtomCategory(term, child.get("scheme", ""), child.get("label", ""))

    def _base_of(self, child: Element) -> str:
        return resolved(self.base, child.get(_BASE, ""))


def _said(element: Element) -> str:
    return "".join(element.itertext()).strip()


def _text(element: Element, base: str) -> AtomText:
    kind = element.get("type", "text").strip()
    src = element.get("src")
    if src is not None:
        return AtomText("", kind if "type" in element.attrib else "", base, resolved(base, src))
    if kind == "xhtml":
        div = division(element)
        return AtomText(html_within(div), kind, base if div is element else resolved(base, div.get(_BASE, "")))
    markup = kind.partition(";")[0].strip().lower().endswith(_XML)
    return AtomText(xml_within(element).strip() if markup else _said(element), kind, base)
