"""What a feed may be given: checked at construction, with a sentence for whoever gave something else."""

from collections.abc import Collection, Mapping
from typing import TypeAlias

import httpx

from push_to_poll_client._http import is_header_name, is_header_value, without_secrets
from push_to_poll_client._http_client import http_url
from push_to_poll_client._validation import quoted

__all__ = ["Place", "check_free", "header_fields", "origins", "place_of", "size"]

Place: TypeAlias = tuple[bytes, bytes, int | None]
"""An origin (RFC 9110 §4.3.1): scheme, host and port, `None` for the scheme's own."""


def place_of(url: httpx.URL) -> Place:
    """The origin. By the raw host: decoding one that a server made up can fail."""
    return url.raw_scheme, url.raw_host, url.port


def origins(trusted: Collection[str]) -> frozenset[Place]:
    if isinstance(trusted, str) or not isinstance(trusted, Collection):
        raise TypeError(f"trusted is a {type(trusted).__name__}; give a list of origins")
    return frozenset(map(_origin, trusted))


def _origin(text: str) -> Place:
    if not isinstance(text, str):
        raise TypeError(f"trusted has a {type(text).__name__} in it; give str")
    try:
        url = http_url(text)
    except ValueError:
        url = httpx.URL()
    if not url.host or url.userinfo or url.query or url.fragment or url.path != "/":
        raise ValueError(f"trusted has {without_secrets(text)} in it; give origins, as https://cdn.example")
    return place_of(url)


def size(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a {type(value).__name__}; give bytes as an int")
    if value < 1:
        raise ValueError(f"{name} is {value}; give at least 1 byte")
    return value


def check_free(url: str, ours: frozenset[str]) -> None:
    """Whether the query leaves to the feed the names that are its own.

    Raises:
        ValueError: It does not.
    """
    if taken := ours & httpx.URL(url).params.keys():
        raise ValueError(f"url has {' and '.join(sorted(taken))} in its query, which the feed sets for each poll")


def header_fields(headers: Mapping[str, str]) -> httpx.Headers:
    for name, value in headers.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"headers have {quoted(name)}: a {type(value).__name__}; give str for both")
        if not (is_header_name(name) and is_header_value(value)):
            raise ValueError(f"the header {quoted(name)} has characters that no header may have")
    return httpx.Headers(headers)
