"""Elements as text: XHTML as HTML, as browsers and libraries take it, other XML as it is."""

from copy import deepcopy
from xml.etree.ElementTree import Element, tostring
from xml.sax.saxutils import escape

__all__ = ["division", "html_within", "xml_within"]

_XHTML = "{http://www.w3.org/1999/xhtml}"
_OF_HTML = (_XHTML, "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1998/Math/MathML}")
"""What a parser of HTML knows without being told: there are no namespaces in HTML."""


def division(element: Element) -> Element:
    """The `div` in which a text construct has its XHTML (RFC 4287 §3.1.1.3); without one, the construct."""
    found = element.find(f"{_XHTML}div")
    return element if found is None else found


def html_within(element: Element) -> str:
    """What stands in an element, as HTML."""
    copy = deepcopy(element)
    for one in copy.iter():
        one.tag = _of_html(one.tag)
    copy.tag, copy.tail = "div", None
    copy.attrib.clear()
    text = tostring(copy, encoding="unicode", method="html")
    return text[text.index(">") + 1 : text.rindex("<")]


def xml_within(element: Element) -> str:
    """What stands in an element, each child with the namespaces that it needs."""
    children = (tostring(child, encoding="unicode") for child in element)
    return escape(element.text or "") + "".join(children)


def _of_html(tag: str) -> str:
    """HTML has its own names, in which every browser reads SVG and MathML, too."""
    return tag.removeprefix(next((uri for uri in _OF_HTML if tag.startswith(uri)), ""))
