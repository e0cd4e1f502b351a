"""Verify the signature of a Durable Streams webhook by the server's published keys (PROTOCOL.md §7.1).

Anybody may name a key that nobody has. So whatever arrives, the set is asked for once a minute at most, and one
request at a time: who would need it meanwhile is told what is known.
"""

import logging
import re
import ssl
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import anyio
import msgspec

from push_to_poll_client._http.credentials import HeaderSource, TokenSource
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._json import decode
from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._failures import http_failure_of
from push_to_poll_client.listeners._requests import (
    RESPONSE_VERDICTS,
    ListenerClient,
    ListenerResponse,
    UnusableResponse,
)
from push_to_poll_client.listeners._webhook.types import Verified, WebhookRequest
from push_to_poll_client.listeners.verifiers._ed25519 import PublicKey, public_key, verify

__all__ = [
    "MAX_KEYS",
    "MIN_REFRESH_INTERVAL",
    "TIMEOUT",
    "DurableStreamsSignature",
    "KeySet",
]


MIN_REFRESH_INTERVAL = 60.0
"""Seconds between two requests for the set, whatever arrives: who invents keys costs the server one a minute."""

MIN_LIFETIME = MIN_REFRESH_INTERVAL
"""Seconds for which a set is taken for fresh at least; it could not be asked for sooner."""

DEFAULT_LIFETIME = 300.0
"""The same for a server that does not say, which is what the protocol's own example says (§6.5)."""

MAX_LIFETIME = 86_400.0
"""Seconds after which a key that was withdrawn is refused at last, whatever caches were told."""

MAX_KEYS = 32
"""Keys of a set that are kept. A server has one, and two while it changes it."""

MAX_NAME = 256
"""Characters of a `kid`; a digest in base64 has 43."""

TIMEOUT = 5.0
"""Seconds for the set to come, for which a request to the webhook is held up at most."""

_log = logging.getLogger("push_to_poll_client.durable_streams")

_match_max_age = re.compile(r"(?:^|[ \t,])max-age=\"?([0-9]{1,9})(?![0-9])", re.IGNORECASE).search
_match_x = re.compile(r"[A-Za-z0-9_-]{43}").fullmatch  # 32 bytes in base64url without padding (RFC 7515 §2)


class _JSONWebKey(msgspec.Struct):
    """A key of the set. What has no meaning for Ed25519 is passed over."""

    kty: str
    crv: str
    kid: str
    x: str
    use: str = "sig"
    alg: str = "EdDSA"


class _JSONWebKeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


class KeySet:
    """The keys of one server, by their names. Serves in any event loop, and in several at a time.

    Args:
        asker: Asks the server for the set.

    Attributes:
        name: The set's address, without secrets.
    """

    def __init__(self, asker: ListenerClient) -> None:
        self.name: str = without_secrets(asker.url)
        self._client = asker
        self._keys: Mapping[str, PublicKey] = {}
        self._stale_at = self._not_before = float("-inf")
        self._request_lock = threading.Lock()  # held across a request, and never waited for
        self._clock: Callable[[], float] = time.monotonic  # an event loop's own is another in the next one

    async def key(self, kid: str) -> PublicKey | None:
        """The key of a name; `None`: there is none, as far as is known.

        Asks for the set if the name is new or the set is old. When that fails, or was done lately, or is being
        done, what was known before counts. Never raises.
        """
        if kid not in self._keys or self._clock() >= self._stale_at:
            await self._refresh_if_allowed()
        return self._keys.get(kid)

    async def refresh(self) -> None:
        """Ask for the set now.

        Raises:
            Exception: It did not come; the keys are those that were known before.
        """
        answer = (
            await self._client.send_request(headers={"accept": "application/jwk-set+json, application/json"})
        ).expect()
        self._keys = dict(_keys_of(answer))
        self._stale_at = self._clock() + _lifetime(answer.headers)

    async def _refresh_if_allowed(self) -> None:
        if not self._request_lock.acquire(blocking=False):
            return
        try:
            now = self._clock()
            if now >= self._not_before:
                self._not_before = now + MIN_REFRESH_INTERVAL
                # Shielded: who hangs up would else take the one request of a minute from those who do not.
                with anyio.CancelScope(shield=True):
                    await self._try_to_refresh()
        finally:
            self._request_lock.release()

    async def _try_to_refresh(self) -> None:
        try:
            await self.refresh()
        except Exception as error:  # noqa: BLE001  # a server that has no keys to give must not be an error of ours
            why = http_failure_of(error, wanted="a set of keys", verdicts=RESPONSE_VERDICTS).sentence
            _log.info("%s: %s; %d keys are known", self.name, why, len(self._keys))


def _keys_of(answer: ListenerResponse) -> Iterator[tuple[str, PublicKey]]:
    """Those that can be used. One that cannot, a future one for instance, does not spoil the others."""
    found = 0
    for raw in _decode_set(answer):
        with suppress(ValueError, RecursionError):
            key = decode(raw, type=_JSONWebKey)
            if found < MAX_KEYS and _is_usable(key):
                yield key.kid, public_key(urlsafe_b64decode(key.x + "="))
                found += 1


def _decode_set(answer: ListenerResponse) -> list[msgspec.Raw]:
    try:
        return decode(answer.body, type=_JSONWebKeySet).keys
    except (ValueError, RecursionError):
        raise UnusableResponse(f"{answer.url} answered something that is no set of keys (RFC 7517 §5)") from None


def _is_usable(key: _JSONWebKey) -> bool:
    """Whether it verifies Ed25519 (RFC 8037 §2); "Ed25519" is what RFC 9864 calls the algorithm."""
    is_ed25519 = key.kty == "OKP" and key.crv == "Ed25519" and key.alg in {"EdDSA", "Ed25519"}
    return is_ed25519 and key.use == "sig" and len(key.kid) <= MAX_NAME and _match_x(key.x) is not None


def _lifetime(headers: Mapping[str, str]) -> float:
    """Seconds until the set is old, by `max-age` (RFC 9111 §5.2.2.1), neither too few nor too many."""
    told = _match_max_age(headers.get("cache-control", ""))
    return DEFAULT_LIFETIME if told is None else min(max(float(told[1]), MIN_LIFETIME), MAX_LIFETIME)


HEADER = "webhook-signature"

MAX_SET = 65_536
"""Bytes of a set of keys; one key has 200."""

_ANY_KEY = bytes.fromhex("58" + "66" * 31)
"""The base point (RFC 8032 §5.1), to see at construction whether keys can be made at all."""

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
            ListenerClient(
                jwks_url, headers=headers, token=token, client=client, tls=tls, timeout=TIMEOUT, max_body=MAX_SET
            )
        )

    def may_pass(self, request: WebhookRequest) -> bool:
        """Whether it has a signature of the right form and of our time; asked before the body is read."""
        return self._parse_signature(request) is not None

    async def __call__(self, request: WebhookRequest, /) -> Verified | bool:
        """Whether the server signed it. A repetition has the same signature: it is told from others by that.

        The server's own retries are signed anew, so they are no repetitions.
        """
        read = self._parse_signature(request)
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

    def _parse_signature(self, request: WebhookRequest) -> tuple[str, str, str] | None:
        """Time, name of the key and signature, as they are written; `None`: it cannot be authentic."""
        found = _match_signature(request.headers.get(HEADER, ""))
        if found is None or abs(request.received_at - int(found[1])) > self._tolerance:
            return None
        return found[1], found[2], found[3]
