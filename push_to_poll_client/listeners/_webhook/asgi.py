"""HOW A SERVER HANDS OVER a request, and takes the answer: the ASGI manners that a webhook needs."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

from push_to_poll_client import _event_loop
from push_to_poll_client.listeners._webhook.answers import NO_CONTENT
from push_to_poll_client.listeners._webhook.request import WebhookAnswer, WebhookRequest

__all__ = ["Receive", "Scope", "Send", "live", "refuse_websocket", "request_of", "send_answer"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ALWAYS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
"""Dropbox asks for the first, so that no browser takes an echo for a page; an answer is for one request alone."""


def request_of(scope: Scope) -> WebhookRequest:
    """The request, without its body."""
    return WebhookRequest(
        method=scope["method"],
        path=_path_below(scope.get("root_path", ""), scope["path"]),
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=_headers(scope["headers"]),
        received_at=_event_loop.wall_clock(),
    )


def _path_below(root: str, path: str) -> str:
    """ASGI 3 has the whole in `path`, with what the application is mounted at in front; older servers cut it."""
    root = root.rstrip("/")
    if path == root or path.startswith(f"{root}/"):
        path = path[len(root) :]
    return path.rstrip("/") or "/"


def _headers(fields: Any) -> dict[str, str]:
    values = defaultdict[str, list[str]](list)
    for name, value in fields:
        values[name.decode("latin-1").lower()].append(value.decode("latin-1"))
    return {name: ", ".join(several) for name, several in values.items()}


async def send_answer(send: Send, answer: WebhookAnswer, scope: Scope) -> None:
    """Send it. A client that has gone is none of our business (by which servers raise `OSError`, ASGI 2.4)."""
    headers = {name.lower(): value for name, value in answer.headers.items()} | ALWAYS
    if not scope.get("http_version", "1.1").startswith("1"):
        headers.pop("connection", None)  # it is malformed there (RFC 9113 §8.2.2)
    if answer.status not in NO_CONTENT:
        headers |= {"content-type": answer.content_type, "content-length": str(len(answer.body))}
    body = b"" if scope["method"] == "HEAD" else answer.body
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    with suppress(OSError):
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": body})


async def live(receive: Receive, send: Send) -> None:
    """Answer a server that says when it begins and when it ends: there is nothing to do for either."""
    while True:
        stage = (await receive())["type"]
        await send({"type": f"{stage}.complete"})
        if stage == "lifespan.shutdown":
            return


async def refuse_websocket(receive: Receive, send: Send) -> None:
    """Close it before it is open: the server answers 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008})
