"""Listeners: each turns pushes of one kind of channel into wakes.

Webhooks use `verifiers`, `handshakes` and `subscriptions`. The listeners for databases are in `postgres` and
`redis`.
"""

from typing import TYPE_CHECKING

from push_to_poll_client._lazy_exports import lazy_exports

if TYPE_CHECKING:
    from push_to_poll_client.listeners._backoff import ReconnectAction as ReconnectAction
    from push_to_poll_client.listeners._hints import JSONHint as JSONHint
    from push_to_poll_client.listeners._sse_parser import ServerSentEvent as ServerSentEvent
    from push_to_poll_client.listeners.connection import Connection as Connection
    from push_to_poll_client.listeners.connection import ConnectionListener as ConnectionListener
    from push_to_poll_client.listeners.long_poll import LongPollListener as LongPollListener
    from push_to_poll_client.listeners.sse import SSEListener as SSEListener
    from push_to_poll_client.listeners.webhook import WebhookCounters as WebhookCounters
    from push_to_poll_client.listeners.webhook import WebhookListener as WebhookListener
    from push_to_poll_client.listeners.webhook import WebhookRequest as WebhookRequest
    from push_to_poll_client.listeners.webhook import WebhookResponse as WebhookResponse
    from push_to_poll_client.listeners.websocket import WebSocketListener as WebSocketListener
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "_backoff": ["ReconnectAction"],
            "_hints": ["JSONHint"],
            "_sse_parser": ["ServerSentEvent"],
            "connection": ["Connection", "ConnectionListener"],
            "long_poll": ["LongPollListener"],
            "sse": ["SSEListener"],
            "webhook": ["WebhookResponse", "WebhookCounters", "WebhookListener", "WebhookRequest"],
            "websocket": ["WebSocketListener"],
        },
    )
