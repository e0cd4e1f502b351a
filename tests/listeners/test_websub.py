"""WebSub with a hub in memory that follows the Recommendation, and has the quirks of real hubs.

The hub calls the real webhook, and the real manager keeps the subscription alive, in virtual time.
"""

import contextlib
import json
import logging
import threading
from urllib.parse import quote_plus

import anyio
import anyio.to_thread
import httpx
import pytest

from push_to_poll_client import Push, SubscriptionGone
from push_to_poll_client.listeners._requests import UnusableResponse
from push_to_poll_client.listeners._webhook.types import WebhookRequest
from push_to_poll_client.listeners.subscriptions import Registration, WebSub
from push_to_poll_client.listeners.subscriptions._callbacks import MAX_CHALLENGE, HubTarget
from push_to_poll_client.listeners.webhook import WebhookListener
from tests.support.asgi_calls import asked, scope_of
from tests.support.subscription_server import Channel
from tests.support.websub_hub import CALLBACK, HUB, SELF, TOPIC, Hub

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day")]

TEN_DAYS = 864_000


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch):
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", anyio.current_time)


@pytest.fixture
def caplog(caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    return caplog


@pytest.fixture
async def hub():
    async with anyio.create_task_group() as tasks:
        yield Hub(tasks)
        tasks.cancel_scope.cancel()


def websub(servers, topic=TOPIC, callback=CALLBACK, **options):
    return WebSub(topic, callback, client=servers.client(), **options)


@contextlib.asynccontextmanager
async def subscribed(hub, subscription=None, *, channel=None, seconds=1.0, unsubscribe_on_exit=False):
    """Run the webhook for some time, and until the end of the block."""
    hooks = hub.app = WebhookListener(
        subscription=subscription or websub(hub), unsubscribe_on_exit=unsubscribe_on_exit
    )
    hooks._manager._fraction = lambda: 0.0
    channel = channel or Channel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hooks.listen, channel)
        await anyio.sleep(seconds)
        yield channel
        tasks.cancel_scope.cancel()


def registration_of(channel):
    return json.loads(channel.state)["book"]["current"]


def only(hub):
    (((topic, callback), (secret, until)),) = hub.subscriptions.items()
    return topic, callback, secret, until


# From discovery to a wake


async def test_the_topic_names_the_hub_and_a_push_of_the_hub_wakes(hub):
    async with subscribed(hub) as channel:
        topic, callback, secret, until = only(hub)
        assert hub.requests == [("GET", TOPIC), ("POST", HUB)]
        assert topic == SELF
        assert callback.startswith(f"{CALLBACK}/")
        assert len(callback) > len(CALLBACK) + 30
        assert len(secret) > 40
        assert channel.until == until == pytest.approx(1e9 + 0.12 + TEN_DAYS, abs=0.02)
        assert await hub.push() == [200]
    assert [event for _, event in channel.events] == ["up", Push()]


async def test_a_subscription_is_renewed_within_the_lease_granted_by_the_hub(hub):
    hub.lease = "60"
    async with subscribed(hub, seconds=600) as channel:
        assert len(hub.subscriptions) == 1
        assert len([form for form in hub.forms if form["hub.mode"] == "subscribe"]) == 20
        assert channel.said("down") == []


async def test_the_requested_lease_applies_if_the_hub_states_none(hub):
    hub.asks = {"hub.lease_seconds": None}
    async with subscribed(hub, websub(hub, lease=1000.0)) as channel:
        assert channel.until == pytest.approx(1e9 + 1000, abs=1)


@pytest.mark.parametrize("lease", ["", "-5", "1e9", "٣", "9" * 11, "soon"])
async def test_the_requested_lease_applies_if_the_hub_states_an_invalid_one(hub, lease):
    hub.lease = lease
    hub.asks = {"hub.lease_seconds": lease}
    async with anyio.create_task_group() as tasks:
        hub._verify = lambda *what: hub.call(
            what[2],
            {
                "hub.mode": what[0],
                "hub.topic": what[1],
                "hub.challenge": "c",
                "hub.lease_seconds": lease,
            },
        )
        async with subscribed(hub) as channel:
            assert channel.until == pytest.approx(1e9 + TEN_DAYS, abs=1)
        tasks.cancel_scope.cancel()


async def test_a_new_subscription_replaces_the_old_one_before_its_lease_ends(hub):
    hub.lease = "1000"
    async with subscribed(hub) as channel:
        before = only(hub)
        await anyio.sleep(600)
        after = only(hub)
        assert after[1] != before[1]
        assert after[2] != before[2]
        assert [form["hub.mode"] for form in hub.forms] == ["subscribe", "subscribe", "unsubscribe"]
        assert hub.verified == [200, 200, 200]
        assert hub.requests.count(("GET", TOPIC)) == 2  # it may have moved to another hub
        assert channel.said("up", "down") == ["up", "up"]


async def test_the_old_and_the_new_subscription_both_wake_during_a_replacement(hub):
    hub.lease = "1000"
    async with subscribed(hub) as channel:
        before = only(hub)[1]
        hub.answers = [None, httpx.Response(503), httpx.Response(503)]  # it does not stop the old one at once
        await anyio.sleep(500.3)
        assert len(hub.subscriptions) == 2
        assert await hub.push() == [200, 200]
        await anyio.sleep(60)
        assert [callback for _, callback in hub.subscriptions] != [before]
    assert len(channel.said(Push())) == 2


async def test_a_push_for_a_stopped_subscription_is_answered_410(hub):
    hub.lease = "1000"
    async with subscribed(hub):
        old = dict(hub.subscriptions)
        await anyio.sleep(600)
        hub.subscriptions |= old
        assert sorted(await hub.push()) == [200, 410]
        assert len(hub.subscriptions) == 1


async def test_a_push_to_an_unknown_callback_is_answered_401(hub):
    async with subscribed(hub) as channel:
        for path in ("/", "/unknown", "/%00"):
            answer = await asked(hub.app, scope_of("POST", path, headers={"content-length": "0"}), b"")
            assert answer.status == 401
    assert channel.said(Push()) == []


# Pushes


@pytest.mark.parametrize("method", ["sha1", "sha256", "sha384", "sha512"])
async def test_a_push_signed_with_any_websub_method_wakes(hub, method):
    async with subscribed(hub) as channel:
        assert await hub.push(method=method) == [200]
    assert channel.said(Push()) == [Push()]


async def test_a_push_without_the_right_secret_is_refused(hub):
    async with subscribed(hub) as channel:
        assert await hub.push(secret="another") == [401]
        _, callback, _, until = only(hub)
        hub.subscriptions = {(SELF, callback): (None, until)}
        assert await hub.push() == [401]
    assert channel.said(Push()) == []


async def test_a_configured_secret_is_used(hub):
    async with subscribed(hub, websub(hub, secret="t0p")):
        assert only(hub)[2] == "t0p"
        assert await hub.push() == [200]


async def test_the_same_content_twice_is_two_pushes(hub):
    async with subscribed(hub) as channel:
        await hub.push()
        await hub.push()
    assert len(channel.said(Push())) == 2


# Credentials go only to their origin (G12)


async def test_credentials_go_to_the_topic_and_not_to_the_hub(hub):
    subscription = websub(hub, auth="c4n4ry", headers={"x-key": "c4n4ry"})
    async with subscribed(hub, subscription):
        assert hub.seen[0]["authorization"] == "Bearer c4n4ry"
        assert "c4n4ry" not in str(hub.seen[1])
    assert "c4n4ry" not in repr(subscription) + subscription.name


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_topic_that_moved_is_followed_without_credentials(hub, status):
    moved = httpx.Response(status, headers={"location": "https://new.example/feed"})
    landed = httpx.Response(200, headers={"link": f"<{HUB}>; rel=hub"})
    hub.topic = moved
    take = hub._take

    async def handle(request):
        return landed if request.url.host == "new.example" else await take(request)

    hub._take = handle
    async with subscribed(hub, websub(hub, auth="c4n4ry")):
        assert only(hub)[0] == "https://new.example/feed"
    assert hub.requests[:2] == [("GET", TOPIC), ("GET", "https://new.example/feed")]
    assert "authorization" not in hub.seen[1]


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_to_another_hub_is_followed(hub, status):
    hub.answers = [httpx.Response(status, headers={"location": "https://other.example/hub"})]
    async with subscribed(hub, websub(hub, auth="c4n4ry"), unsubscribe_on_exit=True):
        assert hub.requests[1:] == [("POST", HUB), ("POST", "https://other.example/hub")]
        assert hub.forms[0] == hub.forms[1]
        assert len(hub.subscriptions) == 1
    assert hub.requests[-1] == ("POST", "https://other.example/hub")  # the hub of the request
    assert hub.subscriptions == {}


@pytest.mark.parametrize(
    ("location", "why"),
    [
        (HUB, "redirects more than 3 times"),
        ("ftp://hub.example/", "redirects to an address that is not an http URL"),
        (None, "redirects to an address that is not an http URL"),
        ("https://xn--zz/", "redirected to an invalid URL"),
        ("location: /", "redirected to an invalid URL"),
    ],
)
async def test_redirects_that_lead_nowhere_are_refused(hub, location, why):
    headers = {} if location is None else {"location": location}
    hub.answers = [httpx.Response(307, headers=headers) for _ in range(9)]
    async with subscribed(hub) as channel:
        assert why in str(channel.error)
    assert len(hub.requests) <= 5


async def test_a_302_redirect_of_the_hub_is_an_error(hub):
    hub.answers = [httpx.Response(302, headers={"location": "https://other.example/"})]
    async with subscribed(hub) as channel:
        assert "HTTP 302 instead of a subscription" in str(channel.error)


async def test_a_hub_without_https_gets_no_secret(hub, caplog):
    async with subscribed(hub, websub(hub, hub="http://hub.example/")) as channel:
        assert only(hub)[2] is None
        assert "secret" not in registration_of(channel)["details"]
        assert await hub.push() == [200]
        assert await hub.push(callback="https://me.example/hooks/blog/other") == []
    assert "the hub does not use https, so it gets no secret" in caplog.text


async def test_a_configured_secret_is_not_sent_to_a_hub_without_https(hub):
    async with subscribed(hub, websub(hub, hub="http://hub.example/", secret="c4n4ry")) as channel:
        assert "does not use https, so the secret cannot be sent" in str(channel.error)
    assert hub.requests == []


async def test_a_hub_with_https_cannot_redirect_to_one_without(hub):
    hub.answers = [httpx.Response(307, headers={"location": "http://hub.example/plain"})]
    async with subscribed(hub) as channel:
        assert "https://hub.example/ redirects from https to http://hub.example/plain" in str(channel.error)
    assert hub.requests == [("GET", TOPIC), ("POST", HUB)]


async def test_a_topic_with_https_cannot_redirect_to_one_without(hub):
    hub.topic = httpx.Response(301, headers={"location": "http://blog.example/feed"})
    async with subscribed(hub) as channel:
        assert "redirects from https to http://blog.example/feed" in str(channel.error)
    assert hub.requests == [("GET", TOPIC)]


async def test_a_hub_that_redirects_away_from_http_gets_the_secret_by_https_only(hub):
    hub.answers = [httpx.Response(307, headers={"location": HUB})]
    async with subscribed(hub, websub(hub, hub="http://hub.example/")):
        assert "hub.secret" not in hub.forms[0]
        assert "hub.secret" in hub.forms[1]
        assert await hub.push() == [200]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]"])
async def test_a_hub_on_localhost_gets_the_secret_without_https(hub, host):
    async with subscribed(hub, websub(hub, hub=f"http://{host}/")):
        assert "hub.secret" in hub.forms[0]


# Verification by the hub


async def test_a_verification_may_arrive_before_the_response_of_the_hub(hub):
    hub.verifies = "first"
    async with subscribed(hub) as channel:
        assert len(hub.subscriptions) == 1
        assert channel.said("up") == ["up"]


async def test_a_verification_counts_even_if_the_hub_responds_with_an_error(hub):
    hub.verifies = "first"
    take = hub._take

    async def fail(request):
        await take(request)
        return httpx.Response(500)

    hub._take = fail
    async with subscribed(hub) as channel:
        assert channel.said("up") == ["up"]
        assert len(hub.forms) == 1


async def test_a_verification_may_arrive_twice(hub):
    hub.verifies = "twice"
    async with subscribed(hub) as channel:
        assert hub.verified == [200, 200]
        assert channel.said("up") == ["up"]


async def test_a_repeated_verification_is_confirmed_after_a_restart(hub):
    async with subscribed(hub) as channel:
        pass
    async with subscribed(hub, channel=channel):
        topic, callback, _, _ = only(hub)
        await hub._verify("subscribe", topic, callback, {"hub.lease_seconds": "10"})
        await hub._verify("subscribe", "https://other.example/", callback, {})
        await hub._verify("unsubscribe", topic, callback, {})
        assert hub.verified == [200, 200, 404, 404]
        assert (await hub.call(callback, {"hub.mode": "subscribe", "hub.challenge": "c"})).status == 404


async def test_a_missing_verification_is_reported_and_the_same_callback_is_requested_again(hub):
    hub.verifies = "never"
    async with subscribed(hub, seconds=65) as channel:
        assert channel.said("up", "down") == ["down"]
        assert "did not call back within 60 s" in str(channel.error)
        hub.verifies = "after"
        await anyio.sleep(60)
        assert channel.said("up", "down") == ["down", "down", "up"]
        callbacks = {form["hub.callback"] for form in hub.forms}
        assert len(callbacks) == 1  # the same callback is requested again


async def test_a_verification_after_the_timeout_still_completes_the_subscription(hub):
    hub.delay = 62
    hub.answers = [None, httpx.Response(429, headers={"retry-after": "30"})]
    async with subscribed(hub, seconds=70) as channel:
        assert len(hub.subscriptions) == 1
        assert await hub.push() == [200]
        await anyio.sleep(30)
        assert channel.said("up") == ["up"]
        assert len(hub.forms) == 2  # the callback that came is found, without a third request


async def test_a_verified_subscription_with_an_expired_lease_is_requested_again(hub):
    hub.lease = "20"
    hub.delay = 62
    hub.answers = [None, httpx.Response(429, headers={"retry-after": "300"})]
    async with subscribed(hub, seconds=70):
        hub.delay = 0.1
        await anyio.sleep(300)
        assert len(hub.forms) >= 3


@pytest.mark.parametrize(
    "asks",
    [
        {"hub.topic": "https://other.example/feed"},
        {"hub.topic": None},
        {"hub.mode": "unsubscribe"},
        {"hub.mode": "publish"},
        {"hub.challenge": None},
        {"hub.challenge": "x" * (MAX_CHALLENGE + 1)},
        {"hub.challenge": "a\nb"},
        {"hub.challenge": "<ü>"},
    ],
)
async def test_a_verification_that_differs_from_the_request_is_answered_404(hub, asks):
    hub.asks = asks
    async with subscribed(hub):
        assert hub.verified == [404]


async def test_a_verification_at_an_unknown_callback_is_answered_404(hub):
    async with subscribed(hub):
        answer = await hub.call(
            f"{CALLBACK}/other", {"hub.mode": "subscribe", "hub.topic": SELF, "hub.challenge": "c"}
        )
        assert answer.status == 404
        denied = await hub.call(f"{CALLBACK}/other", {"hub.mode": "denied", "hub.topic": SELF})
        assert denied.status == 404
        assert (await asked(hub.app, scope_of("GET", "/"))).status == 405


async def test_the_callback_may_have_a_query(hub):
    async with subscribed(hub, websub(hub, callback=f"{CALLBACK}/?tenant=7")):
        callback = only(hub)[1]
        assert callback.startswith(f"{CALLBACK}/")
        assert callback.endswith("?tenant=7")
        assert await hub.push() == [200]


async def test_an_unsubscription_that_was_not_requested_is_not_confirmed(hub):
    async with subscribed(hub):
        topic, callback, _, _ = only(hub)
        await hub._verify("unsubscribe", topic, callback, {})
        assert hub.verified[-1] == 404
        assert len(hub.subscriptions) == 1


async def test_the_webhook_may_run_in_another_thread(hub):
    subscription = websub(hub)
    subscription.adopt([planned := subscription.plan()])
    hub.verifies = "never"
    result = []

    async def create():
        result.append(await subscription.create(planned))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(create)
        await anyio.sleep(1)
        query = f"hub.mode=subscribe&hub.topic={SELF}&hub.challenge=c&hub.lease_seconds=70"
        request = WebhookRequest(method="GET", path=f"/{planned.id}", query=query, received_at=1e9)
        thread = threading.Thread(target=subscription.handshake, args=[request])
        thread.start()
        thread.join()
    assert result[0].expires_at == 1e9 + 70


# Denials


async def test_a_denied_subscription_is_reported_and_requested_again_slowly(hub, caplog):
    hub.denies = "not\nyou"
    async with subscribed(hub) as channel:
        assert hub.verified == [200]
        assert r"https://hub.example/ denied the subscription: 'not\nyou'" in str(channel.error)
        await anyio.sleep(200)
        assert len(hub.forms) == 1
        hub.denies = None
        await anyio.sleep(101)
        assert channel.said("up") == ["up"]
    assert caplog.records[0].levelname == "WARNING"


async def test_a_subscription_ended_by_the_hub_is_replaced_at_once(hub, caplog):
    async with subscribed(hub, seconds=100) as channel:
        before = only(hub)[1]
        await hub.deny("moved")
        assert hub.verified[-1] == 200
        await anyio.sleep(1)
        assert only(hub)[1] != before
        assert channel.said("up", "down", Push()) == ["up", "down", "up"]
    assert f"WebSub {TOPIC}: the hub ended the subscription: 'moved'" in caplog.messages


WORDS = "." * 192 + "hub-canary"
"""200 characters of a hub's reason are shown. They end within the secret."""


async def test_a_secret_at_the_cut_end_of_the_reason_of_an_end_is_masked(hub, caplog):
    async with subscribed(hub, websub(hub, secret="hub-canary")):
        await hub.deny(WORDS)
    assert "the hub ended the subscription" in caplog.text
    assert "hub-c" not in caplog.text


@pytest.mark.parametrize("denied", [True, False])
async def test_a_secret_at_the_cut_end_of_a_refusal_is_masked(hub, caplog, denied):
    if denied:
        hub.denies = WORDS
    else:
        hub.answers = [httpx.Response(400, text=WORDS)]
    async with subscribed(hub, websub(hub, secret="hub-canary")) as channel:
        assert ("denied" if denied else "HTTP 400") in str(channel.error)
    assert "hub-c" not in f"{caplog.text} {channel.error}"
    assert "." * 100 in caplog.text


async def test_a_hub_that_ends_each_subscription_at_once_is_asked_with_delays(hub):
    async with subscribed(hub):
        for _ in range(1000):
            await anyio.sleep(1)
            await hub.deny("no")
        assert len(hub.forms) < 100


async def test_a_denial_for_another_topic_is_answered_404(hub):
    async with subscribed(hub):
        callback = only(hub)[1]
        denied = await hub.call(callback, {"hub.mode": "denied", "hub.topic": "https://other.example/"})
        assert denied.status == 404
        assert (await hub.call(callback, {"hub.mode": "denied"})).status == 404


async def test_a_denial_of_a_replaced_subscription_is_ignored(hub):
    subscription = websub(hub)
    heard = []
    subscription.bind(heard.append)
    old, new = (Registration(id=name, details={"topic": SELF}) for name in ("old", "new"))
    subscription.adopt([subscription.plan(), new, old])
    for name in ("old", "new"):
        query = f"hub.mode=denied&hub.topic={SELF}"
        assert subscription.handshake(WebhookRequest(method="GET", path=f"/{name}", query=query)).status == 200
        assert len(heard) == (name == "new")


async def test_a_denial_is_accepted_without_a_subscription_manager(hub):
    subscription = websub(hub)
    known = Registration(id="1", details={"topic": SELF})
    subscription.adopt([known])
    query = f"hub.mode=denied&hub.topic={SELF}"
    answer = subscription.handshake(WebhookRequest(method="GET", path="/1", query=query))
    assert answer.status == 200


# Failing hubs and topics


@pytest.mark.parametrize(("status", "seconds"), [(500, 1), (429, 1), (400, 301), (403, 301)])
async def test_a_hub_that_refuses_is_asked_again(hub, status, seconds, caplog):
    hub.answers = [httpx.Response(status, text="why\nnot")]
    async with subscribed(hub, seconds=0.5) as channel:
        await anyio.sleep(seconds)
        assert channel.said("down", "up") == ["down", "up"]
    assert rf"the hub answered HTTP {status}: 'why\nnot'" in caplog.text


@pytest.mark.parametrize("secret", [None, "s&cr t/c4n4ry"])
async def test_a_hub_that_quotes_the_request_brings_no_secret_into_the_log(hub, secret, caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")

    class Quotes:
        def pop(self, _):
            form = hub.forms[-1]
            said = [form["hub.secret"], quote_plus(form["hub.secret"]), form["hub.callback"]]
            return httpx.Response(400, text="wrong: " + " ".join(said))

    hub.answers = Quotes()
    async with subscribed(hub, websub(hub, secret=secret), seconds=0.5):
        pass
    assert "the hub answered HTTP 400: 'wrong: *** *** https://me.example/hooks/blog/***'" in caplog.text
    assert hub.forms[0]["hub.secret"] not in caplog.text


async def test_a_hub_that_forgets_is_asked_again_before_the_lease_ends(hub):
    hub.lease = "100"
    async with subscribed(hub):
        hub.subscriptions.clear()
        await anyio.sleep(60)
        assert len(hub.subscriptions) == 1


async def test_a_topic_may_move_to_another_hub(hub):
    hub.lease = "1000"
    async with subscribed(hub):
        hub.topic = httpx.Response(200, headers={"link": "<https://second.example/>; rel=hub"})
        await anyio.sleep(600)
        assert hub.requests[-2:] == [("POST", "https://second.example/"), ("POST", HUB)]
        assert only(hub)[0] == TOPIC


async def test_a_topic_that_names_no_hub_cannot_be_subscribed_to(hub):
    hub.topic = httpx.Response(200, text="hello")
    async with subscribed(hub) as channel:
        assert "does not name a hub (WebSub §4)" in str(channel.error)


async def test_a_topic_that_cannot_be_read_is_asked_again(hub):
    hub.topic = httpx.Response(503)
    async with subscribed(hub, seconds=0.5) as channel:
        hub.topic = None
        await anyio.sleep(2)
        assert channel.said("up") == ["up"]


async def test_a_configured_hub_is_used_without_reading_the_topic(hub):
    async with subscribed(hub, websub(hub, hub=HUB)):
        assert hub.requests == [("POST", HUB)]
        assert only(hub)[0] == TOPIC


# Unsubscribing


async def test_a_subscription_is_ended_at_exit_if_configured(hub):
    async with subscribed(hub, unsubscribe_on_exit=True) as channel:
        pass
    assert hub.subscriptions == {}
    assert hub.verified == [200, 200]
    assert channel.state is None


async def test_a_subscription_is_kept_at_exit_by_default(hub):
    async with subscribed(hub) as channel:
        pass
    async with subscribed(hub, channel=channel):
        assert len(hub.forms) == 1
        assert await hub.push() == [200]


async def test_a_requested_but_unverified_subscription_is_ended_at_exit(hub):
    hub.delay = 2
    async with subscribed(hub, unsubscribe_on_exit=True):
        assert hub.subscriptions == {}
    await anyio.sleep(3)
    assert [form["hub.mode"] for form in hub.forms] == ["subscribe", "unsubscribe"]
    assert hub.subscriptions == {}


async def test_a_planned_subscription_is_stopped_once_at_the_hub_of_the_topic(hub):
    subscription = websub(hub)
    subscription.adopt([planned := subscription.plan()])
    hub.app = WebhookListener(subscription=subscription)
    await subscription.stop(planned)
    assert hub.forms[0]["hub.mode"] == "unsubscribe"
    assert hub.verified == [200]
    await subscription.stop(planned)
    assert len(hub.forms) == 1  # it was stopped already


@pytest.mark.parametrize(
    ("status", "error"), [(400, SubscriptionGone), (404, SubscriptionGone), (403, httpx.HTTPStatusError)]
)
async def test_stop_raises_subscription_gone_if_the_hub_does_not_know_the_subscription(hub, status, error):
    hub.answers = [httpx.Response(status)]
    with pytest.raises(error):
        await websub(hub).stop(Registration(id="1", details={"topic": SELF, "hub": HUB}))


async def test_stop_times_out_if_the_hub_does_not_verify_it(hub):
    hub.verifies = "never"
    with pytest.raises(TimeoutError):
        await websub(hub).stop(Registration(id="1", details={"topic": SELF, "hub": HUB}))


async def test_a_verification_is_answered_after_the_event_loop_has_ended(hub):
    subscription = websub(hub)
    subscription.adopt([Registration(id="1")])
    waiting = subscription._callbacks.expect_callback("1", "subscribe", SELF, HubTarget(HUB, public_only=True))

    class Gone:
        def call(self, function):
            return False

    waiting._waiting = Gone(), anyio.Event()
    query = f"hub.mode=subscribe&hub.topic={SELF}&hub.challenge=c&hub.lease_seconds=70"
    assert subscription.handshake(WebhookRequest(method="GET", path="/1", query=query)).body == b"c"


# Arguments


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"topic": "feed"}, ValueError, "must start with http"),
        ({"callback": "hooks"}, ValueError, "must start with http"),
        ({"callback": f"{CALLBACK}#x"}, ValueError, "fragment"),
        ({"hub": "mailto:hub@hub.example"}, ValueError, "must start with http"),
        ({"secret": ""}, ValueError, "1 to 199"),
        ({"secret": "x" * 200}, ValueError, "got 200"),
        ({"secret": "ü" * 100}, ValueError, "got 200"),
        ({"secret": b"x"}, TypeError, "secret must be a str, got bytes"),
        ({"lease": 0}, ValueError, "lease"),
        ({"lease": "10"}, TypeError, "lease"),
    ],
)
def test_invalid_arguments_are_refused(options, error, why):
    with pytest.raises(error, match=why):
        WebSub(**{"topic": TOPIC, "callback": CALLBACK} | options)


def test_name_and_repr_show_the_topic_without_secrets():
    subscription = WebSub("https://user:c4n4ry@blog.example/feed?key=c4n4ry", CALLBACK)
    assert subscription.name == "WebSub https://blog.example/feed?key=…"
    assert repr(subscription) == f"<{subscription.name}>"


async def test_a_topic_without_a_hub_is_an_unusable_response(hub):
    hub.topic = httpx.Response(200)
    with pytest.raises(UnusableResponse):
        await websub(hub).create(websub(hub).plan())
