"""Rows for verifiers: requests to a webhook as header fields, an empty line and a body."""

import base64
import hashlib
import hmac
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from push_to_poll_client.listeners._webhook.types import WebhookRequest
from push_to_poll_client.listeners.verifiers import (
    Verified,
    basic,
    bearer,
    dropbox,
    github,
    header_token,
    standard_webhooks,
    stripe,
    svix,
    token_in_body,
    websub,
)
from tests.fuzz.fuzzed import Fuzzed, around, nested, words

__all__ = ["ROWS"]

NOW = 1_700_000_000
KEY = b"0123456789abcdefghijklmn"
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = "whpk_" + base64.b64encode(PRIVATE.public_key().public_bytes_raw()).decode()


def request_of(data):
    """Build a request like the receiver: names in lower case, values of a repeated name joined."""
    head, _, body = data.partition(b"\n\n")
    headers = {}
    for line in head.decode("latin-1").split("\n"):
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return WebhookRequest(headers=headers, body=body, received_at=NOW)


SIGNATURES = (github(KEY), dropbox(KEY), websub(KEY), stripe(KEY), standard_webhooks([KEY, PUBLIC]), svix(KEY))


def read_signed(data):
    """Check that each verified request has a MAC or signature of a text that ends with the body."""
    request = request_of(data)
    for verify in SIGNATURES:
        answer = verify(request)
        assert answer is None or isinstance(answer, Verified)
        if answer is not None:
            assert verify.may_pass(request)
            assert any(_signs(header, request) for header in request.headers.values())
            assert answer.until is None or NOW < answer.until <= NOW + 601
            assert all(len(text) == 32 for text in answer.once)


def _signs(header, request):
    found = {made for beginning in _beginnings(request.headers) for made in _made(beginning + request.body)}
    return any(one in header.lower() or one in header for one in found)


def _beginnings(headers):
    yield b""
    for part in headers.get("stripe-signature", "").split(","):
        yield part.removeprefix("t=").encode("latin-1") + b"."
    for name in ("webhook", "svix"):
        yield ".".join([headers.get(f"{name}-id", ""), headers.get(f"{name}-timestamp", ""), ""]).encode("latin-1")


def _made(text):
    for method in ("sha1", "sha256", "sha384", "sha512"):
        mac = hmac.new(KEY, text, getattr(hashlib, method))
        yield mac.hexdigest()
        yield base64.b64encode(mac.digest()).decode()
    yield base64.b64encode(PRIVATE.sign(text)).decode()


TOKENS = (
    header_token(["one", "two"]),
    bearer(["one", "two"]),
    basic("user", ["one", "two"]),
    token_in_body(["one", "two"]),
)


def read_told(data):
    """Check that a verified request contains a token."""
    request = request_of(data)
    for verify in TOKENS:
        answer = verify(request)
        assert answer in {True, False}
        if answer:
            text = " ".join(request.headers.values()).encode("latin-1") + request.body
            tokens = (b"one", b"two", base64.b64encode(b"user:one"), base64.b64encode(b"user:two"))
            assert any(token in text for token in tokens) or b"\\u" in text


def signed(header, body=b"{}"):
    return header.encode("latin-1") + b"\n\n" + body


def standard(name, good, body=b"{}"):
    return signed(f"{name}-id: m\n{name}-timestamp: {NOW}\n{name}-signature: v2,x {good} v1,AAAA", body)


MAC = hmac.new(KEY, b"{}", hashlib.sha256).hexdigest()
STRIPES = hmac.new(KEY, b"1700000000.{}", hashlib.sha256).hexdigest()
STANDARDS = base64.b64encode(hmac.digest(KEY, b"m.1700000000.{}", "sha256")).decode()
PUBLICS = base64.b64encode(PRIVATE.sign(b"m.1700000000.{}")).decode()
DELIVERY = b"webhook-id: m\nwebhook-timestamp: 1700000000\nwebhook-signature:"
BATCH = json.dumps({"value": [{"clientState": "one"}, {"clientState": "two"}]}).encode()

ROWS = (
    Fuzzed(
        name="signed requests",
        modules=(
            "listeners.verifiers._ed25519",
            "listeners.verifiers._hmac",
            "listeners.verifiers._standard_webhooks",
        ),
        read=read_signed,
        examples=(
            signed(f"X-Hub-Signature-256: sha256={MAC}\nX-GitHub-Delivery: 1"),
            signed(f"X-Dropbox-Signature: {MAC}"),
            signed("X-Hub-Signature: sha1=" + hmac.new(KEY, b"{}", hashlib.sha1).hexdigest()),
            signed(f"Stripe-Signature: t={NOW},v1={'0' * 64},v1={STRIPES},v0={MAC}"),
            standard("webhook", f"v1,{STANDARDS}"),
            standard("webhook", f"v1a,{PUBLICS}"),
            standard("svix", f"v1,{STANDARDS}"),
        ),
        tokens=words(
            rf"X-Hub-Signature-256:\x20sha256= X-Hub-Signature:\x20 sha1= md5= Stripe-Signature:\x20 t= ,v1= v0= "
            rf"webhook-id:\x20 webhook-timestamp:\x20 webhook-signature:\x20 svix-signature:\x20 v1, v1a, "
            rf"1700000000 1e9 0 , = \x20 \n \n\n \xff \x00 {MAC} {STANDARDS}"
        ),
        frame=(b"Stripe-Signature: t=1700000000", b"\n\n{}"),
        hostile={
            "items of Stripe": around(b"Stripe-Signature: t=1700000000", b",v1=0", b"\n\n{}"),
            "timestamps of Stripe": around(b"Stripe-Signature: v1=0", b",t=1700000000", b"\n\n{}"),
            "digits": around(b"Stripe-Signature: v1=0,t=", b"1", b"\n\n{}"),
            "a long signature": around(b"X-Hub-Signature-256: sha256=", b"0", b"\n\n{}"),
            "shared signatures": around(DELIVERY, b" v1,AA"),
            "public signatures": around(DELIVERY, b" v1a,AA"),
            "one long public signature": around(DELIVERY + b" v1a,", b"AAAA"),
            "a body": around(f"X-Hub-Signature-256: sha256={MAC}\n\n".encode(), b"{}"),
        },
    ),
    Fuzzed(
        name="requests with a token",
        modules=("listeners.verifiers._hmac", "listeners.verifiers._tokens"),
        read=read_told,
        examples=(
            signed("X-Goog-Channel-Token: one"),
            signed("Authorization: Bearer two"),
            signed("Authorization: Basic dXNlcjpvbmU="),
            signed("Content-Type: application/json", BATCH),
        ),
        tokens=words(
            r"X-Goog-Channel-Token:\x20 Authorization:\x20 Bearer\x20 Basic\x20 one two dXNlcjpvbmU= "
            r'{"value": {"clientState": "one" null [ ] { } , : \n \n\n \xff \x00 \\ud800'
        ),
        frame=(b"\n\n", b""),
        hostile={
            "a long token": around(b"X-Goog-Channel-Token: ", b"one"),
            "spaces behind a scheme": around(b"Authorization: Bearer", b" ", b"one"),
            "items of a batch": around(b'\n\n{"value": [', b'{"clientState": "one"},', b"1]}"),
            "lists": nested(b"[", b"]", b'\n\n{"value": ', b"}"),
            "objects": nested(b'{"value": ', b"}", b"\n\n", b"1"),
        },
    ),
)
