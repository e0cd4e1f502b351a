"""Subscriptions of a user pass the type checker, and run."""

from msgspec.structs import replace

from push_to_poll_client.listeners.subscriptions import CustomSubscription, Registration, Subscription, WebSub
from push_to_poll_client.listeners.verifiers import header_token, token_in_body
from push_to_poll_client.listeners.webhook import WebhookListener


async def create(planned: Registration) -> Registration:
    return replace(planned, expires_at=1e9)


def renew(registration: Registration) -> Registration | None:
    return None


async def stop(registration: Registration) -> None:
    return None


def test_websub_and_custom_subscription_are_subscriptions() -> None:
    custom = CustomSubscription(create, renew, stop, name="vendor")
    both: list[Subscription] = [WebSub("https://a.example/feed", "https://me.example/hooks"), custom]
    for one in both:
        WebhookListener(custom.verified_by(header_token), subscription=one)
    WebhookListener(custom.verified_by(token_in_body), subscription=custom)
