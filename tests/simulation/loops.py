"""Deterministic event loops: virtual time, and chances drawn from a number."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
import trio
from anyio._backends import _asyncio as anyio_asyncio

from push_to_poll_client.stores._sqlite.errors import wrap_sqlite_errors
from push_to_poll_client.stores._sqlite.thread import StoreThread
from push_to_poll_client.testing._virtual_time import virtual_time

__all__ = ["START", "Backend", "run"]

Backend = Literal["asyncio", "trio"]

START = 1000.0
"""Start of the clock. It is not 0, so that a wrong origin becomes visible."""


def run(main: Callable[[], Awaitable[None]], seed: int, backend: Backend) -> None:
    """Run a coroutine function in a fresh event loop."""
    name, options = virtual_time(backend)
    random.seed(seed)
    trio._core._run._r.seed(seed)

    async def start() -> None:
        if backend == "asyncio":
            asyncio.get_running_loop().set_task_factory(_make_task)
        await anyio.sleep(START - anyio.current_time())
        await main()

    with _ordered_by_age(), _no_threads():
        anyio.run(start, backend=name, backend_options=options)


@contextmanager
def _no_threads() -> Iterator[None]:
    """Run work for threads in the event loop, since a virtual clock does not wait for threads."""
    in_thread = anyio.to_thread.run_sync

    async def run_sync(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return function(*args)

    async def run(thread: StoreThread, work: Callable[[], Any], *_: object, **__: object) -> Any:
        await anyio.lowlevel.checkpoint()
        with wrap_sqlite_errors(thread._path):  # as the thread does
            return work()

    in_store_thread = StoreThread.run
    anyio.to_thread.run_sync, StoreThread.run = run_sync, run  # type: ignore[method-assign]
    try:
        yield
    finally:
        anyio.to_thread.run_sync, StoreThread.run = in_thread, in_store_thread  # type: ignore[method-assign]


class _Task(asyncio.Task[Any]):
    """A task that sets order by its age."""

    _ages = itertools.count()

    def __init__(self, *args: Any, **options: Any) -> None:
        self._age = next(self._ages)
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._age


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> _Task:
    return _Task(coroutine, loop=loop, **options)


@contextmanager
def _ordered_by_age() -> Iterator[None]:
    """Order sets of cancel scopes and of trio's tasks by age, not by memory address."""
    plain_scope = anyio_asyncio.CancelScope
    trio_order = trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING
    ages = itertools.count()

    class Scope(plain_scope):
        __slots__ = ("_age",)

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._age = next(ages)

        def __hash__(self) -> int:
            return self._age

    anyio_asyncio.CancelScope = Scope
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        yield
    finally:
        anyio_asyncio.CancelScope = plain_scope
        trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = trio_order
