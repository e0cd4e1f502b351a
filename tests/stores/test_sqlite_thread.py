"""The worker thread of a store: order of jobs, priority, and cancellation."""

import asyncio
import gc
import itertools
import sys
import threading
from functools import partial
from weakref import ref

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from push_to_poll_client import Record, SQLiteStore
from push_to_poll_client.stores._sqlite.thread import Job, StoreThread
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio

FEED = "https://feed.example/"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # a thread takes real time


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


class Transaction:
    """Stand-in for the transaction of a session."""


class Held:
    """Thread that does nothing until the test releases it."""

    def __init__(self):
        self.thread = StoreThread("test")
        self._begun, self._go = threading.Event(), threading.Event()

    async def __aenter__(self):
        self.thread.submit(Job(self._hold, lambda: None))
        await to_thread.run_sync(self._begun.wait, GUARD)
        return self

    def _hold(self):
        self._begun.set()
        assert self._go.wait(GUARD)

    def let_go(self):
        self._go.set()

    async def __aexit__(self, *_):
        self.let_go()


async def test_consumers_of_a_store_share_one_thread(path):
    store, threads = SQLiteStore(path, clock=lambda: threads.add(threading.current_thread()) or 1.0), set()

    async def consume(name):
        session = await store.claim(name, feed=FEED)
        await session.commit(cursor="1", records=[Record("1")])
        sessions.append(session)

    sessions = []
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(consume, f"{number}")
    assert len(threads) == 1
    assert [thread.name for thread in threading.enumerate()].count(f"SQLiteStore {store.path}") == 1
    for session in sessions:
        await session.release()
    (thread,) = threads
    await to_thread.run_sync(thread.join, GUARD)
    assert not thread.is_alive()


async def test_only_the_release_of_the_last_name_needs_the_thread(path, monkeypatch):
    store = SQLiteStore(path)
    sessions = [await store.claim(name, feed=FEED) for name in "abc"]
    await sessions[0].commit(cursor="1", records=[Record("1")])
    calls, run = [], store._thread.run
    monkeypatch.setattr(store._thread, "run", lambda *args, **options: calls.append(args) or run(*args, **options))
    for session in sessions[:2]:
        await session.release()
    assert calls == []
    await sessions[2].release()
    assert len(calls) == 1


async def test_a_release_waits_for_the_commit_that_runs(path):
    now, begun, go = [1.0, 1.0], threading.Event(), threading.Event()

    def clock():
        if not now:
            begun.set()
            assert go.wait(GUARD)
        return now.pop() if now else 1.0

    store = SQLiteStore(path, clock=clock)
    session, _other = await store.claim("a", feed=FEED), await store.claim("b", feed=FEED)
    ended = []

    async def commit():
        await session.commit(cursor="1", records=[Record("1")])
        ended.append("commit")

    async def release():
        await session.release()
        ended.append("release")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commit)
        await to_thread.run_sync(begun.wait, GUARD)
        tasks.start_soon(release)
        await anyio.wait_all_tasks_blocked()
        assert ended == []
        go.set()
    assert set(ended) == {"commit", "release"}
    session = await store.claim("a", feed=FEED)
    assert session.cursor == "1"


async def test_jobs_run_in_the_order_of_requests():
    order = []
    async with Held() as held, anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(held.thread.run, partial(order.append, number))
            await anyio.wait_all_tasks_blocked()
        held.let_go()
    assert order == [*range(5)]


async def test_an_open_transaction_lets_only_its_session_and_urgent_jobs_through():
    mine, order = Transaction(), []
    async with Held() as held, anyio.create_task_group() as tasks:
        thread = held.thread
        for name, transaction, urgent in (
            ("begin", mine, False),
            ("other", Transaction(), False),
            ("claim", None, False),
            ("mine", mine, False),
            ("release", None, True),
        ):
            work = partial(setattr, thread, "open_transaction", mine) if name == "begin" else lambda: None
            noted = partial(note, work, order, name)
            tasks.start_soon(partial(thread.run, noted, transaction, urgent=urgent))
            await anyio.wait_all_tasks_blocked()
        held.let_go()
        await thread.run(partial(setattr, thread, "open_transaction", None), mine)
    assert order == ["release", "begin", "mine", "other", "claim"]


def note(work, order, name):
    work()
    order.append(name)


def test_a_transaction_may_end_at_any_instant_while_another_thread_asks_for_it():
    """Also between two instructions, as in a Python without a global lock."""
    thread, transaction, before = StoreThread("test"), Object(), sys.gettrace()
    code, answers = StoreThread.open_transaction.fget.__code__, []

    def trace(frame, event, _):
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(instructions) == last:
            thread.open_transaction = None
        return trace

    for last in range(20):  # noqa: B007  # `trace` uses it
        thread.open_transaction, instructions = transaction, itertools.count()
        sys.settrace(trace)
        try:
            answers.append(thread.open_transaction)
        finally:
            sys.settrace(before)
    assert None in answers
    assert set(answers) == {None, transaction}


async def test_a_transaction_that_was_dropped_keeps_no_job_waiting():
    thread = StoreThread("test")
    dropped = Transaction()
    await thread.run(partial(setattr, thread, "open_transaction", dropped), dropped)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(thread.run, lambda: None)
        while not thread._waiting:
            await to_thread.run_sync(lambda: None)
        del dropped
        gc.collect()
    assert thread.open_transaction is None


async def test_a_job_that_waits_when_its_caller_is_cancelled_is_not_done():
    done = []
    async with Held() as held:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(held.thread.run, partial(done.append, "cancelled"))
            tasks.start_soon(partial(held.thread.run, partial(done.append, "urgent"), urgent=True))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            held.let_go()
        await held.thread.run(partial(done.append, "next"))
    assert done == ["urgent", "next"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_error_of_a_job_is_raised_although_its_caller_is_cancelled_again_and_again():
    async with Held() as held:
        begun, go = threading.Event(), threading.Event()

        def fail():
            begun.set()
            assert go.wait(GUARD)
            raise ZeroDivisionError

        task = asyncio.ensure_future(held.thread.run(fail))
        await anyio.wait_all_tasks_blocked()
        held.let_go()
        await to_thread.run_sync(begun.wait, GUARD)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        go.set()
        with pytest.raises(ZeroDivisionError):
            await task


def test_jobs_of_several_event_loops_share_the_thread_and_an_ended_loop_causes_no_error():
    held, threads = Held(), set()

    async def leave():
        held.thread.submit(Job(held._hold, lambda: None))
        await to_thread.run_sync(held._begun.wait, GUARD)
        tasks.append(asyncio.ensure_future(held.thread.run(lambda: threads.add(threading.get_ident()))))
        await asyncio.sleep(0)

    async def work():
        held.let_go()
        await held.thread.run(lambda: threads.add(threading.get_ident()))

    tasks = []
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda *_: None)
        runner.run(leave())
    for backend in ("asyncio", "trio"):
        anyio.run(work, backend=backend)
    assert len(threads) <= 2


def test_an_event_loop_that_ended_is_not_kept(path):
    loops = []

    async def use_store():
        loops.append(ref(anyio.lowlevel.current_token().native_token))
        session = await SQLiteStore(path).claim("a", feed="https://feed.example/")
        await session.release()

    for backend in ("asyncio", "trio"):
        anyio.run(use_store, backend=backend)
    gc.collect()
    assert [loop() for loop in loops] == [None, None]


async def test_a_job_that_is_not_begun_in_time_is_taken_back():
    done = []
    async with Held() as held:
        assert not held.thread.call(partial(done.append, "late"), None, timeout=0.0)
        held.let_go()
        assert await to_thread.run_sync(held.thread.call, partial(done.append, "in time"), None)
    assert done == ["in time"]


async def test_a_handlers_thread_that_waits_can_be_cancelled():
    done = []
    async with Held() as held:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, held.thread.call, partial(done.append, "cancelled"), None)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        held.let_go()
        await held.thread.run(lambda: None)
    assert done == []


class Object:
    """Object used by a job; it supports weak references."""


async def test_a_job_whose_thread_cannot_start_is_not_done_later(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    thread, done = StoreThread("test"), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            await thread.run(partial(done.append, "refused"))
    await thread.run(partial(done.append, "next"))
    assert done == ["next"]


async def test_a_job_that_is_taken_back_keeps_nothing_until_its_turn_comes():
    async with Held() as held:
        used, mine = Object(), Transaction()
        kept = [ref(used), ref(mine)]
        with anyio.move_on_after(0):
            await held.thread.run(partial(id, used), mine)
        began = held.thread.call(partial(id, used), mine, timeout=0.0)
        assert not began
        del used, mine
        await anyio.wait_all_tasks_blocked()  # the event loop drops its reference to the cancellation
        gc.collect()
        assert [reference() for reference in kept] == [None, None]


async def test_an_error_of_a_job_keeps_nothing_when_its_caller_has_handled_it():
    """A dropped session frees its name, even if the garbage collector runs late."""

    def fail(_):
        raise ZeroDivisionError

    thread, kept = StoreThread("test"), []

    async def fail_in_job():
        used = Object()
        kept.append(ref(used))
        with pytest.raises(ZeroDivisionError):
            await thread.run(partial(fail, used))

    def fail_in_call():
        used = Object()
        kept.append(ref(used))
        with pytest.raises(ZeroDivisionError):
            thread.call(partial(fail, used), None)

    gc.collect()
    gc.disable()
    try:
        await fail_in_job()
        await to_thread.run_sync(fail_in_call)
        await thread.run(lambda: None)
        assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()
