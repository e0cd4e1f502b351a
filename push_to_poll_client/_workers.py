"""Settle several messages at a time: in tasks, in batches, or both.

A batch that fails is split in halves until the message that fails stands alone; what becomes of that one is as for
any other.
"""

from collections.abc import Hashable, Sequence
from itertools import groupby

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

__all__ = [
    "Workers",
]


WHOLE_BATCH_ERRORS = (RetryMessage, StopConsumer)
"""What is meant for all of a batch: to split it would ask again what has been answered."""


class Workers:
    """Settles what is in hand.

    Args:
        trials: Settles a message that stands alone.
        progress: Commits what is settled.
        batch: Processes several messages; `None`: each stands alone.
        concurrency: How many may be under way.
        batch_size: Messages of a batch, at most.
        hooks: Told of what is settled.
        clock: The event loop's.
    """

    def __init__(
        self,
        trials: Retry,
        progress: Progress,
        batch: BatchHandler | None,
        *,
        concurrency: int,
        batch_size: int,
        hooks: Hooks,
        clock: Clock,
    ) -> None:
        self._retry = trials
        self._progress = progress
        self._batch = batch
        self._concurrency = concurrency
        self._batch_size = 1 if batch is None else batch_size
        self._hooks = hooks
        self._clock = clock

    async def work_off(self, work: WorkQueue, stop: StopSignal, *, fill: bool) -> None:
        """Settle it.

        Args:
            work: What is in hand.
            stop: Looked at before anything is begun.
            fill: Leave what does not fill a batch.

        Raises:
            Postponed: A message has to wait. All that need not wait for it is settled.
            ProcessError: A message failed for good. What was under way beside it is settled, or failed too.
            StoreError: Progress could not be committed; likewise.
        """
        least = self._batch_size if fill else 1
        shift = _WorkRound(self, work, stop, least=least, most=self._batch_size, concurrency=self._concurrency)
        await shift.run()

    async def work_off_batch(self, items: Sequence[WorkItem], work: WorkQueue, stop: StopSignal) -> None:
        """Settle what was taken together.

        Raises:
            Postponed: Some of it has to wait. All is settled that need not wait with it.
            ProcessError: As for `work_off`.
            StoreError: As for `work_off`.
        """
        if self._batch is None:
            await self._try_one(items[0], work, stop)
        else:
            await self._try_batches(self._split_into_batches(items), work, stop)

    def _split_into_batches(self, items: Sequence[WorkItem]) -> list[Sequence[WorkItem]]:
        """What may go to the handler together, in the feed's order."""
        parts: list[Sequence[WorkItem]] = []
        for alone, some in groupby(items, key=self._stands_alone):
            run = list(some)
            parts.extend([[item] for item in run] if alone else [run])
        return parts

    def _stands_alone(self, item: WorkItem) -> bool:
        odd = item.error is not None or item.message.error is not None
        return odd or self._progress.attempts.knows(item.key)

    async def _try_batches(self, parts: list[Sequence[WorkItem]], work: WorkQueue, stop: StopSignal) -> None:
        error: Postponed | None = None
        waiting = set[Hashable]()  # the lanes of what has to wait
        parts.reverse()
        while parts and not stop.requested:
            part = [item for item in parts.pop() if item.lane not in waiting]
            try:
                left = await self._try_batch(part, work, stop)
            except Postponed as postponed:
                error = postponed if error is None else min(error, postponed, key=_retry_time)
                waiting.update(item.lane for item in part)
            else:
                parts.extend(reversed(left))
        if error is not None:
            raise error

    async def _try_batch(
        self, part: Sequence[WorkItem], work: WorkQueue, stop: StopSignal
    ) -> Sequence[Sequence[WorkItem]]:
        """Settle it, or some of it; what is left, in parts."""
        if not part:
            return ()
        first, *others = part
        if not others:
            await self._try_one(first, work, stop)
        elif (error := await self._call_batch_handler(part)) is None:
            for item in part:
                self._hooks.message_settled(item.message, RecordState.PROCESSED)
            await self._record(part, RecordState.PROCESSED, work)
        elif isinstance(error, WHOLE_BATCH_ERRORS):
            await self._record(
                [first], await self._retry.handle_failure(first.key, first.message, error, stop), work
            )
            return (others,)
        else:
            half = len(part) // 2
            return part[:half], part[half:]
        return ()

    async def _try_one(self, item: WorkItem, work: WorkQueue, stop: StopSignal) -> None:
        state = await self._retry.try_one(item.key, item.message, stop, error=item.error)
        await self._record((item,), state, work)

    async def _call_batch_handler(self, items: Sequence[WorkItem]) -> Exception | None:
        assert self._batch is not None  # else each stands alone  # noqa: S101
        try:
            await self._batch([item.message for item in items])
        except BaseException as error:  # noqa: BLE001  # what it means is decided there
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
    """One round of work, which ends when nothing more may be begun and all that was has ended.

    Args:
        workers: Settle what is taken.
        work: What is in hand.
        stop: Looked at before anything is begun.
        least: Begin nothing when less than that is left.
        most: How much is taken together, at most.
        concurrency: How often, at a time.
    """

    def __init__(
        self, workers: Workers, work: WorkQueue, stop: StopSignal, *, least: int, most: int, concurrency: int
    ) -> None:
        self._workers = workers
        self._work = work
        self._stop = stop
        self._min_batch = least
        self._max_batch = most
        self._free_slots = min(concurrency, work.left)
        self._unsettled_count = 0  # what was begun and is not settled: it is under way, or waits
        self._error: BaseException | None = None

    async def run(self) -> None:
        if self._free_slots <= 1:  # a message alone, as after most pushes, need not wait for a task to begin
            await self._run_worker(self._take_next(), None)
        else:
            async with anyio.create_task_group() as tasks:
                self._start_tasks(tasks)
        if self._error is not None:
            raise self._error

    def _start_tasks(self, tasks: TaskGroup) -> None:
        """Begin as much as may be."""
        while self._free_slots and (items := self._take_next()):
            self._free_slots -= 1
            tasks.start_soon(self._run_worker, items, tasks)

    async def _run_worker(self, items: Sequence[WorkItem], tasks: TaskGroup | None) -> None:
        """Go on with what comes next; others begin what else there is room for now."""
        while items:
            await self._work_off(items)
            items = self._take_next()
            if tasks is not None:
                self._start_tasks(tasks)
        self._free_slots += 1

    def _take_next(self) -> Sequence[WorkItem]:
        """Nothing, also when so much waits that the attempts of more could not be kept."""
        over = self._stop.requested or not (self._error is None or isinstance(self._error, Postponed))
        most = min(self._max_batch, MAX_FAILING - self._unsettled_count)
        items = () if over or most < 1 or self._work.left < self._min_batch else self._work.take(most)
        self._unsettled_count += len(items)
        return items

    async def _work_off(self, items: Sequence[WorkItem]) -> None:
        try:
            await self._workers.work_off_batch(items, self._work, self._stop)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised when all that is under way has ended
            self._error = error if self._error is None else max(self._error, error, key=_error_priority)
        self._unsettled_count -= sum(item.settled for item in items)
        self._work.free(items)


def _retry_time(postponed: Postponed) -> float:
    return postponed.until


def _error_priority(error: BaseException) -> tuple[int, float]:
    """What is raised of several: somebody's way to leave before failures, and of waits the one that ends first."""
    if isinstance(error, Postponed):
        return 0, -error.until
    return (1 if isinstance(error, Exception) else 2), 0.0
