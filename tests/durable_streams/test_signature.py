"""Signatures of Durable Streams webhooks, and the requests for the server's keys."""

import base64
import logging
import sys

import anyio
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from push_to_poll_client.durable_streams._signature import MAX_KEYS, MIN_REFRESH_INTERVAL, DurableStreamsSignature
from push_to_poll_client.listeners._webhook.types import Verified, WebhookRequest

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"
URL = "https://streams.example/v1/stream/__ds/jwks.json"
NOW = 1_700_000_000
BODY = b'{"subscription_id":"s"}'


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Key:
    """A private key, and its published form."""

    def __init__(self, kid, changed=()):
        self._private = Ed25519PrivateKey.from_private_bytes(kid.encode().ljust(32)[:32])
        self.kid = kid
        public = base64url(self._private.public_key().public_bytes_raw())
        self.jwk = {"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig", "alg": "EdDSA", "x": public}
        self.jwk.update(changed)

    def sign(self, body=BODY, at=NOW):
        return base64url(self._private.sign(f"{at}.".encode() + body))

    def request(self, body=BODY, at=NOW, received_at=NOW):
        return signed_request(f"t={at},kid={self.kid},ed25519={self.sign(body, at)}", body, received_at)


def signed_request(header, body=BODY, received_at=NOW):
    return WebhookRequest(headers={"webhook-signature": header}, body=body, received_at=received_at)


class Keys:
    """A server's keys, with a clock that a test sets. A response may be an error, or take some time."""

    def __init__(self, *keys, cache="public, max-age=300"):
        self.keys = keys
        self.headers = {"cache-control": cache}
        self.failing = None
        self.takes = 0.0
        self.requests = []
        self.now = 1000.0

    async def __call__(self, request):
        self.requests.append(request)
        await anyio.sleep(self.takes)
        if isinstance(self.failing, Exception):
            raise self.failing
        return self.failing or httpx.Response(
            200, json={"keys": [getattr(key, "jwk", key) for key in self.keys]}, headers=self.headers
        )

    def verifier(self, **options):
        client = httpx.AsyncClient(transport=httpx.MockTransport(self))
        verifier = DurableStreamsSignature(URL, client=client, **options)
        verifier._clock = lambda: self.now
        return verifier


# Authentic requests


async def test_a_signed_request_is_verified_and_identified_by_its_signature():
    keys = Keys(key := Key("ds_1"))
    verify = keys.verifier()
    request = key.request()
    assert verify.may_pass(request)
    signature = base64.urlsafe_b64decode(key.sign() + "==")
    assert await verify(request) == Verified(once=(signature,), until=NOW + 301.0)
    assert await verify(key.request(at=NOW + 1)) != await verify(request)


async def test_a_request_with_a_changed_body_time_key_or_signature_is_refused():
    keys = Keys(key := Key("ds_1"), other := Key("ds_2"))
    verify = keys.verifier()
    signature = key.sign()
    for header, body in [
        (f"t={NOW},kid=ds_1,ed25519={signature}", BODY + b" "),
        (f"t={NOW + 1},kid=ds_1,ed25519={signature}", BODY),
        (f"t=0{NOW},kid=ds_1,ed25519={signature}", BODY),
        (f"t={NOW},kid=ds_2,ed25519={signature}", BODY),
        (f"t={NOW},kid=ds_3,ed25519={signature}", BODY),
        (f"t={NOW},kid=ds_1,ed25519={other.sign()}", BODY),
        (f"t={NOW},kid=ds_1,ed25519={'A' * 86}", BODY),
    ]:
        assert verify.may_pass(signed_request(header, body))
        assert await verify(signed_request(header, body)) is False


@pytest.mark.parametrize(("age", "is_authentic"), [(300, True), (301, False), (-300, True), (-301, False)])
async def test_a_request_more_than_300_seconds_old_or_in_the_future_is_refused(age, is_authentic):
    keys = Keys(key := Key("ds_1"))
    verify = keys.verifier()
    request = key.request(at=NOW - age)
    assert bool(await verify(request)) is verify.may_pass(request) is is_authentic
    assert len(keys.requests) == is_authentic


@pytest.mark.parametrize(
    "header",
    [
        "",
        "x",
        "t=1,kid=,ed25519=" + "A" * 86,
        "t=1,kid=ds_1",
        "t=,kid=ds_1,ed25519=" + "A" * 86,
        "t=-5,kid=ds_1,ed25519=" + "A" * 86,
        "t=1e9,kid=ds_1,ed25519=" + "A" * 86,
        f"t={'9' * 5000},kid=ds_1,ed25519={'A' * 86}",
        f"t=١٢٣,kid=ds_1,ed25519={'A' * 86}",
        f"t={NOW},kid=ds_1,ed25519=" + "A" * 85,
        f"t={NOW},kid=ds_1,ed25519=" + "A" * 86 + "==",
        f"t={NOW},kid=ds_1,ed25519=" + "A" * 85 + "+",
        f"t={NOW},kid=ds_1,ed25519=" + "A" * 86 + "\n",
        f"t={NOW},kid=d s,ed25519=" + "A" * 86,
        f"t={NOW},kid={'k' * 257},ed25519=" + "A" * 86,
        f"kid=ds_1,t={NOW},ed25519=" + "A" * 86,
        f"t={NOW},kid=ds_1,ed25519={'A' * 86}, t={NOW},kid=ds_1,ed25519={'A' * 86}",
    ],
)
async def test_a_malformed_signature_header_is_refused_without_a_request_for_keys(header):
    verify = (keys := Keys(Key("ds_1"))).verifier()
    assert await verify(signed_request(header)) is verify.may_pass(signed_request(header)) is False
    assert await verify(WebhookRequest()) is False
    assert not keys.requests


# Valid keys


@pytest.mark.parametrize(
    "changed",
    [
        {"kty": "EC"},
        {"crv": "Ed448"},
        {"use": "enc"},
        {"alg": "ES256"},
        {"x": "AAAA"},
        {"x": "A" * 43},  # a key of small order, which accepts any signature
        {"x": "+" * 43},
        {"x": 7},
        {"kid": "ds_1" + "x" * 300},
        {"kid": None},
    ],
)
async def test_an_unusable_key_does_not_affect_the_other_keys(changed):
    keys = Keys(Key("ds_1", changed), 7, {}, good := Key("ds_2"))
    verify = keys.verifier()
    assert await verify(Key("ds_1").request()) is False
    assert await verify(good.request())
    assert list(verify._keys) == ["ds_2"]


async def test_a_key_without_use_is_accepted():
    key = Key("ds_1", {"alg": "Ed25519"})
    del key.jwk["use"]
    assert await Keys(key).verifier()(key.request())


async def test_keys_beyond_max_keys_are_ignored():
    keys = Keys(*(Key(f"ds_{number}") for number in range(MAX_KEYS + 5)))
    verify = keys.verifier()
    assert await verify(keys.keys[MAX_KEYS - 1].request())
    assert not await verify(keys.keys[MAX_KEYS].request())
    assert len(verify._keys) == MAX_KEYS


# Frequency of requests


async def test_keys_are_requested_once_and_again_after_max_age():
    keys = Keys(key := Key("ds_1"), cache="max-age=600")
    verify = keys.verifier()
    for now, requests in [(0, 1), (599, 1), (600, 2), (1199, 2), (1200, 3)]:
        keys.now = 1000.0 + now
        assert await verify(key.request())
        assert len(keys.requests) == requests


@pytest.mark.parametrize(
    ("cache", "fresh"),
    [
        ("max-age=0", 60),
        ("no-store", 300),
        ("", 300),
        ("max-age=x", 300),
        ("s-maxage=7", 300),
        ("Public, Max-Age=600", 600),
        ('max-age="600"', 600),
        ("max-age=999999999", 86_400),
        ("max-age=" + "9" * 5000, 86_400),
    ],
)
async def test_cache_control_sets_the_lifetime_of_keys_within_bounds(cache, fresh):
    keys = Keys(key := Key("ds_1"), cache=cache)
    verify = keys.verifier()
    for now, requests in [(0, 1), (fresh - 1, 1), (fresh, 2)]:
        keys.now = 1000.0 + now
        assert await verify(key.request())
        assert len(keys.requests) == requests


async def test_unknown_key_ids_cause_one_key_request_a_minute_and_a_new_key_is_found():
    keys = Keys(old := Key("ds_1"), cache="max-age=86400")
    verify = keys.verifier()
    assert await verify(old.request())
    keys.keys = (new := Key("ds_2"),)
    for second in range(600):
        keys.now = 1000.0 + second
        for number in range(3):
            assert not await verify(Key(f"invented {second} {number}".replace(" ", "_")).request())
    assert len(keys.requests) == 10
    assert await verify(new.request())
    assert not await verify(old.request())


async def test_a_withdrawn_key_is_refused_after_the_key_set_expires():
    keys = Keys(old := Key("ds_1"))
    verify = keys.verifier()
    assert await verify(old.request())
    keys.keys, keys.now = (), keys.now + 300
    assert not await verify(old.request())


@pytest.mark.parametrize(
    ("failing", "told"),
    [
        (httpx.ConnectError("refused"), "ConnectError: 'refused'"),
        (httpx.Response(500), "the server answered HTTP 500 instead of a set of keys"),
        (httpx.Response(302, headers={"location": "https://evil.example/"}), "redirects are not followed"),
        (httpx.Response(302, headers={"location": "https:evil"}), "redirected to an invalid URL"),
        (httpx.Response(200, content=b"[]"), "sent no valid set of keys (RFC 7517 §5)"),
        (httpx.Response(200, content=b"[" * 60_000), "no valid set of keys"),
        (httpx.Response(200, content=b'{"keys":' + b"[" * 60_000), "no valid set of keys"),
        (httpx.Response(200, content=b"x" * 70_000), "sent a body of more than 65536 bytes"),
    ],
)
async def test_known_keys_stay_valid_while_key_requests_fail(failing, told, caplog):
    caplog.set_level(logging.INFO)
    keys = Keys(key := Key("ds_1"))
    verify = keys.verifier()
    assert await verify(key.request())
    keys.failing = failing
    for now in range(300, 600, 10):
        keys.now = 1000.0 + now
        assert await verify(key.request())
    assert len(keys.requests) == 1 + 5
    assert f"{URL}: " in caplog.text
    assert told in caplog.text
    assert "using the 1 known keys" in caplog.text


async def test_a_slow_key_server_delays_one_request_by_5_seconds_and_no_other():
    keys = Keys(key := Key("ds_1"))
    verify = keys.verifier()
    assert await verify(key.request())
    keys.now, keys.takes = keys.now + 300, 3600.0
    answers, began = [], anyio.current_time()

    async def ask():
        answers.append((bool(await verify(key.request())), round(anyio.current_time() - began)))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
    assert answers == [(True, 0)] * 4 + [(True, 5)]
    assert len(keys.requests) == 2


async def test_a_cancelled_request_does_not_use_up_the_key_request_of_the_minute():
    keys = Keys(key := Key("ds_1"))
    keys.takes = 2.0
    verify = keys.verifier()
    with anyio.move_on_after(1):
        await verify(Key("invented").request())
    keys.takes = 3600.0
    assert await verify(key.request())


async def test_refresh_requests_the_keys_early_and_does_not_count_against_the_limit():
    keys = Keys(key := Key("ds_1"))
    verify = keys.verifier()
    await verify.refresh()
    assert len(keys.requests) == 1
    assert await verify(key.request())
    keys.keys = (new := Key("ds_2"),)
    assert await verify(new.request())  # our own request does not count
    assert len(keys.requests) == 2
    keys.failing = httpx.Response(404)
    with pytest.raises(httpx.HTTPStatusError):
        await verify.refresh()


def test_one_verifier_works_in_one_event_loop_after_another(anyio_backend_name):
    keys = Keys(key := Key("ds_1"))
    verify = keys.verifier()
    for _ in range(2):
        assert anyio.run(verify, key.request(), backend=anyio_backend_name)
        keys.now += MIN_REFRESH_INTERVAL * 10
    assert len(keys.requests) == 2


# Log lines


async def test_credentials_are_sent_to_the_key_server_and_not_shown(caplog):
    caplog.set_level(logging.DEBUG)
    keys = Keys(key := Key("ds_1"))
    verify = keys.verifier(auth=CANARY, headers={"x-gate": CANARY})
    assert await verify(key.request())
    (request,) = keys.requests
    assert (request.headers["authorization"], request.headers["x-gate"]) == (f"Bearer {CANARY}", CANARY)
    assert repr(verify) == f"DurableStreamsSignature({URL!r})"
    assert CANARY not in caplog.text


@pytest.mark.parametrize(("url", "options"), [("ftp://x/", {}), (URL, {"tolerance": 0}), (URL, {"tolerance": -1})])
def test_invalid_arguments_are_a_value_error(url, options):
    with pytest.raises(ValueError):
        DurableStreamsSignature(url, **options)


def test_construction_without_cryptography_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(ImportError, match=r"pip install 'push-to-poll-client\[crypto\]'"):
        DurableStreamsSignature(URL)
