"""Wakes from any thread reach the event loop, and are kept while no loop runs."""

import asyncio
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from push_to_poll_client import Push
from push_to_poll_client._channels import CAPACITY, Wakes
from push_to_poll_client._event_loop import EventLoop, error_for_cancellation, in_own_task

pytestmark = pytest.mark.anyio


async def test_pushes_put_before_open_are_delivered_first_and_in_order():
    wakes, got = Wakes(), []
    wakes.put(Push("1"))
    wakes.put(None)
    wakes.open(EventLoop(), got.append)
    wakes.put(Push("2"))
    await anyio.wait_all_tasks_blocked()
    assert got == [Push("1"), None, Push("2")]


async def test_a_push_from_a_thread_is_delivered_in_the_event_loop():
    wakes, threads, delivered = Wakes(), [], anyio.Event()

    def deliver(push):
        threads.append(threading.get_ident())
        delivered.set()

    wakes.open(EventLoop(), deliver)
    await anyio.to_thread.run_sync(wakes.put, Push("1"))
    await delivered.wait()
    assert threads == [threading.get_ident()]


async def test_a_flood_of_pushes_is_cut_to_capacity_and_ends_with_a_push_without_a_hint():
    wakes, got = Wakes(), []

    def flood():
        for number in range(10_000):
            wakes.put(Push(str(number)))

    wakes.open(EventLoop(), got.append)
    thread = threading.Thread(target=flood)
    thread.start()
    thread.join()  # the loop is busy here
    await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()
    assert len(got) == CAPACITY
    assert got[-1] == Push()


async def test_a_push_put_during_the_delivery_of_another_is_delivered():
    wakes, got = Wakes(), []

    def deliver(push):
        got.append(push)
        if len(got) == 1:
            wakes.put(Push("during the delivery"))

    wakes.open(EventLoop(), deliver)
    wakes.put(Push("first"))
    await anyio.sleep(1)
    assert got == [Push("first"), Push("during the delivery")]


async def test_after_close_wakes_are_kept_for_the_next_loop():
    wakes, first, second = Wakes(), [], []
    wakes.open(EventLoop(), first.append)
    wakes.close()
    wakes.put(Push("kept"))
    wakes.open(EventLoop(), second.append)
    assert (first, second) == ([], [Push("kept")])


async def test_a_push_that_is_not_delivered_before_close_is_delivered_after_the_next_open():
    wakes, got = Wakes(), []
    wakes.open(EventLoop(), got.append)
    thread = threading.Thread(target=wakes.put, args=[Push("late")])
    thread.start()
    thread.join()
    wakes.close()
    await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()
    assert got == []
    wakes.open(EventLoop(), got.append)
    assert got == [Push("late")]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_push_put_after_its_event_loop_ended_is_delivered_in_the_next_one(backend):
    wakes, got = Wakes(), []

    async def open_only():
        wakes.open(EventLoop(), got.append)

    async def open_again():
        wakes.open(EventLoop(), got.append)

    anyio.run(open_only, backend=backend)
    thread = threading.Thread(target=wakes.put, args=[Push("kept")])
    thread.start()
    thread.join()
    assert got == []
    anyio.run(open_again, backend=backend)
    assert got == [Push("kept")]


async def test_different_event_loops_are_unequal_and_threads_can_read_their_clock():
    loop = EventLoop()
    assert loop == EventLoop()
    assert loop != "loop"
    assert loop != await anyio.to_thread.run_sync(anyio.run, make_loop)
    began = anyio.current_time()
    await anyio.sleep(5)
    assert await anyio.to_thread.run_sync(loop.time) >= began + 5


async def make_loop():
    return EventLoop()


async def test_failure_of_reraises_a_cancellation_of_its_own_task():
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class() as cancelled:
            raise error_for_cancellation(cancelled, "nobody") from None
    assert scope.cancelled_caught


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_failure_of_turns_the_cancellation_of_an_awaited_future_into_an_error():
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    try:
        await future
    except asyncio.CancelledError as cancelled:
        failure = error_for_cancellation(cancelled, "the fetch")
    assert str(failure) == (
        "the fetch awaited a task or future that other code cancelled; catch the CancelledError at that await"
    )


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_asyncio_cancellation_does_not_interrupt_work_run_by_in_own_task():
    begun, go_on, done = anyio.Event(), anyio.Event(), []

    async def work():
        begun.set()
        await go_on.wait()
        done.append("work")

    task = asyncio.ensure_future(in_own_task(work))
    await begun.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["work"]


async def test_in_own_task_can_leave_the_cancellation_to_the_next_checkpoint():
    results, cancelled = [], []

    async def work():
        scope.cancel()
        await anyio.sleep(1)
        return "done"

    with anyio.CancelScope() as scope:
        results.append(await in_own_task(work, cancel_later=True, on_cancel=lambda: cancelled.append(True)))
        await anyio.sleep(1)
        results.append("not cancelled")
    assert (results, cancelled) == (["done"], [True])
    assert scope.cancelled_caught


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_in_own_task_ends_if_the_event_loop_cancels_it_before_it_begins():
    """`asyncio.run()` does this with every task when it ends."""
    begun = []

    async def work():
        begun.append(True)

    before = asyncio.all_tasks()
    task = asyncio.create_task(in_own_task(work, cancel_later=True))
    await asyncio.sleep(0)
    own_task, *_ = asyncio.all_tasks() - before - {task}
    own_task.cancel()
    task.cancel("the end")
    with pytest.raises(asyncio.CancelledError, match="the end"):
        await task
    assert not begun


async def test_in_own_task_returns_the_result_and_raises_the_error_unchanged():
    async def answer():
        return 42

    async def fail():
        raise KeyError("no group around it")

    assert await in_own_task(answer) == 42
    with pytest.raises(KeyError):
        await in_own_task(fail)


def test_a_signal_handler_may_put_a_push_while_its_thread_holds_the_lock():
    wakes = Wakes()
    with wakes._lock:
        wakes.put(Push("from the handler"))
    assert wakes._pushes == [Push("from the handler")]
