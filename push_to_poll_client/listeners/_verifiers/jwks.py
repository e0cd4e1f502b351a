"""WHICH PUBLIC KEYS A SERVER SIGNS WITH: its JWK Set (RFC 7517), of which the Ed25519 keys count (RFC 8037).

Anybody may name a key that nobody has. So whatever arrives, the set is asked for once a minute at most, and one
request at a time: who would need it meanwhile is told what is known.
"""

import logging
import re
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import anyio
import msgspec

from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._json import decode
from push_to_poll_client.listeners._asking import ANSWER_VERDICTS, Answer, Asker, UnusableAnswer
from push_to_poll_client.listeners._http_failures import http_failure_of
from push_to_poll_client.listeners._verifiers.ed25519 import PublicKey, public_key

__all__ = ["AGAIN_AFTER", "MAX_KEYS", "TIMEOUT", "KeySet"]

AGAIN_AFTER = 60.0
"""Seconds between two requests for the set, whatever arrives: who invents keys costs the server one a minute."""

MIN_FRESH = AGAIN_AFTER
"""Seconds for which a set is taken for fresh at least; it could not be asked for sooner."""

FRESH = 300.0
"""The same for a server that does not say, which is what the protocol's own example says (§6.5)."""

MAX_FRESH = 86_400.0
"""Seconds after which a key that was withdrawn is refused at last, whatever caches were told."""

MAX_KEYS = 32
"""Keys of a set that are kept. A server has one, and two while it changes it."""

MAX_NAME = 256
"""Characters of a `kid`; a digest in base64 has 43."""

TIMEOUT = 5.0
"""Seconds for the set to come, for which a request to the webhook is held up at most."""

_log = logging.getLogger(__name__)

_max_age = re.compile(r"(?:^|[ \t,])max-age=\"?([0-9]{1,9})(?![0-9])", re.IGNORECASE).search
_x = re.compile(r"[A-Za-z0-9_-]{43}").fullmatch  # 32 bytes in base64url without padding (RFC 7515 §2)


class _Key(msgspec.Struct):
    """A key of the set. What has no meaning for Ed25519 is passed over."""

    kty: str
    crv: str
    kid: str
    x: str
    use: str = "sig"
    alg: str = "EdDSA"


class _Set(msgspec.Struct):
    keys: list[msgspec.Raw]


class KeySet:
    """The keys of one server, by their names. Serves in any event loop, and in several at a time.

    Args:
        asker: Asks the server for the set.

    Attributes:
        name: The set's address, without secrets.
    """

    def __init__(self, asker: Asker) -> None:
        self.name: str = without_secrets(asker.url)
        self._asker = asker
        self._keys: Mapping[str, PublicKey] = {}
        self._stale_at = self._not_before = float("-inf")
        self._asking = threading.Lock()  # held across a request, and never waited for
        self._clock: Callable[[], float] = time.monotonic  # an event loop's own is another in the next one

    async def key(self, kid: str) -> PublicKey | None:
        """The key of a name; `None`: there is none, as far as is known.

        Asks for the set if the name is new or the set is old. When that fails, or was done lately, or is being
        done, what was known before counts. Never raises.
        """
        if kid not in self._keys or self._clock() >= self._stale_at:
            await self._ask_if_it_may()
        return self._keys.get(kid)

    async def refresh(self) -> None:
        """Ask for the set now.

        Raises:
            Exception: It did not come; the keys are those that were known before.
        """
        answer = (await self._asker.ask(headers={"accept": "application/jwk-set+json, application/json"})).expect()
        self._keys = dict(_keys_of(answer))
        self._stale_at = self._clock() + _fresh_for(answer.headers)

    async def _ask_if_it_may(self) -> None:
        if not self._asking.acquire(blocking=False):
            return
        try:
            now = self._clock()
            if now >= self._not_before:
                self._not_before = now + AGAIN_AFTER
                # Shielded: who hangs up would else take the one request of a minute from those who do not.
                with anyio.CancelScope(shield=True):
                    await self._try_to_refresh()
        finally:
            self._asking.release()

    async def _try_to_refresh(self) -> None:
        try:
            await self.refresh()
        except Exception as error:  # noqa: BLE001  # a server that has no keys to give must not be an error of ours
            why = http_failure_of(error, wanted="a set of keys", verdicts=ANSWER_VERDICTS).sentence
            _log.info("%s: %s; %d keys are known", self.name, why, len(self._keys))


def _keys_of(answer: Answer) -> Iterator[tuple[str, PublicKey]]:
    """Those that can be used. One that cannot, a future one for instance, does not spoil the others."""
    found = 0
    for raw in _decoded(answer):
        with suppress(ValueError, RecursionError):
            key = decode(raw, type=_Key)
            if found < MAX_KEYS and _is_ours(key):
                yield key.kid, public_key(urlsafe_b64decode(key.x + "="))
                found += 1


def _decoded(answer: Answer) -> list[msgspec.Raw]:
    try:
        return decode(answer.body, type=_Set).keys
    except (ValueError, RecursionError):
        raise UnusableAnswer(f"{answer.url} answered something that is no set of keys (RFC 7517 §5)") from None


def _is_ours(key: _Key) -> bool:
    """Whether it verifies Ed25519 (RFC 8037 §2); "Ed25519" is what RFC 9864 calls the algorithm."""
    is_ed25519 = key.kty == "OKP" and key.crv == "Ed25519" and key.alg in {"EdDSA", "Ed25519"}
    return is_ed25519 and key.use == "sig" and len(key.kid) <= MAX_NAME and _x(key.x) is not None


def _fresh_for(headers: Mapping[str, str]) -> float:
    """Seconds until the set is old, by `max-age` (RFC 9111 §5.2.2.1), neither too few nor too many."""
    told = _max_age(headers.get("cache-control", ""))
    return FRESH if told is None else min(max(float(told[1]), MIN_FRESH), MAX_FRESH)
