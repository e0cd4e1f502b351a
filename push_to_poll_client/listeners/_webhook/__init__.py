"""Parts of `WebhookListener`: requests, limits, routing, counters, ASGI."""
