"""WHAT IS MISSING: messages that a feed says it can no longer give. Told and kept: nothing brings them back."""

import hashlib
import logging
from typing import Final

import msgspec

from push_to_poll_client._processing.hooks import Hooks
from push_to_poll_client._processing.progress import Progress
from push_to_poll_client._protocols import Session
from push_to_poll_client._status import Gap, Tally
from push_to_poll_client._text import one_line
from push_to_poll_client._types import Cursor

__all__ = ["Gaps"]

logger = logging.getLogger("push_to_poll_client")

NAME: Final = "gap"
"""What the last one is called in a session's state."""


class _Kept(msgspec.Struct, frozen=True):
    """The last one, as the state keeps it. `push-to-poll status` reads `what` and `at`.

    Attributes:
        what: In the feed's words.
        at: When it was seen, in seconds since the epoch.
        place: Stands for where its page was asked for and for all of its words: a page that is fetched again, also
            by another session, has the gap that it had.
    """

    what: str
    at: float
    place: str


class Gaps:
    """The gaps of one session.

    Args:
        session: Keeps the last one.
        progress: Committed before it, since there is one commit at a time.
        tally: Told of each.
        hooks: Likewise.
    """

    def __init__(self, session: Session, progress: Progress, tally: Tally, hooks: Hooks) -> None:
        self._session = session
        self._progress = progress
        self._tally = tally
        self._hooks = hooks

    async def before(self, cursor: Cursor | None, what: str) -> None:
        """Something may be missing before a page.

        Args:
            cursor: Where the page was asked for.
            what: What may be missing, in the feed's words; empty: nothing is.

        Raises:
            StoreError: It could not be kept.
        """
        if not what or (place := _place(cursor, what)) in self._session.state.get(NAME, ""):
            return
        gap = Gap(one_line(what))
        logger.warning("messages may be missing, which the feed can no longer give: %s", gap.what)
        self._tally.gap(gap)
        self._hooks.gap(gap)
        await self._progress.flush()
        kept = msgspec.json.encode(_Kept(gap.what, gap.at, place)).decode()
        await self._session.commit(cursor=None, records=[], state={NAME: kept})


def _place(cursor: Cursor | None, what: str) -> str:
    return hashlib.blake2b(repr((cursor, what)).encode(), digest_size=16).hexdigest()
