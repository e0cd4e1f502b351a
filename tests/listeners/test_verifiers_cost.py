"""The work for a wrong request does not depend on where it is wrong: calls are counted, not seconds."""

import base64
import hashlib
import hmac
import tracemalloc
from collections import Counter

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from push_to_poll_client.listeners.verifiers import (
    HMACSignature,
    WebhookRequest,
    _ed25519,
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
from tests.support.signing import NOW, b64_mac, hex_mac, request

KEYS = [b"0123456789abcdefghijklmn", b"another-secret-of-24-byt"]
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = "whpk_" + base64.b64encode(PRIVATE.public_key().public_bytes_raw()).decode()
BODY = b'{"value": [{"clientState": "%s"}]}'


@pytest.fixture
def work(monkeypatch):
    """Counts digests, comparisons and verifications, and the bytes that these read."""
    counted = Counter()

    def count(name, function, size):
        def counting(*arguments):
            counted[name] += 1
            counted[f"bytes of {name}"] += size(*arguments)
            return function(*arguments)

        return counting

    def equal_types(given, expected):
        assert type(given) is type(expected) is bytes
        return len(expected)

    monkeypatch.setattr(hmac, "digest", count("hmac", hmac.digest, lambda key, text, _: len(key) + len(text)))
    monkeypatch.setattr(hmac, "compare_digest", count("compare", hmac.compare_digest, equal_types))
    monkeypatch.setattr(hashlib, "sha256", count("sha256", hashlib.sha256, lambda *text: sum(map(len, text))))
    monkeypatch.setattr(_ed25519, "verify", count("ed25519", _ed25519.verify, lambda key, sig, text: len(text)))
    return counted


def done(work, verify, asked):
    work.clear()
    assert not verify(asked)
    return dict(work)


def delivery(signature):
    return request(BODY, webhook_id="m", webhook_timestamp=str(NOW), webhook_signature=signature)


def wrong(good):
    """Signatures or tokens of the same length that are wrong at one character, or at all."""
    for at, char in enumerate(good):
        yield good[:at] + ("0" if char != "0" else "1") + good[at + 1 :]
    yield "0" * len(good)


HMACS = {
    "GitHub": (github, lambda sig: {"X_Hub_Signature_256": f"sha256={sig}"}, hex_mac(KEYS[0], BODY)),
    "Dropbox": (dropbox, lambda sig: {"X_Dropbox_Signature": sig}, hex_mac(KEYS[0], BODY)),
    "WebSub": (websub, lambda sig: {"X_Hub_Signature": f"sha1={sig}"}, hex_mac(KEYS[0], BODY, "sha1")),
    "Stripe": (
        stripe,
        lambda sig: {"Stripe_Signature": f"t={NOW},v1={sig}"},
        hex_mac(KEYS[0], b"%d." % NOW + BODY),
    ),
    "Standard Webhooks": (
        standard_webhooks,
        lambda sig: {"webhook_id": "m", "webhook_timestamp": str(NOW), "webhook_signature": f"v1,{sig}"},
        b64_mac(KEYS[0], b"m.%d." % NOW + BODY),
    ),
    "Svix": (
        svix,
        lambda sig: {"svix_id": "m", "svix_timestamp": str(NOW), "svix_signature": f"v1,{sig}"},
        b64_mac(KEYS[0], b"m.%d." % NOW + BODY),
    ),
}


@pytest.mark.parametrize(("verifier", "headers", "good"), HMACS.values(), ids=HMACS)
def test_a_wrong_signature_costs_one_digest_and_one_comparison_for_each_secret(work, verifier, headers, good):
    verify = verifier(KEYS)
    assert verify(request(BODY, **headers(good)))
    found = [done(work, verify, request(BODY, **headers(one))) for one in wrong(good)]
    assert all(one == found[0] for one in found)
    assert found[0]["hmac"] == found[0]["compare"] == len(KEYS)
    assert set(found[0]) == {"hmac", "bytes of hmac", "compare", "bytes of compare"}


@pytest.mark.parametrize(("verifier", "headers", "good"), HMACS.values(), ids=HMACS)
def test_a_signature_of_another_length_or_with_odd_characters_costs_the_same(work, verifier, headers, good):
    verify = verifier(KEYS)
    expected = done(work, verify, request(BODY, **headers("0" * len(good))))
    for odd in ("", "0", good[:-1], good + "0", good * 9, "é" * len(good), "\udc80", "=", "."):
        assert done(work, verify, request(BODY, **headers(odd))) == expected


@pytest.mark.parametrize("secret", range(2))
def test_the_work_does_not_reveal_the_matching_secret(work, secret):
    verify, header = github(KEYS), f"sha256={hex_mac(KEYS[secret], BODY)}"
    work.clear()
    assert verify(request(BODY, X_Hub_Signature_256=header))
    assert (work["hmac"], work["compare"]) == (2, 2)


def test_the_work_does_not_reveal_the_position_of_the_valid_signature(work):
    verify = stripe(KEYS)
    good, bad = hex_mac(KEYS[0], b"%d." % NOW + BODY), "0" * 64
    found = []
    for at in range(4):
        listed = [bad] * 4
        listed[at] = good
        work.clear()
        header = ",".join([f"t={NOW}", *(f"v1={one}" for one in listed)])
        assert verify(request(BODY, Stripe_Signature=header))
        found.append(dict(work))
    assert all(one == found[0] for one in found)
    assert (found[0]["hmac"], found[0]["compare"]) == (2, 8)


def test_the_work_does_not_reveal_the_matching_algorithm(work):
    verify = HMACSignature(
        KEYS, header="x", separator=" ", prefix="{algorithm}=", algorithm=("sha1", "sha512"), once=()
    )
    macs = {method: hex_mac(KEYS[0], BODY, method) for method in ("sha1", "sha512")}
    found = []
    for right in macs:
        listed = [f"{method}={mac if method == right else '0' * len(mac)}" for method, mac in macs.items()]
        work.clear()
        assert verify(request(BODY, x=" ".join(listed)))
        found.append(dict(work))
    assert found[0] == found[1]
    assert (found[0]["hmac"], found[0]["compare"]) == (4, 4)


def test_a_wrong_ed25519_signature_costs_one_verification_for_each_public_key(work):
    verify = standard_webhooks([PUBLIC, PUBLIC])
    signature = PRIVATE.sign(b"m.%d." % NOW + BODY)
    found = []
    for at in range(64):
        forged = bytearray(signature)
        forged[at] ^= 1
        header = "v1a," + base64.b64encode(forged).decode()
        found.append(done(work, verify, delivery(header)))
    assert all(one == found[0] for one in found)
    assert found[0]["ed25519"] == 2


def test_the_number_of_signatures_tried_for_a_header_is_limited(work):
    for kind, name, most in (("v1", "compare", 16), ("v1a", "ed25519", 4)):
        for number in (1, 4, 5, 16, 17, 1000):
            done(work, standard_webhooks([KEYS[0], PUBLIC]), delivery(f"{kind},AA " * number))
            assert work[name] <= most
            assert work["hmac"] <= 1


MIB = 1024 * 1024


@pytest.mark.parametrize("keys", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1_000, MIB // 8, MIB - 100, 3 * MIB])
def test_the_bytes_hashed_for_ed25519_signatures_are_limited_but_each_key_is_tried(work, keys, size):
    for number in (1, 2, 4, 5):
        headers = delivery("v1a,AA " * number).headers
        asked = WebhookRequest(headers=headers, body=b"x" * size, received_at=NOW)
        done(work, standard_webhooks([PUBLIC] * keys), asked)
        if number > 4:
            assert work["ed25519"] == 0
            continue
        signed = size + len(f"m.{NOW}.")
        assert work["bytes of ed25519"] <= max(2.1 * MIB, keys * signed)
        assert work["ed25519"] >= keys
        assert work["ed25519"] == keys * number or work["bytes of ed25519"] + keys * signed > 2 * MIB


def test_a_large_request_that_is_signed_by_the_old_and_the_new_key_passes_whichever_is_known():
    other = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
    body = b"x" * MIB
    signed = b"m.%d." % NOW + body
    signatures = ["v1a," + base64.b64encode(key.sign(signed)).decode() for key in (PRIVATE, other)]
    headers = delivery(" ".join(signatures)).headers
    asked = WebhookRequest(headers=headers, body=body, received_at=NOW)
    known = "whpk_" + base64.b64encode(other.public_key().public_bytes_raw()).decode()
    for keys in ([PUBLIC], [known], [PUBLIC, known], [known, PUBLIC]):
        assert standard_webhooks(keys)(asked)


TOKENS = {
    "a token in a header": (header_token, lambda token: request(X_Goog_Channel_Token=token)),
    "a bearer": (bearer, lambda token: request(Authorization=f"Bearer {token}")),
    "a token in a body": (token_in_body, lambda token: request(BODY % token.encode())),
    "a password": (
        lambda tokens: basic("u", tokens),
        lambda token: request(Authorization="Basic " + base64.b64encode(f"u:{token}".encode()).decode()),
    ),
}


@pytest.mark.parametrize(("verifier", "asked"), TOKENS.values(), ids=TOKENS)
def test_a_wrong_token_costs_one_comparison_for_each_configured_token(work, verifier, asked):
    tokens = ["s3cret-of-ours", "a-longer-one-of-ours"]
    verify = verifier(tokens)
    assert all(verify(asked(token)) for token in tokens)
    found = [done(work, verify, asked(one)) for one in wrong(tokens[0])]
    assert all(one == found[0] for one in found)
    assert (found[0]["compare"], found[0]["bytes of compare"], found[0]["sha256"]) == (2, 64, 1)
    for odd in ("x", "s3cret", tokens[0] + "0", tokens[0] * 9):
        done(work, verify, asked(odd))
        assert (work["compare"], work["bytes of compare"], work["sha256"]) == (2, 64, 1)


def test_the_work_for_a_batch_does_not_reveal_the_position_of_a_wrong_item(work):
    verify = token_in_body("ours")
    for at in range(5):
        states = ["ours"] * 5
        states[at] = "0urs"
        items = ",".join(f'{{"clientState": "{state}"}}' for state in states)
        done(work, verify, request(f'{{"value": [{items}]}}'.encode()))
        assert (work["compare"], work["sha256"]) == (5, 5)


SIZE = 256 * 1024


def filled(before, unit, after):
    """A body of at most `SIZE` bytes."""
    return before + unit * ((SIZE - len(before) - len(after)) // len(unit)) + after


USELESS = {
    "lists": filled(b"[", b"[],", b"[]]"),
    "lists as items": filled(b'{"value": [', b"[],", b"[]]}"),
    "objects": filled(b"[", b"{},", b"{}]"),
    "objects as items": filled(b'{"value": [', b"{},", b"{}]}"),
    "numbers": filled(b"[", b"1,", b"1]"),
    "fractions": filled(b"[", b"1e300,", b"1]"),  # msgspec takes 10 µs for each
    "one long number": filled(b'{"value": ', b"9", b"}"),
    "texts": filled(b"[", b'"",', b'""]'),
    "names": filled(b'{"value": [{', b'"":0,', b'"a":0}]}'),
    "names with escapes": filled(b'{"value": [{', b'"\\n":0,', b'"a":0}]}'),
    "the token's name again and again": filled(b'{"value": [{', b'"clientState":"",', b'"a":0}]}'),
    "the list's name again and again": filled(b"{", b'"value":[{"clientState":""}],', b'"a":0}'),
    "deep lists": filled(b"", b"[" * 400 + b"]" * 400 + b",", b""),
    "open lists": filled(b"", b"[", b""),
    "open objects": filled(b"", b'{"value":', b""),
    "lists in another field": filled(b'{"a": [', b"[],", b'[]], "value": [{"clientState": ""}]}'),
    "deep lists in another field": filled(b'{"a": [', b"[" * 400 + b"]" * 400 + b",", b"[]]}"),
    "fractions in another field": filled(b'{"a": [', b"1e300,", b'1], "value": [{"clientState": ""}]}'),
    "a text in another field": filled(b'{"a": "', b"\\u00e9", b'", "value": [{"clientState": ""}]}'),
}


def memory_of(function, *arguments):
    """Peak of bytes that a call allocates, without its arguments."""
    tracemalloc.start()
    try:
        assert not function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("body", USELESS.values(), ids=USELESS)
def test_only_the_value_at_the_path_of_the_token_is_built_from_a_body(work, body):
    verify, asked = token_in_body("ours"), request(body)
    assert memory_of(verify, asked) <= SIZE / 50
    assert done(work, verify, asked).get("compare", 0) <= 1


@pytest.mark.parametrize("text", [b"", b"a" * 64, b"\\u00e9" * 64])
def test_a_body_of_many_items_takes_a_few_times_its_own_memory_and_a_limited_number_of_comparisons(work, text):
    item = b'{"clientState": "%s"}' % text
    verify, asked = token_in_body("ours"), request(filled(b'{"value": [', item + b",", item + b"]}"))
    assert memory_of(verify, asked) <= 4 * SIZE
    assert done(work, verify, asked)["compare"] <= 1001


def test_no_digest_is_computed_for_a_request_with_unusable_headers(work):
    old = {"stripe-signature": f"t={NOW - 301},v1={'0' * 64}"}
    for verify, headers in (
        (github(KEYS), {}),
        (stripe(KEYS), old),
        (websub(KEYS), {"x-hub-signature": "md5=" + "0" * 32}),
        (standard_webhooks(KEYS), delivery("v2,AA").headers),
    ):
        asked = WebhookRequest(headers=headers, body=BODY, received_at=NOW)
        assert not verify.may_pass(asked)
        assert done(work, verify, asked) == {}
