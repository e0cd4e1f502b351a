"""The websocket listener on real sockets, with misbehaving servers. Waits for events, never for time."""

import asyncio
import contextlib
import logging
import queue
import re
import socket
import ssl
import struct
import threading
import tomllib
from pathlib import Path

import anyio
import pytest
import trustme
import websockets.asyncio.client
import websockets.trio.client
from websockets.asyncio.server import serve
from websockets.protocol import Protocol, Side
from websockets.server import ServerProtocol

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.listeners import WebSocketListener, _websocket_client
from tests.support.channels import HOST, Channel, Raw, is_closed, listening
from tests.support.forms import GUARD

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left_unclosed")]

CANARY = "c4n4ry"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def no_proxies_and_short_goodbyes(monkeypatch):
    for name in ("ws", "wss", "socks", "https", "http", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    monkeypatch.setattr(_websocket_client, "CLOSE_TIMEOUT", 0.2)


class Server:
    """A websocket server in a thread with its own loop. Records each request and close code."""

    def __init__(self, handler, **options):
        self._handler = handler
        self._options = options
        self._ready = threading.Event()
        self.requests = []
        self.closes = queue.Queue()

    async def _serve(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self._handle, HOST, 0, process_request=self._process, **self._options) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    def _process(self, connection, request):
        self.requests.append(request)
        return self.answer(connection, len(self.requests))

    def answer(self, connection, number):
        return None

    async def _handle(self, connection):
        try:
            await self._handler(connection, len(self.requests))
            await connection.wait_closed()
        finally:
            self.closes.put(connection.close_code)

    def __enter__(self):
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


class Refusing(Server):
    """Answers the first requests with statuses, later ones with a websocket."""

    def __init__(self, *answers):
        super().__init__(quiet)
        self._answers = answers

    def answer(self, connection, number):
        if number > len(self._answers):
            return None
        status, headers = self._answers[number - 1]
        response = connection.respond(status, "no")
        response.headers.update(headers)
        return response


async def quiet(connection, number):
    """A handler that sends nothing."""


def shake_hands(accepted, **headers):
    protocol = ServerProtocol()
    while not (events := protocol.events_received()):
        protocol.receive_data(accepted.recv(65536))
    response = protocol.accept(events[0])
    response.headers.update(headers)
    protocol.send_response(response)
    accepted.sendall(b"".join(protocol.data_to_send()))


def to(server, path="/push", **options):
    listener = WebSocketListener(f"ws://{HOST}:{server.port}{path}", **{"open_timeout": 2 * GUARD, **options})
    listener._fraction = lambda: 0.0
    return listener


# A working server


async def test_messages_wake_and_a_stop_closes_the_connection(anyio_backend):
    async def handler(connection, number):
        await connection.send("text")
        await connection.send(b"bytes")

    with Server(handler) as server:
        async with listening(to(server)) as channel:
            await channel.saw("up", Push(), Push())
        # On trio a cancellation also stops the reading task, before a close frame could be sent.
        goodbye = {"asyncio": 1000, "trio": 1006}[anyio_backend]
        assert await anyio.to_thread.run_sync(server.closes.get) == goodbye


async def test_a_hint_function_receives_text_and_bytes():
    async def handler(connection, number):
        await connection.send("hello")
        await connection.send("17")
        await connection.send(b"18")

    def hint(message):
        return None if message == "hello" else Push(cursor=str(message))

    with Server(handler) as server:
        async with listening(to(server, hint=hint)) as channel:
            await channel.saw("up", Push(cursor="17"), Push(cursor="b'18'"))


async def test_the_handshake_carries_headers_and_token_and_offers_no_compression():
    with Server(quiet, subprotocols=["push.v2"]) as server:
        listener = to(server, headers={"Tenant": "x"}, auth="t", subprotocols=["push.v1", "push.v2"])
        async with listening(listener) as channel:
            await channel.saw("up")
    headers = server.requests[0].headers
    assert (headers["Tenant"], headers["Authorization"]) == ("x", "Bearer t")
    assert "Sec-WebSocket-Extensions" not in headers


async def test_an_old_connection_is_renewed():
    with Server(quiet) as server:
        async with listening(to(server, max_age=0.1)) as channel:
            await channel.saw("up", "up", "up")
        codes = [await anyio.to_thread.run_sync(server.closes.get) for _ in range(2)]
    assert codes == [1000, 1000]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls_server(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    with Server(quiet, ssl=context) as server:
        yield server


async def test_a_tls_connection_with_a_trusted_certificate_opens(tls_server, authority):
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    async with listening(WebSocketListener(f"wss://{HOST}:{tls_server.port}/", ssl_context=trusting)) as channel:
        await channel.saw("up")
    assert await anyio.to_thread.run_sync(tls_server.closes.get) in {1000, 1006}


@pytest.mark.parametrize(("secure", "at_most"), [(False, 4096), (True, 4096 + 16_384)])
async def test_a_flood_of_frames_is_parsed_in_small_pieces(secure, at_most, authority, monkeypatch):
    sizes, receive_data = [], Protocol.receive_data

    def measured(self, data):
        if self.side is Side.CLIENT:
            sizes.append(len(data))
        receive_data(self, data)

    async def flood(connection, _):
        for _ in range(20):
            await connection.send("x" * 60_000)

    monkeypatch.setattr(Protocol, "receive_data", measured)
    trusting, context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(trusting)
    authority.issue_cert(HOST).configure_cert(context)
    with Server(flood, ssl=context if secure else None) as server:
        scheme, tls = ("wss", trusting) if secure else ("ws", None)
        async with listening(WebSocketListener(f"{scheme}://{HOST}:{server.port}/", ssl_context=tls)) as channel:
            await channel.saw("up", *[Push()] * 20)
    assert 0 < max(sizes) <= at_most


async def test_a_tls_connection_with_an_untrusted_certificate_is_retried_slowly(tls_server, caplog):
    caplog.set_level(logging.INFO)
    listener = WebSocketListener(f"wss://{HOST}:{tls_server.port}/", auth=CANARY)
    listener._fraction = lambda: 0.0
    async with listening(listener) as channel:
        await channel.saw("down")
    assert "certificate verify failed" in str(channel.error)
    assert "reconnecting in 300.0 s" in caplog.text
    assert not tls_server.requests


# A rejecting server


@pytest.mark.parametrize(
    ("status", "headers", "delay"),
    [
        (503, {"Retry-After": "7"}, "7.0"),
        (429, {"Retry-After": "9"}, "9.0"),
        (500, {}, "0.0"),
        (401, {}, "300.0"),
        (404, {}, "300.0"),
        (200, {}, "300.0"),
        (503, {"Retry-After": "Thu, 01 Jan 2099 00:00:00 GMT"}, "86400.0"),
    ],
)
async def test_the_status_and_retry_after_of_a_refusal_set_the_delay(status, headers, delay, caplog):
    caplog.set_level(logging.INFO)
    with Refusing((status, headers)) as server:
        async with listening(to(server)) as channel:
            await channel.saw("down")
    assert f"HTTP {status} instead of a websocket; reconnecting in {delay} s" in caplog.text


async def test_a_401_causes_a_request_for_a_fresh_token():
    tokens = iter(["old", "new"])

    async def token():
        return next(tokens)

    with Refusing((401, {})) as server:
        async with listening(to(server, auth=token)) as channel:
            await channel.saw("down", "up")
    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer old", "Bearer new"]


async def test_http_410_raises_listener_error():
    with Refusing((410, {})) as server, anyio.fail_after(GUARD), pytest.raises(ListenerError, match="HTTP 410"):
        await to(server).listen(Channel())


async def test_a_server_without_a_common_subprotocol_raises_listener_error():
    with Server(quiet, select_subprotocol=lambda *_: None) as server, anyio.fail_after(GUARD):
        listener = to(server, subprotocols=["push.v1"])
        with pytest.raises(ListenerError, match="subprotocol"):
            await listener.listen(Channel())


@pytest.mark.parametrize("offered", [None, ["push.v1"]])
async def test_a_subprotocol_that_was_not_offered_is_retried_slowly(offered, caplog):
    caplog.set_level(logging.INFO)
    with Server(quiet, select_subprotocol=lambda *_: "other") as server:
        async with listening(to(server, subprotocols=offered)) as channel:
            await channel.saw("down")
    assert "subprotocol" in str(channel.error)
    assert "reconnecting in 300.0 s" in caplog.text


async def test_an_extension_that_was_not_requested_is_retried_slowly(caplog):
    caplog.set_level(logging.INFO)
    with Raw(lambda accepted, _: shake_hands(accepted, **{"Sec-WebSocket-Extensions": "x"})) as server:
        async with listening(to(server)) as channel:
            await channel.saw("down")
    assert "extensions" in str(channel.error)
    assert "reconnecting in 300.0 s" in caplog.text


async def test_a_redirect_takes_no_secret_to_another_origin(caplog):
    caplog.set_level(logging.INFO)
    with Server(quiet) as elsewhere:
        there = (302, {"Location": f"ws://{HOST}:{elsewhere.port}/push"})
        with Refusing(there) as server:
            async with listening(to(server, headers={"X-Key": CANARY}, auth=CANARY)) as channel:
                await channel.saw("down")
        assert not elsewhere.requests
    assert len(server.requests) == 1
    assert "redirects are not followed" in caplog.text
    assert "reconnecting in 300.0 s" in caplog.text


async def test_a_redirect_within_the_origin_is_not_followed_either():
    with Refusing((307, {"Location": "/other"})) as server:
        async with listening(to(server)) as channel:
            await channel.saw("down")
    assert len(server.requests) == 1


# A changed `websockets`


@pytest.fixture
def changed_library(monkeypatch):
    """Classes made before or during the test are not cached for others."""
    _websocket_client.check_websockets.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    _websocket_client.check_websockets.cache_clear()


CLIENTS = (websockets.asyncio.client, websockets.trio.client)
UNSUITABLE = rf"^WebSocketListener cannot use websockets {re.escape(websockets.__version__)}: "


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # asyncio drops the socket of a protocol that raises
async def test_a_redirect_is_refused_if_the_library_no_longer_asks_whether_to_follow_it(changed_library):
    connect, _ = _websocket_client.check_websockets(_websocket_client._backend())
    changed_library.delattr(connect, "process_redirect")  # as if it were renamed
    with Refusing((410, {})) as elsewhere:
        there = (302, {"Location": f"ws://{HOST}:{elsewhere.port}/push"})
        with Refusing(there) as server:
            listener = to(server, headers={"X-Key": CANARY}, auth=CANARY)
            with pytest.raises(ListenerError, match="it follows redirects with credentials"):
                await listener.listen(Channel())
        assert not elsewhere.requests
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("holder", "name", "value", "reason"),
    [
        (CLIENTS[0].connect, "process_redirect", None, "it has no connect.process_redirect()"),
        (websockets.exceptions, "TooManyFragments", None, "it stores the fragments of a message without a limit"),
        (CLIENTS[0], "ClientConnection", object, "its connection is not an asyncio.Protocol"),
    ],
)
def test_an_unsuitable_websockets_is_an_error_at_construction(changed_library, holder, name, value, reason):
    changed_library.delattr(holder, name)
    if value:
        changed_library.setattr(holder, name, value, raising=False)
    with pytest.raises(ImportError, match=UNSUITABLE + re.escape(reason)) as raised:
        WebSocketListener("wss://feed.example/push")
    assert str(raised.value).endswith("pip install 'websockets==17.4'")


async def test_an_unsuitable_trio_client_ends_the_listener_before_it_connects(changed_library, anyio_backend):
    changed_library.delattr(CLIENTS[anyio_backend == "trio"].connect, "process_redirect")
    with (
        Server(quiet) as server,
        pytest.raises((ListenerError, ImportError), match=r"has no connect\.process_redirect"),
    ):
        await to(server).listen(Channel())
    assert not server.requests


def test_an_error_recommends_the_lowest_version_of_websockets_that_is_permitted():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"websockets>={_websocket_client.TESTED}" in project["dependencies"]


async def test_a_refused_connection_is_retried_with_growing_delays(caplog):
    caplog.set_level(logging.INFO)
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]
    listener = WebSocketListener(f"ws://{HOST}:{port}/")
    listener._fraction = lambda: 0.0
    async with listening(listener) as channel:
        await channel.saw("down", "down")
    assert "reconnecting in 0.0 s" in caplog.text
    assert "reconnecting in 1.0 s" in caplog.text


# Failing servers


async def test_a_connection_that_the_server_closes_at_once_is_reopened():
    async def handler(connection, number):
        if number < 2:
            await connection.close(1013, "too many\r\nof you")

    with Server(handler) as server:
        async with listening(to(server)) as channel:
            await channel.saw("up", "down", "up")
    assert r"1013 (try again later): 'too many\r\nof you'" in str(channel.error)


@pytest.mark.parametrize("ping_interval", [0.05, None])
async def test_a_half_open_connection_is_found_by_ping_or_silence(ping_interval, caplog):
    caplog.set_level(logging.INFO)
    with Raw(lambda accepted, number: shake_hands(accepted)) as server:
        silence = None if ping_interval else 0.1
        listener = to(server, ping_interval=ping_interval, ping_timeout=0.05, max_silence=silence)
        async with listening(listener) as channel:
            await channel.saw("up", "down", "up")
    assert ("keepalive ping timeout" if ping_interval else "no message for 0.1 s") in str(channel.error)
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert "Traceback" not in caplog.text


async def test_answered_pings_keep_the_connection():
    with Server(quiet) as server:
        async with listening(to(server, ping_interval=0.02, ping_timeout=GUARD, max_age=0.4)) as channel:
            await channel.saw("up", "up")


async def test_a_close_frame_from_a_server_that_stays_connected_ends_the_connection():
    def treat(accepted, number):
        shake_hands(accepted)
        accepted.sendall(b"\x88\x02\x03\xf5")  # 1013, and the connection stays open

    with Raw(treat) as server:
        async with listening(to(server, ping_interval=0.1)) as channel:
            await channel.saw("up", "down", "up")
    assert "1013 (try again later)" in str(channel.error)


async def test_an_oversize_message_is_a_push_and_retried_slowly(caplog):
    caplog.set_level(logging.INFO)

    async def handler(connection, number):
        await connection.send("x" * 2000)

    with Server(handler) as server:
        async with listening(to(server, max_body=1000)) as channel:
            await channel.saw("up", Push(), "down")
        assert await anyio.to_thread.run_sync(server.closes.get) == 1009
    assert "1009 (message too big)" in caplog.text
    assert "reconnecting in 300.0 s" in caplog.text


async def test_text_that_is_not_utf8_is_a_push_and_retried_slowly(caplog):
    caplog.set_level(logging.INFO)

    async def handler(connection, number):
        await connection.send(b"\xff\xfe", text=True)

    with Server(handler) as server:
        async with listening(to(server)) as channel:
            await channel.saw("up", Push(), "down")
        assert await anyio.to_thread.run_sync(server.closes.get) == 1007
    assert "reconnecting in 300.0 s" in caplog.text


async def test_a_frame_that_breaks_the_protocol_counts_as_a_push(caplog):
    caplog.set_level(logging.INFO)

    def treat(accepted, number):
        shake_hands(accepted)
        accepted.sendall(b"\xf1\x00")  # reserved bits
        accepted.recv(65536)  # the close frame
        accepted.shutdown(socket.SHUT_RDWR)

    with Raw(treat) as server:
        async with listening(to(server)) as channel:
            await channel.saw("up", Push(), "down")
    assert "1002 (protocol error)" in caplog.text


@pytest.mark.parametrize(
    ("answer", "delay"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "300.0"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "300.0"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nhi!\n", "300.0"),
        (b"", "0.0"),
    ],
)
async def test_a_response_that_does_not_open_a_websocket_is_retried(answer, delay, caplog):
    caplog.set_level(logging.INFO)

    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(answer)
        accepted.shutdown(socket.SHUT_RDWR)

    with Raw(treat) as server:
        async with listening(to(server)) as channel:
            await channel.saw("down")
    assert f"reconnecting in {delay} s" in caplog.text


async def test_a_handshake_that_hangs_times_out_and_is_retried(caplog):
    caplog.set_level(logging.INFO)
    with Raw(lambda accepted, number: None) as server:
        async with listening(to(server, open_timeout=0.1)) as channel:
            await channel.saw("down", "down")
    assert "timed out during opening handshake" in caplog.text


async def test_a_connection_that_is_reset_is_reopened():
    def treat(accepted, number):
        shake_hands(accepted)
        if number == 1:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

    with Raw(treat) as server:
        async with listening(to(server)) as channel:
            await channel.saw("up", "down", "up")
    assert "lost without a close frame" in str(channel.error)


async def test_a_proxy_that_refuses_is_retried_slowly_and_no_credentials_are_logged(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    asked = []

    def treat(accepted, number):
        asked.append(accepted.recv(65536))
        accepted.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with Raw(treat) as proxy:
        monkeypatch.setenv("ws_proxy", f"http://me:{CANARY}@{HOST}:{proxy.port}")
        listener = WebSocketListener("ws://feed.invalid/push", auth=CANARY)
        listener._fraction = lambda: 0.0
        async with listening(listener) as channel:
            await channel.saw("down")
    assert asked[0].startswith(b"CONNECT feed.invalid:80 ")
    assert b"Bearer" not in asked[0]
    assert "proxy rejected connection: HTTP 407" in caplog.text
    assert "reconnecting in 300.0 s" in caplog.text
    assert CANARY not in caplog.text


# Stopping


async def test_a_stop_during_the_handshake_leaves_nothing_open():
    connected = threading.Event()
    with Raw(lambda accepted, number: connected.set()) as server:
        async with listening(to(server)):
            await anyio.to_thread.run_sync(connected.wait)


async def test_a_stop_during_the_tls_handshake_leaves_nothing_open():
    connected = threading.Event()
    with Raw(lambda accepted, number: connected.set()) as server:
        async with listening(WebSocketListener(f"wss://{HOST}:{server.port}/")):
            await anyio.to_thread.run_sync(connected.wait)


async def test_a_stop_does_not_wait_long_for_a_server_that_does_not_answer_the_close():
    with Raw(lambda accepted, number: shake_hands(accepted)) as server:
        async with listening(to(server)) as channel:
            await channel.saw("up")
        assert await anyio.to_thread.run_sync(is_closed, server.first())


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_a_stop_does_not_wait_long_for_a_server_that_does_not_read():
    is_up, flooded = threading.Event(), threading.Event()
    pings = (b"\x89\x7d" + b"x" * 125) * 200

    def treat(accepted, number):
        if number > 1:  # on asyncio the listener disconnected, and reconnects
            return
        shake_hands(accepted)
        is_up.wait()
        accepted.settimeout(1.0)  # short, so that a busy machine has time for all of these
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(1000):
                accepted.sendall(pings)  # the server does not read the pongs, so they fill all buffers
        flooded.set()

    with Raw(treat) as server:
        async with listening(to(server)) as channel:
            await channel.saw("up")
            is_up.set()
            await anyio.to_thread.run_sync(flooded.wait)
        assert await anyio.to_thread.run_sync(is_closed, server.first())


async def test_debug_logs_of_a_real_handshake_hold_no_secret(caplog):
    caplog.set_level(logging.DEBUG)

    async def handler(connection, number):
        await connection.send(f"{CANARY} in a message")

    with Server(handler, logger=logging.getLogger("nobody")) as server:
        logging.getLogger("nobody").disabled = True
        listener = to(server, f"/push?key={CANARY}", auth=CANARY, headers={"X-Key": CANARY})
        async with listening(listener) as channel:
            await channel.saw("up", Push())
    assert "connected" in caplog.text
    assert CANARY not in caplog.text
