"""Where does a reader stand in a stream? A place, and how it is written as a cursor.

A stream names no messages, but bytes at an offset never change (§4), so a message is named by its number: how many
come before it, from where counting began. That does not depend on where an answer happens to end. Offsets stand
at the ends of answers alone, so a place between two of them is an offset and how many from there are settled.

    cursor               the offset is asked for; the number is that of the first message there
    0_42/17              17 from the beginning
    0_42/17/3            the same, and three of what comes are settled
    0_42/0_40+2          counted from the offset 0_40, where the reader began ("latest")
    0_42/1:2             counted from the beginning, after the stream had lost what was known of it once
    0_42                 as a user may give it: counted from there
"""

import re
from typing import NamedTuple

from push_to_poll_client._exceptions import CursorExpired
from push_to_poll_client._types import Cursor
from push_to_poll_client._validation import quoted

__all__ = ["BEGINNING", "NOW", "Place", "is_offset"]

BEGINNING = "-1"
NOW = "now"
"""Reserved: no offsets that a server makes (§8)."""

MAX_OFFSET = 1024
"""Characters. The protocol asks servers for less than 256 (§8); each is part of a request's URL."""

_is_offset = re.compile(rf"(?:(?![,&=?/])[!-~]){{1,{MAX_OFFSET}}}").fullmatch
_place = re.compile(r"(?:([^/]+)/(?:([^/]*[+:])?([0-9]{1,18})(?:/([0-9]{1,18}))?)|([^/]+))").fullmatch
_resets = re.compile(r"([0-9]{1,9}):").fullmatch


def is_offset(text: str) -> bool:
    """Whether a server may have made this offset (§8)."""
    return text not in {BEGINNING, NOW} and _is_offset(text) is not None


class Place(NamedTuple):
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
    def of(cls, cursor: Cursor | None) -> "Place":
        """The place that a cursor means.

        Raises:
            CursorExpired: It means none.
        """
        if cursor is None:
            return cls()
        found = _place(cursor)
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
    def counted_from(cls, offset: str) -> "Place":
        """A place of which nobody knows how many come before it."""
        return cls(offset, f"{offset}+")

    @property
    def cursor(self) -> Cursor:
        """As it is saved."""
        return f"{self.offset}/{self.since}{self.number}" + (f"/{self.settled}" if self.settled else "")

    @property
    def anew(self) -> "Place":
        """The beginning of a stream that no longer has what was counted: its numbers are others."""
        known = _resets(self.since)
        return Place(since=f"{int(known[1]) + 1 if known else 1}:")

    def name(self, index: int) -> str:
        """What the message is called that is so many behind the offset."""
        return f"{self.since}{self.number + index}"
