"""A consumer that records its work."""

import anyio

from push_to_poll_client import Consumer, MemoryStore


class Log(Consumer):
    """Record the processed messages, and take `takes` seconds for each.

    `until()` waits `patience` seconds at most. Virtual time allows a large value.
    """

    def __init__(self, feed, *, store=None, takes=0.0, patience=100_000, **settings):
        super().__init__(feed, store=store or MemoryStore(), **settings)
        self.takes = takes
        self.patience = patience
        self.processed = []
        self.at = []
        self.got = anyio.Event()

    async def process(self, message):
        await anyio.sleep(self.takes)
        self.processed.append(message.id)
        self.at.append(anyio.current_time())
        self.got.set()

    async def until(self, count):
        with anyio.fail_after(self.patience):
            while len(self.processed) < count:
                self.got = anyio.Event()
                await self.got.wait()


def times(feed):
    """Return the start time of each fetch of a fake feed."""
    return [asked.at for asked in feed.requests]


async def polls_on(consumer):
    """Poll by hand until an error stops the consumer; sleep while a message waits. Needs `virtual_day`."""
    while True:
        result = await consumer.poll_now(timeout=None)
        await anyio.sleep(result.retry_in or 1.0)
