"""Tokens and passwords in headers and bodies, no verification, and custom verifiers."""

import base64
import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from push_to_poll_client.listeners.verifiers import (
    WebhookRequest,
    basic,
    bearer,
    header_token,
    no_verification,
    token_in_body,
)
from push_to_poll_client.listeners.verifiers._tokens import MAX_ITEMS
from tests.support.signing import NOW, request

# Headers


def test_a_google_channel_token_must_match_exactly():
    verify = header_token("target=calendar&key=s3cret")
    assert verify(request(X_Goog_Channel_Token="target=calendar&key=s3cret"))
    for other in ("", "target=calendar", "target=calendar&key=S3cret", "target=calendar&key=s3cret "):
        assert not verify(request(X_Goog_Channel_Token=other))
    assert not verify(request())


@pytest.mark.parametrize("header", ["X-Telegram-Bot-Api-Secret-Token", "X-Gitlab-Token"])
def test_the_header_of_a_token_can_be_chosen(header):
    assert header_token("abc", header)(WebhookRequest(headers={header.lower(): "abc"}))
    assert not header_token("abc", header)(request(X_Goog_Channel_Token="abc"))


def test_a_token_that_was_received_twice_is_refused():
    assert not header_token("abc")(request(X_Goog_Channel_Token="abc, abc"))


def test_each_of_several_tokens_is_accepted():
    verify = header_token(["old", b"new"])
    assert verify(request(X_Goog_Channel_Token="old"))
    assert verify(request(X_Goog_Channel_Token="new"))
    assert not verify(request(X_Goog_Channel_Token="oldnew"))


def test_a_token_is_compared_as_its_received_bytes():
    verify = header_token("schlüssel")
    assert verify(request(X_Goog_Channel_Token="schlüssel".encode().decode("latin-1")))
    for other in ("schlüssel", "ключ", "\udc80"):
        assert not verify(request(X_Goog_Channel_Token=other))


def test_may_pass_gives_the_final_result_for_tokens_in_headers():
    for verify in (header_token("abc", "authorization"), bearer("abc"), basic("u", "p")):
        for value in ("abc", "Bearer abc", "Basic dTpw", "Bearer abd"):
            asked = request(Authorization=value)
            assert verify.may_pass(asked) == verify(asked)


@pytest.mark.parametrize("value", ["Bearer abc", "bearer abc", "BEARER   abc"])
def test_a_bearer_token_is_accepted_in_any_case_of_its_scheme(value):
    assert bearer(["x", "abc"])(request(Authorization=value))


@pytest.mark.parametrize(
    "value", ["", "abc", "Bearer", "Bearer ", "Bearerabc", "Basic abc", "Bearer abc, Bearer abc", "Bearer\tabc"]
)
def test_a_malformed_bearer_header_is_refused(value):
    assert not bearer("abc")(request(Authorization=value))
    assert not bearer("abc")(request())


def test_the_examples_of_rfc_7617_pass():
    assert basic("Aladdin", "open sesame")(request(Authorization="Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="))
    assert basic("test", "123£")(request(Authorization="Basic dGVzdDoxMjPCow=="))


def test_basic_credentials_must_match_user_and_password_exactly():
    def sent(text):
        return request(Authorization="Basic " + base64.b64encode(text).decode())

    verify = basic("user", ["old:x", "new"])
    assert verify(sent(b"user:old:x"))
    assert verify(sent(b"user:new"))
    for other in (b"user:", b"user", b"user:newer", b"User:new", b":new", b"user:new\0", b""):
        assert not verify(sent(other))
    assert basic("", "p")(sent(b":p"))


@pytest.mark.parametrize(
    ("made", "error", "text"),
    [
        (lambda: basic("a:b", "p"), ValueError, "colon"),
        (lambda: basic(b"a", "p"), TypeError, "got bytes"),
        (lambda: basic("a", ""), ValueError, "empty"),
        (lambda: bearer([]), ValueError, "at least one secret is required"),
        (lambda: bearer(None), TypeError, "NoneType"),
        (lambda: header_token(""), ValueError, "empty"),
        (lambda: header_token("t", "no header"), ValueError, "not a valid header name"),
        (lambda: token_in_body(""), ValueError, "empty"),
        (lambda: token_in_body("t", "value..x"), ValueError, "a path must be names"),
        (lambda: token_in_body("t", None), TypeError, "path must be a str"),
        (lambda: token_in_body("t", 'value."x"'), ValueError, "a step of a path must not contain quotes"),
    ],
)
def test_invalid_arguments_are_refused_at_construction(made, error, text):
    with pytest.raises(error, match=text):
        made()


def test_repr_does_not_show_tokens():
    for verify in (header_token("canary"), bearer("canary"), basic("u", "canary"), token_in_body("canary")):
        assert "canary" not in repr(verify)


# Bodies


def graph(*items, **beside):
    return request(json.dumps({"value": list(items), **beside}).encode())


def item(state, **beside):
    return {"subscriptionId": "7f105c7d", "clientState": state, "resource": "users/1/messages", **beside}


def test_each_item_of_a_batch_must_have_the_token():
    verify = token_in_body(["one", "two"])
    assert verify(graph(item("one")))
    assert verify(graph(item("one"), item("two"), item("one")))
    assert not verify(graph(item("one"), item("three")))
    assert not verify(graph(item("three"), item("one")))
    assert verify(graph(item("one", lifecycleEvent="missed"), validationTokens=["eyJ"]))


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"clientState": None},
        {"clientState": ""},
        {"clientState": 1},
        {"clientState": True},
        {"clientState": []},
        {"clientState": ["one", "three"]},
        {"clientState": ["one"]},
        {"clientState": {"clientState": "one"}},
        {"ClientState": "one"},
        None,
        "one",
        1,
        [],
        [item("one")],
    ],
)
def test_a_batch_with_one_item_without_the_token_is_refused(odd):
    verify = token_in_body("one")
    assert not verify(graph(odd))
    assert not verify(graph(item("one"), odd))
    assert not verify(graph(odd, item("one")))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"one"',
        b'{"value": []}',
        b'{"value": "one"}',
        b'{"value": null}',
        b'{"clientState": "one"}',
        b'{"value": [{"clientState": "one"}]',
        b'{"value": [{"clientState": "one"}]}]',
        b'{"value": [{"clientState": "one"}], "value": [{"clientState": "three"}]}',
        b'\xef\xbb\xbf{"value": [{"clientState": "one"}]}',
        b'{"value": [{"clientState": "one\xff"}]}',
        b'{"value": [{"clientState": "\\ud800"}]}',
        b"[" * 100_000,
        b'{"value":' * 100_000,
    ],
)
def test_a_body_that_is_not_a_batch_with_the_token_is_refused(body):
    assert not token_in_body("one")(request(body))


def test_a_batch_of_more_than_max_items_is_refused():
    assert token_in_body("one")(graph(*[item("one")] * MAX_ITEMS))
    assert not token_in_body("one")(graph(*[item("one")] * (MAX_ITEMS + 1)))


def test_the_path_of_the_token_in_the_body_can_be_chosen():
    assert token_in_body("one", "token")(request(b'{"token": "one"}'))
    assert token_in_body("one", "token")(request(b'[{"token": "one"}, {"token": "one"}]'))
    assert not token_in_body("one", "token")(request(b'[{"token": "one"}, {}]'))
    assert token_in_body("schlüssel", "a.b")(request('{"a": {"b": "schlüssel"}}'.encode()))
    assert token_in_body("one", "@odata.class.é")(request('{"@odata": {"class": {"é": "one"}}}'.encode()))


def test_a_name_on_the_path_may_be_written_with_escapes():
    assert token_in_body("one")(request(rb'{"v\u0061lue": [{"client\u0053tate": "\u006fne"}]}'))


# No verification, and custom verifiers


def test_every_request_passes_if_verification_is_turned_off():
    assert no_verification()(request()) is True


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHA256 = hashes.SHA256()


def is_from_pubsub(asked, key=RSA.public_key()):  # noqa: B008  # it is one key
    """A custom verifier: a Google JWT (RS256) for our URL, as Cloud Pub/Sub sends it."""
    scheme, _, token = asked.headers.get("authorization", "").partition(" ")
    signed, _, signature = token.rpartition(".")
    header, _, claims = signed.partition(".")
    if scheme != "Bearer" or json.loads(unpadded(header))["alg"] != "RS256":
        return False
    key.verify(unpadded(signature), signed.encode(), padding.PKCS1v15(), SHA256)
    claims = json.loads(unpadded(claims))
    return claims["aud"] == "https://us.example/push" and claims["exp"] > asked.received_at


def unpadded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def jwt(*, alg="RS256", aud="https://us.example/push", exp=NOW + 60):
    parts = [json.dumps(part).encode() for part in ({"alg": alg}, {"aud": aud, "exp": exp})]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = RSA.sign(signed, padding.PKCS1v15(), SHA256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def test_any_function_of_a_request_is_a_verifier():
    assert is_from_pubsub(request(Authorization=f"Bearer {jwt()}"))
    assert not is_from_pubsub(request(Authorization=f"Bearer {jwt(aud='https://else.example')}"))
    assert not is_from_pubsub(request(Authorization=f"Bearer {jwt(exp=NOW - 1)}"))
    assert not is_from_pubsub(request(Authorization=f"Bearer {jwt(alg='none')}"))
    with pytest.raises(InvalidSignature):  # the receiver rejects the request
        is_from_pubsub(request(Authorization=f"Bearer {jwt()[:-4]}AAAA"))
