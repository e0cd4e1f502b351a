"""A webhook with a subscription: its arguments, handshakes, and reports that it is up."""

import functools

import anyio
import pytest

from push_to_poll_client import ListenerError, Push
from push_to_poll_client.listeners import webhook
from push_to_poll_client.listeners._webhook.routing import FLOOD_QUIET_TIME
from push_to_poll_client.listeners.handshakes import dropbox_challenge
from push_to_poll_client.listeners.subscriptions import _manager
from push_to_poll_client.listeners.subscriptions._types import Registration
from push_to_poll_client.listeners.webhook import Control, WebhookListener, WebhookResponse
from push_to_poll_client.testing import FakeFeed
from tests.support.asgi_calls import Signatures, asked, listened, posted, scope_of, signed
from tests.support.channels import TimedChannel
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio

hearing = functools.partial(listened, channel=TimedChannel)

QUESTION = scope_of("GET", query=b"challenge=abc")


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch):
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", anyio.current_time)


class Manager:
    """Does what a test says, and records its calls."""

    def __init__(self, subscription, *, unsubscribe_on_exit):
        self.subscription = subscription
        self.unsubscribe_on_exit = unsubscribe_on_exit
        self.expects_handshake = False
        self.is_loaded = True
        self.controls = []
        self.channel = None
        self.error = None
        self.ended = anyio.Event()

    async def run(self, channel):
        self.channel = channel
        await self.ended.wait()
        if self.error is not None:
            raise self.error

    def control(self, control):
        self.controls.append(control)


class Subscription:
    name = "vendor"


@pytest.fixture(autouse=True)
def managers(monkeypatch):
    made = []

    def make(subscription, *, unsubscribe_on_exit):
        made.append(Manager(subscription, unsubscribe_on_exit=unsubscribe_on_exit))
        return made[-1]

    monkeypatch.setattr(webhook, "SubscriptionManager", make)
    return made


def subscribed(**arguments):
    return WebhookListener(Signatures(), subscription=Subscription(), **arguments)


async def test_a_webhook_takes_missing_arguments_from_its_subscription(managers):
    subscription = Subscription()
    subscription.verify = Signatures()
    subscription.hint = lambda request: Push("its")
    subscription.response = WebhookResponse(202)
    subscription.handshake = dropbox_challenge()
    hooks = WebhookListener(subscription=subscription, unsubscribe_on_exit=True)
    assert (managers[0].subscription, managers[0].unsubscribe_on_exit) == (subscription, True)
    async with hearing(hooks.listener_for("alice")) as channel:
        assert (await posted(hooks)).status == 202
        assert (await posted(hooks, headers={"X-Signature": "x"})).status == 401
        assert (await asked(hooks, QUESTION)).body == b"abc"  # the subscription decides what to answer
    assert channel.pushes == [Push("its")]


async def test_arguments_of_the_webhook_override_those_of_its_subscription():
    subscription = Subscription()
    subscription.verify = lambda request: False
    subscription.hint = lambda request: Push("its")
    subscription.response = WebhookResponse(202)
    hooks = WebhookListener(
        Signatures(),
        hint=lambda request: Push("ours"),
        response=WebhookResponse(204),
        subscription=subscription,
    )
    async with hearing(hooks.listener_for("alice")) as channel:
        assert (await posted(hooks)).status == 204
    assert channel.pushes == [Push("ours")]


async def test_a_webhook_without_a_verifier_is_a_type_error():
    with pytest.raises(TypeError, match="verify is required"):
        WebhookListener(subscription=Subscription())


async def test_a_handshake_is_answered_only_while_one_is_expected(managers):
    hooks = subscribed(handshake=dropbox_challenge())
    assert (await asked(hooks, QUESTION)).status == 405
    managers[0].expects_handshake = True
    assert (await asked(hooks, QUESTION)).body == b"abc"
    managers[0].expects_handshake = False
    assert (await asked(hooks, QUESTION)).status == 405
    assert (hooks.counters().handshakes, hooks.counters().unasked) == (1, 2)


@pytest.mark.parametrize("control", [Control.RENEW, Control.RECREATE])
async def test_a_control_message_goes_to_the_subscription_manager(managers, control):
    hooks = subscribed(hint=lambda request: control)
    async with hearing(hooks) as channel:
        for _ in range(2):
            await posted(hooks, headers=signed(b"", **{"X-Id": "1"}))
    assert managers[0].controls == [control]
    assert channel.events == []
    assert (hooks.counters().controls, hooks.counters().replayed) == (1, 1)


async def test_a_notice_of_missed_pushes_requests_a_poll(managers):
    hooks = subscribed(hint=lambda request: Control.MISSED)
    async with hearing(hooks) as channel:
        await posted(hooks)
    assert managers[0].controls == []
    assert channel.events == [(0, "poll")]


async def test_every_channel_goes_up_and_down_with_the_subscription(managers):
    hooks = subscribed()
    async with hearing(hooks, hooks.listener_for("alice")) as (channel, alice):
        await anyio.sleep(1)
        managers[0].channel.up()
        await anyio.sleep(1)
        managers[0].channel.down(ValueError("x"))
        await anyio.sleep(1)
        managers[0].channel.up()
        await anyio.sleep(1)
        async with hearing(hooks.listener_for("bob")) as bob:
            pass
    assert channel.events == [(1, "up"), (2, "down"), (3, "up")]
    assert alice.events[:3] == channel.events
    assert str(alice.errors[0]) == "x"
    assert bob.events == [(0, "up")]


async def test_state_and_events_of_the_subscription_manager_reach_its_consumer(managers):
    hooks = subscribed()
    async with hearing(hooks) as channel:
        kept = managers[0].channel
        assert kept.state is None
        await kept.save("state")
        assert kept.state == channel.state == "state"
        kept.subscribed(7.0)
        kept.request_poll()
        kept.wake(Push("c"))
    assert channel.subscribed_until == 7.0
    assert channel.events == [(0, "poll"), (0, Push("c"))]


async def test_the_channel_is_up_only_without_a_flood_and_with_an_active_subscription(managers):
    hooks = subscribed(rate=0.001, burst=1)

    async def flood():
        for _ in range(2):
            await posted(hooks)
        await anyio.sleep(1)

    async with hearing(hooks) as channel:
        await flood()
        managers[0].channel.up()  # registered; the poll finds earlier pushes
        await anyio.sleep(FLOOD_QUIET_TIME)
        await flood()
        managers[0].channel.down()
        await anyio.sleep(FLOOD_QUIET_TIME)
        managers[0].channel.up()
    said = [event for _, event in channel.events if not isinstance(event, Push)]
    assert said == ["down", "poll", "up", "down", "down", "up"]


async def test_a_subscription_refused_for_good_ends_the_consumer(managers):
    hooks = subscribed()
    consumer = Log(FakeFeed(), listeners=[hooks])
    refused = ListenerError("refused for good")
    managers[0].error = refused
    managers[0].ended.set()
    with pytest.raises(ListenerError, match="refused for good") as caught:
        await consumer.run()
    assert caught.value is refused


async def test_the_end_of_the_subscription_manager_takes_the_other_listeners_down(managers):
    hooks = subscribed()
    async with hearing(hooks.listener_for("alice")) as alice:
        async with hearing(hooks):
            managers[0].channel.up()
            await anyio.sleep(1)
            managers[0].ended.set()
            await anyio.sleep(1)
        await anyio.sleep(1)
        async with hearing(hooks):
            await anyio.sleep(1)
    assert [event for _, event in alice.events] == ["up", "down", "down"]


async def test_a_second_consumer_cannot_manage_the_same_subscription():
    hooks = subscribed()
    async with hearing(hooks):
        with pytest.raises(RuntimeError, match="webhook: another consumer already keeps the subscription"):
            await hooks.listen(TimedChannel())


class Vendor:
    """A server that sends a handshake while it is subscribed to, and pushes from then on."""

    name = "vendor"

    def __init__(self):
        self.answers = []
        self.hooks = None

    def plan(self):
        return Registration(id="1")

    async def create(self, planned):
        self.answers.append(await asked(self.hooks, QUESTION))
        return planned

    async def renew(self, registration):
        return registration

    async def stop(self, registration):
        self.answers.append("stopped")


async def test_the_real_subscription_manager_answers_the_handshake_and_recreates_the_subscription(
    running, monkeypatch, virtual_day
):
    """A handshake before the server's response is answered; later ones are not."""
    monkeypatch.setattr(webhook, "SubscriptionManager", _manager.SubscriptionManager)
    vendor = Vendor()
    hooks = vendor.hooks = WebhookListener(
        Signatures(),
        handshake=dropbox_challenge(),
        hint=lambda request: Control.RECREATE if request.body == b"gone" else Push(),
        subscription=vendor,
    )
    feed = FakeFeed()
    consumer = running(Log(feed, listeners=[hooks], fallback_interval=86_400))
    await anyio.sleep(60)
    assert [answer.body for answer in vendor.answers] == [b"abc"]
    assert consumer.status().listeners[0].up
    assert (await asked(hooks, QUESTION)).status == 405
    feed.publish("1")
    await posted(hooks)
    await anyio.sleep(1)
    assert consumer.processed == ["1"]
    await posted(hooks, b"gone")
    await anyio.sleep(120)
    assert len(vendor.answers) == 2
    assert consumer.status().listeners[0].up
