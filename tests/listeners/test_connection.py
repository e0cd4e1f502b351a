"""A listener made from one function: it reconnects however its connection ends."""

import logging

import anyio
import pytest

from push_to_poll_client import ListenerError, Push, PushToPollError, ReconnectAction
from push_to_poll_client.listeners.connection import ConnectionListener
from push_to_poll_client.testing import FakeFeed
from tests.support.channels import TimedChannel
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio


class Lives:
    """A connection that runs the given functions once each, and then stays up."""

    def __init__(self, *lives):
        self.lives = list(lives)
        self.began = []
        self.ended = 0

    async def __call__(self, connection):
        self.began.append(round(anyio.current_time(), 3))
        try:
            if self.lives:
                await self.lives.pop(0)(connection)
            else:
                connection.up()
                await anyio.sleep_forever()
        finally:
            self.ended += 1


def failing(error, *, after=0.0, up=True):
    async def live(connection):
        if up:
            connection.up()
        await anyio.sleep(after)
        raise error

    return live


def listener(lives, *, fraction=0.0, **settings):
    listener = ConnectionListener(lives, name="mqtt orders", **settings)
    listener._fraction = lambda: fraction
    return listener


async def heard(listener, seconds):
    channel = TimedChannel()
    with anyio.move_on_after(seconds):
        await listener.listen(channel)
    return channel


async def test_the_channel_is_up_after_connection_up_and_each_wake_is_a_push():
    async def live(connection):
        await anyio.sleep(2)
        connection.up()
        await anyio.sleep(3)
        connection.wake()
        connection.wake(Push("7"))
        await anyio.sleep_forever()

    channel = await heard(listener(Lives(live)), 100)
    assert channel.events == [(2.0, "up"), (5.0, Push()), (5.0, Push("7"))]


async def test_the_connect_function_is_called_again_with_growing_delays_after_each_end():
    async def over(connection):
        connection.up()

    began = anyio.current_time()
    lives = Lives(failing(OSError("reset")), over, failing(ValueError()), failing(OSError("no route"), up=False))
    channel = await heard(listener(lives), 100)
    assert [at - began for at in lives.began] == [0, 0, 1, 3, 7]
    assert [str(error) for error in channel.errors] == [
        "mqtt orders: OSError: 'reset'",
        "mqtt orders: the connection ended",
        "mqtt orders: failed with ValueError",
        "mqtt orders: OSError: 'no route'",
    ]
    assert [event for _, event in channel.events] == ["up", "down", "up", "down", "up", "down", "down", "up"]


async def test_the_backoff_resets_after_a_connection_was_up_for_30_seconds():
    began = anyio.current_time()
    lives = Lives(*[failing(OSError("reset"))] * 3, failing(OSError("reset"), after=30.0))
    await heard(listener(lives), 100)
    assert [at - began for at in lives.began] == [0, 0, 1, 3, 33]


async def test_a_connection_that_is_not_up_within_open_timeout_is_ended_and_retried():
    async def stalls(_connection):
        await anyio.sleep_forever()

    lives = Lives(stalls)
    channel = await heard(listener(lives, open_timeout=5.0), 100)
    assert channel.events == [(5.0, "down"), (5.0, "up")]
    assert str(channel.errors[0]) == "mqtt orders: TimeoutError: 'up() was not called within 5 s'"
    assert lives.ended == 2


async def test_a_healthy_connection_is_renewed_within_max_age_without_a_down_event():
    began = anyio.current_time()
    lives = Lives()
    channel = await heard(listener(lives, max_age=200.0), 350)
    assert [at - began for at in lives.began] == [0, 100, 200, 300]
    assert [event for _, event in channel.events] == ["up"] * 4


async def test_a_connection_is_never_renewed_if_max_age_is_none():
    lives = Lives()
    await heard(listener(lives, max_age=None), 1e6)
    assert len(lives.began) == 1


async def test_classify_can_slow_down_retries_or_end_the_listener(caplog):
    caplog.set_level(logging.INFO)
    actions = {"slow": ReconnectAction.SLOW_RETRY, "gone": ReconnectAction.GIVE_UP}
    lives = Lives(failing(OSError("slow"), up=False), failing(OSError("gone"), up=False))
    channel = TimedChannel()
    with pytest.raises(ListenerError, match="mqtt orders: OSError: 'gone'; a retry cannot help"):
        await listener(lives, classify=lambda error: actions.get(str(error))).listen(channel)
    assert channel.events == [(0.0, "down"), (300.0, "down")]
    assert "reconnecting in 300.0 s" in caplog.text


async def test_a_connect_function_that_is_not_async_raises_a_listener_error():
    with pytest.raises(ListenerError, match="mqtt orders: connect must be an async function"):
        await listener(lambda _connection: None).listen(TimedChannel())


async def test_an_exception_group_with_one_error_is_reported_as_that_error():
    async def live(_connection):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(failing(OSError("reset"), up=False), None)

    channel = await heard(listener(Lives(live)), 100)
    assert str(channel.errors[0]) == "mqtt orders: OSError: 'reset'"


async def test_neither_a_reported_error_nor_its_causes_keep_a_traceback():
    """The frames refer to headers and clients, and the status keeps the error."""

    async def live(connection):
        try:
            await failing(OSError("reset"), up=False)(connection)
        except OSError as error:
            raise ValueError("broken") from error

    broken = (await heard(listener(Lives(live)), 100)).errors[0].__cause__
    assert [type(one) for one in (broken, broken.__cause__)] == [ValueError, OSError]
    assert [one.__traceback__ for one in (broken, broken.__cause__)] == [None, None]


@pytest.mark.parametrize("kind", [ConnectionError, PushToPollError])
async def test_an_error_without_a_text_is_named_and_its_context_is_not_quoted(kind):
    async def live(connection):
        try:
            await failing(KeyError("s3cret"), up=False)(connection)
        except KeyError:
            raise kind from None

    channel = await heard(listener(Lives(live)), 100)
    assert str(channel.errors[0]) == f"mqtt orders: failed with {kind.__name__}"


async def test_an_error_that_the_program_handles_meanwhile_is_left_alone():
    try:
        int("x")
    except ValueError as error:
        handled, channel = error, await heard(listener(Lives(failing(OSError("reset"), up=False))), 100)
    assert handled.__traceback__ is not None
    assert channel.errors[0].__cause__.__context__ is None


async def test_a_connection_listener_wakes_its_consumer(running):
    feed, pushes = FakeFeed(), anyio.Event()

    async def live(connection):
        connection.up()
        await pushes.wait()
        connection.wake()
        await anyio.sleep_forever()

    consumer = running(Log(feed, listeners=[ConnectionListener(live, name="mine")], fallback_interval=1000.0))
    await feed.asked(1)
    await anyio.sleep(50)
    feed.publish("1")
    pushes.set()
    began = anyio.current_time()
    await consumer.until(1)
    assert anyio.current_time() - began < 1
    status = consumer.status().listeners[0]
    assert (status.name, status.up, status.pushes) == ("mine", True, 1)


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"connect": None}, TypeError, "connect must be an async function that takes a Connection, got None"),
        ({"name": None}, TypeError, "name must be a str, got NoneType"),
        ({"max_age": 0.0}, ValueError, "max_age"),
        ({"open_timeout": None}, TypeError, "open_timeout"),
    ],
)
def test_invalid_arguments_are_refused(settings, kind, text):
    with pytest.raises(kind, match=text):
        ConnectionListener(**{"connect": Lives(), "name": "mine", **settings})


def test_repr_shows_the_name_of_the_listener():
    assert repr(ConnectionListener(Lives(), name="mine")) == "ConnectionListener('mine')"
