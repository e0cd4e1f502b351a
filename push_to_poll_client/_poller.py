"""Run one poll: fetch and settle page after page until caught up, or for `max_poll_time`.

A poll walks along a chain of pages, from the saved cursor or from where the last poll stopped. While a page is
settled, the next one may be fetched. When the pages change during the walk, it starts again; when the cursor has
expired, it goes on where the user says. `PageChain` knows what one poll has done so far, `Poller` does it.
"""

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

__all__ = ["PageChain", "Poller"]


logger = logging.getLogger("push_to_poll_client")

MAX_RESTARTS = 3
"""How often a poll starts a chain of pages again. If the feed changes faster, the poll fails and is retried with
backoff."""


class PageChain:
    """The chain of pages that one poll walks along.

    Args:
        progress: Knows the saved cursor, and counts settled messages.
        counts: The consumer's counters.
        overlap: Knows which messages were read before; `None` if none were.
        stop: As for `Processor.take_page`.
        wait: Seconds for which the server may hold an answer.

    Attributes:
        overlap: As given, until the walk goes on elsewhere.
        stop: As given.
        read_at: When the current page arrived.
        first_wait: Seconds for which the server may hold its first answer.
        ends_early: Whether the walk is to end although it did not reach the end of the feed.
        closed: Whether the current page is the last one of a feed that has ended.
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
        # Messages that were read before come first: only what comes after them is worth a wait.
        reads_again = overlap is not None and not overlap.past_saved_cursor
        self.first_wait, self._wait = (0.0, wait) if reads_again else (wait, 0.0)
        self._progress = progress
        self._counts = counts
        self._counts_at_start = counts.copy()
        self._settled_at_start = self._last_settled = progress.settled_count
        self._restarts = 0
        self._resynced = False
        self._cycle_detector = CycleDetector()

    @property
    def start(self) -> Cursor | None:
        """Where the walk starts again when the pages change."""
        return (
            self._progress.saved if self.overlap is None or self.overlap.past_saved_cursor else self.overlap.start
        )

    def wait_at_end(self) -> float:
        """Return the seconds for which the server may hold one more answer; 0 means do not ask again."""
        wait, self._wait = self._wait, 0.0
        return wait if self._progress.settled_count == self._settled_at_start else 0.0

    def reset(self) -> None:
        """Go on elsewhere in the feed, where nothing was read before."""
        self.overlap, self._cycle_detector = None, CycleDetector()

    def restart(self) -> None:
        self._restarts += 1
        self._cycle_detector = CycleDetector()
        if self.overlap is not None:
            self.overlap.restart()
        if self._restarts > MAX_RESTARTS:
            raise FeedError(f"the pages changed under the walk {self._restarts} times in one poll")

    def resync(self, error: CursorExpired) -> None:
        """Allow one resync in a poll, else raise the error."""
        if self._resynced:  # the feed does not know the new cursor either
            raise error
        self._resynced = True

    def stands_still(self, position: Cursor | None, following: Cursor) -> bool:
        """Whether the walk makes no progress: no new message was settled, and the cursors repeat."""
        if self._progress.settled_count > self._last_settled:
            self._last_settled, self._cycle_detector = self._progress.settled_count, CycleDetector()
            return False
        return following == position or self._cycle_detector.repeats_at(following)

    def result(self, *, caught_up: bool, postponed: float | None) -> PollResult:
        difference = {
            name: self._counts[name] - self._counts_at_start[name] for name in ("messages", "duplicates", "pages")
        }
        closed = caught_up and self.closed
        return PollResult(**difference, caught_up=caught_up, postponed=postponed, closed=closed)


class Poller:
    """Walks the feed from where the last poll stopped.

    Args:
        fetcher: Fetches the pages.
        processor: Settles the pages.
        progress: Commits what is settled, and knows the saved cursor.
        position: Knows where a name begins, and where it goes on when its cursor has expired.
        overlap_start: Knows where a walk with an overlap starts.
        dead_letters: Retries the dead letters that are marked for that.
        gaps: Told of messages that may be missing before a page.
        schedule: Knows how long the server asked to be left alone, which holds for further pages too.
        stats: Counts pages.
        max_poll_time: Seconds after which a poll ends at the next page boundary.
        prefetch: How many pages may be fetched before their turn.
        clock: The event loop's clock.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        fetcher: Fetcher,
        processor: Processor,
        progress: Progress,
        position: Position,
        overlap_start: OverlapStart,
        dead_letters: SessionDeadLetters,
        gaps: Gaps,
        schedule: Schedule,
        stats: ConsumerStats,
        *,
        max_poll_time: float,
        prefetch: int,
        clock: Clock,
    ) -> None:
        self._fetcher = fetcher
        self._processor = processor
        self._progress = progress
        self._position = position
        self._overlap_start = overlap_start
        self._dead_letters = dead_letters
        self._gaps = gaps
        self._max_poll_time = max_poll_time
        self._schedule = schedule
        self._stats = stats
        self._clock = clock
        self._continuation: tuple[Cursor | None, Overlap | None] | None = None
        self._stuck_at: Cursor | None = None
        self._deadline = 0.0
        limit = prefetch if fetcher.read_ahead else 0
        self._prefetcher = Prefetcher(fetcher, limit, lambda: not self._must_stop)

    def discard_continuation(self) -> None:
        """Let the next poll start at the saved cursor."""
        self._continuation = None
        self._prefetcher.drop(continuing=False)

    async def poll(
        self,
        *,
        wait: float = 0.0,
        hint: Push | None = None,
        bypass_cache: bool = False,
        stop: StopSignal | None = None,
    ) -> PollResult | None:
        """Fetch and settle pages.

        Args:
            wait: Seconds for which the server may hold the first answer.
            hint: The push that caused this poll.
            bypass_cache: Whether to bypass caches.
            stop: As for `Processor.take_page`.

        Returns:
            What was done; `None` if the waiting fetch was cancelled.

        Raises:
            FeedError: A fetch failed. The next poll starts at the saved cursor.
            ProcessError: A message failed for good.
            StoreError: The store could not be read or written.
        """
        self._processor.begin()
        await self._progress.flush()  # what the last poll could not commit
        await self._position.ensure_started()
        await self._processor.run_shielded(self._dead_letters.retry_marked, stop)
        self._deadline = self._clock() + wait + self._max_poll_time
        start, overlap = self._continuation or self._start_position()
        self._continuation = None
        chain = PageChain(self._progress, self._stats.counts, overlap, stop, wait)
        request = FetchRequest(start, chain.first_wait, hint, bypass_cache)
        try:
            async with Background() as background:
                caught_up = await self._process_pages(chain, request, background)
        finally:
            self._prefetcher.drop(continuing=self._continuation is not None)
            await self._finish()
        if caught_up is None:
            return None
        await self._position.mark_started()
        if chain.overlap is not None and (chain.ends_early or (caught_up and chain.overlap.is_complete)):
            await self._overlap_start.finish_walk(chain.overlap)
        retry_at = self._processor.postponed_until
        retry_in = None if retry_at is None else max(retry_at - self._clock(), 0.0)
        return chain.result(caught_up=caught_up, postponed=retry_in)

    def _start_position(self) -> tuple[Cursor | None, Overlap | None]:
        overlap = self._overlap_start.begin_walk()
        return self._progress.saved if overlap is None else overlap.start, overlap

    async def _finish(self) -> None:
        try:
            await self._progress.finish()
        except BaseException:
            self.discard_continuation()
            raise

    async def _process_pages(self, chain: PageChain, request: FetchRequest, background: Background) -> bool | None:
        """Settle page after page; return whether the end of the feed was reached, `None` if the fetch gave way."""
        while True:
            if not await self._finish_batch_if_late(chain):
                return False
            try:
                page = await self._fetch(chain, request)
            except (ChainRestart, CursorExpired) as error:
                request = replace(request, cursor=await self._recover_position(chain, error), wait=0.0)
                if self._must_stop:
                    return False
                continue
            if page is None:
                return None
            complete = await self._take_page(chain, request, page, background)
            following = self._next_request(chain, request, page) if complete else None
            if following is None:
                return complete and await self._finish_partial_batch(chain)
            request = following
            if self._must_stop:
                if await self._finish_partial_batch(chain):
                    await self._continue_later(chain, request.cursor)
                return False

    async def _fetch(self, chain: PageChain, request: FetchRequest) -> Page | None:
        prefetched = self._prefetcher.pop()
        page = await (self._fetcher.fetch(request) if prefetched is None else prefetched.take())
        chain.read_at = self._clock() if prefetched is None else prefetched.arrived_at
        return page

    async def _recover_position(self, chain: PageChain, error: FeedError) -> Cursor | None:
        """Return where to go on, when the feed cannot answer the request."""
        await self._progress.flush()
        if isinstance(error, ChainRestart):
            chain.restart()
            return chain.start
        assert isinstance(error, CursorExpired)  # noqa: S101
        if chain.overlap is not None and not chain.overlap.past_saved_cursor:
            self._position.overlap_expired(chain.overlap.start)
        else:
            chain.resync(error)
            await self._position.cursor_expired(error)
        chain.reset()
        return chain.start

    async def _take_page(
        self, chain: PageChain, request: FetchRequest, page: Page, background: Background
    ) -> bool:
        self._stats.counts["pages"] += 1
        chain.closed = page.closed
        await self._gaps.report(request.cursor, page.gap)
        await self._prefetcher.begin(request, page, background)
        return await self._processor.take_page(
            page,
            read_at=chain.read_at,
            stop=chain.stop,
            background=background.tasks if self._prefetcher else None,
            overlap=chain.overlap,
        )

    def _next_request(self, chain: PageChain, request: FetchRequest, page: Page) -> FetchRequest | None:
        """Return the next request; `None` at the end of the feed."""
        if page.next is not None:
            if not chain.stands_still(request.cursor, page.next):
                return replace(request, cursor=page.next, wait=0.0)
            if page.next == request.cursor:
                self._warn_stuck(page.next)
            return None
        wait = 0.0 if page.closed or self._must_stop else chain.wait_at_end()
        return replace(request, cursor=self._progress.saved, wait=wait) if wait else None

    def _warn_stuck(self, position: Cursor) -> None:
        """Log once for each cursor that the feed leads to itself: later polls stop there too (G9)."""
        if position != self._stuck_at:
            self._stuck_at = position
            logger.warning(
                "the feed says that there is more, and gives nothing new at cursor %s, which leads to itself: "
                "what comes after it is not read",
                quoted(position),
            )

    async def _finish_batch_if_late(self, chain: PageChain) -> bool:
        """Settle the messages that wait for the next page to fill a batch, if it does not come in time."""
        deadline = self._processor.batch_deadline
        return (
            deadline is None
            or await self._prefetcher.arrives_by(deadline)
            or await self._finish_partial_batch(chain)
        )

    async def _finish_partial_batch(self, chain: PageChain) -> bool:
        return self._processor.batch_deadline is None or await self._processor.finish_partial_batch(chain.stop)

    async def _continue_later(self, chain: PageChain, position: Cursor | None) -> None:
        """As a rule, let the next poll go on with this walk: this one has to stop at a page boundary."""
        overlap = chain.overlap
        if overlap is not None and self._overlap_start.may_end_early(overlap, after=self._max_poll_time):
            chain.ends_early = True
        elif overlap is not None and overlap.should_jump:
            overlap.jump()
            self._continuation = self._progress.saved, overlap
            self._prefetcher.drop(continuing=False)
        else:
            await self._prefetcher.wait_for_first()
            self._continuation = position, overlap

    @property
    def _must_stop(self) -> bool:
        """Whether `max_poll_time` is over, or the server asks to be left alone."""
        now = self._clock()
        return now >= self._deadline or self._schedule.server_not_before > now
