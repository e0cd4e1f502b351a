"""The HTTP feed on real sockets: servers that stall, drip, cut, send bombs and hang up. In real time."""

import logging
import socket
import threading
import zlib
from contextlib import contextmanager

import anyio
import anyio.to_thread
import pytest

from push_to_poll_client._exceptions import FeedError, FeedRefused
from push_to_poll_client._types import FetchRequest
from push_to_poll_client.feeds import HTTPFeed
from tests.support.channels import HOST, Raw
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Real time: a virtual clock would jump while a server in a thread works."""
    return request.param


class Connection:
    """The server's end of a connection."""

    def __init__(self, sock, closing):
        self._socket = sock
        self.closing = closing

    def request(self):
        """Return the head of the next request; empty if the client hung up."""
        head = b""
        while b"\r\n\r\n" not in head:
            received = self._socket.recv(65536)
            if not received:
                return b""
            head += received
        return head

    def greeting(self):
        """Return the first bytes of the client."""
        return self._socket.recv(65536)

    def send(self, data):
        self._socket.sendall(data)

    def hang_up(self):
        self._socket.shutdown(socket.SHUT_RDWR)

    def hold(self):
        """Send nothing until the client hangs up."""
        while self._socket.recv(65536):
            pass


@contextmanager
def server(*scripts):
    """Run a server whose first connection follows the first script, and so on; yield its URL."""
    closing = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(GUARD)

        def serve():
            for script in scripts:
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                with sock:
                    sock.settimeout(GUARD)
                    try:
                        script(Connection(sock, closing))
                    except OSError:  # the client hung up, as most tests want
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/feed"
        finally:
            closing.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(GUARD * 2)
            assert not thread.is_alive()


def answers(*bodies):
    """Answer as many requests on the connection, then wait until the client hangs up."""

    def script(connection):
        for body in bodies:
            if not connection.request():
                return
            connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        connection.hold()

    return script


def stalls(start=b"", asked=None):
    """Send this and then stall. `asked` is set when the request has arrived."""

    def script(connection):
        connection.request()
        if asked is not None:
            asked.set()
        connection.send(start)
        connection.hold()

    return script


def drips(connection):
    connection.request()
    connection.send(HEAD + b"Content-Length: 100000\r\n\r\n")
    for _ in range(1000):
        connection.send(b" ")
        if connection.closing.wait(0.02):
            return


def cuts(start):
    def script(connection):
        connection.request()
        connection.send(start)

    return script


def bombs(connection):
    connection.request()
    connection.send(HEAD + b"Content-Encoding: gzip\r\n\r\n")
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    space = b" " * 1024 * 1024
    for _ in range(64):
        connection.send(packer.compress(space))
    connection.send(packer.flush())


async def fetch(feed, cursor=None):
    try:
        with anyio.fail_after(GUARD):
            return await feed.fetch(FetchRequest(cursor))
    finally:
        await feed.aclose()


async def cancel_when(happened, feed, request):
    """Cancel a fetch after an event in another thread."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.fetch, request)
        assert await anyio.to_thread.run_sync(happened.wait, GUARD)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("script", "text"),
    [
        pytest.param(stalls(), "response within 0.3 seconds", id="silent"),
        pytest.param(stalls(HEAD), "response within 0.3 seconds", id="half a head"),
        pytest.param(
            stalls(HEAD + b"Content-Length: 9\r\n\r\n[1,"), "response within 0.3 seconds", id="half a body"
        ),
        pytest.param(drips, "response within 0.3 seconds", id="drips"),
        pytest.param(cuts(b""), "RemoteProtocolError", id="hangs up"),
        pytest.param(cuts(HEAD), "RemoteProtocolError", id="cut head"),
        pytest.param(cuts(HEAD + b"Content-Length: 9\r\n\r\n[]"), "RemoteProtocolError", id="cut body"),
        pytest.param(
            cuts(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n"), "RemoteProtocolError", id="cut chunks"
        ),
        pytest.param(cuts(HEAD + b'\r\n[{"id":"1"}'), "not send a JSON array", id="cut page"),
        pytest.param(cuts(b"SSH-2.0-OpenSSH_9.9\r\n"), "RemoteProtocolError", id="no http"),
        pytest.param(cuts(HEAD + b"X: " + b"x" * 1_000_000), "RemoteProtocolError", id="endless head"),
        pytest.param(bombs, "more than 1000000 bytes", id="bomb"),
    ],
)
async def test_a_broken_response_is_a_feed_error_and_the_next_fetch_succeeds(script, text):
    with server(script, answers(b'[{"id":"1"}]')) as url:
        feed = HTTPFeed(url, timeout=0.3 if "0.3" in text else GUARD, max_body=1_000_000)
        with pytest.raises(FeedError) as failed, anyio.fail_after(GUARD):
            await feed.fetch(FetchRequest())
        assert text in str(failed.value)
        feed._http_client._timeout = feed._http_client._own_client.timeout = GUARD
        assert len((await fetch(feed)).messages) == 1


async def test_a_refused_connection_is_a_feed_error():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(FeedError, match="ConnectError"):
        await fetch(HTTPFeed(f"http://127.0.0.1:{port}/"))


async def test_fetches_share_a_connection():
    with server(answers(b'[{"id":"1"}]', b"[]", b"[]")) as url:  # the server has no script for a second connection
        feed = HTTPFeed(url)
        for cursor in (None, "1", "1"):
            await feed.fetch(FetchRequest(cursor))
        await feed.aclose()


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"", id="silent"),
        pytest.param(HEAD, id="half a head"),
        pytest.param(HEAD + b"Content-Length: 9\r\n\r\n", id="head"),
        pytest.param(HEAD + b"Content-Length: 9\r\n\r\n\n", id="newline"),
    ],
)
async def test_after_a_held_answer_timed_out_on_a_socket_the_next_request_asks_for_an_immediate_answer(start):
    asked, pages = threading.Event(), []
    with server(stalls(start, asked), answers(b'[{"id":"1"}]')) as url:
        feed = HTTPFeed(url, max_wait=0.1, timeout=0.2)

        async def wait_for_news():
            pages.append(await feed.fetch(FetchRequest(wait=0.1)))

        with anyio.fail_after(GUARD):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait_for_news)
                await anyio.to_thread.run_sync(asked.wait, GUARD)
                # Only the first request is cut off.
                feed._http_client._timeout = feed._http_client._own_client.timeout = GUARD
        await feed.aclose()
    assert [message.id for message in pages[0].messages] == ["1"]


async def test_cancelled_fetches_do_not_exhaust_the_connection_pool():
    # A wake cancels a long poll many times an hour; the pool must not lose a connection each time.
    arrived = [threading.Event() for _ in range(15)]
    with server(*(stalls(asked=asked) for asked in arrived), answers(b"[]")) as url:
        feed = HTTPFeed(url, max_wait=2 * GUARD)
        for asked in arrived:
            await cancel_when(asked, feed, FetchRequest(wait=2 * GUARD))
        assert len((await fetch(feed)).messages) == 0


async def test_a_fetch_that_is_cancelled_in_the_tls_handshake_leaves_no_socket_open():
    greeted, left = threading.Event(), threading.Event()

    def stall(connection):
        connection.greeting()
        greeted.set()
        connection.hold()
        left.set()

    with server(stall) as url:
        feed = HTTPFeed(url.replace("http:", "https:"), timeout=2 * GUARD)
        await cancel_when(greeted, feed, FetchRequest())
        assert await anyio.to_thread.run_sync(left.wait, GUARD)
        await feed.aclose()


async def test_an_idle_connection_that_the_server_closed_is_not_used_again():
    closed = threading.Event()

    def once(connection):
        connection.request()
        connection.send(HEAD + b"Content-Length: 2\r\n\r\n[]")
        connection.hang_up()
        closed.set()

    with server(once, answers(b"[]")) as url:
        feed = HTTPFeed(url)
        await feed.fetch(FetchRequest())
        assert await anyio.to_thread.run_sync(closed.wait, GUARD)
        await fetch(feed)


@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("trio", "asyncio"), ("asyncio", "asyncio")])
def test_a_feed_works_in_one_event_loop_after_another(backends):
    with server(answers(b"[]"), answers(b'[{"id":"1"}]')) as url:
        feed = HTTPFeed(url)
        pages = [anyio.run(fetch, feed, backend=backend) for backend in backends]
        assert [len(page.messages) for page in pages] == [0, 1]


async def test_a_reason_phrase_is_not_logged_since_it_may_repeat_a_secret(caplog):
    caplog.set_level(logging.INFO, "httpx")

    def answer(accepted, _):
        accepted.recv(4096)
        accepted.sendall(b"HTTP/1.1 401 no token c4n4ry-s3cr3t\r\nContent-Length: 0\r\n\r\n")

    with Raw(answer) as server:
        feed = HTTPFeed(f"http://{HOST}:{server.port}/feed", auth="c4n4ry-s3cr3t")
        with pytest.raises(FeedRefused, match="answered 401 Unauthorized"):
            await feed.fetch(FetchRequest())
        await feed.aclose()
    assert "401 Unauthorized" in caplog.text
    assert "c4n4ry" not in caplog.text
