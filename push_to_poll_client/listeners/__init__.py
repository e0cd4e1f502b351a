"""Who said so: one file for each kind of push channel."""

from push_to_poll_client.listeners._json_hint import JSONHint
from push_to_poll_client.listeners._reconnect import Verdict
from push_to_poll_client.listeners._sse_parser import ServerSentEvent
from push_to_poll_client.listeners.connection import Connection, ConnectionListener
from push_to_poll_client.listeners.sse import SSEListener
from push_to_poll_client.listeners.websocket import WebSocketListener

__all__ = [
    "Connection",
    "ConnectionListener",
    "JSONHint",
    "SSEListener",
    "ServerSentEvent",
    "Verdict",
    "WebSocketListener",
]
