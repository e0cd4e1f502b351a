"""Tokens and passwords, in headers and bodies; nobody; and a verifier of one's own."""

import base64
import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from push_to_poll_client.listeners.verifiers import (
    WebhookRequest,
    anybody,
    basic,
    bearer,
    shared_token,
    token_in_body,
)
from push_to_poll_client.listeners.verifiers._tokens import MAX_ITEMS
from tests.support.signing import NOW, request

# Headers


def test_google_echoes_the_token_of_the_channel():
    verify = shared_token("target=calendar&key=s3cret")
    assert verify(request(X_Goog_Channel_Token="target=calendar&key=s3cret"))
    for other in ("", "target=calendar", "target=calendar&key=S3cret", "target=calendar&key=s3cret "):
        assert not verify(request(X_Goog_Channel_Token=other))
    assert not verify(request())


@pytest.mark.parametrize("header", ["X-Telegram-Bot-Api-Secret-Token", "X-Gitlab-Token"])
def test_others_have_other_headers(header):
    assert shared_token("abc", header)(WebhookRequest(headers={header.lower(): "abc"}))
    assert not shared_token("abc", header)(request(X_Goog_Channel_Token="abc"))


def test_a_token_that_came_twice_is_refused():
    assert not shared_token("abc")(request(X_Goog_Channel_Token="abc, abc"))


def test_several_tokens_serve_while_they_are_exchanged():
    verify = shared_token(["old", b"new"])
    assert verify(request(X_Goog_Channel_Token="old"))
    assert verify(request(X_Goog_Channel_Token="new"))
    assert not verify(request(X_Goog_Channel_Token="oldnew"))


def test_headers_are_the_bytes_that_came():
    verify = shared_token("schlüssel")
    assert verify(request(X_Goog_Channel_Token="schlüssel".encode().decode("latin-1")))
    for other in ("schlüssel", "ключ", "\udc80"):
        assert not verify(request(X_Goog_Channel_Token=other))


def test_the_headers_alone_tell():
    for verify in (shared_token("abc", "authorization"), bearer("abc"), basic("u", "p")):
        for value in ("abc", "Bearer abc", "Basic dTpw", "Bearer abd"):
            asked = request(Authorization=value)
            assert verify.may_pass(asked) == verify(asked)


@pytest.mark.parametrize("value", ["Bearer abc", "bearer abc", "BEARER   abc"])
def test_a_bearer_has_a_token(value):
    assert bearer(["x", "abc"])(request(Authorization=value))


@pytest.mark.parametrize(
    "value", ["", "abc", "Bearer", "Bearer ", "Bearerabc", "Basic abc", "Bearer abc, Bearer abc", "Bearer\tabc"]
)
def test_anything_else_has_not(value):
    assert not bearer("abc")(request(Authorization=value))
    assert not bearer("abc")(request())


def test_the_examples_of_rfc_7617_pass():
    assert basic("Aladdin", "open sesame")(request(Authorization="Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="))
    assert basic("test", "123£")(request(Authorization="Basic dGVzdDoxMjPCow=="))


def test_a_user_and_a_password_are_one_text():
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
        (lambda: basic(b"a", "p"), TypeError, "not bytes"),
        (lambda: basic("a", ""), ValueError, "empty"),
        (lambda: bearer([]), ValueError, "no secret"),
        (lambda: bearer(None), TypeError, "NoneType"),
        (lambda: shared_token(""), ValueError, "empty"),
        (lambda: shared_token("t", "no header"), ValueError, "no name of a header"),
        (lambda: token_in_body(""), ValueError, "empty"),
        (lambda: token_in_body("t", "value..x"), ValueError, "a path is names"),
        (lambda: token_in_body("t", None), TypeError, "a path is a str"),
    ],
)
def test_what_cannot_be_is_refused_at_once(made, error, text):
    with pytest.raises(error, match=text):
        made()


def test_no_token_is_shown():
    for verify in (shared_token("canary"), bearer("canary"), basic("u", "canary"), token_in_body("canary")):
        assert "canary" not in repr(verify)
        assert "1 secrets" in repr(verify)


# Bodies


def graph(*items, **beside):
    return request(json.dumps({"value": list(items), **beside}).encode())


def item(state, **beside):
    return {"subscriptionId": "7f105c7d", "clientState": state, "resource": "users/1/messages", **beside}


def test_each_item_of_a_batch_has_to_have_the_token():
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
        {"clientState": {"clientState": "one"}},
        {"ClientState": "one"},
        None,
        "one",
        1,
        [],
        [item("one")],
    ],
)
def test_an_item_without_it_spoils_the_batch(odd):
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
        b'\xef\xbb\xbf{"value": [{"clientState": "one"}]}',
        b'{"value": [{"clientState": "one\xff"}]}',
        b'{"value": [{"clientState": "\\ud800"}]}',
        b"[" * 100_000,
        b'{"value":' * 100_000,
    ],
)
def test_a_body_that_is_no_such_batch_is_refused(body):
    assert not token_in_body("one")(request(body))


def test_a_batch_is_looked_at_up_to_a_bound():
    assert token_in_body("one")(graph(*[item("one")] * MAX_ITEMS))
    assert not token_in_body("one")(graph(*[item("one")] * (MAX_ITEMS + 1)))


def test_the_token_may_stand_anywhere():
    assert token_in_body("one", "token")(request(b'{"token": "one"}'))
    assert token_in_body("one", "token")(request(b'[{"token": "one"}, {"token": "one"}]'))
    assert not token_in_body("one", "token")(request(b'[{"token": "one"}, {}]'))
    assert token_in_body("schlüssel", "a.b")(request('{"a": {"b": "schlüssel"}}'.encode()))


# Nobody, and one's own


def test_anybody_is_believed_if_it_is_asked_for():
    assert anybody()(request()) is True
    assert repr(anybody()) == "anybody()"


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHA256 = hashes.SHA256()


def is_from_pubsub(asked, key=RSA.public_key()):  # noqa: B008  # it is one key
    """A verifier by hand: a JWT of Google (RS256) for our address, as Cloud Pub/Sub sends them."""
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
    with pytest.raises(InvalidSignature):  # which the receiver takes for a no
        is_from_pubsub(request(Authorization=f"Bearer {jwt()[:-4]}AAAA"))
