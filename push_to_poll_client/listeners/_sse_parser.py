"""Parse a server-sent event stream: bytes in, events out. No I/O, no clock.

The rules are in the WHATWG HTML standard, §9.2.5 (grammar) and §9.2.6 (meaning of a line). An event consists of
the data lines so far, the event's type, and the latest id. A blank line makes that id the last event id, and keeps
it.

    line            effect
    (empty)         the id becomes the last event id; an event is complete if there was a data line
    :comment        none; it keeps the connection alive
    field: value    sets the field to the value without one leading space
    field           sets the field to the empty string

Every byte is read a fixed number of times, however the stream is cut into chunks: bytes after the last line break
are added to the unfinished line, and never searched again. The unfinished line and the data of the unfinished
event are each limited to `max_body`.
"""

import re
from dataclasses import dataclass

from push_to_poll_client._exceptions import PushToPollError

# Equals this library's slow delay. A server that needs more sends Retry-After. After `retry: 0` the delay is our
# own.
MAX_RETRY = 300.0
"""Longest `retry` in seconds that is obeyed, so that a server cannot silence the channel with it."""

_BOM = "\ufeff"
_is_number = re.compile("[0-9]+").fullmatch  # \d and int() accept other digits, signs and underscores


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One server-sent event (WHATWG HTML §9.2), as passed to `hint`.

    Attributes:
        event: Type of the event; "message" if the server sent none.
        data: Data lines of the event, joined with line feeds; may be empty.
        id: Latest id in the stream, from this event or an earlier one; empty if the server sent none.
    """

    event: str
    data: str
    id: str


class EventTooLarge(PushToPollError):
    """A line of the stream, or the data of an event, exceeds `max_body`."""


class EventParser:
    """Parser of one stream, with the state of one connection. `max_body` limits a line and an event's data."""

    # `last_event_id` is empty at first, as in the standard, and the id of an incomplete event does not count.

    def __init__(self, *, max_body: int | None, last_event_id: str = "") -> None:
        self.last_event_id: str = last_event_id
        self.retry: float | None = None
        self._max_body = max_body
        self._line = bytearray()
        self._first_line = True
        self._after_cr = False
        self._data: list[str] = []
        self._data_size = 0
        self._type = ""
        self._id = last_event_id

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Parse the next bytes, and return the complete events; after `EventTooLarge` the stream is unreadable."""
        # Nothing is called at the end of the stream: an incomplete event is dropped (§9.2.6).
        events: list[ServerSentEvent] = []
        for piece in self._rest_of(chunk).splitlines(keepends=True):  # bytes are split only at CR, LF and CRLF
            self._line += piece
            if piece.endswith((b"\r", b"\n")):
                line = self._ended_line()
                if line:
                    self._read_field(line)
                elif (event := self._dispatch()) is not None:
                    events.append(event)
        self._check(len(self._line), "a line")
        return events

    def _rest_of(self, chunk: bytes) -> bytes:
        """Return the chunk without the LF of a CRLF whose CR already ended a line."""
        if not chunk:
            return chunk
        rest = chunk[1:] if self._after_cr and chunk.startswith(b"\n") else chunk
        self._after_cr = chunk.endswith(b"\r")
        return rest

    def _ended_line(self) -> str:
        line = self._line.rstrip(b"\r\n")
        self._check(len(line), "a line")
        self._line.clear()
        # Always UTF-8 (§9.2.6). No character spans two lines, so each line can be decoded alone.
        text = line.decode("utf-8", "replace")
        if self._first_line:
            self._first_line = False
            return text.removeprefix(_BOM)
        return text

    def _read_field(self, line: str) -> None:
        name, _, value = line.partition(":")  # a comment has no name
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._data_size += len(value) + 1
            self._check(self._data_size, "the data of an event")
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and _is_number(value):
            self.retry = min(float(value) / 1000, MAX_RETRY)  # float() accepts any number of digits

    def _dispatch(self) -> ServerSentEvent | None:
        self.last_event_id = self._id
        data, kind = self._data, self._type
        self._data, self._data_size, self._type = [], 0, ""
        return ServerSentEvent(kind or "message", "\n".join(data), self._id) if data else None

    def _check(self, size: int, what: str) -> None:
        if self._max_body is not None and size > self._max_body:
            raise EventTooLarge(
                f"{what} has more than {self._max_body} bytes; a push needs no data: raise max_body= only if the "
                "server cannot send less"
            )
