"""Show a consumer to its operator: frozen snapshots, made from `ConsumerStats`.

Times of day are seconds since the epoch.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Final

from push_to_poll_client._schedule import Mode
from push_to_poll_client._types import Cursor


def standstill_text(where: str) -> str:
    """Say that a feed stands still, and where it leads."""
    text = f"the feed says that there is more, and leads {where} without anything new"
    return f"{text}: what comes after it is not read"


@dataclass(frozen=True, slots=True)
class PollResult:
    """What a poll did.

    Attributes:
        messages: New messages that it settled: processed, dead-lettered or skipped.
        duplicates: Messages that it passed over because they were settled before.
        pages: Pages that it fetched.
        caught_up: Whether it reached the end of the feed. If not: `max_poll_time` was over, the server asks to be
            left alone, the poll was told to stop, a message that failed has to wait, or the feed stands still.
        retry_in: Seconds after which that message may be tried again; `None` if none has to wait.
        closed: It caught up with a feed that has ended: nothing will ever follow.
        standstill: Why the feed stands still: it says that there is more, and does not give it. `None` if it does
            not stand still.
        dead_lettered: How many of `messages` failed for good and were kept as dead letters.
        skipped: How many of `messages` failed for good and were skipped.
    """

    messages: int
    duplicates: int
    pages: int
    caught_up: bool
    retry_in: float | None = None
    closed: bool = False
    standstill: str | None = None
    dead_lettered: int = 0
    skipped: int = 0


NOTHING_DONE = PollResult(0, 0, 0, caught_up=False)


def add_results(before: PollResult, last: PollResult) -> PollResult:
    """Return the result of the last poll with the counts of all polls."""
    return replace(
        last,
        messages=before.messages + last.messages,
        duplicates=before.duplicates + last.duplicates,
        pages=before.pages + last.pages,
        dead_lettered=before.dead_lettered + last.dead_lettered,
        skipped=before.skipped + last.skipped,
    )


@dataclass(frozen=True, slots=True)
class ResyncEvent:
    """A consumer went on from another place of its feed than the saved cursor.

    Attributes:
        why: In a sentence.
        cursor: Where it went on; `None` is the inception.
        forget: With a new dedupe epoch: what comes again is processed again.
        at: When, in seconds since the epoch.
    """

    why: str
    cursor: Cursor | None
    forget: bool
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages may be missing that the feed can no longer give; the consumer goes on behind them.

    Attributes:
        description: In the feed's words, on one line of 500 characters at most.
        at: When that was seen, in seconds since the epoch.
    """

    description: str
    at: float = field(default_factory=time.time)


MAX_SHOWN_FAILING: Final = 100
"""Failing messages that a status shows, and that are logged after a restart (G11)."""


@dataclass(frozen=True, slots=True)
class FailingMessage:
    """A message that failed and waits to be tried again.

    Attributes:
        id: What the feed calls it.
        dedupe_key: Its dedupe key.
        attempts: How often it was tried.
        error: The last error, in one line. Of a message that failed before a restart, its first 200 characters.
        retry_at: When it may be tried again, in seconds since the epoch.
        since: When it failed first, in seconds since the epoch.
    """

    id: str
    dedupe_key: str
    attempts: int
    error: str
    retry_at: float
    since: float


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """One push channel.

    Attributes:
        name: What the listener calls itself.
        up: It is connected.
        since: When that began; `None`: the listener does not run.
        last_error: Why it was down last, cleared by nothing; `None`: it never was.
        pushes: Pushes that arrived by it.
        subscribed_until: Until when the server pushes, in seconds since the epoch; `math.inf`: until it is asked
            to stop; `None`: it was not asked to, or there is no need to.
    """

    name: str
    up: bool = False
    since: float | None = None
    last_error: str | None = None
    pushes: int = 0
    subscribed_until: float | None = None


@dataclass(frozen=True, slots=True)
class Counters:
    """Counted since the consumer was made.

    Attributes:
        polls: Polls that ended, failed ones included.
        failed_polls: Those of them that failed.
        pages: Pages fetched.
        messages: New messages settled and recorded.
        duplicates: Messages passed over because they were settled before.
        retries: Attempts to process a message after its first.
        dead_lettered: Messages that failed and were kept as dead letters.
        skipped: Messages that failed and were skipped.
        late: Messages found by reading an overlap again, before a known message on the same page. A lower bound,
            except that a message that fails is counted each time it is read.
        resyncs: How often it went on from another place of the feed than the saved cursor.
        gaps: How often the feed said that messages may be missing.
        wakes: Wakes, whoever they came from.
        coalesced: Wakes that joined one that was pending already.
        dropped: Wakes that their own hint made needless.
        missed_pushes: Timer polls that found what no push had announced while a channel was up.
    """

    polls: int = 0
    failed_polls: int = 0
    pages: int = 0
    messages: int = 0
    duplicates: int = 0
    retries: int = 0
    dead_lettered: int = 0
    skipped: int = 0
    late: int = 0
    resyncs: int = 0
    gaps: int = 0
    wakes: int = 0
    coalesced: int = 0
    dropped: int = 0
    missed_pushes: int = 0


@dataclass(frozen=True, slots=True)
class SavedProgress:
    """Saved progress of a session, kept for the status when the session closes.

    Attributes:
        cursor: The saved cursor; `None` is the inception.
        records: Dedupe records.
        dead_letters: Messages given up on and kept.
    """

    cursor: Cursor | None = None
    records: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """A consumer at one moment.

    `cursor`, `records` and `dead_letters` are read from the store when the name is claimed. While the name is not
    claimed they are as of the end of the last claim, and `None`, 0 and 0 before the first one. Another process may
    have changed them since; `push-to-poll status` reads the file.

    Attributes:
        name: The consumer's name in the store.
        feed: What the feed calls itself, without secrets.
        mode: What it is doing.
        cursor: The saved cursor; `None` is the inception.
        fencing_token: Its fencing token; `None` if it does not own its name now.
        listeners: Its push channels.
        last_poll: When the last poll ended; `None`: none has.
        last_progress: When settled messages were committed last; `None`: none were.
        last_caught_up: When a poll that reached the end of the feed started last; `None`: none did.
        last_error: Why the last failed poll failed; `None`: none did.
        losing_pushes: A push channel that claims to be up seems to lose pushes.
        dead_letters: Messages given up on and kept.
        records: Dedupe records.
        failing: Messages that failed and wait to be tried again; if there are more than 100, those that failed
            last. After a restart, a message is shown when a poll meets it.
        failing_count: Number of messages that failed and wait to be tried again, shown or not.
        last_resync: When it went on from another place of the feed last, and why; `None`: it did not.
        last_gap: When the feed said last that messages may be missing, and which; `None`: it did not.
        standstill: What keeps the consumer from the end of the feed, apart from failed polls (`last_error`) and
            messages that wait (`failing`): the feed leads back to where it was, gives page after page without a
            message, or no cursor that may be saved. `None` if nothing does.
        counters: Counted since the consumer was made.
    """

    name: str
    feed: str
    mode: Mode
    cursor: Cursor | None = None
    fencing_token: int | None = None
    listeners: tuple[ListenerStatus, ...] = ()
    last_poll: float | None = None
    last_progress: float | None = None
    last_caught_up: float | None = None
    last_error: str | None = None
    losing_pushes: bool = False
    dead_letters: int = 0
    records: int = 0
    failing: tuple[FailingMessage, ...] = ()
    failing_count: int = 0
    last_resync: ResyncEvent | None = None
    last_gap: Gap | None = None
    standstill: str | None = None
    counters: Counters = field(default_factory=Counters)

    @property
    def is_owner(self) -> bool:
        """Whether it owns its name now."""
        return self.fencing_token is not None

    def lag(self, now: float) -> float | None:
        """Seconds by which the consumer may be behind its feed at most, at this time of day; `None`: unknown."""
        return None if self.last_caught_up is None else max(0.0, now - self.last_caught_up)
