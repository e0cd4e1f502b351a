"""Choose where polls start: at first, after a resync or a rewind, and in a replay."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from itertools import repeat

import anyio

from push_to_poll_client._exceptions import CursorExpired, FeedError
from push_to_poll_client._failure_policy import ATTEMPTS_KEY as ATTEMPTS
from push_to_poll_client._fetching import Fetcher, Gaps
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._options import INCEPTION, LATEST, OnCursorExpired, Resync, ResyncFunction
from push_to_poll_client._overlap import OverlapStart
from push_to_poll_client._processor import Dedupe
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import Session
from push_to_poll_client._retry import Postponed, Retry, StopSignal
from push_to_poll_client._status import ConsumerStats, PollResult, Resynced
from push_to_poll_client._types import Cursor, CycleDetector, FetchRequest, Message, Page, Record, SavedCursor
from push_to_poll_client._validation import describe, quoted
from push_to_poll_client._work_queue import WorkItem

__all__ = [
    "MOVED_STATE",
    "Position",
    "Replay",
    "saved_before",
]


logger = logging.getLogger("push_to_poll_client")

STARTED_STATE = {"started": "yes"}
"""What a session's state says of a name that was told where to begin: it is not told again."""

MOVED_STATE: Mapping[str, str | None] = {**STARTED_STATE, ATTEMPTS: None}
"""What becomes of it when a name goes on elsewhere: what failed is not waited for, it may never come again."""


def saved_before(history: Sequence[SavedCursor], latest: float) -> SavedCursor | None:
    """The newest cursor that was saved at this time of day or before; `None`: none that is kept was."""
    return next((saved for saved in reversed(history) if saved.at <= latest), None)


class Position:
    """The position of one session.

    Args:
        session: Keeps it.
        fetches: Asks for the feed's end.
        progress: Knows of failing messages, which are not waited for elsewhere.
        behind: Knows where walks with an overlap start.
        tally: Told of resyncs.
        hooks: Told of resyncs.
        start: Where a new name begins, as `Resync.to`.
        on_cursor_expired: What to do then.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        session: Session,
        fetches: Fetcher,
        progress: Progress,
        behind: OverlapStart,
        tally: ConsumerStats,
        hooks: Hooks,
        *,
        start: Cursor,
        on_cursor_expired: OnCursorExpired,
    ) -> None:
        self._session = session
        self._fetcher = fetches
        self._progress = progress
        self._overlap_start = behind
        self._stats = tally
        self._hooks = hooks
        self._start = start
        self._on_cursor_expired = on_cursor_expired

    async def ensure_started(self) -> None:
        """Begin where a new name is to begin; does nothing for one that has begun.

        Raises:
            FeedError: The feed's end is not to be had.
            StoreError: It could not be kept.
        """
        state = dict(self._overlap_start.initial_state())
        if not self._has_started and self._start != INCEPTION:
            await self._session.reset(await self._resolve(self._start), forget=False, state=state | STARTED_STATE)
        elif state:
            await self._session.commit(cursor=None, records=[], state=state | STARTED_STATE)

    async def mark_started(self) -> None:
        """A poll has ended: the name has begun, also if there was nothing to be kept of it.

        Raises:
            StoreError: It could not be kept.
        """
        if not self._has_started:
            await self._session.commit(cursor=None, records=[], state=STARTED_STATE)

    @property
    def _has_started(self) -> bool:
        session = self._session
        return session.cursor is not None or bool(session.size or session.dead or session.state)

    async def rewind(self, to: Cursor | None, *, ago: float | None, forget: bool) -> None:
        """The user says where to go on; see `Consumer.rewind`.

        Raises:
            ValueError: No cursor is kept that is so old.
            FeedError: As for `ensure_started`.
            StoreError: As for `ensure_started`.
        """
        if to == LATEST:
            await self._fetcher.wait_until_allowed()
        cursor = self._saved_before(ago) if to is None else await self._resolve(to)
        await self._reset(cursor, forget=forget)
        self.report_resync("the user said so", cursor, forget=forget)

    async def cursor_expired(self, error: CursorExpired) -> None:
        """The feed no longer knows the saved cursor: do what the user said.

        Raises:
            CursorExpired: To stop.
            FeedError: As for `ensure_started`.
            StoreError: As for `ensure_started`.
        """
        resync = await self._resync_for(error)
        cursor = await self._resolve(resync.to)
        await self._reset(cursor, forget=resync.forget)
        self.report_resync(f"the cursor expired: {describe(error)}", cursor, forget=resync.forget)

    async def _resync_for(self, error: CursorExpired) -> Resync:
        policy = self._on_cursor_expired
        said = await self._call_policy(policy, error) if callable(policy) else policy
        if not isinstance(said, Resync):
            raise error
        return said

    async def _call_policy(self, function: ResyncFunction, error: CursorExpired) -> Resync | None:
        try:
            said = function(error)
            resync = await said if inspect.isawaitable(said) else said
            self._check_resync(resync)
        except CursorExpired:
            raise
        except Exception as broken:
            text = f"{error}; on_cursor_expired failed: {describe(broken)}"
            raise CursorExpired(text, start=error.start) from broken
        return resync

    def _check_resync(self, said: object) -> None:
        if said is not None and not isinstance(said, Resync):
            raise TypeError(f"it must return a Resync, or None to stop, not {said!r}")
        if said is not None and said.to == LATEST:
            self._fetcher.check_latest()

    def report_resync(self, why: str, cursor: Cursor | None, *, forget: bool) -> None:
        """Tell everybody that it goes on from another place."""
        event = Resynced(why, cursor, forget)
        place = "the inception" if cursor is None else f"cursor {quoted(cursor)}"
        again = "what comes again is processed again" if forget else "what was processed is not processed again"
        logger.warning("goes on from %s, and %s: %s", place, again, why)
        self._stats.resynced(event)
        self._hooks.resynced(event)

    async def _resolve(self, to: Cursor) -> Cursor | None:
        if to == LATEST:
            return await self._fetcher.latest()
        return None if to == INCEPTION else to

    def _saved_before(self, ago: float | None) -> Cursor | None:
        assert ago is not None  # where there is no place  # noqa: S101
        now, history = self._progress.time_of_day.now(), self._session.history
        saved = saved_before(history, now - ago)
        if saved is None:
            raise ValueError(
                f"no cursor is kept that was saved {ago} s ago; the oldest is {now - history[0].at:.0f} s old"
            )
        return saved.cursor

    async def _reset(self, cursor: Cursor | None, *, forget: bool) -> None:
        await self._session.reset(cursor, forget=forget, state=MOVED_STATE)
        self._progress.attempts.forget()
        self._stats.failing.clear()

    # Overlap

    def overlap_expired(self, start: Cursor | None) -> None:
        """The feed no longer knows where a walk was to start: it starts at the saved cursor."""
        cursor = self._overlap_start.replace_expired_start(start)
        self.report_resync("the cursor that an overlap began with expired", cursor, forget=False)


class Replay:
    """Replays ranges of one session's feed. The cursor stays where it is; records are made anew.

    Args:
        fetches: Asks the feed.
        intake: Knows what messages are known by.
        trials: Settles the messages, one after the other.
        progress: Commits the records.
        gaps: Told what is missing before a page.
    """

    def __init__(self, fetches: Fetcher, intake: Dedupe, trials: Retry, progress: Progress, gaps: Gaps) -> None:
        self._fetcher = fetches
        self._dedupe = intake
        self._retry = trials
        self._progress = progress
        self._gaps = gaps

    async def run(self, start: Cursor | None, end: Cursor | None) -> PollResult:
        """Replay what comes after `start`, up to the message or page of which `end` is the cursor.

        Args:
            start: Where to begin; `None` is the inception.
            end: Where to end; `None`: at the end of the feed.

        Returns:
            What was done; `caught_up` says that the end of the feed was reached, and `end` not seen.

        Raises:
            FeedError: A fetch failed, or the feed goes in circles. What was replayed is recorded.
            ProcessError: A message failed for good; likewise.
            StoreError: The store failed.
        """
        messages, pages, position, circle = 0, 0, start, CycleDetector()
        ends = end is not None and end == start
        while not ends:
            page = await self._fetch(position)
            some, ends = _messages_up_to(page, end)
            await self._work_off(some)
            messages, pages = messages + len(some), pages + 1
            if not ends and page.next in {None, position}:
                return PollResult(messages, 0, pages, caught_up=True, closed=page.closed)
            position = page.next
            if position is not None and not ends and circle.repeats_at(position):
                raise FeedError("the pages of the feed lead in a circle; the replay ends there")
        return PollResult(messages, 0, pages, caught_up=False)

    async def _fetch(self, position: Cursor | None) -> Page:
        await self._fetcher.wait_until_allowed()
        page = await self._fetcher.fetch(FetchRequest(position))
        assert page is not None  # it was not to wait  # noqa: S101
        await self._gaps.report(position, page.gap)
        return page

    async def _work_off(self, messages: Sequence[Message]) -> None:
        (keys, odd), now = self._dedupe.dedupe_keys(messages), self._fetcher.now()
        new = repeat(True, len(keys))  # noqa: FBT003  # whatever was processed of it
        items = await self._dedupe.make_items(messages, keys, new, odd, in_flight=(), read_at=now, arrived=now)
        try:
            for item in items:
                await self._try_one(item)
        finally:  # what is settled is: the saved cursor is past it, so a dead letter would not come again
            await self._progress.flush()

    async def _try_one(self, item: WorkItem) -> None:
        while True:
            try:
                state = await self._retry.try_one(item.key, item.message, StopSignal(), error=item.error)
            except Postponed as postponed:
                await anyio.sleep_until(postponed.until)
            else:
                self._progress.pending.append(Record(item.key, state, item.fingerprint))
                return


def _messages_up_to(page: Page, end: Cursor | None) -> tuple[Sequence[Message], bool]:
    """The messages of the page up to the one with this cursor, and whether the range ends with them."""
    for number, message in enumerate(page.messages):
        if end is not None and message.cursor == end:
            return page.messages[: number + 1], True
    return page.messages, end is not None and end in {page.cursor, page.next}
