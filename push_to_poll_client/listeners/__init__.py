"""Listeners: each turns a kind of push channel into wakes.

What webhooks are made of is in `verifiers`, `handshakes` and `subscriptions`; the channels of databases are in
`postgres` and `redis`.
"""

from push_to_poll_client.listeners._backoff import Verdict
from push_to_poll_client.listeners._hints import JSONHint
from push_to_poll_client.listeners._sse_parser import ServerSentEvent
from push_to_poll_client.listeners.connection import Connection, ConnectionListener
from push_to_poll_client.listeners.long_poll import LongPollListener
from push_to_poll_client.listeners.sse import SSEListener
from push_to_poll_client.listeners.webhook import WebhookAnswer, WebhookCounters, WebhookListener, WebhookRequest
from push_to_poll_client.listeners.websocket import WebSocketListener

__all__ = [
    "Connection",
    "ConnectionListener",
    "JSONHint",
    "LongPollListener",
    "SSEListener",
    "ServerSentEvent",
    "Verdict",
    "WebSocketListener",
    "WebhookAnswer",
    "WebhookCounters",
    "WebhookListener",
    "WebhookRequest",
]
