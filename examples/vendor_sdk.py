"""An SDK that the vendor Acme ships to its customers.

The customer only writes a handler:

    from acme import AcmeEvents
    from push_to_poll_client import SQLiteStore

    class Billing(AcmeEvents):
        async def process(self, message):
            print(message.data.type, message.data.order)

    billing = Billing(API_KEY, store=SQLiteStore("acme.db"), name="billing", webhook_secret=WEBHOOK_SECRET)
    app.mount("/acme", billing.webhook)         # app: the customer's own ASGI application
    await billing.run()

Without `webhook_secret` the consumer is a plain poller, and `billing.webhook` is None.

The SDK contains the URL, the paging, the rate limits, the webhook signature and the types. The customer can still
use all options of `Consumer`: the store, retries, dead letters, hooks.
"""

from typing import Any

import httpx
import msgspec

from push_to_poll_client import Consumer, Entry, PagedFeed, Store, WebhookListener
from push_to_poll_client.feeds.paged import (
    Entries,
    OldestFirst,
    from_body,
    from_header,
    pause,
    status,
    throttled,
    to_query,
)
from push_to_poll_client.listeners.verifiers import standard_webhooks


class AcmeEvent(msgspec.Struct):
    """An event of an order."""

    id: str
    type: str
    created_at: str
    order: str | None = None


def acme_feed(api_key: str, *, client: httpx.AsyncClient | None = None) -> PagedFeed[AcmeEvent]:
    """Declare Acme's event feed: GET /v2/events, oldest first, 100 events a page.

    Args:
        api_key: The customer's key, from Acme's dashboard.
        client: An HTTP client with your own settings, for proxies and tests. None means that the feed opens one.
    """
    return PagedFeed(
        "https://api.acme.example/v2/events?limit=100",
        headers={"X-Acme-Key": api_key},
        entries=Entries("events", id="id", type="type", time="created_at"),
        pages=OldestFirst(cursor=from_body("next_token"), send=to_query("token"), more=from_body("has_more")),
        outcomes=[
            throttled(status(429), after=from_header("X-Acme-Wait")),
            pause(from_header("X-Acme-Wait")),
        ],
        decode=AcmeEvent,
        client=client,
        identity="acme events",  # customers keep their progress if a later version of the SDK changes the URL
    )


class AcmeEvents(Consumer[Entry[AcmeEvent]]):
    """Consume the events of an Acme account. Override `process`, or pass `process=`.

    Args:
        api_key: Your key, from Acme's dashboard.
        store: Keeps the progress, such as `SQLiteStore("acme.db")`.
        webhook_secret: The secret of your webhook, from Acme's dashboard. None means a plain poller.
        name: The consumer's name in the store. Use a different name for each Acme account.
        client: An HTTP client with your own settings, for proxies and tests. None means that the feed opens one.
        options: Any other option of `Consumer`.

    Attributes:
        webhook: The ASGI application to mount in your server. None if there is no `webhook_secret`.
    """

    def __init__(
        self,
        api_key: str,
        *,
        store: Store,
        webhook_secret: str | None = None,
        name: str = "acme",
        client: httpx.AsyncClient | None = None,
        **options: Any,
    ) -> None:
        self.webhook = None if webhook_secret is None else WebhookListener(standard_webhooks(webhook_secret))
        super().__init__(
            acme_feed(api_key, client=client),
            store=store,
            name=name,
            listeners=[self.webhook] if self.webhook else [],
            **options,
        )
