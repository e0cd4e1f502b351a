"""If many consumers start at once, few poll at a time, and none waits long for another."""

import asyncio
import gc
import weakref

import anyio
import httpx
import pytest

from push_to_poll_client import Consumer, HTTPFeed, MemoryStore, _first_polls
from push_to_poll_client._first_polls import MAX_SHARE, first_poll
from push_to_poll_client.testing import virtual_time

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("few")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_time(request.param)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(_first_polls, "MAX_FIRST_POLLS", 2)


class Server:
    """Returns pages of one message, and counts the requests in flight or in processing."""

    def __init__(self):
        self.requests = self.most = 0
        self.pages = 1  # for each consumer
        self.hanging = set()
        self.is_down = False

    def consumer(self, name, process, *, timeout=30.0):
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        feed = HTTPFeed(f"https://feed.example/{name}", client=client, timeout=timeout)
        return Consumer(feed, store=MemoryStore(), process=process)

    async def _answer(self, request):
        if request.url.path in self.hanging:
            await anyio.sleep_forever()
        if self.is_down:
            return httpx.Response(503)
        last = int(request.url.params.get("lastEventId", 0))
        if last == self.pages:
            return httpx.Response(200, json=[])
        self.requests += 1
        self.most = max(self.most, self.requests)
        event = {"specversion": "1.0", "id": f"{last + 1}", "source": "s", "type": "t", "data": 1}
        return httpx.Response(200, json=[event])


@pytest.fixture
def server():
    return Server()


async def catch_up(consumers):
    async with anyio.create_task_group() as tasks:
        for consumer in consumers:
            tasks.start_soon(consumer.catch_up)


async def test_only_a_few_consumers_ask_for_their_first_page_at_once(server):
    async def process(_):
        await anyio.sleep(MAX_SHARE / 4)
        server.requests -= 1

    began = anyio.current_time()
    await catch_up([server.consumer(f"{number}", process) for number in range(10)])
    assert server.most == 2
    assert anyio.current_time() - began == pytest.approx(5 * MAX_SHARE / 4)


async def test_slow_handlers_keep_the_others_waiting_for_a_moment_only(server):
    begun = []

    async def process(_):
        begun.append(anyio.current_time())
        await anyio.sleep(3600)

    began = anyio.current_time()
    await catch_up([server.consumer(f"{number}", process) for number in range(10)])
    assert [moment - began for moment in begun] == pytest.approx(
        [MAX_SHARE * (number // 2) for number in range(10)]
    )


async def test_a_server_that_does_not_answer_keeps_the_others_waiting_for_a_moment_only(server):
    done = []

    async def process(_):
        done.append(anyio.current_time())

    server.hanging = {f"/{number}" for number in range(4)}
    consumers = [server.consumer(f"{number}", process) for number in range(8)]
    async with anyio.create_task_group() as tasks:
        for consumer in consumers:
            tasks.start_soon(consumer.run)
        await anyio.sleep(2.1 * MAX_SHARE)
        tasks.cancel_scope.cancel()
    assert len(done) == 4


async def test_a_later_poll_of_a_consumer_does_not_wait_for_first_polls(server):
    done = []

    async def process(_):
        done.append(anyio.current_time())

    async def process_slowly(_):
        await anyio.sleep(3600)

    async with anyio.create_task_group() as tasks:
        running = server.consumer("running", process)
        tasks.start_soon(running.run)
        await running.poll_now()
        for number in range(2):
            tasks.start_soon(server.consumer(f"{number}", process_slowly).run)
        await anyio.wait_all_tasks_blocked()
        server.pages = 2
        asked = anyio.current_time()
        await running.poll_now()
        tasks.cancel_scope.cancel()
    assert len(done) == 2
    assert done[1] == asked


async def test_first_polls_are_few_too_when_the_server_was_down_before(server):
    async def process(_):
        await anyio.sleep(MAX_SHARE / 4)
        server.requests -= 1

    server.is_down = True
    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(server.consumer(f"{number}", process).run)
        await anyio.sleep(0.01)
        server.is_down = False
        await anyio.sleep(60)
        tasks.cancel_scope.cancel()
    assert (server.most, server.requests) == (2, 0)


async def test_a_consumer_that_is_cancelled_while_it_waits_lets_the_next_one_in():
    let_in = []

    async def poll(name, seconds):
        async with first_poll():
            let_in.append((name, anyio.current_time() - began))
            await anyio.sleep(seconds)

    async def cancelled(name):
        with anyio.move_on_after(MAX_SHARE / 4):
            await poll(name, 0)

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for name in "ab":
            tasks.start_soon(poll, name, MAX_SHARE / 2)
        await anyio.wait_all_tasks_blocked()
        for name in "cd":
            tasks.start_soon(cancelled, name)
            await anyio.wait_all_tasks_blocked()
        tasks.start_soon(poll, "e", 0)
    assert sorted(let_in[:2]) == [("a", 0), ("b", 0)]
    assert let_in[2:] == [("e", pytest.approx(MAX_SHARE / 2))]


async def test_the_wait_does_not_count_for_the_deadline_of_the_answer(server):
    done = []

    async def process(_):
        done.append(anyio.current_time() - began)

    began = anyio.current_time()
    server.hanging = {"/0", "/1"}
    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(server.consumer(f"{number}", process).run)
        await anyio.wait_all_tasks_blocked()
        await server.consumer("2", process, timeout=MAX_SHARE / 2).catch_up()
        tasks.cancel_scope.cancel()
    assert done == pytest.approx([MAX_SHARE])


def test_first_polls_do_not_keep_their_event_loop_in_memory():
    loops = []

    async def poll():
        async with first_poll():
            await anyio.sleep(0.001)

    async def polls():
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(poll)

    anyio.run(polls)
    gc.collect()
    assert loops[0]() is None
