"""WHETHER A HUB SIGNED A PUSH (WebSub §7.1): `X-Hub-Signature: method=hex`, by the method that it states."""

import hashlib
import hmac

from push_to_poll_client.listeners._webhook.request import WebhookRequest

__all__ = ["is_signed"]

_METHODS = {"sha1": hashlib.sha1, "sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}


def is_signed(request: WebhookRequest, secret: str) -> bool:
    """Whether it is. Most hubs sign by SHA-1, which as an HMAC is sound."""
    method, _, signature = request.headers.get("x-hub-signature", "").partition("=")
    if (hashed := _METHODS.get(method.strip().lower())) is None:
        return False
    expected = hmac.new(secret.encode(), request.body, hashed).hexdigest().encode()
    return hmac.compare_digest(expected, signature.strip().lower().encode("utf-8", "replace"))
