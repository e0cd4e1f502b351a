"""The one thread in which a store uses its file, for any number of consumers and event loops.

Jobs run in the order of their arrival. A waiting consumer costs an entry in a queue: 1,000 consumers with a thread
each would wake each other all the time. A handler's transaction stays open between two jobs. Until it ends, only
jobs of its session run.

The thread starts with the first job and ends when the file is closed. It is a daemon: a program that never
released a session can end. SQLite then rolls the unfinished commit back, as after a kill.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar
from weakref import ref

import anyio
from anyio import CancelScope, from_thread

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client.stores._sqlite.errors import store_error

T = TypeVar("T")

_CHECK_INTERVAL = 0.05
"""Seconds between a handler thread's checks for a cancellation of its task. 20 checks a second cost nothing."""

_this_thread = threading.local()


class JobCancelled(BaseException):
    """The caller of a job was cancelled while the job ran."""


def check_cancelled() -> None:
    """End the job that runs in this thread if its caller was cancelled. For work that takes seconds."""
    job: Job[Any] | None = getattr(_this_thread, "job", None)
    if job is not None and job.is_cancelled:
        raise JobCancelled


class Job(Generic[T]):
    """A function call in the store's thread, with the context of the caller (log lines need its name)."""

    result: T

    def __init__(
        self,
        work: Callable[[], T],
        notify: Callable[[], object],
        transaction: object = None,
        *,
        urgent: bool = False,
    ) -> None:
        self.transaction = transaction  # the handlers' transaction of the session, which may be open
        self.urgent = urgent  # run it next, even while the transaction of another session is open
        self.is_cancelled = False  # True once the caller was cancelled
        self.error: BaseException | None = None
        self._work: Callable[[], T] | None = work
        self._notify = notify
        self._context = copy_context()
        self._taken = threading.Lock()

    def take(self) -> bool:
        """Take the job to run or withdraw it. Return False if it was taken before. Thread-safe."""
        return self._taken.acquire(blocking=False)

    def withdraw(self) -> bool:
        """Prevent the job from running; return False if it has begun."""
        if not self.take():
            return False
        self._work = self.transaction = None  # the job may stay in the queue until a handler's transaction ends
        return True

    def run(self, path: str) -> None:
        """Do the work. Errors of SQLite and of stored values become a `StoreError`."""
        assert self._work is not None  # it runs once  # noqa: S101
        try:
            self.result = self._context.run(self._work)
        except BaseException as error:  # noqa: BLE001  # raised by the caller
            self.error = store_error(path, error)
        self._work = self.transaction = None  # a session that its caller drops is not held by this thread
        self._notify()


class StoreThread:
    def __init__(self, path: str) -> None:
        self.stays: bool = False  # keep the thread without jobs, while the file is open; set by a job
        self._path = path
        self._lock = threading.Lock()  # never held by the garbage collector, which may interrupt any line
        self._is_running = False
        self._inbox = SimpleQueue[Job[Any] | None]()
        self._urgent = deque[Job[Any]]()  # these two in the thread alone
        self._waiting = deque[Job[Any]]()
        self._open_transaction: ref[object] | None = None

    @property
    def open_transaction(self) -> object | None:
        """The handlers' open transaction, or None. Set only in the thread of the store."""
        reference = self._open_transaction
        return None if reference is None else reference()

    @open_transaction.setter
    def open_transaction(self, transaction: object | None) -> None:
        # If its session is dropped meanwhile, that wakes the thread for the jobs that wait for its end.
        self._open_transaction = None if transaction is None else ref(transaction, lambda _: self._inbox.put(None))

    async def run(self, work: Callable[[], T], transaction: object = None, *, urgent: bool = False) -> T:
        """Run a job and return its result. Once the job has begun, a cancelled caller waits for its end."""
        # Its error is raised in any case, since the caller has to know what was done. An urgent job runs even if
        # the caller is cancelled.
        done = anyio.Event()
        loop = EventLoop()  # not kept in a `RunVar`: it holds the loop, which then would never be collected
        job = Job(work, partial(loop.call, done.set), transaction, urgent=urgent)
        self.submit(job)
        try:
            try:
                await done.wait()
            except anyio.get_cancelled_exc_class():
                if not urgent and job.withdraw():
                    raise
                job.is_cancelled = True
                while not done.is_set():  # asyncio's own cancellation passes through a shield
                    with CancelScope(shield=True), suppress(anyio.get_cancelled_exc_class()):
                        await done.wait()
                if job.error is None or isinstance(job.error, JobCancelled):
                    raise
            if job.error is not None:
                raise job.error
            return job.result
        finally:
            job.error = None  # its traceback has a frame that holds the job, and so the session

    def call(self, work: Callable[[], T], transaction: object, *, timeout: float = math.inf) -> bool:
        """Run a job from a thread, or briefly from an event loop; return False if it did not begin in time."""
        # Raises the cancellation of the task that waits for this thread, if the job has not begun.
        ended = threading.Event()
        job = Job(work, ended.set, transaction)
        self.submit(job)
        deadline = time.monotonic() + timeout
        while not ended.wait(min(_CHECK_INTERVAL, max(0.0, deadline - time.monotonic()))):
            try:
                with suppress(RuntimeError):  # not a thread of anyio: no task can be cancelled
                    from_thread.check_cancelled()
            except BaseException:
                if job.withdraw():
                    raise
                deadline = math.inf
            if time.monotonic() >= deadline:
                if job.withdraw():
                    return False
                ended.wait()
        try:
            if job.error is not None:
                raise job.error
        finally:
            job.error = None  # as in `run`
        return True

    def submit(self, job: "Job[T]") -> None:
        with self._lock:
            if not self._is_running:  # started first: it may fail, and then the job must not be done later
                threading.Thread(target=self._run_jobs, name=f"SQLiteStore {self._path}", daemon=True).start()
                self._is_running = True
            self._inbox.put(job)

    def submit_from_finalizer(self, work: Callable[[], None]) -> None:
        """Queue a job without waiting for it, if the thread runs."""
        self._inbox.put(Job(work, lambda: None, urgent=True))

    def _run_jobs(self) -> None:
        while (job := self._next_job()) is not None:
            if job.take():
                _this_thread.job = job
                job.run(self._path)
            _this_thread.job = job = None

    def _next_job(self) -> "Job[Any] | None":
        while True:
            while not self._inbox.empty():
                self._receive()
            if (job := self._pop()) is not None:
                return job
            if not self._waiting and not self.stays:
                with self._lock:
                    if self._inbox.empty():
                        self._is_running = False
                        return None
            self._receive()

    def _pop(self) -> "Job[Any] | None":
        if self._urgent:
            return self._urgent.popleft()
        current = self.open_transaction
        for position, job in enumerate(self._waiting):
            if current is None or job.transaction is current:
                del self._waiting[position]
                return job
        return None

    def _receive(self) -> None:
        job = self._inbox.get()
        if job is not None:
            (self._urgent if job.urgent else self._waiting).append(job)
