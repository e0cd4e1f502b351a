"""Pull-wake in virtual time, on a server in memory: no order of events loses a message."""

import itertools
import json

import anyio
import httpx
import pytest
from durable_wakes_memory import ROOT, LoggedChannel, Wakes

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.listeners.pull_wake import PullWakeListener

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"
LOST = httpx.ReadError("Connection reset by peer")


def listener_of(server, *, root=ROOT, fraction=0.5, **options):
    settings = {"wake_stream": "wake/x", "streams": ["orders"], "max_age": None, "max_silence": None}
    listener = PullWakeListener(
        root, client=httpx.AsyncClient(transport=server), **{**settings, "confirm_every": 1e6, **options}
    )
    listener._wakes._fraction = listener._keeper._fraction = lambda: fraction
    return listener


async def run(server, *listeners, seconds=60.0, then=None):
    """Let listeners run for so many seconds, in the middle of which something may happen."""
    channels = [LoggedChannel(server, f"wake {number}") for number, _ in enumerate(listeners)]
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.leases)
            for listener, channel in zip(listeners, channels, strict=True):
                tasks.start_soon(listener.listen, channel)
            await anyio.sleep(seconds / 2)
            if then is not None:
                then()
            await anyio.sleep_forever()
    assert server.open == 0
    return channels[0] if len(channels) == 1 else channels


def is_announced(log, name="wake 0"):
    """Whether everything that was appended was followed by a poll."""
    return "append" not in log or name in log[len(log) - log[::-1].index("append") :]


def asked(server, step):
    return [request for request in server.requests if request.url.path.endswith(step)]


async def test_a_wake_is_claimed_passed_on_and_given_back():
    server = Wakes()
    channel = await run(server, listener_of(server, worker="w"), then=server.append)
    assert channel.events[-1] == (30.0, Push(topics=("orders",)))
    assert [request.url.path.rpartition("/")[2] for request in server.requests[-2:]] == ["claim", "ack"]
    (*_, claim), (ack,) = asked(server, "/claim"), asked(server, "/ack")
    assert json.loads(claim.content) == {"worker": "w"}
    assert json.loads(ack.content) == {
        "wake_id": "w_1",
        "generation": 1,
        "acks": [{"stream": "orders", "offset": "00000001"}],
        "done": True,
    }


# No order of events loses a message. A point is where something can happen: before and after each request, when an
# event is on its way, when the consumer was woken.

POINTS = 24
"""Of the first connect and two wakes; what comes after that is like it."""

CONNECTED = 8
"""Points before anything is claimed."""


def appending(places):
    """A server on which a message is appended at each of these points, and one after all."""

    def at(number, name):
        if number in places:
            server.append()

    server = Wakes(at)
    return server


async def test_no_place_of_up_to_three_messages_leaves_one_unannounced():
    few = [place for count in (1, 2) for place in itertools.combinations(range(POINTS), count)]
    for place in [*few, *itertools.combinations(range(CONNECTED, POINTS), 3)]:
        server = appending(place)
        await run(server, listener_of(server), then=server.append)
        assert is_announced(server.log), (place, server.points, server.log)


async def test_nor_with_two_workers():
    for place in [*itertools.combinations(range(2 * CONNECTED, POINTS + CONNECTED), 2), *zip(range(2 * POINTS))]:
        server = appending(place)
        await run(server, listener_of(server), listener_of(server), then=server.append)
        assert is_announced(server.log, "wake 0"), (place, server.points, server.log)
        assert is_announced(server.log, "wake 1"), (place, server.points, server.log)


@pytest.mark.parametrize("workers", [1, 2])
async def test_nor_when_a_request_or_its_answer_is_lost(workers):
    """What is lost may be a claim that the server then has: its lease runs out."""
    for lost, appended in itertools.product(range(POINTS), range(POINTS)):

        def at(number, name, lost=lost, appended=appended):
            if number == appended:
                server.append()
            if number == lost and name not in {"event", "wake"}:
                raise LOST

        server = Wakes(at)
        await run(server, *(listener_of(server) for _ in range(workers)), then=server.append)
        for worker in range(workers):
            assert is_announced(server.log, f"wake {worker}"), (lost, appended, server.points, server.log)


async def test_nor_when_streams_end_and_are_opened_again():
    for ended, appended in itertools.product(range(POINTS), range(POINTS)):

        def at(number, name, ended=ended, appended=appended):
            if number == appended:
                server.append()
            if number == ended:
                server.end_streams()

        server = Wakes(at)
        await run(server, listener_of(server), then=server.append)
        assert is_announced(server.log), (ended, appended, server.points, server.log)


async def test_nor_when_the_server_forgets_the_subscription():
    for forgotten, appended in itertools.product(range(POINTS), range(POINTS)):

        def at(number, name, forgotten=forgotten, appended=appended):
            if number == forgotten:
                server.forget()
            if number == appended:
                server.append()

        server = Wakes(at)
        await run(server, listener_of(server), then=server.append)
        assert is_announced(server.log), (forgotten, appended, server.points, server.log)
