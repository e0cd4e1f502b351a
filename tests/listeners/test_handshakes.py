"""Handshakes: challenges that are echoed, permissions that are granted, and requests that are not handshakes."""

import logging

import anyio
import anyio.lowlevel
import pytest

from push_to_poll_client.listeners._webhook.counters import CALLBACK_TIMEOUT
from push_to_poll_client.listeners.handshakes import cloudevents_origins, dropbox_challenge, graph_validation
from push_to_poll_client.listeners.webhook import WebhookListener, WebhookRequest, WebhookResponse
from tests.support.asgi_calls import Signatures, asked, posted, scope_of, signed

pytestmark = pytest.mark.anyio

TEXT = "text/plain; charset=utf-8"


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch):
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", anyio.current_time)


def hooks_with(*handshakes, **more):
    return WebhookListener(Signatures(), handshake=handshakes, **more)


# Echoes


async def test_dropbox_gets_its_challenge_back():
    answer = await asked(hooks_with(dropbox_challenge()), scope_of("GET", query=b"challenge=a%20b%C3%A9"))
    assert (answer.status, answer.body.decode(), answer.headers["content-type"]) == (200, "a bé", TEXT)


async def test_graph_gets_its_decoded_token_back_without_waiting_for_the_body():
    token = "Validation%3A+Testing+client+application+reachability+for+subscription+Request-Id%3A+1"
    scope = scope_of("POST", query=f"validationToken={token}".encode(), headers={"Content-Type": "text/plain"})
    answer = await asked(hooks_with(graph_validation()), scope, 3600)  # without waiting for the body
    assert answer.body == b"Validation: Testing client application reachability for subscription Request-Id: 1"
    assert (answer.status, answer.headers["content-type"]) == (200, TEXT)


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"challenge=",
        b"challenge",
        b"Challenge=x",
        b"challenge=a&challenge=b",
        b"challenge=a%0D%0Ab",
        b"challenge=%00",
        b"challenge=%1B[31m",
        b"challenge=%E2%80%AE",
        b"challenge=" + b"x" * 2049,
        b"challenge=x&" + b"y=1&" * 200,
        b"challenge=x&y=" + b"y" * 8192,
    ],
)
async def test_a_query_without_a_valid_challenge_gets_405(query):
    hooks = hooks_with(dropbox_challenge())
    assert (await asked(hooks, scope_of("GET", query=query))).status == 405
    assert hooks.counters().unasked == 1


async def test_a_handshake_ignores_a_request_with_the_wrong_method():
    assert dropbox_challenge()(WebhookRequest("POST", query="challenge=x")) is None
    assert graph_validation()(WebhookRequest("GET", query="validationToken=x")) is None


async def test_an_echoed_challenge_is_sent_as_plain_text_with_nosniff():
    """A browser shows any echoed challenge as plain text."""
    answer = await asked(hooks_with(dropbox_challenge()), scope_of("GET", query=b"challenge=<script>x</script>"))
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == (TEXT, "nosniff")


async def test_the_answer_to_head_has_no_body():
    hooks = hooks_with(lambda request: WebhookResponse(body=b"abc") if request.method == "HEAD" else None)
    sent = []

    async def send(event):
        sent.append(event)

    await hooks(scope_of("HEAD"), None, send)
    assert dict(sent[0]["headers"])[b"content-length"] == b"3"
    assert sent[1]["body"] == b""


# CloudEvents


def options(origin, **headers):
    return scope_of("OPTIONS", headers={"WebHook-Request-Origin": origin, **headers})


@pytest.mark.parametrize(("rate", "allowed"), [(None, "*"), (120, "120")])
async def test_an_expected_origin_may_push(rate, allowed):
    hooks = hooks_with(cloudevents_origins({"Events.Example"}, rate=rate))
    answer = await asked(hooks, options("events.example", **{"WebHook-Request-Rate": "1000"}))
    assert (answer.status, answer.headers["allow"]) == (200, "POST")
    assert answer.headers["webhook-allowed-origin"] == "events.example"
    assert answer.headers["webhook-allowed-rate"] == allowed


async def test_an_unexpected_or_missing_origin_may_not_push():
    hooks = hooks_with(cloudevents_origins(["events.example"]))
    for scope in (options("evil.example"), options(""), options("*"), scope_of("OPTIONS")):
        answer = await asked(hooks, scope)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert not [name for name in answer.headers if name.startswith("webhook-")]
    assert (await posted(hooks, headers={"WebHook-Request-Origin": "events.example"})).status == 401


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("events.example",), TypeError, "origins must be a collection of strings"),
        (([b"events.example"],), TypeError, "origins must be a collection of strings"),
        (([],), ValueError, "origins must be a list of at least one host name"),
        (([""],), ValueError, "origins must be a list of at least one host name"),
        ((["a\r\nb"],), ValueError, "origins must be a list of at least one host name"),
        ((["x" * 254],), ValueError, "origins must be a list of at least one host name"),
    ],
)
async def test_origins_that_are_not_names_of_senders_are_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        cloudevents_origins(*arguments)


@pytest.mark.parametrize(("rate", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
async def test_a_rate_that_is_not_a_positive_whole_number_is_refused(rate, error):
    with pytest.raises(error, match="rate must be"):
        cloudevents_origins({"events.example"}, rate=rate)


# Custom functions


async def test_a_custom_async_handshake_can_answer_by_a_request_header():
    async def okta(request):
        await anyio.sleep(1)
        challenge = request.headers.get("x-okta-verification-challenge")
        return None if challenge is None else WebhookResponse(200, challenge.encode(), "application/json")

    hooks = hooks_with(lambda request: None, okta)
    answer = await asked(hooks, scope_of("GET", headers={"X-Okta-Verification-Challenge": "{}"}))
    assert (answer.body, answer.headers["content-type"]) == (b"{}", "application/json")
    assert (await posted(hooks)).status == 200
    assert hooks.counters().handshakes == 1


async def test_a_handshake_in_a_signed_body_is_answered_only_if_the_signature_is_valid():
    def slack(request):
        is_one = request.body and request.json()["type"] == "url_verification"
        return WebhookResponse(body=request.json()["challenge"].encode()) if is_one else None

    hooks = hooks_with(slack)
    question = b'{"type": "url_verification", "challenge": "abc"}'
    assert (await posted(hooks, question)).body == b"abc"
    assert (await posted(hooks, question, headers={"X-Signature": "x"})).status == 401
    assert (await posted(hooks, b'{"type": "event"}')).body == b""
    assert (hooks.counters().handshakes, hooks.counters().refused, hooks.counters().unheard) == (1, 1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        "text",
        WebhookResponse(99),
        WebhookResponse(headers={"X": "a\r\nSet-Cookie: b"}),
        WebhookResponse(body="text"),
    ],
)
async def test_an_invalid_handshake_answer_is_logged_and_not_sent(answer, caplog):
    caplog.set_level(logging.DEBUG)
    hooks = hooks_with(lambda request: answer)
    assert (await asked(hooks, scope_of("GET"))).status == 405
    assert (await posted(hooks)).status == 200
    assert "webhook: a handshake failed with" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "DEBUG"]


async def test_a_handshake_that_fails_or_hangs_does_not_stop_the_next_one(caplog):
    async def hangs(request):
        await anyio.sleep_forever()

    def fails(request):
        raise KeyError(request.query)

    hooks = hooks_with(fails, hangs, dropbox_challenge())
    began = anyio.current_time()
    assert (await asked(hooks, scope_of("GET", query=b"challenge=x"))).body == b"x"
    assert anyio.current_time() - began == CALLBACK_TIMEOUT
    assert "a handshake failed with KeyError" in caplog.text


# Rate limit


DROPBOX = scope_of("GET", query=b"challenge=x")
GRAPH = scope_of("POST", query=b"validationToken=x")
OPTIONS = options("events.example")


@pytest.mark.parametrize("flood", [DROPBOX, GRAPH, OPTIONS, scope_of("GET"), scope_of("POST")])
async def test_no_flood_of_a_stranger_uses_up_the_answers_to_handshakes_or_the_rate_of_pushes(flood):
    """Each response costs no more than a rejection."""
    handshakes = (dropbox_challenge(), graph_validation(), cloudevents_origins(["events.example"]))
    hooks = hooks_with(*handshakes, rate=0.001, burst=1)
    for _ in range(100):
        assert (await asked(hooks, flood)).status in {200, 401, 405}
    assert [(await asked(hooks, scope)).status for scope in (DROPBOX, GRAPH, OPTIONS)] == [200, 200, 200]
    assert (await posted(hooks)).status == 200
    assert hooks.counters().limited == 0


async def test_an_async_handshake_has_a_separate_rate_limit():
    asked_for = []

    async def handshake(request):
        asked_for.append(request)

    hooks = hooks_with(handshake, dropbox_challenge(), rate=0.001, burst=5)
    statuses = [(await asked(hooks, scope_of("GET"))).status for _ in range(10)]
    assert statuses == [405] * 5 + [429] * 5
    assert len(asked_for) == 5
    assert (await posted(hooks)).status == 200
    assert len(asked_for) == 6  # with its body, since it is authentic
    assert hooks.counters().limited == 5
    assert (await posted(hooks, headers={})).status == 401
    assert (await asked(hooks, DROPBOX)).status == 200


async def test_other_requests_do_not_use_up_the_rate_of_an_async_handshake():
    async def answer():
        return WebhookResponse(body=b"yes")

    def handshake(request):
        return answer() if request.parameter("ask") else None

    hooks = hooks_with(handshake, rate=0.001, burst=1)
    for method in ("GET", "POST"):
        assert {(await asked(hooks, scope_of(method))).status for _ in range(100)} <= {401, 405}
    question = scope_of("GET", query=b"ask=1")
    assert (await asked(hooks, question)).body == b"yes"
    assert (await asked(hooks, question)).status == 429


async def test_a_handshake_may_return_any_awaitable():
    class Later:
        def __await__(self):
            yield from anyio.lowlevel.checkpoint().__await__()
            return WebhookResponse(body=b"yes")

    hooks = hooks_with(lambda request: Later(), rate=0.001, burst=1)
    assert [(await asked(hooks, scope_of("GET"))).status for _ in range(2)] == [200, 429]


async def test_get_requests_do_not_use_up_the_rate_if_no_handshake_is_configured():
    hooks = hooks_with(rate=0.001, burst=1)
    assert {(await asked(hooks, scope_of("GET"))).status for _ in range(10)} == {405}
    assert (await posted(hooks, headers=signed(b""))).status == 200
