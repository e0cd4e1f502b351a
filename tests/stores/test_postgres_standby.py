"""Replicas that stand by on a store in PostgreSQL: their wakes, and when they try to claim the name."""

from contextlib import nullcontext

import anyio
import psycopg
import pytest

from push_to_poll_client import Push
from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client.stores._postgres import housekeeping
from push_to_poll_client.stores._postgres.errors import describe_error
from push_to_poll_client.stores._postgres.notices import Kind
from push_to_poll_client.stores._postgres.session import Claimant
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import LEASE, PostgresStores, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
async def opened(request):
    """Function that opens the tables as a replica does."""
    stores, replicas = PostgresStores(shared_server(request.config)), []

    def opened(**options):
        replicas.append(stores.store(**options))
        return replicas[-1]

    opened.unreachable = stores.unreachable
    yield opened
    for replica in replicas:
        await replica.aclose()
    stores.drop()


def heard_by(session, awaited):
    """Return an event that is set when the session hears this wake."""
    loop, event = EventLoop(), anyio.Event()

    def wake(push):
        if push == awaited:
            loop.call(event.set)

    session.subscribe(changed=lambda: None, wake=wake)
    return event


# Wakes


async def test_all_wakes_are_sent_when_forwarded_returns(opened, monkeypatch):
    monkeypatch.setattr("push_to_poll_client.stores.postgres._FORWARD_TIMEOUT", GUARD)
    store = opened()
    for _ in range(2):  # the second one is sent 20 ms later
        store.forward("orders", Push())
    await store.forwarded()
    assert not store._housekeeping.has_wakes


async def test_a_replica_that_stops_does_not_wait_long_for_a_server_that_is_away(opened):
    store = opened()
    async with opened.unreachable(store):
        store.forward("orders", Push())
        with anyio.fail_after(GUARD):
            await store.forwarded()
        assert store._housekeeping.has_wakes


async def test_a_wake_is_sent_again_if_the_connection_fails(opened, monkeypatch):
    first, second = opened(), opened()
    second._housekeeping._lease = 1.0  # connects again soon
    session = await first.claim("orders", feed="feed")
    await until(lambda: first.hears_wakes)
    heard = heard_by(session, Push(cursor="9"))
    send, failed = housekeeping.send_notices, []

    def fail_once(database, connection, notices):
        if notices[0].kind is Kind.WAKE and not failed:
            failed.append(notices)
            connection.close()
            raise psycopg.OperationalError("planted: connection lost")
        send(database, connection, notices)

    monkeypatch.setattr(housekeeping, "send_notices", fail_once)
    second.forward("orders", Push(cursor="9"))
    with anyio.fail_after(GUARD):
        await heard.wait()
    assert len(failed) == 1
    await session.release()


# The next try


async def test_a_replica_waits_on_while_the_owner_renews_its_lease(opened, monkeypatch):
    answers = [(b"web-1", 0.001), (b"web-1", 0.002), None]
    monkeypatch.setattr(Claimant, "busy_for", lambda *_: answers.pop(0))
    monkeypatch.setattr("random.random", lambda: 0.0)
    store = opened()
    monkeypatch.setattr(
        store._housekeeping, "waiting", lambda *_: nullcontext()
    )  # its thread calls after a connect
    with anyio.fail_after(GUARD):
        await store.freed("orders")
    assert answers == []


async def test_a_replica_tries_at_once_if_the_name_has_another_owner(opened, monkeypatch):
    answers = [(b"web-1", 0.001), (b"web-2", LEASE), None]
    monkeypatch.setattr(Claimant, "busy_for", lambda *_: answers.pop(0))
    monkeypatch.setattr("random.random", lambda: 0.0)
    store = opened()
    monkeypatch.setattr(store._housekeeping, "waiting", lambda *_: nullcontext())
    with anyio.fail_after(GUARD):
        await store.freed("orders")
    assert answers == [None]


async def test_a_restarted_instance_waits_for_half_of_its_lease(opened):
    session = await opened(instance="web-1").claim("orders", feed="feed")
    waits = {}
    for instance in ("web-1", "web-2", None):
        waits[instance] = opened(instance=instance)._claimant.busy_for("orders")[1]
    assert waits["web-1"] <= LEASE / 2 < min(waits["web-2"], waits[None])
    await session.release()


# Errors


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_error_of_several_lines_is_described_in_one():
    assert describe_error(psycopg.OperationalError("connection lost:\n\tprobably")) == "connection lost: probably"
