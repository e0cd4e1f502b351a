"""Elements as text: XHTML as HTML, as browsers and libraries take it, other XML as it is."""

from copy import deepcopy
from xml.etree.ElementTree import Element, tostring

__all__ = ["division", "html_within", "xml_within"]

XHTML = "{http://www.w3.org/1999/xhtml}"
_OF_HTML = (XHTML, "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1998/Math/MathML}")
"""What a parser of HTML knows without being told: there are no namespaces in HTML."""


def division(element: Element) -> Element:
    """The `div` in which a text construct has its XHTML (RFC 4287 §3.1.1.3); without one, the construct."""
    found = element.find(f"{XHTML}div")
    return element if found is None else found


def html_within(element: Element) -> str:
    """What stands in an element, as HTML."""
    copy = deepcopy(element)
    for one in copy.iter():
        one.tag = _of_html(one.tag)
    return _within(copy, "html")


def xml_within(element: Element) -> str:
    """What stands in an element, each child with the namespaces that it needs."""
    before = Element("text")
    before.text = element.text
    return _within(before, "xml") + "".join(tostring(child, encoding="unicode") for child in element)


def _within(element: Element, method: str) -> str:
    """Between the tags of an element, whose attributes go."""
    element.tag, element.tail = "div", None
    element.attrib.clear()
    text = tostring(element, encoding="unicode", method=method, short_empty_elements=False)
    return text[text.index(">") + 1 : text.rindex("<")]


def _of_html(tag: str) -> str:
    """HTML has its own names, in which every browser reads SVG and MathML, too."""
    return tag.removeprefix(next((uri for uri in _OF_HTML if tag.startswith(uri)), ""))
