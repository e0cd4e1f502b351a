"""Feed of the reference server, by the HTTP Feeds specification (http-feeds.org)."""

import functools
import gzip
import time
from typing import TypeAlias

import anyio

from push_to_poll_client.testing._reference.asgi import (
    Header,
    Receive,
    Scope,
    Send,
    is_authorized,
    query_of,
    respond,
    retry_after,
    start,
    wait_for_disconnect,
)
from push_to_poll_client.testing._reference.state import DEFAULT_DATA, ReferenceState

LONGEST_HOLD = 60.0
"""Seconds for which a long poll is held at most: an idle client makes one request a minute."""

_Answer: TypeAlias = tuple[list[Header], bytes]

_BATCH = (b"content-type", b"application/cloudevents-batch+json")
_GZIP = (b"content-encoding", b"gzip")


async def serve_feed(state: ReferenceState, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request. An unknown `lastEventId` reads from the beginning: the specification names no error."""
    faults = state.faults
    state.stats.fetched_at.append(time.monotonic())
    state.stats.count(fetches=1)
    if not is_authorized(scope, faults.authorization):
        await _respond(state, send, 401, [(b"www-authenticate", b"Bearer")])
    elif faults.takes("fail_next"):
        await _respond(state, send, faults.fail_status, retry_after(faults.retry_after))
    elif faults.takes("redirect_next"):
        await _respond(state, send, 307, [(b"location", faults.redirect_to.encode())])
    else:
        # Read before the latency: a server that looks late would hide what a wake during a fetch must find.
        body = state.previous_body if faults.takes("repeat_next") else await _read_body(state, scope, receive)
        state.previous_body = body
        await anyio.sleep(faults.latency)
        await _deliver(state, scope, receive, send, body)


async def _read_body(state: ReferenceState, scope: Scope, receive: Receive) -> bytes:
    if state.faults.takes("grow_next"):
        state.append([DEFAULT_DATA] * state.page_size)
    query = query_of(scope)
    after, timeout = query.get("lastEventId", ""), query.get("timeout", "")
    # HTTP Feeds has milliseconds. Anything that is not a number asks for no wait.
    wait = min(int(timeout) / 1000, LONGEST_HOLD) if timeout.isdecimal() else 0.0

    async def until_news() -> None:
        while not state.page(after, 1):
            await state.bell.wait()

    if wait > 0 and not state.page(after, 1):
        with anyio.move_on_after(wait):
            await state.hold(receive, until_news, "held")
    events = state.page(after, state.page_size)
    state.stats.count(empty=not events)
    return b"[" + b",".join(events) + b"]"


async def _deliver(state: ReferenceState, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
    cut = state.faults.takes("cut_next")
    if not cut and not state.faults.takes("stall_next"):
        spoils = state.faults.takes("spoil_next")
        await _respond(state, send, 200, *(_spoil(state.faults.spoil_as, body) if spoils else ([_BATCH], body)))
        return
    state.stats.count_status(state.stats.statuses, 200)
    await start(send, 200, [_BATCH, (b"content-length", b"%d" % len(body))])
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
    if not cut:
        await state.hold(receive, anyio.sleep_forever)
    # Close the connection in the middle of the answer, where the server lets an application do so.
    if (close := scope.get("state", {}).get("hang_up")) is not None:
        close()
        await wait_for_disconnect(receive)


def _spoil(how: str, body: bytes) -> _Answer:
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
    state: ReferenceState, send: Send, status: int, headers: list[Header], body: bytes = b""
) -> None:
    state.stats.count_status(state.stats.statuses, status)
    await respond(send, status, headers, body)
