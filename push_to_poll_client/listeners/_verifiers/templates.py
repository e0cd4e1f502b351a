"""WHAT WAS SIGNED: a text with names in braces, in whose place stand bytes of a request."""

from collections.abc import Mapping
from string import Formatter

from push_to_poll_client._http.headers import is_header_name
from push_to_poll_client.listeners._webhook.request import WebhookRequest

__all__ = ["BODY", "SIGNED", "TIMESTAMP", "Template", "header_bytes", "header_name"]

BODY = "body"
TIMESTAMP = "timestamp"
SIGNED = "signed"


def header_bytes(value: str) -> bytes | None:
    """A header's value as it came (RFC 9110 §5.5: ISO-8859-1); `None`: it came from nowhere."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return None


def header_name(name: object) -> str:
    """A name that the user gave, in lower case, as requests have it.

    Raises:
        TypeError: It is no `str`.
        ValueError: It is no name of a header.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a header is a str, not {type(name).__name__}")
    if not is_header_name(name):
        raise ValueError(f"{name!r} is no name of a header (RFC 9110 §5.1)")
    return name.lower()


class Template:
    """A text such as "v0:{timestamp}:{body}"; what is in braces and has no meaning here is a header's name.

    Args:
        text: A `{` that is meant is written as `{{`.
        known: The names that are no headers.

    Attributes:
        names: All that stand in it, in lower case.

    Raises:
        TypeError: It is no `str`.
        ValueError: A brace is left open, or there is something else than a name in it.
    """

    def __init__(self, text: str, *, known: frozenset[str]) -> None:
        if not isinstance(text, str):
            raise TypeError(f"a template is a str, not {type(text).__name__}")
        self._pieces = tuple(_pieces(text))
        self._known = known
        self.names = frozenset(piece for piece in self._pieces if isinstance(piece, str))
        for name in self.names - known:
            header_name(name)

    def fill(self, request: WebhookRequest, known: Mapping[str, bytes]) -> bytes | None:
        """The bytes for a request; `None`: it has no such header, or an empty one."""
        filled = [self._bytes_of(piece, request, known) for piece in self._pieces]
        found = [piece for piece in filled if piece is not None]
        return b"".join(found) if len(found) == len(filled) else None

    def _bytes_of(self, piece: str | bytes, request: WebhookRequest, known: Mapping[str, bytes]) -> bytes | None:
        if isinstance(piece, bytes):
            return piece
        if piece in self._known:
            return known.get(piece)
        # An empty id would make all requests without one repetitions of each other.
        return header_bytes(request.headers.get(piece, "")) or None


def _pieces(text: str) -> list[str | bytes]:
    """Names as `str`, what stands between them as bytes; no empty ones, so that a body alone is not copied."""
    pieces: list[str | bytes] = []
    for between, name, form, conversion in Formatter().parse(text):
        if between:
            pieces.append(between.encode())
        if form or conversion:
            raise ValueError(f"in braces stands a name and nothing else, in {text!r}")
        if name is not None:
            pieces.append(name.lower())
    return pieces
