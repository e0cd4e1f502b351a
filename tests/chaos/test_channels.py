"""Each kind of push channel, with failing servers, networks and consumers.

All kinds run at once, each with its own consumer. Whatever fails: nothing is lost or repeated, the order is kept,
G2 and G3 hold, and the channel recovers. test_network.py, test_server_restart.py and test_pause.py test websockets
and server-sent events in more detail.

Channels that notice a dead connection have no fallback: the detection, and more frequent polls after it, must be
enough. The others have a fallback of some seconds.
"""

import time

import pytest

from tests.chaos.chaos_hub import Hub
from tests.chaos.journals import elapse
from tests.chaos.kinds import KINDS, Town
from tests.support.forms import form

pytestmark = pytest.mark.long_form

PAUSE = form(2.0, 30.0)
"""Seconds for which a process is suspended: many times the timeout of its channels."""


@pytest.fixture
def town(started, fork_server):
    with Town(started, fork_server, KINDS) as town:
        town.begin()
        yield town


def test_no_message_is_lost_when_servers_and_consumers_are_killed_and_restarted(town, chance):
    for _ in range(form(1, 8)):
        town.kill_servers()
        town.publish(3)
        elapse(chance.uniform(0.0, 0.7))
        town.start_servers()
        town.until_current()
        town.pushes_arrive()
        for lane in town.lanes:
            town.publish()
            lane.consumer.kill()
        town.publish(3)
        for lane in town.lanes:
            lane.start()
        town.until_current()
        town.pushes_arrive()
        assert town.companions[Hub].subscriptions == 1, "who comes back has the subscription that he had"
    town.end()
    town.judge()


def refuse(proxy):
    proxy.refuse()
    proxy.cut()


FAULTS = {
    "everything is swallowed": lambda proxy: proxy.blackhole(),
    "what goes down is swallowed": lambda proxy: proxy.blackhole(up=False),
    "what goes up is swallowed": lambda proxy: proxy.blackhole(down=False),
    "connections are refused": refuse,
}
"""Faults of a proxy. Upstream is the server of a connection: the push server, or our webhook."""


def test_polls_find_messages_whose_pushes_were_dropped_and_pushes_arrive_again(town):
    for fault in list(FAULTS.values())[: form(2, 4)]:
        broken = time.monotonic()
        for lane in town.lanes:
            fault(lane.proxy)
        town.publish(3)
        town.until_current()
        finding = [lane for lane in town.lanes if lane.kind.finds]
        for lane in finding:
            lane.until_said("down", since=broken)
        for _ in range(form(1, 3)):
            town.publish()
            for lane in finding:
                lane.consumer.until_current(town.server)
        for lane in town.lanes:
            lane.proxy.heal()
        town.pushes_arrive()
    town.end()
    town.judge()


def test_a_suspended_consumer_catches_up_after_it_resumes_even_on_a_dead_connection(town):
    for dies in (False, True):
        for lane in town.lanes:
            lane.consumer.pause()
            if dies:
                lane.proxy.blackhole()
        for _ in range(3):
            town.publish()
            elapse(PAUSE / 3)
        for lane in town.lanes:
            lane.proxy.heal()
        for lane in town.lanes:
            lane.consumer.resume()
        town.until_current()
        town.pushes_arrive()
        town.judge()
    town.end()
