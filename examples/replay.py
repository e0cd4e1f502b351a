"""Process a range of a feed again, for example after a bug in the handler was fixed.

    push-to-poll rewind --store orders.db --list        # shows the saved cursors with their times
    python examples/replay.py https://shop.example/orders orders.db 000000000100 000000000250

The handler gets the messages after the first cursor again, up to and including the message of the second cursor.
Use "inception" as the first cursor to start at the beginning of the feed. Leave out the second cursor to replay to
the end of the feed. The saved cursor does not change. Stop the consumer first, because only one process can use
its state file.
"""

import sys

import anyio

from push_to_poll_client import CloudEvent, Consumer, HTTPFeed, PushToPollError, SQLiteStore


class Orders(Consumer[CloudEvent]):
    """Consumer with the name and feed of your service, and the fixed handler."""

    def __init__(self, url: str, state: str) -> None:
        super().__init__(HTTPFeed(url), store=SQLiteStore(state), name="orders")

    async def process(self, message: CloudEvent) -> None:
        """Process one order. The effect must be safe to repeat."""
        print(message.id, message.type)


async def main(url: str, state: str, start: str, end: str | None = None) -> None:
    """Replay the range and print the number of messages."""
    done = await Orders(url, state).replay(start, end)
    print(f"messages replayed: {done.messages}")


if __name__ == "__main__":
    if len(sys.argv) not in {4, 5}:
        sys.exit(__doc__)
    try:
        anyio.run(lambda: main(*sys.argv[1:]))
    except PushToPollError as error:
        sys.exit(str(error))
