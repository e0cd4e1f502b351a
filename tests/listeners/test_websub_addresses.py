"""A topic and its hub cannot lead to private addresses, nor to an origin that would get credentials."""

import contextlib
import json

import anyio
import httpx
import pytest

from push_to_poll_client.listeners.subscriptions import WebSub
from push_to_poll_client.listeners.webhook import WebhookListener
from tests.support.subscription_server import Channel
from tests.support.websub_hub import CALLBACK, HUB, TOPIC, Hub

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day")]

REFUSED = "is on this machine or in a private network; an internet server must not link or redirect to it"

PRIVATE = (
    "127.0.0.1",
    "localhost",
    "LOCALHOST.",
    "hub.localhost",
    "10.1.2.3",
    "192.168.0.1:8080",
    "169.254.169.254",
    "0.0.0.0",  # noqa: S104 - not to bind to
    "[::1]",
    "[fd00::1]",
    "[fe80::1%25eth0]",
    "[::ffff:10.0.0.1]",
    "2130706433",
    "0x7f.1",
    "017700000001",
    "127.1",
)


@pytest.fixture
async def hub():
    async with anyio.create_task_group() as tasks:
        yield Hub(tasks)
        tasks.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def subscribed(servers, topic=TOPIC, *, channel=None, unsubscribe_on_exit=False, **options):
    subscription = WebSub(topic, CALLBACK, client=servers.client(), **options)
    hooks = servers.app = WebhookListener(subscription=subscription, unsubscribe_on_exit=unsubscribe_on_exit)
    channel = channel or Channel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hooks.listen, channel)
        await anyio.sleep(1)
        yield channel
        tasks.cancel_scope.cancel()


def naming(hub):
    return httpx.Response(200, headers={"link": f"<{hub}>; rel=hub"})


def redirect(location):
    return httpx.Response(307, headers={"location": location})


@pytest.mark.parametrize("host", PRIVATE)
async def test_a_topic_on_the_internet_cannot_name_a_hub_at_a_private_address(hub, host):
    hub.topic = naming(f"https://{host}/admin")
    async with subscribed(hub) as channel:
        assert REFUSED in str(channel.error)
    assert hub.requests == [("GET", TOPIC)]


async def test_the_body_of_a_topic_cannot_name_a_hub_at_a_private_address(hub):
    page = "<head><link rel=hub href=https://169.254.169.254/latest></head>"
    hub.topic = httpx.Response(200, headers={"content-type": "text/html"}, text=page)
    async with subscribed(hub) as channel:
        assert f"https://169.254.169.254/latest {REFUSED}" in str(channel.error)
    assert hub.requests == [("GET", TOPIC)]


@pytest.mark.parametrize("host", PRIVATE)
async def test_a_topic_on_the_internet_cannot_redirect_to_a_private_address(hub, host):
    hub.topic = redirect(f"https://{host}/")
    async with subscribed(hub) as channel:
        assert REFUSED in str(channel.error)
    assert hub.requests == [("GET", TOPIC)]


@pytest.mark.parametrize("options", [{}, {"hub": HUB}])
async def test_a_hub_on_the_internet_cannot_redirect_to_a_private_address(hub, options):
    hub.answers = [redirect("https://10.0.0.1/")]
    async with subscribed(hub, **options) as channel:
        assert REFUSED in str(channel.error)
    assert hub.requests[-1] == ("POST", HUB)


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1]", "[64:ff9b::808:808]", "134744072"])
async def test_a_hub_may_be_named_by_a_public_address(hub, host):
    hub.topic = naming(f"https://{host}/")
    async with subscribed(hub) as channel:
        assert channel.said("up") == ["up"]


@pytest.mark.parametrize("topic", ["http://localhost/feed", "http://127.0.0.1/feed", "http://[fd00::7]/feed"])
async def test_a_topic_at_a_private_address_may_lead_to_another_one(hub, topic):
    take = hub._take
    moved = [redirect("/moved"), naming("http://10.0.0.1/hub")]

    async def handle(request):
        return moved.pop(0) if request.method == "GET" else await take(request)

    hub._take = handle
    async with subscribed(hub, topic) as channel:
        assert channel.said("up") == ["up"]
    moved = [redirect("/moved"), naming("http://10.0.0.1/hub")]
    async with subscribed(hub, topic, channel=channel, unsubscribe_on_exit=True):
        pass
    assert [form["hub.mode"] for form in hub.forms] == ["subscribe", "unsubscribe"]
    assert hub.subscriptions == {}


async def test_a_redirect_to_the_internet_ends_the_right_to_lead_to_private_addresses(hub):
    answers = {
        "localhost": redirect("https://blog.example/feed"),
        "blog.example": naming("https://10.0.0.1/"),
    }

    async def handle(request):
        hub.requests.append(str(request.url))
        return answers[request.url.host]

    hub.handle = handle
    async with subscribed(hub, "http://localhost/feed") as channel:
        assert REFUSED in str(channel.error)
    assert hub.requests == ["http://localhost/feed", TOPIC]


async def test_a_hub_that_the_user_gave_may_have_a_private_address(hub):
    for _ in range(2):  # the saved hub is asked to stop
        channel = Channel()
        async with subscribed(hub, hub="http://10.0.0.1/", channel=channel, unsubscribe_on_exit=True):
            assert channel.said("up") == ["up"]
        assert hub.subscriptions == {}


async def test_the_user_and_password_of_a_hub_link_are_not_used(hub):
    hub.topic = naming("https://user:c4n4ry@hub.example/")
    async with subscribed(hub) as channel:
        assert hub.requests == [("GET", TOPIC), ("POST", HUB)]
        assert json.loads(channel.state)["book"]["current"]["details"]["hub"] == HUB
    assert "authorization" not in hub.seen[1]


async def test_the_user_and_password_of_a_redirect_are_not_used(hub):
    topics = [redirect("https://user:c4n4ry@blog.example/feed"), naming(HUB)]
    hub.answers = [redirect("https://user:c4n4ry@other.example/")]
    take = hub.handle

    async def handle(request):
        hub.topic = topics.pop(0) if request.method == "GET" else None
        return await take(request)

    hub.handle = handle
    async with subscribed(hub) as channel:
        assert channel.said("up") == ["up"]
        assert "c4n4ry" not in channel.state
    assert hub.requests == [("GET", TOPIC), ("GET", TOPIC), ("POST", HUB), ("POST", "https://other.example/")]
    assert not any("authorization" in seen for seen in hub.seen)


def test_a_hub_with_a_user_and_password_is_refused_and_they_are_not_shown():
    with pytest.raises(ValueError, match="hub must not have a user and password") as refused:
        WebSub(TOPIC, CALLBACK, hub="https://user:c4n4ry@hub.example/")
    assert "c4n4ry" not in str(refused.value)
