"""A FastAPI service with several workers, each with the same consumer and a webhook.

`python -m tests.chaos.chaos_workers PORT` serves until SIGTERM. SIGHUP replaces the workers one after the other.
`SETTINGS` in the environment has the URL of the feed, the arguments of the store, and the path of the journal.
"""

import json
import logging
import os
import sys
import time
from contextlib import asynccontextmanager

from tests.chaos.chaos_consumer import end_with_parent, end_with_parent_process, log
from tests.chaos.journals import Journal
from tests.support.forms import form

WORKERS = form(2, 4)

ANSWERED_BY = "x-worker"
"""Header of an answer with the process id of the worker, and its mode."""


def create_app():
    import anyio
    from fastapi import FastAPI

    from push_to_poll_client import Consumer, HTTPFeed
    from push_to_poll_client.listeners.verifiers import no_verification
    from push_to_poll_client.listeners.webhook import WebhookListener
    from push_to_poll_client.stores.postgres import PostgresStore

    end_with_parent_process()
    log()
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    settings = json.loads(os.environ["SETTINGS"])
    journal = Journal(settings["journal"])

    class Orders(Consumer):
        async def process(self, message):
            journal.write("enters", os.getpid(), message.id, time.monotonic())

    hooks = WebhookListener(no_verification())
    orders = Orders(
        HTTPFeed(settings["feed"], identity="chaos"),
        store=PostgresStore(**settings["store"], migrate=False),
        listeners=[hooks],
        fallback_interval=settings["fallback_interval"],
        dedupe_key=lambda message: message.id,
        rate=None,
    )

    @asynccontextmanager
    async def lifespan(_):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(orders.run)
            yield
            orders.stop()

    app = FastAPI(lifespan=lifespan)
    app.mount("/hooks", hooks)

    @app.middleware("http")
    async def tell_worker(request, call_next):
        response = await call_next(request)
        response.headers[ANSWERED_BY] = f"{os.getpid()} {orders.status().mode}"
        return response

    return app


if __name__ == "__main__":
    end_with_parent()
    import uvicorn

    uvicorn.run(
        "tests.chaos.chaos_workers:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        workers=WORKERS,
        access_log=False,
        # The default of 5 s is too short for imports on a busy machine. If the supervisor asks a worker that is
        # just ending, it waits for so long.
        timeout_worker_healthcheck=20,
    )
