"""Choose where polls start: at first, after a rewind and after a resync; and replay ranges of the feed.

`Position` moves a session to another place of the feed. A move resets the saved cursor and, if the user says so,
begins a new dedupe epoch. It also forgets failing messages: they may never come again, and a poll would wait for
them. Where a session goes on from page to page, and saves its cursor, is in `_progress.py`.

`Replay` gives a range of the feed to the handler again, and leaves the saved cursor where it is.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat

import anyio

from push_to_poll_client._exceptions import CursorExpired, FeedError
from push_to_poll_client._failure_policy import ATTEMPTS_KEY
from push_to_poll_client._fetching import Fetcher, Gaps
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import INCEPTION, LATEST, OnCursorExpired, Resync, ResyncFunction
from push_to_poll_client._overlap import Overlap
from push_to_poll_client._processor import Dedupe
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import Session
from push_to_poll_client._retry import Postponed, Retry, StopSignal
from push_to_poll_client._status import ConsumerStats, PollResult, Resynced, add_results, place_of, standstill_text
from push_to_poll_client._types import Cursor, CycleDetector, FetchRequest, Message, Page, Record, SavedCursor
from push_to_poll_client._validation import describe, quoted
from push_to_poll_client._work_queue import WorkItem

__all__ = ["MOVED_STATE", "Position", "Replay", "saved_before"]


logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

STARTED_STATE = {"started": "yes"}
"""Session state of a name that has begun: `start=` does not apply to it any more."""

RESYNC_KEY = "resync"
"""Name in a session's state of a resync to the latest cursor that has to wait for the server (G3)."""

FORGET, KEEP = "forget", "keep"

MOVED_STATE: Mapping[str, str | None] = {**STARTED_STATE, ATTEMPTS_KEY: None, RESYNC_KEY: None}
"""Session state after a move: failing messages may never come again, so their attempts are forgotten."""


def saved_before(history: Sequence[SavedCursor], latest: float) -> SavedCursor | None:
    """Return the newest cursor saved at this time of day or before; `None` if none of the kept ones was."""
    return next((saved for saved in reversed(history) if saved.at <= latest), None)


class Position:
    """The position of one session in its feed.

    Args:
        session: Keeps the saved cursor.
        fetcher: Asks for the feed's end.
        progress: Knows the attempts of failing messages, which a move forgets.
        overlap: Knows where walks with an overlap start.
        stats: Counts resyncs.
        hooks: Told of resyncs.
        start: Where a new name begins, as `Resync.to`.
        on_cursor_expired: What to do when the feed no longer knows the saved cursor.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        session: Session,
        fetcher: Fetcher,
        progress: Progress,
        overlap: Overlap,
        stats: ConsumerStats,
        hooks: Hooks,
        *,
        start: Cursor,
        on_cursor_expired: OnCursorExpired,
    ) -> None:
        self._session = session
        self._fetcher = fetcher
        self._progress = progress
        self._overlap = overlap
        self._stats = stats
        self._hooks = hooks
        self._start = start
        self._on_cursor_expired = on_cursor_expired

    async def ensure_started(self) -> None:
        """Let a new name begin where `start=` says, and do a resync that had to wait for the server.

        Raises:
            FeedError: The feed's end could not be fetched.
            StoreError: The start could not be saved.
        """
        if (pending := self._session.state.get(RESYNC_KEY)) is not None:
            await self._resync("the cursor expired", Resync(LATEST, forget=pending == FORGET))
        state = dict(self._overlap.initial_state())
        if not self._has_started and self._start != INCEPTION:
            await self._session.reset(await self._resolve(self._start), forget=False, state=state | STARTED_STATE)
        elif state:
            await self._session.commit(cursor=None, records=[], state=state | STARTED_STATE)

    async def mark_started(self) -> None:
        """Record at the end of a poll that the name has begun, even if the poll found nothing to save.

        Raises:
            StoreError: That could not be saved.
        """
        if not self._has_started:
            await self._session.commit(cursor=None, records=[], state=STARTED_STATE)

    @property
    def place(self) -> str:
        """Name of the place where the next poll starts, for the log."""
        if self._has_started or self._start == INCEPTION:
            return place_of(self._session.cursor)
        return "the end" if self._start == LATEST else place_of(self._start)

    @property
    def _has_started(self) -> bool:
        session = self._session
        return session.cursor is not None or bool(session.size or session.dead or session.state)

    async def rewind(self, to: Cursor | None, *, ago: float | None, forget: bool) -> None:
        """Go on where the user says; see `Consumer.rewind`.

        Raises:
            ValueError: No cursor is kept that is so old.
            FeedError: As for `ensure_started`.
            StoreError: As for `ensure_started`.
        """
        if to == LATEST:
            await self._fetcher.wait_until_allowed()
        cursor = self._saved_before(ago) if to is None else await self._resolve(to)
        await self._move("the user said so", cursor, forget=forget)

    def _saved_before(self, ago: float | None) -> Cursor | None:
        assert ago is not None  # rewind() takes to= or ago=  # noqa: S101
        now, history = self._progress.time_of_day.now(), self._session.history
        saved = saved_before(history, now - ago)
        if saved is None:
            raise ValueError(
                f"no cursor is kept that was saved {ago} s ago; the oldest is {now - history[0].at:.0f} s old"
            )
        return saved.cursor

    async def cursor_expired(self, error: CursorExpired) -> bool:
        """Do what `on_cursor_expired=` says: the feed no longer knows the saved cursor.

        Returns:
            True if that is done; False if the next poll does it, since the server must not be asked before (G3).

        Raises:
            CursorExpired: To stop.
            FeedError: As for `ensure_started`.
            StoreError: As for `ensure_started`.
        """
        policy = self._on_cursor_expired
        resync = await self._call_policy(policy, error) if callable(policy) else policy
        if not isinstance(resync, Resync):
            raise error
        why = f"the cursor expired: {describe(error)}"
        if resync.to == LATEST and not self._fetcher.is_allowed:
            pending = FORGET if resync.forget else KEEP
            await self._session.commit(cursor=None, records=[], state={RESYNC_KEY: pending})
            return False
        await self._resync(why, resync)
        return True

    async def _resync(self, why: str, resync: Resync) -> None:
        await self._move(why, await self._resolve(resync.to), forget=resync.forget)

    async def _call_policy(self, function: ResyncFunction, error: CursorExpired) -> Resync | None:
        try:
            result = function(error)
            resync = await result if inspect.isawaitable(result) else result
            self._check_resync(resync)
        except CursorExpired:
            raise
        except Exception as broken:
            text = f"{error}; on_cursor_expired failed: {describe(broken)}"
            raise CursorExpired(text, start=error.start) from broken
        return resync

    def _check_resync(self, resync: object) -> None:
        if resync is not None and not isinstance(resync, Resync):
            raise TypeError(f"it must return a Resync, or None to stop, not {resync!r}")
        if resync is not None and resync.to == LATEST:
            self._fetcher.check_latest()

    def overlap_start_expired(self) -> None:
        """Go on at the saved cursor: the feed no longer knows the cursor at which a walk was to start."""
        self._overlap.start_expired()
        self._report_resync("the cursor that an overlap began with expired", self._session.cursor, forget=False)

    async def _resolve(self, to: Cursor) -> Cursor | None:
        if to == LATEST:
            return await self._fetcher.latest()
        return None if to == INCEPTION else to

    async def _move(self, why: str, cursor: Cursor | None, *, forget: bool) -> None:
        await self._session.reset(cursor, forget=forget, state=MOVED_STATE)
        self._progress.attempts.forget()
        self._stats.failing.clear()
        self._report_resync(why, cursor, forget=forget)

    def _report_resync(self, why: str, cursor: Cursor | None, *, forget: bool) -> None:
        event = Resynced(why, cursor, forget)
        again = "what comes again is processed again" if forget else "what was processed is not processed again"
        logger.warning("goes on from %s, and %s: %s", place_of(cursor), again, why)
        self._stats.resynced(event)
        self._hooks.resynced(event)


class Replay:
    """Replays ranges of one session's feed. The saved cursor does not move; messages get new records.

    Args:
        fetcher: Fetches the pages.
        dedupe: Computes the messages' keys and fingerprints.
        retry: Settles the messages, one after the other.
        progress: Commits the records.
        gaps: Told of messages that may be missing before a page.
        stats: Count dead-lettered and skipped messages.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        fetcher: Fetcher,
        dedupe: Dedupe,
        retry: Retry,
        progress: Progress,
        gaps: Gaps,
        stats: ConsumerStats,
    ) -> None:
        self._fetcher = fetcher
        self._dedupe = dedupe
        self._retry = retry
        self._progress = progress
        self._gaps = gaps
        self._stats = stats

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
        await self._progress.flush()  # what an earlier call could not commit
        latest: Cursor | None = None
        if LATEST in {start, end}:
            await self._fetcher.wait_until_allowed()
            latest = await self._fetcher.latest()
        named = {INCEPTION: None, LATEST: latest}
        done, cycle_detector = PollResult(0, 0, 0, caught_up=False), CycleDetector()
        position = named.get(start, start)
        end = latest if end == LATEST else end
        ends = end is not None and end == position
        while not ends:
            await self._fetcher.wait_until_allowed()
            page = await self._fetcher.fetch(FetchRequest(position))
            assert page is not None  # only a fetch that waits gives way  # noqa: S101
            await self._gaps.report(position, page.gap)
            in_range, ends = _messages_up_to(page, end)
            done = add_results(done, await self._work_off(in_range))
            if not ends and page.next in {None, position}:
                ended = page.next is None
                standstill = None if ended else standstill_text(f"back to cursor {quoted(page.next)}")
                return replace(done, caught_up=ended, closed=page.closed, standstill=standstill)
            position = page.next
            if position is not None and not ends and cycle_detector.repeats_at(position):
                raise FeedError("the pages of the feed lead in a circle; the replay ends there")
        return done

    async def _work_off(self, messages: Sequence[Message]) -> PollResult:
        """Settle the messages of one page; return what was done."""
        counts_before = self._stats.counts.copy()
        (keys, errors), now = self._dedupe.dedupe_keys(messages), self._fetcher.now()
        new = repeat(True, len(keys))  # noqa: FBT003  # all of them, also those that were settled before
        items = await self._dedupe.make_items(messages, keys, new, errors, in_flight=(), read_at=now, arrived=now)
        try:
            for item in items:
                await self._settle(item)
        finally:  # the saved cursor is past them: a dead letter that is not committed would not come again
            await self._progress.flush()
        counts = self._stats.counts - counts_before
        return PollResult(
            messages=len(messages),
            duplicates=0,
            pages=1,
            caught_up=False,
            dead_lettered=counts["dead_lettered"],
            skipped=counts["skipped"],
        )

    async def _settle(self, item: WorkItem) -> None:
        while True:
            try:
                state = await self._retry.try_one(item.key, item.message, StopSignal(), error=item.error)
            except Postponed as postponed:
                await anyio.sleep_until(postponed.until)
            else:
                self._progress.pending.append(Record(item.key, state, item.fingerprint))
                return


def _messages_up_to(page: Page, end: Cursor | None) -> tuple[Sequence[Message], bool]:
    """Return the messages of the page up to the one with this cursor, and whether the range ends with them."""
    for number, message in enumerate(page.messages):
        if end is not None and message.cursor == end:
            return page.messages[: number + 1], True
    return page.messages, end is not None and end in {page.cursor, page.next}
