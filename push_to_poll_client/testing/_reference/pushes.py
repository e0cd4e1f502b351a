"""The push channels of the reference server: websocket, server-sent events and long polls."""

import anyio
import msgspec

from push_to_poll_client.testing._reference.asgi import (
    JSON,
    Receive,
    Scope,
    Send,
    is_authorized,
    query_of,
    respond,
    retry_after,
    start,
)
from push_to_poll_client.testing._reference.state import PushSubscription, ReferenceState

DEFAULT_WAIT = "30"
"""Seconds for which an answer is held if nobody says for how long, Dropbox's default."""

LONGEST_WAIT = 480.0
"""Seconds for which an answer is held at most, Dropbox's limit."""

KEEP_ALIVE = b": keep-alive\n\n"


async def _is_refused(state: ReferenceState, scope: Scope, send: Send, *counters: str, kind: str = "http") -> bool:
    """Refuse a connection if the faults say so, and count it."""
    status, headers = state.faults.refuse_status, retry_after(state.faults.retry_after)
    if not is_authorized(scope, state.faults.authorization):
        status, headers = 401, []
    if status is None:
        return False
    state.stats.count(**dict.fromkeys(counters, 1))
    await respond(send, status, headers, kind=kind)
    return True


async def serve_changes(state: ReferenceState, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a long poll. One that does not say after which event waits for the next one."""
    state.stats.count(long_polls=1)
    if await _is_refused(state, scope, send):
        return
    query, faults = query_of(scope), state.faults
    after, wait = query.get("after", state.newest), query.get("wait", DEFAULT_WAIT)
    early = faults.accept_and_close is not None or faults.takes("early_next")
    # Anything that is not a number asks for no wait.
    seconds = min(float(wait), LONGEST_WAIT) if wait.replace(".", "", 1).isdecimal() else 0.0
    subscription = PushSubscription(state)

    async def until_push() -> None:
        with anyio.move_on_after(seconds):
            await subscription.next()
        if faults.half_open:
            await anyio.sleep_forever()

    if not early and (faults.half_open or not state.page(after, 1)):
        await state.hold(receive, until_push, "long_polls_held")
    news = not early and bool(state.page(after, 1))
    answer: dict[str, object] = {"changes": news, "cursor": state.newest if news else after}
    if faults.backoff is not None:
        answer["backoff"] = faults.backoff
    await respond(send, 200, [JSON], msgspec.json.encode(answer))


async def serve_events(state: ReferenceState, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve an event stream. Nobody is told again what came before: `Last-Event-ID` is not read."""
    if await _is_refused(state, scope, send, "streams_refused"):
        return
    subscription = PushSubscription(state)

    async def send_events() -> None:
        while True:
            text = KEEP_ALIVE
            with anyio.move_on_after(state.keep_alive):
                record = await subscription.next()
                if record is None:
                    return
                data = msgspec.json.encode({"cursor": record.cursor})
                text = b"id: %b\ndata: %b\n\n" % (record.cursor.encode(), data)
            if not state.faults.half_open:
                await send({"type": "http.response.body", "body": text, "more_body": True})

    await start(send, 200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")])
    state.stats.count(streams_accepted=1)
    if state.faults.accept_and_close is None:
        await state.hold(receive, send_events, "streams_open")
    await send({"type": "http.response.body", "body": b""})


async def serve_websocket(state: ReferenceState, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a websocket."""
    await receive()
    if await _is_refused(state, scope, send, "websockets_refused", kind="websocket.http"):
        return
    subscription = PushSubscription(state)

    async def send_pushes() -> None:
        while (record := await subscription.next()) is not None:
            text = msgspec.json.encode({"cursor": record.cursor}).decode()
            await send({"type": "websocket.send", "text": text})
        await send({"type": "websocket.close", "code": subscription.code})

    await send({"type": "websocket.accept"})
    state.stats.count(websockets_accepted=1)
    if state.faults.accept_and_close is not None:
        await send({"type": "websocket.close", "code": state.faults.accept_and_close})
    else:  # a server that ends closes it, with 1012
        await state.hold(receive, send_pushes, "websockets_open", until_shut=False)
