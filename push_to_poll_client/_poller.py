"""Run one poll: fetch and settle pages.

A poll ends when it has caught up, or after `max_poll_time`.

A poll continues a walk (`_position.py`) where the last poll stopped, or starts a new one. The next page may be
fetched while a page is settled. If the pages change, the walk starts again. If the cursor has expired, the walk
continues at the place that `on_cursor_expired=` names. If a fetch fails, the next poll continues at the same
place. `Poll` is the state of one poll. `Poller.replay` processes a range of the feed again.
"""

import enum
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat

import anyio

from push_to_poll_client._dead_letters import SessionDeadLetters
from push_to_poll_client._exceptions import (
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    PagesChanged,
    StoreUnavailable,
)
from push_to_poll_client._fetching import Fetcher
from push_to_poll_client._first_polls import first_poll
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import INCEPTION, LATEST, SessionPart
from push_to_poll_client._poll_state import Place, Poll, PollWalk
from push_to_poll_client._position import Position
from push_to_poll_client._processor import Processor
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import is_leased
from push_to_poll_client._retry import Postponed, StopSignal
from push_to_poll_client._status import NOTHING_DONE, PollResult, standstill_text
from push_to_poll_client._types import Cursor, CycleDetector, FetchRequest, Message, Page, Record
from push_to_poll_client._validation import describe, quoted
from push_to_poll_client._work_queue import WorkItem, WorkQueue

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

MAX_RESTARTS = 3
"""Restarts of a walk in one poll. Changed pages or an expired page token cause them. With more, the poll fails."""

# The server may have forgotten the page token. With 2 % failing fetches this happens once in 125,000 pages.
MAX_FAILED_FETCHES = 3
"""Failed fetches in a row at one place of a walk. Then the next poll starts at the saved cursor."""

# Otherwise a feed that returns only new page tokens would be read as fast as it answers.
MAX_EMPTY_PAGES = 10
"""Pages without a message in a row that one poll reads. Each further page takes a token (G3)."""

MAX_EMPTY_PAGES_OF_BARE_CALL = 1_000
"""Empty pages that `poll_now()` reads without `run()`: three minutes at the default rate."""

UNSAVED_WARNING = 300.0
"""Log a warning after this many seconds without a cursor to save: a restart would repeat the walk."""


class End(enum.Enum):
    """Reason for which a poll stops fetching."""

    CAUGHT_UP = "end of the feed"
    STANDSTILL = "the cursors repeat without a new message"
    UNFINISHED = "the next poll continues: max_poll_time, a pause for the server, or empty pages"
    INCOMPLETE = "the next poll starts at the saved cursor: a message waits, or a stop was requested"
    GAVE_WAY = "the waiting fetch was cancelled"


@dataclass(kw_only=True, eq=False, repr=False)
class Poller(SessionPart):
    """Read the feed from where the last poll stopped."""

    fetcher: Fetcher
    processor: Processor
    progress: Progress
    position: Position
    dead_letters: SessionDeadLetters
    _is_first: bool = field(default=True, init=False)
    _is_prepared: bool = field(default=False, init=False)
    _unfinished: PollWalk | None = field(default=None, init=False)
    _logged_standstill: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._is_shared = is_leased(self.session)  # then other replicas may mark dead letters

    @property
    def has_unsaved_place(self) -> bool:
        """True if the next session would repeat this session's last walk."""
        return self._unfinished is not None and self._unfinished.saved == self.session.cursor

    @property
    def should_go_on_if_bare(self) -> bool:
        """True if a `poll_now()` without a session should continue the walk."""
        walk = self._unfinished
        if walk is None or walk.empty_pages >= MAX_EMPTY_PAGES_OF_BARE_CALL:
            return False
        # Polls that end at an empty page are short.
        has_time = walk.empty_pages >= MAX_EMPTY_PAGES and self.clock() < walk.began + self.options.max_poll_time
        return has_time or self.has_unsaved_place

    def discard_place(self) -> None:
        self._unfinished = None
        self.fetcher.end_poll(continues=False)

    async def poll(self, poll: Poll) -> PollResult | None:
        """Run a poll. Return its result, or `None` if its long poll was cancelled."""
        await self.progress.flush()  # the rest of the last poll
        if not self._is_prepared:  # the first poll of the session, or a resync is due
            await self.position.ensure_started()
        if not self._is_prepared or self._is_shared:
            settle_marked = partial(self.dead_letters.settle_marked, poll.stop)
            self._is_prepared = await self.processor.run_shielded(settle_marked, poll)
        poll.deadline = self.clock() + poll.wait + self.options.max_poll_time
        poll.walk, self._unfinished = self._unfinished or self.position.begin_walk(), None
        poll.settled_before = poll.last_settled = self.progress.settled_count
        poll.counts_before = self.stats.counts.copy()
        # Pages that were read before come first. Only the page after them may be a long poll.
        first_wait = 0.0 if poll.walk.place is Place.BEFORE else poll.wait
        poll.wait -= first_wait
        request = FetchRequest(poll.walk.position, first_wait, poll.hint, poll.bypass_cache)
        end: End | None = None
        failure: BaseException | None = None
        try:
            async with poll.exit_stack:
                try:
                    end = await self._process_pages(poll, request)
                except anyio.get_cancelled_exc_class():
                    self.progress.caller_cancelled()
                    raise
        except BaseException as error:
            failure = error
            raise
        finally:
            caught_up = end is End.CAUGHT_UP
            self.fetcher.end_poll(continues=end is End.UNFINISHED)
            is_as_far_as_it_can = failure is None and (caught_up or poll.postponed_until is not None)
            if is_as_far_as_it_can and (self.progress.attempts or self.stats.failing):
                self.processor.retry.end_walk(caught_up=caught_up)
            try:
                await self.progress.finish()
            except BaseException as refused:
                self.discard_place()
                # The commit stays pending. Its error must not replace a cancellation, SystemExit or ProcessError.
                if failure is None or not isinstance(refused, StoreUnavailable):
                    raise
                logger.warning(
                    "cannot commit processed messages, retrying before the next message: %s",
                    describe(refused),
                )
            poll.done = self._result(poll, end)
        if end is End.GAVE_WAY:
            return None
        await self.position.mark_started()
        if end in {End.CAUGHT_UP, End.UNFINISHED}:
            place = poll.walk.place
            self._unfinished = await self.position.leave(poll.walk, at_end=caught_up)
            goes_on = self._unfinished is not None and poll.walk.place is place
            poll.continues_freely = goes_on and poll.walk.empty_pages < MAX_EMPTY_PAGES
        self._report_standstill(poll, end)
        return poll.done

    def _result(self, poll: Poll, end: End | None) -> PollResult:
        retry_at = poll.postponed_until
        counts = self.stats.counts - poll.counts_before
        return PollResult(
            messages=self.progress.settled_count - poll.settled_before,
            duplicates=poll.duplicates,
            pages=poll.pages,
            caught_up=end is End.CAUGHT_UP,
            retry_in=None if retry_at is None else max(retry_at - self.clock(), 0.0),
            closed=end is End.CAUGHT_UP and poll.closed,
            standstill=poll.standstill if end is End.STANDSTILL else None,
            dead_lettered=counts["dead_lettered"],
            skipped=counts["skipped"],
        )

    async def _process_pages(self, poll: Poll, request: FetchRequest) -> End:
        following: FetchRequest | End = request
        async with first_poll() if self._is_first else nullcontext():
            while isinstance(following, FetchRequest):
                following = await self._process_page(poll, following)
                self._is_first = self._is_first and not poll.pages
        if following is End.CAUGHT_UP and poll.walk.place is Place.JUMPED:
            return End.INCOMPLETE  # the next walk reads the omitted pages
        return following

    async def _process_page(self, poll: Poll, request: FetchRequest) -> FetchRequest | End:
        """Fetch and settle a page. Return the next request, or the reason to stop."""
        # Messages of an incomplete batch wait for this page, but not longer than `batch_wait`.
        since = poll.work.waiting_since
        in_time = since is None or await self.fetcher.arrives_by(since + self.options.batch_wait)
        if not in_time and not await self.processor.finish_partial_batch(poll):
            return End.INCOMPLETE
        try:
            page = await self.fetcher.read(request, poll)
            keys = None if page is None else self.processor.dedupe.dedupe_keys(page.messages)
        except (PagesChanged, CursorExpired) as error:
            return await self._recover_position(poll, request, error)
        except FeedError as error:
            if not request.wait and await self.processor.finish_partial_batch(poll):
                self._keep_place(poll.walk, error)
            raise
        if page is None or keys is None:
            return End.GAVE_WAY
        if page.gap:
            await self.position.report_gap(request.cursor, page.gap)
        walk = poll.walk
        self.stats.counts["pages"] += 1
        poll.pages += 1
        poll.closed, poll.poll_within = page.closed, page.poll_within
        walk.failed_fetches = 0
        walk.empty_pages = 0 if page.messages else walk.empty_pages + 1
        fetches_next = self.fetcher.has_next
        if not await self.processor.take_page(page, keys, poll, fill=fetches_next and self.options.batch_wait > 0):
            return End.INCOMPLETE
        # A commit covers the whole page. It may run while the next page is read and settled.
        await self.progress.page_settled(poll.background if fetches_next else None)
        following = await self._next_request(poll, request, page)
        if isinstance(following, End) and not await self.processor.finish_partial_batch(poll):
            return End.INCOMPLETE
        if following is End.UNFINISHED:
            await self.fetcher.arrives_by(math.inf)  # the next poll begins with this page
        return following

    def _keep_place(self, walk: PollWalk, error: FeedError) -> None:
        """Continue the next poll here, unless the server may have forgotten this place."""
        walk.failed_fetches += 1
        lasts = isinstance(error, FeedRefused | FeedGone)
        may_be_known = not lasts and walk.failed_fetches < MAX_FAILED_FETCHES
        if may_be_known and walk.position != walk.start:
            self._unfinished = walk

    async def _recover_position(self, poll: Poll, request: FetchRequest, error: FeedError) -> FetchRequest | End:
        """Find the place to continue when the feed cannot answer."""
        await self.progress.flush()
        walk = poll.walk
        start = walk.start if walk.place is Place.BEFORE else self.session.cursor
        # A page token can expire while the cursor at the start of the walk is valid.
        if isinstance(error, PagesChanged) or walk.position != start:
            poll.restarts += 1
            if poll.restarts > MAX_RESTARTS:
                raise FeedError(
                    f"pages changed or expired again after {MAX_RESTARTS} restarts of the poll: {describe(error)}"
                )
            if not self.fetcher.is_allowed:  # fail, since the next poll would start here too
                raise FeedError(
                    f"pages changed or expired, retrying when the server allows it: {describe(error)}"
                ) from error
        elif walk.place is Place.BEFORE:
            self.position.overlap_start_expired()
            poll.walk = self.position.begin_walk()
            start = poll.walk.start
        else:
            assert isinstance(error, CursorExpired)  # noqa: S101
            if poll.resynced:
                where = "the inception" if start is None else f"cursor {quoted(start)}"
                text = (
                    f"{error}; on_cursor_expired= chose {where}, which the feed rejects too; choose another place"
                )
                raise CursorExpired(text, start=error.start) from error
            if not await self.processor.finish_partial_batch(poll):
                return End.INCOMPLETE
            await self.progress.flush()
            poll.resynced, self._is_prepared = True, False
            if not await self.position.cursor_expired(error):
                return End.INCOMPLETE
            poll.work = WorkQueue()  # everything before is settled; save no cursor of the old place
            poll.walk = self.position.begin_walk()
            start = poll.walk.start
        poll.walk.position, poll.walk.cycle_detector = start, CycleDetector()
        return End.UNFINISHED if self.fetcher.must_stop(poll) else replace(request, cursor=start, wait=0.0)

    async def _next_request(self, poll: Poll, request: FetchRequest, page: Page) -> FetchRequest | End:
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
            if self.fetcher.must_stop(poll) or poll.walk.empty_pages >= MAX_EMPTY_PAGES:
                return End.UNFINISHED
            return replace(request, cursor=page.next_page, wait=0.0)
        wait, poll.wait = poll.wait, 0.0
        if (
            not wait
            or page.closed
            or settled > poll.settled_before
            or poll.must_not_wait
            or self.fetcher.must_stop(poll)
        ):
            return End.CAUGHT_UP
        poll.walk.position = self.session.cursor
        # The walk is complete, even if the long poll fails.
        await self.position.leave(poll.walk, at_end=True)
        return replace(request, cursor=poll.walk.position, wait=wait)

    def _report_standstill(self, poll: Poll, end: End) -> None:
        """Report why the walk does not reach the end of the feed (G13)."""
        walk, text = poll.walk, poll.standstill
        seconds = self.clock() - walk.began
        if text is None and end is End.UNFINISHED and not poll.done.messages and self.has_unsaved_place:
            text = self.stats.standstill  # the last text still holds, as in each round of a long cycle
        if text is None and end is End.UNFINISHED and walk.empty_pages >= MAX_EMPTY_PAGES:
            text = (
                f"the feed has returned {MAX_EMPTY_PAGES} pages or more in a row without a message, and announces "
                "more pages; continuing within rate="
            )
        elif text is None and end is End.UNFINISHED and seconds > UNSAVED_WARNING and self.has_unsaved_place:
            text = (
                f"no cursor to save for {UNSAVED_WARNING:.0f} s or more: a restart would read "
                f"everything after cursor {quoted(walk.saved)} again"
            )
        self.stats.standstill = text
        logged, self._logged_standstill = self._logged_standstill, text
        if text is not None and text != logged:
            logger.warning("the end of the feed is not reached: %s", text)

    # Replay

    async def replay(self, start: Cursor, end: Cursor | None) -> PollResult:
        """Process a range of the feed again, up to `end` (None: the end of the feed)."""
        # Call it while no poll runs. The saved cursor does not move; messages get new records. `caught_up` of the
        # result is True if the feed ended before `end`. After an error, the messages before it are recorded.
        await self.progress.flush()  # the rest of an earlier call
        latest: Cursor | None = None
        if LATEST in {start, end}:
            await self.fetcher.wait_until_allowed()
            latest = await self.fetcher.latest()
        position = {INCEPTION: None, LATEST: latest}.get(start, start)
        end = latest if end == LATEST else end
        done, counts_before, cycle_detector = NOTHING_DONE, self.stats.counts.copy(), CycleDetector()
        ends = end is not None and end == position
        while not ends:
            await self.fetcher.wait_until_allowed()
            page = await self.fetcher.fetch(FetchRequest(position))
            if page.gap:
                await self.position.report_gap(position, page.gap)
            in_range, ends = _messages_up_to(page, end)
            await self._replay_messages(in_range)
            done = replace(done, messages=done.messages + len(in_range), pages=done.pages + 1)
            if not ends and page.next_page in {None, position}:
                ended = page.next_page is None
                standstill = None if ended else standstill_text(f"back to cursor {quoted(page.next_page)}")
                done = replace(done, caught_up=ended, closed=page.closed, standstill=standstill)
                break
            position = page.next_page
            if position is not None and not ends and cycle_detector.repeats_at(position):
                raise FeedError("the pages of the feed repeat, so the replay cannot reach its end")
        counts = self.stats.counts - counts_before
        return replace(done, dead_lettered=counts["dead_lettered"], skipped=counts["skipped"])

    async def _replay_messages(self, messages: Sequence[Message]) -> None:
        dedupe = self.processor.dedupe
        new = repeat(True, len(messages))  # noqa: FBT003  # also messages that were settled before
        keys = dedupe.dedupe_keys(messages)
        items = await dedupe.make_items(messages, keys, new, in_flight=(), read_at=self.clock())
        try:
            for item in items:
                await self._replay_one(item)
        finally:  # a new dead letter must not be lost: no later poll reads its message again
            await self.progress.flush()

    async def _replay_one(self, item: WorkItem) -> None:
        while True:
            try:
                state = await self.processor.retry.try_one(item.key, item.message, StopSignal(), error=item.error)
            except Postponed as postponed:
                await anyio.sleep_until(postponed.until)
            else:
                self.progress.pending.append(Record(item.key, state, item.fingerprint))
                return


def _messages_up_to(page: Page, end: Cursor | None) -> tuple[Sequence[Message], bool]:
    """Return the messages up to a cursor. Return True too if the range ends there."""
    for number, message in enumerate(page.messages):
        if end is not None and message.cursor == end:
            return page.messages[: number + 1], True
    return page.messages, end is not None and end in {page.cursor, page.next_page}
