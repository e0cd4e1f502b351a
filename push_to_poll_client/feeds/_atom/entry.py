"""Make messages of Atom entries.

`AtomEntry` is the handler's message; `UnreadableEntry` replaces an entry without an id or a date. Both come from a
`RawEntry`, in which the parser has read only id and date. The entry becomes a tree when a property first needs it.
Texts of a `ValueError` continue after "it".
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from types import MappingProxyType
from xml.etree.ElementTree import Element, TreeBuilder

from push_to_poll_client._exceptions import DecodeError
from push_to_poll_client._types import DeadLetter, Message, UnreadableMessage
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._atom.constructs import (
    BASE,
    AtomCategory,
    AtomLink,
    AtomPerson,
    AtomText,
    Instant,
    text_construct,
    text_content,
)
from push_to_poll_client.feeds._atom.parser import (
    ATOM,
    MAX_DEPTH,
    REGISTERED,
    TOMBSTONES,
    InvalidXML,
    RawEntry,
    local_name,
    new_parser,
    resolve_reference,
    run_parser,
)
from push_to_poll_client.feeds._decoding import MAX_ID, MAX_UNREADABLE, unreadable_key

MAX_ELEMENTS = 100_000
"""Elements of an entry: about 30 MB in memory, as many as in a book."""

_MAX_SHOWN = 12


def parse(raw: bytes) -> Element:
    """Parse a document to its root, without comments and processing instructions. Names are `{uri}local`."""
    builder, parser = _Builder(), new_parser()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.tree.data
    run_parser(parser, raw)
    return builder.tree.close()


def outline(root: Element) -> str:
    """Name the children of an element, without their content, which may be secret."""
    names = Counter(child.tag for child in root)
    shown = [
        f"{local_name(name)} ({count})" if count > 1 else local_name(name)
        for name, count in islice(names.items(), _MAX_SHOWN)
    ]
    return ", ".join([*shown, "..."] if len(names) > _MAX_SHOWN else shown) or "nothing"


class _Builder:
    def __init__(self) -> None:
        self.tree = TreeBuilder()
        self._depth = self._elements = 0

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH:
            raise InvalidXML(f"has elements nested deeper than {MAX_DEPTH} levels")
        if self._elements > MAX_ELEMENTS:
            raise InvalidXML(f"has more than {MAX_ELEMENTS} elements")
        self.tree.start(_clark(name), {_clark(key): value for key, value in attributes.items()})

    def end(self, name: str) -> None:
        self._depth -= 1
        self.tree.end(_clark(name))


def _clark(name: str) -> str:
    return f"{{{name}" if "}" in name else name


_ENTRY = f"{{{ATOM}entry"
_DELETED_ENTRY = f"{{{TOMBSTONES}deleted-entry"
_ENTRY_FIELDS, _DELETED_FIELDS = ("id", "updated"), ("ref", "when")


def _child_text(element: Element, name: str) -> str | None:
    child = element.find(f"{{{ATOM}{name}")
    return None if child is None else text_content(child)


class AtomEntry(Message[Element]):
    """Message of an `AtomFeed`: one version of an entry, or its deletion.

    A version is identified by its `atom:id` and the time of its `atom:updated`, in any spelling. A change that its
    publisher does not call significant (RFC 4287 §4.2.15) is the same version.

    Other parts of an entry are parsed at first use. Each property except `entry_id`, `updated`, `deleted` and
    `raw` raises `DecodeError` for an entry that is nested too deep or has too many elements. Do not catch this in
    the handler.

    To make an entry, for example to test a handler, use `AtomEntry.from_xml`.

    Args:
        entry: The entry as read by the parser.
        instant: Time of the change.
        again: Number of times that the entry was gone and came back unchanged.
    """

    __slots__ = ("_element", "_entry", "_instant")

    def __init__(self, entry: RawEntry, instant: Instant, *, again: int = 0) -> None:
        name, key = _id_and_key(entry.name, instant.text, again, deleted=entry.deleted)
        super().__init__(name, dedupe_key=key)
        self._entry = entry
        self._instant = instant
        self._element: Element | None = None

    @staticmethod
    def from_xml(entry: bytes) -> "AtomEntry":
        """Read an `atom:entry` or an `at:deleted-entry` from a standalone document in UTF-8.

        Raises:
            DecodeError: It is neither, or its id or date is missing or cannot be read.
        """
        there = ""
        try:
            root = parse(entry)
            if root.tag not in {_ENTRY, _DELETED_ENTRY}:
                raise ValueError(f"is not an Atom entry: its root is {local_name(root.tag)}")  # noqa: TRY301
            there = f"; found {outline(root)}"
            deleted = root.tag == _DELETED_ENTRY
            read, fields = (root.get, _DELETED_FIELDS) if deleted else (partial(_child_text, root), _ENTRY_FIELDS)
            name, when = ((read(field) or "").strip() for field in fields)
            message = entry_of(RawEntry(entry, name, when, deleted))
        except ValueError as error:
            raise DecodeError(f"an entry cannot be read: it {error}{there}") from error
        message._element = root  # noqa: SLF001  # it is parsed already
        return message

    @property
    def entry_id(self) -> str:
        """The `atom:id`, which all versions of the entry share; for a deletion the `ref`."""
        return self._entry.name

    @property
    def updated(self) -> datetime:
        """Time of the last change, in the zone as written, or UTC.

        For a deletion, its time; for an entry that left a complete feed, the time of its last change.
        """
        return self._instant.time

    @property
    def order(self) -> str:
        """Sort key of messages, oldest first."""
        return self._instant.order

    @property
    def deleted(self) -> bool:
        """True if the entry was deleted: by an `at:deleted-entry` (RFC 6721), or it left a complete feed."""
        return self._entry.deleted

    @property
    def published(self) -> datetime | None:
        """Time of the first publication; None if missing.

        Raises:
            DecodeError: The date cannot be read.
        """
        published = _child_text(self.data, "published")
        try:
            return None if published is None else Instant.read(published).time
        except ValueError as error:
            raise DecodeError(f"the publication date of entry {quoted(self.id)} cannot be read: {error}") from None

    @property
    def title(self) -> AtomText | None:
        """Title; None if there is none."""
        return self._construct("title")

    @property
    def summary(self) -> AtomText | None:
        """Summary; for a deletion its comment. None if there is none."""
        return self._construct("comment", TOMBSTONES) if self.deleted else self._construct("summary")

    @property
    def content(self) -> AtomText | None:
        """Content, or a reference to it; None if there is neither."""
        return self._construct("content")

    @property
    def links(self) -> Sequence[AtomLink]:
        """Links of the entry."""
        links = []
        for child in self.data.iterfind(f"{{{ATOM}link"):
            if (href := child.get("href")) is not None:
                relation = child.get("rel", "").strip().removeprefix(REGISTERED) or "alternate"
                rest = (child.get(name, "") for name in AtomLink._fields[2:])
                links.append(AtomLink(resolve_reference(self._base_of(child), href), relation, *rest))
        return links

    def link(self, rel: str = "alternate") -> str | None:
        """Return the absolute target of the first link with a relation; None if there is none."""
        return next((link.href for link in self.links if link.rel.lower() == rel.lower()), None)

    @property
    def authors(self) -> Sequence[AtomPerson]:
        """Authors of the entry; if it has none, of its `atom:source`; otherwise of the feed."""
        # The parser has added the authors of the feed, if the entry has none.
        entry = self.data
        found = entry.findall(f"{{{ATOM}author") or entry.findall(f"{{{ATOM}source/{{{ATOM}author")
        authors = []
        for child in found:
            name, uri, email = (_child_text(child, field) or "" for field in AtomPerson._fields)
            authors.append(AtomPerson(name, resolve_reference(self._base_of(child), uri) if uri else "", email))
        return authors

    @property
    def categories(self) -> Sequence[AtomCategory]:
        """Categories of the entry."""
        found = self.data.iterfind(f"{{{ATOM}category")
        return [
            AtomCategory(term, child.get("scheme", ""), child.get("label", ""))
            for child in found
            if (term := child.get("term"))
        ]

    @property
    def base(self) -> str:
        """Base of relative references, unless an inner element has its own; "" if there is none."""
        return self.data.get(BASE, "")

    def _base_of(self, child: Element) -> str:
        return resolve_reference(self.base, child.get(BASE, ""))

    def _construct(self, name: str, space: str = ATOM) -> AtomText | None:
        child = self.data.find(f"{{{space}{name}")
        return None if child is None else text_construct(child, self._base_of(child))

    @property
    def data(self) -> Element:
        """The whole entry as an element of `xml.etree`, including parts without a property here."""
        if self._element is None:
            try:
                self._element = parse(self.raw)
            except ValueError as error:
                raise DecodeError(f"entry {quoted(self.id)} cannot be read: it {error}") from None
        return self._element

    @property
    def raw(self) -> bytes:
        """The entry as a standalone document in UTF-8, with everything it inherits.

        It inherits the declarations of the feed's root tag, and the feed's authors if it has none (§4.2.1).
        """
        return self._entry.standalone


def entry_of(raw: RawEntry, *, again: int = 0) -> AtomEntry:
    """Make the message of an entry; raise ValueError if its id or date is missing or cannot be read."""
    id_field, date_field = _DELETED_FIELDS if raw.deleted else _ENTRY_FIELDS
    if not raw.name or not raw.when:
        raise ValueError(f"has no {date_field if raw.name else id_field}")
    if len(raw.name) > MAX_ID:
        raise ValueError(f"has an {id_field} of more than {MAX_ID} characters")
    try:
        instant = Instant.read(raw.when)
    except ValueError as error:
        raise ValueError(f"has an invalid {date_field}: {error}") from None
    return AtomEntry(raw, instant, again=again)


def restore_entry(letter: DeadLetter) -> AtomEntry | UnreadableMessage:
    """Make the message of a dead letter; an `UnreadableMessage` if it still cannot be read."""
    try:
        message = AtomEntry.from_xml(letter.raw)
    except DecodeError as error:
        return UnreadableMessage(letter.id, error, dedupe_key=letter.dedupe_key, raw=letter.raw)
    message._id, message._key = letter.id, letter.dedupe_key  # noqa: SLF001  # as in the dead letter
    return message


def _id_and_key(entry_id: str, instant: str, again: int, *, deleted: bool) -> tuple[str, str]:
    """Make the id and the dedupe key of a version. The length in the key marks the end of the id."""
    name, key = f"{entry_id}@{instant}", f"{len(entry_id)}:{entry_id}:{instant}"
    if deleted:
        name, key = f"{name} deleted", f"deleted:{key}"
    return (f"{name} ({again})", f"{key}:{again}") if again else (name, key)


_NEWEST_SORT_KEY = "9999"
_NEVER_DELETED: Mapping[str, int] = MappingProxyType({})


class UnreadableEntry(UnreadableMessage):
    """An entry without an id or a date."""

    __slots__ = ("order",)

    def __init__(self, raw: RawEntry, reason: str, order: str) -> None:
        key = unreadable_key(raw.markup)
        name = raw.name if 0 < len(raw.name) <= MAX_ID else key
        error = DecodeError(f"an entry cannot be read: it {reason}; report it to the publisher")
        super().__init__(name, error, dedupe_key=key, raw=raw.standalone)
        self.order = order  # of the previous entry in the document


def sort_key(message: Message) -> str:
    """Sort key for the messages of this feed, oldest first."""
    return message.order if isinstance(message, AtomEntry | UnreadableEntry) else ""


def messages_of(entries: Sequence[RawEntry], again: Mapping[str, int] = _NEVER_DELETED) -> list[Message]:
    """Make the messages of a document, newest first; entries of the same time keep their order."""
    messages: list[Message] = []
    order, unreadable = _NEWEST_SORT_KEY, 0
    for raw in entries:
        try:
            message: Message = entry_of(raw, again=0 if raw.deleted else again.get(raw.name, 0))
        except ValueError as error:
            unreadable += 1
            if unreadable > MAX_UNREADABLE:
                raise ValueError(f"has more than {MAX_UNREADABLE} unreadable entries") from None
            message = UnreadableEntry(raw, f"{error}; found {_describe_entry(raw)}", order)
        order = sort_key(message)
        messages.append(message)
    messages.sort(key=sort_key, reverse=True)
    return messages


def _describe_entry(raw: RawEntry) -> str:
    try:
        return outline(parse(raw.standalone))
    except ValueError:
        return "too much"
