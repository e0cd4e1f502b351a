"""Frozen snapshots of a consumer for its operator: status, counters, results.

All times of day are seconds since the epoch.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Final

from push_to_poll_client._schedule import Mode
from push_to_poll_client._types import Cursor


def standstill_text(where: str) -> str:
    text = f"the feed announces more pages, but leads {where} without a new message"
    return f"{text}; later messages are not read"


@dataclass(frozen=True, slots=True)
class PollResult:
    """Result of a poll.

    Attributes:
        messages: Number of new messages that were settled: processed, dead-lettered or skipped.
        duplicates: Number of messages that were ignored because they were settled before.
        pages: Number of pages that were fetched.
        caught_up: True if the poll reached the end of the feed. False if `max_poll_time` was over, the server asks
            for a wait, the poll was told to stop, a failed message has to wait, or the feed does not advance.
        retry_in: Seconds until that failed message may be retried; `None` if none has to wait.
        closed: True if the feed has ended: nothing will ever follow.
        standstill: The reason why the feed does not advance: it announces more messages but does not return them.
            `None` if it advances.
        dead_lettered: Number of `messages` that failed for good and were kept as dead letters.
        skipped: Number of `messages` that failed for good and were skipped.
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
    """Return the last result with the counts of both added."""
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
    """The consumer continued from another place than the saved cursor.

    Attributes:
        why: The reason, in a sentence.
        cursor: The place where it continued; `None` is the inception.
        forget: True if a new dedupe epoch began: messages that come again are processed again.
        at: Time of the event, in seconds since the epoch.
    """

    why: str
    cursor: Cursor | None
    forget: bool
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages may be missing that the feed can no longer return.

    The consumer continues after the gap.

    Attributes:
        description: The feed's description, one line of at most 500 characters.
        at: Time at which the gap was found, in seconds since the epoch.
    """

    description: str
    at: float = field(default_factory=time.time)


# Failing messages that a status shows, and that are logged after a restart (G11).
MAX_SHOWN_FAILING: Final = 100


@dataclass(frozen=True, slots=True)
class FailingMessage:
    """A message that failed and waits for its retry.

    Attributes:
        id: The feed's id of the message.
        dedupe_key: Its dedupe key.
        attempts: Number of attempts so far.
        error: The last error, on one line. After a restart only its first 200 characters.
        retry_at: Time from which it may be retried, in seconds since the epoch.
        since: Time of its first failure, in seconds since the epoch.
    """

    id: str
    dedupe_key: str
    attempts: int
    error: str
    retry_at: float
    since: float


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """Status of one push channel.

    Attributes:
        name: The listener's name.
        up: True if the channel is connected.
        since: Time since which `up` has its value, in seconds since the epoch. `None` if the listener is not
            running.
        last_error: The error of the last disconnection that had one. Kept after a reconnect. `None` if there was
            none.
        pushes: Number of pushes received.
        subscribed_until: Time until which the server has agreed to push, in seconds since the epoch. `math.inf`
            means: until the subscription is ended. `None` without a subscription.
    """

    name: str
    up: bool = False
    since: float | None = None
    last_error: str | None = None
    pushes: int = 0
    subscribed_until: float | None = None


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts since the consumer was created.

    Attributes:
        polls: Finished polls, including failed ones.
        failed_polls: Failed polls.
        pages: Pages fetched.
        messages: New messages that were settled and recorded.
        duplicates: Messages that were ignored because they were settled before.
        retries: Attempts to process a message after the first one.
        dead_lettered: Messages that failed and were kept as dead letters.
        skipped: Messages that failed and were skipped.
        late: New messages found by an `overlap` before a known message on the same page. A lower bound; but a
            failing message counts each time it is read.
        resyncs: Number of times the consumer continued from another place than the saved cursor.
        gaps: Number of times the feed reported that messages may be missing.
        wakes: Wakes from all sources.
        coalesced: Wakes that joined a wake that was already pending.
        dropped: Wakes that were dropped because of their hint.
        forwarded: Wakes that were sent to the owner of the name while this consumer stood by.
        missed_pushes: Timer polls that found messages although no push arrived and a channel was up.
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
    forwarded: int = 0
    missed_pushes: int = 0


@dataclass(frozen=True, slots=True)
class SavedProgress:
    """Saved progress of a session, kept for the status after the session closes."""

    cursor: Cursor | None = None
    records: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """Snapshot of a consumer.

    `cursor`, `records` and `dead_letters` are read from the store when the name is claimed. While this object does
    not own the name, they show the end of its last claim, or `None`, 0 and 0 before the first one. Another process
    may have changed them since: `push-to-poll status` reads the store's file.

    Attributes:
        name: The consumer's name in the store.
        feed: The feed's identity, without secrets.
        mode: The current activity.
        cursor: The saved cursor; `None` is the inception.
        fencing_token: The fencing token of the current claim; `None` if this object does not own the name.
        owner: The replica that owns the name, while this object stands by, such as "process 4711". `None` if this
            object does not stand by, or if the store does not tell.
        listeners: The push channels.
        last_poll: Time at which the last poll ended; `None` if there was no poll.
        last_progress: Time at which settled messages were last committed; `None` if none were.
        last_caught_up: Start of the last poll that reached the end of the feed; `None` if none did.
        last_error: The error of the last failed poll, on one line; `None` if none failed.
        losing_pushes: True if a push channel claims to be up but seems to lose pushes.
        dead_letters: Number of dead letters.
        records: Number of dedupe records.
        failing: Messages that failed and wait for their retry, at most 100: those that failed last. After a
            restart, a message appears here when a poll reaches it.
        failing_count: Number of messages that failed and wait for their retry, including those not in `failing`.
        last_resync: The last time it continued from another place of the feed; `None` if it never did.
        last_gap: The last time the feed reported that messages may be missing; `None` if it never did.
        standstill: The reason why the feed does not advance: it leads back to a place already read, returns page
            after page without a message, or returns no cursor that can be saved. `None` if there is none. Failed
            polls are in `last_error`, waiting messages in `failing`.
        counters: Counts since the consumer was created.
    """

    name: str
    feed: str
    mode: Mode
    cursor: Cursor | None = None
    fencing_token: int | None = None
    owner: str | None = None
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
        """True if this object owns the name in the store now."""
        return self.fencing_token is not None

    def lag(self, now: float) -> float | None:
        """Return the most seconds by which the consumer may be behind its feed.

        Args:
            now: The current time, in seconds since the epoch.

        Returns:
            The seconds since the last poll that reached the end of the feed began; `None` if none did.
        """
        return None if self.last_caught_up is None else max(0.0, now - self.last_caught_up)
