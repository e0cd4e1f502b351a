"""Everything at once: kills, stops, a failing network and server, in an order that the seed decides.

At the end all faults stop, and the journals of handler and server are checked.
"""

from collections import Counter

import pytest

from tests.chaos.journals import elapse, until
from tests.chaos.processes import GUARD, ConsumerProcess, Load, ServerProcess
from tests.chaos.verdicts import (
    beyond_g2,
    beyond_g3,
    beyond_g7,
    beyond_reconnect_policy,
    disordered,
    impatient,
    lost,
    of_each_client,
    poll_starts,
    redone,
    unrecorded,
)
from tests.support.forms import form
from tests.support.tcp_proxy import TCPProxy

pytestmark = pytest.mark.long_form

STEPS = form(5, 120)

HASTE = 10.0
"""Factor that shortens delays after failures, which would take most of the walk otherwise."""

RATE, BURST = 10, 5
COMMIT_INTERVAL = 0.05
DELAY = 0.1
"""Most seconds that the network delays."""

NO_FAULTS = {
    "fail_next": 0,
    "cut_next": 0,
    "stall_next": 0,
    "retry_after": None,
    "latency": 0.0,
    "drop_fraction": 0.0,
    "half_open": False,
    "accept_and_close": None,
    "refuse_status": None,
}


class Walk:
    """A consumer with both kinds of push channel behind two proxies, and its faults."""

    def __init__(self, started, chance, feed, push, server):
        self.chance, self.feed, self.push, self.server = chance, feed, push, server
        self.load = started(Load, server, seed=chance.random(), rate=200)
        channels = [("websocket", {"port": push.port}), ("sse", {"port": push.port})]
        self.consumer = started(
            ConsumerProcess,
            url=f"http://127.0.0.1:{feed.port}/feed",
            push=channels,
            takes=0.001,
            answer_within=1.0,
            commit_interval=COMMIT_INTERVAL,
            fallback_interval=1.0,
            degraded_interval=0.5,
            rate=RATE,
            burst=BURST,
            haste=HASTE,
        )
        self.start()

    def start(self):
        self.consumer.start(self.chance.choice(["asyncio", "trio"]))
        if self.chance.random() < 0.8:
            until(self.consumer.has_begun, GUARD, "it begins")

    def elapse(self, seconds):
        elapse(self.chance.uniform(0, seconds))

    # The consumer

    def killed(self):
        self.consumer.kill()
        self.start()

    def stopped(self):
        if self.consumer.has_begun():
            self.consumer.stop()
            self.start()

    def killed_while_it_stops(self):
        if self.consumer.has_begun():
            self.consumer.terminate()
            self.elapse(0.05)
        self.killed()

    def paused(self):
        self.consumer.pause()
        self.elapse(1.0)
        self.consumer.resume()

    # The network

    def feed_breaks(self):
        self._break(self.feed)

    def push_breaks(self):
        self._break(self.push)

    def _break(self, proxy):
        self.chance.choice(
            [
                proxy.blackhole,
                lambda: proxy.blackhole(up=False),
                lambda: proxy.blackhole(down=False),
                proxy.refuse,
                lambda: proxy.delay(DELAY),
                lambda: proxy.throttle(self.chance.choice([10, 100, 1000])),
                lambda: proxy.cut_after(self.chance.randrange(2000), rst=self.chance.random() < 0.5),
                lambda: proxy.cut(rst=self.chance.random() < 0.5),
                proxy.half_close,
            ]
        )()
        self.elapse(1.0)
        proxy.heal()

    # The server

    def server_killed(self):
        self.server.kill()
        self.elapse(0.3)
        self.server.start()

    def feed_fails(self):
        statuses, waits = (
            [408, 429, 500, 502, 503],
            [None, 0, 0.4, 0.7, 1, "soon", "Wed, 21 Oct 2015 07:28:00 GMT"],
        )
        self.server.order(
            fail_next=self.chance.randrange(1, 3),
            fail_status=self.chance.choice(statuses),
            retry_after=self.chance.choice(waits),
        )

    def answer_ends_in_the_middle(self):
        self.server.order(**{self.chance.choice(["cut_next", "stall_next"]): 1})

    def pushes_fail(self):
        self.server.order(
            **self.chance.choice(
                [
                    {"drop_fraction": self.chance.random()},
                    {"half_open": True},
                    {"accept_and_close": 1011},
                    {"refuse_status": 503},
                    {"close_websockets": 1012},
                    {"latency": 0.05},
                ]
            )
        )

    def server_mended(self):
        self.server.order(**NO_FAULTS)

    # All of it

    def nothing(self):
        self.elapse(0.5)

    def many_published(self):
        self.server.publish(self.chance.randrange(1000))

    def go(self):
        """Make one step; return its description."""
        steps = {
            self.nothing: 2,
            self.many_published: 1,
            self.killed: 2,
            self.killed_while_it_stops: 1,
            self.stopped: 1,
            self.paused: 1,
            self.feed_breaks: 2,
            self.push_breaks: 2,
            self.feed_fails: 2,
            self.answer_ends_in_the_middle: 1,
            self.pushes_fail: 2,
            self.server_mended: 1,
            self.server_killed: 1,
        }
        [step] = self.chance.choices(list(steps), weights=list(steps.values()))
        step()
        assert self.consumer.alive, f"it ended by itself after {step.__name__}: {self.consumer.last_words}"
        self.elapse(0.6)
        return step.__name__

    def end(self):
        """End all faults, and let the consumer catch up."""
        self.load.pause()
        self.server_mended()
        self.server.publish()  # handled last, after all that the killed lives had handled and not committed
        self.consumer.until_current(self.server)
        self.consumer.stop()


@pytest.fixture
def walk(started, chance):
    server = started(ServerProcess, page_size=100)
    with TCPProxy(server.port) as feed, TCPProxy(server.port) as push:
        yield Walk(started, chance, feed, push, server)


def test_no_message_is_lost_through_a_random_sequence_of_faults(walk, figures):
    steps = Counter(walk.go() for _ in range(STEPS))
    walk.end()
    ids, journal, killed = walk.server.ids(), walk.consumer.journal.read(), walk.consumer.killed
    handled, fetches, dialled = journal.handled, journal.fetches, journal.dialled
    again, polls = redone(handled), sum(len(poll_starts(own)) for own in of_each_client(fetches).values())
    figures(
        f"{steps.total()} steps, {len(killed)} kills; {len(ids)} published, {len(lost(ids, handled))} lost, "
        f"{sum(again.values())} done again, at most {max(again.values())} after one kill; "
        f"{polls} polls, {len(dialled)} connections"
    )
    assert len(ids) == walk.server.published
    assert lost(ids, handled) == []
    assert disordered(handled) == []
    assert beyond_g7(handled, killed=killed, commit_interval=COMMIT_INTERVAL) == []
    assert beyond_g2(fetches) == []
    assert beyond_g3(fetches, rate=RATE, burst=BURST) == []
    assert impatient(fetches) == []
    pushed = [(f"consumer-{said.life}", said.at) for said in journal.said if said.what == "pushed"]
    assert beyond_reconnect_policy(dialled, haste=HASTE, pushed=pushed) == []
    seen = walk.server.journal.read()
    assert unrecorded(seen.asked, fetches) == []
    assert unrecorded(seen.dialled, dialled) == []
