"""The consumer of the demo: an ordinary consumer, in its own process so that it can be killed.

Its handler appends one line per message to a file: the id, when the message was published, when the handler was
called (both on the clock of `time.monotonic()`, which the processes of one machine share), and its process. A line
is one `os.write`, so that the lines of a killed process are in the file.
"""

import json
import logging
import os
import signal
import sys
import threading
import time

import anyio

from push_to_poll_client import Consumer, HTTPFeed, Message, Push, SQLiteStore, WebSocketListener

__all__ = ["FLUSH_INTERVAL", "Orders", "consume", "end_with_parent"]

FALLBACK_INTERVAL = 0.5
"""Seconds; short, so that the demo sees lost pushes within its half minute. A service would take a minute."""

FLUSH_INTERVAL = 0.05
"""Seconds of work that a kill may cost (G7)."""


class Orders(Consumer):
    """Writes a line for each message.

    Args:
        url: The URL of the feed, which follows the HTTP Feeds specification.
        push_url: The URL of the websocket.
        database: The path of the SQLite store.
        handled: The file to write to.
    """

    def __init__(self, url: str, push_url: str, database: str, handled: str) -> None:
        super().__init__(
            HTTPFeed(url),
            store=SQLiteStore(database),
            name="orders",
            # The server pushes the newest cursor.
            listeners=[WebSocketListener(push_url, hint=lambda text: Push(cursor=json.loads(text)["cursor"]))],
            fallback_interval=FALLBACK_INTERVAL,
            flush_interval=FLUSH_INTERVAL,
            rate=20,
            burst=20,
        )
        self._handled = os.open(handled, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def process(self, message: Message) -> None:
        """Called once for each message."""
        entered = time.monotonic()
        os.write(self._handled, f"{message.id} {message.data['sent']!r} {entered!r} {os.getpid()}\n".encode())


async def consume(*arguments: str) -> None:
    """Consume until SIGTERM.

    Args:
        arguments: The arguments of `Orders`.
    """
    orders = Orders(*arguments)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_at_sigterm, orders)
        await orders.run()
        tasks.cancel_scope.cancel()


def end_with_parent(stdin: int = 0) -> None:
    """Send SIGTERM to this process when the other end of its standard input is closed, as by the parent's end."""

    def watch() -> None:
        os.read(stdin, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


async def _stop_at_sigterm(orders: Orders) -> None:
    """Stop after the current message."""
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            orders.stop()


def main() -> None:
    """Consume with the arguments of the process."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    end_with_parent()
    anyio.run(consume, *sys.argv[1:])


if __name__ == "__main__":
    main()
