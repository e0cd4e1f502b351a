"""A consumer killed with SIGKILL at any moment loses nothing and repeats little (G5, G6, G7).

The server runs in its own process, under load. The moments are random, and cover all states of a consumer. The
checks count the lines of the handler's journal.
"""

import itertools

import pytest

from tests.chaos.journals import elapse, until
from tests.chaos.processes import GUARD, ConsumerProcess, Load, ServerProcess
from tests.chaos.verdicts import beyond_g2, beyond_g3, beyond_g7, disordered, lost, redone, unrecorded
from tests.support.forms import form

COMMIT_INTERVAL = 0.05
RATE, BURST = 20, 20


class Arena:
    """A server under load, a consumer, and the random numbers that decide when it is killed."""

    def __init__(self, started, chance, fork_server, *, takes, load, backlog, page_size):
        self.chance = chance
        self.backlog = backlog
        self.server = started(ServerProcess, page_size=page_size)
        self.load = started(Load, self.server, seed=chance.random(), rate=load)
        push = [("websocket", {"port": self.server.port})]
        self.consumer = started(
            ConsumerProcess,
            url=self.server.url,
            push=push,
            takes=takes,
            fork_server=fork_server,
            commit_interval=COMMIT_INTERVAL,
            fallback_interval=0.5,
            degraded_interval=0.5,
            rate=RATE,
            burst=BURST,
        )

    def start(self):
        self.consumer.start(self.chance.choice(["asyncio", "trio"]))

    def wait(self, seconds):
        """Wait for a random part of these seconds."""
        elapse(self.chance.uniform(0, seconds))

    def until_begun(self):
        until(self.consumer.has_begun, GUARD, "it begins")

    def until_handled(self, more=1):
        """Wait until this life has handled this many messages."""
        self.until_begun()
        before = len(self.consumer.journal.handled)
        until(lambda: len(self.consumer.journal.read().handled) >= before + more, GUARD, "it handles")

    def until_asked(self):
        before = len(self.server.journal.read().asked)
        until(lambda: len(self.server.journal.read().asked) > before, GUARD, "it asks")

    def until_current(self):
        """Wait until it has caught up and is connected, without a load."""
        self.load.pause()
        self.consumer.until_current(self.server)
        until(lambda: self.server.stats()["websockets_open"], GUARD, "it is connected")


def starting(arena):
    """During the start of the interpreter and imports; in the short form during the fork."""
    arena.wait(form(0.01, 0.5))


def claiming(arena):
    """While the state is opened and claimed, and the first page is fetched."""
    arena.until_begun()
    arena.wait(0.03)


def catching_up(arena):
    """While it processes thousands of messages a second."""
    arena.server.publish(arena.backlog)
    arena.until_handled()
    arena.wait(0.3)


def fetching(arena):
    """During a request."""
    arena.until_begun()
    arena.server.publish(arena.backlog)
    for _ in range(arena.chance.randrange(5)):
        arena.until_asked()
    arena.wait(0.004)


def committing(arena):
    """Near the end of a page, when its progress is written."""
    arena.server.publish(200)
    arena.until_handled(100)
    arena.wait(0.004)


def live(arena):
    """Around a push, when it was idle."""
    arena.until_begun()
    arena.until_current()
    arena.server.publish(arena.chance.randrange(1, 5))
    arena.wait(0.02)


def stopping(arena):
    """After SIGTERM."""
    arena.server.publish(arena.backlog)
    arena.until_handled()
    arena.consumer.terminate()
    arena.wait(0.05)


MOMENTS = [starting, claiming, catching_up, fetching, committing, live, stopping]


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(
            {"takes": 0.0, "load": 500, "backlog": 3000, "page_size": 1000},
            id="quick",
            marks=pytest.mark.long_form,
        ),
        pytest.param({"takes": 0.005, "load": 20, "backlog": 30, "page_size": 100}, id="slow"),
    ],
)
def test_a_killed_consumer_loses_no_message_and_repeats_few(started, chance, fork_server, figures, world):
    kills = form(5, 100)
    arena = Arena(started, chance, form(fork_server, None), **world)  # in the long form each life starts a Python
    moments = itertools.cycle(chance.sample(MOMENTS, len(MOMENTS)))
    while len(arena.consumer.killed) < kills:  # one that ended before its moment was not killed
        arena.start()
        next(moments)(arena)
        arena.consumer.kill()
        arena.load.resume()
    arena.start()
    arena.server.publish()  # handled last, after all that the killed lives had handled and not committed
    arena.until_current()
    arena.consumer.stop()
    report(arena, figures)


def report(arena, figures):
    consumer, ids = arena.consumer, arena.server.ids()
    handled, killed = consumer.journal.read().handled, consumer.killed
    again = redone(handled)
    figures(
        f"{len(killed)} killed, {consumer.life - len(killed)} ended; {len(ids)} published, "
        f"{len(lost(ids, handled))} lost, {sum(again.values())} done again, "
        f"at most {max(again.values())} after one kill"
    )
    assert len(ids) == arena.server.published
    assert lost(ids, handled) == []
    assert disordered(handled) == []
    assert beyond_g7(handled, killed=killed, commit_interval=COMMIT_INTERVAL) == []
    assert beyond_g2(consumer.journal.fetches) == []
    assert beyond_g3(consumer.journal.fetches, rate=RATE, burst=BURST) == []
    assert unrecorded(arena.server.journal.read().asked, consumer.journal.fetches) == []
