"""WHERE FROM: where a name begins, where its polls start, and where it goes on when its cursor is good no more."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from push_to_poll_client._exceptions import CursorExpired
from push_to_poll_client._polling.behind import Behind
from push_to_poll_client._polling.fetches import Fetches
from push_to_poll_client._processing.attempts import NAME as ATTEMPTS
from push_to_poll_client._processing.hooks import Hooks
from push_to_poll_client._processing.progress import Progress
from push_to_poll_client._protocols import Session
from push_to_poll_client._status import Resynced, Tally
from push_to_poll_client._text import describe, quoted
from push_to_poll_client._types import Cursor, SavedCursor

__all__ = ["ELSEWHERE", "OnCursorExpired", "Position", "Resync", "check_cursor", "saved_before"]

logger = logging.getLogger("push_to_poll_client")

INCEPTION, LATEST = "inception", "latest"

STARTED = {"started": "yes"}
"""What a session's state says of a name that was told where to begin: it is not told again."""

ELSEWHERE: Mapping[str, str | None] = {**STARTED, ATTEMPTS: None}
"""What becomes of it when a name goes on elsewhere: what failed is not waited for, it may never come again."""


def saved_before(history: Sequence[SavedCursor], latest: float) -> SavedCursor | None:
    """The newest cursor that was saved at this time of day or before; `None`: none that is kept was."""
    return next((saved for saved in reversed(history) if saved.at <= latest), None)


def check_cursor(name: str, value: object, *, optional: bool = False) -> None:
    """Check an argument that is a place in the feed.

    Args:
        name: The argument's.
        value: What was given.
        optional: Whether it may be `None`.

    Raises:
        TypeError: It is of the wrong kind.
    """
    if not isinstance(value, str) and not (optional and value is None):
        raise TypeError(f"{name} must be 'inception', 'latest' or a cursor, not {value!r}")


@dataclass(frozen=True, slots=True)
class Resync:
    """Where to go on, and whether what comes again is processed again.

    Attributes:
        to: A cursor, or "inception": the beginning of the feed, or "latest": its end.
        forget: True for a feed that was reset, and may use ids again: a new dedupe epoch begins. False for one
            that repeats what it has: dedupe drops what was processed.

    Raises:
        TypeError: One of them is of the wrong kind.
    """

    to: Cursor
    forget: bool

    def __post_init__(self) -> None:
        check_cursor("to", self.to)
        if not isinstance(self.forget, bool):
            raise TypeError(f"forget must be True or False, not {self.forget!r}")


Decide: TypeAlias = Callable[[CursorExpired], Resync | Awaitable[Resync | None] | None]

OnCursorExpired: TypeAlias = Literal["stop"] | Resync | Decide
"""What to do when the feed no longer knows the cursor; a function, `async` or not, returns `None` to stop."""


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
        fetches: Fetches,
        progress: Progress,
        behind: Behind,
        tally: Tally,
        hooks: Hooks,
        *,
        start: Cursor,
        on_cursor_expired: OnCursorExpired,
    ) -> None:
        self._session = session
        self._fetches = fetches
        self._progress = progress
        self._behind = behind
        self._tally = tally
        self._hooks = hooks
        self._start = start
        self._on_cursor_expired = on_cursor_expired

    async def begin(self) -> None:
        """Begin where a new name is to begin; does nothing for one that has begun.

        Raises:
            FeedError: The feed's end is not to be had.
            StoreError: It could not be kept.
        """
        state = dict(self._behind.first_state())
        if not self._begun and self._start != INCEPTION:
            await self._session.reset(await self._at(self._start), forget=False, state=state | STARTED)
        elif state:
            await self._session.commit(cursor=None, records=[], state=state | STARTED)

    async def begun(self) -> None:
        """A poll has ended: the name has begun, also if there was nothing to be kept of it.

        Raises:
            StoreError: It could not be kept.
        """
        if not self._begun:
            await self._session.commit(cursor=None, records=[], state=STARTED)

    @property
    def _begun(self) -> bool:
        session = self._session
        return session.cursor is not None or bool(session.size or session.dead or session.state)

    async def rewind(self, to: Cursor | None, *, ago: float | None, forget: bool) -> None:
        """The user says where to go on; see `Consumer.rewind`.

        Raises:
            ValueError: No cursor is kept that is so old.
            FeedError: As for `begin`.
            StoreError: As for `begin`.
        """
        if to == LATEST:
            await self._fetches.allowed()
        cursor = self._saved_before(ago) if to is None else await self._at(to)
        await self._move(cursor, forget=forget)
        self.resynced("the user said so", cursor, forget=forget)

    async def expired(self, error: CursorExpired) -> None:
        """The feed no longer knows the saved cursor: do what the user said.

        Raises:
            CursorExpired: To stop.
            FeedError: As for `begin`.
            StoreError: As for `begin`.
        """
        resync = await self._said(error)
        cursor = await self._at(resync.to)
        await self._move(cursor, forget=resync.forget)
        self.resynced(f"the cursor expired: {describe(error)}", cursor, forget=resync.forget)

    async def _said(self, error: CursorExpired) -> Resync:
        policy = self._on_cursor_expired
        said = await self._asked(policy, error) if callable(policy) else policy
        if not isinstance(said, Resync):
            raise error
        return said

    async def _asked(self, function: Decide, error: CursorExpired) -> Resync | None:
        try:
            said = function(error)
            resync = await said if inspect.isawaitable(said) else said
            self._check(resync)
        except CursorExpired:
            raise
        except Exception as broken:
            text = f"{error}; on_cursor_expired failed: {describe(broken)}"
            raise CursorExpired(text, start=error.start) from broken
        return resync

    def _check(self, said: object) -> None:
        if said is not None and not isinstance(said, Resync):
            raise TypeError(f"it must return a Resync, or None to stop, not {said!r}")
        if said is not None and said.to == LATEST:
            self._fetches.check_latest()

    def resynced(self, why: str, cursor: Cursor | None, *, forget: bool) -> None:
        """Tell everybody that it goes on from another place."""
        event = Resynced(why, cursor, forget)
        place = "the inception" if cursor is None else f"cursor {quoted(cursor)}"
        again = "what comes again is processed again" if forget else "what was processed is not processed again"
        logger.warning("goes on from %s, and %s: %s", place, again, why)
        self._tally.resynced(event)
        self._hooks.resynced(event)

    async def _at(self, to: Cursor) -> Cursor | None:
        if to == LATEST:
            return await self._fetches.latest()
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

    async def _move(self, cursor: Cursor | None, *, forget: bool) -> None:
        await self._session.reset(cursor, forget=forget, state=ELSEWHERE)
        self._progress.attempts.forget()
        self._tally.failing.clear()

    # Overlap

    def overlap_expired(self, start: Cursor | None) -> None:
        """The feed no longer knows where a walk was to start: it starts at the saved cursor."""
        cursor = self._behind.expired(start)
        self.resynced("the cursor that an overlap began with expired", cursor, forget=False)
