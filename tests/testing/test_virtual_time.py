"""Virtual time jumps when nothing is ready, and only then."""

import threading
import time

import anyio
import pytest

from push_to_poll_client.testing._virtual_time import virtual_time

pytestmark = pytest.mark.anyio


async def test_a_sleep_of_an_hour_takes_almost_no_real_time():
    began, real = anyio.current_time(), time.monotonic()
    await anyio.sleep(3600)
    assert anyio.current_time() - began == 3600
    assert time.monotonic() - real < 60


async def test_timers_fire_in_their_order():
    fired = []

    async def after(delay):
        await anyio.sleep(delay)
        fired.append((delay, anyio.current_time()))

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for delay in (3, 1, 2):
            tasks.start_soon(after, delay)
    assert [delay for delay, _ in fired] == [1, 2, 3]
    assert [at - began for _, at in fired] == pytest.approx([1, 2, 3])


async def test_a_thread_is_waited_for_when_no_timer_is_set():
    assert await anyio.to_thread.run_sync(threading.get_ident) != threading.get_ident()


async def test_the_clock_starts_at_1000():
    assert anyio.current_time() == pytest.approx(1000)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_time_does_not_jump_while_a_thread_answers_within_the_threshold(backend):
    async def main():
        with anyio.fail_after(1000):
            return await anyio.to_thread.run_sync(threading.get_ident)

    name, options = virtual_time(backend, autojump_threshold=5)
    assert anyio.run(main, backend=name, backend_options=options) != threading.get_ident()
