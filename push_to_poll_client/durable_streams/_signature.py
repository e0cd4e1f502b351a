"""Verify the signature of a Durable Streams webhook by the server's published keys (PROTOCOL.md §7.1).

A stranger may name keys that do not exist. So the key set is requested at most once a minute, whatever arrives,
and by one request at a time: a push that needs it meanwhile is verified by the keys that are known.
"""

import logging
import re
import ssl
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

import anyio
import msgspec

from push_to_poll_client._http.caching import directives
from push_to_poll_client._http.credentials import Auth, HeaderSource
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._json import DECODE_ERRORS, decode
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._secrets import hidden
from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._failures import http_failure_of
from push_to_poll_client.listeners._requests import ListenerClient, ListenerResponse
from push_to_poll_client.listeners._webhook.types import Verified, WebhookRequest
from push_to_poll_client.listeners.verifiers._ed25519 import PublicKey, public_key, verify

MIN_REFRESH_INTERVAL = 60.0
"""Seconds between two requests for the set: a stranger who invents keys costs the server one a minute."""

MIN_LIFETIME = MIN_REFRESH_INTERVAL
"""Seconds for which a set is fresh at least; it could not be requested sooner."""

DEFAULT_LIFETIME = 300.0
"""Seconds for which a set is fresh if the server does not say, as in the protocol's example (§6.5)."""

MAX_LIFETIME = 86_400.0
"""Seconds after which a withdrawn key is refused, whatever caches were told."""

MAX_KEYS = 32
"""Keys of a set that are kept. A server has one, and two while it changes its key."""

MAX_NAME = 256
"""Characters of a `kid`; a digest in base64 has 43."""

TIMEOUT = 5.0
"""Seconds for the response with the set; a request to the webhook is held up for no longer."""

_log = ConsumerLog(logging.getLogger("push_to_poll_client.durable_streams"))


class _JSONWebKey(msgspec.Struct):
    """A key of the set for Ed25519 (RFC 8037 §2). No other key is read."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    kid: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
    x: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]  # 32 bytes in base64url (RFC 7515 §2)
    use: Literal["sig"] = "sig"
    alg: Literal["EdDSA", "Ed25519"] = "EdDSA"  # by RFC 8037 or by RFC 9864


class _JSONWebKeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


def _keys_of(response: ListenerResponse) -> Iterator[tuple[str, PublicKey]]:
    """Yield the keys that can be used; one that cannot, as of a future kind, does not spoil the others."""
    found = 0
    for raw in response.decoded(_JSONWebKeySet, "set of keys (RFC 7517 §5)").keys:
        with suppress(*DECODE_ERRORS):
            key = decode(raw, type=_JSONWebKey)
            if found < MAX_KEYS:
                yield key.kid, public_key(urlsafe_b64decode(key.x + "="))
                found += 1


def _lifetime(headers: Mapping[str, str]) -> float:
    """Return the seconds until the set is old, by `max-age` (RFC 9111 §5.2.2.1) within the limits."""
    max_age = directives(headers).get("max-age", "")
    return min(max(float(max_age), MIN_LIFETIME), MAX_LIFETIME) if max_age.isdecimal() else DEFAULT_LIFETIME


HEADER = "webhook-signature"

MAX_SET = 65_536
"""Bytes of a set of keys; one key has 200."""

_ANY_KEY = bytes.fromhex("58" + "66" * 31)
"""The base point (RFC 8032 §5.1), to check at construction that `cryptography` is installed."""

# A kid with a comma in it could not be told from what follows. 86 characters are the 64 bytes of a signature.
_match_signature = re.compile(r"t=([0-9]{1,12}),kid=([!-+\--~]{1,256}),ed25519=([A-Za-z0-9_-]{86})").fullmatch


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
        auth: Credentials, as for the listeners. Keys are public as a rule.
        headers: Sent with the request for the keys: a mapping, or a function (async, or plain and quick) that
            returns one. `None`: none.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        client: An `httpx.AsyncClient`, or one of its shape, to ask by; it stays yours. One client serves one
            event loop: give none if the receiver runs in another one than the consumer.

    Raises:
        ImportError: `cryptography` is not installed: `pip install 'push-to-poll-client[crypto]'`.
        TypeError: An argument has the wrong type.
        ValueError: The URL is no http address, or an argument has no meaning.
    """

    def __init__(
        self,
        jwks_url: str,
        *,
        tolerance: float = 300.0,
        auth: Auth | None = None,
        headers: HeaderSource | None = None,
        ssl_context: ssl.SSLContext | None = None,
        client: Any = None,
    ) -> None:
        check_number("tolerance", tolerance, above_zero=True)
        public_key(_ANY_KEY)
        self._tolerance = tolerance
        options: dict[str, Any] = {"auth": auth, "headers": headers, "ssl_context": ssl_context, "client": client}
        self._client = ListenerClient(jwks_url, **options, timeout=TIMEOUT, max_body=MAX_SET)
        # Requests may arrive in several event loops at a time, so no loop's lock and clock.
        self._keys: Mapping[str, PublicKey] = {}
        self._stale_at = self._not_before = float("-inf")
        self._request_lock = threading.Lock()  # held during a request; no other one waits for it
        self._clock: Callable[[], float] = time.monotonic

    def may_pass(self, request: WebhookRequest) -> bool:
        """Return True if the signature has the right form and a current time. Called before the body is read."""
        return self._parse_signature(request) is not None

    async def __call__(self, request: WebhookRequest, /) -> Verified | bool:
        """Return a `Verified` if the server signed the request. A repeated request has the same signature.

        The server's own retries are signed anew, so they are no repetitions.
        """
        parsed = self._parse_signature(request)
        if parsed is None:
            return False
        signed_at, kid, text = parsed
        if kid not in self._keys or self._clock() >= self._stale_at:
            await self._refresh_if_allowed()
        key, signature = self._keys.get(kid), urlsafe_b64decode(text + "==")
        if key is None or not verify(key, signature, f"{signed_at}.".encode() + request.body):
            return False
        return Verified(once=(signature,), until=int(signed_at) + self._tolerance + 1.0)  # when it will be refused

    async def refresh(self) -> None:
        """Ask for the keys now, so that the first push need not wait for them.

        Raises:
            Exception: They did not come; those that were known are kept.
        """
        with hidden(self._client.secrets):
            response = await self._client.send_request(
                headers={"accept": "application/jwk-set+json, application/json"}
            )
            self._keys = dict(_keys_of(response.expect()))
        self._stale_at = self._clock() + _lifetime(response.headers)

    async def _refresh_if_allowed(self) -> None:
        """Ask for the keys, unless that was done lately, or is being done."""
        if not self._request_lock.acquire(blocking=False):
            return
        try:
            now = self._clock()
            if now >= self._not_before:
                self._not_before = now + MIN_REFRESH_INTERVAL
                # Otherwise a client that hangs up would take the one request of a minute from the others.
                with anyio.CancelScope(shield=True):
                    await self.refresh()
        except Exception as error:  # noqa: BLE001  # a push is verified by the known keys all the same
            with hidden(self._client.secrets):
                why = http_failure_of(error, wanted="a set of keys").sentence
            _log.info("%s: %s; %d keys are known", without_secrets(self._client.url), why, len(self._keys))
        finally:
            self._request_lock.release()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({without_secrets(self._client.url)!r})"

    def _parse_signature(self, request: WebhookRequest) -> tuple[str, str, str] | None:
        """Return the time, the name of the key, and the signature, as written; None if it cannot be authentic."""
        found = _match_signature(request.headers.get(HEADER, ""))
        if found is None or abs(request.received_at - int(found[1])) > self._tolerance:
            return None
        return found[1], found[2], found[3]
