"""Verifiers for `WebhookListener`: check that a request comes from the expected server.

Any function that takes a request and returns a bool is a verifier too.
"""

from push_to_poll_client.listeners._webhook.types import Verified, Verifier, WebhookRequest
from push_to_poll_client.listeners.verifiers._hmac import HMACSignature
from push_to_poll_client.listeners.verifiers._standard_webhooks import standard_webhooks, svix
from push_to_poll_client.listeners.verifiers._tokens import (
    basic,
    bearer,
    header_token,
    no_verification,
    token_in_body,
)
from push_to_poll_client.listeners.verifiers._vendors import dropbox, github, stripe, websub

__all__ = [
    "HMACSignature",
    "Verified",
    "Verifier",
    "WebhookRequest",
    "basic",
    "bearer",
    "dropbox",
    "github",
    "header_token",
    "no_verification",
    "standard_webhooks",
    "stripe",
    "svix",
    "token_in_body",
    "websub",
]
