"""The parts of ASGI that the reference server needs."""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import anyio
import anyio.lowlevel

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")


def is_authorized(scope: Scope, wanted: str | None) -> bool:
    """Whether a request has this header `Authorization`; `None` wants none."""
    return wanted is None or dict(scope["headers"]).get(b"authorization") == wanted.encode()


def query_of(scope: Scope) -> dict[str, str]:
    """The parameters of a request."""
    return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))


async def read_body(receive: Receive) -> bytes:
    """The whole body of a request."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def run_lifespan(receive: Receive, send: Send, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work` from when a server says that it begins to when it says that it ends (ASGI's lifespan)."""
    await receive()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        tasks.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint()  # as below
    await send({"type": "lifespan.shutdown.complete"})


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has gone."""
    while not (await receive())["type"].endswith(".disconnect"):
        pass


async def run_until_disconnect(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until it ends or the client has gone."""

    async def watch() -> None:
        await wait_for_disconnect(receive)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        with suppress(OSError):  # by which a server answers a `send` to a client that has gone (ASGI 2.4)
            await work()
        tasks.cancel_scope.cancel()
    # After a cancellation CPython 3.11 traces the caller only when it is resumed; coverage would miss its lines.
    await anyio.lowlevel.checkpoint()


async def start(send: Send, status: int, headers: Iterable[Header], *, kind: str = "http") -> None:
    """Send status and headers."""
    await send({"type": f"{kind}.response.start", "status": status, "headers": list(headers)})


async def respond(
    send: Send, status: int, headers: Iterable[Header], body: bytes = b"", *, kind: str = "http"
) -> None:
    """Send a whole answer. The kind "websocket.http" is one that refuses a websocket's handshake."""
    await start(send, status, [(b"content-length", b"%d" % len(body)), *headers], kind=kind)
    await send({"type": f"{kind}.response.body", "body": body})


def retry_after(value: float | str | None) -> list[Header]:
    """The header `Retry-After` with seconds or any text; `None`: no header."""
    if value is None:
        return []
    return [(b"retry-after", (value if isinstance(value, str) else f"{value:.10g}").encode())]
