"""The listener for server-sent events in virtual time, with a scripted transport."""

import logging
import math
import ssl
import traceback

import anyio
import anyio.lowlevel
import httpx
import pytest

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._http.transport import ProxyUnusable, SocksUnusable
from push_to_poll_client._types import Push
from push_to_poll_client.listeners import ReconnectAction, ServerSentEvent, SSEListener
from push_to_poll_client.listeners._failures import ConnectionEnded
from push_to_poll_client.listeners._requests import UnusableResponse
from push_to_poll_client.listeners._sse_parser import EventTooLarge
from push_to_poll_client.listeners.sse import failure_of
from tests.support.channels import TimedChannel
from tests.support.forms import form

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"
URL = f"https://feed.example/events?key={CANARY}"
RESET = httpx.ReadError("Connection reset by peer")
END = object()
EVENT = b"data: x\n\n"
STREAM = {"Content-Type": "text/event-stream"}


class Body(httpx.AsyncByteStream):
    """Runs a script: a number is a delay, an error is raised, `END` ends, bytes are received."""

    def __init__(self, happenings, closed):
        self._happenings = happenings
        self._closed = closed

    async def __aiter__(self):
        for happening in self._happenings:
            if isinstance(happening, Exception):
                raise happening
            if happening is END:
                return
            if isinstance(happening, bytes):
                yield happening
            else:
                await anyio.sleep(happening)
        await anyio.sleep_forever()

    async def aclose(self):
        await anyio.lowlevel.checkpoint()  # a stop would be noticed here, if possible
        self._closed()


class Script(httpx.AsyncBaseTransport):
    """Sends scripted responses: an error, a status, a status with headers, or a body. The last one repeats."""

    def __init__(self, *steps):
        self._steps = steps
        self.requests = []
        self.connects = []
        self.open = 0

    async def handle_async_request(self, request):
        self.requests.append(request)
        self.connects.append(anyio.current_time())
        step = self._steps[min(len(self.requests), len(self._steps)) - 1]
        if isinstance(step, Exception):
            raise step
        if isinstance(step, float):
            await anyio.sleep(step)
        status, headers, body = self._answer(step)
        self.open += 1
        return httpx.Response(status, headers=headers, stream=Body(body, self._closed))

    def _answer(self, step):
        if isinstance(step, int):
            return step, {}, [END]
        return (*step, [END]) if isinstance(step, tuple) else (200, STREAM, step)

    def _closed(self):
        self.open -= 1

    def sent(self, name):
        return [request.headers.get(name) for request in self.requests]


def scripted(*steps, url=URL, fraction=0.0, max_silence=None, **options):
    script = Script(*steps)
    listener = SSEListener(url, client=httpx.AsyncClient(transport=script), max_silence=max_silence, **options)
    listener._fraction = lambda: fraction
    return listener, script


async def run(listener, script, seconds, channel=None):
    """Let the listener run for some seconds of virtual time."""
    channel = channel or TimedChannel()
    with anyio.move_on_after(seconds):
        await listener.listen(channel)
        channel.returned = True
    assert script.open == 0
    script.connects = [round(at - channel.began, 3) for at in script.connects]
    return channel


# Pushes and wakes


async def test_a_connect_is_reported_as_up_and_each_event_is_a_push():
    listener, script = scripted([b"data: 1\n\n", 1, b"da", 1, b"ta: 2\n\ndata: 3\n\n"])
    channel = await run(listener, script, 10)
    assert channel.events == [(0, "up"), (0, Push()), (2, Push()), (2, Push())]


async def test_a_stop_takes_effect_between_the_events_of_one_read():
    listener, _ = scripted([EVENT * 10_000])
    channel = TimedChannel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, channel)
        while not channel.pushes:  # count the turns of other tasks
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(channel.pushes) < 1_000


async def test_other_tasks_run_while_a_large_read_is_parsed():
    size = form(50_000, 200_000)
    listener, _ = scripted([b"\n" * size + EVENT])
    channel, turns = TimedChannel(), 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, channel)
        while "up" not in [event for _, event in channel.events]:
            await anyio.lowlevel.checkpoint()
        while not channel.pushes:
            await anyio.lowlevel.checkpoint()
            turns += 1
        tasks.cancel_scope.cancel()
    assert turns >= size // 8192 - 1  # trio takes the tasks of a turn in any order


async def test_comments_blocks_without_data_and_cut_off_events_are_not_pushes():
    listener, script = scripted([b": ka\n\nid: 1\n\nevent: ping\n\nretry: 5\n\ndata: half\n", END], [])
    channel = await run(listener, script, 10)
    assert channel.events == [(0, "up"), (0, "down"), (0.005, "up")]


async def test_each_connect_is_up_and_each_failure_is_down_with_the_latest_error():
    listener, script = scripted(RESET, [4, END], 503, [])
    channel = await run(listener, script, 20)
    assert [event for _, event in channel.events] == ["down", "up", "down", "down", "up"]
    assert [type(error.__cause__).__name__ for error in channel.errors] == [
        "ReadError",
        "ConnectionEnded",
        "HTTPStatusError",
    ]
    assert "the server ended the stream" in str(channel.errors[1])
    assert "HTTP 503 instead of an event stream" in str(channel.errors[2])


async def test_the_hint_function_makes_or_drops_the_push_of_an_event():
    def hint(event):
        return {"hello": None, "order": Push(cursor=event.id)}.get(event.event, Push(topics=(event.data,)))

    listener, script = scripted([b"event: hello\ndata\n\nevent: order\nid: 7\ndata\n\ndata: x\n\n"], hint=hint)
    assert (await run(listener, script, 1)).pushes == [Push(cursor="7"), Push(topics=("x",))]


async def test_the_hint_function_gets_a_frozen_event():
    seen = []
    listener, script = scripted([b"id: 1\nevent: e\ndata: a\ndata: b\n\n"], hint=seen.append)
    await run(listener, script, 1)
    assert seen == [ServerSentEvent(event="e", data="a\nb", id="1")]
    with pytest.raises(AttributeError):
        seen[0].id = "2"


@pytest.mark.parametrize("hint", [lambda event: 1 / 0, lambda event: True])
async def test_a_hint_that_fails_loses_no_push_and_is_logged_once_as_a_warning(hint, caplog):
    listener, script = scripted([EVENT, EVENT], hint=hint)
    assert (await run(listener, script, 1)).pushes == [Push(), Push()]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "hint failed with" in warning.getMessage()


@pytest.mark.parametrize("large", [b"data: " + b"x" * 100, b"data: xxxxxx\n" * 20])
async def test_a_too_large_event_is_a_push_and_the_listener_reconnects_slowly(large):
    listener, script = scripted([1, large, b"more of it"], [], max_body=100)
    channel = await run(listener, script, 400)
    assert channel.events == [(0, "up"), (1, Push()), (1, "down"), (301, "up")]
    assert "has more than 100 bytes" in str(channel.errors[0])


# Reconnects


async def test_a_server_that_answers_503_is_retried_with_a_growing_delay():
    listener, script = scripted(503)
    await run(listener, script, 130)
    assert script.connects == [0, 0, 1, 3, 7, 15, 31, 61, 91, 121]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("body", [[END], [b"retry: 0\n\n", END], [EVENT, RESET]])
async def test_a_server_that_accepts_and_closes_gets_at_most_5_connections_in_10_seconds(fraction, body):
    listener, script = scripted(body, fraction=fraction)
    await run(listener, script, 10)
    assert 2 <= len(script.connects) <= 5


async def test_the_delay_resets_only_after_a_connection_of_30_seconds():
    listener, script = scripted(RESET, RESET, RESET, RESET, [29, RESET], [30, RESET], [])
    await run(listener, script, 200)
    assert script.connects == [0, 0, 1, 3, 7, 7 + 29 + 8, 7 + 29 + 8 + 30]


@pytest.mark.parametrize("status", [429, 503, 404])
async def test_retry_after_is_obeyed_with_upward_jitter(status):
    listener, script = scripted((status, {"Retry-After": "1200"}), [], fraction=0.5)
    await run(listener, script, 1500)
    assert script.connects == [0, 1320]


@pytest.mark.parametrize("garbage", ["soon", "-5", "", "nan"])
async def test_an_invalid_retry_after_is_ignored(garbage):
    listener, script = scripted((429, {"Retry-After": garbage}), [])
    await run(listener, script, 10)
    assert script.connects == [0, 0]


async def test_a_request_refused_by_the_server_is_retried_every_five_minutes():
    listener, script = scripted(403, 404, (200, {"Content-Type": "text/html"}), [])
    await run(listener, script, 1100)
    assert script.connects == [0, 300, 600, 900]


async def test_the_retry_field_of_the_stream_sets_the_minimum_delay():
    listener, script = scripted([b"retry: 20000\n", END], [EVENT, END], RESET, RESET, RESET, RESET, RESET, [])
    await run(listener, script, 300)
    assert script.connects == [0, 20, 40, 60, 80, 100, 120, 140]


async def test_the_retry_field_of_the_stream_is_bounded_and_gets_upward_jitter():
    listener, script = scripted([b"retry: 999999999\n", END], [b"retry: 0\n", END], [], fraction=0.5)
    await run(listener, script, 400)
    assert script.connects == [0, 330, 331.5]


async def test_a_connection_is_renewed_without_the_reconnect_delay():
    listener, script = scripted([b"retry: 20000\n"])
    await run(listener, script, 650)
    assert script.connects == [0, 300, 600]


async def test_the_listener_returns_with_the_channel_down_after_http_204():
    listener, script = scripted([4, END], 204, [])
    channel = await run(listener, script, 100)
    assert channel.returned
    assert channel.events == [(0, "up"), (4, "down"), (4, "down")]
    assert "HTTP 204, which asks the client not to reconnect" in str(channel.errors[1])
    assert script.connects == [0, 4]


# Age and silence


async def test_a_connection_is_renewed_within_its_maximum_age_without_going_down():
    listener, script = scripted([], max_age=600.0)
    channel = await run(listener, script, 950)
    assert channel.events == [(0, "up"), (300, "up"), (600, "up"), (900, "up")]


async def test_a_connection_without_a_maximum_age_is_not_renewed():
    listener, script = scripted([], max_age=None)
    await run(listener, script, 1e6)
    assert script.connects == [0]


async def test_a_connection_silent_for_90_seconds_is_a_failure():
    script = Script([20, EVENT], [])
    listener = SSEListener(URL, client=httpx.AsyncClient(transport=script))
    listener._fraction = lambda: 0.0
    channel = await run(listener, script, 120)
    assert channel.events == [(0, "up"), (20, Push()), (110, "down"), (110, "up")]
    assert "no message for 90 s" in str(channel.errors[0])


@pytest.mark.parametrize("life", [b": ka\n", b"\n", b"event: ping\n\n", b"data: half of an ev"])
async def test_any_received_bytes_reset_the_silence_timeout(life):
    listener, script = scripted([80, life, 80, life, 80, life], max_age=None, max_silence=90.0)
    channel = await run(listener, script, 300)
    assert [at for at, event in channel.events if event == "up"] == [0]


async def test_a_missing_answer_is_a_failure_after_the_open_timeout():
    listener, script = scripted(60.0, [], open_timeout=10.0)
    channel = await run(listener, script, 30)
    assert channel.events == [(10, "down"), (10, "up")]
    assert "no response within 10 s" in str(channel.errors[0])


# The request


async def test_the_request_has_the_method_and_headers_of_the_standard():
    listener, script = scripted([])
    await run(listener, script, 1)
    request = script.requests[0]
    assert (request.method, str(request.url)) == ("GET", URL)
    assert {name: request.headers[name] for name in ("accept", "cache-control", "accept-encoding")} == {
        "accept": "text/event-stream",
        "cache-control": "no-store",
        "accept-encoding": "identity",
    }
    assert not {"authorization", "last-event-id"} & request.headers.keys()
    assert request.extensions["timeout"]["read"] is None, "a quiet stream is not slow"


@pytest.mark.parametrize(
    "content_type",
    ["text/event-stream", "Text/Event-Stream", "text/event-stream; charset=latin-1", "text/event-stream ;x"],
)
async def test_the_media_type_is_compared_without_case_and_parameters(content_type):
    listener, script = scripted((200, {"Content-Type": content_type}))
    assert (await run(listener, script, 0.5)).events[0] == (0, "up")


@pytest.mark.parametrize("content_type", ["text/html", "text/event-stream+x", "application/json", "", "\x1b[2J"])
async def test_another_media_type_is_not_an_event_stream(content_type):
    listener, script = scripted((200, {"Content-Type": content_type}))
    channel = await run(listener, script, 0.5)
    assert channel.events == [(0, "down")]
    assert "instead of text/event-stream" in str(channel.errors[0])
    assert str(channel.errors[0]).isprintable()


@pytest.mark.parametrize(
    ("encoding", "goes"), [("gzip", False), ("br, gzip", False), ("identity", True), ("", True)]
)
async def test_a_compressed_stream_is_refused_unread(encoding, goes):
    listener, script = scripted((200, STREAM | {"Content-Encoding": encoding}))
    channel = await run(listener, script, 0.5)
    assert channel.events[0] == (0, "up" if goes else "down")
    assert goes or f"Content-Encoding '{encoding}', expected identity" in str(channel.errors[0])


async def test_headers_and_token_providers_are_called_at_each_connect():
    tokens, tenants = iter("abc"), iter("xyz")

    async def token():
        return next(tokens)

    listener, script = scripted([END], auth=token, headers=lambda: {"Tenant": next(tenants)})
    await run(listener, script, 2)
    assert script.sent("tenant") == ["x", "y", "z"]
    assert script.sent("authorization") == ["Bearer a", "Bearer b", "Bearer c"]


async def test_headers_of_the_user_replace_the_default_headers():
    listener, script = scripted([], headers={"ACCEPT": "text/event-stream, */*", "A": "b"})
    await run(listener, script, 1)
    assert script.requests[0].headers.get_list("accept") == ["text/event-stream, */*"]
    assert script.sent("a") == ["b"]


async def test_user_and_password_of_the_url_are_sent():
    listener, script = scripted([], url="https://m%C3%A9:p%3Aw@feed.example/events#part")
    await run(listener, script, 1)
    assert script.requests[0].headers.get_list("authorization") == ["Basic bcOpOnA6dw=="]
    assert str(script.requests[0].url) == "https://feed.example/events"


async def test_a_given_client_sends_its_own_credentials_unless_a_token_is_given():
    for options, sent in [
        ({}, "Basic bWU6cHc="),
        ({"auth": "t"}, "Bearer t"),
        ({"auth": httpx.BasicAuth("x", "y")}, "Basic eDp5"),
    ]:
        script = Script([])
        client = httpx.AsyncClient(transport=script, auth=("me", "pw"))
        await run(SSEListener(URL, client=client, **options), script, 1)
        assert script.sent("authorization") == [sent]
        assert not client.is_closed


async def test_after_http_401_a_fresh_token_is_tried_at_once_and_then_every_five_minutes():
    asked = iter(range(100))
    listener, script = scripted(401, auth=lambda: f"t{next(asked)}")
    await run(listener, script, 700)
    assert script.connects == [0, 0, 300, 600]
    assert script.sent("authorization") == [f"Bearer t{n}" for n in range(4)]


async def test_http_401_with_a_fixed_token_is_retried_slowly():
    listener, script = scripted(401, auth="fixed")
    await run(listener, script, 400)
    assert script.connects == [0, 300]


# The last event id


async def test_last_event_id_is_not_sent_by_default():
    listener, script = scripted([b"id: 1\ndata: x\n\n", END], [END], [])
    await run(listener, script, 2)
    assert script.sent("last-event-id") == [None] * 3


async def test_the_last_event_id_is_sent_also_after_streams_without_an_id():
    listener, script = scripted(
        [b"id: 1\ndata: x\n\nid: 2\ndata: cut off\n", END],
        [b": ka\n\ndata: y\n\n", END],
        RESET,
        [b"id: \xc3\xa9\n\n", END],
        [b"id\n\n", END],
        [],
        last_event_id=True,
    )
    await run(listener, script, 60)
    sent = [dict(request.headers.raw).get(b"last-event-id") for request in script.requests]
    assert sent == [None, b"1", b"1", b"1", "é".encode(), None]


async def test_a_received_event_id_replaces_the_last_event_id_header_of_the_user():
    listener, script = scripted([b"id: 1\n\n", END], [], last_event_id=True, headers={"last-event-id": "earliest"})
    await run(listener, script, 1)
    assert [request.headers.get_list("last-event-id") for request in script.requests] == [["earliest"], ["1"]]


@pytest.mark.parametrize("id", [b"a\x01b", b"x" * 1025, b" \t1", b"1 ", b"a\x7f"])
async def test_an_event_id_that_is_not_a_valid_header_value_is_not_sent(id):
    listener, script = scripted([b"id: 1\n\n", b"id:" + id + b"\n\n", END], [], last_event_id=True)
    await run(listener, script, 1)
    assert script.sent("last-event-id") == [None, "1"]


async def test_the_last_event_id_is_not_sent_again_after_http_400():
    listener, script = scripted([b"id: 1\n\n", END], 400, [], last_event_id=True)
    await run(listener, script, 400)
    assert script.sent("last-event-id") == [None, "1", None]


# Actions


def status(code):
    request = httpx.Request("GET", URL)
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code, request=request))


def caused_by(error, cause):
    error.__cause__ = cause
    return error


def hiding(error, context):
    """As with `raise error from None` while another error is handled."""
    error.__context__, error.__cause__ = context, None
    return error


UNTRUSTED = ssl.SSLCertVerificationError(1, "certificate verify failed")


@pytest.mark.parametrize(
    ("action", "errors"),
    [
        (
            ReconnectAction.RETRY,
            [
                RESET,
                httpx.ConnectError("All connection attempts failed"),
                httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
                httpx.ProxyError("502 Bad Gateway"),
                TimeoutError("no response within 10 s"),
                ConnectionEnded("the server ended the stream"),
                *(status(code) for code in (408, 425, 429, 500, 502, 503, 504, 599)),
                RuntimeError("something new"),
            ],
        ),
        (
            ReconnectAction.SLOW_RETRY,
            [
                *(status(code) for code in (201, 206, 301, 302, 307, 400, 401, 403, 404, 407, 418, 501, 505)),
                UnusableResponse("the server answered with something else"),
                EventTooLarge("a line is too large"),
                ProxyUnusable("the address of the proxy is not valid"),
                httpx.LocalProtocolError("Illegal header value"),
                caused_by(httpx.ConnectError("certificate verify failed"), UNTRUSTED),
                caused_by(httpx.ConnectError(""), hiding(httpx.ConnectError(""), UNTRUSTED)),
            ],
        ),
        (ReconnectAction.GIVE_UP, [status(410), SocksUnusable("a library is missing")]),
    ],
)
def test_each_failure_is_classified_with_its_action(action, errors):
    sorted_as = {f"{type(error).__name__}: {error}": failure_of(error).action for error in errors}
    assert sorted_as == dict.fromkeys(sorted_as, action)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RESET, "ReadError: 'Connection reset by peer'"),
        (status(503), "the server answered HTTP 503 instead of an event stream"),
        (
            status(307),
            (
                "the server answered HTTP 307 instead of an event stream; redirects are not followed, "
                "to keep the credentials at their server: configure the new URL"
            ),
        ),
        (ConnectionEnded("the server ended the stream"), "the server ended the stream"),
        (httpx.ReadError(""), "failed with ReadError"),
        (caused_by(httpx.ReadError(""), OSError("lost")), "OSError: 'lost'"),
        (httpx.LocalProtocolError(CANARY), "failed with LocalProtocolError"),
        (ValueError(CANARY), "failed with ValueError"),
        (httpx.RemoteProtocolError("\x1b[2J\n"), r"RemoteProtocolError: '\x1b[2J\n'"),
    ],
)
def test_each_failure_is_described_in_one_sentence(error, said):
    assert failure_of(error).sentence == said


@pytest.mark.parametrize("location", ["location: /", f"http://{CANARY}:port/", "http://xn--zz/"])
async def test_a_redirect_to_an_invalid_url_is_retried_slowly_with_a_clear_error(location):
    listener, script = scripted((307, {"Location": location}))
    channel = await run(listener, script, 400)
    assert script.connects == [0, 300]
    assert "the server redirected to an invalid URL" in str(channel.errors[0])
    assert CANARY not in str(channel.errors[0])


async def test_http_410_raises_a_listener_error():
    listener, script = scripted([END], 410)
    channel = TimedChannel()
    with pytest.raises(ListenerError, match=r"https://feed\.example/events.*HTTP 410") as raised:
        await run(listener, script, 10, channel)
    assert channel.errors[-1] is raised.value


async def test_a_classify_function_overrides_the_default_actions():
    def classify(error):
        return {404: ReconnectAction.RETRY, 503: ReconnectAction.GIVE_UP}.get(error.response.status_code)

    listener, script = scripted(404, 403, 503, classify=classify)
    with pytest.raises(ListenerError, match="HTTP 503"):
        await run(listener, script, 1000)
    assert round(script.connects[-1] - script.connects[0]) == 300


# Log lines and errors


async def test_failures_are_logged_as_info_with_the_delay_and_http_204_is_logged(caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    listener, script = scripted(RESET, [], 204, max_age=2.0)
    await run(listener, script, 100)
    told = [(record.levelname, record.getMessage().partition("…: ")[2]) for record in caplog.records]
    assert told == [
        ("INFO", "ReadError: 'Connection reset by peer'; reconnecting in 0.0 s"),
        ("INFO", "connected"),
        ("DEBUG", "renewing the connection, which reached its maximum age"),
        ("INFO", "the server answered HTTP 204, which asks the client not to reconnect"),
    ]
    assert {record.name for record in caplog.records} == {"push_to_poll_client.listeners.sse"}


async def test_secrets_stay_out_of_names_logs_and_errors(caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")

    def token():
        raise RuntimeError(CANARY)

    url = f"https://me:{CANARY}@feed.example/events?key={CANARY}"
    refused = httpx.LocalProtocolError(f"Illegal header value b'{CANARY}'")
    for listener, script in (
        scripted(RESET, 401, refused, [END], url=url, headers={"X-Key": CANARY}),
        scripted([], auth=token),
    ):
        channel = await run(listener, script, 400)
        errors = ["".join(traceback.format_exception(error)) for error in channel.errors if script.requests]
        shown = [listener.name, repr(listener), *map(str, channel.errors), *map(repr, channel.errors), *errors]
        assert CANARY not in "".join(shown)
        assert all(getattr(error.__cause__, "__traceback__", None) is None for error in channel.errors)
    assert CANARY not in caplog.text


# Arguments


@pytest.mark.parametrize(
    "url",
    [
        "ws://feed.example/",
        "feed.example",
        "http://",
        "https:///path",
        f"http://{CANARY}:x/",
    ],
)
def test_a_url_must_be_an_http_address(url):
    with pytest.raises(ValueError, match=r"url (must start|cannot be parsed)") as raised:
        SSEListener(url)
    assert CANARY not in str(raised.value).replace(f"http://{CANARY}", "")


@pytest.mark.parametrize("name", ["max_age", "max_silence", "open_timeout"])
def test_limits_are_finite_numbers_above_0(name):
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name} must be finite and above 0, got {wrong}"):
            SSEListener(URL, **{name: wrong})
    with pytest.raises(TypeError, match=f"{name} must be a number"):
        SSEListener(URL, **{name: "20"})


def test_a_token_together_with_a_user_in_the_url_is_a_value_error():
    with pytest.raises(ValueError, match="pass credentials only once") as raised:
        SSEListener(f"https://me:{CANARY}@feed.example/", auth="t")
    assert CANARY not in str(raised.value)


def test_an_invalid_client_and_a_client_together_with_tls_are_errors():
    with pytest.raises(TypeError, match=r"client must be an httpx\.AsyncClient or compatible, got Client"):
        SSEListener(URL, client=type("Client", (), {})())
    with pytest.raises(ValueError, match="pass client= or ssl_context=, not both"):
        SSEListener(URL, client=httpx.AsyncClient(), ssl_context=ssl.create_default_context())


def test_the_name_and_repr_show_the_address_without_secrets():
    listener = SSEListener(f"https://me:{CANARY}@feed.example:8443/events?key={CANARY}")
    assert listener.name == "https://feed.example:8443/events?key=…"
    assert repr(listener) == "SSEListener('https://feed.example:8443/events?key=…')"
