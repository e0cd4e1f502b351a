"""A FastAPI service that consumes an event feed in its own event loop, woken by webhooks.

    pip install 'push-to-poll-client[serve,postgres]' 'psycopg[binary]' fastapi
    export FEED_URL=https://shop.example/orders WEBHOOK_SECRET=whsec_… DATABASE_URL=postgresql://me@db.example/shop
    uvicorn --factory fastapi_webhook:create_app --port 8000 --workers 4

Give the server the address https://<this host>/hooks/, with the slash at the end. The feed follows the HTTP Feeds
specification (http-feeds.org), and the server signs its webhooks as Standard Webhooks
(standardwebhooks.com); for another API replace `HTTPFeed` and `standard_webhooks`.

Run any number of workers, on any number of machines: one of them owns the consumer and polls, the others stand by.
A webhook can arrive at any of them. Without PostgreSQL, run one worker with `SQLiteStore("orders.db")`.

/health answers 503 when the consumer has stopped. A worker that stands by is healthy.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, Response

from push_to_poll_client import CloudEvent, Consumer, HTTPFeed, Mode, WebhookListener
from push_to_poll_client.listeners.verifiers import standard_webhooks
from push_to_poll_client.stores.postgres import PostgresStore

logger = logging.getLogger(__name__)


class Orders(Consumer[CloudEvent]):
    """Handles each order once. Replace `process` with your own code."""

    async def process(self, message: CloudEvent) -> None:
        """Handle one order."""
        logger.info("order %s: %s", message.id, message.data)


def create_app() -> FastAPI:
    """Make the service from the environment variables FEED_URL, WEBHOOK_SECRET and DATABASE_URL."""
    hooks = WebhookListener(standard_webhooks(os.environ["WEBHOOK_SECRET"]))
    orders = Orders(
        HTTPFeed(os.environ["FEED_URL"]),
        store=PostgresStore(os.environ["DATABASE_URL"]),
        name="orders",
        listeners=[hooks],
    )

    async def run_orders() -> None:
        try:
            await orders.run()
        except Exception:  # the service keeps serving; /health answers 503
            logger.exception("the consumer of orders has stopped")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_orders)
            yield
            orders.stop()  # the message in flight finishes, and the cursor is saved

    app = FastAPI(lifespan=lifespan)
    app.mount("/hooks", hooks)

    @app.get("/health")
    async def health(response: Response) -> dict[str, object]:
        status = orders.status()
        if status.mode is Mode.STOPPED:
            response.status_code = 503
        return {
            "mode": status.mode,
            "owner": status.owner,
            "messages": status.counters.messages,
            "last_error": status.last_error,
        }

    return app
