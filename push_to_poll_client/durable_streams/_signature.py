"""Verify webhooks with the published keys of a Durable Streams server (PROTOCOL.md §7.1).

An attacker may name keys that do not exist. So the key set is requested at most once a minute, and by one request
at a time. Pushes that arrive during the request are verified with the known keys.
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
"""Seconds between two requests for the key set: an attacker who invents keys costs the server one a minute."""

MIN_LIFETIME = MIN_REFRESH_INTERVAL
"""Minimum seconds for which a key set is fresh."""

DEFAULT_LIFETIME = 300.0
"""Seconds for which a key set is fresh if the server does not say, as in the protocol's example (§6.5)."""

MAX_LIFETIME = 86_400.0
"""Seconds after which a withdrawn key is rejected, whatever `max-age` says."""

MAX_KEYS = 32
"""Keys of a set that are kept. A server has one, or two while it changes its key."""

MAX_NAME = 256
"""Characters of a `kid`; a base64 digest has 43."""

TIMEOUT = 5.0
"""Seconds to wait for the key set. A webhook request is delayed by at most this."""

_log = ConsumerLog(logging.getLogger("push_to_poll_client.durable_streams"))


class _JSONWebKey(msgspec.Struct):
    """An Ed25519 key of the set (RFC 8037 §2). Other keys are ignored."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    kid: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
    x: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]  # 32 bytes in base64url (RFC 7515 §2)
    use: Literal["sig"] = "sig"
    alg: Literal["EdDSA", "Ed25519"] = "EdDSA"  # RFC 8037 or RFC 9864


class _JSONWebKeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


def _keys_of(response: ListenerResponse) -> Iterator[tuple[str, PublicKey]]:
    """Yield the usable keys. An unusable one, such as a future type, does not affect the others."""
    found = 0
    for raw in response.decoded(_JSONWebKeySet, "set of keys (RFC 7517 §5)").keys:
        with suppress(*DECODE_ERRORS):
            key = decode(raw, type=_JSONWebKey)
            if found < MAX_KEYS:
                yield key.kid, public_key(urlsafe_b64decode(key.x + "="))
                found += 1


def _lifetime(headers: Mapping[str, str]) -> float:
    """Return `max-age` in seconds (RFC 9111 §5.2.2.1), within the limits."""
    max_age = directives(headers).get("max-age", "")
    return min(max(float(max_age), MIN_LIFETIME), MAX_LIFETIME) if max_age.isdecimal() else DEFAULT_LIFETIME


HEADER = "webhook-signature"

MAX_SET = 65_536
"""Bytes of a key set; one key has 200."""

_ANY_KEY = bytes.fromhex("58" + "66" * 31)
"""The base point (RFC 8032 §5.1), to check at construction that `cryptography` is installed."""

# A comma in a kid would be ambiguous. 86 characters are the 64 bytes of a signature.
_match_signature = re.compile(r"t=([0-9]{1,12}),kid=([!-+\--~]{1,256}),ed25519=([A-Za-z0-9_-]{86})").fullmatch


class DurableStreamsSignature:
    """Verifies the signatures of a Durable Streams server: Ed25519 over `<t>.<body>`.

    The server publishes its keys, and each signature names one. The keys are requested when the first push
    arrives, or earlier by a `DurableStreamsWebhook`. They are requested again when they are older than the
    server's `max-age` (limited to a minute to a day), and when a push names an unknown key, for example after a
    key change. All this happens at most once a minute: until then pushes with a new key are rejected, and the
    server repeats them. If the keys cannot be fetched, the known ones are used.

    Args:
        jwks_url: URL of the server's public keys: `{stream-url}/__ds/jwks.json`.
        tolerance: Seconds by which the time in a signature may differ from this machine's clock, either way.
        auth: Credentials, as for the listeners. Public keys usually need none.
        headers: Sent with the request for the keys: a mapping, or a function (async, or plain and quick) that
            returns one. `None` adds none.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        client: An `httpx.AsyncClient`, or an object with the same methods. It is not closed. A client works in one
            event loop: do not pass one if the receiver runs in another loop than the consumer.

    Raises:
        ImportError: `cryptography` is not installed: `pip install 'push-to-poll-client[crypto]'`.
        TypeError: An argument has the wrong type.
        ValueError: The URL is not an http URL, or an argument has an invalid value.
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
        # Requests may arrive in several event loops at once, so locks and clocks of a loop cannot be used.
        self._keys: Mapping[str, PublicKey] = {}
        self._stale_at = self._not_before = float("-inf")
        self._request_lock = threading.Lock()  # held during a request; other requests do not wait for it
        self._clock: Callable[[], float] = time.monotonic

    def may_pass(self, request: WebhookRequest) -> bool:
        """Return True if the signature has the right form and a current time. Called before the body is read."""
        return self._parse_signature(request) is not None

    async def __call__(self, request: WebhookRequest, /) -> Verified | bool:
        """Return a `Verified` if the server signed the request. The server signs each retry again."""
        parsed = self._parse_signature(request)
        if parsed is None:
            return False
        signed_at, kid, text = parsed
        if kid not in self._keys or self._clock() >= self._stale_at:
            await self._refresh_if_allowed()
        key, signature = self._keys.get(kid), urlsafe_b64decode(text + "==")
        if key is None or not verify(key, signature, f"{signed_at}.".encode() + request.body):
            return False
        return Verified(once=(signature,), until=int(signed_at) + self._tolerance + 1.0)  # then it is rejected

    async def refresh(self) -> None:
        """Fetch the keys now, so that the first push does not wait for them.

        Raises:
            Exception: The request failed. The known keys are kept.
        """
        with hidden(self._client.secrets):
            response = await self._client.send_request(
                headers={"accept": "application/jwk-set+json, application/json"}
            )
            self._keys = dict(_keys_of(response.expect()))
        self._stale_at = self._clock() + _lifetime(response.headers)

    async def _refresh_if_allowed(self) -> None:
        """Fetch the keys, at most once a minute and in one request at a time."""
        if not self._request_lock.acquire(blocking=False):
            return
        try:
            now = self._clock()
            if now >= self._not_before:
                self._not_before = now + MIN_REFRESH_INTERVAL
                # Otherwise a client that disconnects would use up the one request of this minute.
                with anyio.CancelScope(shield=True):
                    await self.refresh()
        except Exception as error:  # noqa: BLE001  # the push is still verified with the known keys
            with hidden(self._client.secrets):
                why = http_failure_of(error, wanted="a set of keys").sentence
            _log.info("%s: %s; using the %d known keys", without_secrets(self._client.url), why, len(self._keys))
        finally:
            self._request_lock.release()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({without_secrets(self._client.url)!r})"

    def _parse_signature(self, request: WebhookRequest) -> tuple[str, str, str] | None:
        """Return the time, key id and signature as text; None if the header is invalid or too old."""
        found = _match_signature(request.headers.get(HEADER, ""))
        if found is None or abs(request.received_at - int(found[1])) > self._tolerance:
            return None
        return found[1], found[2], found[3]
