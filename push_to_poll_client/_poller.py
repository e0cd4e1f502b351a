"""Run one poll: fetch and settle page after page until caught up, or for `max_poll_time`."""

import logging
from collections import Counter
from dataclasses import replace

from push_to_poll_client._dead_letters import SessionDeadLetters
from push_to_poll_client._event_loop import Background
from push_to_poll_client._exceptions import ChainRestart, CursorExpired, FeedError
from push_to_poll_client._fetching import Fetcher, Gaps, Prefetcher
from push_to_poll_client._overlap import Overlap, OverlapStart
from push_to_poll_client._position import Position
from push_to_poll_client._processor import Processor
from push_to_poll_client._progress import Progress
from push_to_poll_client._retry import StopSignal
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._status import ConsumerStats, PollResult
from push_to_poll_client._types import Clock, Cursor, CycleDetector, FetchRequest, Page, Push
from push_to_poll_client._validation import quoted

__all__ = [
    "PageChain",
    "Poller",
]


MAX_RESTARTS = 3
"""How often a poll starts a chain of pages again; a feed that changes faster is left to backoff."""


class PageChain:
    """What one poll has done so far.

    Attributes:
        overlap: What knows what was read before; `None`: nothing was.
        stop: As for `Processor.settle`.
        read_at: When the page in hand arrived.
        first_wait: Seconds for which the server may hold its first answer.
        ends_early: The walk has found no end, and is to be ended all the same.
        closed: The page in hand is the last that there will ever be.
    """

    def __init__(
        self,
        progress: Progress,
        counts: Counter[str],
        overlap: Overlap | None,
        stop: StopSignal | None,
        wait: float,
    ) -> None:
        self.overlap = overlap
        self.stop = stop
        self.read_at = 0.0
        self.ends_early = self.closed = False
        behind = overlap is not None and not overlap.past_saved_cursor
        self.first_wait, self._wait = (0.0, wait) if behind else (wait, 0.0)
        self._progress = progress
        self._counts = counts
        self._counts_at_start = counts.copy()
        self._settled_at_start = self._last_settled = progress.settled_count
        self._restarts = 0
        self._resynced = False
        self._cycle_detector = CycleDetector()

    @property
    def start(self) -> Cursor | None:
        """Where it begins again when the pages change under it."""
        return (
            self._progress.saved if self.overlap is None or self.overlap.past_saved_cursor else self.overlap.start
        )

    def wait_at_end(self) -> float:
        """Seconds for which the server may hold one more answer, after what was read before; 0: no more."""
        wait, self._wait = self._wait, 0.0
        return wait if self._progress.settled_count == self._settled_at_start else 0.0

    def reset(self) -> None:
        """It goes on elsewhere, where nothing was read before."""
        self.overlap, self._cycle_detector = None, CycleDetector()

    def restart(self) -> None:
        self._restarts += 1
        self._cycle_detector = CycleDetector()
        if self.overlap is not None:
            self.overlap.restart()
        if self._restarts > MAX_RESTARTS:
            raise FeedError(f"the pages changed under the walk {self._restarts} times in one poll")

    def resync(self, error: CursorExpired) -> None:
        """Once in a poll: a feed that does not know the new cursor either is to be looked at."""
        if self._resynced:
            raise error
        self._resynced = True

    def stands_still(self, position: Cursor | None, following: Cursor) -> bool:
        """Whether going on would bring nothing: no new message, and no new cursor."""
        if self._progress.settled_count > self._last_settled:
            self._last_settled, self._cycle_detector = self._progress.settled_count, CycleDetector()
            return False
        return following == position or self._cycle_detector.repeats_at(following)

    def result(self, *, caught_up: bool, postponed: float | None) -> PollResult:
        done = {
            name: self._counts[name] - self._counts_at_start[name] for name in ("messages", "duplicates", "pages")
        }
        closed = caught_up and self.closed
        return PollResult(**done, caught_up=caught_up, postponed=postponed, closed=closed)


logger = logging.getLogger("push_to_poll_client")


class Poller:
    """Walks the feed from where the last poll stopped.

    Args:
        fetches: Asks the feed.
        processor: Settles the pages.
        progress: Commits what is settled, and knows the saved cursor.
        position: Knows where a name begins, and where it goes on when its cursor is good no more.
        behind: Knows where a walk with an overlap starts.
        letters: Have some to be tried first.
        gaps: Told what is missing before a page.
        schedule: Knows what the server asks for, which holds for further pages too.
        tally: Told of each page.
        max_poll_time: Seconds after which a poll ends at the next page boundary.
        prefetch: Pages in hand that are fetched before their turn, at most.
        clock: The event loop's.

    Attributes:
        max_wait: Seconds for which the feed can hold an answer; 0: it cannot.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        fetches: Fetcher,
        processor: Processor,
        progress: Progress,
        position: Position,
        behind: OverlapStart,
        letters: SessionDeadLetters,
        gaps: Gaps,
        schedule: Schedule,
        tally: ConsumerStats,
        *,
        max_poll_time: float,
        prefetch: int,
        clock: Clock,
    ) -> None:
        self.max_wait: float = fetches.max_wait
        self._fetcher = fetches
        self._processor = processor
        self._progress = progress
        self._position = position
        self._overlap_start = behind
        self._dead_letters = letters
        self._gaps = gaps
        self._max_poll_time = max_poll_time
        self._schedule = schedule
        self._stats = tally
        self._clock = clock
        self._continuation: tuple[Cursor | None, Overlap | None] | None = None
        self._stuck_at: Cursor | None = None
        self._deadline = 0.0
        most = prefetch if fetches.read_ahead else 0
        self._prefetcher = Prefetcher(fetches, most, lambda: not self._must_stop)

    def cancel_waiting_fetch(self) -> None:
        """Cancel a waiting fetch, if there is one. Its answer, even if on its way, is fetched again."""
        self._fetcher.cancel_waiting_fetch()

    def discard_continuation(self) -> None:
        """The next poll starts at the saved cursor."""
        self._continuation = None
        self._prefetcher.drop(continuing=False)

    async def poll(
        self,
        *,
        wait: float = 0.0,
        hint: Push | None = None,
        fresh: bool = False,
        stop: StopSignal | None = None,
    ) -> PollResult | None:
        """Fetch and settle pages.

        Args:
            wait: Seconds for which the server may hold the first answer.
            hint: The push that caused this poll.
            fresh: Go past caches.
            stop: As for `Processor.settle`.

        Returns:
            What was done; `None`: the waiting fetch gave way.

        Raises:
            FeedError: A fetch failed. The next poll starts at the saved cursor.
            ProcessError: A message failed for good.
            StoreError: The store could not be read or written.
        """
        await self._prepare(stop)
        self._deadline = self._clock() + wait + self._max_poll_time
        start, overlap = self._continuation or self._start_position()
        self._continuation = None
        walk = PageChain(self._progress, self._stats.counts, overlap, stop, wait)
        request = FetchRequest(start, walk.first_wait, hint, fresh)
        try:
            async with Background() as beside:
                caught_up = await self._process_pages(walk, request, beside)
        finally:
            self._prefetcher.drop(continuing=self._continuation is not None)
            await self._finish()
        if caught_up is None:
            return None
        await self._position.mark_started()
        if walk.overlap is not None and (walk.ends_early or (caught_up and walk.overlap.is_complete)):
            await self._overlap_start.finish_walk(walk.overlap)
        return walk.result(caught_up=caught_up, postponed=self._retry_in)

    async def _prepare(self, stop: StopSignal | None) -> None:
        self._processor.begin()
        await self._progress.flush()  # what the last poll could not
        await self._position.ensure_started()
        await self._processor.run_shielded(self._dead_letters.retry_marked, stop)

    def _start_position(self) -> tuple[Cursor | None, Overlap | None]:
        walk = self._overlap_start.begin_walk()
        return self._progress.saved if walk is None else walk.start, walk

    @property
    def postponed_until(self) -> float | None:
        """Until when a message has to wait, on the event loop's clock; `None`: none has to."""
        return self._processor.postponed_until

    @property
    def _retry_in(self) -> float | None:
        return None if self.postponed_until is None else max(self.postponed_until - self._clock(), 0.0)

    async def _finish(self) -> None:
        try:
            await self._progress.finish()
        except BaseException:
            self.discard_continuation()
            raise

    async def _process_pages(self, walk: PageChain, request: FetchRequest, beside: Background) -> bool | None:
        """From page to page; whether that led to the end of the feed. `None`: the waiting fetch gave way."""
        while True:
            if not await self._finish_batch_if_late(walk):
                return False
            try:
                page = await self._fetch(walk, request)
            except (ChainRestart, CursorExpired) as error:
                request = replace(request, cursor=await self._recover_position(walk, error), wait=0.0)
                if self._must_stop:
                    return False
                continue
            if page is None:
                return None
            complete = await self._take_page(walk, request, page, beside)
            following = self._next_request(walk, request, page) if complete else None
            if following is None:
                return complete and await self._finish_partial_batch(walk)
            request = following
            if self._must_stop:
                if await self._finish_partial_batch(walk):
                    await self._continue_later(walk, request.cursor)
                return False

    def _next_request(self, walk: PageChain, request: FetchRequest, page: Page) -> FetchRequest | None:
        """What to ask next; `None`: nothing more, this is the end."""
        if page.next is not None:
            if not walk.stands_still(request.cursor, page.next):
                return replace(request, cursor=page.next, wait=0.0)
            if page.next == request.cursor:
                self._warn_stuck(page.next)
            return None
        wait = 0.0 if page.closed or self._must_stop else walk.wait_at_end()
        return replace(request, cursor=self._progress.saved, wait=wait) if wait else None

    def _warn_stuck(self, position: Cursor) -> None:
        """The feed stands still. Once for each place: the polls that follow find it there again (G9)."""
        if position != self._stuck_at:
            self._stuck_at = position
            logger.warning(
                "the feed says that there is more, and gives nothing new at cursor %s, which leads to itself: "
                "what comes after it is not read",
                quoted(position),
            )

    async def _continue_later(self, walk: PageChain, position: Cursor | None) -> None:
        """The next poll goes on with this walk, as a rule. `max_poll_time` is over, or the server wants quiet."""
        overlap = walk.overlap
        if overlap is not None and self._overlap_start.may_end_early(overlap, after=self._max_poll_time):
            walk.ends_early = True
        elif overlap is not None and overlap.should_jump:
            overlap.jump()
            self._continuation = self._progress.saved, overlap
            self._prefetcher.drop(continuing=False)
        else:
            await self._prefetcher.wait_for_first()
            self._continuation = position, overlap

    async def _fetch(self, walk: PageChain, request: FetchRequest) -> Page | None:
        ahead = self._prefetcher.pop()
        page = await (self._fetcher.fetch(request) if ahead is None else ahead.take())
        walk.read_at = self._clock() if ahead is None else ahead.arrived_at
        return page

    async def _take_page(self, walk: PageChain, request: FetchRequest, page: Page, beside: Background) -> bool:
        self._stats.counts["pages"] += 1
        walk.closed = page.closed
        await self._gaps.report(request.cursor, page.gap)
        await self._prefetcher.begin(request, page, beside)
        return await self._processor.take_page(
            page,
            read_at=walk.read_at,
            stop=walk.stop,
            background=beside.tasks if self._prefetcher else None,
            overlap=walk.overlap,
        )

    async def _finish_batch_if_late(self, walk: PageChain) -> bool:
        """Settle what waits for the next page to fill a batch, if that does not come in time."""
        until = self._processor.batch_deadline
        return until is None or await self._prefetcher.arrives_by(until) or await self._finish_partial_batch(walk)

    async def _finish_partial_batch(self, walk: PageChain) -> bool:
        return self._processor.batch_deadline is None or await self._processor.finish_partial_batch(walk.stop)

    async def _recover_position(self, walk: PageChain, error: FeedError) -> Cursor | None:
        """Where to go on, when the feed cannot go on where it was asked to."""
        await self._progress.flush()
        if isinstance(error, ChainRestart):
            walk.restart()
            return walk.start
        assert isinstance(error, CursorExpired)  # noqa: S101
        if walk.overlap is not None and not walk.overlap.past_saved_cursor:
            self._position.overlap_expired(walk.overlap.start)
        else:
            walk.resync(error)
            await self._position.cursor_expired(error)
        walk.reset()
        return walk.start

    @property
    def _must_stop(self) -> bool:
        now = self._clock()
        return now >= self._deadline or self._schedule.server_not_before > now
