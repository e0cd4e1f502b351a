"""WHAT MAKES A SERVER PUSH: subscriptions, which a webhook or a pull-wake channel keeps alive."""

from push_to_poll_client.listeners._subscriptions.custom import CustomSubscription
from push_to_poll_client.listeners._subscriptions.nouns import Registration, Subscription
from push_to_poll_client.listeners._subscriptions.websub import WebSub

__all__ = ["CustomSubscription", "Registration", "Subscription", "WebSub"]
