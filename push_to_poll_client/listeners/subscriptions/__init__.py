"""Subscriptions: make a server push to a listener, and keep it pushing."""

from push_to_poll_client.listeners.subscriptions._custom import CustomSubscription
from push_to_poll_client.listeners.subscriptions._types import Registration, Subscription
from push_to_poll_client.listeners.subscriptions._websub import WebSub

__all__ = ["CustomSubscription", "Registration", "Subscription", "WebSub"]
