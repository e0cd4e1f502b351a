"""One entry as a tree of elements, made when somebody asks for what is in it."""

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from xml.etree.ElementTree import Element, TreeBuilder

from push_to_poll_client.feeds._atom.xml import MAX_DEPTH, NoXML, local, new_parser, run

__all__ = ["MAX_ELEMENTS", "outline", "parse"]

MAX_ELEMENTS = 100_000
"""Of an entry: some 30 MB in memory. A book has as many."""

_MOST_SHOWN = 12


def parse(raw: bytes) -> Element:
    """The root of a document, without its comments and processing instructions. Names are `{uri}local`.

    Raises:
        ValueError: It is no well-formed XML, declares a doctype, is nested too deep or has too many elements.
    """
    builder, parser = _Builder(), new_parser()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.tree.data
    run(parser, raw)
    return builder.tree.close()


def outline(root: Element) -> str:
    """The names of what stands in an element, without what is said there: that may be secret."""
    names = Counter(child.tag for child in root)
    shown = [
        f"{local(name)} ({count})" if count > 1 else local(name)
        for name, count in islice(names.items(), _MOST_SHOWN)
    ]
    return ", ".join([*shown, "..."] if len(names) > _MOST_SHOWN else shown) or "nothing"


class _Builder:
    def __init__(self) -> None:
        self.tree = TreeBuilder()
        self._depth = self._elements = 0

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH:
            raise NoXML(f"has more than {MAX_DEPTH} elements within each other")
        if self._elements > MAX_ELEMENTS:
            raise NoXML(f"has more than {MAX_ELEMENTS} elements")
        self.tree.start(_clark(name), {_clark(key): value for key, value in attributes.items()})

    def end(self, name: str) -> None:
        self._depth -= 1
        self.tree.end(_clark(name))


def _clark(name: str) -> str:
    return f"{{{name}" if "}" in name else name
