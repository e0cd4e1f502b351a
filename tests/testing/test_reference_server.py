"""The reference server: the HTTP Feeds protocol and the faults of `Faults`, on real sockets."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import anyio
import httpx
import pytest
import websockets
from anyio.to_thread import run_sync
from websockets.sync.client import connect

from push_to_poll_client import FeedError, FetchRequest, HTTPFeed, testing
from push_to_poll_client.testing import Faults, ReferenceApp, ReferenceServer, Stats, serve_in_thread, server
from tests.support.forms import GUARD, form

BATCH = "application/cloudevents-batch+json"
FIRST, SECOND, THIRD = (f"{n:012d}" for n in (1, 2, 3))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def no_time_to_go_on(monkeypatch):
    """Tests fail on the guard if something does not stop at once."""
    monkeypatch.setattr(server, "STOP_TIMEOUT", 2 * GUARD)


@pytest.fixture
def served():
    with serve_in_thread(page_size=2) as server:
        yield server


@contextmanager
def within_the_guard():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < GUARD


@pytest.fixture
def client(served):
    with httpx.Client(base_url=served.base_url, timeout=GUARD) as client:
        yield client


@contextmanager
def websocket(served, **kwargs):
    """Open a connection that the server has counted."""
    accepted = served.stats.websockets_accepted  # open ones may include one that its client closed
    with connect(served.push_url, open_timeout=GUARD, close_timeout=1, **kwargs) as connection:
        served.stats.wait_for(lambda stats: stats.websockets_accepted > accepted and stats.websockets_open)
        yield connection


def ids(response):
    assert response.status_code == 200
    return [event["id"] for event in response.json()]


def after(id, **params):
    return {"lastEventId": id, **params}


# The feed


def test_arguments_beside_an_app_are_refused():
    serving = serve_in_thread(ReferenceApp(), page_size=5)
    with pytest.raises(TypeError, match="pass page_size to ReferenceApp"):
        serving.__enter__()


def test_an_empty_feed_is_an_empty_batch(client):
    response = client.get("/feed")
    assert (response.status_code, response.content, response.headers["content-type"]) == (200, b"[]", BATCH)


def test_an_event_is_a_cloudevent_with_the_time_of_its_publication(served, client):
    before = time.monotonic()
    served.publish([{"total": 12}])
    (event,) = client.get("/feed").json()
    assert before <= event["data"].pop("sent") <= time.monotonic()
    time_ = event.pop("time")
    assert time_.endswith("+00:00")
    assert event == {
        "specversion": "1.0",
        "id": FIRST,
        "source": "https://reference.example/orders",
        "type": "example.order",
        "subject": f"orders/{FIRST}",
        "region": "north",
        "data": {"total": 12},
    }


@pytest.mark.parametrize("data", [7, "text", None, [1], {"sent": 0}])
def test_event_data_is_returned_unchanged(served, client, data):
    served.publish([data])
    assert client.get("/feed").json()[0]["data"] == data


def test_pages_follow_the_last_id_and_the_end_is_empty(served, client):
    assert served.publish(3) == [FIRST, SECOND, THIRD]
    assert ids(client.get("/feed")) == [FIRST, SECOND]
    assert ids(client.get("/feed", params=after(SECOND))) == [THIRD]
    assert ids(client.get("/feed", params=after(THIRD))) == []


@pytest.mark.parametrize("id", ["null", "nonsense", "9" * 12, "1", ""])
def test_an_empty_or_unknown_last_id_reads_from_the_beginning(served, client, id):
    served.publish(1)
    assert ids(client.get("/feed", params=after(id))) == [FIRST]


def test_a_page_of_a_long_backlog_is_read_as_one_slice():
    """No code reads the whole backlog, and the server does not push it."""

    class Events(list):
        def __iter__(self):
            pytest.fail("one event after the other")

        def __getitem__(self, what):
            slices.append(what)
            return super().__getitem__(what)

    slices, app = [], ReferenceApp(backlog=20_000)
    app._state.events = Events(app._state.events)
    with serve_in_thread(app) as served, httpx.Client(timeout=GUARD) as client:
        last = client.get(served.url, params=after("000000019000")).json()
        whole = client.get(served.url, params=after("000000019999"))
        assert [last[-1]["id"], *ids(whole)] == ["000000020000"] * 2
        assert 250 < len(whole.content) < 350
        assert served.pushes == []
    assert [place.start for place in slices] == [19_000, 19_999]


def test_publishing_over_http_returns_the_ids(served, client):
    assert client.post("/publish", json=2).json() == [FIRST, SECOND]
    assert client.post("/publish", json=[{"total": 1}]).json() == [THIRD]
    assert client.post("/publish", json=[]).json() == []
    assert [record.cursor for record in served.pushes] == [SECOND, THIRD]
    assert served.stats.published == 3


def test_a_long_body_is_read_whole(client):
    assert len(client.post("/publish", json=["x" * 1000] * 1000).json()) == 1000


@pytest.mark.parametrize(
    ("path", "body"),
    [("/publish", '"x"'), ("/publish", "{"), ("/faults", '{"no_such": 1}'), ("/faults", '{"fail_next": "x"}')],
)
def test_an_invalid_request_body_is_refused_with_400(client, path, body):
    assert client.post(path, content=body).status_code == 400


def test_an_unknown_path_or_method_is_answered_with_404(client):
    assert client.get("/").status_code == client.post("/feed").status_code == 404


# Long polling


@pytest.mark.anyio
async def test_a_held_fetch_is_answered_by_a_publication(served):
    async with httpx.AsyncClient(timeout=GUARD) as client, anyio.create_task_group() as tasks:

        async def publish():
            await run_sync(lambda: served.stats.wait_for(lambda stats: stats.held == 1))
            await run_sync(served.publish)

        tasks.start_soon(publish)
        with anyio.fail_after(GUARD):
            assert ids(await client.get(served.url, params={"timeout": "60000"})) == [FIRST]
    assert served.stats.held == 0


def test_a_held_fetch_ends_empty_when_its_time_is_over(client):
    assert ids(client.get("/feed", params={"timeout": "20"})) == []


@pytest.mark.parametrize("timeout", ["0", "soon", "-5"])
def test_a_fetch_without_a_valid_timeout_is_not_held(client, timeout):
    assert ids(client.get("/feed", params={"timeout": timeout})) == []


def test_a_fetch_with_events_to_return_is_not_held(served, client):
    served.publish(1)
    assert ids(client.get("/feed", params={"timeout": "60000"})) == [FIRST]


@pytest.mark.anyio
async def test_a_held_fetch_ends_when_its_client_disconnects(served):
    async with httpx.AsyncClient(timeout=GUARD) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.get(served.url, params={"timeout": "60000"}))
        await run_sync(lambda: served.stats.wait_for(lambda stats: stats.held == 1))
        tasks.cancel_scope.cancel()
    await run_sync(lambda: served.stats.wait_for(lambda stats: stats.held == 0))


@pytest.mark.anyio
async def test_the_events_of_a_page_are_chosen_before_the_latency(served):
    """A wake during a fetch must find its message in the next page. A late choice would hide a bug."""
    served.faults.latency = 0.2
    async with httpx.AsyncClient(timeout=GUARD) as client, anyio.create_task_group() as tasks:

        async def publish():
            await run_sync(lambda: served.stats.wait_for(lambda stats: stats.fetches == 1))
            await run_sync(served.publish)

        tasks.start_soon(publish)
        assert ids(await client.get(served.url)) == []
    assert served.stats.published == 1


# Faults of the feed


@pytest.mark.parametrize(("retry_after", "header"), [(None, None), (7.0, "7"), (0.5, "0.5"), ("soon", "soon")])
def test_fail_next_makes_fetches_fail_with_the_given_status_and_retry_after(served, client, retry_after, header):
    served.faults.set(fail_next=2, fail_status=429, retry_after=retry_after)
    for _ in range(2):
        response = client.get("/feed")
        assert (response.status_code, response.headers.get("retry-after")) == (429, header)
    assert client.get("/feed").status_code == 200
    assert served.stats.statuses == {429: 2, 200: 1}


def test_cut_next_cuts_a_body_in_the_middle(served, client):
    served.publish(2)
    client.post("/faults", json={"cut_next": 1})
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        client.get("/feed")
    assert len(ids(client.get("/feed"))) == 2


def test_stall_next_stalls_a_body_until_the_client_gives_up(served, client):
    served.publish(2)
    served.faults.stall_next = 1
    with pytest.raises(httpx.ReadTimeout):
        client.get("/feed", timeout=httpx.Timeout(GUARD, read=0.1))
    assert len(ids(client.get("/feed"))) == 2


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        ("type", "sent 'text/html', not application/cloudevents-batch"),
        ("encoding", "sent Content-Encoding 'br', which was not requested"),
        ("truncated", "sent a gzip body that is cut off"),
        ("bomb", "sent a body of more than 10000 bytes"),
        ("garbage", "not send a JSON array"),
    ],
)
@pytest.mark.anyio
async def test_the_http_feed_names_the_fault_of_a_spoiled_page(served, how, seen):
    served.publish(2)
    served.faults.set(spoil_next=1, spoil_as=how)
    feed = HTTPFeed(served.url, max_body=10_000)
    with pytest.raises(FeedError, match=seen):
        await feed.fetch(FetchRequest())
    assert len((await feed.fetch(FetchRequest())).messages) == 2
    await feed.aclose()


def test_repeat_next_returns_the_previous_page_again(served, client):
    served.publish(4)
    first = ids(client.get("/feed"))
    served.faults.repeat_next = 1
    assert ids(client.get("/feed", params=after(SECOND))) == first
    assert ids(client.get("/feed", params=after(SECOND))) == [THIRD, f"{4:012d}"]


def test_grow_next_publishes_events_without_a_push_while_the_feed_is_read(served, client):
    served.faults.grow_next = 2
    assert ids(client.get("/feed")) == [FIRST, SECOND]
    assert ids(client.get("/feed", params=after(SECOND))) == [THIRD, f"{4:012d}"]
    assert ids(client.get("/feed", params=after(f"{4:012d}"))) == []
    assert served.stats.published == 4
    assert served.pushes == []


@pytest.mark.anyio
async def test_an_unrequested_304_is_a_feed_error(served):
    served.faults.set(fail_next=1, fail_status=304)
    feed = HTTPFeed(served.url)
    with pytest.raises(FeedError, match="304 Not Modified to a request without an ETag or a date"):
        await feed.fetch(FetchRequest())
    await feed.aclose()


def test_redirect_next_redirects_one_fetch(served, client):
    served.faults.set(redirect_next=1, redirect_to="https://other.example/feed")
    response = client.get("/feed")
    assert (response.status_code, response.headers["location"]) == (307, "https://other.example/feed")
    assert client.get("/feed").status_code == 200


def test_credentials_are_required_for_fetches_and_websockets(served, client):
    served.faults.authorization = "Bearer s3cret"
    assert client.get("/feed").status_code == 401
    assert client.get("/feed", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    with pytest.raises(websockets.InvalidStatus, match="401"):
        connect(served.push_url, open_timeout=GUARD)
    with websocket(served, additional_headers={"Authorization": "Bearer s3cret"}):
        pass
    assert served.stats.websockets_refused == 1


def test_undecodable_next_publishes_an_event_that_stays_invalid(served, client):
    served.faults.undecodable_next = 1
    served.publish(2)
    for _ in range(2):
        broken, sound = client.get("/feed").json()
        assert (broken["source"], broken["id"]) == (7, FIRST)
        assert isinstance(sound["source"], str)


# Push channel


def test_each_publication_is_one_push_to_each_connection(served):
    with websocket(served) as one, websocket(served) as other:
        served.publish(2)
        served.publish(1)
        assert [json.loads(one.recv(GUARD)), json.loads(one.recv(GUARD))] == [
            {"cursor": SECOND},
            {"cursor": THIRD},
        ]
        assert json.loads(other.recv(GUARD)) == {"cursor": SECOND}
        served.stats.wait_for(lambda stats: stats.pushes_sent == 4)
    assert [(push.cursor, push.dropped, push.sent) for push in served.pushes] == [
        (SECOND, False, 2),
        (THIRD, False, 2),
    ]


def test_a_new_websocket_gets_no_push_of_an_earlier_publication(served):
    served.publish(1)
    with websocket(served) as connection:
        served.publish(1)
        assert json.loads(connection.recv(GUARD)) == {"cursor": SECOND}


def test_a_message_from_a_websocket_client_is_ignored(served):
    with websocket(served) as connection:
        connection.send("hello")
        served.publish(1)
        assert json.loads(connection.recv(GUARD)) == {"cursor": FIRST}


def test_a_disconnected_websocket_gets_no_more_pushes(served):
    with websocket(served):
        pass
    served.stats.wait_for(lambda stats: stats.websockets_open == 0)
    served.publish(1)
    assert (served.pushes[0].sent, served.stats.websockets_accepted) == (0, 1)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_that_disconnects_during_a_push_causes_no_error(backend):
    app = ReferenceApp()

    async def send(message):
        if message["type"] == "websocket.accept":
            app.publish()
        else:
            raise BrokenPipeError  # ASGI servers report it like this

    async def receive():
        await anyio.sleep(receive.calls * 1e6)
        receive.calls += 1

    receive.calls = 0
    scope = {"type": "websocket", "path": "/push", "headers": []}
    name, options = testing.virtual_time(backend)
    anyio.run(app, scope, receive, send, backend=name, backend_options=options)
    assert app.stats.websockets_open == 0


def test_drop_fraction_drops_pushes_evenly_and_drop_next_drops_the_next(served):
    served.faults.drop_fraction = 0.2
    with websocket(served) as connection:
        for _ in range(10):
            served.publish(1)
        served.faults.set(drop_fraction=0, drop_next=1)
        served.publish(1)
        served.publish(1)
        heard = [json.loads(connection.recv(GUARD))["cursor"] for _ in range(9)]
    assert [int(cursor) for cursor in heard] == [1, 2, 3, 4, 6, 7, 8, 9, 12]
    assert [int(push.cursor) for push in served.pushes if push.dropped] == [5, 10, 11]
    assert served.stats.pushes_dropped == 3


@pytest.mark.parametrize(("fraction", "dropped"), [(0, 0), (0.1, 10), (0.3, 30), (1, 100)])
def test_drop_fraction_is_kept_exactly(fraction, dropped):
    faults = Faults(drop_fraction=fraction)
    assert sum(faults.drops_push() for _ in range(100)) == dropped


def test_refuse_status_refuses_websocket_handshakes(served):
    served.faults.refuse_status = 503
    with pytest.raises(websockets.InvalidStatus, match="503"):
        connect(served.push_url, open_timeout=GUARD)


def test_accept_and_close_closes_websockets_as_soon_as_accepted(served):
    served.faults.accept_and_close = 1013
    with (
        connect(served.push_url, open_timeout=GUARD) as connection,
        pytest.raises(websockets.ConnectionClosed) as closed,
    ):
        connection.recv(GUARD)
    assert closed.value.rcvd.code == 1013
    assert (served.stats.websockets_accepted, served.stats.websockets_open) == (1, 0)


def test_close_websockets_closes_open_websockets_but_not_new_ones(served, client):
    with websocket(served) as old:
        client.post("/faults", json={"close_websockets": 4000})
        with pytest.raises(websockets.ConnectionClosed) as closed:
            old.recv(GUARD)
    assert closed.value.rcvd.code == 4000
    with websocket(served) as new:
        served.publish(1)
        assert json.loads(new.recv(GUARD)) == {"cursor": FIRST}
        served.close_websockets()
        with pytest.raises(websockets.ConnectionClosed) as closed:
            new.recv(GUARD)
    assert closed.value.rcvd.code == 1012


def test_a_half_open_websocket_answers_no_ping_and_brings_no_push(served):
    with websocket(served, ping_interval=None) as connection:
        assert connection.ping().wait(GUARD)
        served.faults.half_open = True
        answered = connection.ping()
        served.publish(1)
        assert client_hears_nothing(connection)
        assert not answered.is_set()
        assert served.stats.websockets_open == 1
        served.faults.half_open = False
        served.publish(1)
        assert json.loads(connection.recv(GUARD)) == {"cursor": SECOND}
    assert [push.sent for push in served.pushes] == [0, 1]


def client_hears_nothing(connection):
    with pytest.raises(TimeoutError):
        connection.recv(0.1)
    return True


# Server-sent events


@contextmanager
def stream(served, **kwargs):
    """Yield the lines of a stream that the server has counted."""
    accepted = served.stats.streams_accepted
    with httpx.stream("GET", served.sse_url, timeout=GUARD, **kwargs) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
        served.stats.wait_for(lambda stats: stats.streams_accepted > accepted and stats.streams_open)
        yield response.iter_lines()


def next_event(lines):
    return [next(lines) for _ in range(3)]


def test_each_publication_is_one_event_to_each_stream_and_websocket(served):
    with stream(served) as one, stream(served) as other, websocket(served) as socket:
        served.publish(2)
        served.publish(1)
        assert next_event(one) == [f"id: {SECOND}", f'data: {{"cursor":"{SECOND}"}}', ""]
        assert next_event(one)[0] == f"id: {THIRD}"
        assert next_event(other)[0] == f"id: {SECOND}"
        assert json.loads(socket.recv(GUARD)) == {"cursor": SECOND}
        served.stats.wait_for(lambda stats: stats.pushes_sent == 6)
    assert [push.sent for push in served.pushes] == [3, 3]


def test_a_stream_gets_neither_dropped_nor_earlier_pushes(served):
    served.publish(1)
    served.faults.drop_next = 1
    with stream(served) as lines:
        served.publish(1)
        served.publish(1)
        assert next_event(lines)[0] == f"id: {THIRD}"


def test_a_disconnected_stream_gets_no_more_pushes(served):
    with stream(served):
        pass
    served.stats.wait_for(lambda stats: stats.streams_open == 0)
    served.publish(1)
    assert (served.pushes[0].sent, served.stats.streams_accepted) == (0, 1)


async def hear(app, seconds):
    """Return the lines of a stream for some seconds, with their times."""
    began, heard = anyio.current_time(), []

    async def send(message):
        heard.append((anyio.current_time() - began, message.get("body")))

    with anyio.move_on_after(seconds):
        await app({"type": "http", "method": "GET", "path": "/events", "headers": []}, anyio.sleep_forever, send)
    return heard[1:]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("keep_alive", "half_open", "heard"),
    [
        (15.0, False, [(15, b": keep-alive\n\n"), (30, b": keep-alive\n\n")]),
        (15.0, True, []),
        (None, False, []),
    ],
)
def test_a_quiet_stream_gets_keep_alive_comments_unless_half_open_or_disabled(
    backend, keep_alive, half_open, heard
):
    app = ReferenceApp(keep_alive=keep_alive)
    app.faults.half_open = half_open
    name, options = testing.virtual_time(backend)
    assert anyio.run(hear, app, 40, backend=name, backend_options=options) == heard


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_half_open_stream_brings_no_push(backend):
    app, heard = ReferenceApp(), []

    async def publish():
        await anyio.sleep(1)
        for app.faults.half_open in (True, False):
            app.publish(1)
            await anyio.sleep(1)

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            heard.extend(await hear(app, 5))

    name, options = testing.virtual_time(backend)
    anyio.run(main, backend=name, backend_options=options)
    assert [(at, text[:16]) for at, text in heard] == [(2, f"id: {SECOND}".encode())]
    assert [push.sent for push in app.pushes] == [0, 1]


def test_streams_are_refused_by_refuse_status_and_without_credentials(served):
    served.faults.set(refuse_status=429, retry_after=7.0)
    refused = httpx.get(served.sse_url, timeout=GUARD)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    with pytest.raises(websockets.InvalidStatus, match="429") as raised:
        connect(served.push_url, open_timeout=GUARD)
    assert raised.value.response.headers["retry-after"] == "7"
    served.faults.authorization = "Bearer s3cret"
    assert httpx.get(served.sse_url, timeout=GUARD).status_code == 401
    assert served.stats.streams_refused == 2


def test_accept_and_close_ends_streams_at_once(served):
    served.faults.accept_and_close = 1013
    assert httpx.get(served.sse_url, timeout=GUARD).content == b""
    assert (served.stats.streams_accepted, served.stats.streams_open) == (1, 0)


def test_close_websockets_ends_open_streams_but_not_new_ones(served):
    with stream(served) as old:
        served.close_websockets()
        assert list(old) == []
    with stream(served) as new:
        served.publish(1)
        assert next_event(new)[0] == f"id: {FIRST}"


def test_a_stop_ends_streams_at_once(served):
    with stream(served) as lines, within_the_guard():
        served.stop()
        assert list(lines) == []


# Counters


def test_stats_and_pushes_can_be_read_over_http(served, client):
    served.publish(1)
    client.get("/feed")
    client.get("/feed", params=after(FIRST))
    told = client.get("/stats").json()
    assert len(told.pop("fetched_at")) == told["fetches"] == 2
    assert told == {
        "published": 1,
        "fetches": 2,
        "statuses": {"200": 2},
        "empty": 1,
        "held": 0,
        "pushes_sent": 0,
        "pushes_dropped": 0,
        "websockets_accepted": 0,
        "websockets_refused": 0,
        "websockets_open": 0,
        "streams_accepted": 0,
        "streams_refused": 0,
        "streams_open": 0,
        "long_polls": 0,
        "long_polls_held": 0,
        "webhooks": {},
        "webhooks_given_up": 0,
    }
    (push,) = client.get("/pushes").json()
    assert push == {"cursor": FIRST, "at": served.pushes[0].at, "dropped": False, "sent": 0, "times": 1}


def test_a_wait_for_stats_that_times_out_shows_the_counters():
    with pytest.raises(TimeoutError, match="published=0"):
        Stats().wait_for(lambda stats: stats.published, timeout=0.01)


def test_faults_are_set_all_or_none_and_cleared():
    faults = Faults()
    with pytest.raises(ValueError, match=r"\['typo'\].*'fail_next'"):
        faults.set(fail_next=3, typo=1)
    assert faults == Faults()
    faults.set(fail_next=3, drop_fraction=0.5)
    faults.clear()
    assert faults == Faults()


# Server


def test_a_restart_keeps_port_and_messages(served, client):
    served.publish(1)
    url = served.url
    served.restart()
    assert served.url == url
    assert ids(client.get("/feed")) == [FIRST]


@pytest.mark.parametrize("open_channel", [websocket, stream])
def test_after_a_restart_pushes_go_out_again(served, open_channel):
    with open_channel(served):
        served.restart()
    with open_channel(served):
        served.publish(1)
        served.stats.wait_for(lambda stats: stats.pushes_sent == 1)


def test_messages_are_published_while_no_server_runs(served, client):
    served.stop()
    served.stop()
    assert served.publish(1) == [FIRST]
    with pytest.raises(httpx.ConnectError):
        client.get("/feed")
    served.start()
    assert ids(client.get("/feed")) == [FIRST]


def test_a_stop_ends_websockets_with_service_restart(served):
    with websocket(served) as connection:
        served.stop()
        with pytest.raises(websockets.ConnectionClosed) as closed:
            connection.recv(GUARD)
    assert closed.value.rcvd.code == 1012


@pytest.mark.anyio
async def test_a_stop_answers_held_fetches(served):
    async with httpx.AsyncClient(timeout=GUARD) as client, anyio.create_task_group() as tasks:

        async def stop():
            await run_sync(lambda: served.stats.wait_for(lambda stats: stats.held == 1))
            await run_sync(served.stop)

        tasks.start_soon(stop)
        with anyio.fail_after(GUARD):
            assert ids(await client.get(served.url, params={"timeout": "60000"})) == []


@pytest.mark.anyio
async def test_a_stop_aborts_stalled_fetches(served):
    served.faults.stall_next = 1
    async with httpx.AsyncClient(timeout=GUARD) as client, anyio.create_task_group() as tasks:

        async def stop():
            await run_sync(lambda: served.stats.wait_for(lambda stats: stats.statuses))
            await run_sync(served.stop)

        tasks.start_soon(stop)
        with anyio.fail_after(GUARD), pytest.raises(httpx.RemoteProtocolError):
            await client.get(served.url)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("path", ["/feed", "/events", "/changes"])
def test_a_request_that_arrives_while_the_server_ends_is_not_held(backend, path):
    async def main():
        said, began = [], anyio.current_time()

        async def send(message):
            said.append(message["type"])

        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": [],
            "query_string": b"timeout=9000&wait=9",
        }
        app.shut()
        await app(scope, anyio.sleep_forever, send)
        assert said == ["http.response.start", "http.response.body"]
        assert anyio.current_time() == began

    app = ReferenceApp()
    name, options = testing.virtual_time(backend)
    anyio.run(main, backend=name, backend_options=options)


def test_after_a_restart_fetches_are_held_again(served, client):
    served.restart()
    began = time.monotonic()
    assert ids(client.get("/feed", params={"timeout": "50"})) == []
    assert time.monotonic() - began >= 0.05


def test_an_error_of_publish_is_raised_in_the_caller(served):
    with pytest.raises(TypeError):
        served.publish(object())


def test_a_taken_port_is_an_error(served):
    with pytest.raises(OSError, match="in use"):
        ReferenceServer(port=int(served.base_url.rpartition(":")[2])).start()


def test_a_given_app_is_served():
    app = ReferenceApp(backlog=1)
    with serve_in_thread(app) as served:
        assert served.app is app
        assert ids(httpx.get(served.url, timeout=GUARD)) == [FIRST]


def test_an_app_that_is_made_and_started_in_another_event_loop_holds_fetches():
    """For example trio's; the server uses asyncio's."""

    async def main():
        with serve_in_thread() as served:
            async with httpx.AsyncClient(timeout=GUARD) as client:
                assert ids(await client.get(served.url, params={"timeout": "20"})) == []

    anyio.run(main, backend="trio")


@pytest.mark.anyio
async def test_without_a_server_the_app_answers_in_memory():
    app = ReferenceApp(backlog=1)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert ids(await client.get("/feed")) == [FIRST]
        app.faults.cut_next = 1
        with pytest.raises(AssertionError):
            await client.get("/feed")


# Separate process


def test_the_server_process_prints_its_urls_and_ends_at_the_end_of_standard_input():
    command = [sys.executable, "-m", "push_to_poll_client.testing.server", "--backlog", "3", "--until-eof"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    places = json.loads(process.stdout.readline())
    assert len(ids(httpx.get(places["url"], timeout=GUARD))) == 3
    assert places["pid"] == process.pid
    assert process.communicate(timeout=GUARD) == (b"", b"")
    assert process.returncode == 0


@pytest.mark.parametrize("number", form([signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]))
def test_the_process_ends_at_a_signal(number):
    command = [sys.executable, "-m", "push_to_poll_client.testing.server"]
    # The child would inherit an ignored SIGINT. A shell ignores it for programs in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    process.stdout.readline()
    process.send_signal(number)
    assert process.communicate(timeout=GUARD) == (b"", b"")
    assert process.returncode == 0


@pytest.fixture
def _keeps_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_keeps_sigterm")
def test_the_command_prints_its_urls_and_pid_as_one_json_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert server.main(["--until-eof", "--page-size", "5"]) == 0
    places = json.loads(capsys.readouterr().out)
    assert places["pid"] == os.getpid()
    assert places["push_url"].startswith("ws://127.0.0.1:")
    assert places["sse_url"] == f"{places['base_url']}/events"
    assert places["changes_url"] == f"{places['base_url']}/changes"


@pytest.mark.usefixtures("_keeps_sigterm")
def test_the_command_ends_at_an_interrupt(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "wait_for_ever", interrupted)
    assert server.main([]) == 0


def test_the_command_has_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["server", "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(server.__file__, run_name="__main__")
    assert exit_.value.code == 0
    assert "--until-eof" in capsys.readouterr().out


# Package


def test_all_exported_names_exist_and_are_sorted():
    assert testing.__all__ == sorted(testing.__all__)
    assert all(getattr(testing, name) for name in testing.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        testing.Nonsense  # noqa: B018


def test_fakes_need_neither_pytest_nor_uvicorn_nor_trio():
    code = (
        "import sys; sys.modules.update(pytest=None, uvicorn=None, trio=None)\n"
        "import push_to_poll_client.testing as t; t.FakeFeed, t.virtual_time\n"
        "try: t.serve_in_thread\n"
        "except ImportError as e: print(e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=GUARD)
    assert out.stdout.strip() == "The reference server needs uvicorn: pip install 'push-to-poll-client[serve]'"


def test_a_process_ends_whose_reference_server_was_not_stopped():
    code = (
        "from push_to_poll_client.testing import ReferenceServer\n"
        "served = ReferenceServer(); served.start(); print(*served.publish())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=GUARD)
    assert (out.returncode, out.stdout.strip()) == (0, FIRST), out.stderr


def test_a_reference_server_that_does_not_start_raises_an_error(monkeypatch):
    async def fail(*_, **__):
        sys.exit(3)

    monkeypatch.setattr(server.uvicorn.Server, "startup", fail)
    with pytest.raises(RuntimeError, match="did not start"):
        ReferenceServer().start()
