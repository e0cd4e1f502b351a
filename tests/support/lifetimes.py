"""Several lives of a consumer on one feed and one store, and the rules that hold for all of them."""

import re
from dataclasses import dataclass, field
from functools import partial

import anyio
from tenacity import AsyncRetrying, retry_if_not_exception_type, wait_fixed

from push_to_poll_client import (
    Consumer,
    DeadLetterMessage,
    Hooks,
    ProcessError,
    RetryMessage,
    SkipMessage,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.in_flight import Ledger, lane

CURSOR = re.compile(r"after-(\d+)\.\d+")


class PoisonError(Exception):
    """A message that always fails."""


@dataclass
class Plan:
    """Plan of a test run.

    Attributes:
        names: The messages, named after their lanes.
        takes: Seconds that the handler takes for each.
        troubles: Errors of the first attempts, then the final result: "poison", "dead" or "skip".
        feed: Arguments of the feed.
        consumer: Arguments of the consumer.
        batches: True if the handler gets batches.
        policy: Policy for poison. With "stop" the test repairs the handler after each stop.
        lives: For each life but the last: its length, its end, the number of messages published before it, True if
            the feed then repeats all of its messages, and the number of commits that fail at first.
    """

    names: list
    takes: dict
    troubles: dict
    feed: dict
    consumer: dict
    batches: bool
    policy: str
    lives: list

    @property
    def key(self):
        return {name: lane_of(name) for name in self.names}


def lane_of(name):
    return name.rstrip("0123456789")


@dataclass
class World:
    """Record of the events of all lives."""

    plan: Plan
    store: Ledger = field(default_factory=Ledger)
    troubles: dict = field(default_factory=dict)
    done: set = field(default_factory=set)
    given_up: set = field(default_factory=set)
    first: list = field(default_factory=list)
    wrong: list = field(default_factory=list)

    def __post_init__(self):
        self.feed = FakeFeed(**self.plan.feed)
        self.troubles = {name: list(what) for name, what in self.plan.troubles.items()}
        self.left = list(self.plan.names)
        self.published = []
        self.more = anyio.Event()
        self.watch()

    def watch(self):
        self.recorded = {record.key for what in self.store.whole for record in what["records"]}
        self.store.saw = self.committed

    def crash(self):
        """Return the saved state at a crash now. Later work of the dead process is ignored."""
        dead, self.store.saw = self.store, lambda what: None
        return dead.as_of_now()

    def beyond(self):
        """Block for ever, as a dead process does."""
        beyond = World(self.plan)
        beyond.publish(len(self.plan.names))
        return beyond

    def committed(self, what):
        """Check G5 at every commit, and that nothing is recorded twice."""
        self.recorded |= {record.key for record in what["records"]}
        self.more.set()
        if what["cursor"] is not None:
            before = int(CURSOR.fullmatch(what["cursor"])[1])
            assert self.recorded >= set(self.published[:before]), "a cursor was saved before what stands before it"

    def publish(self, number):
        some, self.left = self.left[:number], self.left[number:]
        if some:
            self.published += some
            self.feed.publish(*some)

    def heal(self, name):
        """Repair the handler."""
        self.troubles.pop(name, None)

    def begin(self, names, under_way):
        """Start these messages beside others in flight. An error here counts as the handler's."""
        self.check(not self.recorded.intersection(names), f"{names} are processed again, and were recorded")
        lanes = {lane_of(name) for name in names}
        self.check(not lanes & {lane_of(name) for name in under_way}, f"{names} begin beside {under_way}")
        before = set()
        for name in names:
            place = self.published.index(name)
            earlier = {one for one in self.published[:place] if lane_of(one) == lane_of(name)}
            settled = self.done | self.given_up | before
            self.check(earlier <= settled, f"{name} overtakes {earlier - settled}")
            before.add(name)

    def check(self, holds, otherwise):
        if not holds:
            self.wrong.append(otherwise)

    def trouble(self, names):
        """Return the error that the handler raises for these messages, or None."""
        for name in names:
            troubles = self.troubles.get(name)
            if troubles and (len(names) == 1 or troubles[0] in {"later", "soon"}):
                return self.raised(name, troubles[0] if troubles[0] in LAST_WORDS else troubles.pop(0))
            if troubles:
                return ValueError("some of the batch")
        return None

    def raised(self, name, trouble):
        if trouble in {"dead", "skip"} or (trouble == "poison" and self.plan.policy != "stop"):
            self.given_up.add(name)
        return {
            "error": partial(ValueError, name),
            "later": partial(RetryMessage, after=30.0),
            "soon": partial(RetryMessage, after=0.3),
            "poison": partial(PoisonError, name),
            "dead": DeadLetterMessage,
            "skip": SkipMessage,
        }[trouble]()

    def succeeded(self, names):
        for name in names:
            if name not in self.done:
                self.first.append(name)
            self.done.add(name)


LAST_WORDS = {"poison", "dead", "skip"}


class Life:
    """Tasks and records of one life."""

    def __init__(self, world):
        self.world = world
        self.under_way = []
        self.most = 0

    async def handle(self, names):
        self.world.begin(names, [name for some in self.under_way for name in some])
        self.under_way.append(names)
        self.most = max(self.most, len(self.under_way))
        try:
            await anyio.sleep(max(self.world.plan.takes[name] for name in names))
            if (error := self.world.trouble(names)) is not None:
                raise error
            self.world.succeeded(names)
        finally:
            self.under_way.remove(names)


class OneByOne(Consumer):
    async def process(self, message):
        await self.life.handle([message.id])


class InBatches(Consumer):
    async def process_batch(self, messages):
        await self.life.handle([message.id for message in messages])


def consumer_of(world):
    plan = world.plan
    retry = AsyncRetrying(
        retry=retry_if_not_exception_type(PoisonError), wait=wait_fixed(plan.consumer.get("waits", 0.2))
    )
    settings = {name: value for name, value in plan.consumer.items() if name not in {"waits", "hooked"}}
    cls = InBatches if plan.batches else OneByOne
    consumer = cls(
        world.feed,
        store=world.store,
        ordering_key=lane,
        retry=retry,
        on_failure=plan.policy,
        hooks=Hooks() if plan.consumer.get("hooked") else None,
        max_poll_time=20.0,
        **settings,
    )
    consumer.life = Life(world)
    return consumer


async def live(world, seconds, how):
    """Run one life. Return True if it ended as planned."""
    consumer, errors = consumer_of(world), []

    async def run():
        try:
            await consumer.run()
        except (ProcessError, OSError) as error:
            errors.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await (anyio.sleep(seconds) if how != "settled" else settled(world))
        if how == "stop":
            consumer.stop()
        else:
            if how == "crash":
                world.store, consumer.life.world = world.crash(), world.beyond()
                world.watch()
            tasks.cancel_scope.cancel()
    assert consumer.life.most <= consumer._options.concurrency, "more are under way than were asked for"
    for error in errors:
        world.heal(getattr(error, "id", None))
    return not errors


async def settled(world):
    while not world.recorded >= set(world.plan.names):
        world.more = anyio.Event()
        await world.more.wait()


async def play(plan):
    """Run all lives, the last one without a limit, and check the final state."""
    world = World(plan)
    for seconds, how, published, repeats, broken in plan.lives:
        world.store.broken = broken
        if repeats:
            world.feed.forget()
        world.publish(published)
        await live(world, seconds, how)
    world.store.broken = 0
    world.publish(len(world.left))
    with anyio.fail_after(3_000.0):
        while not await live(world, 0.0, "settled"):
            pass
    await check_end(world)


async def check_end(world):
    plan = world.plan
    assert world.wrong == []
    kept = {"poison": plan.policy, "dead": "dead_letter", "skip": "skip"}
    states = {"dead_letter": "dead", "skip": "skipped", "stop": "processed"}
    words = {name: (world.troubles.get(name) or [""])[-1] for name in plan.names}
    expected = {name: states[kept.get(words[name], "stop")] for name in plan.names}
    assert {name: world.store.all_states[name] for name in plan.names} == expected
    assert world.done == {name for name in plan.names if expected[name] == "processed"}, "one of them was lost"
    for key in {lane_of(name) for name in plan.names}:
        in_order = [name for name in plan.names if lane_of(name) == key and expected[name] == "processed"]
        assert [name for name in world.first if lane_of(name) == key] == in_order
    async with consumer_of(world) as consumer:
        letters = [letter.id for letter in await consumer.dead_letters.list()]
        assert await consumer.poll_now()
        assert consumer.status().cursor == world.feed.newest
    assert sorted(letters) == sorted(name for name in plan.names if expected[name] == "dead")
