"""WHERE A SIGNATURE STANDS: what the headers of a request state, before anything is computed."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from push_to_poll_client._http.headers import is_header_name
from push_to_poll_client.listeners._verifiers.templates import header_name
from push_to_poll_client.listeners._webhook.request import WebhookRequest

__all__ = ["Algorithm", "Layout", "Stated", "items_of"]

Algorithm: TypeAlias = Literal["sha1", "sha256", "sha384", "sha512"]
"""What an HMAC is made with. What SHA-1 is broken for is not needed by one (RFC 6194 §3.3)."""

ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")

MAX_ITEMS = 16
"""Items of a list of signatures, of which servers write two or three while they change a secret. One with more is
refused: each costs a comparison for each secret."""


class Stated(NamedTuple):
    """What is stated.

    Attributes:
        signatures: An algorithm and the bytes of a signature, in its encoding; at least one.
        timestamp: What stands where a timestamp should; empty: nothing, or two of them.
    """

    signatures: tuple[tuple[str, bytes], ...]
    timestamp: str


def items_of(value: str | None, separator: str | None) -> list[str]:
    """The items of a header; none, if it is not there or has too many.

    Args:
        value: Of the header.
        separator: What stands between the items; `None`: it is one.
    """
    if value is None:
        return []
    items = [value] if separator is None else value.split(separator, MAX_ITEMS)
    return items if len(items) <= MAX_ITEMS else []


class Layout:
    """A header with signatures, as it was declared. The arguments are those of `HMACSignature`."""

    def __init__(
        self,
        *,
        header: str,
        prefix: str,
        separator: str | None,
        algorithm: Algorithm | Sequence[Algorithm],
        any_case: bool,
        timestamp: str | None,
    ) -> None:
        self.header = header_name(header)
        self._prefixes = _prefixes(prefix, (algorithm,) if isinstance(algorithm, str) else tuple(algorithm))
        self._separator = _checked_separator(separator)
        self._any_case = any_case
        self._timestamp_header: str | None = None
        self._timestamp_prefix: str | None = None
        if isinstance(timestamp, str) and timestamp and separator and not is_header_name(timestamp):
            self._timestamp_prefix = timestamp
        elif timestamp is not None:
            self._timestamp_header = header_name(timestamp)

    def read(self, request: WebhookRequest) -> Stated | None:
        """What a request states; `None`: no signature."""
        items = items_of(request.headers.get(self.header), self._separator)
        signatures = tuple(found for item in items if (found := self._signature(item)))
        return Stated(signatures, self._timestamp(request, items)) if signatures else None

    def _signature(self, item: str) -> tuple[str, bytes] | None:
        for prefix, algorithm in self._prefixes:
            if item.startswith(prefix):
                text = item.removeprefix(prefix)
                # What is not ASCII becomes a character that no signature has.
                return algorithm, (text.lower() if self._any_case else text).encode("ascii", "replace")
        return None

    def _timestamp(self, request: WebhookRequest, items: Sequence[str]) -> str:
        if self._timestamp_header is not None:
            return request.headers.get(self._timestamp_header, "")
        if self._timestamp_prefix is None:
            return ""
        prefix = self._timestamp_prefix
        found = [item.removeprefix(prefix) for item in items if item.startswith(prefix)]
        return found[0] if len(found) == 1 else ""


def _prefixes(prefix: str, algorithms: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, not {type(prefix).__name__}")
    for algorithm in algorithms:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm is one of {', '.join(ALGORITHMS)}, not {algorithm!r}")
    if not algorithms or (len(algorithms) > 1 and "{algorithm}" not in prefix):
        raise ValueError("where the server states its algorithm, {algorithm} stands in the prefix")
    return tuple((prefix.replace("{algorithm}", algorithm), algorithm) for algorithm in algorithms)


def _checked_separator(separator: str | None) -> str | None:
    if not isinstance(separator, str | None):
        raise TypeError(f"separator must be a str or None, not {type(separator).__name__}")
    if separator == "":
        raise ValueError("separator is empty; None is for a header that is no list")
    return separator
