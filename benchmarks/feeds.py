"""What it costs to read a page, for each kind of feed, beside the loop that everyone writes by hand.

Both sides ask the same client, whose answer is in memory, so that what remains is httpx, which both pay for, and
the way from bytes to messages. Each figure is the median of so many pages, read in turns, in processor time:
what else the machine does meanwhile is not in it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import httpx

from push_to_poll_client import Feed, FetchRequest, HTTPFeed
from push_to_poll_client.feeds.paged import (
    CONTENTS,
    LINES,
    Entries,
    NewestFirst,
    OldestFirst,
    PagedFeed,
    from_body,
    from_each,
    from_last,
    to_query,
)

PAGE = 1_000

URL = "https://api.vendor.example/events"


def client(body: bytes, media_type: str) -> httpx.AsyncClient:
    """One that has the same answer to every question."""
    headers = {"content-type": media_type}
    return httpx.AsyncClient(
        transport=httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, content=body))
    )


def event(number: int) -> dict[str, Any]:
    """As one of Stripe's, which is small."""
    return {
        "id": f"evt_{number:024}",
        "object": "event",
        "created": 1_700_000_000 + number,
        "type": "invoice.paid",
        "data": {"object": {"id": f"in_{number}", "object": "invoice", "amount": number, "currency": "usd"}},
    }


def cloud_event(number: int) -> dict[str, Any]:
    """As one of an HTTP feed."""
    data = {"amount": number, "currency": "usd", "customer": f"c{number}"}
    return {"specversion": "1.0", "id": f"{number:012}", "source": "shop", "type": "order.paid", "data": data}


async def by_hand(asked: httpx.AsyncClient, entries: Callable[[bytes], Any]) -> int:
    """The loop that everyone writes: ask, read, look at the id and the data of each."""
    answer = await asked.get(URL)
    seen = {entry["id"]: entry["data"] for entry in entries(answer.content)}
    return len(seen)


async def by_feed(feed: Feed) -> int:
    """The same by a feed, from the beginning."""
    page = await feed.fetch(FetchRequest())
    seen = {message.dedupe_key: message.data for message in page.messages}
    return len(seen)


Sides: TypeAlias = tuple[Callable[[], Awaitable[int]], Callable[[], Awaitable[int]]]
"""By hand, and by the feed."""


def sides() -> dict[str, Sides]:
    """By the kind of feed."""
    events = [event(n) for n in range(PAGE)]
    back = NewestFirst(next=from_last("id"), send=to_query("starting_after"), more=from_body("has_more"))
    on = OldestFirst(cursor=from_last("id"), send=to_query("since"), more=from_body("has_more"))
    each = OldestFirst(cursor=from_each("id"), send=to_query("since"))
    named = {"type": "type", "time": "created"}
    listed, reverse = (
        client(json.dumps({"data": data, "has_more": False}).encode(), "application/json")
        for data in (events, events[::-1])
    )
    lines = client("\n".join(map(json.dumps, events)).encode(), "application/x-ndjson")
    batch = client(
        json.dumps([cloud_event(n) for n in range(PAGE)]).encode(), "application/cloudevents-batch+json"
    )

    def paged(entries: Entries, pages: OldestFirst | NewestFirst, asked: httpx.AsyncClient = listed) -> Sides:
        feed = PagedFeed(URL, entries=entries, pages=pages, client=asked)
        return lambda: by_hand(asked, lambda body: json.loads(body)["data"]), lambda: by_feed(feed)

    by_line = PagedFeed(URL, entries=Entries(LINES, **named), pages=each, client=lines)
    http = HTTPFeed(URL, client=batch)
    return {
        "PagedFeed, oldest first": paged(Entries("data", **named), on),
        "PagedFeed, cursors on entries": paged(Entries("data", **named), each),
        "PagedFeed, versions": paged(Entries("data", version="created", **named), on),
        "PagedFeed, versions by CONTENTS": paged(Entries("data", version=CONTENTS, **named), on),
        "PagedFeed, newest first": paged(Entries("data", **named), back, reverse),
        "PagedFeed, lines": (
            lambda: by_hand(lines, lambda body: map(json.loads, body.splitlines())),
            lambda: by_feed(by_line),
        ),
        "HTTPFeed": (lambda: by_hand(batch, json.loads), lambda: by_feed(http)),
    }


async def timed(read: Callable[[], Awaitable[int]]) -> float:
    """Milliseconds for a page."""
    began = time.thread_time()
    assert await read() == PAGE  # noqa: S101  # or there is nothing to be compared
    return 1000 * (time.thread_time() - began)


async def main(pages: int) -> None:
    """Print a row for each kind of feed."""
    for name, both in sides().items():
        times = [[await timed(side) for side in both] for _ in range(pages)]
        hand, ours = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"a page of {PAGE:,} by {name}: by hand {hand:.2f} ms, ours {ours:.2f} ms, {hand / ours:.2f} x as fast"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=200, help="pages that are read by each side")
    anyio.run(main, parser.parse_args().pages)
