"""Pushes from the reference server of Durable Streams, on real sockets. Waits only for events.

Everything processed was pushed: the timer polls once an hour, and the feed does not use long polling.
"""

import contextlib
import time

import anyio
import httpx
import pytest
from anyio.to_thread import run_sync

from push_to_poll_client import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.durable_streams import DurableStreamFeed, PullWakeListener
from push_to_poll_client.durable_streams._pull_wake import BURST, RATE
from push_to_poll_client.durable_streams._subscription import DurableStreamsWebhook
from push_to_poll_client.listeners._webhook.limits import TokenBucket
from push_to_poll_client.listeners.webhook import WebhookListener
from tests.support.channels import listening
from tests.support.consumers import Log
from tests.support.durable_streams_server import serving
from tests.support.forms import GUARD, form
from tests.support.served_app import serving as serving_app
from tests.support.tcp_proxy import TCPProxy

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]

NEVER = 3600.0


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="module")
def server():
    with serving(webhooks=True) as server:
        yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Allows a confirm interval as short as a test needs."""
    monkeypatch.setattr("push_to_poll_client.listeners.subscriptions._state.MIN_RENEWAL_INTERVAL", 0.0)


class Noted:
    """A listener that lets a test wait until it is up."""

    def __init__(self, listener):
        self._listener = listener
        self._up = anyio.Event()

    async def listen(self, channel):
        up, down = channel.up, channel.down

        def note_up():
            up()
            self._up.set()

        def note_down(error=None):
            self._up = anyio.Event()
            down(error)

        channel.up, channel.down = note_up, note_down
        await self._listener.listen(channel)

    async def until_up(self):
        with anyio.fail_after(GUARD):
            await self._up.wait()


@contextlib.asynccontextmanager
async def consuming(stream, listener):
    """A consumer that runs until the end of the block. Its channel is up at the start."""
    feed = DurableStreamFeed(stream.url, max_wait=None)
    noted = Noted(listener)
    consumer = Log(feed, fallback_interval=NEVER, patience=GUARD, listeners=[noted])
    consumer.until_up = noted.until_up
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await noted.until_up()
        yield consumer
        tasks.cancel_scope.cancel()
    await feed.aclose()


@contextlib.contextmanager
def served_hooks():
    """The URL of a webhook, and a list to which its receivers are appended."""
    hooks = []

    async def app(scope, receive, send):
        await hooks[0](scope, receive, send)

    with serving_app(app) as url:
        yield url, hooks


def listener_for(url, server, stream, **options):
    options = {"streams": [stream.name], **options}
    subscription = DurableStreamsWebhook(server.root, callback=f"{url}/hook", **options)
    listener = WebhookListener(subscription=subscription, unsubscribe_on_exit=True)
    listener._manager._fraction = lambda: 0.0  # the smallest random delay
    return listener


@contextlib.contextmanager
def webhook_of(server, stream, **options):
    with served_hooks() as (url, hooks):
        hooks.append(listener_for(url, server, stream, **options))
        yield hooks[0]


def pull_wake_of(server, stream, **options):
    settings = {"streams": [stream.name], "wake_stream": f"wakes/{stream.name}", **options}
    listener = PullWakeListener(server.root, **settings)
    listener._fraction = listener._manager._fraction = lambda: 0.0
    return listener


@pytest.fixture(params=["webhook", "pull-wake"])
def pushed_by(request):
    """Make a listener, for the duration of a block."""
    if request.param == "webhook":
        return webhook_of
    return lambda server, stream, **options: contextlib.nullcontext(pull_wake_of(server, stream, **options))


async def append_one_by_one(consumer, stream, count):
    done = len(consumer.processed)
    for number in range(count):
        await run_sync(stream.append, number)
        await consumer.until(done + number + 1)


async def test_each_appended_message_is_pushed_and_processed(server, pushed_by):
    stream = server.stream()
    with pushed_by(server, stream) as listener:
        async with consuming(stream, listener) as consumer:
            await append_one_by_one(consumer, stream, 8)
            (channel,) = consumer.status().listeners
            assert 7 <= channel.pushes <= 8  # the first poll may have found message 1


async def test_messages_that_are_appended_during_pushes_are_all_processed(server, pushed_by):
    """A server that gets "done" for one wake sends the next."""
    stream = server.stream()
    with pushed_by(server, stream) as listener:
        async with consuming(stream, listener) as consumer, anyio.create_task_group() as writers:
            for number in range(50):
                writers.start_soon(run_sync, stream.append, number)
            await consumer.until(50)


async def test_a_pattern_subscription_pushes_for_streams_created_later(server, pushed_by):
    first = server.stream()
    name = f"{first.name}/**"
    with pushed_by(server, first, streams=[], pattern=name) as listener:
        async with consuming(first, listener):
            pass
        later = type(first)(first._client, f"{first.url}/later", "application/json")
        await run_sync(later.create)
        async with consuming(later, listener) as consumer:
            await append_one_by_one(consumer, later, 2)


async def test_a_push_names_the_stream(server):
    stream, other = server.stream(), server.stream()
    async with listening(pull_wake_of(server, stream, streams=[stream.name, other.name])) as channel:
        await channel.saw("up")
        await run_sync(other.append, 1)
        await channel.saw("up", Push(topics=(other.name,)))


async def test_messages_are_processed_after_a_killed_server_forgot_the_subscription(pushed_by, tmp_path):
    """It also has a new key. The poll after the confirmation finds older messages."""
    with serving(webhooks=True, dataDir=str(tmp_path)) as server:
        stream = server.stream(0)
        with pushed_by(server, stream, confirm_every=0.3) as listener:
            async with consuming(stream, listener) as consumer:
                await append_one_by_one(consumer, stream, 1)
                await run_sync(server.kill)
                await run_sync(server.start)
                await append_one_by_one(consumer, stream, 1)
                await consumer.until_up()
                await append_one_by_one(consumer, stream, 3)


async def test_messages_appended_to_a_suspended_server_are_processed_after_it_resumes(server, pushed_by):
    stream = server.stream(0)
    with pushed_by(server, stream) as listener:
        async with consuming(stream, listener) as consumer:
            await append_one_by_one(consumer, stream, 1)
            server.suspend()
            async with anyio.create_task_group() as writers:
                for number in range(3):
                    writers.start_soon(run_sync, stream.append, number)
                server.resume()
                await consumer.until(5)
            await append_one_by_one(consumer, stream, 2)


async def test_a_webhook_without_an_answer_is_sent_again_after_the_lease(server):
    """A proxy lost it, or this process was suspended."""
    stream = server.stream(0)
    with served_hooks() as (url, hooks), TCPProxy(httpx.URL(url).port) as proxy:
        hooks.append(listener_for(f"http://127.0.0.1:{proxy.port}", server, stream, lease=1.0))
        async with consuming(stream, hooks[0]) as consumer:
            await append_one_by_one(consumer, stream, 1)
            proxy.blackhole()
            await run_sync(stream.append, 2)
            await run_sync(proxy.wait_for, lambda counts: counts.swallowed)
            proxy.heal()
            await consumer.until(3)
            await append_one_by_one(consumer, stream, 3)


async def test_requests_that_the_server_did_not_sign_are_refused_and_do_not_wake(server):
    stream = server.stream(0)
    with served_hooks() as (url, hooks):
        hooks.append(listener_for(url, server, stream))
        async with (
            consuming(stream, hooks[0]) as consumer,
            httpx.AsyncClient(timeout=GUARD, trust_env=False) as client,
        ):
            await append_one_by_one(consumer, stream, 1)
            for header in ("", f"t=1,kid=x,ed25519={'A' * 86}", f"t={time.time():.0f},kid=x,ed25519={'A' * 86}"):
                answer = await client.post(f"{url}/hook", content=b"{}", headers={"webhook-signature": header})
                assert answer.status_code == 401
            assert consumer.status().listeners[0].pushes == 1


async def test_a_server_without_webhooks_stops_the_consumer():
    with serving() as server:
        stream = server.stream(0)
        with webhook_of(server, stream) as listener, pytest.raises(ListenerError, match="INVALID_REQUEST"):
            await run_to_the_end(stream, listener)


async def test_a_callback_that_the_server_rejects_stops_the_consumer(server):
    stream = server.stream(0)
    callback = "http://10.0.0.1/?key=c4n4ry"
    subscription = DurableStreamsWebhook(server.root, callback=callback, streams=[stream.name])
    with pytest.raises(
        ListenerError, match="WEBHOOK_URL_REJECTED: the server does not push to this callback"
    ) as caught:
        await run_to_the_end(stream, WebhookListener(subscription=subscription))
    assert "c4n4ry" not in str(caught.value)


async def run_to_the_end(stream, listener):
    with anyio.fail_after(GUARD):
        await Log(DurableStreamFeed(stream.url), fallback_interval=NEVER, listeners=[listener]).run()


async def test_no_message_is_lost_when_the_server_ends_the_event_stream(server):
    stream = server.stream(0)
    async with consuming(stream, pull_wake_of(server, stream)) as consumer:
        for _ in range(form(1, 3)):
            await run_sync(server.end_event_streams)
            await append_one_by_one(consumer, stream, 3)
            await consumer.until_up()


async def test_all_workers_of_a_subscription_are_woken(server):
    stream = server.stream(0)
    async with (
        consuming(stream, pull_wake_of(server, stream)) as one,
        consuming(stream, pull_wake_of(server, stream)) as other,
    ):
        for number in range(10):
            await run_sync(stream.append, number)
            await one.until(number + 2)
            await other.until(number + 2)


async def test_a_consumer_is_woken_again_after_the_claim_of_a_dead_worker_expires(server):
    stream = server.stream(0)
    dead = pull_wake_of(server, stream, lease=1.0)
    async with consuming(stream, pull_wake_of(server, stream, lease=1.0)) as consumer:
        await append_one_by_one(consumer, stream, 1)
        dead._bucket = TokenBucket(RATE, BURST)
        with anyio.fail_after(GUARD):
            while dead._claim is None:  # until it has the claim
                await run_sync(stream.append, 7)
                await dead._take()
        done = len(consumer.processed)
        await run_sync(stream.append, 8)
        await consumer.until(done + 1)
        await append_one_by_one(consumer, stream, 1)
