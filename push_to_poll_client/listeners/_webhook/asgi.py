"""Read an ASGI request and send the response, with limits of size and time."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel

from push_to_poll_client import _event_loop
from push_to_poll_client.listeners._webhook.types import (
    NO_CONTENT,
    RequestRejected,
    WebhookRequest,
    WebhookResponse,
)

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Dropbox requires `nosniff`, so that a browser does not show an echo as a page.
FIXED_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


def request_of(scope: Scope) -> WebhookRequest:
    # ASGI 3 puts the whole path in `path`, with the mount point in front; older servers cut it off.
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if path == root or path.startswith(f"{root}/"):
        path = path[len(root) :]
    headers = defaultdict[str, list[str]](list)
    for name, value in scope["headers"]:
        headers[name.decode("latin-1").lower()].append(value.decode("latin-1"))
    return WebhookRequest(
        method=scope["method"],
        path=path.rstrip("/") or "/",
        query=scope.get("query_string", b"").decode("latin-1"),
        headers={name: ", ".join(values) for name, values in headers.items()},
        received_at=_event_loop.wall_clock(),
    )


async def send_response(send: Send, response: WebhookResponse, scope: Scope) -> None:
    """Send a response, unless the client is gone."""
    headers = {name.lower(): value for name, value in response.headers.items()} | FIXED_HEADERS
    if not scope.get("http_version", "1.1").startswith("1"):
        headers.pop("connection", None)  # malformed in HTTP/2 and HTTP/3 (RFC 9113 §8.2.2)
    if response.status not in NO_CONTENT:
        headers |= {"content-type": response.content_type, "content-length": str(len(response.body))}
    body = b"" if scope["method"] == "HEAD" else response.body
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    with suppress(OSError):  # ASGI 2.4 servers raise it when the client is gone
        await send({"type": "http.response.start", "status": response.status, "headers": fields})
        await send({"type": "http.response.body", "body": body})


MAX_DIGITS = 18
"""Digits of a declared length. A longer number is above any limit."""


class ClientGone(Exception):
    """The client disconnected before its request was complete, so no response can be sent."""


def check_length(headers: Mapping[str, str], max_body: int) -> None:
    """Reject a body whose declared length is above `max_body` bytes. A malformed length is ignored."""
    length = headers.get("content-length", "").strip()
    if not length.isascii() or not length.isdigit():
        return
    if len(length) > MAX_DIGITS or int(length) > max_body:
        raise RequestRejected("too_large")


PIECES_AT_ONCE = 1_000
"""Pieces of a body read before other tasks run: a server may have 1 MiB ready in pieces of one byte (1 s)."""


async def read_body(receive: Receive, *, max_body: int, max_time: float) -> bytes:
    """Read the whole body, or raise `RequestRejected` or `ClientGone`."""
    body, more, pieces = bytearray(), True, 0
    with anyio.move_on_after(max_time):
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            part = message.get("body", b"")
            if len(body) + len(part) > max_body:
                raise RequestRejected("too_large")
            body += part
            more = message.get("more_body", False)
            pieces += 1
            if pieces % PIECES_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        return bytes(body)
    raise RequestRejected("too_slow")
