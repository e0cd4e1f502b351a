"""Pull-wake in virtual time, with a server in memory: no order of events loses a message."""

import functools
import itertools
import json
import math

import anyio
import httpx
import pytest

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.durable_streams import PullWakeListener
from push_to_poll_client.durable_streams._pull_wake import Claim, split_channel
from push_to_poll_client.listeners._webhook.types import Control
from push_to_poll_client.testing._virtual_time import virtual_time
from tests.support.durable_wakes_memory import ROOT, LoggedChannel, Wakes
from tests.support.forms import form

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"
LOST = httpx.ReadError("Connection reset by peer")


def listener_of(server, *, root=ROOT, fraction=0.5, **options):
    settings = {"wake_stream": "wake/x", "streams": ["orders"], "max_age": None, "max_silence": None}
    listener = PullWakeListener(
        root, client=httpx.AsyncClient(transport=server), **{**settings, "confirm_every": 1e6, **options}
    )
    listener._fraction = listener._manager._fraction = lambda: fraction
    return listener


async def run(server, *listeners, seconds=60.0, then=None):
    """Let listeners run for some seconds. Something may happen in the middle."""
    channels = [LoggedChannel(server, f"wake {number}") for number, _ in enumerate(listeners)]
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.leases)
            for listener, channel in zip(listeners, channels, strict=True):
                tasks.start_soon(listener.listen, channel)
            await anyio.sleep(seconds / 2)
            if then is not None:
                then()
            await anyio.sleep_forever()
    assert server.open == 0
    return channels[0] if len(channels) == 1 else channels


def is_announced(log, name="wake 0"):
    """True if a poll followed everything that was appended."""
    return "append" not in log or name in log[len(log) - log[::-1].index("append") :]


def requests_to(server, step):
    return [request for request in server.requests if request.url.path.endswith(step)]


async def test_a_wake_is_claimed_forwarded_as_a_push_and_acknowledged():
    server = Wakes()
    channel = await run(server, listener_of(server, worker="w"), then=server.append)
    assert channel.events[-1] == (30.0, Push(topics=("orders",)))
    assert [request.url.path.rpartition("/")[2] for request in server.requests[-2:]] == ["claim", "ack"]
    (*_, claim), (ack,) = requests_to(server, "/claim"), requests_to(server, "/ack")
    assert json.loads(claim.content) == {"worker": "w"}
    assert json.loads(ack.content) == {
        "wake_id": "w_1",
        "generation": 1,
        "acks": [{"stream": "orders", "offset": "00000001"}],
        "done": True,
    }


# No order of events loses a message. A point is a time between two steps: a request, an event, a wake.

POINTS = 20
"""The first connect and two wakes. Later steps repeat these."""

CONNECTED = 8
"""Points before the first claim."""

NEAR = 3
"""Maximum number of points between two events. Further apart they do not interact."""


def places(count, *, within=range(POINTS)):
    return [place for place in itertools.combinations(within, count) if place[-1] - place[0] <= NEAR]


def pairs():
    return [pair for pair in itertools.product(range(POINTS), repeat=2) if abs(pair[0] - pair[1]) <= NEAR]


on_one_loop = pytest.mark.parametrize("anyio_backend", form(["asyncio"], ["asyncio", "trio"]), indirect=True)
"""In the short form, tests with many points run on one event loop only; quick tests run on both."""


async def check(at, why, *, workers=1):
    """Run with a server where this happens at these points, and check that all is announced."""
    server = Wakes()
    server.at = lambda number, name: at(server, number, name)
    await run(server, *(listener_of(server) for _ in range(workers)), then=server.append)
    for worker in range(workers):
        assert is_announced(server.log, f"wake {worker}"), (why, server.points, server.log)


@pytest.mark.no_cover  # lines are counted where it is quick
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_every_appended_message_causes_a_wake_at_any_point_of_the_protocol(count):
    for place in places(count, within=range(CONNECTED if count == 3 else 0, POINTS)):
        await check(lambda server, number, name, place=place: number in place and server.append(), place)


@pytest.mark.no_cover  # lines are counted where it is quick
@on_one_loop
async def test_every_appended_message_wakes_both_of_two_workers():
    for place in [*places(1, within=range(2 * POINTS)), *places(2, within=range(2 * CONNECTED, 2 * POINTS))]:
        await check(
            lambda server, number, name, place=place: number in place and server.append(), place, workers=2
        )


@pytest.mark.no_cover  # lines are counted where it is quick
@on_one_loop
@pytest.mark.parametrize("workers", form([2], [1, 2]))
async def test_every_appended_message_causes_a_wake_when_a_request_or_response_is_lost(workers):
    """A lost request may have been a claim that the server granted: its lease expires."""

    def at(server, number, name, lost, appended):
        if number == appended:
            server.append()
        if number == lost and name not in {"event", "wake"}:
            raise LOST

    for lost, appended in pairs():
        happening = functools.partial(at, lost=lost, appended=appended)
        await check(happening, (lost, appended), workers=workers)


@pytest.mark.no_cover  # lines are counted where it is quick
@on_one_loop
@pytest.mark.parametrize("what", ["end_streams", "forget"])
async def test_every_appended_message_causes_a_wake_when_streams_end_or_the_subscription_is_lost(what):
    def at(server, number, name, ended, appended):
        if number == ended:
            getattr(server, what)()
        if number == appended:
            server.append()

    for ended, appended in pairs():
        await check(functools.partial(at, ended=ended, appended=appended), (what, ended, appended))


# Requests and responses


def refuse(status, code="ANY"):
    return httpx.Response(status, json={"error": {"code": code}})


async def test_a_wake_claimed_by_another_worker_still_wakes_the_consumer():
    server = Wakes()
    server.answers["claim"] = refuse(409, "ALREADY_CLAIMED")
    channel = await run(server, listener_of(server), then=server.append)
    assert channel.events == [(0.0, "up"), (30.0, Push(topics=("orders",)))]


@pytest.mark.parametrize("answer", [httpx.Response(500), LOST, httpx.Response(200, content=b"{}")])
async def test_a_failed_claim_wakes_the_consumer_and_is_repeated_on_the_next_connect(answer):
    server = Wakes()
    server.answers["claim"] = [None, answer, *[None] * 9]
    channel = await run(server, listener_of(server), seconds=1000.0, then=server.append)
    assert channel.events[:4] == [(0.0, "up"), (500.0, Push()), (500.0, "down"), (channel.events[3][0], "up")]
    assert [request.url.path.rpartition("/")[2] for request in server.requests[-2:]] == ["claim", "ack"]
    assert server.subscriptions.popitem()[1].acked == 1


async def test_the_log_names_the_claim_as_the_failed_request(caplog):
    caplog.set_level("INFO")
    server = Wakes()
    server.answers["claim"] = [httpx.Response(403), httpx.Response(200, content=b"[" * 9999), *[None] * 9]
    await run(server, listener_of(server), seconds=2000.0)
    assert "wake/x: the server answered HTTP 403 instead of a claim; reconnecting in 375.0 s" in caplog.text
    assert "claim sent no valid claim (§7.2); reconnecting in 375.0 s" in caplog.text


async def test_the_log_names_the_event_stream_as_the_failed_request(caplog):
    caplog.set_level("INFO")
    server = Wakes()
    server.answers["x"] = [None, httpx.Response(403), *[None] * 9]
    await run(server, listener_of(server))
    assert "the server answered HTTP 403 instead of an event stream" in caplog.text


@pytest.mark.parametrize("status", [409, 401, 404])
async def test_a_claim_is_released_when_the_server_refuses_its_acknowledgement(status):
    """For example if a stream was deleted meanwhile; the server then checks for new messages itself."""
    server = Wakes()
    server.answers["ack"] = [refuse(status), *[None] * 9]
    channel = await run(server, listener_of(server), then=server.append)
    assert [request.url.path.rpartition("/")[2] for request in server.requests[-5:]] == [
        "claim",
        "ack",
        "release",
        "claim",
        "ack",
    ]
    assert channel.events == [(0.0, "up"), *[(30.0, Push(topics=("orders",)))] * 2]


@pytest.mark.parametrize("answer", [httpx.Response(503), httpx.Response(429), LOST])
async def test_a_failed_acknowledgement_is_repeated_on_the_next_connect(answer):
    """The server need not wait for the end of the lease. The consumer was woken already."""
    server = Wakes()
    server.answers["ack"] = [answer, *[None] * 9]
    channel = await run(server, listener_of(server, lease=600.0), seconds=200.0, then=server.append)
    assert channel.events[:3] == [(0.0, "up"), (100.0, Push(topics=("orders",))), (100.0, "down")]
    assert channel.events[3][1] == "up"
    assert [request.url.path.rpartition("/")[2] for request in server.requests[-5:]] == [
        "ack",
        "x",
        "x",
        "ack",
        "claim",
    ]


OURS = "an id that is replaced"


@pytest.mark.parametrize(
    ("event", "pushes"),
    [
        ({"type": "wake", "subscription_id": OURS, "stream": "orders", "later": 1}, [Push(topics=("orders",))]),
        ({"type": "wake", "subscription_id": OURS}, [Push()]),
        ({"type": "wake", "subscription_id": "another's", "stream": "orders"}, []),
        ({"type": "rest", "subscription_id": OURS, "stream": "orders"}, []),
        ({}, []),
        ("[]", []),
        (f'{{"type":"wake","subscription_id":"{OURS}","stream":"a"}}', [Push(topics=("a",))]),
        ("no JSON", [Push()]),
        ("[" * 9999, [Push()]),
        ('[{"type": 7}]', [Push()]),
    ],
)
async def test_own_and_unreadable_events_are_wakes_and_other_events_are_not(event, pushes):
    """An unreadable event may be a wake, and costs a claim."""
    server = Wakes()
    listener = listener_of(server)
    text = event if isinstance(event, str) else json.dumps([event])
    text = text.replace(OURS, listener._subscription.id)
    channel = await run(server, listener, then=lambda: server.write(text))
    assert channel.pushes == pushes
    assert len(requests_to(server, "/claim")) == 1 + len(pushes)


async def test_many_events_that_arrive_together_are_one_claim():
    server = Wakes()
    server.answers["claim"] = refuse(409)
    listener = listener_of(server)
    wake = {"type": "wake", "subscription_id": listener._subscription.id, "stream": "orders"}
    channel = await run(server, listener, then=lambda: server.write(json.dumps([wake] * 100)))
    assert channel.pushes == [Push(topics=("orders",))]


async def test_a_flood_on_the_wake_stream_causes_ten_claims_and_then_five_a_second():
    server = Wakes()
    server.answers["claim"] = refuse(409)
    listener = listener_of(server)
    wake = {"type": "wake", "subscription_id": listener._subscription.id}

    async def write():
        await anyio.sleep(30)
        for _ in range(1000):
            server.write(wake)
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        channel = await run(server, listener, seconds=60.0)
    assert 10 + 5 * 10 - 2 <= len(requests_to(server, "/claim")) <= 10 + 5 * 10 + 2
    assert len(channel.pushes) == len(requests_to(server, "/claim")) - 1


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_wakes_in_quick_succession_are_claimed_ten_times_and_then_five_times_a_second():
    server = Wakes()
    server.at = lambda number, name: name == "ack answered" and server.append()
    await run(server, listener_of(server), seconds=60.0, then=server.append)
    assert 10 + 5 * 30 - 2 <= len(requests_to(server, "/claim")) <= 10 + 5 * 30 + 2


async def test_a_claim_of_many_streams_is_a_push_without_topics():
    server = Wakes()
    stream = {"tail_offset": "1", "has_pending": True}
    claim = {
        "wake_id": "w",
        "generation": 1,
        "token": "t",
        "streams": [stream | {"path": f"{i}"} for i in range(65)],
    }
    server.answers["claim"] = [None, httpx.Response(200, json=claim)]
    server.answers["ack"] = httpx.Response(200)
    channel = await run(server, listener_of(server), then=server.append)
    assert channel.pushes == [Push()]
    (ack,) = requests_to(server, "/ack")
    assert len(json.loads(ack.content)["acks"]) == 65


async def test_an_existing_wake_stream_is_read_when_its_creation_is_forbidden():
    server = Wakes()
    server.wakes = []
    server.answers["x"] = [httpx.Response(403), *[None] * 9]
    channel = await run(server, listener_of(server), then=server.append)
    assert channel.events == [(0.0, "up"), (30.0, Push(topics=("orders",)))]


async def test_the_channel_is_up_only_when_subscription_and_wake_stream_are_up(caplog):
    """The stream is not followed before the subscription is active."""
    server = Wakes()
    listener = listener_of(server)
    server.answers[listener._subscription.id] = [httpx.Response(500), *[None] * 9]
    channel = await run(server, listener)
    assert [event for _, event in channel.events] == ["down", "up"]
    assert channel.subscribed_until == math.inf
    assert "HTTP 500 instead of a subscription" in str(channel.errors[0])
    asked_for = [request.url.path.rpartition("/")[2] for request in server.requests]
    assert asked_for == [listener._subscription.id, listener._subscription.id, "x", "x", "claim"]


async def test_the_channel_is_down_when_one_of_its_two_halves_is_down():
    channel = LoggedChannel(Wakes())
    one, other = split_channel(channel)
    one.down()
    for say in (one.up, other.up, one.down, other.down, one.up, one.request_poll, other.up):
        say()
    assert [event for _, event in channel.events] == ["down", "up", "down", "down", "poll", "up"]


async def test_the_listener_ends_when_the_wake_stream_answers_204():
    server = Wakes()
    server.wakes = []
    listener = listener_of(server)
    server.answers["x"] = [None, httpx.Response(204)]
    with anyio.fail_after(9):
        await listener.listen(LoggedChannel(server))


async def test_a_subscription_refused_as_invalid_is_a_listener_error():
    server = Wakes()
    listener = listener_of(server)
    server.answers[listener._subscription.id] = refuse(400, "INVALID_REQUEST")
    with pytest.raises(ListenerError, match="answered INVALID_REQUEST: the server rejects this subscription"):
        await listener.listen(LoggedChannel(server))


async def test_a_lost_subscription_is_created_again_when_a_claim_does_not_find_it():
    """The claim after the reconnect notices it first. The next confirmation is eleven days away."""
    server = Wakes()
    listener = listener_of(server, max_age=None)

    async def lose_and_append():
        await anyio.sleep(30)
        server.forget()
        await anyio.sleep(10)
        assert listener._subscription.id in server.subscriptions
        server.append()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose_and_append)
        channel = await run(server, listener)
    creations = [request for request in requests_to(server, listener._subscription.id) if request.method == "PUT"]
    assert len(creations) == 2
    assert channel.events[-1] == (40.0, Push(topics=("orders",)))


async def test_a_lost_subscription_is_reported_once_while_the_server_refuses_another():
    """Otherwise each wake would request it again at once, without the manager's delays."""
    server = Wakes()
    listener = listener_of(server)
    reported, report = [], listener._manager.control
    listener._manager.control = lambda control: (reported.append(control), report(control))

    async def lose_and_write():
        await anyio.sleep(30)
        server.answers[listener._subscription.id] = httpx.Response(503)
        server.subscriptions.clear()
        for _ in range(2):
            server.write({"type": "wake", "subscription_id": listener._subscription.id})
            await anyio.sleep(5)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose_and_write)
        await run(server, listener)
    assert len(requests_to(server, "/claim")) == 3
    assert reported == [Control.RECREATE]


async def test_the_subscription_is_deleted_at_the_end_only_with_unsubscribe_on_exit():
    for stop in (False, True):
        server = Wakes()
        await run(server, listener_of(server, unsubscribe_on_exit=stop))
        assert bool(server.subscriptions) is not stop


# Secrets


async def test_claims_are_acknowledged_with_their_own_token_and_no_secret_is_shown(caplog):
    caplog.set_level("DEBUG")
    server = Wakes()
    listener = listener_of(server, auth=CANARY, headers={"x-gate": CANARY})
    await run(server, listener, then=server.append)
    sent = {
        request.url.path.rpartition("/")[2]: request.headers["authorization"]
        for request in server.requests
        if request.method == "POST"
    }
    assert sent == {"claim": f"Bearer {CANARY}", "ack": "Bearer t0ken-1"}
    assert {request.headers["x-gate"] for request in server.requests} == {CANARY}
    claim = Claim("w_1", 1, CANARY, [])
    for text in (caplog.text, repr(listener), repr(claim), listener.name):
        assert CANARY not in text
        assert "t0ken" not in text


async def test_user_and_password_of_the_root_are_sent_as_basic_and_not_shown():
    server = Wakes()
    listener = listener_of(server, root=f"https://user:{CANARY}@streams.example/v1/stream/")
    await run(server, listener, then=server.append)
    sent = {request.headers["authorization"][:5] for request in server.requests if "/ack" not in str(request.url)}
    assert sent == {"Basic"}
    assert repr(listener) == "PullWakeListener('https://streams.example/v1/stream/wake/x')"


# Arguments


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"wake_stream": "/"}, ValueError, "wake_stream must not have an empty path, got '/'"),
        ({"wake_stream": 7}, TypeError, "wake_stream: a path must be a str, got int"),
        ({"streams": []}, ValueError, "pass streams= or pattern="),
        ({"streams": "orders"}, TypeError, "streams must be a list of paths such as"),
        ({"lease": 0.5}, ValueError, "lease must be between 1 and 600 seconds, got 0.5"),
        ({"lease": 601}, ValueError, "lease must be between 1 and 600 seconds"),
        ({"confirm_every": 0}, ValueError, "confirm_every must be finite and above 0"),
        ({"open_timeout": 0}, ValueError, "open_timeout must be finite and above 0"),
        ({"id": ""}, ValueError, "id must not be empty"),
        ({"id": 7}, TypeError, "id must be a str, got int"),
        ({"root": "https://streams.example/?x=1"}, ValueError, "has a query or fragment"),
        ({"root": "ftp://streams.example/"}, ValueError, "ftp"),
    ],
)
def test_invalid_arguments_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        listener_of(Wakes(), **options)


def test_each_worker_has_a_unique_name():
    first, second = listener_of(Wakes()), listener_of(Wakes())
    assert first._worker != second._worker
    assert first._subscription.id == second._subscription.id


async def test_a_second_consumer_of_the_same_listener_is_refused_and_the_first_is_still_woken():
    """Also after its connection was renewed at its maximum age."""
    server = Wakes()
    listener = listener_of(server, max_age=16.0)

    async def listen_too():
        await anyio.sleep(5)
        with pytest.raises(RuntimeError, match="another consumer uses this listener"):
            await listener.listen(LoggedChannel(server))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen_too)
        channel = await run(server, listener, then=server.append)
    assert (30.0, Push(topics=("orders",))) in channel.events


class Each(httpx.AsyncBaseTransport):
    """The server is used in one event loop after the other."""

    async def handle_async_request(self, request):
        return await self.server.handle_async_request(request)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_listener_works_again_in_an_event_loop_with_an_earlier_clock(backend):
    """Clocks of trio may differ by days: each starts at random."""
    listener = listener_of(each := Each())

    async def live(earlier):
        each.server = server = Wakes()
        await anyio.sleep(earlier)
        return await run(server, listener, then=server.append)

    for earlier in (1e5, 0.0):
        name, options = virtual_time(backend)
        channel = anyio.run(live, earlier, backend=name, backend_options=options)
        assert channel.events[-1] == (30.0, Push(topics=("orders",)))


@pytest.mark.parametrize("token", ["t", "no\nheader"])
async def test_a_claim_that_cannot_be_acknowledged_does_not_keep_the_channel_down(token):
    """It must not keep the channel down permanently."""

    class Fails(Wakes):
        def _ack(self, request):
            return refuse(500) if json.loads(request.content)["wake_id"] == "w" else super()._ack(request)

    server = Fails()
    claim = {"wake_id": "w", "generation": 1, "token": token, "streams": []}
    server.answers["claim"] = [httpx.Response(200, json=claim), *[None] * 99]
    channel = await run(server, listener_of(server), seconds=600.0, then=server.append)
    assert channel.events[-1] == (300.0, Push(topics=("orders",)))
