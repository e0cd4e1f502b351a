"""Who said so: one file for each kind of push channel."""

from push_to_poll_client.listeners._reconnect import Verdict
from push_to_poll_client.listeners.websocket import WebSocketListener

__all__ = ["Verdict", "WebSocketListener"]
