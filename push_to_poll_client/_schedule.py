"""Decide when to poll. A pure state machine: no I/O, clock or random; time is an argument, the decision a value.

The theory
----------
A consumer polls because something *wishes* it to, and no sooner than something *allows*.

Wishes, each with the time from which it holds; the earliest one is the decision's cause:

    START         no poll has ended yet: at once
    RETRY         the last poll failed: when its backoff is over
    CONTINUATION  the last poll stopped at `max_poll_time` with pages left: at once; or at a message that failed:
                  when it may be tried again
    WAKE          somebody said "poll soon": `wake_delay` after the first wake, to gather more
    REPOLL        a push promised something and its poll found nothing: the push beat the data
    TIMER         quiet for the fallback interval, or for as long as the feed itself wants it quiet at most
    WAIT          nothing else, and no repetition due: a fetch that the server may hold (long polling)
    MANUAL        `poll_now()`, which asks for `earliest` itself

Limits, of which the latest one counts, whatever the wish:

    tokens        burst + rate·T starts in any window of T seconds (G3). A poll that continues what the last one
                  read, since its time was over, is work and not a new poll, and takes none. One that comes back
                  to a message which has to wait takes one.
    not-before    what the server asked for (Retry-After and its like)
    backoff       after a failed poll, doubling
    resumption    after a poll that stopped at a message which has to wait, until that may be tried again

A wake is a debt (G1). When a poll starts, the debts it finds become *covered*: the flag is cleared before the
fetch, so a wake that arrives during the poll is a new debt and cannot be erased by an answer that is older than
it. When the poll succeeds, what it covered is paid. When it fails or is abandoned, it is pending again.

The table
---------
"pending" are the wakes that are pending; `-` changes nothing.

    state, event      wake          poll_started      succeeded         failed            abandoned
    idle              pending       running           -                 -                 -
    pending           coalesced     running, covered  -                 -                 -
    running           pending       - (G2)            idle, or pending  backoff, and what was covered is
                                                      if woken since    pending again
    backoff           pending       running, covered  -                 -                 -
    paused, standby   pending       by hand only      as running        as running        as running

A backoff doubles with each failure of a streak. One success ends the backoff but not the streak. A failure begins
a new streak if the feed answered well before it for as long as the last delay. So a feed that fails every other
time is not asked at full speed, and one that fails once in a hundred pages is not treated as if it were down.

A poll after a push that finds nothing is repeated shortly, three times at most in a streak. Finding messages, or
a timer poll that the feed did not ask for, ends the streak. An empty timer poll that covers a push begins a new
streak. So a forged push costs four polls. A flood of them costs three more than its rate, and three for each timer
poll.

A timer poll that finds messages though a channel claims to be up, with no push pending or arriving, is evidence
that the channel loses pushes. Two in a row with no push proved right in between make the interval the degraded
one. A poll that comes sooner because the feed asked for it by `poll_within` is not such evidence: the feed knew of
messages that it could not show yet, and their push may have come in time.
"""

import enum
import math

import msgspec

from push_to_poll_client._types import MAX_NOT_BEFORE

FIRST_BACKOFF = 1.0
"""Seconds after the first failure of a streak: a blip costs one second."""

MAX_BACKOFF = 60.0
"""Seconds that backoff grows to: a feed that stays down is asked 1 to 2 times a minute."""

SLOW_BACKOFF = 300.0
"""Seconds after a refusal, which only a human can lift: 12 to 24 polls an hour, and that never ends."""

REPOLL_DELAYS = (0.25, 1.0, 4.0)
"""Seconds from an empty poll to its repetition: replicas lag by milliseconds to seconds; 3 polls in 5 s."""

EVIDENCE = 2
"""Timer polls in a row that found what no push announced: one may be a push still on its way, two hardly."""

MIN_HELD_SHARE = 0.5
"""The share of the asked wait below which an empty answer counts as early: the server does not hold answers."""

EARLY_ANSWERS = 3
"""Early empty answers in a row before waiting gives way to the timer, until a poll of another cause."""


class Cause(enum.StrEnum):
    """Why a poll starts."""

    START = "start"
    RETRY = "retry"
    CONTINUATION = "continuation"
    WAKE = "wake"
    REPOLL = "repoll"
    TIMER = "timer"
    WAIT = "wait"
    MANUAL = "manual"


class PollOutcome(enum.StrEnum):
    """How a poll ended."""

    CAUGHT_UP = "caught up"
    MORE = "more"
    STANDSTILL = "standstill"
    FAILED = "failed"
    REFUSED = "refused"
    ABANDONED = "abandoned"


class Mode(enum.StrEnum):
    """What a consumer is doing; `STOPPED` when it has no schedule to follow."""

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
    """What became of a wake."""

    PENDING = "pending"
    COALESCED = "coalesced"
    DROPPED = "dropped"


class Decision(msgspec.Struct, frozen=True):
    """Start a poll at time `at`, which may be past (now) or infinite (not until something happens)."""

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
"""What of a schedule is a time on its clock."""


class Schedule:
    """Decides when to poll. Times are seconds on any one clock that never goes back.

    Args:
        fallback_interval: Longest quiet time, in seconds, before polling anyway; `None`: only wakes poll.
        degraded_interval: The same while a channel is down or seems to lose pushes; `None`: no shorter.
        rate: Polls a second that may be started in the long run; `None`: no limit.
        burst: Polls that may be started at once.
        wake_delay: Seconds to gather further wakes after the first.

    Attributes:
        paused: The user asked for quiet: nothing starts but by hand. Wakes stay pending.
        standby: Another replica owns the name: nothing starts. Wakes stay pending.
        server_not_before: Before this time the server does not want to be asked, not even for a further page.
        missed_pushes: Timer polls that found what no push had announced while a channel was up.
        missed_in_a_row: Those of them since a push was last followed by messages.
    """

    def __init__(
        self,
        *,
        fallback_interval: float | None,
        degraded_interval: float | None = None,
        rate: float | None = None,
        burst: int = 1,
        wake_delay: float = 0.0,
    ) -> None:
        self.paused = False
        self.standby = False
        self.server_not_before = -math.inf
        self.missed_pushes = 0
        self.missed_in_a_row = 0
        self._fallback = fallback_interval
        self._degraded = degraded_interval
        self._spacing = 1.0 / rate if rate is not None else 0.0
        self._slack = self._spacing * (burst - 1)
        self._wake_delay = wake_delay

        self._channels: dict[str, bool] = {}
        self._full_at = -math.inf  # when the bucket is full again (GCRA's theoretical arrival time)
        self._ended: float | None = None
        self._shortening = 1.0
        self._poll_within: float | None = None
        self._unfinished = False
        self._resume_at = -math.inf
        self._free_start = False  # earned by a poll that stopped at `max_poll_time`, for the one that goes on

        self._pending: float | None = None  # since when
        self._pending_push = False
        self._running = False
        self._cause = Cause.START
        self._started = 0.0
        self._wait = 0.0
        self._covered: float | None = None
        self._covered_push = False
        self._pushed_meanwhile = False

        self._failing = False
        self._failures = 0
        self._backoff = 0.0
        self._retry_at = -math.inf
        self._well_since: float | None = None

        self._repoll_at = math.inf
        self._repolls = 0
        self._early_answers = 0

    # What happens

    def wake(self, now: float, *, push: bool = False, known: bool = False) -> WakeResult:
        """Somebody said "poll soon".

        Args:
            now: The time.
            push: A push said so, which promises that there is something.
            known: Its hint equals the saved cursor and no overlap is set. Dropped, if also no poll runs and
                nothing is pending (G1).
        """
        self._pushed_meanwhile |= push
        if known and not self._running and self._pending is None:
            return WakeResult.DROPPED
        self._pending_push |= push
        if self._pending is not None:
            return WakeResult.COALESCED
        self._pending = now
        return WakeResult.PENDING

    def set_channel(self, name: str, *, up: bool) -> None:
        """The push channel `name` is connected, or is not (as it is before its first connection)."""
        self._channels[name] = up

    def begin(self) -> None:
        """Poll once, now, whatever was before."""
        self._ended = None

    def resume_now(self) -> None:
        """The message that has to wait is not waited for: polls go on from another place, which takes a token."""
        self._resume_at, self._free_start = -math.inf, False

    def shift(self, by: float) -> None:
        """Go on by another clock, which shows so many seconds more."""
        for name in _TIME_ATTRIBUTES:
            time = getattr(self, name)
            setattr(self, name, None if time is None else time + by)

    def not_before(self, now: float, seconds: float, *, jitter: float) -> None:
        """The server asked to be left alone; capped at `MAX_NOT_BEFORE`, then lengthened by up to a tenth.

        Args:
            now: The time.
            seconds: What it asked for. An earlier, longer request stays in force.
            jitter: Drawn from [0, 1): clients that were told the same do not come back together.
        """
        asked = min(max(seconds, 0.0), MAX_NOT_BEFORE)
        self.server_not_before = max(self.server_not_before, now + asked * (1.0 + 0.1 * jitter))

    def poll_started(self, now: float, cause: Cause, *, wait: float = 0.0) -> None:
        """A poll starts. What is pending is now covered: what arrives from here on is pending anew.

        Args:
            now: The time.
            cause: That of the decision, or `MANUAL`.
            wait: Seconds for which the server may hold its first answer.
        """
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
        found: int = 0,
        free: bool = False,
        answered_at: float | None = None,
        jitter: float = 0.0,
        resume_at: float | None = None,
        poll_within: float | None = None,
    ) -> None:
        """The poll that was started has ended.

        Args:
            now: The time.
            outcome: How. `ABANDONED` is neither success nor failure: a waiting fetch gave way to a wake, or the
                caller was cancelled.
            found: New messages that it settled; repeated ones do not count.
            free: With `MORE`: whether the next poll continues what this one read, and takes no token.
            answered_at: With `FAILED`: when it got its last page before it failed; `None` if it got none.
            jitter: Drawn from [0, 1), for the backoff or the fallback interval.
            resume_at: With `MORE`: when the message may be tried again at which it stopped; `None`: it was another
                reason.
            poll_within: Seconds within which the feed asks to be polled again, after a success; `None`: it does
                not ask.
        """
        self._running = False
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

    # What follows

    def next_poll(self, now: float, *, can_wait: bool = False) -> Decision:
        """When to start the next poll, and why, if nothing happens until then.

        Args:
            now: The time.
            can_wait: The feed can hold its answer.
        """
        if self._running or self.paused or self.standby:
            return NEVER
        wish = min(self._wishes(), key=lambda decision: decision.at)
        # While a push may be ahead of its data, polls that are answered at once find it, and a held one may not.
        quiet = self._pending is None and self._repoll_at == math.inf
        if can_wait and self._may_wait and quiet and wish.at > max(now, self.earliest):
            wish = Decision(now, Cause.WAIT)
        return Decision(max(wish.at, self.earliest), wish.cause)

    @property
    def earliest(self) -> float:
        """When a poll may start at the earliest, whatever wishes it."""
        token = -math.inf if self._free_start else self._full_at - self._slack
        return max(token, self.server_not_before, self._resume_at, self._retry_at if self._failing else -math.inf)

    @property
    def interval(self) -> float | None:
        """The longest quiet time in force, in seconds; `None`: no limit."""
        return self._poll_within if self._feed_wants_less else self._configured_interval

    @property
    def owes(self) -> bool:
        """A wake is pending."""
        return self._pending is not None

    @property
    def degraded(self) -> bool:
        """A channel is down, or loses pushes."""
        return bool(self._channels) and (self.losing_pushes or not all(self._channels.values()))

    @property
    def losing_pushes(self) -> bool:
        """A channel that claims to be up seems to lose pushes."""
        return self.missed_in_a_row >= EVIDENCE

    def mode(self, now: float) -> Mode:
        """What the schedule is doing, in a word."""
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

    # How it is decided

    @property
    def _configured_interval(self) -> float | None:
        """The longest quiet time, whatever the feed asks for."""
        if self._fallback is None or self._degraded is None or not self.degraded:
            return self._fallback
        return min(self._fallback, self._degraded)

    @property
    def _feed_wants_less(self) -> bool:
        """Whether a timer poll comes sooner because the feed asked for it."""
        configured = self._configured_interval
        return self._poll_within is not None and (configured is None or self._poll_within < configured)

    def _wishes(self) -> list[Decision]:
        """All wishes; of two for the same time the first one counts."""
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
        if self._ended is None or self.interval is None:
            return math.inf
        return self._ended + self.interval * self._shortening

    @property
    def _may_wait(self) -> bool:
        return not any(self._channels.values()) and self._early_answers < EARLY_ANSWERS

    def _owe_again(self) -> None:
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
        """Take from a successful poll what it says about pushes and about waiting."""
        # A walk that is not finished did not come to the request that the server may hold.
        held = not self._unfinished and now - self._started >= MIN_HELD_SHARE * self._wait
        early = self._cause is Cause.WAIT and not found and not held
        if found or self._cause is not Cause.CONTINUATION:  # it belongs to the poll that it goes on with
            self._early_answers = self._early_answers + 1 if early else 0
        self._weigh_evidence(found)
        # A poll that the feed asked for does not end them: the data of the push may come later.
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
        return self._covered_push or self._cause is Cause.REPOLL

    def _weigh_evidence(self, found: int) -> None:
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
