"""A cancelled claim or a dropped session releases the name, the file and its lock."""

import asyncio
import contextlib
import gc
import os
import threading

import anyio
import pytest
from anyio import to_thread

from push_to_poll_client import Mode, Record, SQLiteStore, StoreBusy, _lifecycle
from push_to_poll_client.stores import sqlite
from push_to_poll_client.stores._sqlite.thread import Job
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log
from tests.support.forms import GUARD

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]

FEED = "https://feed.example/"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


@pytest.fixture(params=[False, True], ids=["file", "transactional file"])
def store(request, tmp_path):
    return SQLiteStore(tmp_path / "store.db", transactional=request.param)


async def claim_elsewhere(store):
    """Claim a name through another store object, which needs the same lock as another process would."""
    other = await SQLiteStore(store.path, transactional=store.transactional).claim("other", feed=FEED)
    await other.release()


async def wait_until_unlocked(store):
    """Wait until the garbage collector ran and the thread has closed the file."""
    with anyio.fail_after(GUARD):
        while True:
            gc.collect()
            try:
                return await claim_elsewhere(store)
            except StoreBusy:
                await to_thread.run_sync(lambda: None)  # a thread closes the file


@contextlib.contextmanager
def held_in_thread(store, monkeypatch):
    """Hold claims in their worker thread until the test sets the second yielded event."""
    begun, go_on = threading.Event(), threading.Event()
    claim = sqlite.ClaimedName

    def slow(*args, **others):
        begun.set()
        assert go_on.wait(GUARD)
        return claim(*args, **others)

    with monkeypatch.context() as patched:
        patched.setattr(sqlite, "ClaimedName", slow)
        yield begun, go_on
        go_on.set()


async def test_a_claim_cancelled_by_its_scope_in_the_thread_leaves_the_file_unlocked(store, monkeypatch):
    async def cancel():
        await to_thread.run_sync(begun.wait, GUARD)
        tasks.cancel_scope.cancel()
        go_on.set()

    with held_in_thread(store, monkeypatch) as (begun, go_on):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel)
            await store.claim("a", feed=FEED)
    await wait_until_unlocked(store)  # on trio the claim may return before the cancellation is raised
    session = await store.claim("a", feed=FEED)
    await session.release()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_claim_cancelled_by_asyncio_in_the_thread_leaves_the_file_unlocked(store, monkeypatch):
    with held_in_thread(store, monkeypatch) as (begun, go_on):
        task = asyncio.ensure_future(store.claim("a", feed=FEED))
        await to_thread.run_sync(begun.wait, GUARD)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    await claim_elsewhere(store)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_claim_cancelled_after_any_number_of_steps_of_its_loop_leaves_the_file_unlocked(store):
    """Before the thread begins, while it works, and after it ended."""
    for steps in range(16):
        task = asyncio.ensure_future(store.claim("a", feed=FEED))
        for _ in range(steps):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task.result().release()
        await claim_elsewhere(store)


async def test_a_claim_cancelled_while_it_waits_for_other_work_on_the_store_leaves_the_file_unlocked(store):
    go_on, begun = threading.Event(), threading.Event()
    store._thread.submit(Job(lambda: (begun.set(), go_on.wait(GUARD)), lambda: None))
    await to_thread.run_sync(begun.wait, GUARD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: store.claim("a", feed=FEED))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    go_on.set()
    await claim_elsewhere(store)


async def test_a_dropped_session_gives_its_file_back(store):
    await store.claim("a", feed=FEED)
    await wait_until_unlocked(store)
    session = await store.claim("a", feed=FEED)
    assert session.fencing_token == 2
    await session.release()


async def test_a_file_stays_open_while_another_session_uses_it(store):
    session = await store.claim("a", feed=FEED)
    await store.claim("b", feed=FEED)
    with anyio.fail_after(GUARD):
        while len(list(store._owners)) > 1:
            gc.collect()
            await to_thread.run_sync(lambda: None)
    await store._thread.run(store._close_unused, urgent=True)
    with pytest.raises(StoreBusy):
        await claim_elsewhere(store)
    await session.commit(cursor="1", records=[Record("1")])
    await session.release()
    await claim_elsewhere(store)


async def test_a_dropped_session_and_its_dropped_store_give_the_file_back(tmp_path):
    store = SQLiteStore(tmp_path / "store.db")
    await store.claim("a", feed=FEED)
    path = store.path
    del store
    await wait_until_unlocked(SQLiteStore(path))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_session_of_an_event_loop_that_was_thrown_away_gives_its_file_back(store, backend):
    anyio.run(lambda: store.claim("a", feed=FEED), backend=backend)
    anyio.run(wait_until_unlocked, store)


async def test_a_file_stays_open_while_a_handler_of_a_dropped_session_uses_it(tmp_path):
    """Closing a connection during another thread's statement would crash the process."""
    store = SQLiteStore(tmp_path / "store.db", transactional=True)
    session = await store.claim("a", feed=FEED)
    effects = session.transaction([Record("1")])
    await effects.__aenter__()
    store.connection.execute("CREATE TABLE note(text)")
    del session
    gc.collect()
    await store._thread.run(store._close_unused, urgent=True)
    store.connection.execute("INSERT INTO note VALUES ('a')")
    with pytest.raises(StoreBusy):
        await claim_elsewhere(store)
    effects.leave()
    del effects
    await wait_until_unlocked(store)


async def test_a_session_dropped_in_a_forked_child_leaves_the_file_to_the_parent(store, monkeypatch):
    session = await store.claim("a", feed=FEED)
    submitted = []
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        forked.setattr(store._thread, "submit_from_finalizer", submitted.append)
        store._close_dropped_soon()
    assert not submitted
    await session.release()


async def test_a_second_process_stands_by_until_the_file_is_free(store, monkeypatch):
    """A second store object needs the same lock as another process would."""
    monkeypatch.setattr(_lifecycle, "STANDBY_INTERVAL", 0.01)
    feed = FakeFeed()
    feed.publish(1)
    first = Log(feed, store=store, patience=GUARD)
    second = Log(feed, store=SQLiteStore(store.path, transactional=store.transactional), patience=GUARD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.run)
        await first.until(1)
        tasks.start_soon(second.run)
        with anyio.fail_after(GUARD):
            while second.status().mode is not Mode.STANDBY:  # noqa: ASYNC110  # no event tells it
                await anyio.sleep(0.01)
        first.stop()
        feed.publish(1)
        await second.until(1)
        second.stop()
    assert (first.processed, second.processed) == (["1"], ["2"])
