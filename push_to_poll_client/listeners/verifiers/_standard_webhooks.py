"""Verify signatures by Standard Webhooks 1.0.0, and by Svix.

It uses the standard library and `cryptography`; `_hmac.py` says why not `standardwebhooks`. Svix's Python library
has the same code, and neither knows Ed25519.
"""

import binascii
import hmac
from collections.abc import Sequence
from typing import NamedTuple

from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._webhook.types import Verified, Verifier, WebhookRequest
from push_to_poll_client.listeners.verifiers import _ed25519
from push_to_poll_client.listeners.verifiers._hmac import (
    BODY,
    SIGNED,
    TOLERANCE,
    Template,
    TimestampWindow,
    replay_digests,
    split_items,
)
from push_to_poll_client.listeners.verifiers._secrets import Secrets, any_equal, check_secrets

MAX_ED25519 = 4
"""Ed25519 signatures of a request that are verified, each by each key. While a key is replaced there are two; a
request with more than this is refused. A verification takes 0.1 ms, and 1.4 ms for a MiB, since the whole text is
hashed each time."""

MAX_HASHED = 2_200_000
"""Bytes that are hashed for the Ed25519 signatures of a request, in 3 ms: two verifications of the largest body by
default. Of a request that would take more, only the first signatures are verified, but always one, which is enough
for a receiver that knows both keys of its sender."""


def standard_webhooks(secrets: Secrets, *, tolerance: float = TOLERANCE) -> Verifier:
    """Standard Webhooks 1.0.0: the headers `webhook-id`, `webhook-timestamp`, `webhook-signature`.

    A repetition has the same `webhook-id`. A retry has it too, but is signed anew by a later second. One that
    comes while the id is remembered is needless, since what it repeats has been a wake already; one that comes
    later, as retries do for days, is a wake again. An exact copy is then refused for its age.

    Args:
        secrets: Keys as the sender shows them: "whsec_" with the Base64 of a shared one (the prefix may be
            missing), or "whpk_" with that of an Ed25519 public key, which needs the extra `crypto`; `bytes` are
            a shared key itself. Several while they are exchanged; kinds may be mixed.
        tolerance: Seconds that a timestamp may lie before the receiver's clock, or after it.

    Raises:
        ImportError: There is a public key, and `cryptography` is not installed.
        TypeError: A secret is neither `str` nor `bytes`, or the tolerance is no number.
        ValueError: A secret is empty, no Base64, no key, or the private one; or the tolerance is not above 0.
    """
    return _StandardWebhooks(secrets, ("webhook",), tolerance)


def svix(secrets: Secrets, *, tolerance: float = TOLERANCE) -> Verifier:
    """Svix: as `standard_webhooks`, by the headers `svix-id`, `svix-timestamp`, `svix-signature`.

    A sender may have Svix call them `webhook-…`, which are read where there is no `svix-signature`.

    Args:
        secrets: As for `standard_webhooks`.
        tolerance: Seconds that a timestamp may lie before the receiver's clock, or after it.

    Raises:
        ImportError: There is a public key, and `cryptography` is not installed.
        TypeError: A secret is neither `str` nor `bytes`, or the tolerance is no number.
        ValueError: A secret is empty, no Base64, no key, or the private one; or the tolerance is not above 0.
    """
    return _StandardWebhooks(secrets, ("svix", "webhook"), tolerance)


class _SenderHeaders(NamedTuple):
    """The headers of one kind of sender, and the templates made of them."""

    timestamp: str
    signature: str
    signed: Template
    once: tuple[Template, ...]


class _StandardWebhooks:
    def __init__(self, secrets: Secrets, senders: Sequence[str], tolerance: float) -> None:
        check_number("tolerance", tolerance, above_zero=True)
        given = check_secrets(secrets)
        public = [secret for secret in given if isinstance(secret, str) and secret.startswith("whpk_")]
        self._public = tuple(_ed25519.public_key(_decode_secret(secret, "whpk_")) for secret in public)
        self._shared = tuple(_shared_key(secret) for secret in given if secret not in public)
        self._senders = tuple(_sender_headers(sender) for sender in senders)
        self._timestamp_window = TimestampWindow(tolerance, 1)

    def may_pass(self, request: WebhookRequest) -> bool:
        """Return whether the headers may be those of an authentic request."""
        names = self._headers_for(request)
        return self._valid_until(names, request) is not None and bool(_signatures(names, request))

    def __call__(self, request: WebhookRequest, /) -> Verified | None:
        names = self._headers_for(request)
        until = self._valid_until(names, request)
        signatures = _signatures(names, request)
        if until is None or not signatures:
            return None
        signed = names.signed.fill(request, {BODY: request.body})
        if signed is None or not self._matches(signed, signatures):
            return None
        return Verified(replay_digests(names.once, request, {SIGNED: signed}), until)

    def __repr__(self) -> str:
        shared, public = len(self._shared), len(self._public)
        return f"StandardWebhooks({self._senders[0].signature!r}, {shared} secrets, {public} public keys)"

    def _headers_for(self, request: WebhookRequest) -> _SenderHeaders:
        return next((names for names in self._senders if names.signature in request.headers), self._senders[-1])

    def _valid_until(self, names: _SenderHeaders, request: WebhookRequest) -> float | None:
        return self._timestamp_window.valid_until(request.headers.get(names.timestamp, ""), request.received_at)

    def _matches(self, signed: bytes, signatures: Sequence[tuple[str, bytes]]) -> bool:
        shared = [given for kind, given in signatures if kind == "v1"]
        public = [given for kind, given in signatures if kind == "v1a"]
        fits = False
        if shared:
            macs = [hmac.digest(key, signed, "sha256") for key in self._shared]
            fits = any_equal(shared, [binascii.b2a_base64(mac, newline=False) for mac in macs])
        if public and self._public and len(public) <= MAX_ED25519:
            tried = max(1, MAX_HASHED // (len(self._public) * len(signed)))
            decoded = [_base64(given) for given in public[:tried]]
            # `any` would stop at the first.
            fitting = sum(_ed25519.verify(key, one, signed) for one in decoded for key in self._public)
            fits = fits or fitting > 0
        return fits


def _sender_headers(sender: str) -> _SenderHeaders:
    # The first dots in the signed text separate id, timestamp and body (specification, "Signature scheme"). If an
    # id has a dot in it, the same signature fits another id: so the signed text is remembered too.
    signed = Template(f"{{{sender}-id}}.{{{sender}-timestamp}}.{{body}}", known=frozenset({BODY}))
    once = [Template(text, known=frozenset({SIGNED})) for text in (f"{{{sender}-id}}", "{signed}")]
    return _SenderHeaders(f"{sender}-timestamp", f"{sender}-signature", signed, tuple(once))


def _signatures(names: _SenderHeaders, request: WebhookRequest) -> list[tuple[str, bytes]]:
    items = split_items(request.headers.get(names.signature), " ")
    parted = [item.partition(",") for item in items]
    # A character that is not ASCII becomes "?", which no signature has.
    return [(kind, text.encode("ascii", "replace")) for kind, _, text in parted if kind in ("v1", "v1a")]


def _base64(text: bytes) -> bytes:
    """Decode strictly; malformed text gives an empty result, which no signature is."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return b""


def _shared_key(secret: str | bytes) -> bytes:
    if isinstance(secret, bytes):
        return secret
    if secret.startswith("whsk_"):
        raise ValueError('a secret is a private key, which is the sender\'s alone; give the public one, "whpk_…"')
    return _decode_secret(secret, "whsec_")


def _decode_secret(secret: str, prefix: str) -> bytes:
    text = secret.removeprefix(prefix)
    try:
        key = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        raise ValueError(f'a secret is no Base64, with or without "{prefix}" before it') from None
    if not key:
        raise ValueError("a secret is empty: everybody knows it")
    return key
