"""The manual listener does what the test says, when it says it."""

import anyio
import pytest

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.testing._manual_listener import ManualListener

pytestmark = pytest.mark.anyio


class Seen(list):
    """A channel that writes down what is reported to it."""

    def up(self):
        self.append("up")

    def down(self, error=None):
        self.append(("down", error))

    def wake(self, push=None):
        self.append(push)


@pytest.fixture
def seen():
    return Seen()


async def test_is_up_as_soon_as_somebody_listens_and_reports_at_once(seen):
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


async def test_what_happened_before_is_remembered_in_its_order(seen):
    listener = ManualListener()
    listener.push()
    listener.disconnect()
    listener.finish()
    await listener.listen(seen)
    assert seen == ["up", None, ("down", None)]


async def test_what_was_remembered_happens_once(seen):
    listener = ManualListener(connects=False)
    listener.push()
    for _ in range(2):
        listener.finish()
        await listener.listen(seen)
    assert seen == [None]
    assert listener.listens == 2


async def test_may_connect_only_when_told(seen):
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


async def test_fails_once_with_the_error_given(seen):
    listener = ManualListener()
    listener.fail(ListenerError("gone"))
    with pytest.raises(ListenerError, match="gone"):
        await listener.listen(seen)
    with anyio.move_on_after(1) as scope:
        await listener.listen(seen)
    assert scope.cancelled_caught


async def test_fails_while_somebody_listens(seen):
    listener = ManualListener()

    async def listen():
        with pytest.raises(ListenerError, match="gone"):
            await listener.listen(seen)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await listener.connected()
            listener.fail(ListenerError("gone"))


async def test_connected_waits_while_nobody_listens_any_more(seen):
    listener = ManualListener()
    listener.finish()
    await listener.listen(seen)
    with anyio.move_on_after(1) as scope:
        await listener.connected()
    assert scope.cancelled_caught


async def test_after_a_cancellation_nobody_listens_and_pushes_are_remembered(seen):
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
