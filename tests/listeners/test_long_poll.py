"""Long polls as a channel, in virtual time, with a scripted server."""

import itertools
import json
import logging

import anyio
import httpx
import pytest

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.listeners import ReconnectAction
from push_to_poll_client.listeners._hints import JSONHint
from push_to_poll_client.listeners._requests import ListenerResponse, UnusableResponse
from push_to_poll_client.listeners.long_poll import NO_NEWS, LongPollListener, LongPollReader, LongPollResult
from tests.support.channels import TimedChannel
from tests.support.scripted import END, RESET, Script, client_of

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"
URL = f"https://feed.example/changes?key={CANARY}"
NEVER = (10_000, 204)


def scripted(*steps, url=URL, fraction=0.0, max_age=None, client=None, wait=9000, **options):
    script = Script(*steps)
    listener = LongPollListener(
        url, client=client_of(script, **client or {}), max_age=max_age, wait=wait, **options
    )
    listener._fraction = lambda: fraction
    return listener, script


async def run(listener, script, seconds):
    """Let the listener run for some seconds of virtual time."""
    channel = TimedChannel()
    with anyio.move_on_after(seconds):
        await listener.listen(channel)
    assert script.open == 0
    script.asked_at = [round(at - channel.began, 3) for at in script.asked_at]
    return channel


def sent(script):
    """The parameters of each request, without the key."""
    return [{**dict(request.url.params), "key": None} for request in script.requests]


def since(*values):
    return [{"key": None, **({} if value is None else {"since": value})} for value in values]


# Up, and wakes


async def test_the_channel_is_up_once_a_request_is_held_for_a_second():
    listener, script = scripted((60, 204), (30, 200), NEVER)
    channel = await run(listener, script, 95)
    assert channel.events == [(1, "up"), (90, Push())]
    assert script.asked_at == [0, 60, 90]


async def test_the_channel_is_up_at_once_if_the_first_answer_has_news():
    listener, script = scripted(b'{"id": 7}', NEVER)
    channel = await run(listener, script, 10)
    assert channel.events[:2] == [(0, "up"), (0, Push())]


@pytest.mark.parametrize("nothing", [204, 304, b"null", b"[]", b" {} ", b"false"])
async def test_requests_slow_down_and_the_channel_stays_down_if_the_server_does_not_hold_them(nothing):
    listener, script = scripted(nothing)
    channel = await run(listener, script, 300)
    assert script.asked_at == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75, 123.75, 183.75, 243.75]
    assert {event for _, event in channel.events} == {"down"}
    assert "waiting 60.0 s before the next request" in str(channel.errors[-1])
    assert CANARY not in str(channel.errors[-1])


@pytest.mark.parametrize("news", [200, b"1", b'"x"', b"not json", b'\n\n[{"id": 1}]', b"[[]]"])
async def test_every_success_except_204_and_empty_json_is_news(news):
    listener, script = scripted((30, news), NEVER)
    assert (await run(listener, script, 40)).pushes == [Push()]


async def test_news_in_each_answer_wakes_ten_times_at_once_and_then_once_a_second():
    listener, script = scripted(b"x")
    channel = await run(listener, script, 9.5)
    assert script.asked_at == [0] * 11 + list(range(1, 10))  # the first one does not follow a response
    assert len(channel.pushes) == len(script.asked_at)
    assert "down" not in [event for _, event in channel.events]


async def test_the_channel_is_up_again_after_a_pause_if_requests_carry_no_position():
    listener, script = scripted((9, 204), 204, (20, 204), NEVER)
    assert (await run(listener, script, 30)).events == [(1, "up"), (10.25, "up")]


async def test_the_channel_is_not_reported_up_again_after_a_pause_if_requests_carry_a_position():
    listener, script = scripted((9, 204), 204, (20, 204), NEVER, next=lambda answer: {"since": "1"})
    assert (await run(listener, script, 30)).events == [(1, "up")]


async def test_a_hint_is_read_from_the_answer():
    listener, script = scripted(
        (9, b'{"cursor": "7"}'), (9, b'{"type": "x"}'), NEVER, hint=JSONHint(cursor="cursor")
    )
    assert (await run(listener, script, 30)).pushes == [Push(cursor="7"), Push()]


async def test_an_answer_does_not_wake_if_the_hint_function_returns_none():
    listener, script = scripted(
        (9, 200), (9, 201), NEVER, hint=lambda answer: Push() if answer.status == 201 else None
    )
    assert (await run(listener, script, 30)).events == [(1, "up"), (18, Push())]


# Parameters


async def test_a_couchdb_request_sends_the_last_sequence():
    def changes(last, *results):
        return json.dumps({"results": results, "last_seq": last, "pending": 0}).encode()

    listener, script = scripted(
        (200, {}, [30, b"\n", 40, b"\n", 50, changes("3-g1AAA+/=", {"id": "a"}), END]),
        (60, changes("3-g1AAA+/=")),
        (9, changes([4, "x"], {"id": "b"})),
        NEVER,
        url=f"{URL}&since=now",
        next={"since": "last_seq"},
        news="results",
        wait=60,
    )
    channel = await run(listener, script, 200)
    assert sent(script) == since("now", "3-g1AAA+/=", "3-g1AAA+/=", '[4,"x"]')
    assert channel.events == [(1, "up"), (120, Push()), (189, Push())]


async def test_a_syncthing_request_sends_the_id_of_the_last_event():
    listener, script = scripted(
        b'[{"id": 4, "type": "a"}, {"id": 5, "type": "b"}]',
        (60, b"[]"),
        (9, b'[{"id": 6}]'),
        NEVER,
        next={"since": "id"},
    )
    channel = await run(listener, script, 100)
    assert sent(script) == since(None, "5", "5", "6")
    assert len(channel.pushes) == 2


async def test_the_position_may_be_read_from_a_response_header():
    def index(answer):
        return {"since": answer.headers.get("X-Consul-Index")}

    listener, script = scripted((60, (200, {"X-Consul-Index": "12"}, [END])), (9, 200), NEVER, next=index)
    await run(listener, script, 80)
    assert sent(script) == since(None, "12", "12")


async def test_a_dropbox_request_sends_the_newest_cursor_and_no_credentials():
    cursors = iter(["c1", "c1", "c1", "c2", "c2"])

    async def ask():
        return {"cursor": next(cursors), "timeout": 30}

    listener, script = scripted(
        (100, b'{"changes": false}'),
        (9, b'{"changes": true}'),
        (20, b'{"changes": false, "backoff": 60}'),
        NEVER,
        url="https://notify.example/longpoll",
        method="POST",
        ask=ask,
        news="changes",
        retry_after="backoff",
        wait=120,
    )
    channel = await run(listener, script, 250)
    assert [json.loads(body)["cursor"] for body in script.bodies] == ["c1", "c1", "c2", "c2"]
    assert script.sent("content-type") == ["application/json"] * 4
    assert script.sent("authorization") == [None] * 4
    assert script.asked_at == [
        0,
        100,
        109.1,
        189.1,
    ]  # after news, `ask` was called again until the cursor changed
    assert channel.events == [(1, "up"), (109, Push()), (129.1, "down"), (190.1, "up")]


async def test_a_cursor_that_does_not_change_after_news_is_sent_again_after_a_delay():
    listener, script = scripted((9, 200), NEVER, ask=lambda: {"since": "7"})
    await run(listener, script, 30)
    assert script.asked_at == [0, 9 + 3.1]


async def test_no_request_is_sent_until_ask_returns_a_cursor():
    cursors = itertools.chain([None, None], itertools.repeat("7"))
    listener, script = scripted(NEVER, ask=lambda: {"since": next(cursors)})
    await run(listener, script, 10)
    assert (script.asked_at, sent(script)) == ([2], since("7"))


async def test_ask_may_be_a_mapping_and_next_replaces_its_values():
    listener, script = scripted((9, b'{"at": 3}'), NEVER, ask={"since": 1, "limit": 5}, next={"since": "at"})
    await run(listener, script, 10)
    assert sent(script) == [{"key": None, "since": "1", "limit": "5"}, {"key": None, "since": "3", "limit": "5"}]


async def test_numbers_stay_numbers_in_a_posted_body():
    listener, script = scripted((9, b'{"at": 3}'), NEVER, method="POST", ask={"n": 1}, next={"since": "at"})
    await run(listener, script, 10)
    assert script.bodies == [b'{"n":1}', b'{"n":1,"since":3}']


async def hangs():
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    "ask", [lambda: 1 / 0, lambda: CANARY, hangs, lambda: {"a": object()}, lambda: {"a": "\ud800"}]
)
async def test_an_ask_function_that_fails_or_hangs_is_a_failure_and_is_called_again(ask):
    listener, script = scripted(NEVER, ask=ask)
    channel = await run(listener, script, 30)
    assert script.requests == []
    assert "the function given as ask= failed" in str(channel.errors[0])
    assert CANARY not in "".join(map(str, channel.errors))
    assert len(channel.errors) >= 2


# Timeouts


async def test_the_channel_goes_down_after_two_unanswered_requests_in_a_row():
    listener, script = scripted((10, 204), NEVER, wait=60, open_timeout=10)
    channel = await run(listener, script, 150.5)
    assert script.asked_at == [0, 10, 80, 150]
    assert channel.events == [(1, "up"), (150, "down")]
    assert "no complete response within 70 s" in str(channel.errors[0])


async def test_an_answer_between_unanswered_requests_keeps_the_channel_up():
    listener, script = scripted((9, 204), *[NEVER, (9, 204)] * 3, NEVER, wait=60)
    assert "down" not in [event for _, event in (await run(listener, script, 260)).events]


async def test_a_request_that_is_never_sent_takes_the_channel_down_at_the_timeout():
    class Silent(Script):
        async def handle_async_request(self, request):
            self.requests.append(request)
            await anyio.sleep_forever()

    script = Silent()
    listener = LongPollListener(URL, client=client_of(script), wait=60, open_timeout=10)
    listener._fraction = lambda: 0.0
    channel = TimedChannel()
    with anyio.move_on_after(80):
        await listener.listen(channel)
    assert channel.events == [(70, "down")]


@pytest.mark.parametrize("status", [408, 504])
async def test_the_channel_goes_down_after_two_proxy_timeouts_in_a_row(status):
    listener, script = scripted((60, status), (60, 204), (60, status), (60, status), NEVER)
    channel = await run(listener, script, 241.5)
    assert channel.events == [(1, "up"), (240, "down"), (241, "up")]


async def test_an_immediate_504_of_a_proxy_takes_the_channel_down():
    listener, script = scripted(504)
    channel = await run(listener, script, 0.9)
    assert channel.events[0] == (0, "down")


async def test_white_space_in_a_held_response_restarts_the_timeout():
    listener, script = scripted((200, {}, [*[50, b"\n"] * 10, END]), NEVER, wait=60, news=lambda answer: False)
    channel = await run(listener, script, 510)
    assert script.asked_at == [0, 500]
    assert channel.events == [(1, "up")]


async def test_the_connection_and_the_credentials_are_renewed_at_max_age():
    tokens = itertools.count()
    listener, script = scripted(NEVER, max_age=100, auth=lambda: f"t{next(tokens)}", wait=1000)
    channel = await run(listener, script, 120)
    assert script.sent("authorization") == ["Bearer t0", "Bearer t1", "Bearer t2"]
    assert channel.events == [(1, "up"), (51, "up"), (101, "up")]


async def test_retry_after_is_obeyed_beyond_the_max_age_of_a_connection():
    answer = (200, {"Retry-After": "500"}, [END])
    listener, script = scripted((9, answer), NEVER, max_age=100)
    await run(listener, script, 600)
    assert script.asked_at[:2] == [0, 509]


# Failures


async def test_a_refused_position_causes_a_wake_and_is_forgotten():
    listener, script = scripted((9, b'{"at": 5}'), (9, 409), NEVER, url=f"{URL}&since=now", next={"since": "at"})
    channel = await run(listener, script, 400)
    assert channel.events == [(1, "up"), (9, Push()), (18, Push()), (18, "down"), (319, "up")]
    assert sent(script) == since("now", "5", "now")


async def test_a_refusal_of_a_request_without_a_position_does_not_wake():
    listener, script = scripted(400)
    assert (await run(listener, script, 10)).events == [(0, "down")]


@pytest.mark.parametrize("location", ["location: /", f"http://{CANARY}:port/", "http://xn--zz/"])
async def test_a_redirect_to_an_invalid_url_is_one_failure_with_a_clear_error(location):
    listener, script = scripted((302, {"Location": location}, [END]), NEVER)
    channel = await run(listener, script, 400)
    assert script.asked_at == [0, 300]
    assert "the server redirected to an invalid URL" in str(channel.errors[0])
    assert CANARY not in str(channel.errors[0])


@pytest.mark.parametrize(("step", "again"), [(429, 0), (503, 0), (404, 300), (302, 300), (RESET, 0)])
async def test_a_temporary_failure_is_retried_at_once_and_a_refusal_after_five_minutes(step, again):
    listener, script = scripted(step, NEVER)
    channel = await run(listener, script, 400)
    assert script.asked_at == [0, again]
    assert channel.events == [(0, "down"), (again + 1, "up")]
    assert CANARY not in str(channel.errors[0])


async def test_retry_after_is_obeyed_after_a_failure():
    listener, script = scripted((429, {"Retry-After": "77"}, [END]), NEVER)
    await run(listener, script, 100)
    assert script.asked_at == [0, 77]


async def test_410_ends_the_listener_with_an_error():
    listener, script = scripted(410)
    with pytest.raises(ListenerError, match="HTTP 410 instead of an answer to a long poll"):
        await run(listener, script, 10)


async def test_classify_can_turn_410_into_a_retry():
    listener, script = scripted(410, NEVER, classify=lambda error: ReconnectAction.RETRY)
    assert (await run(listener, script, 10)).events == [(0, "down"), (1, "up")]


async def test_401_requests_a_new_token_once():
    tokens = itertools.count()
    listener, script = scripted(401, auth=lambda: f"t{next(tokens)}")
    await run(listener, script, 200)
    assert script.sent("authorization") == ["Bearer t0", "Bearer t1"]


@pytest.mark.parametrize(
    ("body", "options", "text"),
    [
        (b"<html>", {"news": "changes"}, "no valid JSON"),
        ((200, {}, [b"x" * 101]), {"max_body": 100}, "more than 100 bytes"),
        (
            json.dumps({"at": "x" * 8193}).encode(),
            {"next": {"since": "at"}},
            "a position 'since' of more than 8192",
        ),
        (b"{}", {"news": lambda answer: 1 / 0}, "failed: ZeroDivisionError"),
        (b"{}", {"next": lambda answer: {"a": {1: object()}}}, "failed: TypeError"),
    ],
)
async def test_an_unreadable_answer_wakes_and_delays_the_next_request(body, options, text):
    listener, script = scripted((9, body), NEVER, **options)
    channel = await run(listener, script, 400)
    assert channel.events == [(1, "up"), (9, Push()), (9, "down"), (310, "up")]
    assert text in str(channel.errors[0])


async def test_logs_repr_and_name_contain_no_secret(caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    listener, script = scripted(
        (9, b'{"at": "c4n4ry"}'), RESET, (9, 404), NEVER, next={"since": "at"}, auth=CANARY
    )
    await run(listener, script, 400)
    assert CANARY not in caplog.text + repr(listener) + listener.name
    assert "connected" in caplog.text


async def test_a_second_run_does_not_wait_for_the_retry_after_of_the_first():
    listener, script = scripted((9, (200, {"Retry-After": "500"}, [END])), NEVER)
    await run(listener, script, 10)
    await run(listener, script, 10)
    assert len(script.requests) == 2


# Declarations


def answer(body=b"", status=200, **headers):
    return ListenerResponse(status, httpx.Headers(headers), body, "https://feed.example/", None)


@pytest.mark.parametrize(
    ("body", "news"),
    [
        (b'{"a": {"b": [1]}}', True),
        (b'{"a": [{"b": 1}, {"b": 0}]}', False),
        (b'{"a": [{"b": 1}, {"c": 0}, 5]}', True),
        (b'{"a": []}', False),
        (b'{"a": "b"}', False),
        (b'{"a": {"b": ""}}', False),
        (b"[]", False),
        (b"7", False),
    ],
)
def test_news_is_read_at_the_declared_path(body, news):
    assert LongPollReader("a.b", None, None).read(answer(body)).news is news


@pytest.mark.parametrize("body", [b"0", b"0.0", b'""', b"7", b"text"])
def test_a_body_that_is_not_empty_json_is_news(body):
    assert LongPollReader(None, None, None).read(answer(body)).news


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-1", None), ('"7"', None), ("null", None), ("true", 1), ("[]", None)],
)
def test_an_invalid_retry_after_in_a_body_is_ignored(value, seconds):
    assert LongPollReader(None, None, "wait").read(answer(f'{{"wait": {value}}}'.encode())).retry_after == seconds


def test_a_missing_value_is_left_out_of_the_position():
    reader = LongPollReader(None, {"a": "a", "b": "b"}, None)
    assert reader.read(answer(b'{"a": 1}')) == LongPollResult(news=True, position={"a": 1}, retry_after=None)
    assert reader.read(answer(b'{"a": 1}', 204)) == NO_NEWS


def test_a_next_function_may_return_none():
    assert LongPollReader(None, lambda answer: None, None).read(answer(b"x")).position == {}


async def test_a_listener_cannot_be_used_by_two_consumers_at_once():
    """Each consumer would move the position of the other."""
    listener, script = scripted(NEVER)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, TimedChannel())
        await anyio.sleep(1)
        with pytest.raises(RuntimeError, match="another consumer uses this listener"):
            await listener.listen(TimedChannel())
        tasks.cancel_scope.cancel()
    assert (await run(listener, script, 60)).events == [(1, "up")]


def test_an_unusable_answer_error_of_a_function_is_raised_unchanged():
    with pytest.raises(UnusableResponse, match="no valid JSON"):
        LongPollReader(lambda answer: answer.json(), None, None).read(answer(b"x"))


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"method": "PUT"}, ValueError, "GET or POST"),
        ({"ask": 7}, TypeError, "ask must be a mapping"),
        ({"ask": {7: 1}}, TypeError, "ask must be a mapping"),
        ({"ask": {"a": object()}}, TypeError, "unsupported"),
        ({"next": "since"}, TypeError, "next must be a mapping"),
        ({"next": {"since": ""}}, ValueError, "path must be"),
        ({"news": ""}, ValueError, "path must be"),
        ({"retry_after": 7}, TypeError, "path must be"),
        ({"wait": 0}, ValueError, "wait"),
        ({"max_body": 0}, ValueError, "max_body"),
        ({"open_timeout": None}, TypeError, "open_timeout"),
        ({"url": "ftp://x"}, ValueError, "must start with http"),
        ({"url": "https://me:pw@h/", "auth": "t"}, ValueError, "pass credentials only once"),
        ({"client": 7}, TypeError, "httpx.AsyncClient"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(options, kind, text):
    with pytest.raises(kind, match=text):
        LongPollListener(**{"url": URL, **options})
