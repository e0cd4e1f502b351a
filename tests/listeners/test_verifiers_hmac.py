"""Declared HMAC: the vendors' examples are verified, and other signatures are rejected."""

import pytest

from push_to_poll_client.listeners.verifiers import (
    HMACSignature,
    Verified,
    dropbox,
    github,
    standard_webhooks,
    stripe,
    websub,
)
from tests.support.signing import NOW, b64_mac, hex_mac, request

SECRET = "It's a Secret to Everybody"
BODY = b"Hello, World!"
PUBLISHED = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
"""The values in docs.github.com."""

# The vendors


def test_the_example_signature_published_by_github_is_verified():
    assert github(SECRET)(request(BODY, X_Hub_Signature_256=f"sha256={PUBLISHED}"))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "sha256=",
        PUBLISHED,
        f"sha256={PUBLISHED[:-1]}",
        f"sha256={PUBLISHED}0",
        f"sha256={PUBLISHED[:-1]}8",
        f" sha256={PUBLISHED}",
        f"sha256={PUBLISHED} ",
        f"sha256= {PUBLISHED}",
        f"sha1={PUBLISHED}",
        f"SHA256={PUBLISHED}",
        f"sha256={PUBLISHED}, sha256={PUBLISHED}",
        f"sha256={'é' * 64}",
        "sha256=" + "\uff17" * 64,
        f"sha256={PUBLISHED[:-1]}\udc80",
        "sha256=" + "0" * 100_000,
    ],
)
def test_a_malformed_or_wrong_github_signature_is_refused(header):
    assert not github(SECRET)(request(BODY, X_Hub_Signature_256=header))


def test_an_unsigned_request_is_refused():
    for verify in (github(SECRET), stripe(SECRET), dropbox(SECRET), websub(SECRET)):
        assert verify(request(BODY)) is None
        assert not verify.may_pass(request(BODY))


def test_a_signature_is_checked_against_the_received_bytes():
    for body in (BODY + b"\n", BODY[:-1], b"", "Hello, Wörld!".encode()):
        assert not github(SECRET)(request(body, X_Hub_Signature_256=f"sha256={PUBLISHED}"))
    for body in (b"", b"\xff\x00\xfe", bytes(range(256)) * 1000):
        signature = hex_mac(SECRET.encode(), body)
        assert github(SECRET)(request(body, X_Hub_Signature_256=f"sha256={signature}"))


def test_hex_may_be_in_capitals():
    assert github(SECRET)(request(BODY, X_Hub_Signature_256=f"sha256={PUBLISHED.upper()}"))


def test_a_stripe_signature_covers_the_timestamp_and_the_body():
    signature = hex_mac(b"whsec_abc", b"1700000000.{}")
    header = f"t=1700000000,v1={signature},v0=5257a869"
    assert stripe("whsec_abc")(request(b"{}", Stripe_Signature=header))
    assert not stripe("abc")(request(b"{}", Stripe_Signature=header)), "the prefix is part of the secret"
    assert not stripe("whsec_abc")(request(b"{}", Stripe_Signature=header.replace("t=17", "t=18")))


def test_a_stripe_header_with_two_signatures_passes_with_either_secret():
    old, new = (hex_mac(secret, b"1700000000.{}") for secret in (b"old", b"new"))
    for header in (f"t=1700000000,v1={old},v1={new}", f"v1={new},v1={old},t=1700000000"):
        for secrets in ("old", "new", ["other", "old"], [b"new", "other"]):
            assert stripe(secrets)(request(b"{}", Stripe_Signature=header))
        assert not stripe(["other", "another"])(request(b"{}", Stripe_Signature=header))


@pytest.mark.parametrize(
    "layout",
    ["v1={mac}", "t=,v1={mac}", "t=1700000000,t=1700000000,v1={mac}", "t=1700000000", "t=1700000000 v1={mac}"],
)
def test_a_stripe_header_with_a_missing_or_repeated_field_is_refused(layout):
    header = layout.format(mac=hex_mac(b"s", b"1700000000.{}"))
    assert not stripe("s")(request(b"{}", Stripe_Signature=header))
    assert not stripe("s").may_pass(request(b"{}", Stripe_Signature=header))


def test_a_signature_list_of_more_than_16_items_is_refused():
    good = f"t=1700000000,v1={hex_mac(b's', b'1700000000.{}')}"
    assert stripe("s")(request(b"{}", Stripe_Signature=good + ",v1=0" * 14))
    assert not stripe("s")(request(b"{}", Stripe_Signature=good + ",v1=0" * 15))


def test_a_signature_header_that_was_received_twice_is_refused():
    good = f"t=1700000000,v1={hex_mac(b's', b'1700000000.{}')}"
    assert not stripe("s")(request(b"{}", Stripe_Signature=f"v1=0, {good}"))
    assert not github(SECRET)(request(BODY, X_Hub_Signature_256=f"sha256={PUBLISHED}, sha256={'0' * 64}"))


def test_dropbox_signs_the_body_in_bare_hex():
    assert dropbox(SECRET)(request(BODY, X_Dropbox_Signature=PUBLISHED)) == Verified()


@pytest.mark.parametrize("method", ["sha1", "sha256", "sha384", "sha512"])
def test_a_websub_signature_must_match_the_method_stated_by_the_hub(method):
    mac = hex_mac(b"s", BODY, method)
    assert websub("s")(request(BODY, X_Hub_Signature=f"{method}={mac}")) == Verified()
    for other in {"sha1", "sha256", "sha384", "sha512", "md5", "", "sha3_256", "sha224"} - {method}:
        assert not websub("s")(request(BODY, X_Hub_Signature=f"{other}={mac}"))


def test_a_method_that_websub_does_not_have_is_refused():
    for method in ("md5", "sha224", "sha3_256"):
        header = f"{method}={hex_mac(b's', BODY, method)}"
        assert not websub("s")(request(BODY, X_Hub_Signature=header))
        assert not websub("s").may_pass(request(BODY, X_Hub_Signature=header))


# Vendors of one line each


OTHERS = {
    "Shopify": (
        HMACSignature("s", header="X-Shopify-Hmac-SHA256", encoding="base64"),
        {"X_Shopify_Hmac_SHA256": b64_mac(b"s", BODY)},
    ),
    "Slack": (
        HMACSignature(
            "s",
            header="X-Slack-Signature",
            prefix="v0=",
            signed="v0:{timestamp}:{body}",
            timestamp="X-Slack-Request-Timestamp",
        ),
        {
            "X_Slack_Signature": "v0=" + hex_mac(b"s", b"v0:1700000000:" + BODY),
            "X_Slack_Request_Timestamp": "1700000000",
        },
    ),
    "Zoom": (
        HMACSignature(
            "s",
            header="x-zm-signature",
            prefix="v0=",
            signed="v0:{timestamp}:{body}",
            timestamp="x-zm-request-timestamp",
        ),
        {
            "x_zm_signature": "v0=" + hex_mac(b"s", b"v0:1700000000:" + BODY),
            "x_zm_request_timestamp": "1700000000",
        },
    ),
    "Linear, whose body has the millisecond in it": (
        HMACSignature("s", header="Linear-Signature", once=["{body}"]),
        {"Linear_Signature": hex_mac(b"s", BODY)},
    ),
    "Paddle": (
        HMACSignature(
            "s",
            header="Paddle-Signature",
            separator=";",
            prefix="h1=",
            timestamp="ts=",
            signed="{timestamp}:{body}",
        ),
        {"Paddle_Signature": "ts=1700000000;h1=" + hex_mac(b"s", b"1700000000:" + BODY)},
    ),
    "Webflow, in milliseconds": (
        HMACSignature(
            "s",
            header="x-webflow-signature",
            timestamp="x-webflow-timestamp",
            timestamp_unit=0.001,
            signed="{timestamp}:{body}",
        ),
        {
            "x_webflow_signature": hex_mac(b"s", b"1700000000123:" + BODY),
            "x_webflow_timestamp": "1700000000123",
        },
    ),
    "Square, which signs its own address": (
        HMACSignature(
            "s",
            header="x-square-hmacsha256-signature",
            encoding="base64",
            signed="https://us.example/hook{body}",
        ),
        {"x_square_hmacsha256_signature": b64_mac(b"s", b"https://us.example/hook" + BODY)},
    ),
    "Standard Webhooks, by hand": (
        HMACSignature(
            b"key",
            header="webhook-signature",
            separator=" ",
            prefix="v1,",
            encoding="base64",
            timestamp="webhook-timestamp",
            signed="{webhook-id}.{timestamp}.{body}",
            once=["{webhook-id}", "{signed}"],
        ),
        {
            "webhook_id": "msg_1",
            "webhook_timestamp": "1700000000",
            "webhook_signature": "v1,AAAA v1," + b64_mac(b"key", b"msg_1.1700000000." + BODY),
        },
    ),
}


@pytest.mark.parametrize(("verify", "headers"), OTHERS.values(), ids=OTHERS)
def test_a_declared_hmac_signature_verifies_requests_of_each_vendor(verify, headers):
    assert verify.may_pass(request(BODY, **headers))
    assert verify(request(BODY, **headers))
    assert not verify(request(BODY + b"!", **headers))
    for missing in headers:
        assert not verify(request(BODY, **{name: value for name, value in headers.items() if name != missing}))


@pytest.mark.parametrize(
    "name", ["Slack", "Zoom", "Paddle", "Webflow, in milliseconds", "Standard Webhooks, by hand"]
)
def test_a_declared_signature_with_a_timestamp_is_refused_outside_the_tolerance(name):
    verify, headers = OTHERS[name]
    assert verify(request(BODY, at=NOW + 299, **headers)).until == pytest.approx(NOW + 301, abs=1)
    assert not verify(request(BODY, at=NOW + 302, **headers))
    assert not verify(request(BODY, at=NOW - 302, **headers))


def test_doubled_braces_in_a_template_stand_for_single_braces():
    verify = HMACSignature("s", header="x", signed="{{{body}}}")
    assert verify(request(b"b", x=hex_mac(b"s", b"{b}")))


def test_a_signed_header_is_verified_as_its_received_bytes():
    verify = HMACSignature("s", header="x", signed="{x-id}{body}")
    assert verify(request(b"b", x=hex_mac(b"s", "é".encode() + b"b"), X_Id="é".encode().decode("latin-1")))
    for value in ("", "\uff17", "\udc80"):
        assert not verify(request(b"b", x=hex_mac(b"s", value.encode("utf-8", "replace") + b"b"), X_Id=value))


# Time


def stripe_at(timestamp, *, at, by="s", **arguments):
    header = f"t={timestamp},v1={hex_mac(by.encode(), f'{timestamp}.'.encode())}"
    return stripe(by, **arguments)(request(Stripe_Signature=header, at=at))


@pytest.mark.parametrize("away", [0, 1, -1, 299.5, 300, -300])
def test_a_timestamp_within_the_tolerance_is_accepted(away):
    assert stripe_at(NOW, at=NOW + away)


@pytest.mark.parametrize("away", [300.001, 301, -300.001, -301, 1e9, -1e9])
def test_a_timestamp_beyond_the_tolerance_is_refused(away):
    assert not stripe_at(NOW, at=NOW + away)


def test_the_tolerance_can_be_set():
    assert stripe_at(NOW, at=NOW + 10, tolerance=10)
    assert not stripe_at(NOW, at=NOW - 11, tolerance=10)


def test_a_request_repeated_at_its_until_time_is_refused():
    for away in (-300, 0, 0.25, 300):
        until = stripe_at(NOW, at=NOW + away).until
        assert until == NOW + 301
        assert not stripe_at(NOW, at=until)


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        "0",
        "1700000000.0",
        "1.7e9",
        "+1700000000",
        "-1700000000",
        " 1700000000",
        "1700000000 ",
        "1700000000\n",
        "01700000000",
        "1_700_000_000",
        "0x6553f100",
        "\uff11\uff17\uff10\uff10\uff10\uff10\uff10\uff10\uff10\uff10",
        "\u0661\u0667\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660",
        "nan",
        "inf",
        "9" * 5000,
        "1700000000\udc80",
    ],
)
def test_a_timestamp_that_is_not_a_plain_positive_integer_is_refused(timestamp):
    slack, _ = OTHERS["Slack"]
    mac = hex_mac(b"s", f"v0:{timestamp}:".encode("utf-8", "replace"))
    headers = {"X_Slack_Request_Timestamp": timestamp, "X_Slack_Signature": f"v0={mac}"}
    for at in (NOW, 0):
        assert not slack.may_pass(request(at=at, **headers))
        assert not slack(request(at=at, **headers))


def test_an_expired_timestamp_is_refused_before_the_body_is_read():
    header = "t=1700000000,v1=0"
    assert stripe("s").may_pass(request(Stripe_Signature=header))
    assert not stripe("s").may_pass(request(Stripe_Signature=header, at=NOW + 301))


# Replays


def from_github(body, delivery):
    headers = {} if delivery is None else {"X_GitHub_Delivery": delivery}
    signature = f"sha256={hex_mac(b's', body)}"
    return github("s")(request(body, X_Hub_Signature_256=signature, **headers))


def test_a_github_request_with_a_known_body_or_delivery_id_is_a_repeat():
    first = from_github(b"{}", "id-1")
    assert first.until is None
    assert len(first.once) == 2
    assert set(from_github(b"{}", "id-1").once) == set(first.once)
    assert len(set(from_github(b"{}", "id-2").once) & set(first.once)) == 1, "the id is not signed"
    assert len(set(from_github(b"[]", "id-1").once) & set(first.once)) == 1, "a redelivery keeps it"
    assert not set(from_github(b"[]", "id-2").once) & set(first.once)


def test_a_github_delivery_without_an_id_is_recognised_by_its_body_only():
    for delivery in (None, ""):
        assert len(from_github(b"{}", delivery).once) == 1
    assert not set(from_github(b"{}", "").once) & set(from_github(b"[]", "").once)


def test_a_body_equal_to_a_known_delivery_id_is_not_a_repeat():
    assert not set(from_github(b"id-1", None).once) & set(from_github(b"{}", "id-1").once)


def test_remembered_digests_have_a_fixed_length():
    assert all(len(text) == 32 for text in from_github(b"x" * 100_000, "y" * 10_000).once)


def test_a_request_with_a_signed_timestamp_is_recognised_by_its_signed_text():
    first = stripe_at(NOW, at=NOW)
    assert first.once == stripe_at(NOW, at=NOW + 5).once
    assert first.once == stripe_at(NOW, at=NOW, by="other").once, "by whichever of two secrets"
    assert not set(first.once) & set(stripe_at(NOW + 1, at=NOW).once)


def test_a_request_without_a_signed_id_or_timestamp_is_never_a_repeat():
    for verify, name in ((dropbox("s"), "X_Dropbox_Signature"), (HMACSignature("s", header="x"), "x")):
        assert verify(request(BODY, **{name: hex_mac(b"s", BODY)})) == Verified((), None)


def test_once_can_combine_the_body_and_the_delivery_id():
    verify = HMACSignature("s", header="X-Hub-Signature-256", prefix="sha256=", once=["{body}{x-github-delivery}"])

    def once(delivery):
        headers = {"X_Hub_Signature_256": f"sha256={hex_mac(b's', BODY)}", "X_GitHub_Delivery": delivery}
        return verify(request(BODY, **headers)).once

    assert once("a") == once("a") != once("b")


# Invalid declarations


SECRETS_THAT_ARE_NONE = [
    ("", ValueError, "empty"),
    (b"", ValueError, "empty"),
    ([], ValueError, "at least one secret is required"),
    ((), ValueError, "at least one secret is required"),
    (["good", ""], ValueError, "empty"),
    ("canary\n", ValueError, "white space"),
    (" canary", ValueError, "white space"),
    (None, TypeError, "got NoneType"),
    (5, TypeError, "got int"),
    ([None], TypeError, "got NoneType"),
    ({"canary"}, TypeError, "got set"),
]


@pytest.mark.parametrize(("secrets", "error", "text"), SECRETS_THAT_ARE_NONE)
@pytest.mark.parametrize("vendor", [github, stripe, dropbox, websub, standard_webhooks])
def test_an_invalid_secret_is_refused_and_not_shown(vendor, secrets, error, text):
    with pytest.raises(error, match=text) as caught:
        vendor(secrets)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"header": "no header"}, ValueError, "not a valid header name"),
        ({"header": ""}, ValueError, "not a valid header name"),
        ({"header": None}, TypeError, "a str, got NoneType"),
        ({"prefix": None}, TypeError, "prefix must be a str"),
        ({"separator": ""}, ValueError, "separator must not be empty"),
        ({"separator": 1}, TypeError, "separator must be"),
        ({"algorithm": "md5"}, ValueError, "got 'md5'"),
        ({"algorithm": ("sha1", "sha256")}, ValueError, "prefix must contain"),
        ({"algorithm": ()}, ValueError, "prefix must contain"),
        ({"encoding": "base32"}, ValueError, "hex or base64"),
        ({"signed": "{timestamp}"}, ValueError, "must contain {body}"),
        ({"signed": "{timestamp}{body}"}, ValueError, "must contain {timestamp}"),
        ({"signed": "{body}", "timestamp": "x-time"}, ValueError, "must contain {timestamp}"),
        ({"signed": "{body"}, ValueError, "expected '}'"),
        ({"signed": "{body!r}"}, ValueError, "braces must contain a plain name"),
        ({"signed": "{body:>9}"}, ValueError, "braces must contain a plain name"),
        ({"signed": "{}{body}"}, ValueError, "not a valid header name"),
        ({"signed": 5}, TypeError, "a str, got int"),
        ({"timestamp": "t="}, ValueError, "not a valid header name"),
        ({"timestamp": ""}, ValueError, "not a valid header name"),
        ({"timestamp": 5, "separator": ","}, TypeError, "a str, got int"),
        ({"timestamp_unit": 0}, ValueError, "timestamp_unit"),
        ({"tolerance": 0}, ValueError, "tolerance"),
        ({"tolerance": None}, TypeError, "tolerance"),
        ({"tolerance": float("inf")}, ValueError, "tolerance"),
        ({"once": "{body}"}, TypeError, "sequence of templates"),
    ],
)
def test_invalid_arguments_are_refused_at_construction(arguments, error, text):
    with pytest.raises(error, match=text):
        HMACSignature("canary", **{"header": "x", **arguments})


def test_repr_does_not_show_secrets():
    for verify in (github(["canary", "canary-2"]), stripe("canary"), websub(b"canary")):
        assert "canary" not in repr(verify)


def test_a_secret_is_used_unchanged():
    for secret in ("s", "ключ", b"\x00\xff", "x" * 1000):
        key = secret.encode() if isinstance(secret, str) else secret
        assert dropbox(secret)(request(BODY, X_Dropbox_Signature=hex_mac(key, BODY)))
