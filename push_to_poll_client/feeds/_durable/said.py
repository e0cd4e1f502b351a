"""What do the headers of an answer say? All of them is input: what cannot be believed is one clear error."""

from collections.abc import Mapping
from typing import NamedTuple

from push_to_poll_client._exceptions import CursorExpired, FeedError
from push_to_poll_client._http.headers import is_header_value
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._durable.place import BEGINNING, Place, is_offset

__all__ = ["Said", "echo_of"]

MAX_ECHO = 256
"""Characters of a `Stream-Cursor` that is sent back: a number of some ten digits (§10.1)."""


class Said(NamedTuple):
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
    def of(cls, headers: Mapping[str, str], where: str) -> "Said":
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
        return cls(offset, _says(headers, "stream-up-to-date"), _says(headers, "stream-closed"))

    def check_follows(self, place: Place, where: str) -> None:
        """Offsets only grow (§8).

        Raises:
            CursorExpired: The stream is shorter than what was read of it.
        """
        if place.offset != BEGINNING and self.offset < place.offset:
            raise shorter(place, where)


def shorter(place: Place, where: str) -> CursorExpired:
    """The stream has less than was read of it."""
    return CursorExpired(
        f"{where} ends before offset {quoted(place.offset)}, up to which it was read: it was deleted and made "
        "anew, and its messages are counted anew; go on from the start that this error offers, or from the "
        "inception and forget",
        start=place.anew.cursor,
    )


def echo_of(headers: Mapping[str, str]) -> str | None:
    """The `Stream-Cursor`, which keeps caches from repeating an answer; `None`: there is none that can be sent."""
    echo = headers.get("stream-cursor", "")
    return echo if 0 < len(echo) <= MAX_ECHO and is_header_value(echo) else None


def _says(headers: Mapping[str, str], name: str) -> bool:
    """Any other value than "true" counts as none (§4.1)."""
    return headers.get(name, "").strip(" \t").lower() == "true"
