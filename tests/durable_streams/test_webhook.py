"""The subscription request to a Durable Streams server, and the content of its webhooks."""

import json
import logging

import httpx
import pytest

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.durable_streams._subscription import DurableStreamsWebhook
from push_to_poll_client.listeners._hints import HintReader
from push_to_poll_client.listeners._requests import UnusableResponse
from push_to_poll_client.listeners._webhook.types import Control, WebhookRequest
from push_to_poll_client.listeners.subscriptions._types import Registration, SubscriptionRefused

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"
ROOT = "https://streams.example/v1/stream"
CALLBACK = f"https://me.example/hook?key={CANARY}"


class Server:
    """Records requests, and sends the responses in turn; the last one repeats."""

    def __init__(self, *answers):
        self._answers = list(answers) or [httpx.Response(201, json={})]
        self.requests = []

    async def __call__(self, request):
        self.requests.append(request)
        if request.url.path.endswith("/jwks.json"):
            return httpx.Response(200, json={"keys": []})
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    @property
    def calls(self):
        return [(request.method, str(request.url).removeprefix(ROOT)) for request in self.requests]


def subscription_of(server=None, *, root=ROOT, callback=CALLBACK, **options):
    client = httpx.AsyncClient(transport=httpx.MockTransport(server or Server()))
    options = {"streams": ["orders"], **options}
    return DurableStreamsWebhook(root, callback=callback, client=client, **options)


def refusal(code):
    return httpx.Response(400, json={"error": {"code": code, "message": f"not {CALLBACK}"}})


@pytest.fixture(autouse=True)
def _now(monkeypatch):
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: 1000.0)


async def test_create_sends_the_planned_subscription_and_requests_the_keys():
    subscription = subscription_of(server := Server(), streams=["/b", "a/c/", "b"], pattern="/x/*", lease=2.5)
    planned = subscription.plan()
    assert planned == subscription.plan() == Registration(id=subscription.id)
    assert await subscription.create(planned) == Registration(id=planned.id, renew_at=1060.0)
    assert server.calls == [("PUT", f"/__ds/subscriptions/{planned.id}"), ("GET", "/__ds/jwks.json")]
    assert json.loads(server.requests[0].content) == {
        "type": "webhook",
        "streams": ["a/c", "b"],
        "pattern": "x/*",
        "webhook": {"url": CALLBACK},
        "lease_ttl_ms": 2500,
    }
    assert server.requests[0].headers["content-type"] == "application/json"


async def test_create_succeeds_although_the_key_request_fails(caplog):
    caplog.set_level(logging.INFO)

    async def answer(request):
        return httpx.Response(201, json={}) if request.method == "PUT" else httpx.Response(404)

    subscription = subscription_of(answer)
    assert await subscription.create(subscription.plan())
    assert "the server answered HTTP 404 instead of a set of keys" in caplog.text


async def test_renew_recreates_a_lost_subscription_and_requests_the_keys_again(caplog):
    """It may have other keys then."""
    caplog.set_level(logging.INFO)
    subscription = subscription_of(
        server := Server(httpx.Response(200, json={}), httpx.Response(201, json={})), confirm_every=5.0
    )
    old = Registration(id=subscription.id, renew_at=990.0)
    for methods, is_told in [(["PUT"], False), (["PUT", "PUT", "GET"], True)]:
        assert await subscription.renew(old) == Registration(id=old.id, renew_at=1005.0)
        assert [method for method, _ in server.calls] == methods
        assert ("the server had lost the subscription; created it again" in caplog.text) is is_told


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]"])
@pytest.mark.parametrize("status", [200, 201])
async def test_an_answer_that_is_not_a_subscription_is_an_unusable_answer(status, body):
    """At a wrong root the server creates a stream with the name of the subscription."""
    subscription = subscription_of(Server(httpx.Response(status, content=body)))
    for ask in (subscription.create, subscription.renew):
        with pytest.raises(UnusableResponse, match="sent no valid subscription"):
            await ask(subscription.plan())


async def test_a_subscription_with_other_settings_is_not_renewed_and_stop_deletes_it():
    subscription = subscription_of(server := Server(httpx.Response(204)))
    old = Registration(id=subscription_of(lease=20.0).id)
    assert old.id != subscription.id
    assert await subscription.renew(old) is None
    await subscription.stop(old)
    assert server.calls == [("DELETE", f"/__ds/subscriptions/{old.id}")]


async def test_stop_does_not_delete_a_subscription_recreated_under_the_same_id():
    subscription = subscription_of(server := Server(httpx.Response(204)))
    lost = Registration(id=subscription.id, renew_at=1.0)
    subscription.adopt([Registration(id=subscription.id, renew_at=2.0), lost])
    await subscription.stop(lost)
    assert not server.requests
    subscription.adopt([lost])
    await subscription.stop(lost)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [404, 410])
async def test_stop_succeeds_if_the_subscription_is_already_gone(status):
    subscription = subscription_of(Server(httpx.Response(status)))
    await subscription.stop(subscription.plan())


@pytest.mark.parametrize("status", [401, 409, 500])
async def test_any_other_error_status_raises_an_http_status_error(status):
    subscription = subscription_of(Server(httpx.Response(status)))
    for ask in (subscription.create, subscription.renew, subscription.stop):
        with pytest.raises(httpx.HTTPStatusError):
            await ask(subscription.plan())


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("WEBHOOK_URL_REJECTED", "the server does not push to this callback"),
        ("INVALID_REQUEST", "the server rejects this subscription; check streams="),
    ],
)
async def test_a_subscription_that_the_server_rejects_is_a_listener_error(code, text):
    subscription = subscription_of(Server(refusal(code)))
    for ask in (subscription.create, subscription.renew):
        with pytest.raises(ListenerError, match=f"answered {code}: {text}") as caught:
            await ask(subscription.plan())
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize("code", ["WEBHOOK_URL_REJECTED", "INVALID_REQUEST"])
async def test_a_later_rejection_of_an_accepted_subscription_is_subscription_refused(code):
    """A server restarted without its settings does not end a consumer that polls."""
    subscription = subscription_of(Server(httpx.Response(201, content=b"{}"), refusal(code)))
    await subscription.create(subscription.plan())
    for ask in (subscription.create, subscription.renew):
        with pytest.raises(SubscriptionRefused, match=f"answered {code}"):
            await ask(subscription.plan())


@pytest.mark.parametrize(
    "answer", [refusal("OTHER"), httpx.Response(400), httpx.Response(400, content=b'{"error":' + b"[" * 60_000)]
)
async def test_a_400_without_a_known_code_is_an_http_status_error(answer):
    subscription = subscription_of(Server(answer))
    with pytest.raises(httpx.HTTPStatusError):
        await subscription.create(subscription.plan())


# Names of subscriptions


def test_the_id_depends_only_on_the_settings_sent_to_the_server():
    same = subscription_of().id
    assert same.startswith("push-to-poll-")
    assert subscription_of(streams=["/orders/", "orders"], auth="other", confirm_every=7.0).id == same
    others = [{"streams": ["x"]}, {"pattern": "x"}, {"lease": 20}, {"callback": "https://me.example/"}]
    assert len({same, *(subscription_of(**other).id for other in others)}) == 5


def test_the_name_does_not_change_with_the_requested_settings():
    """The old registration, which is to be deleted, is found under this name."""
    name = f"{ROOT}/__ds/subscriptions/push-to-poll"
    assert subscription_of().name == subscription_of(lease=20.0, root=f"{ROOT}/").name == name
    ours = subscription_of(id="my orders/1")
    assert ours.name == f"{ROOT}/__ds/subscriptions/my%20orders%2F1"
    assert ours.id.startswith("my orders/1-")


async def test_an_id_is_percent_encoded_as_one_path_segment():
    subscription = subscription_of(server := Server(), id="my orders/1")
    await subscription.create(subscription.plan())
    assert server.requests[0].url.raw_path.startswith(b"/v1/stream/__ds/subscriptions/my%20orders%2F1-")


# Content of a webhook


def webhook(*streams, id="s-1", **more):
    body = {"subscription_id": id, "wake_id": "w", "generation": 1, "streams": list(streams), **more}
    return WebhookRequest(body=json.dumps(body).encode())


def stream(path, *, has_pending=True):
    return {"path": path, "acked_offset": "0_1", "tail_offset": "0_2", "has_pending": has_pending}


def test_the_hint_of_a_webhook_names_the_streams_with_pending_messages_and_no_cursor():
    hint = subscription_of().hint
    assert hint(webhook(stream("a"), stream("b", has_pending=False), stream("c"))) == Push(topics=("a", "c"))
    assert hint(webhook(stream("a"), stream("a"))) == Push(topics=("a",))
    assert hint(webhook(*(stream(f"{number}") for number in range(65)))) == Push()
    assert hint(webhook({"path": "a"}, callback_token=CANARY)) == Push(topics=("a",))
    assert hint(WebhookRequest(body=b'{"subscription_id":"s"}')) == Push()


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'{"subscription_id":7}', b"[" * 60_000, b"\xff"])
def test_an_unreadable_webhook_is_a_push_without_a_hint(body):
    hints = HintReader(subscription_of().hint, kinds=(Push, Control), log=logging.getLogger("push_to_poll_client"))
    assert hints.read(WebhookRequest(body=body), "webhook") == Push()


def test_a_webhook_of_another_subscription_is_not_a_push_after_adopt():
    subscription = subscription_of()
    assert subscription.hint(webhook(id="other")) == Push()
    subscription.adopt([Registration(id="s-1"), Registration(id="s-2")])
    assert subscription.hint(webhook(id="s-1")) == subscription.hint(webhook(id="s-2")) == Push()
    assert subscription.hint(webhook(id="other")) is None


def test_the_answer_to_a_webhook_reports_done():
    answer = DurableStreamsWebhook.response
    assert (answer.status, json.loads(answer.body), answer.content_type) == (
        200,
        {"done": True},
        "application/json",
    )


# Secrets and arguments


async def test_the_token_is_sent_to_the_server_and_not_shown(caplog):
    caplog.set_level(logging.DEBUG)
    subscription = subscription_of(server := Server(), auth=CANARY)
    await subscription.create(subscription.plan())
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {CANARY}"}
    assert CANARY not in caplog.text + repr(subscription) + subscription.name + repr(subscription.verify)


async def test_user_and_password_of_the_root_url_are_sent_with_the_key_request_too():
    subscription = subscription_of(server := Server(), root=f"https://user:{CANARY}@streams.example/v1/stream")
    await subscription.create(subscription.plan())
    assert [request.headers["authorization"][:6] for request in server.requests] == ["Basic ", "Basic "]
    assert CANARY not in repr(subscription) + subscription.name + repr(subscription.verify)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"callback": "me.example"}, ValueError, "must start with http:// or https://"),
        ({"callback": 7}, TypeError, "int"),
        ({"pattern": ""}, ValueError, "pattern must not have an empty path"),
        ({"streams": [""]}, ValueError, "streams must not have an empty path"),
        ({"streams": [7]}, TypeError, "streams: a path must be a str, got int"),
        ({"tolerance": 0}, ValueError, "tolerance must be finite and above 0"),
        ({"root": f"{ROOT}#x"}, ValueError, "has a query or fragment"),
    ],
)
def test_invalid_arguments_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        subscription_of(**options)
