"""Endpoints of the reference server: the feed, and the push channels websocket, event stream and long poll.

The feed follows the HTTP Feeds specification (http-feeds.org).
"""

import functools
import gzip
import time

import anyio
import msgspec

from push_to_poll_client.testing._reference.asgi import JSON, Exchange, Header, retry_after
from push_to_poll_client.testing._reference.state import DEFAULT_DATA, PushSubscription, ReferenceState

LONGEST_HOLD = 60.0
"""Maximum seconds that a long poll is held: an idle client makes one request a minute."""

_BATCH = (b"content-type", b"application/cloudevents-batch+json")
_GZIP = (b"content-encoding", b"gzip")

DEFAULT_WAIT = "30"
"""Default seconds that an answer is held, as at Dropbox."""

LONGEST_WAIT = 480.0
"""Maximum seconds that an answer is held, as at Dropbox."""

KEEP_ALIVE = b": keep-alive\n\n"


async def serve_feed(state: ReferenceState, exchange: Exchange) -> None:
    """Answer one request. An unknown `lastEventId` reads from the beginning: the spec has no error for it."""
    faults = state.faults
    state.stats.fetched_at.append(time.monotonic())
    state.stats.count(fetches=1)
    if not exchange.is_authorized(faults.authorization):
        await _respond(state, exchange, 401, [(b"www-authenticate", b"Bearer")])
    elif faults.takes("fail_next"):
        await _respond(state, exchange, faults.fail_status, retry_after(faults.retry_after))
    elif faults.takes("redirect_next"):
        await _respond(state, exchange, 307, [(b"location", faults.redirect_to.encode())])
    else:
        # Read before the latency: a server that looks late would hide what a wake during a fetch must find.
        body = state.previous_body if faults.takes("repeat_next") else await _read_body(state, exchange)
        state.previous_body = body
        await anyio.sleep(faults.latency)
        await _deliver(state, exchange, body)


async def _read_body(state: ReferenceState, exchange: Exchange) -> bytes:
    if state.faults.takes("grow_next"):
        state.append([DEFAULT_DATA] * state.page_size)
    query = exchange.query
    after, timeout = query.get("lastEventId", ""), query.get("timeout", "")
    # HTTP Feeds has milliseconds. Anything that is not a number asks for no wait.
    wait = min(int(timeout) / 1000, LONGEST_HOLD) if timeout.isdecimal() else 0.0

    async def until_news() -> None:
        while not state.page(after, 1):
            await state.bell.wait()

    if wait > 0 and not state.page(after, 1):
        with anyio.move_on_after(wait):
            await state.hold(exchange, until_news, "held")
    events = state.page(after, state.page_size)
    state.stats.count(empty=not events)
    return b"[" + b",".join(events) + b"]"


async def _deliver(state: ReferenceState, exchange: Exchange, body: bytes) -> None:
    cut = state.faults.takes("cut_next")
    if not cut and not state.faults.takes("stall_next"):
        spoils = state.faults.takes("spoil_next")
        headers, body = _spoil(state.faults.spoil_as, body) if spoils else ([_BATCH], body)
        await _respond(state, exchange, 200, headers, body)
        return
    state.stats.count_status(state.stats.statuses, 200)
    await exchange.start(200, [_BATCH, (b"content-length", b"%d" % len(body))])
    await exchange.send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
    if not cut:
        await state.hold(exchange, anyio.sleep_forever)
    # Close the connection in the middle of the answer, where the server lets an application do so.
    if (close := exchange.scope.get("state", {}).get("hang_up")) is not None:
        close()
        await exchange.wait_for_disconnect()


def _spoil(how: str, body: bytes) -> tuple[list[Header], bytes]:
    match how:
        case "type":
            return [(b"content-type", b"text/html")], b"<html><title>Please log in</title></html>"
        case "encoding":
            return [_BATCH, (b"content-encoding", b"br")], body
        case "truncated":
            packed = gzip.compress(body)
            return [_BATCH, _GZIP], packed[: len(packed) // 2]
        case "bomb":
            return [_BATCH, _GZIP], _bomb()
        case _:
            return [_BATCH], bytes(range(256))


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(bytes(64 * 1024 * 1024))  # compressed it has 65,000


async def _respond(
    state: ReferenceState, exchange: Exchange, status: int, headers: list[Header], body: bytes = b""
) -> None:
    state.stats.count_status(state.stats.statuses, status)
    await exchange.respond(status, headers, body)


async def _is_refused(state: ReferenceState, exchange: Exchange, *counters: str) -> bool:
    """Reject a connection if the faults say so, and count it."""
    status, headers = state.faults.refuse_status, retry_after(state.faults.retry_after)
    if not exchange.is_authorized(state.faults.authorization):
        status, headers = 401, []
    if status is None:
        return False
    state.stats.count(**dict.fromkeys(counters, 1))
    await exchange.respond(status, headers)
    return True


async def serve_changes(state: ReferenceState, exchange: Exchange) -> None:
    """Answer a long poll. Without `after`, it waits for the next event."""
    state.stats.count(long_polls=1)
    if await _is_refused(state, exchange):
        return
    query, faults = exchange.query, state.faults
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
        await state.hold(exchange, until_push, "long_polls_held")
    news = not early and bool(state.page(after, 1))
    answer: dict[str, object] = {"changes": news, "cursor": state.newest if news else after}
    if faults.backoff is not None:
        answer["backoff"] = faults.backoff
    await exchange.respond(200, [JSON], msgspec.json.encode(answer))


async def serve_events(state: ReferenceState, exchange: Exchange) -> None:
    """Serve an event stream. `Last-Event-ID` is ignored: earlier pushes are not repeated."""
    if await _is_refused(state, exchange, "streams_refused"):
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
                await exchange.send({"type": "http.response.body", "body": text, "more_body": True})

    await exchange.start(200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")])
    state.stats.count(streams_accepted=1)
    if state.faults.accept_and_close is None:
        await state.hold(exchange, send_events, "streams_open")
    await exchange.send({"type": "http.response.body", "body": b""})


async def serve_websocket(state: ReferenceState, exchange: Exchange) -> None:
    await exchange.receive()
    if await _is_refused(state, exchange, "websockets_refused"):
        return
    subscription = PushSubscription(state)

    async def send_pushes() -> None:
        while (record := await subscription.next()) is not None:
            text = msgspec.json.encode({"cursor": record.cursor}).decode()
            await exchange.send({"type": "websocket.send", "text": text})
        await exchange.send({"type": "websocket.close", "code": subscription.code})

    await exchange.send({"type": "websocket.accept"})
    state.stats.count(websockets_accepted=1)
    if state.faults.accept_and_close is not None:
        await exchange.send({"type": "websocket.close", "code": state.faults.accept_and_close})
    else:  # a server that ends closes it, with 1012
        await state.hold(exchange, send_pushes, "websockets_open", until_shut=False)
