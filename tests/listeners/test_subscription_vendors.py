"""The page on custom subscriptions: its programs run unchanged with the vendors' behaviour."""

import contextlib
import re
from datetime import datetime
from pathlib import Path

import anyio
import httpx
import pytest

from push_to_poll_client import Push, _event_loop
from push_to_poll_client.listeners.subscriptions import _manager
from tests.support.subscription_server import Channel
from tests.vendors.google_push import LIFETIME, GooglePush
from tests.vendors.graph_push import LONGEST, GraphPush

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day", "few_looks")]

PAGE = (Path(__file__).parents[2] / "docs" / "subscriptions.md").read_text()
GRAPH, GOOGLE = (
    block
    for name in ("graph_create", "google_watch")
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    if f"def {name}" in block
)


@pytest.fixture
def few_looks(monkeypatch):
    """Days of virtual time, not simulated minute by minute."""
    monkeypatch.setattr(_manager, "MAX_SLEEP", 3600.0)


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch):
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", anyio.current_time)


class Today(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(_event_loop.wall_clock(), tz)


@pytest.fixture
def graph():
    names = {"graph_auth": None}
    exec(GRAPH, names)  # noqa: S102  # it is ours
    server = GraphPush()
    names |= {"graph_client": server.client(), "datetime": Today}
    server.app = names["graph_hooks"]
    return server


@pytest.fixture
def google():
    names = {"google_auth": None}
    exec(GOOGLE, names)  # noqa: S102  # it is ours
    server = GooglePush()
    names["google_client"] = server.client()
    server.app = names["google_hooks"]
    return server


@contextlib.asynccontextmanager
async def subscribed(server, *, channel=None, seconds=5.0, stop=False):
    server.app._manager._fraction = lambda: 0.0
    server.app._manager._unsubscribe_on_exit = stop
    channel = channel or Channel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.app.listen, channel)
        await anyio.sleep(seconds)
        yield channel
        tasks.cancel_scope.cancel()


# Graph


async def test_a_graph_subscription_is_validated_during_its_creation_and_then_notifies(graph):
    async with subscribed(graph) as channel:
        assert graph.requests == ["GET", "POST"]
        assert channel.until == pytest.approx(1e9 + LONGEST, abs=1)
        assert await graph.notify() == [202]
    assert [event for _, event in channel.events] == ["up", Push()]


async def test_a_graph_notification_before_the_answer_to_the_create_is_a_push(graph):
    graph.notify_first = True
    async with subscribed(graph) as channel:
        pass
    assert channel.said("up", Push()) == [Push(), "up"]


async def test_a_graph_notification_with_a_wrong_client_state_is_refused(graph):
    async with subscribed(graph) as channel:
        assert await graph.notify(state="guessed") == [401]
    assert channel.said(Push()) == []


async def test_a_graph_subscription_is_renewed_at_half_of_its_granted_lifetime(graph):
    async with subscribed(graph, seconds=LONGEST / 2 + 61):
        assert graph.requests == ["GET", "POST", "PATCH"]
        await anyio.sleep(LONGEST * 2)
        assert graph.made == 1


async def test_a_graph_subscription_is_renewed_when_graph_asks_for_it(graph):
    async with subscribed(graph, seconds=100):
        await graph.notify("reauthorizationRequired")
        await anyio.sleep(1)
        assert graph.requests[2:] == ["PATCH"]


async def test_a_graph_subscription_is_created_again_when_graph_reports_its_removal(graph):
    async with subscribed(graph) as channel:
        await graph.remove()
        await anyio.sleep(1)
        assert graph.made == 2
        assert len(graph.subscriptions) == 1
        assert channel.said("up", "down", Push()) == ["up", "down", "up"]
        assert await graph.notify() == [202]


async def test_a_graph_subscription_removed_without_notice_is_created_again_at_its_renewal(graph):
    async with subscribed(graph, seconds=100) as channel:
        graph.subscriptions.clear()
        await anyio.sleep(LONGEST / 2)
        assert graph.made == 2
        assert channel.said("up", "down") == ["up", "down", "up"]


async def test_a_graph_notice_of_missed_notifications_starts_a_poll(graph):
    async with subscribed(graph) as channel:
        assert await graph.notify("missed") == [202]
        assert channel.said("poll", Push()) == ["poll"]


async def test_a_graph_subscription_is_found_when_the_answer_to_its_create_was_lost(graph):
    graph.subscriptions = {
        f"other-{n}": {"id": "x", "notificationUrl": "", "expirationDateTime": "2099-01-01T00:00:00Z"}
        for n in range(3)
    }
    graph.script.extend([None, None, "lost"])
    async with subscribed(graph):
        assert graph.made == 1
        assert graph.requests == ["GET", "GET", "POST", "GET", "GET"]


async def test_a_graph_subscription_is_renewed_and_not_created_again_after_a_restart(graph):
    async with subscribed(graph) as channel:
        pass
    async with subscribed(graph, channel=channel):
        assert graph.made == 1
        assert graph.requests[2:] == ["PATCH"]  # a check that it still exists


@pytest.mark.parametrize("script", [[], [None, "lost"]])
async def test_a_graph_subscription_is_stopped_by_the_id_from_graph(graph, script):
    graph.script.extend(script)
    graph.script.extend([httpx.Response(503)] * bool(script))
    async with subscribed(graph, stop=True, seconds=0.5) as channel:
        pass
    assert graph.subscriptions == {}
    assert channel.state is None


# Google


async def test_the_sync_notification_of_google_is_not_a_push(google):
    async with subscribed(google) as channel:
        assert google.synced == [200]
        assert channel.said(Push()) == []
        assert channel.until == pytest.approx(1e9 + LIFETIME, abs=1)
        assert await google.change() == [200]
    assert [event for _, event in channel.events] == ["up", Push()]


async def test_a_google_notification_with_a_wrong_token_is_refused(google):
    async with subscribed(google) as channel:
        assert await google.change(token="guessed") == [401]
    assert channel.said(Push()) == []


async def test_a_google_channel_is_replaced_before_it_expires(google):
    async with subscribed(google, seconds=LIFETIME / 2 + 61) as channel:
        assert google.requests == ["watch", "watch", "stop"]
        assert await google.change() == [200]
        await anyio.sleep(LIFETIME * 3)
        assert await google.change() == [200]
        assert len(google.used) >= 7
    assert channel.said("down") == []


async def test_a_google_channel_whose_answer_was_lost_is_replaced_and_stopped(google):
    google.script.append("lost")
    async with subscribed(google):
        assert google.requests == ["watch", "watch", "watch", "stop"]
        assert len(google.channels) == 1


async def test_a_google_channel_is_kept_after_a_restart(google):
    async with subscribed(google) as channel:
        pass
    async with subscribed(google, channel=channel):
        assert google.requests == ["watch"]
        assert await google.change() == [200]


async def test_a_google_channel_is_stopped_by_its_id_and_resource_id(google):
    async with subscribed(google, stop=True):
        pass
    assert google.requests == ["watch", "stop"]
    assert google.channels == {}


async def test_a_google_channel_without_a_known_resource_id_is_not_stopped(google):
    google.script.append("lost")
    async with subscribed(google, stop=True, seconds=0) as channel:
        await anyio.sleep(0.0)
    assert "stop" not in google.requests
    assert channel.state is None
