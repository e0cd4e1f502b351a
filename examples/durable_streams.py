"""A feed of your own, whole: the messages of a JSON stream by the Durable Streams protocol.

    python examples/durable_streams.py http://127.0.0.1:4437/orders orders.db

prints each message once, across restarts, and waits for more until the stream is closed. Without the file it
begins at the beginning each time. Paragraphs are those of the protocol, PROTOCOL.md in
github.com/durable-streams/durable-streams.
"""

import json
import sys
from typing import Any

import anyio
import httpx

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    FeedGone,
    FeedRefused,
    FetchRequest,
    MemoryStore,
    Message,
    Page,
    PushToPollError,
    SQLiteStore,
)

INCEPTION = "-1"  # reserved: no offset that a server makes (§8)


class StreamClosed(FeedGone):
    """All was read, and there will be no more: the consumer stops (§4.1)."""


class DurableStreamFeed:
    """A JSON stream. Its messages have no ids, but they keep their places (§4).

    So a message is named by its number, which does not depend on where a page happens to end, and the cursor is an
    offset together with the number of the message there.

    Args:
        url: Where the stream is, without secrets: those belong to the client.
        client: Asks. It stays yours.
        max_wait: Seconds for which the server holds a long poll; it cannot be asked to (§5.7).
    """

    def __init__(self, url: str, client: httpx.AsyncClient, *, max_wait: float = 30.0) -> None:
        self.url = self.identity = url
        self.client = client
        self.max_wait = max_wait
        self.echo: dict[str, str] = {}

    async def fetch(self, request: FetchRequest) -> Page:
        """Read what comes after `request.cursor`; if that is nothing, hold on for `request.wait` seconds."""
        if request.wait:
            with anyio.move_on_after(request.wait):  # the server may hold for longer, or be gone
                return await self.read(request, {**self.echo, "live": "long-poll"})
        return await self.read(request, {})

    async def read(self, request: FetchRequest, live: dict[str, str]) -> Page:
        """One request and its answer."""
        offset, number = (request.cursor or f"{INCEPTION}/0").split("/")
        query = {**live, "offset": offset}
        headers = {"Cache-Control": "no-cache"} if request.fresh else {}
        answer = await self.client.get(self.url, params=query, headers=headers, timeout=10 + request.wait)
        entries = entries_in(answer, offset)
        if "Stream-Cursor" in answer.headers:  # no progress: it keeps caches from repeating an answer (§10.1)
            self.echo = {"cursor": answer.headers["Stream-Cursor"]}
        messages = [Message(str(place), entry) for place, entry in enumerate(entries, int(number))]
        cursor = f"{answer.headers['Stream-Next-Offset']}/{int(number) + len(entries)}"
        return Page(messages, cursor, next=None if says(answer, "Stream-Up-To-Date") else cursor)


def entries_in(answer: httpx.Response, offset: str) -> list[Any]:
    """What came, or why nothing did."""
    if answer.status_code == httpx.codes.GONE and offset != INCEPTION:
        raise CursorExpired(f"what came at offset {offset} is no longer kept, or the stream was deleted")
    answer.raise_for_status()
    if answer.content and "json" not in answer.headers.get("Content-Type", ""):
        raise FeedRefused(f"the stream is one of {answer.headers['Content-Type']!r}, not JSON; check its URL")
    entries: list[Any] = answer.json() if answer.content else []
    if offset != INCEPTION and answer.headers["Stream-Next-Offset"] < offset:  # they only grow (§8)
        raise CursorExpired(f"offset {offset} is beyond the end of the stream: it was deleted and made anew")
    if not entries and says(answer, "Stream-Closed"):
        raise StreamClosed("the stream was closed by its writer, and this is its end")
    return entries


def says(answer: httpx.Response, name: str) -> bool:
    """Whether a header is there and true; any other value counts as none (§4.1)."""
    value: str = answer.headers.get(name, "")
    return value.lower() == "true"


async def show(message: Message) -> None:
    """Stands for what you do with a message."""
    print(message.id, json.dumps(message.data), flush=True)


async def main(url: str, state: str | None = None) -> None:
    """Print each message with its number, until the stream ends."""
    store = SQLiteStore(state) if state else MemoryStore()
    async with httpx.AsyncClient() as client:
        await Consumer(DurableStreamFeed(url, client), store=store, process=show).run()


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        sys.exit(__doc__)
    try:
        anyio.run(lambda: main(*sys.argv[1:]))
    except StreamClosed as end:
        print(end, file=sys.stderr)
    except PushToPollError as error:
        sys.exit(str(error))
