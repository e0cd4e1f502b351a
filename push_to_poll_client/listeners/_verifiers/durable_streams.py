"""WHETHER A DURABLE STREAMS SERVER SIGNED: `Webhook-Signature`, by a key that it publishes (PROTOCOL.md §7.1)."""

import re
import ssl
from base64 import urlsafe_b64decode
from typing import Any

from push_to_poll_client._http.credentials import HeaderSource, TokenSource
from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._asking import Asker
from push_to_poll_client.listeners._verifiers.ed25519 import public_key, verify
from push_to_poll_client.listeners._verifiers.jwks import TIMEOUT, KeySet
from push_to_poll_client.listeners._webhook.request import Verified, WebhookRequest

__all__ = ["DurableStreamsSignature"]

HEADER = "webhook-signature"

MAX_SET = 65_536
"""Bytes of a set of keys; one key has 200."""

_ANY_KEY = bytes.fromhex("58" + "66" * 31)
"""The base point (RFC 8032 §5.1), to see at construction whether keys can be made at all."""

# A kid with a comma in it could not be told from what follows. 86 characters are the 64 bytes of a signature.
_signed = re.compile(r"t=([0-9]{1,12}),kid=([!-+\--~]{1,256}),ed25519=([A-Za-z0-9_-]{86})").fullmatch


class DurableStreamsSignature:
    """Takes what a Durable Streams server signed: Ed25519 over `<t>.<body>`, by a key that it names and publishes.

    The keys are asked for when the first push arrives, or before if a `DurableStreamsWebhook` has this verifier;
    again when they are as old as the server's `max-age` says (a minute to a day), and when a push names a key
    that is not known, as after the server changed it. All this at most once a minute, whatever arrives: pushes by
    a new key are refused until then, and the server repeats them. While the keys cannot be had, those that were
    known count.

    Args:
        jwks_url: Where the server's public keys are: `{stream-url}/__ds/jwks.json`.
        tolerance: Seconds that the time in the signature may differ from this machine's, both ways.
        headers: Sent with the request for the keys: a mapping, or a function that returns one.
        token: Sent with it as `Authorization: Bearer`, or a function that returns it. Keys are public as a rule.
        tls: Whom to trust for `https://`. `None`: the certificates that the machine trusts.
        client: An `httpx.AsyncClient`, or one of its shape, to ask by; it stays yours. One client serves one
            event loop: give none if the receiver runs in another one than the consumer.

    Raises:
        ImportError: `cryptography` is not installed: `pip install 'push-to-poll-client[crypto]'`.
        TypeError: An argument is of the wrong type.
        ValueError: The URL is no http address, or an argument has no meaning.
    """

    def __init__(
        self,
        jwks_url: str,
        *,
        tolerance: float = 300.0,
        headers: HeaderSource | None = None,
        token: TokenSource | None = None,
        tls: ssl.SSLContext | None = None,
        client: Any = None,
    ) -> None:
        check_number("tolerance", tolerance, above_zero=True)
        public_key(_ANY_KEY)
        self._tolerance = tolerance
        self._keys = KeySet(
            Asker(
                jwks_url, headers=headers, token=token, client=client, tls=tls, timeout=TIMEOUT, max_body=MAX_SET
            )
        )

    def may_pass(self, request: WebhookRequest) -> bool:
        """Whether it has a signature of the right form and of our time; asked before the body is read."""
        return self._read(request) is not None

    async def __call__(self, request: WebhookRequest, /) -> Verified | bool:
        """Whether the server signed it. A repetition has the same signature: it is told from others by that.

        The server's own retries are signed anew, so they are no repetitions.
        """
        read = self._read(request)
        if read is None:
            return False
        stated, kid, text = read
        key, signature = await self._keys.key(kid), urlsafe_b64decode(text + "==")
        if key is None or not verify(key, signature, f"{stated}.".encode() + request.body):
            return False
        return Verified(once=(signature,), until=int(stated) + self._tolerance + 1.0)  # at which it is refused

    async def refresh(self) -> None:
        """Ask for the keys now, so that the first push need not wait for them.

        Raises:
            Exception: They did not come.
        """
        await self._keys.refresh()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._keys.name!r})"

    def _read(self, request: WebhookRequest) -> tuple[str, str, str] | None:
        """Time, name of the key and signature, as they are written; `None`: it cannot be authentic."""
        found = _signed(request.headers.get(HEADER, ""))
        if found is None or abs(request.received_at - int(found[1])) > self._tolerance:
            return None
        return found[1], found[2], found[3]
