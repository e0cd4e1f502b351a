"""One listener of each kind, with timeouts of seconds instead of a minute.

Each kind takes what it needs from `port`, the port of the push server; `served`, the port of a webhook; and
`callback`, the URL of the webhook.
"""

import json
import socket
import threading

import anyio

from push_to_poll_client import ConnectionListener, Push, SSEListener, WebSocketListener

DEAD = 1.0
"""Seconds in which a listener notices a dead connection."""

HOST = "127.0.0.1"
SECRET = "whsec_c2VjcmV0IG9mIGEgdGVzdA=="
ROOT, STREAM = "/v1/stream", "orders"
"""URLs of a Durable Streams server: its streams, and the stream to subscribe to."""


def hint(text):
    return Push(cursor=json.loads(text)["cursor"])


def websocket(*, port, headers):
    pings = {"ping_interval": DEAD / 2, "ping_timeout": DEAD / 2}
    return WebSocketListener(f"ws://{HOST}:{port}/push", headers=headers, hint=hint, **pings)


def sse(*, port, headers):
    url = f"http://{HOST}:{port}/events"
    return SSEListener(url, headers=headers, hint=lambda event: hint(event.data), max_silence=DEAD)


def long_poll(*, port, headers):
    from push_to_poll_client.listeners.long_poll import LongPollListener

    return LongPollListener(
        f"http://{HOST}:{port}/changes?wait={DEAD / 2}",
        next={"after": "cursor"},
        news="changes",
        retry_after="backoff",
        wait=DEAD / 2,
        open_timeout=DEAD / 2,
        headers=headers,
        hint=lambda answer: hint(answer.body),
    )


def webhook(*, served):
    from push_to_poll_client.listeners.verifiers import standard_webhooks
    from push_to_poll_client.listeners.webhook import WebhookListener

    return _served(served, WebhookListener(standard_webhooks(SECRET), hint=lambda request: hint(request.body)))


def durable_webhook(*, port, served, callback):
    from push_to_poll_client.durable_streams._subscription import DurableStreamsWebhook
    from push_to_poll_client.listeners.webhook import WebhookListener

    subscription = DurableStreamsWebhook(
        f"http://{HOST}:{port}{ROOT}",
        callback=f"http://{HOST}:{callback}/",
        streams=[STREAM],
        lease=1.0,
        confirm_every=DEAD,
    )
    return _served(served, WebhookListener(subscription=subscription))


def pull_wake(*, port):
    from push_to_poll_client.durable_streams import PullWakeListener

    return PullWakeListener(
        f"http://{HOST}:{port}{ROOT}",
        wake_stream="wakes",
        streams=[STREAM],
        lease=1.0,
        confirm_every=DEAD,
        max_silence=DEAD,
        open_timeout=DEAD,
    )


def websub(*, port, served, callback):
    from push_to_poll_client.listeners.subscriptions import WebSub
    from push_to_poll_client.listeners.webhook import WebhookListener

    subscription = WebSub("https://orders.example/", f"http://{HOST}:{callback}/", hub=f"http://{HOST}:{port}/")
    return _served(served, WebhookListener(subscription=subscription))


def postgres(*, port):
    from push_to_poll_client.listeners.postgres import PostgresListener

    conninfo = f"postgresql://me@{HOST}:{port}/postgres"
    return PostgresListener(conninfo, STREAM, max_silence=DEAD / 2, open_timeout=DEAD)


def redis(*, port):
    from push_to_poll_client.listeners.redis import RedisListener

    return RedisListener(f"redis://{HOST}:{port}", STREAM, max_silence=DEAD / 2, open_timeout=DEAD)


def nats(*, port):
    """Same code as in `docs/push.md`."""
    import nats

    async def orders(connection):
        client = await nats.connect(
            f"nats://{HOST}:{port}", allow_reconnect=False, ping_interval=DEAD / 2, max_outstanding_pings=1
        )
        try:
            subscription = await client.subscribe(STREAM)
            await client.flush()
            connection.up()
            async for _ in subscription.messages:
                connection.wake()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(0.2):
                await client.close()

    return ConnectionListener(orders, name="nats orders", open_timeout=DEAD)


LISTENERS = {
    kind.__name__: kind
    for kind in (websocket, sse, long_poll, webhook, durable_webhook, websub, pull_wake, nats, postgres, redis)
}


def listener(kind, settings, client):
    """Create a listener of this kind; `client` is its name for servers that record requests."""
    asks_reference = {"headers": {"x-client": client}} if kind in {"websocket", "sse", "long_poll"} else {}
    return LISTENERS[kind](**settings, **asks_reference)


def _served(port, app):
    """Serve a webhook in its own thread and event loop. Requests wait until it runs."""
    import uvicorn

    listening = socket.create_server((HOST, port))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    threading.Thread(target=uvicorn.Server(config).run, args=([listening],), daemon=True).start()
    return app
