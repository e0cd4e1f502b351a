"""A subscription made of three functions."""

import re
import threading

import anyio
import anyio.to_thread
import pytest

from push_to_poll_client.listeners.subscriptions import CustomSubscription, Registration
from push_to_poll_client.listeners.subscriptions._manager import failure_of
from push_to_poll_client.listeners.verifiers import header_token, token_in_body
from push_to_poll_client.listeners.webhook import WebhookRequest
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio

ONE = Registration(id="1", details={"secret": "s"})


def test_a_registration_shows_no_secret():
    shown = repr(Registration(id="c4n4ry", expires_at=1.5, details={"secret": "c4n4ry"}))
    assert shown == "Registration(1 details, expires_at=1.5)"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """In real time: plain functions run in threads, which virtual time does not wait for."""
    return request.param


async def test_async_functions_are_awaited():
    async def create(planned):
        return planned

    async def renew(registration):
        return None

    async def stop(registration):
        stopped.append(registration)

    stopped = []
    subscription = CustomSubscription(create, renew, stop, name="vendor")
    assert await subscription.create(ONE) == ONE
    assert await subscription.renew(ONE) is None
    assert await subscription.stop(ONE) is None
    assert stopped == [ONE]


async def test_sync_functions_run_in_a_thread():
    threads = []

    def note(registration):
        threads.append(threading.current_thread())
        return registration

    subscription = CustomSubscription(note, note, note, name="vendor")
    assert await subscription.create(ONE) == ONE
    assert await subscription.renew(ONE) == ONE
    await subscription.stop(ONE)
    assert threading.current_thread() not in threads
    assert len(threads) == 3


async def test_callable_objects_and_functions_that_return_coroutines_are_awaited():
    class Create:
        async def __call__(self, planned):
            return planned

    async def renew(registration):
        return registration

    subscription = CustomSubscription(Create(), lambda registration: renew(registration) or None, name="vendor")
    assert await subscription.create(ONE) == ONE
    assert await subscription.renew(ONE) == ONE


async def test_cancellation_does_not_wait_for_a_sync_function_that_hangs():
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(planned):
        begun.set()
        go_on.wait(GUARD)
        ended.set()
        return planned

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(CustomSubscription(hang, name="vendor").create, ONE)
        assert await anyio.to_thread.run_sync(begun.wait, GUARD)
        tasks.cancel_scope.cancel()
    assert not ended.is_set()
    go_on.set()
    assert ended.wait(GUARD)


async def test_a_subscription_with_only_create_is_not_renewable_and_its_stop_does_nothing():
    subscription = CustomSubscription(lambda planned: planned, name="vendor")
    assert await subscription.renew(ONE) is None
    assert await subscription.stop(ONE) is None
    assert not subscription.renewable


def test_each_plan_has_a_unique_id_and_secret():
    subscription = CustomSubscription(lambda planned: planned, name="vendor")
    one, two = subscription.plan(), subscription.plan()
    assert len({one.id, two.id}) == len({one.details["secret"], two.details["secret"]}) == 2
    assert len(one.id) == 36
    assert len(one.details["secret"]) == 43
    assert subscription.secrets == ()
    subscription.adopt([one, two, Registration(id="3")])
    assert subscription.secrets == (one.details["secret"], two.details["secret"])
    assert repr(subscription) == "CustomSubscription(name='vendor')"


@pytest.mark.parametrize("functions", [(None,), ("create",), (print, "renew"), (print, None, 1)])
def test_arguments_that_are_not_functions_are_a_type_error(functions):
    with pytest.raises(TypeError, match="must be a function"):
        CustomSubscription(*functions, name="vendor")


def test_a_request_is_verified_with_the_secrets_of_the_adopted_registrations():
    subscription = CustomSubscription(lambda planned: planned, name="vendor")
    verify = subscription.verified_by(header_token)
    one, two = subscription.plan(), subscription.plan()

    def passes(registration):
        request = WebhookRequest(headers={"x-goog-channel-token": registration.details["secret"]})
        assert verify(request) == verify.may_pass(request)
        return verify(request)

    assert not passes(one)
    subscription.adopt([one])
    assert passes(one)
    assert not passes(two)
    subscription.adopt([two, one])
    assert passes(one)
    assert passes(two)
    subscription.adopt([])
    assert not passes(one)


def test_may_pass_is_true_for_a_verifier_that_needs_the_body():
    subscription = CustomSubscription(lambda planned: planned, name="vendor")
    subscription.adopt([subscription.plan()])
    assert subscription.verified_by(token_in_body).may_pass(WebhookRequest())


async def test_an_error_in_a_function_is_reported_with_its_line_and_without_its_text():
    async def create(planned):
        return planned.details["c4n4ry"]

    with pytest.raises(KeyError) as raised:
        await CustomSubscription(create, name="vendor").create(ONE)
    told = failure_of(raised.value)
    assert re.fullmatch(r"failed with KeyError in create, line \d+ of test_subscription_custom\.py", told.sentence)
    assert told.cause is None
    assert failure_of(KeyError("c4n4ry")).sentence == "failed with KeyError"
