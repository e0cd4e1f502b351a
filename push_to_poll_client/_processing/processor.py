"""ONCE: a page goes in, each message not yet settled is settled, and progress is committed.

What is recorded was processed, and what the cursor has passed is recorded (G5, G6). A commit covers whole pages,
or what was done in `flush_interval` (G7), and none is under way while a message waits to be tried again.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import repeat

import anyio
from anyio.abc import TaskGroup

from push_to_poll_client._processing.handler import Handler
from push_to_poll_client._processing.intake import Intake, Odd
from push_to_poll_client._processing.overlap import Overlap
from push_to_poll_client._processing.progress import Progress
from push_to_poll_client._processing.trials import Postponed, Stop, Trials
from push_to_poll_client._processing.work import Work
from push_to_poll_client._processing.workers import Workers
from push_to_poll_client._status import Tally
from push_to_poll_client._types import Clock, Message, Page, Record

__all__ = ["Processor"]


class Processor:
    """Settles the pages of one session.

    Args:
        progress: Knows what was settled before, and commits what is settled.
        handler: Processes one message.
        intake: Knows what is new.
        trials: Settles a message that fails.
        workers: Settle what is not simply done one after the other.
        tally: Told of duplicates.
        plain: Messages are simply done one after the other.
        batch_wait: Seconds for which the first message of a batch may wait for the next page.
        clock: The event loop's.

    Attributes:
        hand: The scope of what is in hand, so that a stop can set it a deadline.
        postponed: Until when a message has to wait, with which the poll ended; `None`: it did not, so far.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        progress: Progress,
        handler: Handler,
        intake: Intake,
        trials: Trials,
        workers: Workers,
        tally: Tally,
        *,
        plain: bool,
        batch_wait: float,
        clock: Clock,
    ) -> None:
        self.hand = anyio.CancelScope()
        self.postponed: float | None = None
        self._progress = progress
        self._handler = handler
        self._intake = intake
        self._trials = trials
        self._workers = workers
        self._tally = tally
        self._plain = plain
        self._batch_wait = batch_wait
        self._clock = clock
        self._work = Work()

    async def settle(
        self,
        page: Page,
        *,
        read_at: float,
        stop: Stop | None = None,
        beside: TaskGroup | None = None,
        overlap: Overlap | None = None,
    ) -> bool:
        """Settle the messages of a page, and commit when it is complete.

        What is not committed then is, at the end of the poll (`Progress.finish`).

        Args:
            page: What a fetch returned.
            read_at: When it arrived, on the event loop's clock.
            stop: Looked at before each message. With it, a cancellation does not reach the message in hand; it
                ends by itself, or at the deadline of `hand`.
            beside: Where the next page is on its way: the commit may go on there while the caller does, and what
                does not fill a batch may wait for it. `None`: it is not.
            overlap: What knows what of the page was read before; `None`: as a rule nothing was.

        Returns:
            Whether the page is settled, but for what waits for the next one.

        Raises:
            ProcessError: A message failed for good.
            StoreError: Progress could not be committed.
        """
        keys, odd = self._intake.known_as(page.messages)
        new = _first_of_each(keys, await self._unsettled(keys))
        if self._plain and overlap is None and not self._progress.attempts and not odd:
            self._progress.read_at = read_at
            work = partial(self._settle_plain, zip(keys, page.messages, new, strict=False))
            complete = await self.in_hand(work, stop)
            if complete:
                self._progress.reached(page.cursor, read_at)
        else:
            await self._take_in(page, keys, new, odd, read_at, overlap)
            work = partial(self._settle_in_hand, fill=beside is not None and self._batch_wait > 0)
            complete = await self.in_hand(work, stop)
        if complete:  # else it was stopped, postponed, or overran the deadline of `hand`
            await self._commit(beside, keys)
        return complete

    async def settle_held(self, stop: Stop | None) -> bool:
        """Settle what waits for the next page, which does not come in time.

        Args:
            stop: As for `settle`.

        Returns:
            Whether it is settled.

        Raises:
            ProcessError: As for `settle`.
            StoreError: As for `settle`.
        """
        return await self.in_hand(partial(self._settle_in_hand, fill=False), stop)

    async def in_hand(self, work: Callable[[Stop], Awaitable[bool]], stop: Stop | None) -> bool:
        """Do what must not be cut short by a cancellation.

        Args:
            work: Returns whether it is complete.
            stop: As for `settle`.

        Returns:
            Whether it is.
        """
        complete = False
        try:
            with anyio.CancelScope(shield=stop is not None) as self.hand:
                complete = await work(stop or Stop())
        except Postponed as postponed:
            self.postponed = postponed.until
        return complete

    def begin(self) -> None:
        """A poll begins. What the last one had in hand is fetched again."""
        self._work, self.postponed = Work(), None

    @property
    def held_until(self) -> float | None:
        """When what waits to fill a batch is not to wait any longer; `None`: nothing waits."""
        since = self._work.waits_since
        return None if since is None else since + self._batch_wait

    async def _unsettled(self, keys: list[str]) -> set[str]:
        unsettled = await self._progress.unsettled(keys)
        if self._work.left:
            unsettled -= {item.key for item in self._work.unsettled}
        return unsettled

    async def _commit(self, beside: TaskGroup | None, keys: list[str]) -> None:
        if beside is None:
            await self._progress.flush()
        else:
            await self._progress.commit_beside(beside, keys)

    async def _settle_plain(self, messages: Iterable[tuple[str, Message, bool]], stop: Stop) -> bool:
        handler, clock, progress = self._handler, self._clock, self._progress  # this is what each message pays for
        record = progress.pending.append
        for key, message, is_new in messages:
            if stop.asked:
                return False
            if is_new:
                if message.error is not None:
                    record(Record(key, await self._trials.failed(key, message, message.error, stop)))
                else:
                    try:
                        await handler(message)
                    except BaseException as error:  # noqa: BLE001  # what it means is decided there
                        record(Record(key, await self._trials.failed(key, message, error, stop)))
                    else:
                        record(Record(key))
            else:
                self._tally.counts["duplicates"] += 1
            if (cursor := message.cursor) is not None:
                progress.cursor = cursor
            if clock() >= progress.due:
                await progress.flush()
        return True

    async def _take_in(  # noqa: PLR0917  # each is of another type
        self,
        page: Page,
        keys: Sequence[str],
        new: Iterable[bool],
        odd: Odd,
        read_at: float,
        overlap: Overlap | None,
    ) -> None:
        in_hand = self._work.unsettled
        items = await self._intake.items(
            page.messages, keys, new, odd, in_hand=in_hand, read_at=read_at, arrived=self._clock()
        )
        cursor = page.cursor if overlap is None else overlap.cursor(page, items)
        self._tally.counts["duplicates"] += sum(item.settled for item in items)
        self._work.add(items, read_at, cursor=cursor)
        self._progress.reached(self._work.cursor, self._work.read_at)

    async def _settle_in_hand(self, stop: Stop, *, fill: bool) -> bool:
        await self._workers.settle(self._work, stop, fill=fill)
        return not stop.asked if fill else not any(self._work.unsettled)


def _first_of_each(keys: Sequence[str], unsettled: set[str]) -> Iterable[bool]:
    """For each key whether its message is to be settled: not if it was before, or earlier in this page."""
    return repeat(True, len(keys)) if len(unsettled) == len(keys) else _each_once(keys, unsettled)  # noqa: FBT003


def _each_once(keys: Sequence[str], unsettled: set[str]) -> Iterable[bool]:
    new = []
    for key in keys:
        new.append(key in unsettled)
        unsettled.discard(key)
    return new
