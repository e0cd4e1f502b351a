"""Who may wake: verifiers for `WebhookListener`. Any function of a request that returns a bool is one too."""

from push_to_poll_client.listeners._verifiers.body_token import token_in_body
from push_to_poll_client.listeners._verifiers.hmac_signature import HMACSignature
from push_to_poll_client.listeners._verifiers.standard_webhooks import standard_webhooks, svix
from push_to_poll_client.listeners._verifiers.tokens import anybody, basic, bearer, shared_token
from push_to_poll_client.listeners._verifiers.vendors import dropbox, github, stripe, websub
from push_to_poll_client.listeners._webhook.request import Verified, Verifier, WebhookRequest

__all__ = [
    "HMACSignature",
    "Verified",
    "Verifier",
    "WebhookRequest",
    "anybody",
    "basic",
    "bearer",
    "dropbox",
    "github",
    "shared_token",
    "standard_webhooks",
    "stripe",
    "svix",
    "token_in_body",
    "websub",
]
