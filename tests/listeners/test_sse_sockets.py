"""The listener for server-sent events on real sockets, with misbehaving servers. Waits only for events."""

import contextlib
import gzip
import logging
import socket
import ssl
import struct
import threading
import tracemalloc

import anyio
import pytest
import trustme
from anyio.to_thread import run_sync

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._types import Push
from push_to_poll_client.listeners import SSEListener
from push_to_poll_client.testing import serve_in_thread
from tests.support.channels import HOST, Channel, Raw, is_closed, listening
from tests.support.forms import GUARD

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left_unclosed")]

CANARY = "c4n4ry"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
EVENT = b"data: x\n\n"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("https", "http", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@pytest.fixture
def server():
    with serve_in_thread() as server:
        yield server


def to(url, **options):
    listener = SSEListener(url, **{"open_timeout": 2 * GUARD, **options})
    listener._fraction = lambda: 0.0
    return listener


def at(raw, path="/events"):
    return f"http://{HOST}:{raw.port}{path}"


def reads(answer):
    """Read the request, send this, and leave the connection open."""

    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(answer)

    return treat


async def until(server, happened):
    await run_sync(lambda: server.stats.wait_for(happened))


def cursor_of(event):
    return Push(cursor=event.id)


# The reference server


async def test_published_messages_arrive_as_pushes_with_hints_and_a_stop_closes_the_stream(server):
    async with listening(to(server.sse_url, hint=cursor_of)) as channel:
        await channel.saw("up")
        await until(server, lambda stats: stats.streams_open == 1)
        (first,) = await run_sync(server.publish)
        await channel.saw("up", Push(cursor=first))
        (second,) = await run_sync(server.publish)
        await channel.saw("up", Push(cursor=first), Push(cursor=second))
    await until(server, lambda stats: stats.streams_open == 0)
    assert server.stats.streams_accepted == 1


async def test_a_push_does_not_wait_for_the_next_one(server):
    """Nothing is buffered: no line waits for the next chunk, and no chunk waits for more or for a timer."""
    async with listening(to(server.sse_url, max_silence=None, max_age=None)) as channel:
        await channel.saw("up")
        await until(server, lambda stats: stats.streams_open == 1)
        for count in range(1, 4):
            await run_sync(server.publish)
            await channel.saw("up", *[Push()] * count)


async def test_the_listener_reconnects_to_a_restarted_server(server):
    requests, is_back = [], anyio.Event()

    async def token():
        """Uvicorn may accept a connection as it shuts down, and neither respond nor close it."""
        requests.append(None)
        if len(requests) > 1:
            await is_back.wait()
        return "token"

    async with listening(to(server.sse_url, auth=token)) as channel:
        await channel.saw("up")
        await run_sync(server.restart)
        is_back.set()
        await channel.sees("up", after="down")
        await until(server, lambda stats: stats.streams_open == 1)
        await run_sync(server.publish)
        await channel.sees(Push(), after="down")


async def test_a_half_open_connection_is_detected_by_its_silence(server):
    server.faults.half_open = True
    async with listening(to(server.sse_url, max_silence=0.1)) as channel:
        await channel.saw("up", "down", "up")
    assert "no message for 0.1 s" in str(channel.error)


async def test_comments_keep_a_connection_alive():
    with serve_in_thread(keep_alive=0.02) as server:
        async with listening(to(server.sse_url, max_silence=GUARD, max_age=0.4)) as channel:
            await channel.saw("up", "up")


async def test_the_listener_reconnects_when_the_server_accepts_and_closes(server):
    server.faults.accept_and_close = 1013
    async with listening(to(server.sse_url)) as channel:
        await channel.saw("up", "down", "up")
    assert "the server ended the stream" in str(channel.error)


async def test_the_listener_returns_after_http_204(server):
    server.faults.refuse_status = 204
    channel = Channel()
    with anyio.fail_after(GUARD):
        await to(server.sse_url).listen(channel)
    assert channel.events == ["down"]
    assert server.stats.streams_refused == 1


async def test_a_fresh_token_is_requested_after_http_401(server):
    server.faults.authorization = "Bearer new"
    tokens = iter(["old", "new"])

    async def token():
        return next(tokens)

    async with listening(to(server.sse_url, auth=token)) as channel:
        await channel.saw("down", "up")
    assert server.stats.streams_refused == 1


@pytest.mark.parametrize(
    ("status", "retry_after", "delay"),
    [
        (429, 9.0, "9.0"),
        (503, None, "0.0"),
        (503, "Thu, 01 Jan 2099 00:00:00 GMT", "86400.0"),
        (404, None, "300.0"),
    ],
)
async def test_the_delay_after_a_refusal_depends_on_its_status_and_retry_after(
    server, status, retry_after, delay, caplog
):
    caplog.set_level(logging.INFO)
    server.faults.set(refuse_status=status, retry_after=retry_after)
    async with listening(to(server.sse_url)) as channel:
        await channel.saw("down")
    assert f"HTTP {status} instead of an event stream; reconnecting in {delay} s" in caplog.text


async def test_http_410_raises_a_listener_error(server):
    server.faults.refuse_status = 410
    with anyio.fail_after(GUARD), pytest.raises(ListenerError, match="HTTP 410"):
        await to(server.sse_url).listen(Channel())


async def test_a_connection_is_renewed_within_its_maximum_age(server):
    async with listening(to(server.sse_url, max_age=0.1)) as channel:
        await channel.saw("up", "up", "up")
        await until(server, lambda stats: stats.streams_open <= 1)


# Failing servers


async def test_an_event_cut_off_in_the_middle_is_not_a_push():
    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n" + EVENT + b"\r\n7\r\ndata: y\r\n")
        if number == 1:
            accepted.shutdown(socket.SHUT_RDWR)

    with Raw(treat) as server:
        async with listening(to(at(server))) as channel:
            await channel.saw("up", Push(), "down", "up", Push())
    assert "peer closed connection" in str(channel.error)


async def test_the_listener_reconnects_after_a_connection_reset():
    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(HEAD + b"\r\n")
        if number == 1:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

    with Raw(treat) as server:
        async with listening(to(at(server))) as channel:
            await channel.saw("up", "down", "up")
    assert "Connection reset by peer" in str(channel.error)


async def test_a_refused_connection_is_retried_with_a_growing_delay(caplog):
    caplog.set_level(logging.INFO)
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]
    async with listening(to(f"http://{HOST}:{port}/")) as channel:
        await channel.saw("down", "down")
    assert "ttempts" in str(channel.error)
    assert "reconnecting in 0.0 s" in caplog.text
    assert "reconnecting in 1.0 s" in caplog.text


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 50_000],
)
async def test_a_stalled_answer_is_a_failure_after_the_open_timeout(start):
    with Raw(reads(start)) as server:
        async with listening(to(at(server), open_timeout=0.2)) as channel:
            await channel.saw("down", "down")
        assert await run_sync(is_closed, server.first())
    assert "no response within 0.2 s" in str(channel.error)


async def test_slowly_sent_headers_do_not_extend_the_open_timeout():
    stop = threading.Event()

    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(b"HTTP/1.1 200 OK\r\n")
        while not stop.wait(0.02):
            accepted.sendall(b"X: y\r\n")

    with Raw(treat) as server:
        async with listening(to(at(server), open_timeout=0.2)) as channel:
            await channel.saw("down")
        stop.set()
    assert "no response within 0.2 s" in str(channel.error)


@pytest.mark.parametrize(
    ("answer", "said", "delay"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "RemoteProtocolError", "0.0"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nhi!\n", "'text/html'", "300.0"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhi!\n", "Content-Type ''", "300.0"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"x" * 10_000_000), "'gzip'", "300.0"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", "RemoteProtocolError", "0.0"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 100_000, "HTTP 503", "0.0"),
    ],
)
async def test_an_answer_that_is_not_an_event_stream_is_a_failure(answer, said, delay, caplog):
    caplog.set_level(logging.INFO)

    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(answer)
        accepted.shutdown(socket.SHUT_WR)

    with Raw(treat) as server:
        async with listening(to(at(server))) as channel:
            await channel.saw("down")
    assert said in caplog.text
    assert f"reconnecting in {delay} s" in caplog.text


@pytest.mark.parametrize("start", [b"data: ", b": ", b"", b"data: 1\n\ndata: "])
async def test_an_endless_line_is_a_push_and_uses_little_memory(start, caplog):
    caplog.set_level(logging.INFO)
    is_up = threading.Event()

    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(HEAD + b"\r\n")
        is_up.wait()
        accepted.sendall(start)
        for _ in range(1000):
            accepted.sendall(b"x" * 100_000)

    pushes = [Push()] * (2 if b"\n" in start else 1)
    with Raw(treat) as server:
        tracemalloc.start()
        async with listening(to(at(server))) as channel:
            await channel.saw("up")
            is_up.set()
            await channel.sees("down", after="up")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert set(channel.events) == {"up", "down", *pushes}
    assert "a line has more than 65536 bytes" in caplog.text
    assert "reconnecting in 300.0 s" in caplog.text
    assert peak < 8_000_000


# Credentials


async def test_redirects_are_not_followed_so_secrets_stay_with_their_origin(caplog):
    caplog.set_level(logging.INFO)
    with Raw(reads(b"")) as elsewhere:
        there = f"HTTP/1.1 307 No\r\nLocation: {at(elsewhere)}\r\nContent-Length: 0\r\n\r\n".encode()
        with Raw(reads(there)) as server:
            async with listening(to(at(server), headers={"X-Key": CANARY}, auth=CANARY)) as channel:
                await channel.saw("down")
            assert len(server.accepted) == 1
        assert not elsewhere.accepted
    assert "redirects are not followed" in caplog.text
    assert "reconnecting in 300.0 s" in caplog.text


async def test_debug_logs_of_a_real_request_hold_no_secret(caplog):
    caplog.set_level(logging.DEBUG)
    with Raw(reads(HEAD + b"\r\ndata: " + CANARY.encode() + b"\n\n")) as server:
        url = at(server, f"/events?key={CANARY}").replace("//", f"//me:{CANARY}@")
        async with listening(to(url, headers={"X-Key": CANARY})) as channel:
            await channel.saw("up", Push())
        assert "connected" in caplog.text
    assert CANARY not in caplog.text


async def test_a_proxy_from_the_environment_is_used(monkeypatch):
    requests = []

    def treat(accepted, number):
        requests.append(accepted.recv(65536))
        accepted.sendall(HEAD + b"\r\n" + EVENT)

    with Raw(treat) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:{CANARY}@{HOST}:{proxy.port}")
        async with listening(to("http://feed.invalid/events")) as channel:
            await channel.saw("up", Push())
    assert requests[0].startswith(b"GET http://feed.invalid/events HTTP/1.1\r\n")


async def test_a_proxy_that_refuses_a_tunnel_never_sees_the_token(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    requests = []

    def treat(accepted, number):
        requests.append(accepted.recv(65536))
        accepted.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with Raw(treat) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:{CANARY}@{HOST}:{proxy.port}")
        async with listening(to("https://feed.invalid/events", auth=CANARY)) as channel:
            await channel.saw("down")
    assert requests[0].startswith(b"CONNECT feed.invalid:443 ")
    assert b"Bearer" not in requests[0]
    assert "ProxyError: '407 Proxy Authentication Required'" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize("address", [f"ftp://me:{CANARY}@{HOST}:1", f"http://me:{CANARY}@{HOST}:port"])
async def test_an_invalid_proxy_address_is_logged_without_its_password(address, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("all_proxy", address)
    async with listening(to("https://feed.invalid/events")) as channel:
        await channel.saw("down")
    assert (
        "the address of the proxy in the environment is not valid; correct it; reconnecting in 300.0 s"
        in caplog.text
    )
    assert CANARY not in caplog.text


async def test_a_socks_proxy_without_socksio_is_a_listener_error(monkeypatch):
    monkeypatch.setenv("all_proxy", f"socks5://{HOST}:1")
    with pytest.raises(ListenerError, match="socksio"):
        await to("https://feed.invalid/events").listen(Channel())


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls_server(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)

    def treat(accepted, number):
        with context.wrap_socket(accepted.dup(), server_side=True) as secure:
            secure.recv(65536)
            secure.sendall(HEAD + b"\r\n" + EVENT)
            secure.recv(65536)

    with Raw(treat) as server:
        yield f"https://{HOST}:{server.port}/events"


async def test_a_certificate_trusted_by_the_given_tls_context_is_accepted(tls_server, authority):
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    async with listening(to(tls_server, ssl_context=trusting)) as channel:
        await channel.saw("up", Push())


async def test_an_untrusted_certificate_is_retried_slowly(tls_server, caplog):
    caplog.set_level(logging.INFO)
    async with listening(to(tls_server, auth=CANARY)) as channel:
        await channel.saw("down")
    assert "certificate verify failed" in str(channel.error)
    assert "reconnecting in 300.0 s" in caplog.text


# Stopping


@pytest.mark.parametrize("url", ["http", "https"])
async def test_a_stop_before_the_answer_closes_the_connection(url):
    connected = threading.Event()
    with Raw(lambda accepted, number: connected.set()) as server:
        async with listening(to(at(server).replace("http", url))):
            await run_sync(connected.wait)
        assert await run_sync(is_closed, server.first())


@pytest.mark.parametrize("start", [b"", EVENT, b"data: half"])
async def test_a_stop_while_reading_closes_the_connection(start):
    with Raw(reads(HEAD + b"\r\n" + start)) as server:
        async with listening(to(at(server))) as channel:
            await channel.saw("up")
        assert await run_sync(is_closed, server.first())


async def test_few_events_are_passed_on_after_a_stop_under_load():
    done = threading.Event()

    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(HEAD + b"\r\n")
        with contextlib.suppress(OSError):
            while not done.is_set():
                accepted.sendall(EVENT * 1000)

    with Raw(treat) as server:
        async with listening(to(at(server))) as channel:
            await channel.saw("up", *[Push()] * 1000)
            before = len(channel.events)
        done.set()
    assert len(channel.events) < before + 1000
