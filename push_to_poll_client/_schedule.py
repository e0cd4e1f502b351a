"""Decide when to poll, as a pure state machine.

It has no I/O, clock or random. Time is an argument, and the decision is the return value.

Reasons for a poll
------------------
Each reason holds from a certain time on. The reason with the earliest time is the cause of the next poll:

    START         no poll has ended yet: at once
    RETRY         the last poll failed: after its backoff
    CONTINUATION  the last poll stopped at `max_poll_time` with pages left: at once; or it stopped at a failed
                  message: when that message may be retried
    WAKE          `wake_delay` after the first wake, to gather more wakes
    REPOLL        a poll after a push found nothing: the push was faster than the data
    TIMER         no poll for the fallback interval, or for the shorter time that the feed asks for
    WAIT          no other reason holds, and no repoll is planned: a fetch that the server may hold (long poll)
    MANUAL        `poll_now()`, which reads `earliest` itself

Limits
------
No poll starts before the latest of these times, whatever its reason:

    tokens        burst + rate·T starts in any window of T seconds (G3). A poll that continues a poll stopped by
                  `max_poll_time` takes no token. A poll that returns to a waiting message takes one.
    not-before    the time that the server asked for (`Retry-After` and similar)
    backoff       after a failed poll, doubling
    resumption    the time at which a waiting message may be retried

Wakes
-----
A wake must be answered by a successful poll that started after it (G1). When a poll starts, it *covers* the
pending wakes: the flag is cleared before the fetch. A wake that arrives during the poll is pending anew, since the
answer may be older than that wake. If the poll succeeds, the covered wakes are done. If it fails or is abandoned,
they are pending again.

In this table, "pending" means pending wakes, and `-` means no change:

    state, event      wake          poll_started      succeeded         failed            abandoned
    idle              pending       running           -                 -                 -
    pending           coalesced     running, covered  -                 -                 -
    running           pending       - (G2)            idle, or pending  backoff, and the covered wakes
                                                      if woken since    are pending again
    backoff           pending       running, covered  -                 -                 -
    paused, standby   pending       by hand only      as running        as running        as running

Backoff
-------
A backoff doubles with each failure of a streak. One success ends the backoff, but not the streak. If the feed
answered without errors for at least as long as the last delay, the next failure begins a new streak. So a feed
that fails every other time is not polled at full speed, and a feed that fails once in a hundred pages is not
treated as if it were down.

Repolls
-------
If a poll after a push finds nothing, it is repeated soon, at most three times in a streak. Messages end the
streak. A timer poll also ends it, unless the feed asked for that poll. An empty timer poll that covers a push
begins a new streak. So one forged push costs four polls: its own and three repolls. In a flood of forged pushes,
the pushes together cause three repolls, and three more after each timer poll.

Lost pushes
-----------
A timer poll that finds messages shows that a channel loses pushes, if a channel claims to be up and no push is
pending or arriving. After two such polls without a working push in between, the degraded interval applies. A poll
that the feed asked for by `poll_within` does not count: the feed had messages that it could not show yet, and
their push may have come in time.
"""

import enum
import math

import msgspec

from push_to_poll_client._types import MAX_NOT_BEFORE

FIRST_BACKOFF = 1.0
"""Seconds after the first failure of a streak."""

MAX_BACKOFF = 60.0
"""Upper limit of the backoff, in seconds. A feed that stays down gets 1 to 2 polls a minute."""

SLOW_BACKOFF = 300.0
"""Seconds after a refusal, which needs a person to fix it. 12 to 24 polls an hour, as long as it lasts."""

REPOLL_DELAYS = (0.25, 1.0, 4.0)
"""Seconds from an empty poll to its repetition. Replicas lag by milliseconds to seconds; 3 polls in 5 s."""

EVIDENCE = 2
"""Timer polls in a row with unannounced messages that show lost pushes. After only one, a push may be late."""

MIN_HELD_SHARE = 0.5
"""An empty answer is early if it comes before this share of the requested wait: the server did not hold it."""

EARLY_ANSWERS = 3
"""Early empty answers in a row after which no long poll is sent. A poll of another cause allows it again."""


class Cause(enum.StrEnum):
    START = "start"
    RETRY = "retry"
    CONTINUATION = "continuation"
    WAKE = "wake"
    REPOLL = "repoll"
    TIMER = "timer"
    WAIT = "wait"
    MANUAL = "manual"


class PollOutcome(enum.StrEnum):
    CAUGHT_UP = "caught up"
    MORE = "more"
    STANDSTILL = "standstill"
    FAILED = "failed"
    REFUSED = "refused"
    ABANDONED = "abandoned"


class Mode(enum.StrEnum):
    """Activity of a consumer; `STOPPED` if it does not run."""

    IDLE = "idle"
    PENDING = "pending"
    POLLING = "polling"
    WAITING = "waiting"
    BACKOFF = "backoff"
    THROTTLED = "throttled"
    PAUSED = "paused"
    STANDBY = "standby"
    STOPPED = "stopped"


class WakeResult(enum.StrEnum):
    PENDING = "pending"
    COALESCED = "coalesced"
    DROPPED = "dropped"


class Decision(msgspec.Struct, frozen=True):
    """Start a poll at time `at`. A past time means now. Infinity means that another event must come first."""

    at: float
    cause: Cause


NEVER = Decision(math.inf, Cause.TIMER)

_TIME_ATTRIBUTES = (
    "_full_at",
    "server_not_before",
    "_ended",
    "_pending",
    "_started",
    "_covered",
    "_retry_at",
    "_resume_at",
    "_well_since",
    "_repoll_at",
)
"""Attributes of a schedule that are times on its clock."""


class Schedule:
    """Decide when to poll. Times are seconds on any monotonic clock; `Consumer` documents the arguments."""

    def __init__(
        self,
        *,
        fallback_interval: float | None,
        degraded_interval: float | None = None,
        rate: float | None = None,
        burst: int = 1,
        wake_delay: float = 0.0,
    ) -> None:
        self.paused = False  # True after `pause()`: only `poll_now()` polls, and wakes stay pending
        self.standby = False  # True while another replica owns the name: no poll starts, and wakes stay pending
        self.server_not_before = -math.inf  # no request before this time, not even for a further page
        self.missed_pushes = 0  # timer polls that found unannounced messages while a channel was up
        self.missed_in_a_row = 0  # such polls since the last push whose poll found messages
        self._fallback = fallback_interval
        self._degraded = degraded_interval
        self._spacing = 1.0 / rate if rate is not None else 0.0
        self._slack = self._spacing * (burst - 1)
        self._wake_delay = wake_delay

        self._channels: dict[str, bool] = {}  # True if up; a channel is down before its first connection
        self._full_at = -math.inf  # when the bucket is full again (GCRA's theoretical arrival time)
        self._ended: float | None = None  # end of the last poll; None means that a poll is due now
        self._shortening = 1.0  # factor of the interval, 0.9 to 1.0: its jitter
        self._poll_within: float | None = None  # seconds within which the feed asks for the next poll
        self._unfinished = False  # True if the last poll left pages or a failed message
        self._resume_at = -math.inf  # when that message may be retried
        self._free_start = False  # True after a poll that stopped at `max_poll_time`: the next one takes no token

        self._pending: float | None = None  # time of the first pending wake
        self._pending_push = False
        # Of the running poll, or of the last one.
        self._running = False
        self._cause = Cause.START
        self._started = 0.0
        self._wait = 0.0  # seconds for which the server may hold its answer
        self._covered: float | None = None  # time of the first wake that it covers
        self._covered_push = False
        self._pushed_meanwhile = False  # True if a push arrived since its start

        self._failing = False
        self._failures = 0
        self._backoff = 0.0
        self._retry_at = -math.inf
        self._well_since: float | None = None  # end of the first success after the last failure

        self._repoll_at = math.inf
        self._repolls = 0
        self._early_answers = 0

    # Events

    def wake(self, now: float, *, push: bool = False, known: bool = False) -> WakeResult:
        """Add a wake. Drop it if it is `known` and no poll runs and no wake is pending (G1)."""
        # `known` is True if its hint equals the saved cursor and no overlap is set.
        self._pushed_meanwhile |= push
        if known and not self._running and self._pending is None:
            return WakeResult.DROPPED
        self._pending_push |= push
        if self._pending is not None:
            return WakeResult.COALESCED
        self._pending = now
        return WakeResult.PENDING

    def set_channel(self, name: str, *, up: bool) -> None:
        self._channels[name] = up

    def begin(self) -> None:
        """Make a poll due now, as if none had ended yet."""
        self._ended = None

    def resume_now(self) -> None:
        """Do not wait for a message's retry. The next poll starts elsewhere, and takes a token."""
        self._resume_at, self._free_start = -math.inf, False

    def shift(self, by: float) -> None:
        """Continue with another clock, which is ahead by this many seconds."""
        for name in _TIME_ATTRIBUTES:
            time = getattr(self, name)
            setattr(self, name, None if time is None else time + by)

    def not_before(self, now: float, seconds: float, *, jitter: float) -> None:
        """Apply a request of the server to wait, such as `Retry-After`. A longer one stays in force."""
        # `jitter` from [0, 1) lengthens the wait by up to a tenth. So clients with the same request do not come
        # back together.
        asked = min(max(seconds, 0.0), MAX_NOT_BEFORE)
        self.server_not_before = max(self.server_not_before, now + asked * (1.0 + 0.1 * jitter))

    def poll_started(self, now: float, cause: Cause, *, wait: float = 0.0) -> None:
        """Start a poll, which covers the pending wakes. The server may hold its answer for `wait` seconds."""
        if self._running:
            raise AssertionError("two polls at a time (G2)")
        if not self._free_start:
            self._full_at = max(self._full_at, now) + self._spacing
        self._free_start = False
        self._running, self._cause, self._started, self._wait = True, cause, now, wait
        self._covered, self._covered_push = self._pending, self._pending_push
        self._pending, self._pending_push, self._pushed_meanwhile = None, False, False

    def poll_ended(
        self,
        now: float,
        outcome: PollOutcome,
        *,
        found: int = 0,  # number of new messages that were settled, without duplicates
        free: bool = False,  # with `MORE`: True if the next poll continues here and takes no token
        answered_at: float | None = None,  # with `FAILED`: arrival of its last page, None if there was none
        jitter: float = 0.0,  # from [0, 1), for the backoff, the repoll or the fallback interval
        resume_at: float | None = None,  # with `MORE`: when the failed message that stopped it may be retried
        poll_within: float | None = None,  # seconds within which the feed asks for the next poll
    ) -> None:
        """End the poll that was started."""
        self._running = False
        # Neither success nor failure: a wake cancelled a waiting fetch, or the caller was cancelled.
        if outcome is PollOutcome.ABANDONED:
            self._owe_again()
            return
        self._ended, self._shortening = now, 1.0 - 0.1 * jitter
        if outcome in (PollOutcome.FAILED, PollOutcome.REFUSED):
            self._owe_again()
            self._fail(now, outcome, jitter, well_until=self._started if answered_at is None else answered_at)
        else:
            self._unfinished = outcome is PollOutcome.MORE
            self._free_start = self._unfinished and free
            self._resume_at = -math.inf if resume_at is None else resume_at
            self._failing = False
            self._well_since = now if self._well_since is None else self._well_since
            self._learn(now, found, jitter)
            self._poll_within = None if poll_within is None else min(poll_within, MAX_NOT_BEFORE)

    # State

    def next_poll(self, now: float, *, can_wait: bool = False) -> Decision:
        """Return time and cause of the next poll, if nothing else happens."""
        # `can_wait` is True if the feed can hold its answer and no caller waits for a poll.
        if self._running or self.paused or self.standby:
            return NEVER
        wish = min(self._wishes(), key=lambda decision: decision.at)
        # While a push may be faster than its data, do not wait: a held request may miss the data.
        quiet = self._pending is None and self._repoll_at == math.inf
        if can_wait and self._may_wait and quiet and wish.at > max(now, self.earliest):
            wish = Decision(now, Cause.WAIT)
        return Decision(max(wish.at, self.earliest), wish.cause)

    @property
    def earliest(self) -> float:
        """Earliest time at which a poll may start, whatever its reason."""
        token = -math.inf if self._free_start else self._full_at - self._slack
        return max(token, self.server_not_before, self._resume_at, self._retry_at if self._failing else -math.inf)

    @property
    def interval(self) -> float | None:
        """Longest time without a poll, in seconds; `None` for no limit."""
        return self._poll_within if self._feed_wants_less else self._configured_interval

    @property
    def owes(self) -> bool:
        return self._pending is not None

    @property
    def degraded(self) -> bool:
        """True if a channel is down or loses pushes."""
        return bool(self._channels) and (self.losing_pushes or not all(self._channels.values()))

    @property
    def losing_pushes(self) -> bool:
        """True if a channel that is up seems to lose pushes."""
        return self.missed_in_a_row >= EVIDENCE

    def mode(self, now: float) -> Mode:
        states = (
            (self.standby, Mode.STANDBY),
            (self._running and self._cause is Cause.WAIT, Mode.WAITING),
            (self._running, Mode.POLLING),
            (self.paused, Mode.PAUSED),
            (self.server_not_before > now, Mode.THROTTLED),
            (self._failing or self._resume_at > now, Mode.BACKOFF),
            (self._pending is not None, Mode.PENDING),
        )
        return next((mode for holds, mode in states if holds), Mode.IDLE)

    # Decisions

    @property
    def _configured_interval(self) -> float | None:
        """Interval by the options, without `poll_within` of the feed."""
        if self._fallback is None or self._degraded is None or not self.degraded:
            return self._fallback
        return min(self._fallback, self._degraded)

    @property
    def _feed_wants_less(self) -> bool:
        """True if the feed asked for an earlier timer poll than configured."""
        configured = self._configured_interval
        return self._poll_within is not None and (configured is None or self._poll_within < configured)

    def _wishes(self) -> list[Decision]:
        """Return all reasons for a poll, the strongest first: of equal times the first one is the cause."""
        wishes = [Decision(self._repoll_at, Cause.REPOLL), Decision(self._due, Cause.TIMER)]
        if self._pending is not None:
            wishes.insert(0, Decision(self._pending + self._wake_delay, Cause.WAKE))
        if self._unfinished:
            wishes.insert(0, Decision(-math.inf, Cause.CONTINUATION))
        if self._ended is None:
            wishes.insert(0, Decision(-math.inf, Cause.START))
        if self._failing:
            wishes.insert(0, Decision(-math.inf, Cause.RETRY))
        return wishes

    @property
    def _due(self) -> float:
        """Time of the next timer poll."""
        if self._ended is None or self.interval is None:
            return math.inf
        return self._ended + self.interval * self._shortening

    @property
    def _may_wait(self) -> bool:
        return not any(self._channels.values()) and self._early_answers < EARLY_ANSWERS

    def _owe_again(self) -> None:
        """Make the covered wakes pending again."""
        if self._covered is not None:
            self._pending = self._covered
            self._pending_push |= self._covered_push

    def _fail(self, now: float, outcome: PollOutcome, jitter: float, *, well_until: float) -> None:
        well_since = self._started if self._well_since is None else self._well_since
        if well_until - well_since >= self._backoff:
            self._failures = 0
        self._failures += 1
        doubled = FIRST_BACKOFF * 2.0 ** min(self._failures - 1, 16)
        delay = SLOW_BACKOFF if outcome is PollOutcome.REFUSED else min(doubled, MAX_BACKOFF)
        self._backoff = delay * (0.5 + 0.5 * jitter)
        self._failing, self._retry_at, self._well_since = True, now + self._backoff, None

    def _learn(self, now: float, found: int, jitter: float) -> None:
        """Update repolls, evidence and early answers after a successful poll."""
        # An unfinished walk did not reach the long poll.
        held = not self._unfinished and now - self._started >= MIN_HELD_SHARE * self._wait
        early = self._cause is Cause.WAIT and not found and not held
        if found or self._cause is not Cause.CONTINUATION:  # a continuation belongs to the poll before
            self._early_answers = self._early_answers + 1 if early else 0
        self._weigh_evidence(found)
        # A poll that the feed asked for does not end repolls: the data of the push may come later.
        if found or (self._cause is Cause.TIMER and not self._feed_wants_less):
            self._repolls, self._repoll_at = 0, math.inf
        if found or not self._promised:
            return
        if self._repolls < len(REPOLL_DELAYS):
            self._repoll_at = now + REPOLL_DELAYS[self._repolls] * (1.0 + 0.1 * jitter)
            self._repolls += 1
        else:
            self._repoll_at = math.inf

    @property
    def _promised(self) -> bool:
        """True if a push announced messages to the poll that ended."""
        return self._covered_push or self._cause is Cause.REPOLL

    def _weigh_evidence(self, found: int) -> None:
        """Update the evidence of lost pushes."""
        if not found or not any(self._channels.values()):
            return
        if self._covered_push:
            self.missed_in_a_row = 0
        elif (
            self._cause is Cause.TIMER
            and not self._feed_wants_less
            and self._covered is None
            and not self._pushed_meanwhile
        ):
            self.missed_in_a_row += 1
            self.missed_pushes += 1
