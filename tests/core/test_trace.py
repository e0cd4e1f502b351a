"""Limits for a trace of one push with one message: files entered, and changes of file."""

import itertools
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import FunctionType

import anyio
import pytest
from anyio import wait_all_tasks_blocked

import push_to_poll_client
from push_to_poll_client import Consumer, SQLiteStore
from push_to_poll_client.testing import FakeFeed, ManualListener

PACKAGE = str(Path(push_to_poll_client.__file__).parent)
FAKES = str(Path(PACKAGE, "testing"))

MAX_FILES = 18
"""It was 34 when modules held only a few functions."""

MAX_CHANGES_OF_FILE = 60
"""Sum over the threads: 45 in the consumer's and 15 in the store's. Half of them are within the store. It was
98 when modules held only a few functions."""

FIRST_RESUME = 0
"""Argument of the instruction RESUME at the start of a function. After a wait it differs."""


class Tracer:
    """Record, by thread, the file of each function of the package that is called.

    Properties and comprehensions do not count: a reader does not leave the line for them. A coroutine that
    continues after a wait does not count either: the reader was there before.
    """

    def __init__(self):
        self.files = defaultdict(list)  # by thread, because their order depends on the machine
        self._recording = False
        self._properties = {
            function.__code__
            for name, module in sys.modules.items()
            if name.startswith("push_to_poll_client")
            for kind in vars(module).values()
            if isinstance(kind, type)
            for each in vars(kind).values()
            if isinstance(each, property)
            for function in (each.fget, each.fset)
            if isinstance(function, FunctionType)
        }

    def __enter__(self):
        self._before = sys.getprofile()
        threading.setprofile(self._called)  # for the worker threads of the store, which start later
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_):
        sys.setprofile(self._before)
        threading.setprofile(None)

    def start(self):
        self._recording = True

    def stop(self):
        self._recording = False

    def _called(self, frame, event, _):
        if not self._recording or event != "call":
            return
        code = frame.f_code
        file = code.co_filename
        if not file.startswith(PACKAGE) or file.startswith(FAKES) or code in self._properties:
            return
        if code.co_name in {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}:
            return
        if code.co_code[frame.f_lasti + 1] == FIRST_RESUME:
            self.files[threading.get_ident()].append(file.removeprefix(PACKAGE))


@pytest.fixture
def anyio_backend():
    """One event loop in real time, because the store works in threads."""
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.no_cover  # it sets a profile function of its own
async def test_one_push_with_one_message_enters_few_files(tmp_path, record_property):
    committed = anyio.Event()

    class Orders(Consumer):
        async def process(self, message):
            pass

    feed, listener = FakeFeed(), ManualListener()
    consumer = Orders(feed, store=SQLiteStore(tmp_path / "orders.db"), listeners=[listener])
    with Tracer() as trace:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await listener.connected()
            await consumer.poll_now()
            await wait_all_tasks_blocked()
            session = consumer._parts.session
            commit = session.commit

            async def watched(**progress):
                await commit(**progress)
                committed.set()

            session.commit = watched
            feed.publish("order 1")
            trace.start()
            listener.push()
            await committed.wait()
            await wait_all_tasks_blocked()
            trace.stop()
            tasks.cancel_scope.cancel()
    changes = sum(before != after for files in trace.files.values() for before, after in itertools.pairwise(files))
    entered = set(itertools.chain.from_iterable(trace.files.values()))
    record_property("figures", f"{len(entered)} files, {changes} changes of file")
    assert len(entered) <= MAX_FILES, sorted(entered)
    assert changes <= MAX_CHANGES_OF_FILE, changes
    assert {"/_poller.py", "/_processor.py", "/_progress.py", "/_schedule.py"} <= entered, "it was traced"
