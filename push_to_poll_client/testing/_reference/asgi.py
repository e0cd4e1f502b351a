"""The parts of ASGI that the reference server needs."""

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import anyio
import anyio.lowlevel

from push_to_poll_client._event_loop import Background

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")


@dataclass(slots=True)
class Exchange:
    """A request, a websocket connection or a server's lifespan, with its answers."""

    scope: Scope
    receive: Receive
    send: Send

    def is_authorized(self, wanted: str | None) -> bool:
        return wanted is None or dict(self.scope["headers"]).get(b"authorization") == wanted.encode()

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True))

    async def read_body(self) -> bytes:
        parts: list[bytes] = []
        more = True
        while more:
            message = await self.receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)

    async def run_lifespan(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` from the start to the end of the server (ASGI's lifespan)."""
        await self.receive()
        async with Background() as background:
            background.tasks.start_soon(work)
            await self.send({"type": "lifespan.startup.complete"})
            await self.receive()
        await anyio.lowlevel.checkpoint()  # as below
        await self.send({"type": "lifespan.shutdown.complete"})

    async def wait_for_disconnect(self) -> None:
        while not (await self.receive())["type"].endswith(".disconnect"):
            pass

    async def start(self, status: int, headers: Sequence[Header]) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def respond(self, status: int, headers: Sequence[Header], body: bytes = b"") -> None:
        """Send a whole answer; for a websocket, it rejects the handshake."""
        if self.scope["type"] == "websocket":
            kind = "websocket.http"  # uvicorn adds the length; 0.52 and older do so even if there is one
        else:
            kind, headers = "http", [(b"content-length", b"%d" % len(body)), *headers]
        await self.send({"type": f"{kind}.response.start", "status": status, "headers": headers})
        await self.send({"type": f"{kind}.response.body", "body": body})


async def run_until(work: Callable[[], Awaitable[None]], *ends: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as tasks:

        async def run(one: Callable[[], Awaitable[None]]) -> None:
            with suppress(OSError):  # by which a server answers a `send` to a client that has gone (ASGI 2.4)
                await one()
            tasks.cancel_scope.cancel()

        for one in (work, *ends):
            tasks.start_soon(run, one)
    # After a cancellation CPython 3.11 traces the caller only when it is resumed: coverage would miss lines.
    await anyio.lowlevel.checkpoint()


def retry_after(value: float | str | None) -> list[Header]:
    """Build the header `Retry-After` with seconds or any text. None builds no header."""
    if value is None:
        return []
    return [(b"retry-after", (value if isinstance(value, str) else f"{value:.10g}").encode())]
