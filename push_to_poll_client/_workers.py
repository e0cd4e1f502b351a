"""Settle several messages at a time: in tasks, in batches, or both.

`_WorkRound` takes messages from the work queue and starts tasks, `Workers` settles what was taken together. A
batch that fails is split in halves until the message that fails stands alone. That one is then retried, and
settled by the failure policy, like any other.
"""

from collections.abc import Hashable, Sequence
from itertools import groupby
from operator import attrgetter

import anyio
from anyio.abc import TaskGroup

from push_to_poll_client._exceptions import RetryMessage, StopConsumer
from push_to_poll_client._failure_policy import MAX_FAILING
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._options import BatchHandler
from push_to_poll_client._progress import Progress
from push_to_poll_client._retry import Postponed, Retry, StopSignal, failure_of_message
from push_to_poll_client._types import Clock, Record, RecordState
from push_to_poll_client._work_queue import WorkItem, WorkQueue

__all__ = ["Workers"]


WHOLE_BATCH_ERRORS = (RetryMessage, StopConsumer)
"""Errors that a handler means for the whole batch: splitting it would call the handler again for nothing."""


class Workers:
    """Settles the messages of a work queue.

    Args:
        retry: Settles a message that stands alone.
        progress: Commits what is settled.
        batch_handler: Processes several messages; `None` means that each stands alone.
        concurrency: How many messages, or batches, may be processed at a time.
        batch_size: Messages that a batch can have.
        hooks: Told of settled messages.
        clock: The event loop's clock.
    """

    def __init__(
        self,
        retry: Retry,
        progress: Progress,
        batch_handler: BatchHandler | None,
        *,
        concurrency: int,
        batch_size: int,
        hooks: Hooks,
        clock: Clock,
    ) -> None:
        self._retry = retry
        self._progress = progress
        self._batch_handler = batch_handler
        self._concurrency = concurrency
        self._batch_size = 1 if batch_handler is None else batch_size
        self._hooks = hooks
        self._clock = clock

    async def work_off(self, work: WorkQueue, stop: StopSignal, *, fill: bool) -> None:
        """Settle the messages in the work queue.

        Args:
            work: The work queue.
            stop: Checked before a message or batch is begun.
            fill: Leave messages that do not fill a batch.

        Raises:
            Postponed: A message has to wait. All messages that need not wait for it are settled.
            ProcessError: A message failed for good. Those in flight with it are settled, or failed too.
            StoreError: Progress could not be committed. Messages in flight are as for `ProcessError`.
        """
        min_batch = self._batch_size if fill else 1
        await _WorkRound(
            self, work, stop, min_batch=min_batch, max_batch=self._batch_size, concurrency=self._concurrency
        ).run()

    async def work_off_batch(self, items: Sequence[WorkItem], work: WorkQueue, stop: StopSignal) -> None:
        """Settle the items that were taken together.

        Raises:
            Postponed: Some items have to wait. All items that need not wait for them are settled.
            ProcessError: As for `work_off`.
            StoreError: As for `work_off`.
        """
        if self._batch_handler is None:
            await self._try_one(items[0], work, stop)
        else:
            await self._try_batches(self._split_into_batches(items), work, stop)

    def _split_into_batches(self, items: Sequence[WorkItem]) -> list[Sequence[WorkItem]]:
        """Split at each item that stands alone; the batches stay in the feed's order."""
        batches: list[Sequence[WorkItem]] = []
        for alone, group in groupby(items, key=self._stands_alone):
            run = list(group)
            batches.extend([[item] for item in run] if alone else [run])
        return batches

    def _stands_alone(self, item: WorkItem) -> bool:
        """Whether the item cannot be read, or has failed before."""
        unreadable = item.error is not None or item.message.error is not None
        return unreadable or self._progress.attempts.knows(item.key)

    async def _try_batches(self, batches: list[Sequence[WorkItem]], work: WorkQueue, stop: StopSignal) -> None:
        error: Postponed | None = None
        waiting_lanes = set[Hashable]()
        batches.reverse()
        halves: list[Sequence[WorkItem]] = []  # of a batch that failed; before the next batch
        while (batches or halves) and not stop.requested:
            whole = not halves
            batch = [item for item in (batches if whole else halves).pop() if item.lane not in waiting_lanes]
            try:
                left = await self._try_batch(batch, work, stop, whole=whole)
            except Postponed as postponed:
                error = postponed if error is None else min(error, postponed, key=attrgetter("until"))
                waiting_lanes.update(item.lane for item in batch)
            else:
                halves.extend(reversed(left))
        if error is not None:
            raise error

    async def _try_batch(
        self, batch: Sequence[WorkItem], work: WorkQueue, stop: StopSignal, *, whole: bool
    ) -> Sequence[Sequence[WorkItem]]:
        """Settle the batch or some of it; return what is left, as smaller batches."""
        if not batch:
            return ()
        first, *others = batch
        if not others:
            await self._try_one(first, work, stop)
        elif (error := await self._call_batch_handler(batch)) is None:
            for item in batch:
                self._hooks.message_settled(item.message, RecordState.PROCESSED)
            await self._record(batch, RecordState.PROCESSED, work)
        elif isinstance(error, WHOLE_BATCH_ERRORS):
            await self._record(
                [first], await self._retry.handle_failure(first.key, first.message, error, stop), work
            )
            return (others,)
        else:
            if whole:  # of a batch with one bad message, log2(size) parts fail after it
                self._retry.log_batch(len(batch), error)
            half = len(batch) // 2
            return batch[:half], batch[half:]
        return ()

    async def _try_one(self, item: WorkItem, work: WorkQueue, stop: StopSignal) -> None:
        state = await self._retry.try_one(item.key, item.message, stop, error=item.error)
        await self._record((item,), state, work)

    async def _call_batch_handler(self, items: Sequence[WorkItem]) -> Exception | None:
        assert self._batch_handler is not None  # else each stands alone  # noqa: S101
        try:
            await self._batch_handler([item.message for item in items])
        except BaseException as error:  # noqa: BLE001  # failure_of_message raises what is not a failure
            return failure_of_message(items[0].message, error)
        return None

    async def _record(self, items: Sequence[WorkItem], state: RecordState, work: WorkQueue) -> None:
        for item in items:
            self._progress.pending.append(Record(item.key, state, item.fingerprint))
            work.mark_settled(item)
        self._progress.advance(work.cursor, work.read_at)
        if self._clock() >= self._progress.due:
            await self._progress.flush()


class _WorkRound:
    """One round of work. It ends when nothing more may be begun and everything that was begun has ended.

    Args:
        workers: Settle what is taken.
        work: The work queue.
        stop: Checked before a message or batch is begun.
        min_batch: Take nothing if fewer messages than this are left.
        max_batch: Take at most this many messages together.
        concurrency: How many tasks may run at a time.
    """

    def __init__(
        self,
        workers: Workers,
        work: WorkQueue,
        stop: StopSignal,
        *,
        min_batch: int,
        max_batch: int,
        concurrency: int,
    ) -> None:
        self._workers = workers
        self._work = work
        self._stop = stop
        self._min_batch = min_batch
        self._max_batch = max_batch
        self._free_slots = min(concurrency, work.left)
        self._unsettled_count = 0  # begun and not settled: in flight, or waiting for a retry
        self._error: BaseException | None = None

    async def run(self) -> None:
        if self._free_slots <= 1:  # one message, as after most pushes, need not wait for a task to start
            await self._run_worker(self._take_next(), None)
        else:
            async with anyio.create_task_group() as tasks:
                self._start_tasks(tasks)
        if self._error is not None:
            raise self._error

    def _start_tasks(self, tasks: TaskGroup) -> None:
        """Start as many tasks as there are slots and work for."""
        while self._free_slots and (items := self._take_next()):
            self._free_slots -= 1
            tasks.start_soon(self._run_worker, items, tasks)

    async def _run_worker(self, items: Sequence[WorkItem], tasks: TaskGroup | None) -> None:
        while items:
            try:
                await self._workers.work_off_batch(items, self._work, self._stop)
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001  # raised when everything that was begun has ended
                self._error = error if self._error is None else max(self._error, error, key=_error_priority)
            self._unsettled_count -= sum(item.settled for item in items)
            self._work.free(items)
            items = self._take_next()
            if tasks is not None:  # what was settled may have made room for more tasks
                self._start_tasks(tasks)
        self._free_slots += 1

    def _take_next(self) -> Sequence[WorkItem]:
        """Take the next items; none if so many wait that the attempts of more could not be kept."""
        over = self._stop.requested or not (self._error is None or isinstance(self._error, Postponed))
        limit = min(self._max_batch, MAX_FAILING - self._unsettled_count)
        items = () if over or limit < 1 or self._work.left < self._min_batch else self._work.take(limit)
        self._unsettled_count += len(items)
        return items


def _error_priority(error: BaseException) -> tuple[int, float]:
    """Rank errors: SystemExit and the like, then failures, then waits, of which the shorter comes first."""
    if isinstance(error, Postponed):
        return 0, -error.until
    return (1 if isinstance(error, Exception) else 2), 0.0
