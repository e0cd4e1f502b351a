"""Plain handlers of a page share one worker thread, with what `anyio.to_thread` gives to a function."""

import threading
from contextvars import ContextVar

import anyio
import pytest
from anyio import from_thread, to_thread

from push_to_poll_client import Consumer
from push_to_poll_client._worker_thread import WorkerThread, free_thread, shared_thread
from push_to_poll_client.stores import MemoryStore
from push_to_poll_client.testing import FakeFeed
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio

variable = ContextVar("variable", default="unset")


async def poll(process, count=5, on_failure="stop"):
    feed = FakeFeed()
    feed.publish(*(f"m{number}" for number in range(count)))
    async with Consumer(feed, store=MemoryStore(), process=process, retry=None, on_failure=on_failure) as consumer:
        return await consumer.poll_now()


async def test_all_messages_of_a_page_are_processed_in_one_thread_which_then_ends(monkeypatch):
    begun, ended, used = [], threading.Event(), set()
    work = WorkerThread._work

    def noted(thread):
        begun.append(thread)
        work(thread)
        ended.set()

    monkeypatch.setattr(WorkerThread, "_work", noted)
    await poll(lambda _: used.add(threading.get_ident()))
    assert len(used) == len(begun) == 1
    assert ended.wait(GUARD)


async def test_a_handler_in_the_thread_has_its_context_and_calls_the_event_loop():
    seen = []

    async def name_of_task():
        return anyio.get_current_task().name

    def process(message):
        seen.append((variable.get(), from_thread.run(name_of_task) != ""))
        variable.set(message.id)

    variable.set("given")
    await poll(process)
    assert seen == [("given", True)] * 5


async def test_a_handler_in_the_thread_can_run_an_event_loop_of_its_own(anyio_backend_name):
    results = []

    def process(_):
        results.append(anyio.run(anyio.sleep, 0))

    # anyio.run() tells its tasks, and what inherits their context, in which event loop they are.
    await to_thread.run_sync(lambda: anyio.run(poll, process, backend=anyio_backend_name))
    assert results == [None] * 5


async def test_a_handler_in_the_thread_can_poll_another_consumer_with_a_plain_handler():
    inner, outer = [], []

    def process(message):
        from_thread.run(poll, inner.append, 1)
        outer.append(message.id)

    await poll(process)
    assert (len(inner), len(outer)) == (5, 5)


async def test_a_failed_call_ends_the_thread_and_the_next_message_has_another_one():
    calls = []

    def process(message):
        calls.append(message.id)
        if len(calls) == 2:
            raise ValueError("planted")

    async with shared_thread():
        thread = free_thread()
        await thread.call(lambda: None)
        with pytest.raises(ZeroDivisionError):
            await thread.call(lambda: 1 / 0)
        assert free_thread() is None
    await poll(process, on_failure="skip")
    assert len(calls) == 5


async def test_a_thread_is_not_free_during_a_call():
    async with shared_thread():
        assert await free_thread().call(free_thread) is None
        assert free_thread() is not None


async def test_a_thread_that_cannot_begin_fails_the_call(monkeypatch):
    async def refuse(*_, **__):
        raise RuntimeError("can't start new thread")

    async with shared_thread():
        monkeypatch.setattr(to_thread, "run_sync", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await free_thread().call(lambda: None)


async def test_as_many_handlers_run_at_a_time_as_anyio_allows():
    limiter = to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    running, most = 0, []

    def process(_):
        nonlocal running
        running += 1
        most.append(running)
        from_thread.run(anyio.sleep, 0.001)
        running -= 1

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(poll, process)
    finally:
        limiter.total_tokens = before
    assert most == [1] * 15
