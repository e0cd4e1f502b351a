"""Verify HMAC signatures (RFC 2104) in the layout that a vendor declares.

Uses only the standard library. The vendors' libraries raise unexpected errors on malformed input
(`standardwebhooks` 1.1: `ValueError`, `binascii.Error`, `UnicodeDecodeError`; `stripe` 16.1: `TypeError`),
read bodies as text although bytes are signed, and read the clock themselves. Stripe's accepts any future
timestamp. The tests compare their results with the results of this module.
"""

import hashlib
import hmac
import math
import re
from base64 import b64encode
from binascii import hexlify
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Formatter
from typing import Literal, NamedTuple, TypeAlias

from push_to_poll_client._http.headers import is_header_name
from push_to_poll_client._validation import check_number, check_str
from push_to_poll_client.listeners._webhook.types import Verified, WebhookRequest


def any_equal(given: Iterable[bytes], expected: Iterable[bytes]) -> bool:
    """Return True if any of `given` equals any of `expected`. Always compares all pairs."""
    wanted = tuple(expected)
    # `any` would stop at the first.
    return sum(hmac.compare_digest(one, other) for one in given for other in wanted) > 0


class TokenSet:
    """Valid tokens. Compares digests, since all digests have the same length."""

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self._digests = tuple(hashlib.sha256(token).digest() for token in tokens)

    def __contains__(self, given: bytes) -> bool:
        return any_equal([hashlib.sha256(given).digest()], self._digests)


Secrets: TypeAlias = str | bytes | Sequence[str | bytes]
"""A secret, or several that are all valid, as while a secret is replaced."""


def secret_bytes(secrets: Secrets) -> tuple[bytes, ...]:
    """Return the bytes of each secret, with `str` encoded in UTF-8. Raises as `check_secrets`."""
    return tuple(secret.encode() if isinstance(secret, str) else secret for secret in check_secrets(secrets))


def check_secrets(secrets: object) -> tuple[str | bytes, ...]:
    """Return each secret unchanged, or raise `TypeError` or `ValueError`. No error shows a secret."""
    if isinstance(secrets, str | bytes):
        secrets = (secrets,)
    if not isinstance(secrets, Sequence):
        raise TypeError(f"a secret must be a str or bytes, or a sequence of them, got {type(secrets).__name__}")
    if not secrets:
        raise ValueError("at least one secret is required: without a secret, anyone could send requests")
    found = tuple(secrets)
    for secret in found:
        if not isinstance(secret, str | bytes):
            raise TypeError(f"a secret must be a str or bytes, got {type(secret).__name__}")
        if not secret:
            raise ValueError("a secret is empty; check that the setting with the secret is set")
        if isinstance(secret, str) and secret != secret.strip():
            # Every request would be rejected without an explanation. A caller who means it can pass bytes.
            raise ValueError("a secret starts or ends with white space, such as a file's last newline; strip it")
    return found


TOLERANCE = 300.0
"""Seconds, as in Stripe, Slack, Svix and Standard Webhooks. Replays must be remembered for this long."""

_read_number = re.compile(r"[1-9][0-9]{0,15}").fullmatch
"""`int()` also accepts signs, spaces, underscores and the digits of every script; `float()` accepts "nan"."""


BODY = "body"
TIMESTAMP = "timestamp"
SIGNED = "signed"


def header_bytes(value: str) -> bytes:
    """Return a header value as bytes (ISO-8859-1, RFC 9110 §5.5), with other characters escaped."""
    return value.encode("latin-1", "backslashreplace")


def header_name(name: str) -> str:
    """Return a valid header name in lower case, or raise `TypeError` or `ValueError`."""
    check_str("a header name", name)
    if not is_header_name(name):
        raise ValueError(f"{name!r} is not a valid header name (RFC 9110 §5.1)")
    return name.lower()


class Template:
    """Template such as "v0:{timestamp}:{body}". A name in braces is a known value or a header."""

    def __init__(self, text: str) -> None:
        check_str("a template", text)
        # Names as `str`, and the text between them as `bytes`. None is empty, so that a body alone is not copied.
        self._pieces = list[str | bytes]()
        for between, name, form, conversion in Formatter().parse(text):
            if form or conversion:
                raise ValueError(f"braces must contain a plain name such as {{body}}, got {text!r}")
            if between:
                self._pieces.append(between.encode())
            if name is not None:
                self._pieces.append(header_name(name))
        self.names = frozenset(piece for piece in self._pieces if isinstance(piece, str))

    def fill(self, request: WebhookRequest, known: Mapping[str, bytes]) -> bytes | None:
        """Return the filled template; None if a header is missing or empty. `known` overrides headers."""
        filled = list[bytes]()
        for piece in self._pieces:
            if isinstance(piece, str):
                # An empty id would make all requests without one repetitions of each other.
                text = known.get(piece, header_bytes(request.headers.get(piece, "")) or None)
            else:
                text = piece
            if text is None:
                return None
            filled.append(text)
        return b"".join(filled)


Algorithm: TypeAlias = Literal["sha1", "sha256", "sha384", "sha512"]
"""Hash of an HMAC. The broken property of SHA-1 does not matter for HMAC (RFC 6194 §3.3)."""

ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")

ENCODINGS: Mapping[str, tuple[Callable[[bytes], bytes], Callable[[str], str]]] = {
    "hex": (hexlify, str.lower),
    "base64": (b64encode, str),
}
"""By encoding: the function that encodes a MAC, and the function that normalises the case of a signature."""

# A longer list is rejected: each item costs a comparison with each secret.
MAX_ITEMS = 16
"""Items in a list of signatures. Servers send two or three while a secret is replaced."""


class _Stated(NamedTuple):
    """Contents of the headers of a request whose timestamp is acceptable."""

    signatures: Mapping[str, Sequence[bytes]]
    timestamp: str
    until: float


def _prefixes(prefix: str, algorithms: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    check_str("prefix", prefix)
    for algorithm in algorithms:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    if not algorithms or (len(algorithms) > 1 and "{algorithm}" not in prefix):
        raise ValueError("with several algorithms, prefix must contain {algorithm}")
    return tuple((prefix.replace("{algorithm}", algorithm), algorithm) for algorithm in algorithms)


class HMACSignature:
    """Verifies an HMAC over the body and other signed values. Most vendors need one line.

        HMACSignature(secret, header="X-Shopify-Hmac-SHA256", encoding="base64")
        HMACSignature(secret, header="X-Slack-Signature", prefix="v0=",
                      signed="v0:{timestamp}:{body}", timestamp="X-Slack-Request-Timestamp")
        HMACSignature(secret, header="Stripe-Signature", separator=",", prefix="v1=",
                      signed="{timestamp}.{body}", timestamp="t=")

    A template is a text with names in braces: `{body}`, `{timestamp}`, or any header, such as `{webhook-id}`.

    A malformed request is rejected and never raises. The number of comparisons does not depend on the position of
    a wrong byte. A repeated header is verified as one joined value, which normally does not match.

    Args:
        secrets: The secret, used unchanged (a `str` in UTF-8), or several that are all valid.
        header: Header with the signature.
        prefix: Text before the signature. With `{algorithm}` in it, the server names one of `algorithm` there.
        separator: Text between the items of a list in the header; each item with the prefix is a signature. `None`
            if the header is a single signature.
        algorithm: The hash, or those that the server may name.
        encoding: Encoding of the signature: "hex" in either case, or padded "base64".
        signed: Template of the signed text. `None` means "{timestamp}.{body}" with a timestamp, else "{body}".
        timestamp: Place of the signing time: a header name, or the prefix of an item in the list, such as "t=".
            `None` if there is none; anyone who has seen a request can then send it again at any time.
        timestamp_unit: Seconds per unit of the timestamp; 0.001 for milliseconds.
        tolerance: Seconds that the timestamp may differ from the receiver's clock, in either direction.
        once: Templates of values that identify a request: a request is a repetition if one of them was seen
            before. A template whose header is missing or empty is skipped. `{signed}` is the signed text. `None`
            means `{signed}` if there is a timestamp, else nothing, since two pushes may have the same body.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A secret is empty, or the arguments contradict each other.
    """

    def __init__(
        self,
        secrets: Secrets,
        *,
        header: str,
        prefix: str = "",
        separator: str | None = None,
        algorithm: Algorithm | Sequence[Algorithm] = "sha256",
        encoding: Literal["hex", "base64"] = "hex",
        signed: str | None = None,
        timestamp: str | None = None,
        timestamp_unit: float = 1,
        tolerance: float = TOLERANCE,
        once: Sequence[str] | None = None,
    ) -> None:
        check_number("timestamp_unit", timestamp_unit, above_zero=True)
        check_number("tolerance", tolerance, above_zero=True)
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding must be hex or base64, got {encoding!r}")
        self._keys = secret_bytes(secrets)
        self._encode, self._in_one_case = ENCODINGS[encoding]
        self._header = header_name(header)
        self._prefixes = _prefixes(prefix, (algorithm,) if isinstance(algorithm, str) else tuple(algorithm))
        if not isinstance(separator, str | None):
            raise TypeError(f"separator must be a str or None, got {type(separator).__name__}")
        if separator == "":
            raise ValueError("separator must not be empty; use None if the header is a single signature")
        self._separator = separator
        timed = timestamp is not None
        listed = isinstance(timestamp, str) and timestamp and separator and not is_header_name(timestamp)
        self._timestamp_prefix = timestamp if listed else None
        self._timestamp_header = "" if listed or timestamp is None else header_name(timestamp)
        self._timestamp_unit = timestamp_unit
        self._tolerance = tolerance
        default = "{timestamp}.{body}" if timed else "{body}"
        self._signed = Template(default if signed is None else signed)
        if BODY not in self._signed.names:
            raise ValueError("signed must contain {body}: otherwise anyone could change the body")
        if (TIMESTAMP in self._signed.names) != timed:
            raise ValueError(
                "signed must contain {timestamp} if timestamp= is given, and only then: an attacker "
                "can change an unsigned time"
            )
        if isinstance(once, str):
            raise TypeError("once must be a sequence of templates, not a single str")
        once = (["{signed}"] if timed else []) if once is None else once
        self._once = [Template(text) for text in once]

    def may_pass(self, request: WebhookRequest) -> bool:
        """Return False if the headers alone rule out an authentic request."""
        return self._read(request) is not None

    def __call__(self, request: WebhookRequest, /) -> Verified | None:
        """Return `Verified` for an authentic request, else `None`."""
        if (stated := self._read(request)) is None:
            return None
        known = {BODY: request.body, TIMESTAMP: stated.timestamp.encode()}
        signed = self._signed.fill(request, known)
        # Try all algorithms: stopping at the first match would be visible in the response time.
        if signed is None or not sum(self._fits(signed, *one) for one in stated.signatures.items()):
            return None
        texts = [template.fill(request, {**known, SIGNED: signed}) for template in self._once]
        numbered = [b"%d " % number + text for number, text in enumerate(texts) if text is not None]
        # The number keeps the texts of two templates apart; a digest is short.
        once = tuple(hashlib.sha256(text).digest() for text in numbered)
        return Verified(once, stated.until if math.isfinite(stated.until) else None)

    def _read(self, request: WebhookRequest) -> _Stated | None:
        """Return the contents of the headers; None if they rule out an authentic request."""
        value = request.headers.get(self._header)
        if value is None:
            return None
        items = [value] if self._separator is None else value.split(self._separator, MAX_ITEMS)
        if len(items) > MAX_ITEMS:
            return None
        signatures = dict[str, list[bytes]]()
        for prefix, algorithm in self._prefixes:
            if texts := _without(prefix, items):
                # A non-ASCII character becomes "?", which no signature contains.
                signatures[algorithm] = [self._in_one_case(text).encode("ascii", "replace") for text in texts]
        timestamp, until = "", math.inf
        if TIMESTAMP in self._signed.names:
            timestamp = self._timestamp(request, items)
            if not _read_number(timestamp):
                return None
            signed_at = int(timestamp) * self._timestamp_unit
            # A request with a future timestamp could be repeated after it is forgotten.
            if abs(request.received_at - signed_at) > self._tolerance:
                return None
            # At exactly the tolerance it still passes, and a second later it does not.
            until = signed_at + self._tolerance + 1
        return _Stated(signatures, timestamp, until) if signatures else None

    def _timestamp(self, request: WebhookRequest, items: Sequence[str]) -> str:
        """Return the text of the timestamp; empty if there is none or more than one."""
        if self._timestamp_prefix is None:
            return request.headers.get(self._timestamp_header, "")
        found = _without(self._timestamp_prefix, items)
        return found[0] if len(found) == 1 else ""

    def _fits(self, signed: bytes, algorithm: str, given: Sequence[bytes]) -> bool:
        macs = [self._encode(hmac.digest(key, signed, algorithm)) for key in self._keys]
        return any_equal(given, macs)


def _without(prefix: str, items: Sequence[str]) -> list[str]:
    return [item.removeprefix(prefix) for item in items if item.startswith(prefix)]
