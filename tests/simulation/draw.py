"""Draw the plan of a life from its number.

Each life has only some kinds of faults: a life with all of them would hide most of their effects.
"""

from random import Random

from tests.simulation.plan import (
    EXPIRED_POLICIES,
    RETRIES,
    RETRY_WAITS,
    Action,
    ConsumerPlan,
    FeedPlan,
    HandlerPlan,
    Plan,
    Publication,
    SessionPlan,
    StorePlan,
)

__all__ = ["draw_plan"]


def draw_plan(seed: int) -> Plan:
    """Draw the plan of the life with this number."""
    return _Draw(seed).plan()


class _Draw:
    """Draws one life."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = Random(f"life {seed}")  # noqa: S311  # not for secrets
        self.choose = self.chance.choice
        self.trouble = self.choose([20.0, 60.0, 60.0, 150.0])

    def happens(self, share: float) -> bool:
        return self.chance.random() < share

    def plan(self) -> Plan:
        feed = self.feed()
        consumer = self.consumer(feed)
        handler = self.handler(consumer)
        pages = self.choose([0, 1, 1, 3, 10, 30, 60])
        if feed.weather and feed.cursors == "chain":  # a long chain in which some request always fails
            feed.page_size, pages = min(feed.page_size, 3), 60
        self.room = 60 * feed.page_size  # entries: more pages show nothing new, and take their time
        backlog = min(self.chance.randint(0, 1 + pages * feed.page_size), 200)
        backlog = int(min(backlog, self.room * 0.7 * (1 - feed.filtered), 60 / (handler.takes or 0.001)))
        self.room = min(int(self.room * (1 - feed.filtered)), 250) - backlog
        plan = Plan(self.seed, feed, self.store(), handler, consumer, self.trouble, backlog)
        plan.publications = self.publications(feed, consumer)
        plan.sessions = self.sessions(consumer)
        plan.last = self.session(0.0, consumer, how="cron" if self.happens(0.3) else "run")
        plan.last.timeout, plan.last.patience, plan.last.actions = None, None, []
        if plan.last.how == "cron":  # a bare call keeps no place, so a long chain would fail again and again
            feed.weather = 0.0
        return plan

    def feed(self) -> FeedPlan:
        happens, choose = self.happens, self.choose
        feed = FeedPlan(
            cursors=choose(["message", "page", "chain"]),
            page_size=choose([1, 3, 10, 10, 20, 50, 100]),
            latency=choose([0.0, 0.0, 0.01, 0.1, 0.1, 0.5]),
            read_ahead=happens(0.4),
            ends_empty=happens(0.2),
            tokens=happens(0.5),
        )
        feed.tokens = feed.tokens or feed.cursors == "chain"
        if happens(0.3):
            feed.late, feed.late_share = choose([0.5, 2.0, 5.0, 20.0]), choose([0.1, 0.5])
        if happens(0.15):
            feed.filtered = choose([0.3, 0.9])
        if happens(0.15):
            feed.repeats = 0.2
        if happens(0.3):
            feed.max_wait, feed.holding = (
                choose([5.0, 20.0, 50.0]),
                choose(["hold", "hold", "early", "early", "refuse"]),
            )
        if happens(0.08):
            feed.poll_interval = choose([0.5, 2.0, 15.0])
        if happens(0.1):
            feed.weather = choose([0.01, 0.03, 0.1])
        self.failures(feed)
        self.expiries(feed)
        return feed

    def failures(self, feed: FeedPlan) -> None:
        happens, choose = self.happens, self.choose
        if happens(0.3):
            feed.failing = choose([0.02, 0.1, 0.4])
            feed.refused = choose([0.0, 0.0, 0.0, 0.2])
        if happens(0.2):
            feed.outages = tuple(self.span() for _ in range(choose([1, 2])))
        if feed.failing or feed.outages:
            feed.failing_asks = choose([None, None, 1.0, 20.0])
        if happens(0.1):
            feed.slow, feed.slow_latency = 0.05, choose([3.0, 20.0])

    def expiries(self, feed: FeedPlan) -> None:
        happens, choose = self.happens, self.choose
        if happens(0.12):
            at = self.chance.uniform(0, self.trouble)
            feed.expires = ((at, choose(["all", "all", "old"]), happens(0.5)),)
            feed.expired_asks = choose([None, None, None, 5.0])
        if feed.tokens and happens(0.15):
            feed.tokens_expire = tuple(self.chance.uniform(0, self.trouble) for _ in range(choose([1, 5])))
        if feed.tokens and happens(0.1):
            feed.restarts = choose([0.02, 0.2])

    def span(self) -> tuple[float, float]:
        begin = self.chance.uniform(0, self.trouble)
        return begin, begin + self.choose([1.0, 10.0, 40.0])

    def store(self) -> StorePlan:
        store = StorePlan()
        if self.happens(0.2):
            store.failing, store.for_good = self.choose([0.01, 0.1, 0.4]), self.choose([0.0, 0.0, 0.3])
        if self.happens(0.15):
            store.outages = tuple(self.span() for _ in range(self.choose([1, 3])))
        if self.happens(0.12):
            store.slow, store.slow_time = self.choose([0.1, 1.0]), self.choose([0.01, 0.2, 2.0])
        if self.happens(0.03):
            store.hanging, store.hanging_time = 0.02, self.choose([15.0, 40.0])
        return store

    def handler(self, consumer: ConsumerPlan) -> HandlerPlan:
        happens, choose = self.happens, self.choose
        handler = HandlerPlan(takes=choose([0.0, 0.0, 0.0, 0.001, 0.01, 0.1, 1.0]))
        if happens(0.35):
            handler.failing, handler.attempts = choose([0.02, 0.1, 0.5]), choose([1, 2, 6])
            handler.verdicts = tuple({
                "error": None, choose(["error", "retry", "retry", "skip", "dead", "stop"]): None
            })  # fmt: skip
            handler.retry_after = choose([0.3, 1.5, 1.5, 8.0, 60.0, 900.0])
            if happens(0.3):
                handler.poison = 0.02
        if happens(0.05):
            handler.overlong = 0.05
        return handler

    def consumer(self, feed: FeedPlan) -> ConsumerPlan:
        happens, choose = self.happens, self.choose
        plan = ConsumerPlan(on_failure=choose(["stop", "stop", "dead_letter", "skip", "mixed"]))
        if feed.late and happens(0.8):
            plan.overlap = feed.late * choose([1.0, 1.0, 2.0])
        elif happens(0.1):
            plan.overlap = choose([1.0, 5.0, 30.0])
        if happens(0.3):
            plan.retry = choose(list(RETRIES))
        plan.retry_wait = RETRY_WAITS[plan.retry]
        if happens(0.25):
            plan.batches, plan.batch_size = True, choose([2, 7, 50])
            plan.batch_wait = choose([0.0, 0.0, 0.1, 2.0])
        if happens(0.2):
            plan.concurrency = choose([2, 5])
        if happens(0.4):
            plan.rate, plan.burst = choose([(0.1, 1), (0.1, 1), (0.5, 2), (1.0, 1), (1.0, 5), (None, 1)])
        plan.fallback_interval = choose([60.0, 60.0, 10.0, 20.0, 300.0])
        plan.degraded_interval = choose([10.0, 10.0, None])
        if happens(0.15):
            plan.wake_delay = choose([0.2, 2.0])
        plan.max_poll_time = choose([30.0, 30.0, 1.0, 3.0, 10.0])
        plan.commit_interval = choose([0.05, 0.05, 0.0, 1.0])
        plan.shutdown_timeout = choose([10.0, 0.5, 2.0])
        happens(0.8)  # an option that is gone: numbers of earlier lives stay the same lives
        if happens(0.05):
            plan.start = "latest"
        if feed.expires or happens(0.3):
            plan.on_cursor_expired = choose(list(EXPIRED_POLICIES))
        plan.listener = happens(0.5)
        plan.hooks = happens(0.3)
        return plan

    def publications(self, feed: FeedPlan, consumer: ConsumerPlan) -> list[Publication]:
        at, publications = 0.0, []
        mean = self.choose([1.0, 5.0, 15.0, 15.0, 60.0])
        size = self.choose([1, 1, 3, 20])
        pushes = self.choose([0.0, 0.5, 1.0, 1.0])
        beats = self.choose([0.0, 0.5])
        while (at := at + self.chance.expovariate(1 / mean)) < self.trouble and len(publications) < 30:
            publication = Publication(at, self.chance.randint(1, size))
            self.room -= publication.count
            if self.room < 0:
                break
            if self.happens(feed.late_share):
                publication.lag = self.chance.uniform(0, feed.late)
            if self.happens(pushes):
                publication.push = 0.0
                publication.hint = self.happens(0.1)
            if publication.push is not None and self.happens(beats):
                publication.push, publication.lag = -self.choose([0.1, 0.6, 3.0]), 0.0
            publications.append(publication)
        return publications

    def sessions(self, consumer: ConsumerPlan) -> list[SessionPlan]:
        sessions, left = [], self.trouble
        while left > 0 and len(sessions) < 5:
            lasts = min(left, self.chance.expovariate(1 / self.choose([10.0, 30.0, 100.0])))
            sessions.append(self.session(lasts, consumer))
            left -= lasts
        return sessions

    def session(self, lasts: float, consumer: ConsumerPlan, how: str | None = None) -> SessionPlan:
        happens, choose = self.happens, self.choose
        session = SessionPlan(
            how or choose(["run", "run", "run", "cron"]),
            lasts,
            choose(["stop", "stop", "cancel", "native", "crash", "crash"]),
            self.actions(lasts),
            every=choose([3.0, 10.0, 30.0]),
            timeout=choose([10.0, 0.0, None, 100.0]),
            patience=choose([None, None, 0.5, 5.0]),
            same_object=happens(0.5),
            catches_up=happens(0.3),
        )
        session.every = max(session.every, lasts / 12)
        if happens(0.1):
            session.clock_jump = choose([-3600.0, -5.0, 5.0, 3600.0, 20000.0])
        return session

    def actions(self, lasts: float) -> list[Action]:
        kinds = [
            ("wake", 0.5), ("wake from a thread", 0.3), ("poll_now", 0.4), ("poll_now in a hurry", 0.3),
            ("rewind", 0.08), ("replay", 0.05), ("dead letters", 0.1), ("pause", 0.08), ("second owner", 0.05),
            ("channel down", 0.1),
        ]  # fmt: skip
        actions = []
        for kind, share in kinds:
            if self.happens(share):
                actions.extend(
                    Action(self.chance.uniform(0, lasts), kind, self.chance.random())
                    for _ in range(self.choose([1, 1, 3]))
                )
        return sorted(actions, key=lambda action: action.at)
