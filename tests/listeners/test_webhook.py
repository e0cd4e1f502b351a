"""The webhook as an application that a server calls, in virtual time: rejections and wakes."""

import functools
import hashlib
import hmac
import json
import logging

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push_to_poll_client import Consumer, MemoryStore, Push, PushToPollError
from push_to_poll_client.listeners._hints import JSONHint
from push_to_poll_client.listeners._webhook.counters import CALLBACK_TIMEOUT
from push_to_poll_client.listeners._webhook.limits import ROUNDING, ReplayCache, TokenBucket
from push_to_poll_client.listeners._webhook.routing import FLOOD_QUIET_TIME
from push_to_poll_client.listeners._webhook.types import EVERYONE
from push_to_poll_client.listeners.verifiers import github
from push_to_poll_client.listeners.webhook import (
    MAX_BODIES,
    Control,
    Verified,
    WebhookCounters,
    WebhookListener,
    WebhookResponse,
)
from push_to_poll_client.testing import FakeFeed
from push_to_poll_client.testing._virtual_time import START
from tests.support.asgi_calls import (
    GONE,
    SECRET,
    Signatures,
    asked,
    listened,
    naming,
    posted,
    scope_of,
    signature_of,
    signed,
)
from tests.support.channels import TimedChannel
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio

hearing = functools.partial(listened, channel=TimedChannel)

LOG = "push_to_poll_client.listeners.webhook"


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch):
    """The limits use the virtual clock."""
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", anyio.current_time)


@pytest.fixture
def verify():
    return Signatures()


@pytest.fixture
def hooks(verify):
    return WebhookListener(verify)


def counted(hooks, **expected):
    """The webhook's counters, without the number of requests received."""
    counters = hooks.counters()
    assert counters == WebhookCounters(received=counters.received, **expected), counters
    return True


# A push


async def test_an_authentic_request_wakes_and_is_answered_with_an_empty_200(hooks):
    async with hearing(hooks) as channel:
        answer = await posted(hooks, b"{}")
        assert answer == (
            200,
            {
                "x-content-type-options": "nosniff",
                "cache-control": "no-store",
                "content-type": "text/plain; charset=utf-8",
                "content-length": "0",
            },
            b"",
        )
    assert channel.events == [(0, "up"), (0, Push())]
    assert counted(hooks, woken=1)


async def test_a_body_may_come_in_pieces(hooks):
    async with hearing(hooks) as channel:
        assert (await asked(hooks, scope_of(headers=signed(b"abc")), b"a", 1, b"", b"bc")).status == 200
    assert channel.events == [(0, "up"), (1, Push())]


async def test_an_asgi_body_event_without_a_body_is_accepted(hooks):
    assert (await asked(hooks, scope_of(headers=signed(b"")), {"type": "http.request"})).status == 200


async def test_a_push_is_accepted_while_no_consumer_listens(hooks):
    assert (await posted(hooks, b"x", headers=signed(b"x", **{"X-Id": "1"}))).status == 200
    assert counted(hooks, unheard=1)
    async with hearing(hooks) as channel:
        await posted(hooks, b"x", headers=signed(b"x", **{"X-Id": "1"}))  # the first request did not wake
    assert channel.pushes == [Push()]
    assert counted(hooks, unheard=1, woken=1)


async def test_a_hint_with_a_new_cursor_wakes_and_a_hint_with_the_saved_cursor_does_not(verify, running):
    hooks = WebhookListener(verify, hint=JSONHint(cursor="cursor"))
    feed = FakeFeed()
    consumer = running(Log(feed, listeners=[hooks], fallback_interval=3600))
    await anyio.sleep(10)
    feed.publish("1")
    before = len(feed.requests)
    assert (await posted(hooks, b'{"cursor": "after-1.0"}')).status == 200
    await anyio.sleep(10)
    assert consumer.processed == ["1"]
    assert feed.requests[before].request.hint == Push("after-1.0")
    before = len(feed.requests)
    await posted(hooks, json.dumps({"cursor": consumer.status().cursor}).encode())
    await anyio.sleep(10)
    assert len(feed.requests) == before  # it is the saved cursor (G1)


async def test_the_configured_response_is_sent(verify):
    for answer in (
        WebhookResponse(202, b'{"done": true}', "application/json", {"X-Done": "1", "Content-Length": "99"}),
        WebhookResponse(204),
    ):
        hooks = WebhookListener(verify, response=answer)
        status, headers, body = await posted(hooks)
        assert (status, body) == (answer.status, answer.body)
        assert headers.get("content-type") == (None if status == 204 else "application/json")
        assert headers.get("x-done") == (None if status == 204 else "1")


# Rejections


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Signature": ""},
        {"X-Signature": "0" * 64},
        {"X-Signature": "é"},
        {"X-Signature": signature_of(b"another")},
        {"X-Signature": f"{signature_of(b'body')} "},
    ],
    ids=["none", "empty", "zeros", "not ASCII", "of another body", "and a blank"],
)
async def test_every_wrong_signature_gets_the_same_response(hooks, headers):
    async with hearing(hooks) as channel:
        assert await posted(hooks, b"body", headers=headers) == (
            401,
            {
                "x-content-type-options": "nosniff",
                "cache-control": "no-store",
                "content-type": "text/plain; charset=utf-8",
                "content-length": "0",
            },
            b"",
        )
    assert channel.events == [(0, "up")]
    assert counted(hooks, refused=1)


async def test_a_request_without_a_signature_header_is_refused_before_its_body_is_read(verify):
    hooks = WebhookListener(verify, burst=1, rate=0.001)
    for _ in range(10):
        assert (await asked(hooks, scope_of(), 3600)).status == 401
    assert verify.asked == 0
    assert (await posted(hooks)).status == 200  # rejected requests do not count


async def test_a_request_passes_if_one_of_several_verifiers_accepts_it():
    def by_header(request):
        return request.headers.get("x-token") == "t"

    by_header.may_pass = lambda request: "x-token" in request.headers
    hooks = WebhookListener([Signatures(), by_header])
    assert (await posted(hooks)).status == 200
    assert (await posted(hooks, headers={"X-Token": "t"})).status == 200
    assert (await posted(hooks, headers={"X-Token": "u"})).status == 401
    assert (await posted(hooks, headers={"X-Signature": "u", "X-Token": "t"})).status == 200


async def test_a_verifier_may_be_async():
    async def verify(request):
        await anyio.sleep(1)
        return request.body == b"yes"

    hooks = WebhookListener(verify)
    assert (await posted(hooks, b"yes")).status == 200
    assert (await posted(hooks, b"no")).status == 401


async def test_a_verifier_that_takes_too_long_refuses_the_request():
    async def verify(request):
        await anyio.sleep_forever()

    began = anyio.current_time()
    assert (await posted(WebhookListener(verify))).status == 401
    assert anyio.current_time() - began == CALLBACK_TIMEOUT


def raises(error):
    def function(request):
        raise error

    return function


@pytest.mark.parametrize("verify", [raises(ValueError("c4n4ry")), lambda request: Signatures()])
async def test_a_verifier_that_fails_refuses_the_request_and_is_logged_once_as_a_warning(verify, caplog):
    caplog.set_level(logging.DEBUG, LOG)
    hooks = WebhookListener(verify)
    for _ in range(3):
        assert (await posted(hooks)).status == 401
    failed = [record for record in caplog.records if "a verifier failed with" in record.message]
    assert [record.levelname for record in failed] == ["WARNING", "DEBUG", "DEBUG"]
    assert "c4n4ry" not in caplog.text


async def test_the_log_distinguishes_a_wrong_signature_from_a_missing_one(caplog):
    caplog.set_level(logging.DEBUG, LOG)
    hooks = WebhookListener(github("the receiver's"))
    signature = "sha256=" + hmac.new(b"the sender's", b"{}", hashlib.sha256).hexdigest()
    for headers in ({}, {"x-hub-signature-256": signature}) * 2:
        assert (await posted(hooks, b"{}", headers=headers)).status == 401
    assert [(record.levelname, record.message.partition(";")[0]) for record in caplog.records] == [
        (
            "INFO",
            "webhook: rejected a request without the expected signature or token, or with an expired timestamp",
        ),
        ("INFO", "webhook: rejected a request with a wrong signature or token"),
        (
            "DEBUG",
            "webhook: rejected a request without the expected signature or token, or with an expired timestamp",
        ),
        ("DEBUG", "webhook: rejected a request with a wrong signature or token"),
    ]


async def test_a_constant_body_counted_as_a_repeat_is_logged(caplog):
    caplog.set_level(logging.DEBUG, LOG)
    hooks = WebhookListener(github("secret"))
    signature = "sha256=" + hmac.new(b"secret", b"{}", hashlib.sha256).hexdigest()
    async with hearing(hooks) as channel:
        for delivery in "abc":
            headers = {"x-hub-signature-256": signature, "x-github-delivery": delivery}
            assert (await posted(hooks, b"{}", headers=headers)).status == 200
    assert channel.events[1:] == [(0, Push())]
    assert counted(hooks, woken=1, replayed=2)
    told = "webhook: ignored a repeated request"
    assert [(record.levelname, record.message) for record in caplog.records] == [("INFO", told), ("DEBUG", told)]


async def test_a_verifier_with_a_failing_may_pass_refuses_the_request(verify, caplog):
    verify.may_pass = raises(KeyError("x"))
    assert (await posted(WebhookListener(verify))).status == 401
    assert verify.asked == 0
    assert "a verifier's may_pass failed with KeyError" in caplog.text


async def test_a_request_with_a_second_signature_header_is_refused(verify):
    scope = scope_of(headers=signed(b""))
    scope["headers"].append((b"X-Signature", b"second"))
    assert (await asked(WebhookListener(verify), scope)).status == 401


# Requests that are not pushes


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "post", "\x00"])
async def test_other_http_methods_are_answered_405(hooks, method):
    async with hearing(hooks) as channel:
        answer = await asked(hooks, scope_of(method, headers=signed(b"")))
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert channel.pushes == []
    assert counted(hooks, unasked=1)


async def test_asgi_lifespan_events_are_answered(hooks):
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = await _talk(hooks, {"type": "lifespan"}, events)
    assert [event["type"] for event in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_websocket_is_closed_before_it_is_open(hooks):
    sent = await _talk(hooks, {"type": "websocket", "path": "/"}, [{"type": "websocket.connect"}])
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_an_unknown_asgi_scope_raises_value_error(hooks):
    with pytest.raises(ValueError, match="webhook accepts only HTTP requests, got an ASGI scope of type 'mail'"):
        await _talk(hooks, {"type": "mail"}, [])


async def _talk(app, scope, events):
    sent = []

    async def receive():
        return events.pop(0)

    async def send(event):
        sent.append(event)

    await app(scope, receive, send)
    return sent


async def test_a_client_that_disconnects_before_its_response_causes_no_error(hooks):
    async def send(event):
        raise OSError("gone")

    async def receive():
        return {"type": "http.request", "body": b""}

    await hooks(scope_of(headers=signed(b"")), receive, send)
    assert counted(hooks, unheard=1)


@pytest.mark.parametrize(
    ("root", "path", "below"),
    [
        ("", "/a/b", "/a/b"),
        ("/hooks", "/hooks/a", "/a"),
        ("/hooks", "/hooks", "/"),
        ("/hooks", "/hooks/", "/"),
        ("/hooks", "/hooks/a/", "/a"),
        ("", "//", "/"),
        ("/hooks", "/a", "/a"),
        ("/hooks", "/hooksa", "/hooksa"),
        ("/hooks/", "/hooks/a", "/a"),
        ("/hooks", "", "/"),
        ("", "", "/"),
    ],
)
async def test_a_verifier_sees_the_path_below_the_mount_point(root, path, below):
    paths = []
    hooks = WebhookListener(lambda request: paths.append(request.path))
    await posted(hooks, path=path, root_path=root)
    assert paths == [below]


async def test_a_verifier_sees_the_request_as_received(virtual_day):
    seen = []
    hooks = WebhookListener(seen.append)
    scope = scope_of(query=b"a=%C3%A9\xff", headers={"X-Name": "b\xe9"})
    del scope["path"], scope["query_string"]
    await asked(hooks, scope | {"path": "/p", "query_string": b"a=%C3%A9\xff"}, b"\xff\x00")
    request = seen[0]
    assert (request.query, request.parameter("a"), request.headers) == (
        "a=%C3%A9\xff",
        "é\xff",
        {"x-name": "b\xe9"},
    )
    assert (request.body, request.received_at) == (b"\xff\x00", 1e9)
    assert repr(request) == f"WebhookRequest(method='POST', path='/p', received_at={request.received_at!r})"


# Limits


@pytest.mark.parametrize("length", ["11", "9" * 5000, " 11 "])
async def test_a_body_with_a_too_large_content_length_is_not_read(verify, length):
    hooks = WebhookListener(verify, max_body=10)
    scope = scope_of(headers={"X-Signature": "x", "Content-Length": length})
    answer = await asked(hooks, scope, 3600)
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert counted(hooks, too_large=1)


async def test_an_http_2_response_has_no_connection_header(verify):
    hooks = WebhookListener(verify, max_body=10)
    answer = await asked(hooks, scope_of(headers={"Content-Length": "11"}, http_version="2"))
    assert answer.status == 413
    assert "connection" not in answer.headers


@pytest.mark.parametrize("length", [None, "1", "-1", "x", "", "1e9", "٣", "10, 10"])
async def test_the_body_limit_holds_with_a_missing_or_wrong_content_length(verify, length):
    hooks = WebhookListener(verify, max_body=10)
    said = {} if length is None else {"Content-Length": length.encode().decode("latin-1")}
    scope = scope_of(headers={"X-Signature": signature_of(b"x" * 10)} | said)
    assert (await asked(hooks, scope, b"x" * 5, b"x" * 5)).status == 200
    assert (await asked(hooks, scope, b"x" * 5, b"x" * 6, 3600)).status == 413
    assert counted(hooks, unheard=1, too_large=1)


async def test_a_slow_body_is_answered_408(verify):
    hooks = WebhookListener(verify, body_timeout=10)
    answer = await asked(hooks, scope_of(headers=signed(b"abc")), b"a", 5, b"b", 6, b"c")
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert counted(hooks, too_slow=1)
    assert (await asked(hooks, scope_of(headers=signed(b"abc")), b"a", 5, b"b", 4, b"c")).status == 200


async def test_a_client_that_disconnects_during_its_body_gets_no_response(hooks):
    assert await asked(hooks, scope_of(headers=signed(b"abc")), b"a", b"b", GONE) is None
    assert counted(hooks, gone=1)


async def test_a_request_beyond_the_limit_of_open_bodies_is_answered_503(hooks):
    async with hearing(hooks) as channel, anyio.create_task_group() as tasks:
        for _ in range(MAX_BODIES):
            tasks.start_soon(asked, hooks, scope_of(headers=signed(b"ab")), b"a", 5, b"b")
        await anyio.wait_all_tasks_blocked()
        answer = await posted(hooks)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        await anyio.sleep(6)
        assert (await posted(hooks)).status == 200
    assert counted(hooks, busy=1, woken=MAX_BODIES + 1)
    assert channel.events[1] == (0, "down")


async def test_requests_beyond_the_rate_are_answered_429_without_verification(verify):
    hooks = WebhookListener(verify, rate=2, burst=3)
    statuses = [(await posted(hooks)).status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert verify.asked == 3
    answer = await asked(hooks, scope_of(headers=signed(b"")), 3600)
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    await anyio.sleep(1)
    assert [(await posted(hooks)).status for _ in range(3)] == [200, 200, 429]


async def test_retry_after_is_in_whole_seconds(verify):
    hooks = WebhookListener(verify, rate=0.1, burst=1)
    await posted(hooks)
    await anyio.sleep(2.5)
    assert (await posted(hooks)).headers["retry-after"] == "8"


def test_without_a_rate_a_request_passes_whose_time_was_read_before_that_of_another_thread():
    bucket = TokenBucket(None, 1)
    assert [bucket.take(now) for now in (10.0, 10.5, 10.2)] == [0.0, 0.0, 0.0]


async def test_all_requests_are_accepted_without_a_rate(verify):
    hooks = WebhookListener(verify, rate=None)
    assert {(await posted(hooks)).status for _ in range(1000)} == {200}


@pytest.mark.parametrize("now", [0.001, 1.0, 12345.6])
@pytest.mark.parametrize("rate", [0.01, 0.3, 3, 100])
def test_a_burst_passes_at_once_despite_rounding(rate, now):
    bucket = TokenBucket(rate, 10)
    assert [bucket.take(now) for _ in range(10)] == [0.0] * 10
    assert bucket.take(now) == pytest.approx(1 / rate)


@given(
    rate=st.sampled_from([0.01, 0.3, 1, 3, 100]),
    burst=st.integers(1, 10),
    gaps=st.lists(st.sampled_from([0, 0.001, 0.01, 0.3, 1, 5, 100]), max_size=60),
)
def test_no_window_lets_more_pass_than_burst_and_rate(rate, burst, gaps):
    bucket = TokenBucket(rate, burst)
    now, passed = START, []
    for gap in gaps:
        now += gap
        wait = bucket.take(now)
        if not wait:
            passed.append(now)
        else:
            assert bucket.take(now + wait - 2 * ROUNDING) > 0
            assert len(passed) >= burst
    for first, began in enumerate(passed):
        for last, ended in enumerate(passed[first:], first):
            assert last - first + 1 <= burst + rate * (ended - began + 2 * ROUNDING)


async def test_a_flood_takes_the_channel_down_until_it_has_been_quiet(verify, caplog):
    hooks = WebhookListener(verify, rate=1, burst=1)
    async with hearing(hooks) as channel:
        await posted(hooks)
        await posted(hooks)
        await anyio.sleep(20)
        await posted(hooks)  # an accepted request neither ends nor extends a flood
        await posted(hooks)
        await anyio.sleep(2 * FLOOD_QUIET_TIME)
        await posted(hooks)
        await posted(hooks)
        await anyio.sleep(FLOOD_QUIET_TIME + 1)
    assert channel.events == [
        *[(0, "up"), (0, Push()), (0, "down"), (20, Push()), (60, "up")],
        *[(80, Push()), (80, "down"), (110, "up")],
    ]
    assert isinstance(channel.errors[0], PushToPollError)
    assert str(channel.errors[0]).startswith("webhook: rate limit reached")
    (line,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert line.getMessage() == str(channel.errors[0]), "the first flood alone"


async def test_under_a_flood_a_consumer_polls_at_its_degraded_interval(verify, running):
    hooks = WebhookListener(verify, rate=0.001, burst=1)
    feed = FakeFeed()
    consumer = running(Log(feed, listeners=[hooks], fallback_interval=600, degraded_interval=10))
    await anyio.sleep(1)
    for _ in range(2):
        await posted(hooks, headers=signed(b"") | {"X-Signature": "forged"})
    feed.publish("1")
    assert (await posted(hooks)).status == 429
    began = anyio.current_time()
    await consumer.until(1)
    assert anyio.current_time() - began <= 10
    assert consumer.status().listeners[0].up is False
    await anyio.sleep(2 * FLOOD_QUIET_TIME)
    assert consumer.status().listeners[0].up is True


async def test_refused_signatures_do_not_take_the_channel_down(hooks):
    async with hearing(hooks) as channel:
        for _ in range(100):
            await posted(hooks, headers={"X-Signature": "x"})
    assert channel.events == [(0, "up")]


async def test_a_flood_notice_that_arrives_after_the_flood_is_ignored(verify):
    """A loop may be called after its work is done."""
    hooks = WebhookListener(verify)
    async with hearing(hooks) as channel:
        (listening,) = hooks._router.find()
        listening._start_flood()
        await anyio.sleep(1)
    assert channel.events == [(0, "up")]


async def test_a_listener_of_an_ended_event_loop_is_not_notified(hooks, monkeypatch):
    async with hearing(hooks) as channel:
        (listening,) = hooks._router.find()

        def ended(function):
            raise RuntimeError("the loop has ended")

        monkeypatch.setattr(listening._loop, "_call_soon", ended)
        hooks._router.note_rejected()
    assert channel.events == [(0, "up")]


# Replays


async def test_a_repeated_request_gets_the_same_response_and_does_not_wake(hooks):
    async with hearing(hooks) as channel:
        first = await posted(hooks, b"x", headers=signed(b"x", **{"X-Id": "1"}))
        again = await posted(hooks, b"x", headers=signed(b"x", **{"X-Id": "1"}))
        other = await posted(hooks, b"x", headers=signed(b"x", **{"X-Id": "2"}))
    assert first == again == other
    assert channel.pushes == [Push(), Push()]
    assert counted(hooks, woken=2, replayed=1)


async def test_a_request_is_forgotten_when_its_signature_expires(virtual_day):
    hooks = WebhookListener(Signatures(until=1e9 + 300))
    async with hearing(hooks) as channel:
        for wait in (0, 299, 2):
            await anyio.sleep(wait)
            await posted(hooks, b"x", headers=signed(b"x", **{"X-Id": "1"}))
    assert [at for at, event in channel.events if event == Push()] == [0, 301]


async def test_each_process_wakes_once_by_a_repeated_request(verify):
    for hooks in WebhookListener(verify), WebhookListener(verify):  # replay caches are in memory
        async with hearing(hooks) as channel:
            for _ in range(2):
                assert (await posted(hooks, headers=signed(b"", **{"X-Id": "1"}))).status == 200
        assert len(channel.pushes) == 1
        assert counted(hooks, woken=1, replayed=1)


async def test_a_repeated_request_with_a_later_expiry_is_remembered_longer(virtual_day):
    verify = Signatures(until=1e9 + 300)
    hooks = WebhookListener(verify)
    headers = signed(b"x", **{"X-Id": "1"})
    async with hearing(hooks) as channel:
        await posted(hooks, b"x", headers=headers)
        await anyio.sleep(299)
        verify.until += 299
        await posted(hooks, b"x", headers=headers)
        verify.until -= 1
        await posted(hooks, b"x", headers=headers)
        await anyio.sleep(299.5)
        await posted(hooks, b"x", headers=headers)
        await anyio.sleep(1)
        await posted(hooks, b"x", headers=headers)
    assert [at for at, event in channel.events if event == Push()] == [0, 599.5]


ALL = (EVERYONE,)


async def test_the_replay_cache_evicts_the_oldest_entry():
    replays = ReplayCache(3)
    for text in (b"a", b"b", b"a", b"c", b"d"):
        replays.add(Verified((text,), 10.0), ALL)
    assert len(replays._expiries) == 3
    seen = [not replays.unseen(Verified((text,)), ALL, 9.0) for text in (b"a", b"b", b"c", b"d")]
    assert seen == [True, False, True, True]


async def test_the_replay_cache_evicts_the_oldest_entry_when_it_has_too_many_names():
    replays = ReplayCache(4)
    for text, names in ((b"a", "xy"), (b"b", "xyz"), (b"b", "xz"), (b"c", "x")):
        replays.add(Verified((text,)), names)
    assert [replays.unseen(Verified((text,)), "x", 0.0) for text in (b"a", b"b", b"c")] == [["x"], [], []]


async def test_an_expired_entry_of_the_replay_cache_does_not_block_its_names():
    replays = ReplayCache()
    replays.add(Verified((b"a",), 10.0), "xy")
    replays.add(Verified((b"a",), 20.0), "x")
    assert replays.unseen(Verified((b"a",)), "xy", 11.0) == ["y"]


async def test_a_repeated_body_with_new_ids_adds_no_entries_to_the_replay_cache():
    replays = ReplayCache(3)
    replays.add(Verified((b"body", b"0")), ALL)
    assert not any(replays.unseen(Verified((b"body", b"%d" % number)), ALL, 0.0) for number in range(9))
    assert len(replays._expiries) == 2


@pytest.mark.parametrize(
    "names",
    [
        lambda number: ["alice", f"mallory {number}"],
        lambda number: [f"mallory {number}", "alice"],
        lambda number: ["alice"] * number,
        lambda number: [["alice"], ["bob"], ["bob", "alice"], ["alice", "bob"], None][number % 5],
        lambda number: [f"mallory {number}"],
        lambda number: [[], None, ["mallory"]][number % 3],
    ],
)
async def test_a_captured_request_with_endless_names_wakes_each_listener_a_few_times(verify, names):
    numbers = iter(range(1, 100))
    hooks = WebhookListener(verify, route=lambda request: names(next(numbers)))
    async with hearing(hooks.listener_for("alice"), hooks.listener_for("bob"), hooks) as (alice, bob, everything):
        for _ in range(90):
            assert (await posted(hooks, b"x", headers=signed(b"x", **{"X-Id": "1"}))).status == 200
    assert len(alice.pushes) <= 2  # for its name, and for everyone
    assert len(bob.pushes) <= 2
    assert len(everything.pushes) <= 4  # for two names, for all other names, and for everyone


async def test_a_repeat_with_one_more_name_wakes_the_listener_of_that_name_alone(verify):
    named = iter([["alice"], ["alice", "bob"], ["alice", "bob"]])
    hooks = WebhookListener(verify, route=lambda request: next(named))
    async with hearing(hooks.listener_for("alice"), hooks.listener_for("bob")) as (alice, bob):
        for _ in range(3):
            await posted(hooks, b"x", headers=signed(b"x", **{"X-Id": "1"}))
    assert (len(alice.pushes), len(bob.pushes)) == (1, 1)
    assert counted(hooks, woken=2, replayed=1)


async def test_a_repeat_wakes_a_listener_that_was_not_there_before(verify):
    hooks = WebhookListener(verify, route=lambda request: ["alice", "bob"])
    headers = signed(b"x", **{"X-Id": "1"})
    async with hearing(hooks.listener_for("alice")) as alice:
        await posted(hooks, b"x", headers=headers)
        async with hearing(hooks.listener_for("bob")) as bob:
            await posted(hooks, b"x", headers=headers)
    assert (len(alice.pushes), len(bob.pushes)) == (1, 1)


async def test_an_equal_body_for_another_listener_is_not_a_repeat(verify):
    hooks = WebhookListener(verify, route=lambda request: [request.path.strip("/")])
    async with hearing(hooks.listener_for("alice"), hooks.listener_for("bob")) as (alice, bob):
        for path in ("/alice", "/bob", "/alice"):
            await posted(hooks, b"x", path=path, headers=signed(b"x", **{"X-Id": "1"}))
    assert (len(alice.pushes), len(bob.pushes)) == (1, 1)
    assert counted(hooks, woken=2, replayed=1)


async def test_a_request_with_one_known_text_is_a_repeat():
    once = [(b"a", b"b"), (b"c", b"b"), (b"a", b"d"), (b"c", b"d"), ()]
    answers = iter(once)
    hooks = WebhookListener(lambda request: Verified(next(answers)))
    async with hearing(hooks) as channel:
        for _ in once:
            await posted(hooks)
    assert len(channel.pushes) == 3  # the first, "c" and "d", and a push without a known name


# Routing


def to_names(verify, **more):
    return WebhookListener(verify, route="to.names", **more)


async def test_a_push_wakes_the_named_listeners(verify):
    hooks = to_names(verify)
    alice, bob = hooks.listener_for("alice"), hooks.listener_for("bob")
    async with hearing(alice, bob, hooks) as (a, b, everything):
        await posted(hooks, naming("alice"))
        await posted(hooks, naming("bob", "alice", "bob"))
        await posted(hooks, naming())
        await posted(hooks, b"no JSON")
        await posted(hooks, b"[" * 10_000)
    assert [len(channel.pushes) for channel in (a, b, everything)] == [5, 4, 5]
    assert counted(hooks, woken=5)


async def test_unknown_names_are_counted_and_get_the_same_response(verify):
    hooks = to_names(verify)
    async with hearing(hooks.listener_for("alice")) as channel:
        answers = {str(await posted(hooks, naming(*names))) for names in (["alice"], ["mallory"], ["m", "alice"])}
    assert len(answers) == 1
    assert len(channel.pushes) == 2
    assert counted(hooks, woken=2, unheard=1, unknown_names=2)


async def test_a_push_with_too_many_names_wakes_every_listener(verify):
    hooks = to_names(verify)
    async with hearing(hooks.listener_for("alice")) as channel:
        await posted(hooks, naming(*map(str, range(1001))))
        await posted(hooks, naming(*map(str, range(1000))))
    assert channel.pushes == [Push()]
    assert counted(hooks, woken=1, unheard=1, unknown_names=1000)


@pytest.mark.parametrize(
    ("route", "heard"),
    [
        (lambda request: None, 1),
        (lambda request: [], 1),
        (lambda request: "alice", 1),
        (lambda request: iter(["alice"]), 1),
        (lambda request: ["bob"], 0),
        (lambda request: ["alice", 7], 1),
        (raises(KeyError("x")), 1),
    ],
    ids=["None", "nobody", "a text", "an iterator", "another", "no texts", "raises"],
)
async def test_a_route_function_chooses_the_listeners_and_a_failing_one_wakes_all(verify, route, heard):
    hooks = WebhookListener(verify, route=route)
    async with hearing(hooks.listener_for("alice")) as channel:
        assert (await posted(hooks)).status == 200
    assert len(channel.pushes) == heard


async def test_a_failing_route_is_logged_by_the_name_of_its_argument(verify, caplog):
    await posted(WebhookListener(verify, route=raises(KeyError("x"))))
    assert "webhook: route (the push wakes all listeners of the webhook) failed with KeyError" in caplog.text


async def test_several_listeners_can_share_a_name_and_leave_independently(verify):
    hooks = to_names(verify)
    async with hearing(hooks.listener_for("alice")) as channel:
        async with hearing(hooks.listener_for("alice"), hooks) as channels:
            await posted(hooks, naming("alice"))
        await posted(hooks, naming("alice"))
    await posted(hooks, naming("alice"))
    assert [len(one.pushes) for one in (channel, *channels)] == [2, 1, 1]
    assert counted(hooks, woken=2, unheard=1, unknown_names=1)


async def test_one_receiver_serves_several_consumers(verify, running):
    hooks = to_names(verify)
    feeds = {name: FakeFeed() for name in ("alice", "bob")}
    consumers = {
        name: running(Log(feed, listeners=[hooks.listener_for(name)], fallback_interval=3600))
        for name, feed in feeds.items()
    }
    await anyio.sleep(1)
    for feed in feeds.values():
        feed.publish("1")
    await posted(hooks, naming("alice"))
    await anyio.sleep(1)
    assert {name: consumer.processed for name, consumer in consumers.items()} == {"alice": ["1"], "bob": []}
    assert consumers["alice"].status().listeners[0].name == "webhook alice"


# Status and log


async def test_a_request_does_not_wake_if_its_hint_is_none(verify):
    hooks = WebhookListener(verify, hint=lambda request: None)
    async with hearing(hooks) as channel:
        assert (await posted(hooks)).status == 200
    assert channel.events == [(0, "up")]
    assert counted(hooks, ignored=1)


@pytest.mark.parametrize("hint", [raises(KeyError("c4n4ry")), lambda request: "push"])
async def test_a_hint_that_fails_loses_no_push(verify, hint, caplog):
    hooks = WebhookListener(verify, hint=hint)
    async with hearing(hooks) as channel:
        await posted(hooks)
        await posted(hooks)
    assert channel.pushes == [Push(), Push()]
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert "webhook: hint failed with" in caplog.text
    assert "c4n4ry" not in caplog.text


@pytest.mark.parametrize("control", Control)
async def test_a_control_message_requests_a_poll_without_a_subscription_manager(verify, control):
    hooks = WebhookListener(verify, hint=lambda request: control)
    async with hearing(hooks) as channel:
        await posted(hooks, b"", headers=signed(b"", **{"X-Id": "1"}))
        await posted(hooks, b"", headers=signed(b"", **{"X-Id": "1"}))
    assert channel.events == [(0, "up"), (0, "poll")]
    assert counted(hooks, controls=1, replayed=1)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"verify": None}, TypeError, "verify is required"),
        ({"verify": []}, TypeError, "verify is required"),
        ({"verify": "secret"}, TypeError, "verify must be a function, got str"),
        ({"verify": [7]}, TypeError, "verify must be a function, got int"),
        ({"handshake": 7}, TypeError, "handshake must be a function, got int"),
        ({"hint": 7}, TypeError, "hint must be a function, got int"),
        ({"route": 7}, TypeError, "route must be a function, got int"),
        ({"route": "a..b"}, ValueError, "a path must be names separated by dots"),
        ({"name": 7}, TypeError, "name must be a str, got int"),
        ({"max_body": 0}, ValueError, "max_body must be at least 1, got 0"),
        ({"body_timeout": None}, TypeError, "body_timeout must be"),
        ({"rate": 0}, ValueError, "rate must be"),
        ({"burst": 0}, ValueError, "burst must be at least 1, got 0"),
        ({"burst": 0.5}, TypeError, "burst must be a whole number, got 0.5"),
        ({"response": 200}, TypeError, "the response must be a WebhookResponse, got int"),
        ({"response": WebhookResponse("200")}, TypeError, "the response needs an int as status"),
        ({"response": WebhookResponse(200, "text")}, TypeError, "bytes as body"),
        ({"response": WebhookResponse(101)}, ValueError, "the status must be 200 to 599, got 101"),
        ({"response": WebhookResponse(600)}, ValueError, "the status must be 200 to 599, got 600"),
        ({"response": WebhookResponse(204, b"x")}, ValueError, "a response with status 204 cannot have a body"),
        (
            {"response": WebhookResponse(headers={"X": 7})},
            TypeError,
            "response headers must be a mapping of str to str",
        ),
        (
            {"response": WebhookResponse(headers={7: "x"})},
            TypeError,
            "response headers must be a mapping of str to str",
        ),
        (
            {"response": WebhookResponse(headers={"X": "a\r\nb"})},
            ValueError,
            "characters that are not allowed in a header",
        ),
        (
            {"response": WebhookResponse(headers={"X y": "a"})},
            ValueError,
            "characters that are not allowed in a header",
        ),
        (
            {"response": WebhookResponse(content_type="é")},
            ValueError,
            "characters that are not allowed in a header",
        ),
    ],
)
async def test_wrong_arguments_are_refused_at_once(arguments, error, says):
    with pytest.raises(error, match=says):
        WebhookListener(**({"verify": Signatures()} | arguments))


async def test_a_listener_name_that_is_not_a_str_is_a_type_error(hooks):
    with pytest.raises(TypeError, match="name"):
        hooks.listener_for(7)


async def test_repr_shows_the_name_and_no_secret():
    hooks = WebhookListener(lambda request: request.body == SECRET, name="vendor")
    assert repr(hooks) == "WebhookListener('vendor')"
    assert repr(hooks.listener_for("alice")) == "WebhookListener.listener_for('vendor alice')"
    consumer = Consumer(
        FakeFeed(),
        store=MemoryStore(),
        listeners=[hooks, hooks.listener_for("alice")],
        process=lambda message: None,
    )
    assert [listener.name for listener in consumer.status().listeners] == ["vendor", "vendor alice"]
