"""Decode a batch of CloudEvents in JSON.

This runs for every message: one pass over the page decodes only the attributes that identify an event. Data and
extensions stay bytes until they are read. If a page has an unreadable event, its events are decoded one by one.
"""

import hashlib
import re
from abc import ABCMeta
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Generic, cast

import msgspec

from push_to_poll_client._exceptions import DecodeError, FeedError
from push_to_poll_client._json import DECODE_ERRORS, check_depth, check_page_depth
from push_to_poll_client._types import Cursor, D, D_co, Message, UnreadableMessage
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._data_decoder import DataDecoder, Decode
from push_to_poll_client.feeds._decoding import (
    BOM,
    MAX_ID,
    MAX_UNREADABLE,
    RawJSON,
    elements,
    has_more_elements,
    split_json,
    unreadable_key,
)

# These decode an event or a page whose depth was checked before.
_decode = msgspec.json.Decoder().decode
_decode_attributes = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_base64 = msgspec.json.Decoder(bytes | None).decode
_decode_string = msgspec.json.Decoder(str).decode
_set_field = msgspec.structs.force_setattr


class _Batch:
    """Bytes of a page, to look up the bytes of an event when they are first needed, and the data decoder."""

    __slots__ = ("_by_key", "_events", "decoder")

    def __init__(self, events: bytes | Sequence[RawJSON], decoder: DataDecoder[Any] | None) -> None:
        self.decoder = decoder
        self._events = events
        self._by_key: dict[str, RawJSON] | None = None

    def bytes_of(self, event: "CloudEvent[Any]") -> RawJSON:
        """Return the bytes of the first event with this key; others are duplicates."""
        if self._by_key is None:
            events = elements(self._events) if isinstance(self._events, bytes) else self._events
            self._by_key = {_decode_event(raw).dedupe_key: raw for raw in reversed(events)}
        return self._by_key[event.dedupe_key]


if TYPE_CHECKING:
    # A base class for type checkers. At run time `Message.register()` does it, since msgspec lays out the memory.
    class _Kind(msgspec.StructMeta, ABCMeta):
        pass

    class _Struct(Message, msgspec.Struct, frozen=True, metaclass=_Kind):
        pass

else:
    _Struct = msgspec.Struct


class CloudEvent(_Struct, Generic[D_co], frozen=True, eq=False, gc=False):
    """Message of an HTTP feed: a CloudEvent.

    Its dedupe key consists of source and id, which identify duplicates in CloudEvents 1.0. A missing attribute and
    a `null` attribute are the same (CloudEvents JSON format §2.2).

    An event keeps the bytes of its whole page in memory. Do not collect events; copy the values that you need. To
    make an event, for example to test a handler, use `CloudEvent.from_json(b'{"id": "1", …}')`.

    Attributes:
        id: The publisher's id of the event; also its cursor.
    """

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)]
    _source: Annotated[str, msgspec.Meta(max_length=MAX_ID)] | None = msgspec.field(name="source", default=None)
    _type: str | None = msgspec.field(name="type", default=None)
    _subject: str | None = msgspec.field(name="subject", default=None)
    _time: str | None = msgspec.field(name="time", default=None)
    _method: str | None = msgspec.field(name="method", default=None)
    _data: msgspec.Raw = msgspec.field(name="data", default=msgspec.Raw())
    _data_base64: msgspec.Raw = msgspec.field(name="data_base64", default=msgspec.Raw())
    # No JSON makes a `_Batch`: an event with a member of that name cannot be read.
    _batch: _Batch = msgspec.field(name="push_to_poll_client batch", default=cast("_Batch", None))  # set below

    @staticmethod
    def from_json(event: bytes | msgspec.Raw, *, decode: Decode[D] | None = None) -> "CloudEvent[D]":
        """Read one event in JSON.

        Args:
            event: The event.
            decode: As for `HTTPFeed`.

        Raises:
            TypeError: `decode` is neither a type that can be decoded nor a function.
            DecodeError: It is not a JSON object; its id is missing, empty or longer than 1,024 characters; an
                attribute is not a string; or id or source contains NUL, which stores cannot keep.
        """
        return read_event(event, None if decode is None else DataDecoder(decode))

    def __repr__(self) -> str:
        # Data may be large or secret and stays out of logs.
        return f"{type(self).__name__}(id={self.id!r})"

    @property
    def dedupe_key(self) -> str:
        """The dedupe key: an unambiguous encoding of source and id."""
        return _source_prefix(self._source) + self.id

    if TYPE_CHECKING:  # set below

        @property
        def cursor(self) -> Cursor:
            """The id; safe to save when this event and all before it are settled."""

        @property
        def error(self) -> None:
            """None: the event could be read."""

    @property
    def source(self) -> str:
        """URI reference of the context in which the event happened; "" if missing."""
        return self._source or ""

    @property
    def type(self) -> str:
        """Type of the event; "" if missing."""
        return self._type or ""

    @property
    def subject(self) -> str | None:
        """Subject of the event; in an aggregate feed the key of the entry. None if missing."""
        return self._subject

    @property
    def time(self) -> str | None:
        """Time of the event as the feed wrote it (RFC 3339), or None. It does not determine the order."""
        return self._time

    @property
    def method(self) -> str:
        """Method that an aggregate feed applies to the subject, as written; "PUT" if missing."""
        return self._method or "PUT"

    @property
    def deleted(self) -> bool:
        """True if the subject is deleted (method "DELETE", in upper or lower case)."""
        return self.method.lower() == "delete"

    @property
    def attributes(self) -> dict[str, Any]:
        """All attributes with the extensions, without the data; a new dict each time.

        Raises:
            DecodeError: An attribute cannot be read.
        """
        try:
            members = _decode_attributes(self._batch.bytes_of(self))
            attributes = {name: _decode(members[name]) for name in members.keys() - {"data", "data_base64"}}
        except DECODE_ERRORS as error:
            raise self._undecodable("attributes", error) from error
        return {name: value for name, value in attributes.items() if value is not None}

    @property
    def data(self) -> D_co:
        """The event's `data`, else the bytes of its `data_base64`; None if it has neither.

        Decoded at first use, also by `decode=`, and then kept.

        Raises:
            DecodeError: The data cannot be read. Do not catch this in the handler.
        """
        data: Any = self._data
        if type(data) is not msgspec.Raw:
            return data  # type: ignore[no-any-return]
        try:
            data = _decode(data) if data else None
            if data is None and self._data_base64:
                data = _decode_base64(self._data_base64)
        except DECODE_ERRORS as error:
            raise self._undecodable("data", error) from error
        if self._batch.decoder is not None:
            data = self._batch.decoder.decode(data, self)
        _set_field(self, "_data", data)
        return data  # type: ignore[no-any-return]

    @property
    def raw(self) -> bytes:
        """The event as received."""
        return bytes(self._batch.bytes_of(self))

    def _undecodable(self, what: str, error: Exception) -> DecodeError:
        return DecodeError(f"the {what} of event {quoted(self.id)} cannot be read: {quoted(error)}")


_MAX_PLAIN_SOURCE = 16
"""A source up to this length is unchanged in a key, a longer one is a digest: keys are stored twice."""


@lru_cache(1024)  # it is the same for thousands of events
def _source_prefix(source: str | None) -> str:
    source = source or ""
    if len(source) <= _MAX_PLAIN_SOURCE:
        return f"{len(source)}:{source}"
    return f"#{urlsafe_b64encode(hashlib.blake2b(source.encode(), digest_size=12).digest()).decode()}"


Message.register(CloudEvent)

# These are read for each message, and a slot takes a quarter of the time of a property.
CloudEvent.cursor = CloudEvent.id  # type: ignore[method-assign, assignment]
CloudEvent.error = None  # type: ignore[method-assign, assignment]
_set_batch = vars(CloudEvent)["_batch"].__set__

_decode_event = msgspec.json.Decoder(CloudEvent).decode
_decode_events = msgspec.json.Decoder(list[CloudEvent]).decode


_ESCAPE = b"\\"  # JSON cannot write a NUL in another way (RFC 8259 §7)


def read_event(event: bytes | msgspec.Raw, decoder: DataDecoder[D_co] | None) -> CloudEvent[D_co]:
    """Decode one event; raise `DecodeError` as `CloudEvent.from_json`."""
    try:
        check_depth(event)
        read: CloudEvent[D_co] = _decode_event(event)
    except DECODE_ERRORS as error:
        raise DecodeError(f"an event cannot be read: {quoted(error)}") from error
    _set_batch(read, _Batch([event], decoder))
    if _has_nul([read]):
        raise DecodeError(
            f"an event cannot be read: its id {quoted(read.id)} or its source contains a zero character"
        )
    return read


def read_batch(
    page: bytes, where: str, *, max_events: int, decoder: DataDecoder[D_co] | None = None
) -> Sequence[CloudEvent[D_co] | UnreadableMessage]:
    """Decode a page (CloudEvents JSON format §4); unreadable events become `UnreadableMessage`."""
    page = page.removeprefix(BOM)
    try:
        is_too_large = has_more_elements(page, max_events)
        messages = [] if is_too_large else _read_page(page, where, decoder)
    except ValueError as error:
        # The elements of an array are messages, which must not be logged. Of other text more is decoded than
        # shown: a secret that was cut could not be found and masked.
        text = "" if page.startswith(b"[") else page[:4096].decode(errors="replace")
        start = f" that begins with {quoted(text, 40)}" if text else ""
        raise FeedError(
            f"{where} did not send a JSON array of events: {error} ({len(page)} bytes{start})"
        ) from error
    if is_too_large or len(messages) > max_events:
        raise FeedError(
            f"{where} sent a page of more than {max_events} events; request smaller pages, or raise max_body="
        )
    return messages


def _read_page(
    page: bytes, where: str, decoder: DataDecoder[D_co] | None
) -> Sequence[CloudEvent[D_co] | UnreadableMessage]:
    with suppress(*DECODE_ERRORS):  # one unreadable event fails them all
        check_page_depth(page)
        events: list[CloudEvent[D_co]] = _decode_events(page)
        if _ESCAPE not in page or not _has_nul(events):
            batch = _Batch(page, decoder)
            for event in events:
                _set_batch(event, batch)
            return events
    return list(_read_one_by_one(page, where, decoder))


def _has_nul(events: Sequence[CloudEvent[Any]]) -> bool:
    """Return True if an id or a source contains NUL, which stores cannot keep."""
    names = (*(event.id for event in events), *{event.source for event in events})
    return "\0" in "".join(names)


def _read_one_by_one(
    page: bytes, where: str, decoder: DataDecoder[D_co] | None
) -> Iterator[CloudEvent[D_co] | UnreadableMessage]:
    unreadable = 0
    for event in elements(page):
        try:
            yield read_event(event, decoder)
        except DecodeError as error:
            unreadable += 1
            if unreadable > MAX_UNREADABLE:
                raise FeedError(
                    f"{where} sent a page with more than {MAX_UNREADABLE} unreadable events"
                ) from error
            raw = bytes(event)
            key, readable_id = unreadable_key(raw), _readable_id(raw)
            # A new error: the traceback of the caught one would keep the whole page alive.
            reason = DecodeError(f"{where}: {error}; report it to the publisher")
            yield UnreadableMessage(readable_id or key, reason, dedupe_key=key, cursor=readable_id, raw=raw)


_ID = re.compile(rb'"id"\s*:\s*("(?:[^"\\]++|\\.)*+")', re.DOTALL)


def _readable_id(event: bytes) -> str | None:
    """Return the id of an unreadable event if it can be read and stored."""
    found_id = None
    try:
        for member in split_json(event, b"{}"):  # one by one: a hostile event has millions
            if found := _ID.fullmatch(member):
                found_id = _decode_string(found[1])
    except DECODE_ERRORS:
        return None
    # The decoder has already refused lone surrogates, which stores and URLs cannot take.
    return found_id if found_id and len(found_id) <= MAX_ID and "\0" not in found_id else None
