"""Sign requests as servers do, with the standard library alone."""

import base64
import hashlib
import hmac
import time

from push_to_poll_client.listeners._webhook.types import WebhookRequest

__all__ = ["NOW", "b64_mac", "hex_mac", "request", "standard_webhook"]

NOW = 1_700_000_000


def request(body=b"", *, at=NOW, **headers):
    """Return a request; `X_Hub_Signature_256="…"` adds that header."""
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return WebhookRequest(headers=named, body=body, received_at=at)


def hex_mac(secret, signed, method="sha256"):
    return hmac.new(secret, signed, getattr(hashlib, method)).hexdigest()


def b64_mac(secret, signed):
    return base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def standard_webhook(secret, id_="msg_1", body=b"{}"):
    """Return headers and body of a webhook as Standard Webhooks signs it now, as arguments for httpx."""
    at = str(int(time.time()))
    signature = b64_mac(secret, f"{id_}.{at}.".encode() + body)
    headers = {"webhook-id": id_, "webhook-timestamp": at, "webhook-signature": f"v1,{signature}"}
    return {"content": body, "headers": headers}
