"""A model of the environment of a schedule, which checks G1-G4 after every event.

It keeps plain lists of events, in the words of the guarantees, where the schedule keeps sums.
"""

import math
from dataclasses import dataclass, field

from push_to_poll_client._schedule import (
    MAX_BACKOFF,
    SLOW_BACKOFF,
    Cause,
    PollOutcome,
    Schedule,
    WakeResult,
)
from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client.testing._virtual_time import START

EPS = 1e-6


def twin(one):
    """Return a shallow copy, three times as fast as copy.copy()."""
    other = object.__new__(type(one))
    vars(other).update(vars(one))
    return other


@dataclass
class World:
    fallback: float | None = 4.0
    degraded: float | None = 2.0
    rate: float = 1.0
    burst: int = 2
    wake_delay: float = 0.0
    jitter: float = 0.0
    now: float = START
    debts: list[float] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    can_wait: bool = False
    not_before: float = -math.inf
    not_before_at_the_latest: float = -math.inf
    ended: float | None = None
    failed: PollOutcome | None = None
    failed_at: float = -math.inf
    last: PollOutcome | None = None
    free: bool = False
    poll_within: float | None = None
    resume_at: float = -math.inf
    running: bool = False
    up: bool = True

    def __post_init__(self):
        self.schedule = Schedule(
            fallback_interval=self.fallback,
            degraded_interval=self.degraded,
            rate=self.rate,
            burst=self.burst,
            wake_delay=self.wake_delay,
        )
        self.schedule.set_channel("push", up=self.up)

    def fork(self):
        other = twin(self)
        other.debts, other.covered, other.starts = self.debts[:], self.covered[:], self.starts[:]
        other.schedule = twin(self.schedule)
        other.schedule._channels = dict(self.schedule._channels)
        return other

    @property
    def held(self):
        return self.schedule.paused or self.schedule.standby

    # Events

    def wake(self, *, push=False, known=False):
        result = self.schedule.wake(self.now, push=push, known=known)
        if result is WakeResult.DROPPED:
            assert known, "only a hint drops a wake"
            assert not self.running, "no hint drops a wake while a poll runs"
            assert not self.debts, "no hint drops a wake while one is owed"
        else:
            self.debts.append(self.now)

    def tick(self, seconds=1.0):
        self.now += seconds

    def due(self):
        return self.decision().at <= self.now

    def decision(self):
        return self.schedule.next_poll(self.now, can_wait=self.can_wait)

    def start(self):
        decision = self.decision()
        assert not self.held
        assert decision.cause is not Cause.WAIT or not self.debts, "a wake is fetched at once, not held"
        self._start(decision.cause)

    def may_start_by_hand(self):
        return not self.running and self.schedule.earliest <= self.now

    def start_by_hand(self):
        self._start(Cause.MANUAL)

    def _start(self, cause):
        assert not self.running, "G2: two polls at a time"
        assert self.now >= self.not_before - EPS, "G3: earlier than the server asked for"
        assert self.now >= self.resume_at - EPS, "G9: earlier than the message may be tried again"
        self.schedule.poll_started(self.now, cause)
        self.running, self.covered, self.debts = True, self.debts, []
        if not self.free:  # the rest of an interrupted poll is work, not a new poll
            self.starts.append(self.now)
            self._check_rate()

    def _check_rate(self):
        last = len(self.starts) - 1
        for first, began in enumerate(self.starts):
            window = self.starts[last] - began
            assert last - first + 1 <= self.burst + self.rate * window + EPS, "G3: rate"

    def end(self, outcome, *, found=0, retry_after=None, resume_in=None, free=False, poll_within=None):
        if retry_after is not None:
            self.schedule.not_before(self.now, retry_after, jitter=self.jitter)
            asked = min(retry_after, MAX_NOT_BEFORE)
            self.not_before = max(self.not_before, self.now + asked)
            self.not_before_at_the_latest = max(self.not_before_at_the_latest, self.now + 1.1 * asked)
        resume_at = None if resume_in is None else self.now + resume_in
        self.schedule.poll_ended(
            self.now,
            outcome,
            found=found,
            free=free,
            jitter=self.jitter,
            resume_at=resume_at,
            poll_within=poll_within,
        )
        self.running, self.last = False, outcome
        self.free = free and outcome is PollOutcome.MORE
        if outcome is PollOutcome.ABANDONED:
            self.debts = self.covered + self.debts
        elif outcome in (PollOutcome.FAILED, PollOutcome.REFUSED):
            self.debts = self.covered + self.debts
            self.failed, self.failed_at, self.ended = outcome, self.now, self.now
        else:
            self.failed, self.ended, self.poll_within = None, self.now, poll_within
            self.resume_at = -math.inf if resume_at is None else resume_at
        self.covered = []

    def resume_now(self):
        self.schedule.resume_now()
        self.resume_at, self.free = -math.inf, False

    def begin(self):
        self.schedule.begin()
        self.ended = None

    def shift(self, by):
        self.schedule.shift(by)
        self.now += by
        self.not_before += by
        self.not_before_at_the_latest += by
        self.ended = None if self.ended is None else self.ended + by
        self.failed_at += by
        self.resume_at += by
        self.starts = [at + by for at in self.starts]
        self.debts = [at + by for at in self.debts]

    def set_channel(self, up):
        self.up = up
        self.schedule.set_channel("push", up=up)

    # Guarantees

    def check(self):
        decision = self.decision()
        if self.running or self.held:
            assert decision.at == math.inf, "G2, or a poll while paused or standing by"
            return
        if self.debts:
            assert decision.at <= self._latest(self.debts[0] + self.wake_delay) + EPS, "G1: a wake-up was lost"
        if self.ended is None:
            assert decision.at <= self._latest(self.now) + EPS, "the first poll is at once"
        elif self.last is PollOutcome.MORE and self.failed is None:
            assert decision.at <= self._latest(self.now) + EPS, "what has more to do goes on at once"
        else:
            assert decision.at <= self._latest(self.ended + self._interval()) + EPS, "G4: fallback"

    def _interval(self):
        asked = math.inf if self.poll_within is None else min(self.poll_within, MAX_NOT_BEFORE)
        if self.fallback is None:
            return asked
        return min(self.fallback, asked, math.inf if self.up or self.degraded is None else self.degraded)

    def _latest(self, wished):
        """Return the latest allowed time of a poll. Only these limits may delay one."""
        limits = self.not_before_at_the_latest, self._backoff_until(), self.resume_at, self._token_at()
        return max(wished, *limits)

    def _backoff_until(self):
        limits = {None: 0.0, PollOutcome.FAILED: MAX_BACKOFF, PollOutcome.REFUSED: SLOW_BACKOFF}
        return self.failed_at + limits[self.failed]

    def _token_at(self):
        ahead = len(self.starts) + 1
        times = [began + (ahead - i - self.burst) / self.rate for i, began in enumerate(self.starts)]
        return max(times, default=-math.inf)
