"""From bytes to messages: a batch of CloudEvents in JSON.

The way is short, since it is walked for every message: one pass finds where the events of the page begin and
end, a second reads of each event what tells it from others. Data and extensions wait, as bytes, until somebody
asks for them. An event keeps the bytes of its page alive; do not collect events, take from them what you need.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from push_to_poll_client._exceptions import FeedError, UndecodableMessage
from push_to_poll_client._text import quoted
from push_to_poll_client._types import Message, UnreadableMessage
from push_to_poll_client.feeds._json_split import split

__all__ = ["CloudEvent", "read_batch"]

MAX_ID = 1024
"""Characters of an id or a source. Real ones have some dozens, and each is kept as long as the dedupe record."""

MAX_UNREADABLE = 10_000
"""Unreadable events in one page: each costs a kilobyte, a byte of the page is enough to make one."""

_BOM = b"\xef\xbb\xbf"
_ID = re.compile(rb'"id"\s*:\s*("(?:[^"\\]++|\\.)*+")', re.DOTALL)
_UNREAD: Any = object()


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    id: str
    source: str | None = None
    type: str | None = None
    subject: str | None = None
    time: str | None = None
    method: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    data_base64: msgspec.Raw = msgspec.Raw()


_decode_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_attributes = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_base64 = msgspec.json.Decoder(bytes | None).decode
_decode_string = msgspec.json.Decoder(str).decode
_decode = msgspec.json.decode

# What decoding raises: msgspec's own, of invalid UTF-8 (both ValueError), of a value nested too deep.
_UNDECODABLE = (ValueError, RecursionError)


class CloudEvent(Message):
    """A message of an HTTP feed: a CloudEvent.

    Its dedupe key is made of source and id, by which CloudEvents 1.0 says what a duplicate is. Attributes that
    are missing and attributes that are `null` are the same (CloudEvents JSON format §2.2).

    Args:
        event: One event in JSON, as for tests of a handler.

    Raises:
        UndecodableMessage: It is no JSON object; has no id or one that is empty or longer than 1,024
            characters; an attribute has another type than `str`; or id or source hold what stores cannot (NUL).
    """

    __slots__ = ("_envelope", "_event")

    def __init__(self, event: bytes | msgspec.Raw) -> None:
        try:
            envelope = _decode_envelope(event)
        except _UNDECODABLE as error:
            raise UndecodableMessage(f"an event cannot be read: {quoted(error)}") from error
        name, source = envelope.id, envelope.source or ""
        if not (_can_be_kept(name) and _can_be_kept(source or "-")):
            raise UndecodableMessage(
                f"an event cannot be read: id {quoted(name)} is empty, or it or source {quoted(source)} has a NUL "
                f"or more than {MAX_ID} characters"
            )
        super().__init__(name, _UNREAD, key=f"{len(source)}:{source}{name}", cursor=name)
        self._envelope = envelope
        self._event = event

    @property
    def source(self) -> str:
        """Where the event happened, a URI reference; empty when the feed left it out."""
        return self._envelope.source or ""

    @property
    def type(self) -> str:
        """What happened; empty when the feed left it out."""
        return self._envelope.type or ""

    @property
    def subject(self) -> str | None:
        """What it happened to; in an aggregate feed the key of the entry. `None` when there is none."""
        return self._envelope.subject

    @property
    def time(self) -> str | None:
        """When it happened, as the feed wrote it (RFC 3339); `None` when it did not. Says nothing about order."""
        return self._envelope.time

    @property
    def method(self) -> str:
        """What an aggregate feed does to the subject, as the feed wrote it; "PUT" when it did not."""
        return self._envelope.method or "PUT"

    @property
    def deleted(self) -> bool:
        """Whether the subject is deleted (method "DELETE", in whatever case)."""
        return self.method.lower() == "delete"

    @property
    def attributes(self) -> dict[str, Any]:
        """All that the event says but its data, extensions included; a new dict at each reading.

        Raises:
            UndecodableMessage: One of them cannot be read.
        """
        try:
            members = _decode_attributes(self._event)
            attributes = {name: _decode(members[name]) for name in members.keys() - {"data", "data_base64"}}
        except _UNDECODABLE as error:
            raise self._undecodable("attributes", error) from error
        return {name: value for name, value in attributes.items() if value is not None}

    @property
    def data(self) -> Any:
        """The event's `data`, else the bytes of its `data_base64`; `None` when it has neither.

        Decoded when first read, and then kept.

        Raises:
            UndecodableMessage: It cannot be read. Let it pass through the handler.
        """
        if self._data is _UNREAD:
            self._data = self._read_data()
        return self._data

    def _read_data(self) -> Any:
        envelope = self._envelope
        try:
            data = _decode(envelope.data) if envelope.data else None
            if data is None and envelope.data_base64:
                return _decode_base64(envelope.data_base64)
        except _UNDECODABLE as error:
            raise self._undecodable("data", error) from error
        return data

    def _undecodable(self, what: str, error: Exception) -> UndecodableMessage:
        return UndecodableMessage(f"the {what} of event {quoted(self.id)} cannot be read: {quoted(error)}")


def read_batch(page: bytes, where: str) -> list[Message]:
    """Read a page of CloudEvents (CloudEvents JSON format §4).

    How many events a page may have is bounded by its size alone.

    Args:
        page: A JSON array of events.
        where: The URL without secrets, for errors.

    Returns:
        A `CloudEvent` for each that can be read, an `UnreadableMessage` for each other, in the feed's order.

    Raises:
        FeedError: The page is no JSON array, is cut, or has more than 10,000 unreadable events.
    """
    messages, unreadable = list[Message](), 0
    for event in _events(page.removeprefix(_BOM), where):
        try:
            messages.append(CloudEvent(event))
        except UndecodableMessage as error:
            unreadable += 1
            if unreadable > MAX_UNREADABLE:
                raise FeedError(
                    f"{where} sent a page with more than {MAX_UNREADABLE} unreadable events"
                ) from error
            messages.append(_unreadable(bytes(event), f"{where}: {error}; its publisher has to correct it"))
    return messages


def _events(page: bytes, where: str) -> Sequence[bytes | msgspec.Raw]:
    try:
        return _decode_batch(page)
    except _UNDECODABLE:  # one bad event fails them all
        try:
            return list(split(page, b"[]"))
        except ValueError as error:
            # What stands in an array are messages, which stay out of logs.
            start = (
                "" if page.startswith(b"[") else f" that begins with {quoted(page[:40].decode(errors='replace'))}"
            )
            raise FeedError(f"{where} sent no JSON array of events: {error} ({len(page)} bytes{start})") from error


def _unreadable(event: bytes, why: str) -> UnreadableMessage:
    # The error is made, not caught: a caught one would keep the whole page alive by its traceback.
    digest = f"unreadable:{hashlib.sha256(event).hexdigest()[:32]}"
    name = _id_of(event)
    return UnreadableMessage(name or digest, UndecodableMessage(why), key=digest, cursor=name)


def _id_of(event: bytes) -> str | None:
    """The id of an event that cannot be read, if that much of it can."""
    name = None
    try:
        for member in split(event, b"{}"):
            if found := _ID.fullmatch(member):
                name = _decode_string(found[1])
    except _UNDECODABLE:
        return None
    return name if name and _can_be_kept(name) else None


def _can_be_kept(name: str) -> bool:
    """Whether every store and URL takes it."""
    # Lone surrogates, which neither does, the decoder has refused already.
    return 0 < len(name) <= MAX_ID and "\0" not in name
