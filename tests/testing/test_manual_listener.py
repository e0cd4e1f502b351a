"""The manual listener reports exactly what the test tells it to report."""

import anyio
import pytest

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.testing._manual_listener import ManualListener

pytestmark = pytest.mark.anyio


class Seen(list):
    """A channel that records its reports."""

    def up(self):
        self.append("up")

    def down(self, error=None):
        self.append(("down", error))

    def wake(self, push=None):
        self.append(push)


@pytest.fixture
def seen():
    return Seen()


async def test_a_manual_listener_is_up_at_once_and_reports_each_event_at_once(seen):
    listener, push, error = ManualListener(), Push("c"), OSError("reset")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, seen)
        with anyio.fail_after(10):
            await listener.connected()
        assert seen == ["up"]
        listener.push()
        listener.push(push)
        listener.disconnect(error)
        listener.connect()
        assert seen == ["up", None, push, ("down", error), "up"]
        tasks.cancel_scope.cancel()


async def test_events_before_listen_are_reported_in_order(seen):
    listener = ManualListener()
    listener.push()
    listener.disconnect()
    listener.finish()
    await listener.listen(seen)
    assert seen == ["up", None, ("down", None)]


async def test_an_event_before_listen_is_reported_only_once(seen):
    listener = ManualListener(connects=False)
    listener.push()
    for _ in range(2):
        listener.finish()
        await listener.listen(seen)
    assert seen == [None]
    assert listener.listens == 2


async def test_a_listener_with_connects_false_is_up_only_after_connect(seen):
    listener = ManualListener(connects=False, name="door bell")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, seen)
        await anyio.wait_all_tasks_blocked()
        assert seen == []
        listener.connect()
        with anyio.fail_after(10):
            await listener.connected()
        assert seen == ["up"]
        listener.finish()
    assert listener.name == "door bell"


async def test_connected_waits_while_the_channel_is_down(seen):
    listener = ManualListener()
    listener.disconnect()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, seen)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(1) as scope:
            await listener.connected()
        assert scope.cancelled_caught
        tasks.cancel_scope.cancel()


async def test_listen_raises_a_given_error_only_once(seen):
    listener = ManualListener()
    listener.fail(ListenerError("gone"))
    with pytest.raises(ListenerError, match="gone"):
        await listener.listen(seen)
    with anyio.move_on_after(1) as scope:
        await listener.listen(seen)
    assert scope.cancelled_caught


async def test_fail_raises_its_error_in_a_running_listen(seen):
    listener = ManualListener()

    async def listen():
        with pytest.raises(ListenerError, match="gone"):
            await listener.listen(seen)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await listener.connected()
            listener.fail(ListenerError("gone"))


async def test_connected_waits_after_listen_has_ended(seen):
    listener = ManualListener()
    listener.finish()
    await listener.listen(seen)
    with anyio.move_on_after(1) as scope:
        await listener.connected()
    assert scope.cancelled_caught


async def test_a_push_after_a_cancelled_listen_is_reported_by_the_next_listen(seen):
    listener = ManualListener()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, seen)
        with anyio.fail_after(10):
            await listener.connected()
        tasks.cancel_scope.cancel()
    listener.push()
    assert seen == ["up"]
    listener.finish()
    await listener.listen(seen)
    assert seen == ["up", "up", None]
