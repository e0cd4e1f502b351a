"""Verify an HMAC signature (RFC 2104), laid out as a vendor declares it.

The parts: secrets, templates of what is signed, and the verifier, which reads the header.

It uses the standard library only. The vendors' libraries raise errors that no caller expects on malformed input
(`standardwebhooks` 1.1: `ValueError`, `binascii.Error`, `UnicodeDecodeError`; `stripe` 16.1: `TypeError`), read
bodies as text although bytes were signed, and ask a clock of their own; Stripe's takes timestamps from any future.
The tests compare their results with those of this module instead.
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
    """Return whether any of `given` equals any of `expected`; all pairs are compared, also after an equal one."""
    wanted = tuple(expected)
    # `any` would stop at the first.
    return sum(hmac.compare_digest(one, other) for one in given for other in wanted) > 0


class TokenSet:
    """The tokens of which a request has to show one. Digests are compared, since all have the same length."""

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self._digests = tuple(hashlib.sha256(token).digest() for token in tokens)

    def __contains__(self, given: bytes) -> bool:
        return any_equal([hashlib.sha256(given).digest()], self._digests)


Secrets: TypeAlias = str | bytes | Sequence[str | bytes]
"""A secret, or several that are all valid: the new one and the old one while they are exchanged."""


def secret_bytes(secrets: Secrets) -> tuple[bytes, ...]:
    """Return the bytes of each secret; a `str` is encoded in UTF-8.

    Raises:
        TypeError: A secret is neither `str` nor `bytes`.
        ValueError: There is no secret, or one is empty, or is a `str` with white space around it.
    """
    return tuple(secret.encode() if isinstance(secret, str) else secret for secret in check_secrets(secrets))


def check_secrets(secrets: object) -> tuple[str | bytes, ...]:
    """Return each secret as it was given; raises as `secret_bytes` does. No error shows a secret."""
    if isinstance(secrets, str | bytes):
        secrets = (secrets,)
    if not isinstance(secrets, Sequence):
        raise TypeError(f"a secret is a str or bytes, or a sequence of them, not {type(secrets).__name__}")
    if not secrets:
        raise ValueError("there is no secret: everybody could have sent what it verifies")
    found = tuple(secrets)
    for secret in found:
        if not isinstance(secret, str | bytes):
            raise TypeError(f"a secret is a str or bytes, not {type(secret).__name__}")
        if not secret:
            raise ValueError("a secret is empty: everybody knows it. Is the setting that holds it set?")
        if isinstance(secret, str) and secret != secret.strip():
            # No request would be verified, and nothing would say why. A caller who means it gives bytes.
            raise ValueError("a secret has white space around it, as the text of a whole file has; strip it")
    return found


TOLERANCE = 300.0
"""Seconds, as Stripe, Slack, Svix and the libraries of Standard Webhooks have it. A request that is repeated later
is refused for its timestamp, so repetitions have to be remembered for this long."""

_read_number = re.compile(r"[1-9][0-9]{0,15}").fullmatch
"""`int()` would also take signs, spaces, underscores and digits of every script, and `float()` would take
"nan"."""


BODY = "body"
TIMESTAMP = "timestamp"
SIGNED = "signed"


def header_bytes(value: str) -> bytes:
    """Return the bytes of a header's value (RFC 9110 §5.5: ISO-8859-1), with other characters escaped."""
    return value.encode("latin-1", "backslashreplace")


def header_name(name: str) -> str:
    """Check the name of a header, and return it in lower case, as requests have it.

    Raises:
        TypeError: It is not a `str`.
        ValueError: It is not the name of a header.
    """
    check_str("the name of a header", name)
    if not is_header_name(name):
        raise ValueError(f"{name!r} is no name of a header (RFC 9110 §5.1)")
    return name.lower()


class Template:
    """A text such as "v0:{timestamp}:{body}"; in braces stands a name that `fill` is told, or a header's.

    Args:
        text: The template; "{{" stands for a brace.

    Attributes:
        names: All names in braces, in lower case.

    Raises:
        TypeError: The text is not a `str`.
        ValueError: A brace is left open, or has something else than a name in it.
    """

    def __init__(self, text: str) -> None:
        check_str("a template", text)
        # Names as `str`, and the text between them as `bytes`. None is empty, so that a body alone is not copied.
        self._pieces = list[str | bytes]()
        for between, name, form, conversion in Formatter().parse(text):
            if form or conversion:
                raise ValueError(f"in braces stands a name and nothing else, in {text!r}")
            if between:
                self._pieces.append(between.encode())
            if name is not None:
                self._pieces.append(header_name(name))
        self.names = frozenset(piece for piece in self._pieces if isinstance(piece, str))

    def fill(self, request: WebhookRequest, known: Mapping[str, bytes]) -> bytes | None:
        """Return the bytes for a request; None if a header is missing or empty.

        Args:
            request: Has the headers.
            known: What stands for the names that are not headers.
        """
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
"""The hash of an HMAC, which does not need the property of SHA-1 that is broken (RFC 6194 §3.3)."""

ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")

ENCODINGS: Mapping[str, tuple[Callable[[bytes], bytes], Callable[[str], str]]] = {
    "hex": (hexlify, str.lower),
    "base64": (b64encode, str),
}
"""For each encoding the function that encodes a MAC, and the one that brings a given signature into its case."""

MAX_ITEMS = 16
"""Items of a list of signatures. Servers write two or three while they change a secret. A longer list is refused:
each item costs a comparison for each secret."""


class _Stated(NamedTuple):
    """What the headers of a request state, whose timestamp is not refused.

    Attributes:
        signatures: By algorithm, in their encoding; at least one.
        timestamp: The text of the timestamp; empty if there is none.
        until: When the timestamp will be refused, in seconds since the epoch; infinite if there is none.
    """

    signatures: Mapping[str, Sequence[bytes]]
    timestamp: str
    until: float


def _prefixes(prefix: str, algorithms: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    check_str("prefix", prefix)
    for algorithm in algorithms:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm is one of {', '.join(ALGORITHMS)}, not {algorithm!r}")
    if not algorithms or (len(algorithms) > 1 and "{algorithm}" not in prefix):
        raise ValueError("where the server states its algorithm, {algorithm} stands in the prefix")
    return tuple((prefix.replace("{algorithm}", algorithm), algorithm) for algorithm in algorithms)


class HMACSignature:
    """Verifies an HMAC over the body, and over what the server signs with it. Most vendors are one line of it.

        HMACSignature(secret, header="X-Shopify-Hmac-SHA256", encoding="base64")
        HMACSignature(secret, header="X-Slack-Signature", prefix="v0=",
                      signed="v0:{timestamp}:{body}", timestamp="X-Slack-Request-Timestamp")
        HMACSignature(secret, header="Stripe-Signature", separator=",", prefix="v1=",
                      signed="{timestamp}.{body}", timestamp="t=")

    A template is a text with names in braces: `{body}`, `{timestamp}`, and of any header, as `{webhook-id}`.

    A malformed request is refused and never raises. How much is compared does not depend on where a signature is
    wrong. A header that came twice is verified as one, joined, which as a rule is wrong.

    Args:
        secrets: The secret, used as it is (a `str` in UTF-8), or several while they are exchanged.
        header: Where the signature stands.
        prefix: What stands before it. `{algorithm}` in it: the server states which of `algorithm` it took.
        separator: The header is a list of which each item with the prefix is a signature, and the items stand
            between these; `None`: it is one signature.
        algorithm: The hash, or those that the server may state.
        encoding: Of the signature: "hex", in either case, or "base64", padded.
        signed: A template of what is signed; `None`: "{timestamp}.{body}" if there is a timestamp, else "{body}".
        timestamp: Where the second stands at which it was signed: the name of a header, or what an item of the
            list begins with, as "t="; `None`: nothing says when it was sent, and who has seen one request can
            send it again at any time.
        timestamp_unit: Seconds that one of it stands for: 0.001 where it is in milliseconds.
        tolerance: Seconds that the timestamp may lie before the receiver's clock, or after it.
        once: Templates of what a repetition of a request has too, and no other has: each alone makes a
            repetition, and one whose header is missing or empty says nothing. `{signed}` is what was signed.
            `None`: that, if there is a timestamp in it; else nothing, since two pushes may have the same body.

    Raises:
        TypeError: An argument is of no such type.
        ValueError: A secret is empty, or something cannot be as declared.
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
            raise ValueError(f"encoding is hex or base64, not {encoding!r}")
        self._keys = secret_bytes(secrets)
        self._encode, self._in_one_case = ENCODINGS[encoding]
        self._header = header_name(header)
        self._prefixes = _prefixes(prefix, (algorithm,) if isinstance(algorithm, str) else tuple(algorithm))
        if not isinstance(separator, str | None):
            raise TypeError(f"separator must be a str or None, not {type(separator).__name__}")
        if separator == "":
            raise ValueError("separator is empty; None is for a header that is no list")
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
            raise ValueError("signed must have {body} in it: else anybody could write the body")
        if (TIMESTAMP in self._signed.names) != timed:
            raise ValueError(
                "signed must have {timestamp} in it if there is one: one that is not signed says nothing"
            )
        if isinstance(once, str):
            raise TypeError("once must be a sequence of templates, not one")
        once = (["{signed}"] if timed else []) if once is None else once
        self._once = [Template(text) for text in once]

    def may_pass(self, request: WebhookRequest) -> bool:
        """Whether the headers alone are those of an authentic request: signed, and of now."""
        return self._read(request) is not None

    def __call__(self, request: WebhookRequest, /) -> Verified | None:
        """What there is to say of an authentic request; `None`: it is not authentic."""
        if (stated := self._read(request)) is None:
            return None
        known = {BODY: request.body, TIMESTAMP: stated.timestamp.encode()}
        signed = self._signed.fill(request, known)
        # All algorithms are tried, since a stop at the first that fits would show in the time.
        if signed is None or not sum(self._fits(signed, *one) for one in stated.signatures.items()):
            return None
        texts = [template.fill(request, {**known, SIGNED: signed}) for template in self._once]
        numbered = [b"%d " % number + text for number, text in enumerate(texts) if text is not None]
        # Of two templates no two texts are the same; and a digest is short.
        once = tuple(hashlib.sha256(text).digest() for text in numbered)
        return Verified(once, stated.until if math.isfinite(stated.until) else None)

    def _read(self, request: WebhookRequest) -> _Stated | None:
        """Return what the headers state; None if they are not those of an authentic request."""
        value = request.headers.get(self._header)
        if value is None:
            return None
        items = [value] if self._separator is None else value.split(self._separator, MAX_ITEMS)
        if len(items) > MAX_ITEMS:
            return None
        signatures = dict[str, list[bytes]]()
        for prefix, algorithm in self._prefixes:
            if texts := _without(prefix, items):
                # A character that is not ASCII becomes "?", which no signature has.
                signatures[algorithm] = [self._in_one_case(text).encode("ascii", "replace") for text in texts]
        timestamp, until = "", math.inf
        if TIMESTAMP in self._signed.names:
            timestamp = self._timestamp(request, items)
            if not _read_number(timestamp):
                return None
            signed_at = int(timestamp) * self._timestamp_unit
            # A request with a future timestamp could be repeated for longer than it is remembered.
            if abs(request.received_at - signed_at) > self._tolerance:
                return None
            # At the very end of the tolerance one still passes, and no longer a second later.
            until = signed_at + self._tolerance + 1
        return _Stated(signatures, timestamp, until) if signatures else None

    def _timestamp(self, request: WebhookRequest, items: Sequence[str]) -> str:
        """Return the text of the timestamp; empty if there is none, or if there are two."""
        if self._timestamp_prefix is None:
            return request.headers.get(self._timestamp_header, "")
        found = _without(self._timestamp_prefix, items)
        return found[0] if len(found) == 1 else ""

    def _fits(self, signed: bytes, algorithm: str, given: Sequence[bytes]) -> bool:
        macs = [self._encode(hmac.digest(key, signed, algorithm)) for key in self._keys]
        return any_equal(given, macs)


def _without(prefix: str, items: Sequence[str]) -> list[str]:
    """Return the items that have a prefix, without it."""
    return [item.removeprefix(prefix) for item in items if item.startswith(prefix)]
