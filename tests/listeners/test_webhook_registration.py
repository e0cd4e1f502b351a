"""A webhook whose consumer keeps the registration in its store: before, while and after the consumer runs.

An application serves its webhooks as soon as it starts. Its consumers may start later, or in another process.
"""

import anyio
import pytest
from msgspec.structs import replace

from push_to_poll_client import MemoryStore
from push_to_poll_client.listeners.subscriptions import CustomSubscription, WebSub
from push_to_poll_client.listeners.verifiers import github, header_token
from push_to_poll_client.listeners.webhook import WebhookListener
from push_to_poll_client.testing import FakeFeed
from tests.support.asgi_calls import SECRET, asked, scope_of, signature_of
from tests.support.consumers import Log
from tests.support.websub_hub import CALLBACK, SELF, TOPIC, Hub

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day")]


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch):
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", anyio.current_time)


@pytest.fixture
def store():
    """One store for all processes."""
    return MemoryStore()


class Vendor:
    """A server that shows a token with each push."""

    def __init__(self):
        self.tokens = []

    async def create(self, planned):
        self.tokens.append(planned.details["secret"])
        return replace(planned, expires_at=4e9)

    def webhook(self, verify=None, **options):
        subscription = CustomSubscription(self.create, name="vendor")
        verify = (
            subscription.verified_by(lambda tokens: header_token(tokens, "X-Token")) if verify is None else verify
        )
        return WebhookListener(verify, subscription=subscription, **options)

    async def push(self, webhook):
        return await asked(webhook, scope_of(headers={"X-Token": self.tokens[-1]}))


async def from_stranger(webhook, body=b""):
    return await asked(
        webhook, scope_of(headers={"X-Token": "guessed", "X-Hub-Signature-256": "sha256=" + "0" * 64})
    )


async def run(webhook, store, work=None):
    """Run a consumer, call a function meanwhile, and stop it."""
    consumer = Log(FakeFeed(), store=store, listeners=[webhook], fallback_interval=86_400)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(2)
        if work is not None:
            await work()
        consumer.stop()


def is_asked_to_retry(answer):
    return (answer.status, answer.headers.get("retry-after")) == (503, "5")


async def test_a_push_before_the_registration_is_loaded_is_answered_503_and_later_200(store):
    vendor = Vendor()
    await run(vendor.webhook(), store)
    restarted = vendor.webhook()
    assert is_asked_to_retry(await vendor.push(restarted))
    assert is_asked_to_retry(await from_stranger(restarted))

    async def work():
        assert (await vendor.push(restarted)).status == 200
        assert (await from_stranger(restarted)).status == 401

    await run(restarted, store, work)
    assert len(vendor.tokens) == 1
    assert (restarted.counters().not_ready, restarted.counters().refused) == (2, 1)


async def test_a_push_after_the_consumer_stopped_is_answered_200_and_one_of_a_later_registration_503(store):
    vendor = Vendor()
    stopped = vendor.webhook()
    await run(stopped, store)
    assert (await vendor.push(stopped)).status == 200
    # Another process stops the registration, and another run creates a new one.
    await run(vendor.webhook(unsubscribe_on_exit=True), store)
    await run(vendor.webhook(), store)
    assert len(vendor.tokens) == 2
    assert is_asked_to_retry(await vendor.push(stopped))


async def test_a_verifier_that_needs_no_registration_answers_at_once():
    fixed = Vendor().webhook(github(SECRET))
    headers = {"X-Hub-Signature-256": f"sha256={signature_of(b'{}')}"}
    assert (await asked(fixed, scope_of(headers=headers), b"{}")).status == 200


async def test_a_webhook_without_a_subscription_answers_401_whether_a_consumer_runs_or_not():
    webhook = WebhookListener(github(SECRET))
    assert (await from_stranger(webhook)).status == 401
    assert webhook.counters().not_ready == 0


async def test_the_log_reports_once_that_requests_cannot_be_verified_yet(caplog):
    caplog.set_level("INFO")
    webhook = Vendor().webhook()
    await from_stranger(webhook)
    await from_stranger(webhook)
    assert [record.getMessage() for record in caplog.records] == [
        "webhook: answered 503 to a request that cannot be verified while no consumer keeps the subscription"
    ]


async def test_a_hub_that_asks_or_pushes_before_the_registration_is_loaded_is_answered_503(store):
    async with anyio.create_task_group() as tasks:
        hub = Hub(tasks)
        webhook = hub.app = WebhookListener(subscription=WebSub(TOPIC, CALLBACK, client=hub.client()))
        await run(webhook, store)
        hub.app = WebhookListener(subscription=WebSub(TOPIC, CALLBACK, client=hub.client()))
        assert await hub.push() == [503]
        query = f"hub.mode=subscribe&hub.topic={SELF}&hub.challenge=abc&hub.lease_seconds=9".encode()
        path = hub.forms[0]["hub.callback"].removeprefix(CALLBACK.rpartition("/")[0])
        question = scope_of("GET", path, query=query)
        assert is_asked_to_retry(await asked(hub.app, question))

        async def work():
            assert (await asked(hub.app, question)).body == b"abc"
            assert await hub.push() == [200]

        await run(hub.app, store, work)
        tasks.cancel_scope.cancel()
