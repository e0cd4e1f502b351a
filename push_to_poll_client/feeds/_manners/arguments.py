"""What a feed may be given: checked at construction, with a sentence for whoever gave something else."""

from collections.abc import Mapping

import httpx

from push_to_poll_client._http import is_header_name, is_header_value
from push_to_poll_client._text import quoted

__all__ = ["header_fields", "size"]


def size(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a {type(value).__name__}; give bytes as an int")
    if value < 1:
        raise ValueError(f"{name} is {value}; give at least 1 byte")
    return value


def header_fields(headers: Mapping[str, str]) -> httpx.Headers:
    for name, value in headers.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"headers have {quoted(name)}: a {type(value).__name__}; give str for both")
        if not (is_header_name(name) and is_header_value(value)):
            raise ValueError(f"the header {quoted(name)} has characters that no header may have")
    return httpx.Headers(headers)
