"""Process a range of a feed again, for example after a bug in the handler was fixed.

    push-to-poll rewind --state orders.db --list        # shows the saved cursors with their times
    python examples/replay.py https://shop.example/orders orders.db 000000000100 000000000250

The handler gets the messages after the first cursor again, up to and including the message of the second cursor,
although they were processed before. "inception" as the first cursor means the beginning of the feed; without the
second cursor the replay reads to its end. The saved cursor does not move. Stop the consumer first: its state file
has one owner.
"""

import sys

import anyio

from push_to_poll_client import CloudEvent, Consumer, HTTPFeed, PushToPollError, SQLiteStore


class Orders(Consumer[CloudEvent]):
    """The consumer as your service runs it: the same name, the same feed, the fixed handler."""

    def __init__(self, url: str, state: str) -> None:
        super().__init__(HTTPFeed(url), store=SQLiteStore(state), name="orders")

    async def process(self, message: CloudEvent) -> None:
        """Handle one order. It must be safe to do this twice."""
        print(message.id, message.type)


async def main(url: str, state: str, start: str, end: str | None = None) -> None:
    """Give the range to the handler again."""
    done = await Orders(url, state).replay(start, end)
    print(f"messages replayed: {done.messages}")


if __name__ == "__main__":
    if len(sys.argv) not in {4, 5}:
        sys.exit(__doc__)
    try:
        anyio.run(lambda: main(*sys.argv[1:]))
    except PushToPollError as error:
        sys.exit(str(error))
