"""Rows for pushes of a Durable Streams server: signed webhooks, keys, wakes and claims."""

import base64
import json

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from push_to_poll_client.durable_streams import PullWakeListener
from push_to_poll_client.durable_streams._pull_wake import Claim
from push_to_poll_client.durable_streams._signature import (
    MAX_KEYS,
    MAX_LIFETIME,
    MIN_LIFETIME,
    _keys_of,
    _lifetime,
)
from push_to_poll_client.durable_streams._subscription import DurableStreamsWebhook, error_code
from push_to_poll_client.listeners._hints import MAX_TOPICS
from push_to_poll_client.listeners._requests import ListenerResponse, UnusableResponse
from push_to_poll_client.listeners._sse_parser import ServerSentEvent
from push_to_poll_client.listeners._webhook.types import WebhookRequest
from tests.fuzz.fuzzed import Fuzzed, around, nested, text_of, words
from tests.fuzz.rows_verifiers import request_of

__all__ = ["ROWS"]

ROOT = "https://streams.example/v1/stream"
NOW = 1_700_000_000
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
X = base64.urlsafe_b64encode(PRIVATE.public_key().public_bytes_raw()).decode().rstrip("=")
WEBHOOK = DurableStreamsWebhook(ROOT, streams=["a"], callback="https://me.example/")
WAKES = PullWakeListener(ROOT, streams=["a"], wake_stream="w")
OURS = WAKES._subscription.id


def answer_of(data):
    return ListenerResponse(200, httpx.Headers(), data, ROOT, None)


def keys_known():
    """Return the only key; no other key is requested."""
    keys = WEBHOOK.verify
    keys._keys = dict(_keys_of(answer_of(json.dumps({"keys": [KEY]}).encode())))
    keys._stale_at = keys._not_before = float("inf")


def read_signed(data):
    """Check that each verified request is signed for the current minute."""
    keys_known()
    request = request_of(data)
    try:
        WEBHOOK.verify(request).send(None)
    except StopIteration as end:
        answer = end.value
    if answer:
        assert WEBHOOK.verify.may_pass(request)
        (once,) = answer.once
        assert abs(answer.until - 301 - NOW) <= 300
        stated = request.headers["webhook-signature"].partition("t=")[2].partition(",")[0]
        assert PRIVATE.sign(f"{stated}.".encode() + request.body) == once


def read_keys(data):
    told, _, body = data.partition(b"\n\n")
    assert MIN_LIFETIME <= _lifetime({"cache-control": text_of(told)}) <= MAX_LIFETIME
    keys = dict(_keys_of(answer_of(body)))
    assert len(keys) <= MAX_KEYS
    for key in keys.values():
        assert len(key.public_bytes_raw()) == 32


def read_webhook(data):
    assert isinstance(error_code(answer_of(data)), str)
    push = WEBHOOK.hint(WebhookRequest(body=data))
    assert len(push.topics) <= MAX_TOPICS


def read_event(data):
    event = ServerSentEvent("data", text_of(data), "")
    topics = WAKES._streams_in(event)
    if topics is not None:
        assert all(isinstance(topic, str) for topic in topics)
        assert len(WAKES._push_of(event).topics) <= MAX_TOPICS


def read_claim(data):
    claim = answer_of(data).decoded(Claim, "claim")
    assert len(claim.topics) <= MAX_TOPICS
    assert all(ack.keys() == {"stream", "offset"} for ack in claim.acks)
    assert len(json.dumps(claim.acks)) <= 10 * len(data) + 100
    assert claim.token not in repr(claim) or len(claim.token) < 8


KEY = {"kty": "OKP", "crv": "Ed25519", "kid": "ds_1", "x": X, "use": "sig", "alg": "EdDSA"}
SIGNATURE = base64.urlsafe_b64encode(PRIVATE.sign(b"1700000000.{}")).decode().rstrip("=")
STREAM = {"path": "a", "link_type": "glob", "acked_offset": "0_1", "tail_offset": "0_2", "has_pending": True}
WAKE = {"type": "wake", "subscription_id": OURS, "stream": "a", "generation": 7, "ts": 1}
HEADER = b"webhook-signature: t=1700000000,kid=ds_1,ed25519="

JSON_TOKENS = words(r'{ } [ ] , : " \\ \\u0000 \\ud800 null true -1 1e999 "" \xff \n')
JSON_HOSTILE = {"lists": nested(b"[", b"]"), "objects": nested(b'{"a":', b"}")}

ROWS = (
    Fuzzed(
        name="durable streams signatures",
        modules=("durable_streams._signature",),
        read=read_signed,
        examples=(
            HEADER + SIGNATURE.encode() + b"\n\n{}",
            HEADER + SIGNATURE.encode() + b"\n\n{} ",
            HEADER.replace(b"ds_1", b"other") + SIGNATURE.encode() + b"\n\n{}",
        ),
        tokens=words(r"webhook-signature: t= , kid= ds_1 ed25519= 1700000000 0 A - _ = + \n \n\n \xff \x00"),
        frame=(HEADER, b"\n\n{}"),
    ),
    Fuzzed(
        name="durable streams keys",
        modules=("durable_streams._signature", "listeners.verifiers._ed25519"),
        read=read_keys,
        errors=(UnusableResponse,),
        examples=(
            b"public, max-age=300\n\n" + json.dumps({"keys": [KEY, 7, {}, KEY | {"kid": "ds_2"}]}).encode(),
            b'max-age="5"\n\n{"keys":[]}',
        ),
        tokens=(*JSON_TOKENS, *words('max-age= 9 = "keys" "kty" "OKP" "kid" "x" "crv"')),
        frame=(b'max-age=5\n\n{"keys":[', b"]}"),
        hostile={**JSON_HOSTILE, "keys": around(b'\n\n{"keys":[7', b"," + json.dumps(KEY).encode(), b"]}")},
    ),
    Fuzzed(
        name="durable streams webhooks",
        modules=("durable_streams._subscription",),
        read=read_webhook,
        errors=(ValueError, RecursionError),
        examples=(
            json.dumps(
                {"subscription_id": "s", "wake_id": "w", "streams": [STREAM, STREAM | {"path": "b"}]}
            ).encode(),
            b'{"error":{"code":"FENCED","message":"x"}}',
        ),
        tokens=(*JSON_TOKENS, *words('"subscription_id" "streams" "path" "has_pending" "error" "code"')),
        frame=(b'{"subscription_id":"s","streams":[', b"]}"),
        hostile=JSON_HOSTILE,
    ),
    Fuzzed(
        name="durable streams wakes",
        modules=("durable_streams._pull_wake",),
        read=read_event,
        examples=(json.dumps([WAKE]).encode(), json.dumps(WAKE).encode(), b"[]", b"{}"),
        tokens=(*JSON_TOKENS, *words(f'"type" "wake" "subscription_id" "{OURS}" "stream"')),
        frame=(b"[", b"]"),
        hostile={**JSON_HOSTILE, "wakes": around(b"[{}", b"," + json.dumps(WAKE).encode(), b"]")},
    ),
    Fuzzed(
        name="durable streams claims",
        modules=("durable_streams._pull_wake",),
        read=read_claim,
        errors=(UnusableResponse,),
        examples=(
            json.dumps(
                {"wake_id": "w", "generation": 7, "token": "secret-token", "streams": [STREAM], "lease_ttl_ms": 1}
            ).encode(),
        ),
        tokens=(*JSON_TOKENS, *words('"wake_id" "generation" "token" "streams" "tail_offset"')),
        frame=(b'{"wake_id":"w","generation":7,"token":"t","streams":[', b"]}"),
        hostile=JSON_HOSTILE,
    ),
)
