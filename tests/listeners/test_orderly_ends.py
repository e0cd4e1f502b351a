"""Servers that end connections in an orderly way after a push or some seconds: no failure, and no busy loop.

JMAP's event source with `closeafter=state` (RFC 8620 §7.3) and functions with a time limit work like that.
"""

import logging
import math
import random
from statistics import quantiles

import anyio
import httpx
import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.frames import Close

from push_to_poll_client import ConnectionListener, Consumer, MemoryStore, Push, ReconnectAction, SSEListener
from push_to_poll_client.testing import FakeFeed
from push_to_poll_client.testing._virtual_time import Bell
from tests.listeners.test_connection import Lives
from tests.listeners.test_sse import END, EVENT, RESET, STREAM, run, scripted
from tests.listeners.test_websocket import Scripted as ScriptedWebSocket
from tests.listeners.test_websocket import closed
from tests.listeners.test_websocket import run as run_websocket
from tests.support.channels import TimedChannel
from tests.support.forms import form

pytestmark = pytest.mark.anyio

URL = "https://feed.example/sub/orders"
LONG_RUN = form(600, 3600)
"""Seconds."""

BYE = ConnectionClosedOK(Close(1000, ""), Close(1000, ""), rcvd_then_sent=True)


class ClosesAfterEach(httpx.AsyncBaseTransport):
    """Ends a stream after one event, or after `longest` seconds. A client that is not connected misses events."""

    def __init__(self, *, longest=math.inf):
        self._longest = longest
        self._published = Bell()
        self.connections = 0

    def publish(self):
        self._published.ring()

    async def handle_async_request(self, request):
        self.connections += 1
        return httpx.Response(200, headers=STREAM, stream=OneEvent(self._published, self._longest))


class OneEvent(httpx.AsyncByteStream):
    def __init__(self, published, longest):
        self._published = published
        self._longest = longest

    async def __aiter__(self):
        yield b": hello\n\n"
        with anyio.move_on_after(self._longest) as scope:
            await self._published.wait()
        if not scope.cancelled_caught:
            yield EVENT


async def delays_of(server, *, mean, count, seed=7):
    """Seconds from each publication until the consumer is woken, by its push or the next connect."""
    listener = SSEListener(URL, client=httpx.AsyncClient(transport=server), max_silence=None)
    draw = random.Random(seed)  # noqa: S311 - not for cryptography
    listener._fraction = draw.random
    channel, published = TimedChannel(), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, channel)
        for _ in range(count):
            await anyio.sleep(draw.expovariate(1 / mean))
            published.append(anyio.current_time() - channel.began)
            server.publish()
        await anyio.sleep(120)
        tasks.cancel_scope.cancel()
    wakes = [at for at, event in channel.events if event == "up" or isinstance(event, Push)]
    return [next(wake for wake in wakes if wake >= at - 0.001) - at for at in published]


@pytest.mark.parametrize("longest", [math.inf, 10])
@pytest.mark.parametrize("mean", [1, 5, 20])
async def test_a_push_is_at_most_a_second_late_if_the_server_ends_each_stream(mean, longest):
    delays = await delays_of(ClosesAfterEach(longest=longest), mean=mean, count=150)
    assert quantiles(delays, n=10)[-1] <= 0.9
    assert max(delays) <= 2.0


async def test_a_server_that_ends_each_stream_after_an_event_is_asked_once_a_second_in_the_long_run():
    listener, script = scripted([EVENT, END])
    await run(listener, script, LONG_RUN)
    assert script.connects[:12] == [0] * 11 + [1]
    assert len(script.connects) == 11 + LONG_RUN - 1


@pytest.mark.parametrize(
    ("lives", "connects"), [(4.9, [0, 4.9, 10.8, 17.7, 26.6]), (5, [0, 5, 10, 15, 20, 25]), (10, [0, 10, 20])]
)
async def test_a_stream_without_an_event_that_ends_in_order_is_a_failure_in_the_first_five_seconds(
    lives, connects
):
    listener, script = scripted([lives, END])
    channel = await run(listener, script, 29)
    assert script.connects == connects
    assert ("down" in {event for _, event in channel.events}) is (lives < 5)


async def test_clients_of_a_server_that_restarts_after_an_event_return_spread_over_a_second():
    delays = []
    for draw in range(10):
        listener, script = scripted([5, EVENT, END], [], fraction=draw / 10)
        await run(listener, script, 10)
        delays.append(round(script.connects[1] - 5, 3))
    assert delays == [draw / 10 for draw in range(10)]


async def test_the_channel_stays_up_while_a_server_ends_each_stream_after_an_event():
    listener, script = scripted([1, EVENT, END], fraction=0.5)
    channel = await run(listener, script, 60)
    assert {event for _, event in channel.events} == {"up", Push()}


async def test_an_event_that_the_hint_ignores_does_not_make_the_end_of_a_stream_routine():
    listener, script = scripted([EVENT, END], hint=lambda event: None)
    channel = await run(listener, script, 10)
    assert script.connects == [0, 0, 1, 3, 7]
    assert "down" in {event for _, event in channel.events}


async def test_a_stream_that_breaks_off_after_an_event_is_a_failure():
    listener, script = scripted([EVENT, RESET])
    await run(listener, script, 10)
    assert script.connects == [0, 0, 1, 3, 7]


async def test_the_retry_field_is_the_least_delay_also_after_an_event():
    listener, script = scripted([b"retry: 20000\n\n", EVENT, END], fraction=0.5)
    channel = await run(listener, script, 100)
    assert script.connects == [0, 22, 44, 66, 88]
    assert [event for _, event in channel.events][:3] == ["up", Push(), "down"], "the listener reconnects for 22 s"


async def test_streams_that_end_after_an_event_end_the_streak_of_failures_together_after_30_seconds():
    listener, script = scripted(RESET, RESET, RESET, RESET, *[[15, EVENT, END]] * 2, RESET, [])
    await run(listener, script, 90)
    assert script.connects == [0, 0, 1, 3, 7, 22, 37, 37]
    listener, script = scripted(RESET, RESET, RESET, RESET, *[[14, EVENT, END]] * 2, RESET, [])
    await run(listener, script, 90)
    assert script.connects == [0, 0, 1, 3, 7, 21, 35, 43]


@pytest.mark.parametrize("failing", [[END], RESET, 503])
async def test_a_server_behind_one_address_that_fails_gets_no_more_connections_than_alone(failing, caplog):
    """For example one of two behind a load balancer. Otherwise both would get two connections a second."""
    caplog.set_level(logging.INFO, "push_to_poll_client.listeners")
    listener, script = scripted(*[[EVENT, END], failing] * 4000)
    await run(listener, script, 3600)
    assert len(script.connects) < 2 * 3600 / 30 + 20
    assert len(caplog.records) < 3 * 3600 / 30 + 30


async def test_a_failure_after_a_stream_that_ended_in_order_is_one():
    listener, script = scripted([EVENT, END], 503, 503, 503, [])
    channel = await run(listener, script, 60)
    assert script.connects == [0, 0, 0, 1, 3]
    assert [event for _, event in channel.events] == ["up", Push(), "down", "down", "down", "up"]


async def test_classify_overrules_the_short_delay_after_an_event():
    listener, script = scripted([EVENT, END], classify=lambda error: ReconnectAction.SLOW_RETRY)
    await run(listener, script, 700)
    assert script.connects == [0, 300, 600]


async def test_reconnects_after_each_event_are_logged_once(caplog):
    caplog.set_level(logging.INFO, "push_to_poll_client")
    listener, script = scripted([1, EVENT, END])
    store = MemoryStore()
    async with Consumer(FakeFeed(), store=store, name="orders", process=print, listeners=[listener]) as consumer:
        with anyio.move_on_after(300):
            await consumer.run()
    assert len(script.connects) > 150
    about = [record.getMessage().partition("…: ")[2] for record in caplog.records]
    assert [text for text in about if text] == [
        "connected",
        "up",
        "the server ended the stream; reconnecting (logged once)",
    ]


async def test_an_outage_between_such_reconnects_is_logged(caplog):
    caplog.set_level(logging.INFO, "push_to_poll_client.listeners")
    listener, script = scripted([EVENT, END], [EVENT, END], 503, [EVENT, END], [])
    await run(listener, script, 10)
    assert [record.getMessage().partition("…: ")[2] for record in caplog.records] == [
        "connected",
        "the server ended the stream; reconnecting (logged once)",
        "the server answered HTTP 503 instead of an event stream; reconnecting in 0.0 s",
        "connected",
    ]


@pytest.mark.parametrize("code", [1000, 1001])
async def test_a_websocket_that_the_server_closes_after_each_message_is_opened_again_at_once(code):
    listener = ScriptedWebSocket(["x", closed(code)])
    channel = await run_websocket(listener, LONG_RUN)
    assert listener.connects[:12] == [0] * 11 + [1]
    assert len(listener.connects) == 11 + LONG_RUN - 1
    assert {event for _, event in channel.events} == {"up", Push()}


async def test_a_secret_in_the_reason_of_an_orderly_end_is_masked(caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    listener = ScriptedWebSocket(["x", closed(1000, "goodbye c4n4ry-t0ken")], auth="c4n4ry-t0ken")
    await run_websocket(listener, 3)
    assert "'goodbye ***'; reconnecting" in caplog.text
    assert "c4n4ry" not in caplog.text


async def test_a_websocket_that_the_server_closes_after_some_seconds_is_opened_again_at_once():
    listener = ScriptedWebSocket([10, closed(1001)])
    channel = await run_websocket(listener, 45)
    assert listener.connects == [0, 10, 20, 30, 40]
    assert {event for _, event in channel.events} == {"up"}


@pytest.mark.parametrize("code", [1005, 1011, 4000])
async def test_a_websocket_that_ends_in_any_other_way_after_a_message_failed(code):
    listener = ScriptedWebSocket(["x", closed(code)])
    await run_websocket(listener, 10)
    assert listener.connects == [0, 0, 1, 3, 7]


def returning(*, up=True, pushes=True, after=0.0):
    async def live(connection):
        await anyio.sleep(0 if up else after)
        if up:
            connection.up()
        if pushes:
            connection.wake()
        await anyio.sleep(after if up else 0)

    return live


async def heard(*lives, seconds):
    lives = Lives(*lives)
    listener = ConnectionListener(lives, name="mqtt orders")
    listener._fraction = lambda: 0.0
    channel = TimedChannel()
    with anyio.move_on_after(seconds):
        await listener.listen(channel)
    return [at - channel.began for at in lives.began], channel


async def test_a_function_that_returns_after_a_push_is_called_again_at_once_and_then_once_a_second():
    began, channel = await heard(*[returning()] * 100, seconds=50)
    assert began == pytest.approx([0] * 11 + [*range(1, 50)], abs=0.01)
    assert {event for _, event in channel.events} == {"up", Push()}


async def test_a_function_that_returns_after_some_seconds_is_called_again_at_once():
    began, _ = await heard(*[returning(pushes=False, after=6)] * 9, seconds=20)
    assert began == pytest.approx([0, 6, 12, 18], abs=0.01)
    began, _ = await heard(*[returning(up=False, after=6)] * 9, seconds=20)
    assert began == pytest.approx([0, 6, 13], abs=0.01)


async def test_a_function_that_returns_without_a_push_or_without_being_up_failed():
    began, _ = await heard(*[returning(pushes=False)] * 9, seconds=10)
    assert began == pytest.approx([0, 0, 1, 3, 7], abs=0.01)
    began, _ = await heard(*[returning(up=False)] * 9, seconds=10)
    assert began == pytest.approx([0, 0, 1, 3, 7], abs=0.01)
    began, _ = await heard(returning(), *[returning(up=False, pushes=False)] * 9, seconds=10)
    assert began == pytest.approx([0, 0, 0, 1, 3, 7], abs=0.01)
