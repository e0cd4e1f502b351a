"""Choose where polls start: at first, after a move, and with `overlap`.

`Position` moves a session to another place of the feed. A move resets the saved cursor and begins a new dedupe
epoch if requested. It also forgets failing messages: they may never come again, and a poll would wait for them.

A walk reads the feed from its start to the feed's end. It may take several polls. Without `overlap` it starts at
the saved cursor.

Some feeds number a message before it becomes visible: a row gets its id when it is inserted, and can be read only
after its transaction commits. A poll may pass such a gap without seeing the message. With `overlap=S` the caller
promises that messages get their places in the order of the feed, and that each is visible at most S seconds later.

Rule: start at the newest saved cursor whose page arrived at least S seconds before the last complete walk began.

Why nothing is lost
-------------------
Let `began` be the time when the last complete walk began, and `at` the time when the page of a cursor arrived.

(1) The walk read all its pages after `began`. If it passed a message without seeing it, the message was not
    visible at `began`. So the message got its place after `began - S`.
(2) Places are given in the order of the feed. So a message that gets its place after `at` comes after the cursor.

Take a cursor with `at <= began - S`. By (1) a missed message got its place after `at`. By (2) it comes after the
cursor. The next walk starts at the newest cursor of this kind, so it reads every missed message. Everything before
that cursor is settled, by induction: the last walk started there or earlier.

`at` is the arrival of a page, since the page may have been requested much earlier (long polling). `began` is the
beginning of a walk, since its first pages may have been read long before its last (slow handlers).

A walk is complete if its messages are committed and it has read from that start to the feed's end, or at least
past the cursor that was saved when it began. The session's state keeps the time when the newest such walk began.
An older time only makes the next walk longer. After a quiet time the saved cursor is old enough, and walks start
there.

This requires correct times of day. A clock that is set back makes walks longer. A clock that is set forward
between two runs shortens the overlap by that jump. Where a cache or a replica lags, `overlap` must be longer by
its lag.

Pages that a walk reads again
-----------------------------
A walk with an overlap first reads pages that earlier walks have read. No cursor of this part is saved: the saved
cursor would go back, and the knowledge of the pages read would be lost. A walk has passed the saved cursor when it
meets an equal cursor, or at the feed's end. If only pages have cursors, it may never meet it, since pages that
begin elsewhere end elsewhere. If such a walk takes longer than a poll, and most of its last page was new, it
jumps: it continues at the saved cursor, and is not complete.
"""

import hashlib
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from push_to_poll_client._exceptions import CursorExpired
from push_to_poll_client._fetching import Fetcher
from push_to_poll_client._hooks import place_of
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import INCEPTION, LATEST, Resync, ResyncFunction, SessionPart, check_latest
from push_to_poll_client._poll_state import Place, PollWalk
from push_to_poll_client._progress import ATTEMPTS_KEY, Progress, unreadable_state
from push_to_poll_client._status import Gap, ResyncEvent
from push_to_poll_client._types import Cursor, SavedCursor
from push_to_poll_client._validation import describe, one_line, quoted

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

LAST_WALK_KEY: Final = "looked"
"""State key: start of the last complete walk. The value is in seconds since the epoch."""

FULL_HISTORY: Final = 257
"""Length of a full history: 256 older cursors and the saved one. Still older cursors are dropped."""

STARTED_STATE = {"started": "yes"}
"""State of a name that has started. `start=` does not apply to it any more."""

RESYNC_KEY = "resync"
"""State key: a resync to "latest" that the server does not allow yet (G3). Its value is `FORGET` or `KEEP`."""

FORGET, KEEP = "forget", "keep"  # with `FORGET` it begins a new dedupe epoch

MOVED_STATE: Mapping[str, str | None] = {**STARTED_STATE, ATTEMPTS_KEY: None, RESYNC_KEY: None}
"""State after a move. Failing messages may never come again, so their attempts are deleted."""


def saved_before(history: Sequence[SavedCursor], latest: float) -> SavedCursor | None:
    """Return the newest cursor whose page arrived by `latest`; None if the history has none."""
    return next((saved for saved in reversed(history) if saved.read_at <= latest), None)


GAP_KEY: Final = "gap"


class _StoredGap(msgspec.Struct, frozen=True):
    """The last gap in the session's state. `push-to-poll status` reads `what` and `at`."""

    what: str
    at: float
    # Digest of the page's request cursor and the whole description. A page that is fetched again, also by another
    # session, has the same digest.
    place: str


@dataclass(kw_only=True, eq=False, repr=False)
class Position(SessionPart):
    fetcher: Fetcher
    progress: Progress

    def __post_init__(self) -> None:
        try:
            self._last_walk_began = float(self.session.state.get(LAST_WALK_KEY, "-inf"))
        except ValueError as error:
            raise unreadable_state("the time of the last overlap", quoted(error)) from error
        if self._last_walk_began > self.progress.time_of_day.now():  # the clock was set back: start at the oldest
            self._last_walk_began = -math.inf
        self._oldest_start: SavedCursor | None = None  # walks start here or later: older cursors have expired
        self._warned = False

    async def ensure_started(self) -> None:
        """Start a new name at `start=`. Do a resync that had to wait for the server."""
        if (pending := self.session.state.get(RESYNC_KEY)) is not None:
            await self._resync("the cursor expired", Resync(LATEST, forget=pending == FORGET))
        state = dict(self._initial_state())
        if not self._has_started and self.options.start != INCEPTION:
            await self.session.reset(
                await self._resolve(self.options.start), forget=False, state=state | STARTED_STATE
            )
        elif state:
            await self.session.commit(cursor=None, records=[], state=state | STARTED_STATE)

    async def mark_started(self) -> None:
        """Record that the name has started, even without a cursor to save."""
        if not self._has_started:
            await self.session.commit(cursor=None, records=[], state=STARTED_STATE)

    @property
    def place(self) -> str:
        """Place where the next poll starts, for the log."""
        if self._has_started or self.options.start == INCEPTION:
            return place_of(self.session.cursor)
        return "the end" if self.options.start == LATEST else place_of(self.options.start)

    @property
    def _has_started(self) -> bool:
        session = self.session
        return session.cursor is not None or bool(
            session.record_count or session.dead_letter_count or session.state
        )

    async def rewind(self, to: Cursor | None, *, ago: float | None, forget: bool) -> None:
        if to == LATEST:
            await self.fetcher.wait_until_allowed()
        cursor = self._saved_before(ago) if to is None else await self._resolve(to)
        await self._move("rewind() was called", cursor, forget=forget)

    def _saved_before(self, ago: float | None) -> Cursor | None:
        assert ago is not None  # rewind() takes to= or ago=  # noqa: S101
        now, history = self.progress.time_of_day.now(), self.session.history
        saved = saved_before(history, now - ago)
        if saved is None:
            oldest = math.floor(now - history[0].read_at)  # a rounded-up value would be rejected too
            raise ValueError(f"ago= must be at most {oldest}, the age of the oldest saved cursor, got {ago}")
        return saved.cursor

    async def cursor_expired(self, error: CursorExpired) -> bool:
        """Apply `on_cursor_expired=`, or raise the error. Return False if the resync must wait."""
        policy = self.options.on_cursor_expired
        resync = await self._call_policy(policy, error) if callable(policy) else policy
        if not isinstance(resync, Resync):
            raise error
        why = f"the cursor expired: {describe(error)}"
        # "latest" needs a request, which the server does not allow yet (G3): the next poll does the resync.
        if resync.to == LATEST and not self.fetcher.is_allowed:
            pending = FORGET if resync.forget else KEEP
            await self.session.commit(cursor=None, records=[], state={RESYNC_KEY: pending})
            return False
        await self._resync(why, resync)
        return True

    async def _resync(self, why: str, resync: Resync) -> None:
        await self._move(why, await self._resolve(resync.to), forget=resync.forget)

    async def _call_policy(self, function: ResyncFunction, error: CursorExpired) -> Resync | None:
        try:
            result = function(error)
            resync = await result if inspect.isawaitable(result) else result
            if resync is not None and not isinstance(resync, Resync):
                raise TypeError(f"on_cursor_expired must return a Resync or None, got {resync!r}")  # noqa: TRY301
            if resync is not None and resync.to == LATEST:
                check_latest(self.fetcher.feed)
        except CursorExpired:
            raise
        except Exception as broken:
            text = f"{error}; on_cursor_expired failed: {describe(broken)}"
            raise CursorExpired(text, start=error.start) from broken
        return resync

    def overlap_start_expired(self) -> None:
        """Continue at the saved cursor after a walk's older start has expired."""
        self._oldest_start = self.session.history[-1]
        self._report_resync("the cursor at the start of the overlap expired", self.session.cursor, forget=False)

    async def _resolve(self, to: Cursor) -> Cursor | None:
        if to == LATEST:
            return await self.fetcher.latest()
        return None if to == INCEPTION else to

    async def _move(self, why: str, cursor: Cursor | None, *, forget: bool) -> None:
        await self.session.reset(cursor, forget=forget, state=MOVED_STATE)
        self.progress.attempts.forget()
        self.stats.failing.clear()
        self._report_resync(why, cursor, forget=forget)

    def _report_resync(self, why: str, cursor: Cursor | None, *, forget: bool) -> None:
        event = ResyncEvent(why, cursor, forget)
        again = "repeated messages are processed again" if forget else "processed messages are not processed again"
        logger.warning("continuing from %s, %s: %s", place_of(cursor), again, why)
        self.stats.resynced(event)

    # Walks

    def _initial_state(self) -> Mapping[str, str | None]:
        """Return the changes of the session's state to commit before the first walk."""
        known = LAST_WALK_KEY in self.session.state
        if not self.options.overlap:
            # An overlap that is set again later must not start from this time: it is too old then.
            return {LAST_WALK_KEY: None} if known else {}
        if known:
            return {}
        self._last_walk_began = min(self.session.history[-1].read_at, self.progress.time_of_day.now())
        return {LAST_WALK_KEY: repr(self._last_walk_began)}

    def begin_walk(self) -> PollWalk:
        start, saved, now = self._start(), self.session.cursor, self.clock()
        place = Place.PAST if start == saved else Place.BEFORE
        return PollWalk(start, saved, began=now, position=start, place=place, passed_at=now)

    async def leave(self, walk: PollWalk, *, at_end: bool) -> PollWalk | None:
        """Return the walk that the next poll continues; None for a new walk. Call it after the commit."""
        # Record a complete walk even if it continues, so the next process or cron job repeats less.
        if walk.place is Place.PAST and self.options.overlap:
            before, self._last_walk_began = self._start(), self.progress.time_of_day.of(walk.began)
            if self._start() != before:
                state = {LAST_WALK_KEY: repr(self._last_walk_began)}
                await self.session.commit(cursor=None, records=[], state=state)
            # A walk that never reaches the feed's end must end too: only a new walk reads the overlap again.
            if self._is_long_enough(walk):
                return None
        if at_end:
            return None
        if walk.place is Place.BEFORE and walk.mostly_new:
            walk.place, walk.position = Place.JUMPED, self.session.cursor
        return walk

    def _is_long_enough(self, walk: PollWalk) -> bool:
        # If the saved cursor has not moved, a new walk would begin at the same place, and never get further.
        # Some feeds have their only cursor at the end.
        moved = walk.saved != self.session.cursor
        return moved and self.clock() - walk.passed_at >= max(self.options.max_poll_time, self.options.overlap)

    def _start(self) -> Cursor | None:
        """Return the cursor where the next walk starts; the oldest in the history if all are too new."""
        history = self.session.history
        if not self.options.overlap:
            return history[-1].cursor
        latest = self._last_walk_began - self.options.overlap
        known = history[history.index(self._oldest_start) :] if self._oldest_start in history else history
        start = saved_before(known, latest)
        too_old = start is None and len(known) >= FULL_HISTORY and known[0].cursor is not None
        if too_old and not self._warned:
            self._warned = True
            logger.warning(
                "overlap=%g s is longer than the history of saved cursors (%.0f s): messages that become visible "
                "later than that are missed",
                self.options.overlap,
                self.progress.time_of_day.now() - known[0].read_at,
            )
        return (start or known[0]).cursor

    # Gaps

    async def report_gap(self, cursor: Cursor | None, description: str) -> None:
        """Report that messages after `cursor` may be missing, unless this gap is already reported."""
        place = hashlib.blake2b(repr((cursor, description)).encode(), digest_size=16).hexdigest()
        if place in self.session.state.get(GAP_KEY, ""):
            return
        gap = Gap(one_line(description))
        logger.warning("messages may be missing, the feed can no longer return them: %s", gap.description)
        self.stats.gap(gap)
        await self.progress.flush()
        stored = msgspec.json.encode(_StoredGap(gap.description, gap.at, place)).decode()
        await self.session.commit(cursor=None, records=[], state={GAP_KEY: stored})
