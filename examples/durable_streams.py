"""Follow a JSON stream of a Durable Streams server (github.com/durable-streams/durable-streams).

    python examples/durable_streams.py http://127.0.0.1:4437/orders orders.db

This prints each message once, also across restarts, and waits for new messages until the stream is closed. Without
the state file (`orders.db`) it starts at the beginning of the stream each time.
"""

import json
import sys

import anyio

from push_to_poll_client import Consumer, MemoryStore, Message, PushToPollError, SQLiteStore
from push_to_poll_client.durable_streams import DurableStreamFeed


async def show(message: Message) -> None:
    """Handle one message. Replace this with your own code."""
    print(message.id, json.dumps(message.data), flush=True)


async def main(url: str, state: str | None = None) -> None:
    """Print each message until the stream is closed."""
    store = SQLiteStore(state) if state else MemoryStore()
    await Consumer(DurableStreamFeed(url), store=store, name="stream", process=show).run()


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        sys.exit(__doc__)
    try:
        anyio.run(lambda: main(*sys.argv[1:]))
    except PushToPollError as error:
        sys.exit(str(error))
