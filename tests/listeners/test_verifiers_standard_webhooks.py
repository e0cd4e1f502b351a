"""Standard Webhooks and Svix: a shared secret or a public key, with either set of header names."""

import base64
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from push_to_poll_client.listeners.verifiers import standard_webhooks, svix
from tests.support.signing import NOW, b64_mac, request

KEY = b"0123456789abcdefghijklmn"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OTHER = "whsec_" + base64.b64encode(b"another" * 4).decode()
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = "whpk_" + base64.b64encode(PRIVATE.public_key().public_bytes_raw()).decode()
ELSES = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
BODY = b'{"type":"order.created"}'


def v1(body=BODY, *, message_id="msg_1", at=NOW, key=KEY):
    return "v1," + b64_mac(key, f"{message_id}.{at}.".encode() + body)


def v1a(body=BODY, *, message_id="msg_1", at=NOW, key=PRIVATE):
    return "v1a," + base64.b64encode(key.sign(f"{message_id}.{at}.".encode() + body)).decode()


def delivery(signature, *, body=BODY, message_id="msg_1", at=NOW, received=NOW, names="webhook"):
    headers = {f"{names}_id": message_id, f"{names}_timestamp": str(at), f"{names}_signature": signature}
    return request(body, at=received, **headers)


def test_a_signature_with_the_shared_secret_verifies():
    assert standard_webhooks(SECRET)(delivery(v1()))
    assert not standard_webhooks(OTHER)(delivery(v1()))


def test_the_example_of_svix_verifies():
    """docs.svix.com, "Verifying webhooks manually"."""
    headers = {
        "svix_id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "svix_timestamp": "1614265330",
        "svix_signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    verify = svix("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert verify(request(b'{"test": 2432232314}', at=1614265330, **headers))
    assert not verify(request(b'{"test": 2432232315}', at=1614265330, **headers))


def test_a_signature_with_the_private_key_verifies_by_the_public_key():
    assert standard_webhooks(PUBLIC)(delivery(v1a()))
    assert not standard_webhooks(PUBLIC)(delivery(v1a(key=ELSES)))
    assert not standard_webhooks(PUBLIC)(delivery(v1a(b"{}")))


def test_a_signature_is_accepted_only_under_its_own_version():
    assert not standard_webhooks(PUBLIC)(delivery(v1()))
    assert not standard_webhooks(SECRET)(delivery(v1a()))
    assert not standard_webhooks(SECRET)(delivery(v1().replace("v1,", "v1a,")))
    assert not standard_webhooks(PUBLIC)(delivery(v1a().replace("v1a,", "v1,")))
    for version in ("v2", "V1", "", "v1 ", "v"):
        assert not standard_webhooks(SECRET)(delivery(v1().replace("v1", version)))


def test_the_public_key_is_not_accepted_as_a_shared_secret():
    forged = v1(key=PRIVATE.public_key().public_bytes_raw())
    assert not standard_webhooks(PUBLIC)(delivery(forged))
    assert not standard_webhooks([PUBLIC, SECRET])(delivery(forged))


@pytest.mark.parametrize("good", [v1(), v1a()])
def test_one_good_signature_of_a_list_is_enough(good):
    verify = standard_webhooks([OTHER, SECRET, PUBLIC])
    bad = v1(key=b"x"), v1a(key=ELSES), "v2,abc", "v1", "v1,", "v1a,=", "", "junk", ",", "v1a,é"
    for other in bad:
        assert verify(delivery(f"{good} {other}"))
        assert verify(delivery(f"{other} {good}"))
        assert not verify(delivery(f"{other} {other}"))


def test_only_a_limited_number_of_signatures_is_checked():
    verify = standard_webhooks([SECRET, PUBLIC])
    assert verify(delivery(" ".join([*(["v1,"] * 15), v1()])))
    assert not verify(delivery(" ".join([*(["v1,"] * 16), v1()])))
    assert verify(delivery(" ".join([*(["v1a,"] * 3), v1a()])))
    assert not verify(delivery(" ".join([*(["v1a,"] * 4), v1a()])))


@pytest.mark.parametrize(
    "signature",
    [
        v1().rstrip("="),
        v1() + "=",
        v1().replace("v1,", "v1, "),
        v1().replace("v1,", "v1,\n"),
        v1() + "\n",
        v1().replace(",", ""),
        v1()[:-5],
        f"{v1()}, v1,AAAA",
        v1a()[:-3],
        v1a() + "A",
        v1a().replace("v1a,", "v1a, "),
        v1a().replace("v1a,", "v1a,AAAA"),
    ],
)
def test_another_spelling_of_a_good_signature_is_refused(signature):
    assert not standard_webhooks([SECRET, PUBLIC])(delivery(signature))


def test_a_changed_body_id_or_timestamp_is_refused():
    verify = standard_webhooks(SECRET)
    assert not verify(delivery(v1(), body=BODY + b" "))
    assert not verify(delivery(v1(), message_id="msg_2"))
    assert not verify(delivery(v1(), at=NOW + 1))
    assert verify(delivery(v1(b"\xff\x00"), body=b"\xff\x00"))


def test_a_missing_or_empty_header_is_refused():
    verify = standard_webhooks(SECRET)
    whole = delivery(v1())
    for name in whole.headers:
        for headers in (
            {other: value for other, value in whole.headers.items() if other != name},
            {**whole.headers, name: ""},
        ):
            lacking = request(BODY, **{key.replace("-", "_"): value for key, value in headers.items()})
            assert verify(lacking) is None
            assert not verify.may_pass(lacking) or name == "webhook-id"


def test_an_empty_message_id_is_refused_although_it_is_signed():
    assert not standard_webhooks(SECRET)(delivery(v1(message_id=""), message_id=""))


@pytest.mark.parametrize("away", [-301, 301])
def test_the_tolerance_applies_to_past_and_future_timestamps(away):
    verify = standard_webhooks(SECRET)
    assert verify(delivery(v1(), received=NOW + away // 2))
    assert verify.may_pass(delivery(v1(), received=NOW + away // 2))
    assert not verify(delivery(v1(), received=NOW + away))
    assert not verify.may_pass(delivery(v1(), received=NOW + away))
    assert standard_webhooks(SECRET, tolerance=301)(delivery(v1(), received=NOW + away))
    assert svix(SECRET, tolerance=301)(delivery(v1(), received=NOW + away))


def test_svix_accepts_its_own_header_names_and_the_standard_ones():
    own, standard = delivery(v1(), names="svix"), delivery(v1())
    for whole in (own, standard):
        assert svix(SECRET).may_pass(whole)
        assert svix(SECRET)(whole)
    assert not svix(SECRET).may_pass(request(BODY))
    assert standard_webhooks(SECRET)(standard)
    assert not standard_webhooks(SECRET)(own)


def test_mixed_header_names_are_refused():
    mixed = request(BODY, svix_id="msg_1", webhook_timestamp=str(NOW), svix_signature=v1())
    assert not svix(SECRET)(mixed)


# Replays


def once(verify=None, **changed):
    verify = verify or standard_webhooks([SECRET, PUBLIC])
    of = {name: changed[name] for name in ("message_id", "at") if name in changed}
    return verify(delivery(changed.get("signature") or v1(**of), **of)).once


def test_a_retry_with_the_same_id_is_recognised_as_a_repetition():
    assert set(once(at=NOW + 5)) & set(once())
    assert not set(once(message_id="msg_2")) & set(once())


def test_a_verified_request_expires_after_the_tolerance_and_a_later_retry_verifies():
    verify = standard_webhooks(SECRET)
    assert verify(delivery(v1())).until == NOW + 301
    assert not verify(delivery(v1(), received=NOW + 301))
    assert verify(delivery(v1(at=NOW + 1805), at=NOW + 1805, received=NOW + 1805)).until == NOW + 1805 + 301


def test_the_identity_of_a_request_does_not_depend_on_the_signing_key():
    assert once(signature=v1a()) == once() == once(svix([OTHER, SECRET]), signature=f"{v1a()} {v1()}")


def test_moving_the_boundary_between_id_and_body_does_not_hide_a_repetition():
    """The signed text does not show where an id ends if the id may contain dots."""
    whole = v1(b"body", message_id=f"a.{NOW}.b")
    first = standard_webhooks(SECRET)(delivery(whole, message_id=f"a.{NOW}.b", body=b"body"))
    cut = standard_webhooks(SECRET)(delivery(whole, message_id="a", body=f"b.{NOW}.body".encode()))
    assert set(first.once) & set(cut.once)


# Secrets


def test_a_secret_may_be_spelled_in_several_ways():
    text = base64.b64encode(b"\xfb\xff" * 13).decode()
    key = b"\xfb\xff" * 13
    for secret in (f"whsec_{text}", text, f"whsec_{text.rstrip('=')}", key):
        assert standard_webhooks(secret)(delivery(v1(key=key)))


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("whsec_", "empty"),
        ("whpk_", "empty"),
        ("whsec_canary!", "not Base64"),
        ("whsec_canary canary", "not Base64"),
        ("ключ", "not Base64"),
        ("whpk_canary", "not Base64|32 bytes"),
        ("whpk_" + base64.b64encode(b"\0" * 32).decode(), "anyone can sign for it"),
        ("whsk_" + base64.b64encode(b"canary").decode(), "private key"),
    ],
)
def test_an_invalid_key_is_a_value_error_that_does_not_show_the_key(secret, text):
    with pytest.raises(ValueError, match=text) as caught:
        standard_webhooks([SECRET, secret])
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_tolerance_must_be_a_number_above_0():
    for tolerance in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="tolerance"):
            standard_webhooks(SECRET, tolerance=tolerance)


def test_the_repr_of_a_verifier_shows_no_secret():
    for verify in (standard_webhooks([SECRET, PUBLIC]), svix(SECRET)):
        assert SECRET not in repr(verify)


def test_a_public_key_without_cryptography_installed_is_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    standard_webhooks(SECRET)
    with pytest.raises(ImportError, match=r"push-to-poll-client\[crypto\]"):
        standard_webhooks(PUBLIC)
