"""Give a range of the feed to the handler again, and leave the saved cursor where it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import anyio

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._options import INCEPTION, LATEST
from push_to_poll_client._position import Position
from push_to_poll_client._processor import Processor
from push_to_poll_client._retry import Postponed, StopSignal
from push_to_poll_client._status import NOTHING_DONE, PollResult, add_results, standstill_text
from push_to_poll_client._types import Cursor, CycleDetector, FetchRequest, Message, Page, Record
from push_to_poll_client._validation import quoted
from push_to_poll_client._work_queue import WorkItem


@dataclass(kw_only=True, eq=False, repr=False)
class Replay:
    """Replays ranges of one session's feed. The saved cursor does not move; messages get new records."""

    processor: Processor
    position: Position

    async def run(self, start: Cursor, end: Cursor | None) -> PollResult:
        """Replay the messages after `start`, up to the message or page whose cursor is `end`.

        Args:
            start: Where to begin, as for `Consumer.replay`.
            end: Where to end; `None` means at the end of the feed.

        Returns:
            What was done; `caught_up` if the end of the feed was reached before `end`.

        Raises:
            FeedError: A fetch failed, or the pages lead in a circle. The messages before it are recorded.
            ProcessError: A message failed for good. The messages before it are recorded.
            StoreError: The store failed.
        """
        await self.processor.progress.flush()  # what an earlier call could not commit
        fetcher = self.position.fetcher
        latest: Cursor | None = None
        if LATEST in {start, end}:
            await fetcher.wait_until_allowed()
            latest = await fetcher.latest()
        named = {INCEPTION: None, LATEST: latest}
        done, cycle_detector = NOTHING_DONE, CycleDetector()
        position = named.get(start, start)
        end = latest if end == LATEST else end
        ends = end is not None and end == position
        while not ends:
            await fetcher.wait_until_allowed()
            page = await fetcher.fetch(FetchRequest(position))
            if page.gap:
                await self.position.report_gap(position, page.gap)
            in_range, ends = _messages_up_to(page, end)
            done = add_results(done, await self._work_off(in_range))
            if not ends and page.next_page in {None, position}:
                ended = page.next_page is None
                standstill = None if ended else standstill_text(f"back to cursor {quoted(page.next_page)}")
                return replace(done, caught_up=ended, closed=page.closed, standstill=standstill)
            position = page.next_page
            if position is not None and not ends and cycle_detector.repeats_at(position):
                raise FeedError("the pages of the feed lead in a circle; the replay ends there")
        return done

    async def _work_off(self, messages: Sequence[Message]) -> PollResult:
        """Settle the messages of one page; return what was done."""
        dedupe, stats, now = self.processor.dedupe, self.processor.stats, self.processor.clock()
        counts_before = stats.counts.copy()
        keys, errors = dedupe.dedupe_keys(messages)
        new = repeat(True, len(keys))  # noqa: FBT003  # all of them, also those that were settled before
        items = await dedupe.make_items(messages, keys, new, errors, in_flight=(), read_at=now, arrived=now)
        try:
            for item in items:
                await self._try_one(item)
        finally:  # the saved cursor is past them: a dead letter that is not committed would not come again
            await self.processor.progress.flush()
        counts = stats.counts - counts_before
        return PollResult(
            messages=len(messages),
            duplicates=0,
            pages=1,
            caught_up=False,
            dead_lettered=counts["dead_lettered"],
            skipped=counts["skipped"],
        )

    async def _try_one(self, item: WorkItem) -> None:
        while True:
            try:
                state = await self.processor.retry.try_one(item.key, item.message, StopSignal(), error=item.error)
            except Postponed as postponed:
                await anyio.sleep_until(postponed.until)
            else:
                self.processor.progress.pending.append(Record(item.key, state, item.fingerprint))
                return


def _messages_up_to(page: Page, end: Cursor | None) -> tuple[Sequence[Message], bool]:
    """Return the messages of the page up to the one with this cursor, and whether the range ends with them."""
    for number, message in enumerate(page.messages):
        if end is not None and message.cursor == end:
            return page.messages[: number + 1], True
    return page.messages, end is not None and end in {page.cursor, page.next_page}
