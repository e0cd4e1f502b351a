"""WHETHER SOMEBODY WHO KNOWS THE SECRET SENT IT: an HMAC (RFC 2104), laid out as a vendor does, by declaration.

By the standard library. Those of vendors raise what no caller expects on malformed input (`standardwebhooks` 1.1:
`ValueError`, `binascii.Error`, `UnicodeDecodeError`; `stripe` 16.1: `TypeError`), read bodies as text though bytes
were signed, and ask a clock of their own; Stripe's takes timestamps from any future. They are the oracles of the
tests instead.
"""

import binascii
import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._verifiers.comparing import any_equal
from push_to_poll_client.listeners._verifiers.freshness import TOLERANCE, Freshness
from push_to_poll_client.listeners._verifiers.keys import Secrets, keys_of
from push_to_poll_client.listeners._verifiers.layout import Algorithm, Layout, Stated
from push_to_poll_client.listeners._verifiers.templates import BODY, SIGNED, TIMESTAMP, Template
from push_to_poll_client.listeners._webhook.request import Verified, WebhookRequest

__all__ = ["HMACSignature", "once_texts"]


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
        if encoding not in ("hex", "base64"):
            raise ValueError(f"encoding is hex or base64, not {encoding!r}")
        self._keys = keys_of(secrets)
        self._encoding = encoding
        self._layout = Layout(
            header=header,
            prefix=prefix,
            separator=separator,
            algorithm=algorithm,
            any_case=encoding == "hex",
            timestamp=timestamp,
        )
        timed = timestamp is not None
        self._signed = _signed_template(signed, timed=timed)
        self._freshness = Freshness(tolerance, timestamp_unit) if timed else None
        self._once = _once_templates(once, timed=timed)

    def may_pass(self, request: WebhookRequest) -> bool:
        """Whether the headers alone are those of an authentic request: signed, and of now."""
        stated = self._layout.read(request)
        return stated is not None and self._until(stated, request) is not None

    def __call__(self, request: WebhookRequest, /) -> Verified | None:
        """What there is to say of an authentic request; `None`: it is not authentic."""
        stated = self._layout.read(request)
        until = None if stated is None else self._until(stated, request)
        if stated is None or until is None:
            return None
        known = {BODY: request.body, TIMESTAMP: stated.timestamp.encode()}
        signed = self._signed.fill(request, known)
        if signed is None or not self._fits(signed, stated):
            return None
        once = once_texts(self._once, request, {**known, SIGNED: signed})
        return Verified(once, until if math.isfinite(until) else None)

    def __repr__(self) -> str:
        return f"HMACSignature(header={self._layout.header!r}, {len(self._keys)} secrets)"

    def _until(self, stated: Stated, request: WebhookRequest) -> float | None:
        """When it will be refused for its age; `None`: it is now."""
        if self._freshness is None:
            return math.inf
        return self._freshness.until(stated.timestamp, request.received_at)

    def _fits(self, signed: bytes, stated: Stated) -> bool:
        given = {
            algorithm: [one for its, one in stated.signatures if its == algorithm]
            for algorithm, _ in stated.signatures
        }
        fitting = (any_equal(given[algorithm], self._expected(signed, algorithm)) for algorithm in given)
        # `any` would stop at the first.
        return sum(fitting) > 0

    def _expected(self, signed: bytes, algorithm: str) -> list[bytes]:
        return [self._encoded(hmac.digest(key, signed, algorithm)) for key in self._keys]

    def _encoded(self, mac: bytes) -> bytes:
        return binascii.hexlify(mac) if self._encoding == "hex" else binascii.b2a_base64(mac, newline=False)


def once_texts(
    templates: Sequence[Template], request: WebhookRequest, known: Mapping[str, bytes]
) -> tuple[bytes, ...]:
    """What each template makes of a request, as digests: bounded, and two templates never make the same."""
    filled = [(number, template.fill(request, known)) for number, template in enumerate(templates)]
    return tuple(_digest(number, text) for number, text in filled if text is not None)


def _digest(number: int, text: bytes) -> bytes:
    digest = hashlib.sha256(b"%d " % number)
    digest.update(text)
    return digest.digest()


def _signed_template(signed: str | None, *, timed: bool) -> Template:
    default = "{timestamp}.{body}" if timed else "{body}"
    template = Template(default if signed is None else signed, known=frozenset({BODY, TIMESTAMP}))
    if BODY not in template.names:
        raise ValueError("signed must have {body} in it: else anybody could write the body")
    if (TIMESTAMP in template.names) != timed:
        raise ValueError("signed must have {timestamp} in it if there is one: one that is not signed says nothing")
    return template


def _once_templates(once: Sequence[str] | None, *, timed: bool) -> tuple[Template, ...]:
    if isinstance(once, str):
        raise TypeError("once must be a sequence of templates, not one")
    given = (("{signed}",) if timed else ()) if once is None else once
    return tuple(Template(text, known=frozenset({BODY, TIMESTAMP, SIGNED})) for text in given)
