"""A crash at any step of creating, renewing, replacing and stopping leaves exactly one subscription.

Exhaustive: a process is stopped at each of its steps. The next one continues with the saved state, and may be
stopped too. The server records the subscriptions and their times.
"""

import anyio
import pytest

from push_to_poll_client.listeners._webhook.types import Control
from tests.listeners.test_subscription_manager import manager_of
from tests.support.subscription_server import Channel, Crash, Server, Vendor

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day")]

RESTART = 1.0
"""Seconds from a crash to the next process."""

MOST = RESTART + 4.0
"""Seconds with two subscriptions or none: a restart, a backoff after one failure, and requests. Each crash adds a
restart."""

EARLY = 10
"""Steps at which a second process is stopped. Later steps repeat the first one's."""


class Story:
    """Processes one after the other, with one server and one store."""

    def __init__(self, *, renews, happens=None, stops=False):
        self.server = Server(lifetime=100)
        self.state = None
        self.renews = renews
        self.happens = happens
        self.stops = stops

    async def live(self, seconds, *, crash_at=float("inf")):
        """Run for some seconds, or to a step, and return the number of steps."""
        crash = Crash(crash_at)
        vendor = Vendor(self.server, crash, renews=self.renews)
        channel = Channel(self.state, crash)
        manager = manager_of(vendor, fraction=0.5, unsubscribe_on_exit=self.stops)
        with crash.scope, anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(manager.run, channel)
                if self.happens is not None:
                    tasks.start_soon(self._let_it_happen, manager)
        self.state = channel.state
        await anyio.sleep(RESTART)
        return crash.steps

    async def _let_it_happen(self, manager):
        await anyio.sleep(20)
        if self.happens == "dropped":
            for one in list(self.server.live):
                self.server.drop(one)
        manager.control(Control.RECREATE)

    def check(self, *, lives):
        self.server.sweep()
        assert len(self.server.live) == 1
        assert self.server.counts(lambda count: count == 0) <= MOST + (lives - 2) * RESTART
        assert self.server.counts(lambda count: count > 1) <= MOST + (lives - 2) * RESTART
        assert "leaving" not in self.state
        assert "planned" not in self.state


STORIES = {
    "renewed": {"renews": True},
    "replaced": {"renews": False},
    "dropped": {"renews": True, "happens": "dropped"},
    "said to be dropped": {"renews": False, "happens": "said"},
}

stories = pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
not_counted = pytest.mark.no_cover  # lines are counted where it is quick


async def steps_of(story, seconds):
    return await Story(**story).live(seconds)


@not_counted
@stories
async def test_a_crash_at_any_step_leaves_one_subscription(story):
    for step in range(1, await steps_of(story, 160) + 1):
        told = Story(**story)
        await told.live(160, crash_at=step)
        told.happens = None
        await told.live(30)
        told.check(lives=2)


@not_counted
@stories
async def test_a_second_crash_after_the_restart_leaves_one_subscription(story):
    for step in range(1, await steps_of(story, 90) + 1):
        for next_step in range(1, EARLY):
            told = Story(**story)
            await told.live(90, crash_at=step)
            told.happens = None
            await told.live(30, crash_at=next_step)
            await told.live(30)
            told.check(lives=3)


@pytest.mark.parametrize("seconds", [5, 0.05, 69.0, 69.25, 69.35])
async def test_a_crash_while_subscriptions_are_stopped_leaves_one_after_the_restart(seconds):
    for step in range(1, await steps_of({"renews": False, "stops": True}, seconds) + 1):
        told = Story(renews=False, stops=True)
        await told.live(seconds, crash_at=step)
        told.stops = False
        await told.live(30)
        told.server.sweep()
        assert len(told.server.live) == 1
        assert told.server.counts(lambda count: count > 1) <= MOST + 5


async def test_an_orderly_stop_leaves_no_subscription():
    for tenth in range(1, 80):
        told = Story(renews=False, stops=True)
        await told.live(61.5 + tenth / 10)
        assert told.server.live == {}
        assert told.state is None
