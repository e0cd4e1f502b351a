"""The direct path to a server is used if no feature needs the long one; both give the same result."""

import json
import logging
import sys

import anyio.lowlevel
import httpcore
import httpcore2
import httpx
import pytest

from push_to_poll_client import Consumer, FeedError, FetchRequest, HTTPFeed, SQLiteStore
from push_to_poll_client._http import direct_client
from push_to_poll_client._http.direct_client import DirectClient
from push_to_poll_client._http.transport import open_client
from push_to_poll_client.listeners._requests import ListenerClient

pytestmark = pytest.mark.anyio

URL = "http://feed.example/orders"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


def long_way(monkeypatch):
    """Record the calls of the long path."""
    taken = []
    send = httpx.AsyncClient.send

    async def noted(client, request, **options):
        taken.append(request)
        return await send(client, request, **options)

    monkeypatch.setattr(httpx.AsyncClient, "send", noted)
    return taken


def httpcore_errors():
    found = [httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError]
    return [*found, httpcore.UnsupportedProtocol, *(kind for one in found for kind in one.__subclasses__())]


async def get(client, **options):
    async with client:
        response = await client.send(client.build_request("GET", URL), stream=True, **options)
        try:
            return response, await response.aread()
        finally:
            await response.aclose()


async def test_a_request_without_auth_bypasses_the_send_method_of_httpx(respx_mock, monkeypatch):
    respx_mock.get(URL).mock(httpx.Response(200, headers={"set-cookie": "a=b"}, text="[]"))
    taken = long_way(monkeypatch)
    response, body = await get(open_client(httpx.Timeout(5)), auth=None, follow_redirects=False)
    assert (response.status_code, body, response.request.url, response.next_request) == (200, b"[]", URL, None)
    assert not taken


async def test_a_request_with_httpx_auth_uses_the_send_method_of_httpx(respx_mock, monkeypatch):
    respx_mock.get(URL, headers={"authorization": "Basic bWU6cHc="}).mock(httpx.Response(200))
    taken = long_way(monkeypatch)
    await get(open_client(httpx.Timeout(5)), auth=httpx.BasicAuth("me", "pw"))
    assert len(taken) == 1


async def test_a_request_appears_in_the_httpx_log_at_info_level(respx_mock, caplog):
    respx_mock.get(URL).mock(httpx.Response(200))
    caplog.set_level(logging.INFO, logger="httpx")
    await get(open_client(httpx.Timeout(5)))
    assert [record.message for record in caplog.records] == [f'HTTP Request: GET {URL} "HTTP/1.1 200 OK"']


async def test_a_redirect_is_returned_and_not_followed(respx_mock):
    respx_mock.get(URL).mock(httpx.Response(302, headers={"location": "../v2?page=1"}))
    response, _ = await get(open_client(httpx.Timeout(5)))
    assert (response.status_code, response.has_redirect_location) == (302, True)


@pytest.mark.parametrize(
    ("environment", "direct"),
    [
        ({}, True),
        ({"no_proxy": "localhost"}, True),
        ({"http_proxy": "http://127.0.0.1:1"}, False),
        ({"all_proxy": "http://127.0.0.1:1", "no_proxy": "localhost"}, False),
    ],
)
async def test_the_direct_client_is_not_used_if_a_proxy_is_configured(environment, direct, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with open_client(httpx.Timeout(5)) as client:
        assert isinstance(client, DirectClient) is direct


@pytest.fixture(params=[httpcore, httpcore2], ids=["httpcore", "httpcore2"])
def library(request, monkeypatch):
    """The library that the client connects with; each test runs with every one."""
    monkeypatch.setattr(direct_client, "httpcore", request.param)
    return request.param


def test_httpcore2_is_used_if_it_is_installed():
    assert direct_client.load_httpcore() is httpcore2


def test_httpcore_is_used_if_httpcore2_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpcore2", None)
    assert direct_client.load_httpcore() is httpcore


def test_httpcore_is_used_if_httpcore2_lacks_something_that_is_needed(monkeypatch):
    monkeypatch.delattr(httpcore2, "AnyIOBackend")
    assert direct_client.load_httpcore() is httpcore


@pytest.mark.parametrize("name", sorted({error.__name__ for error in httpcore_errors()}))
async def test_an_error_of_httpcore_is_raised_as_the_one_of_httpx(name, library, monkeypatch):
    async def refuse(pool, request):
        raise getattr(library, name)("what happened")

    monkeypatch.setattr(library.AsyncConnectionPool, "handle_async_request", refuse)
    async with open_client(httpx.Timeout(5)) as client:
        with pytest.raises(getattr(httpx, name), match="what happened"):
            await client.send(client.build_request("GET", URL), stream=True)


async def test_another_error_is_raised_unchanged(library, monkeypatch):
    async def refuse(pool, request):
        raise KeyError("what happened")

    monkeypatch.setattr(library.AsyncConnectionPool, "handle_async_request", refuse)
    async with open_client(httpx.Timeout(5)) as client:
        with pytest.raises(KeyError):
            await client.send(client.build_request("GET", URL), stream=True)


class Socket(httpcore.AsyncNetworkStream):
    """Record the calls."""

    def __init__(self, says=b"x"):
        self.told = []
        self._says = says

    async def read(self, max_bytes, timeout=None):  # noqa: ASYNC109
        self.told.append(("read", max_bytes, timeout))
        return self._says

    async def write(self, buffer, timeout=None):  # noqa: ASYNC109
        self.told.append(("write", buffer, timeout))

    async def start_tls(self, ssl_context, server_hostname=None, timeout=None):  # noqa: ASYNC109
        self.told.append(("start_tls", ssl_context, server_hostname, timeout))
        return self

    async def aclose(self):
        self.told.append(("aclose",))

    def get_extra_info(self, info):
        self.told.append(("get_extra_info", info))
        return "info" if info == "socket" else None


async def test_a_socket_is_read_in_256_kib_pieces_and_other_calls_are_passed_through(library, monkeypatch):
    socket = Socket()

    async def connect(backend, host, port, **options):
        socket.told.append((host, port, options))
        return socket

    monkeypatch.setattr(library.AnyIOBackend, "connect_tcp", connect)
    plain = await direct_client._LargeReadBackend().connect_tcp("feed.example", 443, timeout=1.0)
    tls = await plain.start_tls("context", server_hostname="feed.example", timeout=2.0)
    for stream in (plain, tls):
        assert await stream.read(65_536, timeout=3.0) == b"x"
    await tls.write(b"y", 4.0)
    assert tls.get_extra_info("socket") == "info"
    await tls.aclose()
    assert socket.told == [
        ("feed.example", 443, {"timeout": 1.0}),
        ("start_tls", "context", "feed.example", 2.0),
        ("read", 262_144, 3.0),
        ("read", 262_144, 3.0),
        ("write", b"y", 4.0),
        ("get_extra_info", "socket"),
        ("aclose",),
    ]


class Server(Socket):
    """Answer each request with a page of ten events, the third with an empty one."""

    async def read(self, max_bytes, timeout=None):  # noqa: ASYNC109
        await anyio.lowlevel.checkpoint()
        first = len(self.told) * 10
        events = [{"id": f"{number:05}"} for number in range(first, first + 10)] if len(self.told) < 3 else []
        body = json.dumps(events).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def write(self, buffer, timeout=None):  # noqa: ASYNC109
        if buffer:
            self.told.append(buffer)

    def get_extra_info(self, info):
        return None


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_next_request_is_sent_before_a_handler_that_never_awaits_starts(library, monkeypatch, tmp_path):
    """Otherwise the request would wait for the end of the page, and nothing would overlap."""
    server, sent = Server(), []

    async def connect(backend, host, port, **options):
        return server

    async def busy(message):
        sent.append(len(server.told))

    monkeypatch.setattr(library.AnyIOBackend, "connect_tcp", connect)
    async with Consumer(HTTPFeed(URL), store=SQLiteStore(tmp_path / "state.db"), process=busy) as consumer:
        await consumer.poll_now()
    assert sent == [2] * 10 + [3] * 10


class Lost(Server):
    """Redirect every request to one location."""

    def __init__(self, location):
        super().__init__()
        self.location = location

    async def read(self, max_bytes, timeout=None):  # noqa: ASYNC109
        return b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % self.location


@pytest.mark.parametrize("location", [b"http://feed.example:port/", b"http://xn--zz/", b":https://["])
async def test_a_redirect_to_an_invalid_url_does_not_leak_a_connection(library, monkeypatch, location):
    opened = []

    async def connect(backend, host, port, **options):
        opened.append(Lost(location))
        return opened[-1]

    monkeypatch.setattr(library.AnyIOBackend, "connect_tcp", connect)
    feed = HTTPFeed(URL)
    for _ in range(12):  # the pool has ten
        with pytest.raises(FeedError, match=r"redirect(s|ed) to (an invalid URL|another origin)"):
            await feed.fetch(FetchRequest())
    await feed.aclose()
    assert all(("aclose",) in socket.told for socket in opened)


async def test_a_redirect_to_an_invalid_url_is_one_that_a_push_channel_does_not_follow(library, monkeypatch):
    async def connect(backend, host, port, **options):
        return Lost(b"http://feed.example:port/")

    monkeypatch.setattr(library.AnyIOBackend, "connect_tcp", connect)
    assert (await ListenerClient(URL).send_request()).status == 302


async def test_a_closed_client_refuses_to_send():
    client = open_client(httpx.Timeout(5))
    await client.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await client.send(client.build_request("GET", URL), stream=True)


async def test_httpx_connects_through_the_network_backend_of_the_direct_client(library, monkeypatch):
    socket = Socket(b"x\r\n\r\n")  # not HTTP

    async def connect(backend, host, port, **options):
        return socket

    monkeypatch.setattr(library.AnyIOBackend, "connect_tcp", connect)
    async with open_client(httpx.Timeout(5)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.send(client.build_request("GET", URL), stream=True)
    assert ("read", 262_144, 5) in socket.told
