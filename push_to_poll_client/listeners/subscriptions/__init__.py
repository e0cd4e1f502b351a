"""WHAT MAKES A SERVER PUSH: subscriptions, which a webhook or a pull-wake channel keeps alive."""

from push_to_poll_client.listeners.subscriptions._custom import CustomSubscription
from push_to_poll_client.listeners.subscriptions._types import Registration, Subscription
from push_to_poll_client.listeners.subscriptions._websub import WebSub

__all__ = ["CustomSubscription", "Registration", "Subscription", "WebSub"]
