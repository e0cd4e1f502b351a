"""Settle several messages at a time: in tasks, in batches, or both.

`WorkRound` takes messages from the work queue and starts tasks that settle them. A failed batch is split in halves
until the failing message is alone. That message is then retried, and settled by the failure policy, like any
other.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import anyio
from anyio.abc import TaskGroup

from push_to_poll_client._exceptions import RetryMessage, StopConsumer
from push_to_poll_client._failure_log import HandlerFailure
from push_to_poll_client._options import BatchHandler
from push_to_poll_client._progress import MAX_FAILING
from push_to_poll_client._retry import Postponed, Retry, StopSignal, call_handler, failure_of_message
from push_to_poll_client._types import Record, Settlement
from push_to_poll_client._validation import describe
from push_to_poll_client._work_queue import WorkItem, WorkQueue

WHOLE_BATCH_ERRORS = (RetryMessage, StopConsumer)
"""Errors that apply to the whole batch, which is not split."""


@dataclass(kw_only=True, eq=False, repr=False)
class WorkRound:
    """One round of work. It ends when no message may start and each started message has ended."""

    retry: Retry
    batch_handler: BatchHandler | None  # None if each message is processed alone
    work: WorkQueue
    stop: StopSignal  # checked before each message or batch
    fill: bool  # True to leave messages that do not fill a batch

    def __post_init__(self) -> None:
        options, self._progress = self.retry.options, self.retry.progress
        self._max_batch = 1 if self.batch_handler is None else options.batch_size
        self._min_batch = self._max_batch if self.fill else 1
        self._free_slots = min(options.concurrency, self.work.left)
        self._unsettled_count = 0  # in flight, or waiting for a retry
        self._error: BaseException | None = None

    async def run(self) -> None:
        """Settle the messages. Raise an error only after everything in flight has ended."""
        if self._free_slots <= 1:  # no task for a single message, the usual case after a push
            await self._run_worker(self._take_next(), None)
        else:
            async with anyio.create_task_group() as tasks:
                self._start_tasks(tasks)
        # `Postponed`: every message that does not wait for the failed one is settled. `ProcessError` or
        # `StoreError`: the messages in flight are settled, or failed too.
        if self._error is not None:
            raise self._error

    def _start_tasks(self, tasks: TaskGroup) -> None:
        """Start tasks while there are slots and work."""
        while self._free_slots and (items := self._take_next()):
            self._free_slots -= 1
            tasks.start_soon(self._run_worker, items, tasks)

    async def _run_worker(self, items: Sequence[WorkItem], tasks: TaskGroup | None) -> None:
        while items:
            try:
                if self.batch_handler is None:
                    await self._try_one(items[0])
                else:
                    await self._try_batches(self._split_into_batches(items))
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001  # raised after everything in flight has ended
                self._error = error if self._error is None else max(self._error, error, key=_error_priority)
            self._unsettled_count -= sum(item.settled for item in items)
            self.work.free(items)
            items = self._take_next()
            if tasks is not None:  # there may be room for more tasks now
                self._start_tasks(tasks)
        self._free_slots += 1

    def _take_next(self) -> Sequence[WorkItem]:
        """Take the next items; none if no message may start."""
        over = self.stop.requested or not (self._error is None or isinstance(self._error, Postponed))
        # If all unsettled messages fail, all their attempts can be kept.
        limit = min(self._max_batch, MAX_FAILING - self._unsettled_count)
        items = () if over or limit < 1 or self.work.left < self._min_batch else self.work.take(limit)
        self._unsettled_count += len(items)
        return items

    def _split_into_batches(self, items: Sequence[WorkItem]) -> list[Sequence[WorkItem]]:
        """Split in the feed's order. Each unreadable or failing message becomes a batch of one."""
        knows = self._progress.attempts.knows

        def stands_alone(item: WorkItem) -> bool:
            return item.error is not None or item.message.error is not None or knows(item.key)

        batches: list[Sequence[WorkItem]] = []
        for alone, group in groupby(items, key=stands_alone):
            run = list(group)
            batches.extend([[item] for item in run] if alone else [run])
        return batches

    async def _try_batches(self, batches: list[Sequence[WorkItem]]) -> None:
        error: Postponed | None = None
        waiting_lanes = set[Hashable]()
        left = [(batch, True) for batch in reversed(batches)]
        while left and not self.stop.requested:
            items, whole = left.pop()
            batch = [item for item in items if item.lane not in waiting_lanes]
            try:
                parts = await self._try_batch(batch, whole=whole)
            except Postponed as postponed:
                error = postponed if error is None else min(error, postponed, key=attrgetter("until"))
                waiting_lanes.update(item.lane for item in batch)
            else:
                left.extend((part, False) for part in reversed(parts))
        if error is not None:
            raise error

    async def _try_batch(self, batch: Sequence[WorkItem], *, whole: bool) -> Sequence[Sequence[WorkItem]]:
        """Settle the batch or some of it. Return the rest as smaller batches."""
        if not batch:
            return ()
        first, *others = batch
        if not others:
            await self._try_one(first)
            return ()
        assert self.batch_handler is not None  # else each is processed alone  # noqa: S101
        raised = await call_handler(self.batch_handler, [item.message for item in batch])
        if raised is None:
            for item in batch:
                self.retry.stats.hooks.message_settled(item.message, Settlement.PROCESSED)
            await self._record(batch, Settlement.PROCESSED)
            return ()
        error = failure_of_message(first.message, raised)
        if isinstance(error, WHOLE_BATCH_ERRORS):
            state = await self.retry.handle_failure(first.key, first.message, error, self.stop)
            await self._record([first], state)
            return (others,)
        if whole:  # log only this one: a bad message makes log2(size) parts fail too
            failure = HandlerFailure(first.key, first.message.id, 1, describe(error), error, first.message)
            self.retry.failure_log.batch_failed(failure, len(batch))
        half = len(batch) // 2
        return batch[:half], batch[half:]

    async def _try_one(self, item: WorkItem) -> None:
        state = await self.retry.try_one(item.key, item.message, self.stop, error=item.error)
        await self._record((item,), state)

    async def _record(self, items: Sequence[WorkItem], state: Settlement) -> None:
        progress = self._progress
        for item in items:
            progress.pending.append(Record(item.key, state, item.fingerprint))
            self.work.mark_settled(item)
        progress.advance(self.work.cursor, self.work.read_at)
        if self.retry.clock() >= progress.due:
            await progress.flush()


def _error_priority(error: BaseException) -> tuple[int, float]:
    """Rank errors: `SystemExit` and similar, then failures, then waits, the shortest first."""
    if isinstance(error, Postponed):
        return 0, -error.until
    return (1 if isinstance(error, Exception) else 2), 0.0
