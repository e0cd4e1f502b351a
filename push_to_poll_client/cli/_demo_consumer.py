"""The consumer of the demo: an ordinary consumer, in its own process so that it can be killed.

The handler appends one line per message to a file: the id, the time of publication, the time of the call, and the
process id. Times come from `time.monotonic()`, which the processes of one machine share. Each line is one
`os.write`, so a kill does not lose earlier lines.
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

FALLBACK_INTERVAL = 0.5
"""Seconds. Short, so that the demo finds lost pushes within half a minute; a service would use a minute."""

COMMIT_INTERVAL = 0.05
"""Seconds of work that a kill may repeat (G7)."""


async def consume(*arguments: str) -> None:
    """Consume until SIGTERM, and finish the current message."""
    url, push_url, database, handled = arguments
    file = os.open(handled, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def process(message: Message) -> None:
        line = json.dumps([message.id, message.data["sent"], time.monotonic(), os.getpid()])
        os.write(file, f"{line}\n".encode())

    orders = Consumer(
        HTTPFeed(url),
        store=SQLiteStore(database),
        name="orders",
        # The server pushes the newest cursor.
        listeners=[WebSocketListener(push_url, hint=lambda text: Push(cursor=json.loads(text)["cursor"]))],
        process=process,
        fallback_interval=FALLBACK_INTERVAL,
        commit_interval=COMMIT_INTERVAL,
        rate=20,
        burst=20,
    )
    running = orders.run()  # stop() works from here on
    signal.signal(signal.SIGTERM, lambda *_: orders.stop())
    await running


def end_with_parent(stdin: int = 0) -> None:
    """Send SIGTERM to this process when its parent ends, which closes the pipe at standard input."""

    def watch() -> None:
        os.read(stdin, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    end_with_parent()
    anyio.run(consume, *sys.argv[1:])
