"""Simulate a day of a consumer, to show its log: `python -m tests.support.day` prints it.

The feed publishes a message each minute and pushes every third one. The fallback timer finds the others. The
handler has a bug for one message, one response is a 503, and the consumer restarts once.
"""

import logging
import random
import sys
from unittest.mock import patch

import anyio

from push_to_poll_client import Consumer, FeedError, MemoryStore
from push_to_poll_client.testing import FakeFeed, ManualListener
from push_to_poll_client.testing._virtual_time import START, virtual_time
from tests.support.clock import time_of_day

MINUTES = 24 * 60


class Orders(Consumer):
    """A handler that bills orders and has a bug."""

    async def process(self, message):
        bill(message.data)


def bill(order):
    return order["customer"], order["total"]


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []
        self.lines = []

    def emit(self, record):
        seconds = round(anyio.current_time() - START)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        self.records.append(record)
        self.lines.append(f"{clock} {record.levelname} {self.format(record)}")


async def live_through_a_day():
    feed, store, listener = FakeFeed(identity="https://shop.example/orders"), MemoryStore(), ManualListener()

    def orders():
        return Orders(feed, store=store, name="orders", listeners=[listener], on_failure="dead_letter")

    consumer = orders()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        for minute in range(MINUTES):
            await anyio.sleep_until(START + 60 * minute + 30)
            feed.publish(str(minute), data={"total": 5} if minute == 9 * 60 else {"customer": "c", "total": 5})
            if minute == 14 * 60:
                feed.fail(FeedError("https://shop.example/orders answered HTTP 503"))
            if minute % 3 == 0:
                listener.push()
            if minute == 18 * 60:
                consumer.stop()
                await anyio.sleep(5)
                consumer = orders()
                tasks.start_soon(consumer.run)
        await anyio.sleep(60)
        consumer.stop()
    return len(feed.requests), MINUTES


def simulate(backend="asyncio", level=logging.INFO):
    """Return the handler with the day's records and lines, and the numbers of polls and messages."""
    handler, logger = Lines(), logging.getLogger("push_to_poll_client")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    name, options = virtual_time(backend)
    random.seed(17)
    try:
        with patch("push_to_poll_client._event_loop.wall_clock", time_of_day):
            numbers = anyio.run(live_through_a_day, backend=name, backend_options=options)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    return handler, numbers


if __name__ == "__main__":
    logging.getLogger("push_to_poll_client").propagate = False
    log, (polls, messages) = simulate()
    sys.stdout.write(
        "\n".join([*log.lines, "", f"{polls} polls, {messages} messages, {len(log.lines)} records\n"])
    )
