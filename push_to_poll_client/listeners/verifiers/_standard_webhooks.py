"""Verify signatures of Standard Webhooks 1.0.0 and of Svix.

Uses the standard library and `cryptography`. `_hmac.py` explains why not `standardwebhooks`. Svix's Python library
has the same code, and neither supports Ed25519.
"""

import binascii
from collections.abc import Sequence

from push_to_poll_client.listeners._webhook.types import Verified, Verifier, WebhookRequest
from push_to_poll_client.listeners.verifiers import _ed25519
from push_to_poll_client.listeners.verifiers._hmac import TOLERANCE, HMACSignature, Secrets, check_secrets

# A verification takes 0.1 ms, and 1.4 ms for 1 MiB, since each hashes the whole text.
MAX_ED25519 = 4
"""Ed25519 signatures of one request, each verified with each key. There are two while a key is replaced."""

# If a request would take more, only the first signatures are verified, and at least one. One is enough for a
# receiver that knows both keys of its sender.
MAX_HASHED = 2_200_000
"""Bytes hashed for the Ed25519 signatures of a request, in 3 ms: two verifications of the largest body."""


def standard_webhooks(secrets: Secrets, *, tolerance: float = TOLERANCE) -> Verifier:
    """Standard Webhooks 1.0.0: headers `webhook-id`, `webhook-timestamp` and `webhook-signature`.

    Requests with the same `webhook-id` are repetitions. The sender signs a retry again, with a later timestamp and
    the same id. While the id is remembered, a retry does not wake, since the first request did. A later retry
    (they go on for days) wakes again; an exact copy is by then too old and is rejected.

    Args:
        secrets: Keys as the sender shows them: "whsec_" and the Base64 of a shared key (the prefix may be
            missing), or "whpk_" and the Base64 of an Ed25519 public key, which needs the extra `crypto`. `bytes`
            are the shared key itself. Several keys may be valid at once, also of both kinds.
        tolerance: Seconds that a timestamp may differ from the receiver's clock, in either direction.

    Raises:
        ImportError: There is a public key, and `cryptography` is not installed.
        TypeError: A secret is neither `str` nor `bytes`, or the tolerance is not a number.
        ValueError: A secret is empty, is not Base64, is not a valid key, or is a private key; or the tolerance is
            not positive.
    """
    return _StandardWebhooks(secrets, "webhook", tolerance)


def svix(secrets: Secrets, *, tolerance: float = TOLERANCE) -> Verifier:
    """Svix: as `standard_webhooks`, with headers `svix-id`, `svix-timestamp` and `svix-signature`.

    A sender can configure Svix to use `webhook-…` headers; they are read if there is no `svix-signature`.

    Args:
        secrets: As for `standard_webhooks`.
        tolerance: As for `standard_webhooks`.

    Raises:
        ImportError: As for `standard_webhooks`.
        TypeError: As for `standard_webhooks`.
        ValueError: As for `standard_webhooks`.
    """
    return _Svix(secrets, tolerance)


class _StandardWebhooks(HMACSignature):
    def __init__(self, secrets: Secrets, sender: str, tolerance: float) -> None:
        # The first dots in the signed text separate id, timestamp and body (specification, "Signature scheme"). An
        # id with a dot lets the same signature fit another id, so the signed text is remembered too.
        super().__init__(
            secrets,
            header=f"{sender}-signature",
            separator=" ",
            prefix="v1,",
            encoding="base64",
            signed=f"{{{sender}-id}}.{{timestamp}}.{{body}}",
            timestamp=f"{sender}-timestamp",
            tolerance=tolerance,
            once=[f"{{{sender}-id}}", "{signed}"],
        )
        self._prefixes += (("v1a,", "ed25519"),)
        given = check_secrets(secrets)
        public = [secret for secret in given if isinstance(secret, str) and secret.startswith("whpk_")]
        self._public = tuple(_ed25519.public_key(_decode_secret(secret, "whpk_")) for secret in public)
        self._keys = tuple(_shared_key(secret) for secret in given if secret not in public)

    def _fits(self, signed: bytes, algorithm: str, given: Sequence[bytes]) -> bool:
        if algorithm != "ed25519":
            return super()._fits(signed, algorithm, given)
        if not self._public or len(given) > MAX_ED25519:
            return False
        tried = max(1, MAX_HASHED // (len(self._public) * len(signed)))
        decoded = [_base64(one) for one in given[:tried]]
        # `any` would stop at the first.
        return sum(_ed25519.verify(key, one, signed) for one in decoded for key in self._public) > 0


class _Svix:
    def __init__(self, secrets: Secrets, tolerance: float) -> None:
        self._svix, self._standard = (_StandardWebhooks(secrets, by, tolerance) for by in ("svix", "webhook"))

    def may_pass(self, request: WebhookRequest) -> bool:
        return self._verifier_of(request).may_pass(request)

    def __call__(self, request: WebhookRequest, /) -> Verified | None:
        return self._verifier_of(request)(request)

    def _verifier_of(self, request: WebhookRequest) -> _StandardWebhooks:
        return self._svix if "svix-signature" in request.headers else self._standard


def _base64(text: bytes) -> bytes:
    """Decode strictly; malformed text gives an empty result, which is never a valid signature."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return b""


def _shared_key(secret: str | bytes) -> bytes:
    if isinstance(secret, bytes):
        return secret
    if secret.startswith("whsk_"):
        raise ValueError('a secret is a private key ("whsk_…"), which only the sender may have; give "whpk_…"')
    return _decode_secret(secret, "whsec_")


def _decode_secret(secret: str, prefix: str) -> bytes:
    text = secret.removeprefix(prefix)
    try:
        key = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        raise ValueError(f'a secret is not Base64, with or without the prefix "{prefix}"') from None
    if not key:
        raise ValueError("a secret is empty; check that the setting with the secret is set")
    return key
