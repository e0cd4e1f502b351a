"""Positions, headers and bodies of a Durable Stream.

A stream names no messages, but bytes at an offset never change (§4), so a message is named by its number: how many
come before it, from where counting began. That does not depend on where an answer happens to end. Offsets stand
at the ends of answers alone, so a place between two of them is an offset and how many from there are settled.

    cursor               the offset is asked for; the number is that of the first message there
    0_42/17              17 from the beginning
    0_42/17/3            the same, and three of what comes are settled
    0_42/0_40+2          counted from the offset 0_40, where the reader began ("latest")
    0_42/1:2             counted from the beginning, after the stream had lost what was known of it once
    0_42                 as a user may give it: counted from there

Pure, and linear in the size of a body. However many messages an answer has, only so many are made of it at a time;
the cursor behind the last one says how many to pass over in the same answer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from push_to_poll_client._exceptions import CursorExpired, FeedError, UndecodableMessage
from push_to_poll_client._http.headers import is_header_value
from push_to_poll_client._json import DECODE_ERRORS, SAFE_LENGTH, Decoder
from push_to_poll_client._types import Cursor, Message
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._decoding import split_json

__all__ = [
    "BEGINNING",
    "FRAMINGS",
    "NOW",
    "ReadStart",
    "StreamBatch",
    "StreamHeaders",
    "StreamMessage",
    "StreamPosition",
    "StreamResponse",
    "echo_of",
    "is_offset",
]


BEGINNING = "-1"
NOW = "now"
"""Reserved: no offsets that a server makes (§8)."""

MAX_OFFSET = 1024
"""Characters. The protocol asks servers for less than 256 (§8); each is part of a request's URL."""

_match_offset = re.compile(rf"(?:(?![,&=?/])[!-~]){{1,{MAX_OFFSET}}}").fullmatch
_match_cursor = re.compile(r"(?:([^/]+)/(?:([^/]*[+:])?([0-9]{1,18})(?:/([0-9]{1,18}))?)|([^/]+))").fullmatch
_match_resets = re.compile(r"([0-9]{1,9}):").fullmatch


def is_offset(text: str) -> bool:
    """Whether a server may have made this offset (§8)."""
    return text not in {BEGINNING, NOW} and _match_offset(text) is not None


class StreamPosition(NamedTuple):
    """Where a reader stands.

    Attributes:
        offset: What the server is asked for.
        since: From where it was counted: "" from the beginning of the stream, else what stands before a number.
        number: How many messages, or bytes, lie before the offset.
        settled: How many of those that come at the offset are settled already.
    """

    offset: str = BEGINNING
    since: str = ""
    number: int = 0
    settled: int = 0

    @classmethod
    def from_cursor(cls, cursor: Cursor | None) -> "StreamPosition":
        """The place that a cursor means.

        Raises:
            CursorExpired: It means none.
        """
        if cursor is None:
            return cls()
        found = _match_cursor(cursor)
        offset = (found[1] or found[5]) if found else ""
        if not found or not (offset == BEGINNING or is_offset(offset)):
            raise CursorExpired(
                f"{quoted(cursor)} is no cursor of a Durable Stream; rewind to one that push-to-poll shows, or to "
                "an offset of the stream"
            )
        if found[5]:
            return cls() if offset == BEGINNING else cls.counted_from(offset)
        return cls(offset, found[2] or "", int(found[3]), int(found[4] or 0))

    @classmethod
    def counted_from(cls, offset: str) -> "StreamPosition":
        """A place of which nobody knows how many come before it."""
        return cls(offset, f"{offset}+")

    @property
    def cursor(self) -> Cursor:
        """As it is saved."""
        return f"{self.offset}/{self.since}{self.number}" + (f"/{self.settled}" if self.settled else "")

    @property
    def after_reset(self) -> "StreamPosition":
        """The beginning of a stream that no longer has what was counted: its numbers are others."""
        known = _match_resets(self.since)
        return StreamPosition(since=f"{int(known[1]) + 1 if known else 1}:")

    def message_id(self, index: int) -> str:
        """What the message is called that is so many behind the offset."""
        return f"{self.since}{self.number + index}"


MAX_ECHO = 256
"""Characters of a `Stream-Cursor` that is sent back: a number of some ten digits (§10.1)."""


class StreamHeaders(NamedTuple):
    """What an answer says beside its body.

    Attributes:
        offset: Where to go on (§5.6).
        up_to_date: It reaches to the end of the stream, as that is now.
        closed: And there will never be more (§4.1).
    """

    offset: str
    up_to_date: bool
    closed: bool

    @property
    def ends(self) -> bool:
        """Whether there is nothing more to ask for now."""
        return self.up_to_date or self.closed

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], where: str) -> "StreamHeaders":
        """Read them.

        Args:
            headers: By names in whatever case.
            where: The URL without secrets, for errors.

        Raises:
            FeedError: They are those of no stream.
        """
        offset = headers.get("stream-next-offset")
        if offset is None:
            raise FeedError(
                f"{where} sent no Stream-Next-Offset; check that the URL is that of a Durable Stream and no login "
                "page stands before it"
            )
        if not is_offset(offset):
            raise FeedError(f"{where} sent {quoted(offset)} as its Stream-Next-Offset, which is no offset")
        return cls(offset, _is_true(headers, "stream-up-to-date"), _is_true(headers, "stream-closed"))

    def check_follows(self, place: StreamPosition, where: str) -> None:
        """Offsets only grow (§8).

        Raises:
            CursorExpired: The stream is shorter than what was read of it.
        """
        if place.offset != BEGINNING and self.offset < place.offset:
            raise truncation_error(place, where)


def truncation_error(place: StreamPosition, where: str) -> CursorExpired:
    """The stream has less than was read of it."""
    return CursorExpired(
        f"{where} ends before offset {quoted(place.offset)}, up to which it was read: it was deleted and made "
        "anew, and its messages are counted anew; go on from the start that this error offers, or from the "
        "inception and forget",
        start=place.after_reset.cursor,
    )


def echo_of(headers: Mapping[str, str]) -> str | None:
    """The `Stream-Cursor`, which keeps caches from repeating an answer; `None`: there is none that can be sent."""
    echo = headers.get("stream-cursor", "")
    return echo if 0 < len(echo) <= MAX_ECHO and is_header_value(echo) else None


def _is_true(headers: Mapping[str, str], name: str) -> bool:
    """Any other value than "true" counts as none (§4.1)."""
    return headers.get(name, "").strip(" \t").lower() == "true"


_Decode: TypeAlias = Callable[[bytes], Any]

_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_json = Decoder().decode
_decode_short = msgspec.json.Decoder().decode

_SPACE = b" \t\r\n"

_USUAL_COMMAS = 10
"""In and after a message. An answer with fewer is counted by the decoder, at 72 bytes for each message."""


class StreamMessage(Message):
    """A message of a stream. Its data is read when it is asked for first, and then kept.

    Args:
        id: Its number.
        raw: Its bytes.
        decode: What makes its data of them.
        key: The dedupe key; `None` takes the id.
        cursor: As for any message.
    """

    __slots__ = ("_decode", "_raw")

    def __init__(
        self,
        id: str,
        raw: bytes | msgspec.Raw,
        decode: _Decode,
        *,
        key: str | None = None,
        cursor: Cursor | None = None,
    ) -> None:
        super().__init__(id, key=key, cursor=cursor)
        self._raw = raw
        self._decode: _Decode | None = decode

    @property
    def raw(self) -> bytes:
        """The bytes of the message, as they stand in the stream."""
        return bytes(self._raw)

    @property
    def data(self) -> Any:
        """What the message says.

        Raises:
            UndecodableMessage: It cannot be read. Let it pass through the handler.
        """
        if self._decode is not None:
            try:
                self._data = self._decode(self.raw)
            except DECODE_ERRORS as error:
                raise UndecodableMessage(f"message {quoted(self.id)} cannot be read: {quoted(error)}") from error
            self._decode = None
        return self._data


class ReadStart(NamedTuple):
    """Where an answer begins.

    Attributes:
        place: What was asked for.
        rest: What comes before it, of a message whose end was not there.
        saved: The place before `rest`; `None`: there is none.
    """

    place: StreamPosition
    rest: bytes = b""
    saved: StreamPosition | None = None


class StreamResponse(NamedTuple):
    """An answer that is to be read.

    Attributes:
        body: Its.
        begin: Where it begins.
        said: What it says beside.
        where: The URL without secrets, for errors.
    """

    body: bytes
    begin: ReadStart
    said: StreamHeaders
    where: str

    def position_after(self, length: int) -> StreamPosition:
        """The place behind it, if it has so many messages, or bytes.

        Raises:
            FeedError: It brings something and leads nowhere.
            CursorExpired: It has less than was read of it.
        """
        place = self.begin.place
        if length and self.said.offset == place.offset:
            raise FeedError(
                f"{self.where} sent messages, and the offset {quoted(place.offset)} that it was asked for"
            )
        left = max(place.settled - length, 0)
        if left and self.said.ends:
            raise truncation_error(place, self.where)
        return StreamPosition(self.said.offset, place.since, place.number + length, left)


class StreamBatch(NamedTuple):
    """What an answer holds.

    Attributes:
        messages: Whole ones, in their order.
        end: The place behind the last one.
        begun: Where the next answer begins, if this one ends in the middle of a message.
        cut: The answer has more, which is to be asked for again, from `end` on.
    """

    messages: Sequence[Message]
    end: StreamPosition
    begun: ReadStart | None = None
    cut: bool = False


class Framing(NamedTuple):
    """How a stream is cut into messages.

    Attributes:
        read: What an answer holds, of which so many messages may be made.
        decode: What makes the data of a message of its bytes.
        is_json: Whether the stream has to be one of JSON.
    """

    read: Callable[[StreamResponse, int], StreamBatch]
    decode: _Decode
    is_json: bool = False


# JSON streams


def _read_elements(given: StreamResponse, most: int) -> StreamBatch:
    """A message for each element of an array (§9.1.5)."""
    body, place = given.body, given.begin.place
    try:
        passed, elements = _elements(body, place.settled, most + 1)
    except ValueError as error:
        raise FeedError(f"{given.where} sent no JSON array: {error} ({len(body)} bytes)") from error
    decode = _decoder_of(elements, _decode_json)
    messages = [
        StreamMessage(place.message_id(index), element, decode, cursor=place._replace(settled=index + 1).cursor)
        for index, element in enumerate(elements[:most], place.settled)
    ]
    if len(elements) > most:
        return StreamBatch(messages, place._replace(settled=place.settled + most), cut=True)
    return StreamBatch(messages, given.position_after(passed + len(elements)))


def _elements(body: bytes, first: int, most: int) -> tuple[int, Sequence[bytes | msgspec.Raw]]:
    """How many were passed over, up to `first`, and the next ones; each takes a hundred bytes and more."""
    if not body:
        return 0, []
    if body.count(b",") < _USUAL_COMMAS * most:
        with suppress(*DECODE_ERRORS):  # one bad element fails them all
            elements = _decode_elements(body)
            return min(first, len(elements)), elements[first : first + most]
    one_by_one = split_json(body, b"[]")
    return sum(1 for _ in islice(one_by_one, first)), list(islice(one_by_one, most))


def _decoder_of(messages: Sequence[bytes | msgspec.Raw], decode: _Decode) -> _Decode:
    """The decoder for these messages: short ones cannot be too deep, and each look takes a while."""
    is_short = decode is _decode_json and max(map(len, messages), default=0) <= SAFE_LENGTH
    return _decode_short if is_short else decode


# Byte streams


def _read_chunk(given: StreamResponse, most: int) -> StreamBatch:  # noqa: ARG001  # there is one
    """One message, as large as the server makes its answers."""
    place, end = given.begin.place, given.position_after(len(given.body))
    chunk = given.body[place.settled :]
    name = f"{place.message_id(place.settled)}-{place.number + len(given.body)}"
    return StreamBatch([StreamMessage(name, chunk, bytes, cursor=end.cursor)] if chunk else [], end)


# Lines


def _read_lines(given: StreamResponse, most: int, *, decode: _Decode, blank: bool) -> StreamBatch:
    """A message for each line that has ended; the last one of a closed stream need not."""
    (place, begun, saved), length = given.begin, len(given.body)
    *lines, rest = (begun + given.body[place.settled :]).split(b"\n", most)
    cut, at = len(lines) == most, place.settled - len(begun)
    if given.said.closed and rest and not cut:
        lines, rest = [*lines, rest], b""
    messages, decode = list[Message](), _decoder_of(lines, decode)
    for line in lines:
        name, at = place.message_id(at), min(at + len(line) + 1, length)
        if blank or line.strip(_SPACE):
            cursor = place._replace(settled=at).cursor
            messages.append(StreamMessage(name, line.removesuffix(b"\r"), decode, cursor=cursor))
    behind = place._replace(settled=at) if lines else saved or place
    if cut:
        return StreamBatch(messages, behind, cut=True)
    after = given.position_after(length)
    return StreamBatch(messages, behind, ReadStart(after, rest, behind)) if rest else StreamBatch(messages, after)


def _line_framing(decode: _Decode, *, blank: bool) -> Framing:
    return Framing(partial(_read_lines, decode=decode, blank=blank), decode)


FRAMINGS: Final = {
    "json": Framing(_read_elements, _decode_json, is_json=True),
    "ndjson": _line_framing(_decode_json, blank=False),
    "lines": _line_framing(bytes.decode, blank=True),
    "bytes": Framing(_read_chunk, bytes),
}
"""By what a user calls them."""
