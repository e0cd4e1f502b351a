"""The consumer of the demo: an ordinary one, in a process of its own so that it can be killed.

Its handler appends one line per message to a file: id, when the message was published, when the handler was
entered (both on the clock of `time.monotonic()`, which the processes of one machine share), and its process. A
line is one `os.write`, so that what a killed process wrote is there to be counted.
"""

import json
import logging
import os
import signal
import sys
import time

import anyio

from push_to_poll_client import Consumer, HTTPFeed, Message, Push, SQLiteStore, WebSocketListener

FALLBACK_INTERVAL = 0.5
"""Seconds; short, so that the demo sees lost pushes within its half minute. A service would take a minute."""

FLUSH_INTERVAL = 0.05
"""Seconds of work that a kill may cost (G7)."""


class Orders(Consumer):
    """Writes down what it is given."""

    handled = os.open(os.environ["DEMO_HANDLED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def process(self, message: Message) -> None:
        """Called once for each message."""
        entered = time.monotonic()
        os.write(self.handled, f"{message.id} {message.data['sent']!r} {entered!r} {os.getpid()}\n".encode())


def hint(text: str | bytes) -> Push:
    """What the server pushes: the newest cursor."""
    return Push(cursor=json.loads(text)["cursor"])


async def main(url: str, push_url: str, database: str) -> None:
    """Consume until SIGTERM."""
    orders = Orders(
        HTTPFeed(url),
        store=SQLiteStore(database),
        listeners=[WebSocketListener(push_url, hint=hint)],
        fallback_interval=FALLBACK_INTERVAL,
        flush_interval=FLUSH_INTERVAL,
        rate=20,
        burst=20,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_at_sigterm, orders)
        await orders.run()
        tasks.cancel_scope.cancel()


async def stop_at_sigterm(orders: Orders) -> None:
    """Let the message in hand finish, and end."""
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            orders.stop()


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    anyio.run(main, *sys.argv[1:])
