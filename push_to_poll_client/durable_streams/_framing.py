"""Positions, headers and bodies of a Durable Stream.

Messages of a stream have no ids, but the bytes at an offset never change (§4). So the id of a message is its
number: the count of messages before it, from where counting started. It does not depend on where a response ends.
Offsets exist only at the ends of responses. A position between two offsets is the offset before it, and the number
of settled messages after that offset.

    cursor               the offset to request, and the number of the first message there
    0_42/17              number 17, counted from the beginning
    0_42/17/3            the same, and three messages after the offset are settled
    0_42/0_40+2          counted from offset 0_40, where the reader started ("latest")
    0_42/1:2             counted from the beginning, after the stream was reset once
    0_42                 as a user may pass it: counted from there

Reading a body is pure, and linear in its size. Only a limited number of messages is made from one response. The
cursor of the last one says how many to skip when the same response is read again.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

from push_to_poll_client._exceptions import CursorExpired, DecodeError, FeedError
from push_to_poll_client._http.headers import is_header_value
from push_to_poll_client._json import DECODE_ERRORS, Decoder
from push_to_poll_client._types import Cursor, D_co, Message
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._data_decoder import DataDecoder
from push_to_poll_client.feeds._decoding import RawJSON, elements, has_few_commas, split_json

BEGINNING = "-1"
NOW = "now"
"""Reserved: servers do not use these as offsets (§8)."""

MAX_OFFSET = 1024
"""Characters. The protocol asks servers for less than 256 (§8); an offset is part of a request's URL."""

_match_offset = re.compile(rf"(?:(?![,&=?/])[!-~]){{1,{MAX_OFFSET}}}").fullmatch
_match_cursor = re.compile(r"(?:([^/]+)/(?:([^/]*[+:])?([0-9]{1,18})(?:/([0-9]{1,18}))?)|([^/]+))").fullmatch
_match_resets = re.compile(r"([0-9]{1,9}):").fullmatch


def is_offset(text: str) -> bool:
    """Return True if a server may have made this offset (§8)."""
    return text not in {BEGINNING, NOW} and _match_offset(text) is not None


class StreamPosition(NamedTuple):
    """Position of a reader in a stream. Numbers count messages, or bytes."""

    offset: str = BEGINNING  # to request
    since: str = ""  # where counting started: "" for the beginning, else the text before the number
    number: int = 0  # before the offset
    settled: int = 0  # after the offset

    @classmethod
    def from_cursor(cls, cursor: Cursor | None) -> "StreamPosition":
        """Parse a cursor; raise `CursorExpired` if it is not a cursor of a stream."""
        if cursor is None:
            return cls()
        found = _match_cursor(cursor)
        offset = (found[1] or found[5]) if found else ""
        if not found or not (offset == BEGINNING or is_offset(offset)):
            raise CursorExpired(
                f"{quoted(cursor)} is not a cursor of a Durable Stream; rewind to a cursor that push-to-poll "
                "shows, or to an offset of the stream"
            )
        if found[5]:
            return cls() if offset == BEGINNING else cls.counted_from(offset)
        return cls(offset, found[2] or "", int(found[3]), int(found[4] or 0))

    @classmethod
    def counted_from(cls, offset: str) -> "StreamPosition":
        """Return a position where counting starts: the number of earlier messages is unknown."""
        return cls(offset, f"{offset}+")

    @property
    def cursor(self) -> Cursor:
        """The text to save."""
        return f"{self.offset}/{self.since}{self.number}" + (f"/{self.settled}" if self.settled else "")

    @property
    def after_reset(self) -> "StreamPosition":
        """Beginning of the stream after a reset, with numbers that differ from the earlier ones."""
        known = _match_resets(self.since)
        return StreamPosition(since=f"{int(known[1]) + 1 if known else 1}:")

    def message_id(self, index: int) -> str:
        """Return the id of the message with this index after the offset."""
        return f"{self.since}{self.number + index}"


MAX_ECHO = 256
"""Characters of a `Stream-Cursor` that is sent back: usually a number of about ten digits (§10.1)."""


class StreamHeaders(NamedTuple):
    """Parsed headers of a response."""

    offset: str  # the offset to request next (§5.6)
    up_to_date: bool  # the response reaches the current end of the stream
    closed: bool  # nothing will be appended any more (§4.1)

    @property
    def ends(self) -> bool:
        """True if there is nothing more to request now."""
        return self.up_to_date or self.closed

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], where: str, position: StreamPosition) -> "StreamHeaders":
        """Parse the headers of the response to a request for `position`. `where` is the URL, for errors."""
        offset = headers.get("stream-next-offset")
        if offset is None:
            raise FeedError(
                f"{where} sent no Stream-Next-Offset header; check that the URL is a Durable Stream and that no "
                "login page answers instead"
            )
        if not is_offset(offset):
            raise FeedError(
                f"{where} sent an invalid Stream-Next-Offset: {quoted(offset)}; report it to the server's operator"
            )
        # Offsets only grow (§8), so a smaller one means a shorter stream.
        if position.offset != BEGINNING and offset < position.offset:
            raise truncation_error(position, where)
        return cls(offset, _is_true(headers, "stream-up-to-date"), _is_true(headers, "stream-closed"))


def truncation_error(position: StreamPosition, where: str) -> CursorExpired:
    """Return the error for a stream that is shorter than the part already read."""
    return CursorExpired(
        f"{where} ends before offset {quoted(position.offset)}, which was already read: it was deleted and "
        "created again, and its messages are numbered again; rewind to the `start` of this error "
        "(on_cursor_expired= gets it), or to 'inception' with forget=True",
        start=position.after_reset.cursor,
    )


def echo_of(headers: Mapping[str, str]) -> str | None:
    """Return the `Stream-Cursor` to send back, so that caches do not repeat a response; None if invalid."""
    echo = headers.get("stream-cursor", "")
    return echo if 0 < len(echo) <= MAX_ECHO and is_header_value(echo) else None


def _is_true(headers: Mapping[str, str], name: str) -> bool:
    # Any other value than "true" is ignored (§4.1).
    return headers.get(name, "").strip(" \t").lower() == "true"


Decoders: TypeAlias = tuple[Callable[[bytes], Any], DataDecoder[D_co] | None]
"""Decodes the bytes of a message; and applies the caller's `decode=` to the result, if given."""

_decode_json = Decoder().decode

_SPACE = b" \t\r\n"


class StreamMessage(Message[D_co]):
    """A message of a stream. Its data is decoded when first read, then kept."""

    __slots__ = ("_decoders", "_raw")

    def __init__(
        self,
        id: str,
        raw: RawJSON,
        decoders: Decoders[D_co],
        *,
        dedupe_key: str | None = None,
        cursor: Cursor | None = None,
    ) -> None:
        super().__init__(id, dedupe_key=dedupe_key, cursor=cursor)
        self._raw = raw
        self._decoders: Decoders[D_co] | None = decoders

    @property
    def raw(self) -> bytes:
        """The bytes of the message, as in the stream."""
        return bytes(self._raw)

    @property
    def data(self) -> D_co:
        """Decoded content of the message; raises DecodeError if it cannot be decoded."""
        if self._decoders is not None:
            decode, decoder = self._decoders
            try:
                data = decode(self.raw)
            except DECODE_ERRORS as error:
                raise DecodeError(f"message {quoted(self.id)} cannot be read: {quoted(error)}") from error
            self._data = data if decoder is None else decoder.decode(data, self)
            self._decoders = None
        return self._data  # type: ignore[no-any-return]


class ReadStart(NamedTuple):
    """Start of a response, at the requested position."""

    position: StreamPosition
    rest: bytes = b""  # the bytes before `position` of an incomplete message
    saved: StreamPosition | None = None  # the position before `rest`


class StreamResponse(NamedTuple):
    """A response to read. `where` is the URL without secrets, for errors."""

    body: bytes
    start: ReadStart
    headers: StreamHeaders
    where: str
    decoders: Decoders[Any]

    def position_after(self, length: int) -> StreamPosition:
        """Return the position after the body, which has `length` messages, or bytes."""
        position = self.start.position
        if length and self.headers.offset == position.offset:
            raise FeedError(
                f"{self.where} sent messages, but its Stream-Next-Offset is still the requested "
                f"{quoted(position.offset)}; report it to the server's operator"
            )
        left = max(position.settled - length, 0)
        if left and self.headers.ends:
            raise truncation_error(position, self.where)
        return StreamPosition(self.headers.offset, position.since, position.number + length, left)


class StreamBatch(NamedTuple):
    """The complete messages of a response, and the position after these."""

    messages: Sequence[StreamMessage[Any]]
    end: StreamPosition
    next_start: ReadStart | None = None  # start of the next response, if this one ends within a message
    cut: bool = False  # the response has more messages, so it is requested again from `end`


class Framing(NamedTuple):
    """Rule that splits a stream into messages."""

    read: Callable[[StreamResponse, int], StreamBatch]  # reads a response, up to a number of messages
    decode: Callable[[bytes], Any]  # decodes the bytes of a message
    is_json: bool = False  # the stream must be `application/json`


# JSON streams


def _read_elements(response: StreamResponse, max_messages: int) -> StreamBatch:
    """Make a message of each element of an array (§9.1.5)."""
    body, position = response.body, response.start.position
    try:
        skipped, found = _elements(body, position.settled, max_messages + 1)
    except ValueError as error:
        raise FeedError(f"{response.where} did not send a JSON array: {error} ({len(body)} bytes)") from error
    messages = [
        StreamMessage(
            position.message_id(index),
            element,
            response.decoders,
            cursor=position._replace(settled=index + 1).cursor,
        )
        for index, element in enumerate(found[:max_messages], position.settled)
    ]
    if len(found) > max_messages:
        return StreamBatch(messages, position._replace(settled=position.settled + max_messages), cut=True)
    return StreamBatch(messages, response.position_after(skipped + len(found)))


def _elements(body: bytes, first: int, count: int) -> tuple[int, Sequence[RawJSON]]:
    """Skip up to `first` elements. Return the number skipped, and the next `count`."""
    if not body:
        return 0, []
    if has_few_commas(body, count):
        found = elements(body)
        return min(first, len(found)), found[first : first + count]
    one_by_one = split_json(body, b"[]")
    return sum(1 for _ in islice(one_by_one, first)), list(islice(one_by_one, count))


# Byte streams


def _read_chunk(response: StreamResponse, max_messages: int) -> StreamBatch:  # noqa: ARG001  # there is only one
    position, end = response.start.position, response.position_after(len(response.body))
    chunk = response.body[position.settled :]
    name = f"{position.message_id(position.settled)}-{position.number + len(response.body)}"
    return StreamBatch([StreamMessage(name, chunk, response.decoders, cursor=end.cursor)] if chunk else [], end)


# Lines


def _read_lines(response: StreamResponse, max_messages: int, *, blank: bool) -> StreamBatch:
    """Make a message of each complete line. The last line of a closed stream needs no newline."""
    (position, rest_before, saved), length = response.start, len(response.body)
    *lines, rest = (rest_before + response.body[position.settled :]).split(b"\n", max_messages)
    cut, at = len(lines) == max_messages, position.settled - len(rest_before)
    if response.headers.closed and rest and not cut:
        lines, rest = [*lines, rest], b""
    messages = list[StreamMessage[Any]]()
    for line in lines:
        name, at = position.message_id(at), min(at + len(line) + 1, length)
        if blank or line.strip(_SPACE):
            cursor = position._replace(settled=at).cursor
            messages.append(StreamMessage(name, line.removesuffix(b"\r"), response.decoders, cursor=cursor))
    end = position._replace(settled=at) if lines else saved or position
    if cut:
        return StreamBatch(messages, end, cut=True)
    after = response.position_after(length)
    return StreamBatch(messages, end, ReadStart(after, rest, end)) if rest else StreamBatch(messages, after)


FRAMINGS: Final = {
    "json": Framing(_read_elements, _decode_json, is_json=True),
    "ndjson": Framing(partial(_read_lines, blank=False), _decode_json),
    "lines": Framing(partial(_read_lines, blank=True), bytes.decode),
    "bytes": Framing(_read_chunk, bytes),
}
