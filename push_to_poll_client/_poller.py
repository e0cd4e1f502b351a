"""Run one poll: fetch and settle page after page until caught up, or for `max_poll_time`.

A poll goes along a walk (`_position.py`), from where it starts or from where the last poll stopped. While a page
is settled, the next one may be fetched. When the pages change during the walk, it starts again; when the cursor
has expired, it goes on where the user says. When a fetch fails, the next poll continues at the same place.
`PollState` knows what one poll has done so far, `Poller` does it.
"""

import enum
import logging
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import anyio

from push_to_poll_client._dead_letters import SessionDeadLetters
from push_to_poll_client._event_loop import Background
from push_to_poll_client._exceptions import (
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    PagesChanged,
    StoreUnavailable,
)
from push_to_poll_client._fetching import PageReader
from push_to_poll_client._first_polls import first_poll
from push_to_poll_client._hooks import ConsumerStats
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import Options
from push_to_poll_client._position import Overlap, Place, PollWalk, Position
from push_to_poll_client._processor import Processor
from push_to_poll_client._progress import Progress
from push_to_poll_client._retry import StopSignal
from push_to_poll_client._status import NOTHING_DONE, PollResult, standstill_text
from push_to_poll_client._types import Clock, Cursor, CycleDetector, FetchRequest, Page, Push
from push_to_poll_client._validation import describe, quoted

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

MAX_RESTARTS = 3
"""How often a poll starts a walk again because the pages changed or a page token expired. If that happens more
often, the poll fails and is retried with backoff."""

MAX_FAILED_FETCHES = 3
"""How many fetches in a row may fail at one place of a walk, before the next poll starts at the saved cursor: the
server may have forgotten the page token. With 2 % failing fetches that happens once in 125,000 pages."""

MAX_EMPTY_PAGES = 10
"""How many pages in a row without a message are read as part of one poll. Each further one is a poll of its own,
and takes a token (G3): else a feed that gives nothing but new page tokens would be asked as fast as it answers."""

MAX_EMPTY_PAGES_OF_BARE_CALL = 1_000
"""How many such pages a `poll_now()` without `run()` or `async with` reads: three minutes at the default rate."""

UNSAVED_WARNING = 300.0
"""Seconds of a walk without a cursor to save, after which that is logged: a restart would begin the walk again."""


class End(enum.Enum):
    """Why a poll stops fetching."""

    CAUGHT_UP = "it has reached the end of the feed"
    STANDSTILL = "the feed leads back to where it was, without anything new"
    UNFINISHED = "the next poll continues: time is over, the server asks to be left alone, or pages are empty"
    INCOMPLETE = "the next poll starts at the saved cursor: a message has to wait, or a stop was requested"
    GAVE_WAY = "the waiting fetch was cancelled"


@dataclass(slots=True, eq=False)
class PollState:
    """What one poll has done so far.

    Attributes:
        walk: The walk that it goes along.
        stop: As for `Processor.take_page`.
        settled_before: How many messages the session had settled when the poll began.
        counts_before: The counts of the consumer then.
        wait: Seconds for which the server may hold an answer; 0 once that was asked for.
        last_settled: How many messages the session had settled when the walk last made progress.
        pages: How many pages it has read.
        closed: Whether the current page is the last one of a feed that has ended.
        restarts: How often the walk was started again.
        resynced: Whether the cursor had expired, and the poll went on elsewhere.
        standstill: Why the feed stands still; `None` if it does not.
    """

    walk: PollWalk
    stop: StopSignal | None
    settled_before: int
    counts_before: Counter[str]
    wait: float
    last_settled: int
    pages: int = 0
    closed: bool = False
    restarts: int = 0
    resynced: bool = False
    standstill: str | None = None

    def stands_still(self, position: Cursor | None, following: Cursor, settled: int) -> bool:
        """Whether the walk makes no progress: no new message was settled, and the cursors repeat."""
        if settled > self.last_settled:
            self.last_settled, self.walk.cycle_detector = settled, CycleDetector()
            return False
        return following == position or self.walk.cycle_detector.repeats_at(following)


@dataclass(kw_only=True, eq=False, repr=False)
class Poller:
    """Walks the feed from where the last poll stopped.

    Attributes:
        pages: Read the feed.
        processor: Settles the pages.
        progress: Commits what is settled, and knows the saved cursor.
        position: Knows where a name begins, and where it goes on when its cursor has expired.
        overlap: Knows where a walk starts.
        dead_letters: Retries the dead letters that are marked for that.
        done: What the last poll did, also if it failed.
        continues_freely: Whether the next poll continues what the last one read, and so takes no token (G3).
        poll_within: The `Page.poll_within` of the last page of the last poll.
    """

    options: Options
    pages: PageReader
    processor: Processor
    progress: Progress
    position: Position
    overlap: Overlap
    dead_letters: SessionDeadLetters
    stats: ConsumerStats
    clock: Clock
    done: PollResult = field(default=NOTHING_DONE, init=False)
    continues_freely: bool = field(default=False, init=False)
    poll_within: float | None = field(default=None, init=False)
    _is_first: bool = field(default=True, init=False)
    _is_prepared: bool = field(default=False, init=False)
    _unfinished: PollWalk | None = field(default=None, init=False)
    _logged_standstill: str | None = field(default=None, init=False)

    @property
    def has_unsaved_place(self) -> bool:
        """Whether the next session would read again all that the last walk of this one has read."""
        return self._unfinished is not None and self._unfinished.saved == self.progress.saved

    @property
    def should_go_on_if_bare(self) -> bool:
        """Whether a `poll_now()` after which the session is closed should go on with the walk."""
        walk = self._unfinished
        if walk is None or walk.empty_pages >= MAX_EMPTY_PAGES_OF_BARE_CALL:
            return False
        # Polls that end at an empty page take a moment each.
        has_time = walk.empty_pages >= MAX_EMPTY_PAGES and self.clock() < walk.began + self.options.max_poll_time
        return has_time or self.has_unsaved_place

    def discard_place(self) -> None:
        """Let the next poll start at the saved cursor."""
        self._unfinished, self.continues_freely = None, False
        self.pages.end_poll(continues=False)

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
            FeedError: A fetch failed.
            ProcessError: A message failed for good.
            StoreError: The store could not be read or written.
        """
        self.done, self.continues_freely, self.poll_within = NOTHING_DONE, False, None
        self.pages.begin_poll()
        self.processor.begin()
        await self.progress.flush()  # what the last poll could not commit
        if not self._is_prepared:  # the first poll of the session, or a resync waits to be done
            await self.position.ensure_started()
            self._is_prepared = await self.processor.run_shielded(self.dead_letters.retry_marked, stop)
        self.pages.deadline = self.clock() + wait + self.options.max_poll_time
        walk, self._unfinished = self._unfinished or self.overlap.begin_walk(), None
        # Messages that were read before come first: only what comes after them is worth a wait.
        first_wait = 0.0 if walk.place is Place.BEFORE else wait
        settled, counts = self.progress.settled_count, self.stats.counts.copy()
        poll = PollState(walk, stop, settled, counts, wait - first_wait, last_settled=settled)
        request = FetchRequest(walk.position, first_wait, hint, bypass_cache)
        end: End | None = None
        failure: BaseException | None = None
        try:
            async with Background() as background:
                try:
                    end = await self._process_pages(poll, request, background)
                except anyio.get_cancelled_exc_class():
                    self.progress.caller_cancelled()
                    raise
        except BaseException as error:
            failure = error
            raise
        finally:
            self.pages.end_poll(continues=end is End.UNFINISHED)
            if failure is None:
                self.processor.end(caught_up=end is End.CAUGHT_UP)
            try:
                await self.progress.finish()
            except BaseException as refused:
                self.discard_place()
                # It stays pending, and must not take the place of a cancellation, SystemExit or ProcessError.
                if failure is None or not isinstance(refused, StoreUnavailable):
                    raise
                logger.warning("the commit at the end of a poll that failed: %s", describe(refused))
            self.done = self._result(poll, end)
        if end is End.GAVE_WAY:
            return None
        await self.position.mark_started()
        if end in {End.CAUGHT_UP, End.UNFINISHED}:
            place = poll.walk.place
            self._unfinished = await self.overlap.leave(poll.walk, at_end=end is End.CAUGHT_UP)
            goes_on = self._unfinished is not None and poll.walk.place is place
            self.continues_freely = goes_on and poll.walk.empty_pages < MAX_EMPTY_PAGES
        self._report_standstill(poll, end)
        return self.done

    def _result(self, poll: PollState, end: End | None) -> PollResult:
        retry_at = self.processor.postponed_until
        counts = self.stats.counts - poll.counts_before
        return PollResult(
            messages=self.progress.settled_count - poll.settled_before,
            duplicates=self.processor.duplicates,
            pages=poll.pages,
            caught_up=end is End.CAUGHT_UP,
            retry_in=None if retry_at is None else max(retry_at - self.clock(), 0.0),
            closed=end is End.CAUGHT_UP and poll.closed,
            standstill=poll.standstill if end is End.STANDSTILL else None,
            dead_lettered=counts["dead_lettered"],
            skipped=counts["skipped"],
        )

    async def _process_pages(self, poll: PollState, request: FetchRequest, background: Background) -> End:
        following: FetchRequest | End = request
        async with first_poll() if self._is_first else nullcontext():
            while isinstance(following, FetchRequest):
                following = await self._process_page(poll, following, background)
                self._is_first = self._is_first and not poll.pages
        if following is End.CAUGHT_UP and poll.walk.place is Place.JUMPED:
            return End.INCOMPLETE  # the next walk reads what this one left out
        return following

    async def _process_page(
        self, poll: PollState, request: FetchRequest, background: Background
    ) -> FetchRequest | End:
        """Fetch and settle a page; return the next request, or why the poll stops."""
        # Messages that wait for this page to fill a batch do not wait for longer than they may.
        deadline = self.processor.batch_deadline
        in_time = deadline is None or await self.pages.arrives_by(deadline)
        if not in_time and not await self._finish_partial_batch(poll):
            return End.INCOMPLETE
        try:
            page = await self.pages.read(request, background)
        except (PagesChanged, CursorExpired) as error:
            return await self._recover_position(poll, request, error)
        except FeedError as error:
            if not request.wait and await self._finish_partial_batch(poll):
                self._keep_place(poll.walk, error)
            raise
        if page is None:
            return End.GAVE_WAY
        walk, read_at = poll.walk, self.pages.answered_at
        assert read_at is not None  # it has a page  # noqa: S101
        self.stats.counts["pages"] += 1
        poll.pages += 1
        poll.closed, self.poll_within = page.closed, page.poll_within
        walk.failed_fetches = 0
        walk.empty_pages = 0 if page.messages else walk.empty_pages + 1
        is_settled = await self.processor.take_page(
            page,
            read_at=read_at,
            stop=poll.stop,
            background=background.tasks if self.pages.has_next else None,
            overlap=walk if walk.place is Place.BEFORE else None,
        )
        if not is_settled:
            return End.INCOMPLETE
        following = self._next_request(poll, request, page)
        if isinstance(following, End) and not await self._finish_partial_batch(poll):
            return End.INCOMPLETE
        if following is End.UNFINISHED:
            await self.pages.wait_until_done()
        elif isinstance(following, FetchRequest) and following.wait:
            # The walk is complete, whatever becomes of the fetch that the server may hold.
            await self.overlap.leave(poll.walk, at_end=True)
        return following

    def _keep_place(self, walk: PollWalk, error: FeedError) -> None:
        """Let the next poll continue where a fetch failed, unless the server may not know that place any more."""
        walk.failed_fetches += 1
        lasts = isinstance(error, FeedRefused | FeedGone)
        may_be_known = not lasts and walk.failed_fetches < MAX_FAILED_FETCHES
        if may_be_known and walk.position != walk.start:
            self._unfinished = walk

    async def _recover_position(
        self, poll: PollState, request: FetchRequest, error: FeedError
    ) -> FetchRequest | End:
        """Find out where to go on when the feed cannot answer."""
        await self.progress.flush()
        walk = poll.walk
        start = walk.start if walk.place is Place.BEFORE else self.progress.saved
        # A page token can expire although the cursor at which the walk started is good.
        if isinstance(error, PagesChanged) or walk.position != start:
            poll.restarts += 1
            if poll.restarts > MAX_RESTARTS:
                raise FeedError(f"the walk was started again {MAX_RESTARTS} times in one poll: {describe(error)}")
            if (
                not self.pages.fetcher.is_allowed
            ):  # a poll that fails, since the next one would be no more than this
                raise FeedError(f"the walk starts again later, as the server asks: {describe(error)}") from error
        elif walk.place is Place.BEFORE:
            self.position.overlap_start_expired()
            poll.walk = self.overlap.begin_walk()
            start = poll.walk.start
        elif poll.resynced:  # the feed does not know the new cursor either
            raise error
        else:
            assert isinstance(error, CursorExpired)  # noqa: S101
            if not await self._finish_partial_batch(poll):
                return End.INCOMPLETE
            await self.progress.flush()
            poll.resynced, self._is_prepared = True, False
            if not await self.position.cursor_expired(error):
                return End.INCOMPLETE
            self.processor.begin_elsewhere()
            poll.walk = self.overlap.begin_walk()
            start = poll.walk.start
        poll.walk.position, poll.walk.cycle_detector = start, CycleDetector()
        return End.UNFINISHED if self.pages.must_stop else replace(request, cursor=start, wait=0.0)

    def _next_request(self, poll: PollState, request: FetchRequest, page: Page) -> FetchRequest | End:
        settled = self.progress.settled_count
        if page.next_page is not None:
            poll.walk.position = page.next_page
            if poll.stands_still(request.cursor, page.next_page, settled):
                if page.next_page == request.cursor:
                    where = f"back to cursor {quoted(page.next_page)}"
                else:
                    start = poll.walk.start
                    where = f"around after {'the inception' if start is None else f'cursor {quoted(start)}'}"
                poll.standstill = standstill_text(where)
                return End.STANDSTILL
            if self.pages.must_stop or poll.walk.empty_pages >= MAX_EMPTY_PAGES:
                return End.UNFINISHED
            return replace(request, cursor=page.next_page, wait=0.0)
        wait, poll.wait = poll.wait, 0.0
        if (
            not wait
            or page.closed
            or settled > poll.settled_before
            or self.pages.must_stop
            or self.pages.fetcher.must_not_wait
        ):
            return End.CAUGHT_UP
        poll.walk.position = self.progress.saved
        return replace(request, cursor=poll.walk.position, wait=wait)

    async def _finish_partial_batch(self, poll: PollState) -> bool:
        return self.processor.batch_deadline is None or await self.processor.finish_partial_batch(poll.stop)

    def _report_standstill(self, poll: PollState, end: End) -> None:
        """Say in status and log what keeps the walk from the end of the feed (G13)."""
        walk, text = poll.walk, poll.standstill
        seconds = self.clock() - walk.began
        if text is None and end is End.UNFINISHED and not self.done.messages and self.has_unsaved_place:
            text = self.stats.standstill  # what was said last still holds, as in each round of a long circle
        if text is None and end is End.UNFINISHED and walk.empty_pages >= MAX_EMPTY_PAGES:
            text = (
                f"the feed says that there is more, and has given {MAX_EMPTY_PAGES} pages or more in a row "
                "without a message: further ones are asked for within rate="
            )
        elif text is None and end is End.UNFINISHED and seconds > UNSAVED_WARNING and self.has_unsaved_place:
            text = (
                f"no cursor to save was found for {UNSAVED_WARNING:.0f} s or more: a restart would read "
                f"everything after cursor {quoted(walk.saved)} again"
            )
        self.stats.standstill = text
        logged, self._logged_standstill = self._logged_standstill, text
        if text is not None and text != logged:
            logger.warning("the end of the feed is not reached: %s", text)
