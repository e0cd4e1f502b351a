"""WebSub in a consumer: state in its store, status, and a poll for each registration and push."""

import anyio
import httpx
import pytest

from push_to_poll_client import MemoryStore
from push_to_poll_client.listeners.subscriptions import WebSub
from push_to_poll_client.listeners.webhook import WebhookListener
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log
from tests.support.websub_hub import CALLBACK, HUB, TOPIC, Hub

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day")]


@pytest.fixture
def store():
    """One store for all runs."""
    return MemoryStore()


@pytest.fixture
async def hub(monkeypatch):
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", anyio.current_time)
    async with anyio.create_task_group() as tasks:
        yield Hub(tasks)
        tasks.cancel_scope.cancel()


def consumer_of(hub, feed, store, *, takes=0.0, unsubscribe_on_exit=False, others=(), **settings):
    subscription = WebSub(TOPIC, CALLBACK, client=hub.client())
    hub.app = WebhookListener(subscription=subscription, unsubscribe_on_exit=unsubscribe_on_exit)
    settings = {"fallback_interval": 3600, **settings}
    return Log(feed, store=store, takes=takes, listeners=[hub.app, *others], **settings)


async def lived(consumer, work=None):
    """Run the consumer, call a function, and stop it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(2)
        if work is not None:
            await work()
        status = consumer.status()
        consumer.stop()
    return status


async def test_a_restart_of_a_consumer_does_not_subscribe_twice(hub, store):
    feed = FakeFeed()

    async def push():
        feed.publish()
        assert await hub.push() == [200]
        await anyio.sleep(1)

    status = await lived(consumer_of(hub, feed, store), push)
    assert status.listeners[0].up
    assert status.listeners[0].subscribed_until == pytest.approx(1e9 + 864_000, abs=5)
    assert status.counters.messages == 1
    status = await lived(consumer_of(hub, feed, store), push)
    assert status.counters.messages == 1
    assert len(hub.forms) == 1
    assert len(hub.subscriptions) == 1


OTHER = "https://blog.example/other"


@pytest.mark.parametrize(
    "arguments", [(OTHER, CALLBACK, HUB), (TOPIC, f"{CALLBACK}/new", HUB), (TOPIC, CALLBACK, f"{HUB}new")]
)
async def test_a_restart_with_other_arguments_subscribes_again_and_stops_the_old_subscription(
    hub, store, arguments
):
    """The old registration may last ten days, without pushes for the new request."""
    for topic, callback, where in (TOPIC, CALLBACK, HUB), arguments:
        subscription = WebSub(topic, callback, hub=where, client=hub.client())
        hub.app = WebhookListener(subscription=subscription)
        await lived(Log(FakeFeed(), store=store, listeners=[hub.app], fallback_interval=3600))
    assert [form["hub.mode"] for form in hub.forms] == ["subscribe", "subscribe", "unsubscribe"]
    assert [form["hub.topic"] for form in hub.forms] == [TOPIC, arguments[0], TOPIC]
    assert hub.forms[1]["hub.callback"].startswith(arguments[1])
    assert (arguments[0], hub.forms[1]["hub.callback"]) in hub.subscriptions


async def test_listeners_in_another_order_keep_their_own_subscriptions(hub, store):
    for topics in (TOPIC, OTHER), (OTHER, TOPIC):
        apps = [
            WebhookListener(subscription=WebSub(topic, CALLBACK, hub=HUB, client=hub.client())) for topic in topics
        ]

        async def either(scope, receive, send, apps=apps):
            path = scope["path"].rpartition("/")[2]
            mine = [app for app in apps if app._manager._subscription._callbacks.requests.get(path)]
            await (*mine, apps[0])[0](scope, receive, send)

        hub.app = either
        await lived(Log(FakeFeed(), store=store, listeners=apps, fallback_interval=3600))
        assert [app._manager._state.current.details["topic"] for app in apps] == list(topics)
    assert sorted(topic for topic, _ in hub.subscriptions) == sorted([TOPIC, OTHER])


async def test_a_self_link_that_is_too_long_is_replaced_by_the_topic_url(hub, store):
    link = f"<{HUB}>; rel=hub, <https://blog.example/{'x' * 17_000}>; rel=self"
    hub.topic = httpx.Response(200, headers=[("link", link)])
    status = await lived(consumer_of(hub, FakeFeed(), store))
    assert status.listeners[0].up
    assert hub.forms[0]["hub.topic"] == TOPIC


async def test_a_consumer_that_ends_may_end_its_subscription(hub, store):
    feed = FakeFeed()
    for lives in range(1, 3):
        await lived(consumer_of(hub, feed, store, unsubscribe_on_exit=True))
        assert hub.subscriptions == {}
        assert [form["hub.mode"] for form in hub.forms] == ["subscribe", "unsubscribe"] * lives


async def test_a_consumer_ends_its_subscription_while_a_message_is_in_flight(hub, store):
    feed = FakeFeed()
    consumer = consumer_of(hub, feed, store, unsubscribe_on_exit=True, takes=2.0)

    async def push():
        feed.publish()
        await hub.push()
        await anyio.sleep(0.5)

    await lived(consumer, push)
    assert len(consumer.processed) == 1
    assert hub.subscriptions == {}


# A hub that forgets


def subscribes(hub):
    return sum(form["hub.mode"] == "subscribe" for form in hub.forms)


async def test_a_subscription_that_the_hub_forgot_is_made_again_within_a_few_polls(hub, store):
    """Before its renewal, which would be after at least five days."""
    feed = FakeFeed()
    consumer = consumer_of(hub, feed, store, fallback_interval=60, degraded_interval=10)

    async def work():
        await anyio.sleep(3600)
        hub.subscriptions.clear()
        began = anyio.current_time()
        while subscribes(hub) == 1:
            assert anyio.current_time() - began < 600
            feed.publish()
            assert await hub.push() == []
            await anyio.sleep(10)
        await anyio.sleep(10)
        assert len(hub.subscriptions) == 1
        feed.publish()
        assert await hub.push() == [200]
        await anyio.sleep(1)
        status = consumer.status()
        assert not status.losing_pushes
        assert status.counters.messages == len(consumer.processed) == len(set(consumer.processed))
        assert status.lag(1e9 + anyio.current_time()) is not None

    await lived(consumer, work)
    assert len(hub.subscriptions) == 1


async def test_a_hub_that_never_pushes_is_asked_twelve_times_in_a_week(hub, store):
    feed = FakeFeed()
    consumer = consumer_of(hub, feed, store, fallback_interval=1200, degraded_interval=600)

    async def work():
        for _ in range(7 * 24 * 3):
            feed.publish()
            await anyio.sleep(1200)

    status = await lived(consumer, work)
    assert status.losing_pushes
    assert subscribes(hub) == 12  # the first one, and eleven more
    assert len(hub.subscriptions) == 1


class Silent:
    """A channel without a subscription, which claims to be up and never pushes."""

    async def listen(self, channel):
        channel.up()
        await anyio.sleep_forever()


async def test_only_listeners_with_a_subscription_act_on_missed_pushes(hub, store):
    feed = FakeFeed()
    consumer = consumer_of(hub, feed, store, fallback_interval=60, others=[Silent()])

    async def work():
        for _ in range(10):
            feed.publish()
            await anyio.sleep(60)

    status = await lived(consumer, work)
    assert [listener.up for listener in status.listeners] == [True, True]
    assert subscribes(hub) == 2
