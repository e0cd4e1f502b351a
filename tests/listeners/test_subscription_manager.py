"""Keeping a subscription alive, in virtual time, with a scripted server."""

import contextlib
import itertools
import logging
import math
import threading

import anyio
import httpx
import pytest

from push_to_poll_client import ListenerError, StoreError, SubscriptionGone
from push_to_poll_client.listeners._webhook.types import Control
from push_to_poll_client.listeners.subscriptions import Registration
from push_to_poll_client.listeners.subscriptions._manager import EXIT_TIMEOUT, SubscriptionManager
from push_to_poll_client.listeners.subscriptions._types import SubscriptionRefused
from tests.support.clock import elapsed, time_of_day
from tests.support.subscription_server import Channel, Server, Vendor

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day")]


def status(code, **headers):
    request = httpx.Request("POST", "https://vendor.example/?key=c4n4ry")
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    text = f"Client error '{code}' for url '{request.url}'\nFor more information check: …"  # as httpx words it
    return httpx.HTTPStatusError(text, request=request, response=httpx.Response(code, headers=headers))


def manager_of(vendor, *, fraction=0.0, **options):
    manager = SubscriptionManager(vendor, **options)
    manager._fraction = lambda: fraction
    return manager


@contextlib.asynccontextmanager
async def keeping(manager, channel):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.run, channel)
        yield
        tasks.cancel_scope.cancel()


async def keep(vendor, seconds, channel=None, **options):
    """Let the manager run for some seconds of virtual time."""
    channel = channel or Channel()
    with anyio.move_on_after(seconds):
        await manager_of(vendor, **options).run(channel)
    return channel


@pytest.fixture
def caplog(caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    return caplog


def times_of(server, what):
    return [at for at, which in server.asked if which == what]


# Life cycle


async def test_a_subscription_is_created_and_renewed_at_half_of_its_lifetime(caplog):
    server = Server(lifetime=100)
    channel = await keep(Vendor(server), 160)
    assert server.asked == [(0, "create"), (50.1, "renew"), (100.2, "renew"), (150.3, "renew")]
    assert channel.events == [(0.1, "up"), (50.2, "up"), (100.3, "up"), (150.4, "up")]
    assert channel.until == 1e9 + 250.4
    assert len(server.live) == 1
    assert "vendor: registered; next renewal: in 50 s" in caplog.messages
    assert {record.levelname for record in caplog.records} == {"INFO"}


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_renewals_of_many_consumers_are_spread_over_a_quarter_of_the_lifetime():
    early, late = Server(lifetime=86_400), Server(lifetime=86_400)
    await keep(Vendor(early), 65_000, fraction=0.0)
    await keep(Vendor(late), 65_000, fraction=0.999)
    assert times_of(early, "renew")[0] == pytest.approx(43_200, abs=1)
    assert times_of(late, "renew")[0] - 65_000 == pytest.approx(0.74975 * 86_400, abs=1)


async def test_a_subscription_without_an_expiry_is_never_renewed(caplog):
    server = Server(lifetime=math.inf)
    channel = await keep(Vendor(server, expires=False), 1e5)
    assert server.asked == [(0, "create")]
    assert channel.until == math.inf
    assert "vendor: registered; next renewal: never" in caplog.messages


async def test_a_subscription_with_a_lifetime_of_a_minute_never_lapses():
    server = Server(lifetime=60)
    await keep(Vendor(server), 600)
    assert server.counts(lambda count: count == 0) == 0
    assert len(server.asked) == 20


async def test_a_subscription_with_a_lifetime_of_a_century_is_created_once():
    server = Server(lifetime=3.2e9)
    await keep(Vendor(server), 3600)
    assert server.asked == [(0, "create")]


async def test_a_subscription_with_an_expiry_in_the_past_is_replaced_once_a_minute(caplog):
    server = Server(lifetime=-3600)
    channel = await keep(Vendor(server, renews=False), 600)
    assert len(times_of(server, "create")) == 10
    assert channel.said("down") == []
    assert "check this machine's clock" in caplog.text


async def test_a_subscription_that_cannot_be_renewed_is_replaced_without_a_gap():
    server = Server(lifetime=100)
    vendor = Vendor(server, renews=False)
    channel = await keep(vendor, 60)
    assert server.asked == [(0, "create"), (50.1, "renew"), (50.2, "create"), (50.3, "stop")]
    assert server.counts(lambda count: count == 0) == 0
    assert server.counts(lambda count: count > 1) == pytest.approx(0.1)
    one, two = vendor.adopted[1][0], vendor.adopted[-1][0]
    assert vendor.adopted == [[], [one], [one], [two, one], [two, one], [two]]
    assert channel.events == [(0.1, "up"), (50.3, "up")]


async def test_a_subscription_may_omit_the_adopt_and_bind_methods():
    class Careless:
        name = "careless"

        def plan(self):
            return Registration(id="1")

        async def create(self, planned, /):
            return planned

        async def renew(self, registration, /):
            return registration

        async def stop(self, registration, /):
            pass

    channel = await keep(Careless(), 5)
    assert channel.events == [(0, "up")]


# A restart


async def test_a_restart_keeps_the_existing_subscription(caplog):
    server = Server(lifetime=100)
    vendor = Vendor(server, renews=False)
    channel = await keep(vendor, 20)
    channel.events.clear()
    await keep(vendor, 25, channel)
    assert server.asked == [(0, "create")]
    await keep(vendor, 10, channel)
    assert server.asked[1:] == [(50.1, "renew"), (50.2, "create"), (50.3, "stop")]
    assert channel.events == [(20, "up"), (45, "up"), (50.3, "up")]
    assert "vendor: using the registration of an earlier run" in caplog.messages


async def test_a_restart_checks_a_renewable_subscription_by_renewing_it():
    server = Server(lifetime=100, latency=0)
    vendor = Vendor(server)
    channel = await keep(vendor, 20)
    server.live.clear()
    channel.events.clear()
    await keep(vendor, 5, channel)
    assert [what for _, what in server.asked] == ["create", "renew", "create", "stop"]
    assert len(server.live) == 1


async def test_an_overdue_subscription_is_renewed_at_once_after_a_restart():
    server = Server(lifetime=100)
    vendor = Vendor(server)
    channel = await keep(vendor, 20)
    await anyio.sleep(60)
    await keep(vendor, 5, channel)
    assert server.asked == [(0, "create"), (80, "renew")]


async def test_the_channel_is_down_after_a_restart_until_an_expired_subscription_is_replaced(caplog):
    server = Server(lifetime=100)
    vendor = Vendor(server)
    channel = await keep(vendor, 20)
    channel.events.clear()
    await anyio.sleep(100)
    await keep(vendor, 5, channel)
    assert server.asked == [(0, "create"), (120, "renew"), (120.1, "create")]
    assert channel.events == [(120, "down"), (120.1, "down"), (120.2, "up")]
    assert "vendor: expired before it could be renewed; no pushes arrive, still retrying" in caplog.messages


@pytest.mark.parametrize("state", ["garbage", '{"version":99,"book":{}}'])
async def test_an_unreadable_saved_state_is_replaced_by_a_new_subscription(state, caplog):
    server = Server()
    channel = await keep(Vendor(server), 5, Channel(state))
    assert server.asked == [(0, "create")]
    assert channel.state != state
    assert "vendor: the saved subscription state cannot be read; subscribing again" in caplog.messages
    assert state not in caplog.text


async def test_a_planned_subscription_is_saved_before_the_create_request():
    server = Server(latency=10)
    vendor = Vendor(server)
    channel = await keep(vendor, 5)
    (planned,) = vendor.adopted[-1]
    assert planned in channel.state
    await keep(vendor, 15, channel)
    assert list(server.live) == [planned]
    assert vendor.plans == 1


async def test_a_replacement_subscription_is_completed_after_a_restart():
    server = Server(lifetime=100)
    vendor = Vendor(server, renews=False)
    channel = Channel()
    with anyio.move_on_after(50.25):
        await manager_of(vendor).run(channel)
    assert len(server.live) == 1
    await keep(vendor, 5, channel)
    assert vendor.plans == 2
    assert len(server.live) == 1


# Failures


async def test_a_failed_create_is_retried_with_a_growing_delay(caplog):
    server = Server(latency=0)
    server.script["create"].extend(status(503) for _ in range(5))
    channel = await keep(Vendor(server), 60)
    assert times_of(server, "create") == [0, 0, 1, 3, 7, 15]
    assert channel.said("up", "down") == ["down"] * 5 + ["up"]
    assert "vendor: the server answered HTTP 503 instead of a subscription; retrying in 1.0 s" in caplog.text
    assert "c4n4ry" not in caplog.text


async def test_the_retry_after_of_the_server_is_obeyed():
    server = Server(latency=0)
    server.script["create"].append(status(429, retry_after="500"))
    await keep(Vendor(server), 600)
    assert times_of(server, "create") == [0, 500]


@pytest.mark.parametrize("code", [400, 401, 403, 404])
async def test_a_create_refused_by_the_server_is_retried_slowly(code, caplog):
    server = Server(latency=0)
    server.script["create"].append(status(code))
    channel = Channel()
    async with keeping(manager_of(Vendor(server)), channel):
        await anyio.sleep(10)
        assert f"HTTP {code} instead of a subscription" in str(channel.error)
        await anyio.sleep(300)
    assert times_of(server, "create") == [0, 300]
    assert channel.said("up", "down") == ["down", "up"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_a_create_that_raises_subscription_refused_is_retried_slowly():
    server = Server(latency=0)
    server.script["create"].append(SubscriptionRefused("the hub denied it"))
    channel = await keep(Vendor(server), 310)
    assert times_of(server, "create") == [0, 300]
    assert "vendor: the hub denied it" in str(channel.error)


async def test_neither_a_reported_failure_nor_its_causes_keep_a_traceback():
    """The frames refer to headers and clients, and the status keeps the error."""
    server, cause = Server(latency=0), OSError("reset")
    try:
        raise cause
    except OSError:
        server.script["create"].append(SubscriptionRefused("the hub denied it"))
    server.script["create"][0].__cause__ = cause
    refused = (await keep(Vendor(server), 10)).error.__cause__
    assert refused.__cause__ is cause
    assert (refused.__traceback__, cause.__traceback__) == (None, None)


@pytest.mark.parametrize("error", [ListenerError("no such feed"), status(410)])
async def test_a_permanent_create_error_raises_a_listener_error(error, caplog):
    server = Server()
    server.script["create"].append(error)
    channel = Channel()
    with pytest.raises(ListenerError, match="a retry cannot help"):
        await manager_of(Vendor(server)).run(channel)
    assert channel.said("down") == ["down"]
    assert caplog.records[-1].levelname == "ERROR"


@pytest.mark.parametrize("answer", ["garbage", Registration(id=1)])
async def test_a_create_that_returns_an_invalid_value_raises_a_listener_error(answer):
    server = Server()
    server.script["create"].append(answer)
    with pytest.raises(ListenerError, match="return"):
        await manager_of(Vendor(server)).run(Channel())


async def test_a_failed_renewal_is_retried_and_the_channel_stays_up():
    server = Server(lifetime=100, latency=0)
    server.script["renew"].extend([status(500), OSError("reset"), None])
    channel = await keep(Vendor(server), 90)
    assert times_of(server, "renew") == [50, 50, 51]
    assert channel.said("up", "down") == ["up", "up"]


async def test_the_channel_goes_down_when_renewals_fail_until_the_subscription_expires(caplog):
    server = Server(lifetime=100, latency=0)
    server.script["renew"].extend(status(403) for _ in range(2))
    channel = Channel()
    async with keeping(manager_of(Vendor(server)), channel):
        await anyio.sleep(345)
        assert channel.events == [(0, "up"), (110, "down")]
        assert channel.until is None
        await anyio.sleep(10)
        assert channel.events[2:] == [(350, "down")]
        await anyio.sleep(300)
    assert channel.events[3:] == [(650, "down"), (652, "up")]  # the server has dropped it, too
    expired = "vendor: expired before it could be renewed; no pushes arrive, still retrying"
    assert caplog.messages.count(expired) == 1


async def test_a_subscription_found_missing_at_its_renewal_is_created_again(caplog):
    for gone in (SubscriptionGone("expired"), status(404), status(410)):
        server = Server(lifetime=100, latency=0)
        server.script["renew"].append(gone)
        channel = await keep(Vendor(server), 60)
        assert [what for _, what in server.asked] == ["create", "renew", "create", "stop"]
        assert channel.said("up", "down") == ["up", "down", "up"]
        assert len(server.live) == 1
        assert "vendor: " in str(channel.error)
        assert "c4n4ry" not in str(channel.error) + caplog.text  # httpx words it with the whole URL (G12)
    lost = "vendor: lost: the server answered HTTP 410 instead of a subscription; retrying in 0.0 s"
    assert lost in caplog.messages


@pytest.mark.parametrize(
    "error",
    [SubscriptionGone("the id is not unique"), ExceptionGroup("", [SubscriptionGone("the id is not unique")])],
)
async def test_a_new_subscription_is_planned_when_the_create_raises_subscription_gone(error):
    server = Server(lifetime=100)
    server.script["create"].append(error)
    vendor = Vendor(server)
    await keep(vendor, 5)
    assert [what for _, what in server.asked] == ["create", "create", "stop"]
    assert vendor.plans == 2
    assert len(server.live) == 1


async def test_a_create_request_that_hangs_is_cancelled_and_retried():
    server = Server(latency=1000)
    await keep(Vendor(server), 700)
    assert len(times_of(server, "create")) == 3


async def test_an_exception_group_of_one_error_is_treated_as_that_error():
    server = Server(lifetime=100, latency=0)
    server.script["renew"].append(ExceptionGroup("", [SubscriptionGone("expired")]))
    await keep(Vendor(server), 60)
    assert [what for _, what in server.asked] == ["create", "renew", "create", "stop"]


async def test_a_failed_save_raises_the_store_error():
    channel = Channel()
    channel.failing = StoreError("the disk is full")
    with pytest.raises(StoreError, match="the disk is full"):
        await manager_of(Vendor(Server())).run(channel)


async def test_a_state_too_long_to_save_raises_a_listener_error():
    channel = Channel()
    channel.failing = ValueError("20000 characters of state, of 16384 at most")
    with pytest.raises(ListenerError, match="cannot save the subscription state: 20000 characters"):
        await manager_of(Vendor(Server())).run(channel)


# Stopping replaced registrations


async def test_a_failed_stop_is_retried():
    server = Server(lifetime=100, latency=0)
    server.script["stop"].extend([status(503), TimeoutError()])
    vendor = Vendor(server, renews=False)
    await keep(vendor, 60)
    assert times_of(server, "stop") == [50, 50, 51]
    assert len(server.live) == 1


@pytest.mark.parametrize("error", [status(404), status(410), SubscriptionGone("unknown"), ListenerError("never")])
async def test_a_stop_is_not_retried_after_a_permanent_error(error):
    server = Server(lifetime=100, latency=0)
    server.script["stop"].append(error)
    channel = await keep(Vendor(server, renews=False), 60)
    assert len(times_of(server, "stop")) == 1
    assert "leaving" not in channel.state


async def test_a_failed_stop_is_retried_only_until_the_subscription_expires():
    server = Server(lifetime=1000, latency=0)
    server.script["stop"].extend(status(403) for _ in range(9))
    await keep(Vendor(server, renews=False), 1250)
    assert times_of(server, "stop") == [500, 800, 1000]  # the last one is for the next registration


@pytest.mark.parametrize("expires", [True, False])
async def test_a_subscription_is_abandoned_after_ten_failed_stops(expires, caplog):
    server = Server(lifetime=1e9, latency=0)
    server.script["stop"].extend(status(500) for _ in range(99))
    vendor = Vendor(server, expires=expires)
    manager, channel = manager_of(vendor), Channel()
    async with keeping(manager, channel):
        await anyio.sleep(5)
        manager.control(Control.RECREATE)
        await anyio.sleep(600)
    assert len(times_of(server, "stop")) == 10
    assert "vendor: cannot stop the old registration, leaving it: the server answered HTTP 500" in caplog.text
    assert "leaving" not in channel.state


async def test_a_stop_request_that_hangs_is_cancelled_and_retried():
    server = Server(lifetime=1000)
    vendor = Vendor(server, renews=False)

    hung = []

    async def hang(registration):
        hung.append(elapsed())
        await anyio.sleep_forever()

    vendor.stop = hang
    await keep(vendor, 540)
    assert hung == [pytest.approx(500.3), pytest.approx(530.3)]


# Controls from the server


async def test_a_subscription_is_renewed_when_the_server_asks_for_it():
    server = Server(lifetime=1000, latency=0)
    manager = manager_of(Vendor(server))
    async with keeping(manager, Channel()):
        await anyio.sleep(100)
        manager.control(Control.RENEW)
        await anyio.sleep(1)
        for _ in range(30):
            manager.control(Control.RENEW)
            await anyio.sleep(1)
    assert times_of(server, "renew") == [100, 115, 130]


async def test_a_subscription_is_created_again_when_the_server_reports_it_dropped():
    server = Server(lifetime=1000, latency=0)
    manager, channel = manager_of(Vendor(server), fraction=0.5), Channel()
    async with keeping(manager, channel):
        await anyio.sleep(100)
        server.live.clear()
        manager.control(Control.RECREATE)
        await anyio.sleep(0.1)
        assert channel.until is None
        await anyio.sleep(0.8)
    assert server.asked == [(0, "create"), (100.5, "create"), (100.5, "stop")]
    assert channel.said("up", "down") == ["up", "down", "up"]


async def test_repeated_drop_notices_create_few_subscriptions():
    server = Server(lifetime=1000, latency=0)
    manager = manager_of(Vendor(server))
    async with keeping(manager, Channel()):
        for _ in range(600):
            manager.control(Control.RECREATE)
            await anyio.sleep(1)
    assert len(times_of(server, "create")) < 30


async def test_a_notice_of_missed_pushes_starts_a_poll():
    manager, channel = manager_of(Vendor(Server())), Channel()
    async with keeping(manager, channel):
        await anyio.sleep(5)
        manager.control(Control.MISSED)
        await anyio.sleep(1)
    assert channel.events == [(0.1, "up"), (5, "poll")]


async def test_notices_about_a_subscription_not_yet_created_are_ignored():
    server = Server(latency=0)
    server.script["create"].append(status(503, retry_after="20"))
    manager = manager_of(Vendor(server))
    async with keeping(manager, Channel()):
        await anyio.sleep(1)
        manager.control(Control.RENEW)
        manager.control(Control.RECREATE)
        await anyio.sleep(30)
    assert [what for _, what in server.asked] == ["create", "create"]


async def test_a_drop_notice_received_before_the_start_takes_effect_after_it():
    server = Server(lifetime=1000)
    vendor = Vendor(server)
    channel = await keep(vendor, 5)
    manager = manager_of(vendor)
    manager.control(Control.RECREATE)
    with anyio.move_on_after(5):
        await manager.run(channel)
    assert len(times_of(server, "create")) == 2


async def test_notices_may_come_from_any_thread_and_after_the_end():
    server = Server(lifetime=1000, latency=0)
    manager = manager_of(Vendor(server))
    async with keeping(manager, Channel()):
        await anyio.sleep(20)
        thread = threading.Thread(target=manager.control, args=[Control.RENEW])
        thread.start()
        thread.join()
        await anyio.sleep(1)
        assert times_of(server, "renew") == [20]
        waiting = manager._waiting
    manager._waiting = waiting
    manager.control(Control.RENEW)


async def test_a_handshake_is_expected_only_while_a_subscription_is_created_or_replaced():
    server = Server(lifetime=100, latency=1)
    server.script["create"].append(status(503))
    vendor = Vendor(server, renews=False)
    manager = manager_of(vendor, fraction=0.9)
    seen = []
    assert not manager.expects_handshake
    async with keeping(manager, Channel()):
        for _ in range(100):
            seen.append(manager.expects_handshake)
            await anyio.sleep(1)
    spans = [at for at, (one, two) in enumerate(itertools.pairwise(seen)) if one != two]
    assert spans[:2] in ([0, 2], [0, 3])  # also between two attempts, until it is created
    assert 70 < spans[2] < spans[3] < 80  # then it is replaced, and the old registration is stopped


async def test_no_handshake_is_expected_while_a_subscription_is_stopped():
    vendor = Vendor(Server(lifetime=100), renews=False)
    manager, seen = manager_of(vendor), []
    stop = vendor.stop

    async def note(registration):
        seen.append(manager.expects_handshake)
        await stop(registration)

    vendor.stop = note
    async with keeping(manager, Channel()):
        await anyio.sleep(60)
    assert seen == [False]


# Clocks


async def test_a_process_that_was_suspended_renews_by_the_wall_clock(monkeypatch):
    server = Server(lifetime=10_000)
    ahead = 0
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: time_of_day() + ahead)
    channel = Channel()
    async with keeping(manager_of(Vendor(server)), channel):
        await anyio.sleep(130)
        ahead = 6000
        await anyio.sleep(60)
    assert channel.events[1:] == [(180.2, "up")]
    assert times_of(server, "renew") == [180.1]


async def test_a_clock_that_is_set_back_does_not_delay_a_renewal(monkeypatch):
    server = Server(lifetime=1000)
    back = 0
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: time_of_day() - back)
    async with keeping(manager_of(Vendor(server)), Channel()):
        await anyio.sleep(130)
        back = 86_400
        await anyio.sleep(400)
    assert times_of(server, "renew") == [500.1]


# Shutdown


async def test_the_subscription_stays_active_at_the_end():
    server = Server()
    channel = await keep(Vendor(server), 5)
    assert len(server.live) == 1
    assert channel.state is not None


async def test_unsubscribe_on_exit_stops_the_subscription():
    server = Server()
    channel = await keep(Vendor(server), 5, unsubscribe_on_exit=True)
    assert server.live == {}
    assert channel.state is None


async def test_unsubscribe_on_exit_stops_a_subscription_that_is_being_created():
    server = Server(latency=1)
    channel = await keep(Vendor(server), 0.5, unsubscribe_on_exit=True)
    assert [what for _, what in server.asked] == ["create", "stop"]
    assert channel.state is None


async def test_unsubscribe_on_exit_waits_only_a_limited_time_for_a_server_that_hangs(caplog):
    server = Server()
    vendor = Vendor(server)
    channel = Channel()
    async with keeping(manager_of(vendor, unsubscribe_on_exit=True), channel):
        await anyio.sleep(5)
        server.latency = 1000
        ended = anyio.current_time()
    assert anyio.current_time() - ended == pytest.approx(EXIT_TIMEOUT)
    assert "vendor: shutdown not finished within 5 s; the next run continues" in caplog.messages
    server.latency = 0.1
    await keep(vendor, 5, channel)
    assert [what for _, what in server.asked][-2:] == ["create", "stop"]
    assert len(server.live) == 1


async def test_a_failed_unsubscribe_on_exit_is_left_for_the_next_run():
    server = Server(lifetime=1000)
    server.script["stop"].append(status(503))
    vendor = Vendor(server)
    channel = await keep(vendor, 5, unsubscribe_on_exit=True)
    assert channel.state is not None
    await keep(vendor, 5, channel)
    assert len(server.live) == 1


async def test_failed_stops_of_another_subscription_do_not_count_at_exit():
    server = Server(lifetime=1e9, latency=0)
    server.script["stop"].extend(status(503) for _ in range(10))
    vendor, channel = Vendor(server), Channel()
    manager = manager_of(vendor, unsubscribe_on_exit=True)
    async with keeping(manager, channel):
        await anyio.sleep(5)
        manager.control(Control.RECREATE)
        await anyio.sleep(65)
    assert times_of(server, "stop") == [5, 5, 6, 8, 12, 20, 36, 66, 70, 70]
    await keep(vendor, 5, channel)
    assert len(server.live) == 1


async def test_a_store_error_at_exit_is_logged(caplog):
    channel = Channel()
    async with keeping(manager_of(Vendor(Server()), unsubscribe_on_exit=True), channel):
        await anyio.sleep(5)
        channel.failing = StoreError("the disk is full")
    assert "vendor: failed while shutting down: StoreError: the disk is full" in caplog.messages


async def test_a_created_subscription_is_saved_although_the_end_interrupts_the_save():
    server = Server()
    channel, save = Channel(), Channel.save
    saves = []

    async def after_a_poll(state):
        saves.append(state)
        if len(saves) == 2:
            await anyio.sleep(1000)
        await save(channel, state)

    channel.save = after_a_poll
    await keep(Vendor(server), 5, channel)
    assert len(saves) == 3
    assert "current" in channel.state


async def test_a_permanent_renewal_error_is_raised_after_the_subscription_is_stopped():
    server = Server(lifetime=100)
    server.script["renew"].append(ListenerError("never again"))
    with pytest.raises(ListenerError, match="never again"):
        await manager_of(Vendor(server), unsubscribe_on_exit=True).run(Channel())
    assert server.live == {}


async def test_a_stale_renewal_time_does_not_cause_a_loop_of_renewals():
    server = Server(lifetime=100, latency=0)
    server.script["create"].append(
        Registration(id="1", renew_at=1e9 + 20, expires_at=1e9 + 100, details={"plan": "1"})
    )
    old = Registration(id="1", renew_at=1e9 + 20, expires_at=1e9 + 120, details={"plan": "1"})
    server.script["renew"].extend([old, old])
    await keep(Vendor(server), 100)
    assert times_of(server, "renew") == [20, 70, 95]


# Missed pushes


@pytest.mark.parametrize("renews", [True, False])
async def test_a_subscription_that_the_server_forgot_is_made_again_after_two_missed_pushes(renews, caplog):
    """Otherwise it would be renewed after five days."""
    server, channel = Server(lifetime=864_000), Channel()
    async with keeping(manager_of(Vendor(server, renews=renews)), channel):
        await anyio.sleep(3600)
        server.live.clear()
        channel.missed_in_a_row = 1
        await anyio.sleep(3600)
        assert server.live == {}
        channel.missed_in_a_row = 2
        await anyio.sleep(80)  # checked once a minute; a rejected renewal starts a backoff
        assert len(server.live) == 1
    assert len([line for line in caplog.messages if "polls found messages that no push announced" in line]) == 1


async def test_a_server_that_never_pushes_is_asked_again_eleven_times_in_a_week():
    server, channel = Server(lifetime=864_000), Channel()
    async with keeping(manager_of(Vendor(server)), channel):
        for _ in range(7 * 24 * 6):
            await anyio.sleep(600)
            channel.missed_in_a_row += 1
    assert len(times_of(server, "renew")) == 11
    assert len(times_of(server, "create")) == 1
    intervals = [b - a for a, b in itertools.pairwise(times_of(server, "renew"))]
    assert min(intervals) >= 3600
    assert all(longer >= shorter - 1300 for shorter, longer in itertools.pairwise(intervals))


async def test_missed_pushes_do_not_hurry_a_subscription_that_is_being_made():
    server, channel = Server(lifetime=864_000), Channel()
    server.script["create"].extend([status(503)] * 99)
    async with keeping(manager_of(Vendor(server)), channel):
        for _ in range(100):
            channel.missed_in_a_row += 1
            await anyio.sleep(1)
    quiet = Server()
    quiet.script["create"].extend([status(503)] * 99)
    await keep(Vendor(quiet), 100)
    assert [what for _, what in server.asked] == [what for _, what in quiet.asked]
