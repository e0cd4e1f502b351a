"""The websocket listener in virtual time, with scripted connections."""

import contextlib
import logging
import math
import ssl
import traceback

import anyio
import anyio.lowlevel
import httpx
import pytest
from websockets.datastructures import Headers
from websockets.exceptions import (
    ConnectionClosedError,
    InvalidHeader,
    InvalidMessage,
    InvalidProxy,
    InvalidProxyMessage,
    InvalidProxyStatus,
    InvalidStatus,
    InvalidUpgrade,
    InvalidURI,
    NegotiationError,
    ProxyError,
)
from websockets.frames import Close
from websockets.http11 import Response

from push_to_poll_client._exceptions import ListenerError, PushToPollError
from push_to_poll_client._types import Push
from push_to_poll_client.listeners import ReconnectAction, WebSocketListener
from push_to_poll_client.listeners.websocket import (
    NoCommonSubprotocol,
    failure_of,
)
from tests.support.channels import TimedChannel

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"
URL = f"ws://feed.example/push?key={CANARY}"
RESET = ConnectionResetError(104, "Connection reset by peer")


def status(code, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return InvalidStatus(Response(code, "", Headers(headers)))


def closed(code, reason=""):
    """The server closed, and this side answered."""
    close = Close(code, reason)
    return ConnectionClosedError(close, close, rcvd_then_sent=True)


def closed_by_us(code, reason=""):
    """This side closed, and the server answered with its own code."""
    return ConnectionClosedError(Close(1000, ""), Close(code, reason), rcvd_then_sent=False)


LOST = ConnectionClosedError(None, None)
PING_UNANSWERED = ConnectionClosedError(None, Close(1011, "keepalive ping timeout"))


def caused_by(error, cause):
    error.__cause__ = cause
    return error


class Connection:
    """Runs a script: a number is a delay, an error is raised, anything else is received."""

    def __init__(self, happenings, subprotocol):
        self.subprotocol = subprotocol
        self._happenings = iter(happenings)

    async def recv(self):
        for happening in self._happenings:
            if isinstance(happening, Exception):
                raise happening
            if isinstance(happening, int | float):
                await anyio.sleep(happening)
            else:
                return happening
        return await anyio.sleep_forever()


class Scripted(WebSocketListener):
    """Opens scripted connections: each step is an error, or the script of a connection. The last one repeats."""

    def __init__(self, *script, url=URL, fraction=0.0, subprotocol=None, **options):
        super().__init__(url, **options)
        self._open = self._open_scripted
        self._script = script
        self._fraction = lambda: fraction
        self._subprotocol = subprotocol
        self.connects = []
        self.headers = []
        self.open = 0

    @contextlib.asynccontextmanager
    async def _open_scripted(self, *, headers):
        self.connects.append(anyio.current_time())
        self.headers.append(headers)
        step = self._script[min(len(self.connects), len(self._script)) - 1]
        if isinstance(step, Exception):
            raise step
        self.open += 1
        try:
            yield Connection(step, self._subprotocol)
        finally:
            self.open -= 1


async def run(listener, seconds, channel=None):
    """Let the listener run for some seconds of virtual time."""
    channel = channel or TimedChannel()
    with anyio.move_on_after(seconds):
        await listener.listen(channel)
    assert listener.open == 0
    listener.connects = [round(at - channel.began, 3) for at in listener.connects]
    return channel


# Pushes and wakes


async def test_a_connect_and_each_message_wake():
    listener = Scripted(["hello", 1, b"\x00", 2, "again"])
    channel = await run(listener, 10)
    assert channel.events == [(0, "up"), (0, Push()), (1, Push()), (3, Push())]


async def test_a_stop_takes_effect_during_a_flood_of_messages():
    listener = Scripted(["x"] * 10_000)
    channel = TimedChannel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, channel)
        while not channel.pushes:  # count the turns of other tasks
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(channel.pushes) < 1_000


async def test_each_connect_reports_up_and_each_failure_reports_down_with_its_error():
    listener = Scripted(RESET, [5, closed(1012)], status(503), [])
    channel = await run(listener, 20)
    assert [event for _, event in channel.events] == ["down", "up", "down", "down", "up"]
    assert [type(error.__cause__).__name__ for error in channel.errors] == [
        "ConnectionResetError",
        "ConnectionClosedError",
        "InvalidStatus",
    ]
    assert "1012 (service restart)" in str(channel.errors[1])
    assert "HTTP 503" in str(channel.errors[2])


# Reconnects


async def test_a_server_that_refuses_is_retried_with_growing_delays():
    listener = Scripted(status(503))
    await run(listener, 130)
    assert listener.connects == [0, 0, 1, 3, 7, 15, 31, 61, 91, 121]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("code", [1000, 1011, 1013, 4000])
async def test_a_server_that_accepts_and_closes_sees_a_handful_of_connections_in_ten_seconds(fraction, code):
    listener = Scripted([closed(code)], fraction=fraction)
    channel = await run(listener, 10)
    assert 2 <= len(listener.connects) <= 5
    assert [event for _, event in channel.events] == ["up", "down"] * len(listener.connects)


async def test_the_reconnect_delay_resets_only_after_a_connection_of_30_seconds():
    listener = Scripted(RESET, RESET, RESET, RESET, [29, LOST], [30, LOST], [])
    await run(listener, 200)
    assert listener.connects == [0, 0, 1, 3, 7, 7 + 29 + 8, 7 + 29 + 8 + 30]


async def test_retry_after_is_obeyed_and_jitter_only_lengthens_it():
    listener = Scripted(status(503, Retry_After="120"), [], fraction=0.5)
    await run(listener, 200)
    assert listener.connects == [0, 132]


async def test_retry_after_of_a_proxy_is_obeyed_too():
    refused = InvalidProxyStatus(Response(503, "", Headers({"Retry-After": "120"})))
    listener = Scripted(refused, [])
    await run(listener, 200)
    assert listener.connects == [0, 120]


@pytest.mark.parametrize("garbage", ["soon", "-5", "", "nan"])
async def test_a_retry_after_that_cannot_be_read_is_ignored(garbage):
    listener = Scripted(status(429, Retry_After=garbage), [])
    await run(listener, 10)
    assert listener.connects == [0, 0]


async def test_a_refusal_is_tried_again_every_few_minutes():
    listener = Scripted(status(403), status(404), closed(1008), [])
    await run(listener, 1100)
    assert listener.connects == [0, 300, 600, 900]


# Age and silence


async def test_an_old_connection_is_renewed_without_going_down():
    listener = Scripted([], max_age=600.0)
    channel = await run(listener, 950)
    assert channel.events == [(0, "up"), (300, "up"), (600, "up"), (900, "up")]


@pytest.mark.parametrize(("fraction", "at"), [(0.5, 450), (0.9, 570)])
async def test_the_age_of_renewal_is_chosen_at_random(fraction, at):
    listener = Scripted([], fraction=fraction)
    await run(listener, 600)
    assert listener.connects == [0, at]


async def test_a_renewal_resets_the_delay_and_a_failed_renewal_reports_down():
    listener = Scripted(RESET, RESET, RESET, [], RESET, [])
    channel = await run(listener, 400)
    assert channel.events[-3:] == [(3, "up"), (303, "down"), (303, "up")]


async def test_without_a_maximum_age_a_connection_stays():
    listener = Scripted([], max_age=None)
    await run(listener, 1e6)
    assert listener.connects == [0]


async def test_a_connection_without_messages_for_max_silence_fails():
    listener = Scripted([20, "ping", 20, "ping", 20, "ping"], max_silence=30.0)
    channel = await run(listener, 91)
    assert channel.events[-2:] == [(90, "down"), (90, "up")]
    assert "no message for 30 s" in str(channel.errors[0])


async def test_a_message_that_is_not_a_push_also_ends_silence():
    listener = Scripted([20, "ping", 20, "ping", 20, "ping"], max_silence=30.0, hint=lambda _: None)
    channel = await run(listener, 90)
    assert channel.events == [(0, "up")]


# Hints


async def test_the_hint_function_decides_the_push():
    pushes = {"hello": None, "17": Push(cursor="17"), b"orders": Push(topics=("orders",))}
    listener = Scripted(["hello", "17", b"orders"], hint=pushes.get)
    channel = await run(listener, 1)
    assert channel.pushes == [Push(cursor="17"), Push(topics=("orders",))]


@pytest.mark.parametrize("hint", [lambda message: 1 / 0, lambda message: True])
async def test_a_hint_that_fails_loses_no_push_and_is_logged_once_as_a_warning(hint, caplog):
    listener = Scripted(["a", "b"], hint=hint)
    channel = await run(listener, 1)
    assert channel.pushes == [Push(), Push()]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "hint failed with" in warning.getMessage()


@pytest.mark.parametrize("code", [1002, 1007, 1009])
async def test_an_unreadable_message_counts_as_a_push_and_delays_the_reconnect(code):
    listener = Scripted([1, closed_by_us(code)], [])
    channel = await run(listener, 400)
    assert channel.events == [(0, "up"), (1, Push()), (1, "down"), (301, "up")]


@pytest.mark.parametrize("error", [closed(1009), closed_by_us(1011), LOST, RESET])
def test_other_connection_failures_do_not_count_as_a_push(error):
    assert not failure_of(error).hid_a_push


# Credentials


async def test_header_and_token_functions_are_called_at_each_connect():
    tokens, tenants = iter("abc"), iter("xyz")

    async def token():
        return next(tokens)

    listener = Scripted([closed(1012)], auth=token, headers=lambda: {"Tenant": next(tenants)})
    await run(listener, 2)
    assert listener.headers == [
        {"tenant": "x", "authorization": "Bearer a"},
        {"tenant": "y", "authorization": "Bearer b"},
        {"tenant": "z", "authorization": "Bearer c"},
    ]


async def test_fixed_headers_and_token_are_sent_each_time():
    listener = Scripted([closed(1012)], auth="t", headers={"A": "b"})
    await run(listener, 0.5)
    assert listener.headers == [{"a": "b", "authorization": "Bearer t"}] * 2


async def test_a_token_replaces_the_authorization_of_the_header_function():
    listener = Scripted([], auth="t", headers=lambda: {"authorization": "Basic eDp5", "A": "b"})
    await run(listener, 0.5)
    assert listener.headers == [{"a": "b", "authorization": "Bearer t"}]


async def test_a_pair_and_the_user_of_the_url_are_sent_as_basic_credentials():
    for listener in (Scripted([], auth=("me", "pw")), Scripted([], url="ws://me:pw@feed.example/")):
        await run(listener, 0.5)
        assert listener.headers == [{"authorization": "Basic bWU6cHc="}]


async def test_header_and_token_functions_can_be_async_or_plain():
    async def headers():
        return {"A": "b"}

    listener = Scripted([], auth=lambda: "t", headers=headers)
    await run(listener, 1)
    assert listener.headers == [{"a": "b", "authorization": "Bearer t"}]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (anyio.sleep_forever, "TimeoutError"),
        (lambda: "", "the token given by auth= is empty"),
        (lambda: f"{CANARY}\nAdmin: yes", "contains a space or control character"),
        (lambda: f"{CANARY}\n", "contains a space or control character"),
        (lambda: None, None),
        (lambda: 5, "a token must be a str, got int"),
    ],
)
async def test_a_token_provider_that_fails_is_a_failed_attempt(wrong, expected, caplog):
    calls = []

    def token():
        calls.append(anyio.current_time())
        return "good" if len(calls) > 2 else wrong()

    listener = Scripted([], auth=token, open_timeout=10.0)
    channel = await run(listener, 40)
    if expected is None:  # no token: the server decides
        assert listener.headers == [{}]
    else:
        assert len(calls) == 3
        assert expected in str(channel.errors[0])
        assert listener.headers == [{"authorization": "Bearer good"}]
    assert CANARY not in caplog.text + repr(channel.errors)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["A"], "headers must be a mapping of str to str, got list"),
        ({"A": 5}, "headers must map str to str, got int for 'A'"),
        ({"A:B": "c"}, "the header 'A:B' has characters that are not allowed in a header"),
        ({"A": "b\r\nC: d"}, "the header 'A' has characters that are not allowed in a header"),
    ],
)
async def test_invalid_headers_fail_the_attempt_and_are_refused_as_an_argument(headers, expected):
    listener = Scripted([], headers=lambda: headers)
    channel = await run(listener, 0.5)
    assert expected in str(channel.errors[0])
    assert not listener.connects
    with pytest.raises((TypeError, ValueError), match=expected):
        WebSocketListener(URL, headers=headers)


async def test_on_401_the_token_function_is_called_again_at_once_and_then_slowly():
    calls = iter(range(100))
    listener = Scripted(status(401), auth=lambda: f"t{next(calls)}")
    await run(listener, 1000)
    assert listener.connects == [0, 0, 300, 600, 900]
    assert [headers["authorization"][-2:] for headers in listener.headers] == ["t0", "t1", "t2", "t3", "t4"]


async def test_on_401_a_fresh_token_connects_at_once():
    tokens = iter(["old", "new"])
    listener = Scripted(status(401), [], auth=lambda: next(tokens))
    channel = await run(listener, 100)
    assert channel.events == [(0, "down"), (0, "up")]


async def test_on_401_a_fixed_token_is_retried_slowly():
    listener = Scripted(status(401), auth="fixed")
    await run(listener, 400)
    assert listener.connects == [0, 300]


@pytest.mark.parametrize("code", [1008, 3000])
async def test_a_token_that_expired_while_connected_is_renewed_at_once(code):
    listener = Scripted([100, closed(code)], [100, closed(code)], [closed(code)], [], auth=lambda: "t")
    await run(listener, 600)
    assert listener.connects == [0, 100, 200, 500]


async def test_a_1008_close_from_this_side_does_not_reconnect_at_once():
    listener = Scripted([closed_by_us(1008)], auth=lambda: "t")
    await run(listener, 100)
    assert listener.connects == [0]


# Actions


@pytest.mark.parametrize(
    ("action", "errors"),
    [
        (
            ReconnectAction.RETRY,
            [
                RESET,
                TimeoutError("timed out during opening handshake"),
                OSError("name not known"),
                ssl.SSLError(1, "wrong version number"),
                *(status(code) for code in (408, 425, 429, 500, 502, 503, 504, 599)),
                *(
                    closed(code)
                    for code in (1000, 1001, 1005, 1011, 1012, 1013, 1014, 1999, 3001, 4000, 4401, 4999)
                ),
                LOST,
                PING_UNANSWERED,
                caused_by(InvalidMessage("did not receive a valid HTTP response"), EOFError()),
                ProxyError("failed to connect to SOCKS proxy"),
                InvalidProxyMessage("did not receive a valid HTTP response from proxy"),
                InvalidProxyStatus(Response(502, "", Headers())),
                RuntimeError("something new"),
            ],
        ),
        (
            ReconnectAction.SLOW_RETRY,
            [
                NegotiationError("unsupported subprotocol: x"),
                *(status(code) for code in (200, 302, 400, 401, 403, 404, 407, 418, 501, 505)),
                *(closed(code) for code in (1002, 1003, 1007, 1008, 1009, 1010, 3000, 3003)),
                *(closed_by_us(code) for code in (1002, 1007, 1009)),
                InvalidUpgrade("Upgrade", "h2c"),
                InvalidHeader("Sec-WebSocket-Accept"),
                caused_by(InvalidMessage("did not receive a valid HTTP response"), ValueError("SSH-2.0")),
                ssl.SSLCertVerificationError(1, "certificate verify failed"),
                caused_by(RuntimeError("as trio does"), ssl.SSLCertVerificationError(1, "verify failed")),
                InvalidProxy("http://me:secret@", "hostname isn't provided"),
                InvalidProxyStatus(Response(407, "", Headers())),
                InvalidProxyStatus(Response(410, "", Headers())),
            ],
        ),
        (
            ReconnectAction.GIVE_UP,
            [
                status(410),
                NoCommonSubprotocol("the server chose none of the subprotocols x"),
                ImportError("connecting through a SOCKS proxy requires python-socks"),
            ],
        ),
    ],
)
def test_each_failure_maps_to_its_reconnect_action(action, errors):
    sorted_as = {f"{type(error).__name__}: {error}": failure_of(error).action for error in errors}
    assert sorted_as == dict.fromkeys(sorted_as, action)


async def test_http_410_raises_listener_error():
    listener = Scripted([closed(1012)], status(410))
    channel = TimedChannel()
    with pytest.raises(ListenerError, match=r"ws://feed\.example/push.*HTTP 410") as raised:
        await run(listener, 10, channel)
    assert isinstance(raised.value.__cause__, InvalidStatus)
    assert [event for _, event in channel.events] == ["up", "down", "down"]
    assert channel.errors[-1] is raised.value


async def test_a_server_that_chooses_no_subprotocol_raises_listener_error():
    listener = Scripted(["for another protocol"], subprotocols=["push.v1", "push.v2"])
    channel = TimedChannel()
    with pytest.raises(ListenerError, match=r"none of the subprotocols push\.v1, push\.v2"):
        await run(listener, 10, channel)
    assert [event for _, event in channel.events] == ["down"]


async def test_a_connection_with_a_chosen_subprotocol_wakes():
    listener = Scripted(["push"], subprotocols=["push.v1"], subprotocol="push.v1")
    channel = await run(listener, 1)
    assert channel.pushes == [Push()]


async def test_classify_overrides_the_default_reconnect_action():
    def classify(error):
        return {4001: ReconnectAction.SLOW_RETRY, 4002: ReconnectAction.GIVE_UP}.get(error.rcvd.code)

    listener = Scripted([closed(1008)], [closed(4001)], [closed(4000)], [closed(4002)], classify=classify)
    with pytest.raises(ListenerError, match=r"4002 \(private use\)"):
        await run(listener, 1000)
    assert len(listener.connects) == 4
    assert round(listener.connects[-1] - listener.connects[0]) == 300 + 300 + 2


async def test_a_classify_function_that_fails_leaves_the_default_reconnect_action(caplog):
    listener = Scripted(status(403), classify=lambda error: 1 / 0)
    await run(listener, 301)
    assert listener.connects == [0, 300]
    assert "classify failed with ZeroDivisionError" in caplog.text


async def test_a_single_error_in_nested_exception_groups_is_unwrapped():
    listener = Scripted(ExceptionGroup("nursery", [ExceptionGroup("nursery", [status(403)])]))
    channel = await run(listener, 100)
    assert listener.connects == [0]
    assert "HTTP 403" in str(channel.errors[0])


async def test_an_exception_group_of_several_errors_is_retried():
    listener = Scripted(ExceptionGroup("nursery", [RESET, status(403)]))
    channel = await run(listener, 0.5)
    assert listener.connects == [0, 0]
    assert "failed with ExceptionGroup" in str(channel.errors[0])


# Log lines and errors


async def test_failures_are_info_with_the_delay_and_giving_up_is_an_error(caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    listener = Scripted(RESET, RESET, [], status(410), max_age=2.0)
    with pytest.raises(ListenerError):
        await run(listener, 100)
    told = [(record.levelname, record.getMessage().partition("…: ")[2]) for record in caplog.records]
    assert told == [
        ("INFO", "ConnectionResetError: '[Errno 104] Connection reset by peer'; reconnecting in 0.0 s"),
        ("INFO", "ConnectionResetError: '[Errno 104] Connection reset by peer'; reconnecting in 1.0 s"),
        ("INFO", "connected"),
        ("DEBUG", "renewing the connection, which reached its maximum age"),
        ("ERROR", "the server answered HTTP 410 instead of a websocket; stopping the consumer"),
    ]
    assert {record.name for record in caplog.records} == {"push_to_poll_client.listeners.websocket"}


async def test_secrets_stay_out_of_names_logs_and_errors(caplog):
    caplog.set_level(logging.DEBUG)

    def token():
        raise RuntimeError(CANARY)

    options = {"url": f"wss://me:{CANARY}@feed.example/push?key={CANARY}", "headers": {"X-Key": CANARY}}
    for listener in (Scripted(RESET, **options), Scripted([], auth=token, url=URL)):
        channel = await run(listener, 10)
        shown = [listener.name, repr(listener), *map(str, channel.errors), *map(repr, channel.errors)]
        assert CANARY not in "".join(shown)
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        InvalidProxy(f"http://me:{CANARY}@proxy.example", "path is meaningless"),
        InvalidURI(f"ws://{CANARY}", "no"),
        ValueError(CANARY),
    ],
)
def test_an_error_that_may_hold_a_secret_is_named_by_its_type(error):
    assert CANARY not in failure_of(error).sentence


async def test_a_traceback_does_not_quote_the_password_of_a_proxy():
    wrong = InvalidProxy(f"http://me:{CANARY}@proxy.example/x", "path is meaningless")
    listener = Scripted(wrong, classify=lambda error: ReconnectAction.GIVE_UP)
    with pytest.raises(ListenerError, match="proxy") as raised:
        await run(listener, 10)
    assert CANARY not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("reason", ["\x1b[2Jgone\nINFO all is well", "x" * 5000, "\u202egnp", "\x00"])
def test_text_from_the_server_cannot_forge_a_log_line(reason):
    for error in (closed(1013, reason), InvalidHeader("Sec-WebSocket-Accept", reason)):
        assert failure_of(error).sentence.isprintable()
        assert len(failure_of(error).sentence) < 500


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (closed(1013), "the server closed the connection with 1013 (try again later)"),
        (closed(4000, "bye"), "the server closed the connection with 4000 (private use): 'bye'"),
        (
            closed_by_us(1009, "frame with 70000 bytes exceeds limit of 65536 bytes"),
            (
                "this side closed the connection with 1009 (message too big): "
                "'frame with 70000 bytes exceeds limit of 65536 bytes'"
            ),
        ),
        (
            PING_UNANSWERED,
            "this side closed the connection with 1011 (internal error): 'keepalive ping timeout'",
        ),
        (LOST, "the connection was lost without a close frame"),
        (
            status(307),
            (
                "the server answered HTTP 307 instead of a websocket; redirects are not followed, "
                "to keep the credentials at their server: configure the new URL"
            ),
        ),
        (
            caused_by(RuntimeError("as trio does"), ssl.SSLCertVerificationError(1, "self-signed certificate")),
            "SSLCertVerificationError: 'self-signed certificate'",
        ),
        (OSError(), "failed with OSError"),
        (PushToPollError("our own words"), "our own words"),
    ],
)
def test_each_failure_is_described_in_a_sentence(error, expected):
    assert failure_of(error).sentence == expected


# Arguments


@pytest.mark.parametrize(
    "url",
    [
        "https://feed.example/",
        "feed.example",
        "ws://",
        "ws:///path",
        "wss://feed.example/#part",
        f"wss://{CANARY}@feed.example/",
        f"ws://me:{CANARY}/x@feed.example/",
        f"ws://[{CANARY}/",
    ],
)
def test_a_url_must_be_a_websocket_address(url):
    with pytest.raises(ValueError, match="url must be a websocket URL") as raised:
        WebSocketListener(url)
    assert CANARY not in str(raised.value)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("name", ["max_age", "max_silence", "ping_interval", "ping_timeout", "open_timeout"])
def test_limits_are_finite_numbers_above_0(name):
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name} must be finite and above 0, got {wrong}"):
            WebSocketListener(URL, **{name: wrong})
    for wrong in ("20", True):
        with pytest.raises(TypeError, match=f"{name} must be a number"):
            WebSocketListener(URL, **{name: wrong})


def test_the_largest_message_has_at_least_one_byte():
    with pytest.raises(ValueError, match="max_body must be at least 1, got 0"):
        WebSocketListener(URL, max_body=0)
    with pytest.raises(TypeError, match="max_body must be a whole number, got None"):
        WebSocketListener(URL, max_body=None)


def test_an_auth_flow_is_refused_since_only_an_http_client_can_apply_it():
    with pytest.raises(TypeError, match=r"cannot use an httpx\.Auth"):
        WebSocketListener(URL, auth=httpx.BasicAuth("me", "pw"))


def test_a_string_of_subprotocols_is_a_type_error():
    with pytest.raises(TypeError, match="subprotocols must be a sequence"):
        WebSocketListener(URL, subprotocols="push.v1")


def test_a_token_and_a_user_in_the_url_are_refused_together():
    with pytest.raises(ValueError, match="pass credentials only once") as raised:
        WebSocketListener(f"ws://me:{CANARY}@feed.example/", auth="t")
    assert CANARY not in str(raised.value)


def test_name_and_repr_show_the_address_without_secrets():
    listener = WebSocketListener(f"wss://me:{CANARY}@feed.example:8443/push?key={CANARY}")
    assert listener.name == "wss://feed.example:8443/push?key=…"
    assert repr(listener) == "WebSocketListener('wss://feed.example:8443/push?key=…')"
