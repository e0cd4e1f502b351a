"""An ordinary consumer in its own process, to be killed and stopped.

`python -m tests.chaos.chaos_consumer SETTINGS BACKEND`: SETTINGS is a JSON object, see
`processes.ConsumerProcess`. It ends after SIGTERM, at the end of its standard input, and with its parent.
"""

import ctypes
import functools
import json
import logging
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1


def end_with_parent_process():
    """Let Linux kill this process with its parent, even while it is stopped by SIGSTOP."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_parent():
    """End when the parent has closed our standard input by its death."""
    end_with_parent_process()
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()


if __name__ == "__main__":
    end_with_parent()

import anyio  # noqa: E402  # what takes time comes after what must not wait

from push_to_poll_client import Consumer, SQLiteStore, _lifecycle, _runner, _schedule  # noqa: E402
from push_to_poll_client.listeners import _backoff, long_poll  # noqa: E402
from push_to_poll_client.listeners.subscriptions import _manager, _state  # noqa: E402
from tests.chaos.chaos_listeners import listener  # noqa: E402
from tests.chaos.journals import Journal  # noqa: E402
from tests.chaos.watched import WatchedFeed, WatchedListener  # noqa: E402


class Orders(Consumer):
    """Record each message at the begin and at the end of the handler."""

    def __init__(self, feed, *, journal, life, takes, **settings):
        super().__init__(feed, **settings)
        self._journal, self._life, self._takes = journal, life, takes

    async def process(self, message):
        self._journal.write("enters", self._life, message.id, time.monotonic())
        if self._takes:
            await anyio.sleep(self._takes)
        self._journal.write("leaves", self._life, message.id, time.monotonic())


def hasten(haste):
    """Shorten delays after failures as the settings shorten the other intervals."""
    for module, names in (
        (_schedule, ("FIRST_BACKOFF", "MAX_BACKOFF")),
        (_backoff, ("FIRST_DELAY", "BASE_DELAY", "MAX_DELAY", "STABLE_AFTER")),
        (long_poll, ("HELD_AFTER",)),
        (_state, ("MIN_RENEWAL_INTERVAL",)),
        (_manager, ("MAX_SLEEP",)),
        (_runner, ("FIRST_STORE_BACKOFF", "MAX_STORE_BACKOFF", "HAND_OVER_PAUSE")),
        (_lifecycle, ("FIRST_STORE_BACKOFF", "MAX_STORE_BACKOFF")),
    ):
        for name in names:
            setattr(module, name, getattr(module, name) / haste)


PATHS = {"websocket": "/push", "sse": "/events"}
"""Paths of the reference server's channels whose connections are recorded."""


async def main(
    *,
    url,
    push,
    client,
    database,
    journal,
    life,
    takes,
    answer_within,
    haste,
    consumer,
    identity=None,
    open_store=SQLiteStore,
    kind=Orders,
):
    hasten(haste)
    journal = Journal(journal)
    orders = kind(
        WatchedFeed(
            url,
            client=client,
            identity=identity,
            timeout=answer_within,
            began=lambda fetch: journal.write("fetches", life, fetch.at, fetch.after or "-"),
            over=lambda fetch: journal.write(
                "fetched",
                life,
                fetch.at,
                fetch.ended,
                "failed" if fetch.failed else fetch.next or "-",
                fetch.heard_at,
                fetch.retry_after,
            ),
        ),
        store=open_store(database),
        listeners=[watched(journal, life, kind, listener(kind, settings, client)) for kind, settings in push],
        journal=journal,
        life=life,
        takes=takes,
        **consumer,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(stop_at_sigterm, orders)
        journal.write("begins", life)
        await orders.run()
        tasks.cancel_scope.cancel()


def watched(journal, life, kind, listener):
    return WatchedListener(
        listener,
        lambda what: journal.write("channel", life, what, time.monotonic()),
        lambda: journal.write("dials", life, time.monotonic(), PATHS.get(kind, kind)),
    )


async def stop_at_sigterm(orders, *, task_status):
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            orders.stop()


def log():
    """Log to standard error."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)


if __name__ == "__main__":
    log()
    settings = json.loads(sys.argv[1])
    anyio.run(functools.partial(main, **settings), backend=sys.argv[2])
