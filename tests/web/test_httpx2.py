"""An `httpx2.AsyncClient` works like an httpx one, although its classes are unrelated."""

import socket
from contextlib import AsyncExitStack

import anyio
import httpx
import httpx2
import pytest

from push_to_poll_client import Consumer, FeedError, FeedRefused, FetchRequest, HTTPFeed, MemoryStore
from push_to_poll_client.testing import serve_in_thread
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Real time, for real sockets."""
    return request.param


@pytest.fixture(scope="module")
def server():
    with serve_in_thread(page_size=3, backlog=7) as served:
        yield served


@pytest.fixture(autouse=True)
def _all_well(request):
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").faults.clear()


@pytest.fixture
async def client():
    async with httpx2.AsyncClient(timeout=GUARD) as client:
        yield client


async def fetch(feed, cursor=None, **kwargs):
    with anyio.fail_after(GUARD):
        return await feed.fetch(FetchRequest(cursor, **kwargs))


async def refused(feed, kind=FeedError, **kwargs):
    with pytest.raises(kind) as failed:
        await fetch(feed, **kwargs)
    assert type(failed.value) is kind
    return str(failed.value)


async def test_a_feed_with_an_httpx2_client_is_read_to_its_end(server, client):
    seen = []

    async def process(message):
        seen.append(message.id)

    with anyio.fail_after(GUARD):
        await Consumer(HTTPFeed(server.url, client=client), process=process, store=MemoryStore()).poll_now()
    assert [int(name) for name in seen] == [1, 2, 3, 4, 5, 6, 7]


async def test_a_long_poll_with_an_httpx2_client_returns_a_new_message(client):
    with serve_in_thread(backlog=1) as server:
        feed = HTTPFeed(server.url, client=client, max_wait=GUARD)
        page = await fetch(feed)

        async def publish():
            await anyio.to_thread.run_sync(lambda: server.stats.wait_for(lambda stats: stats.held))
            server.publish()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            assert len((await fetch(feed, page.cursor, wait=GUARD)).messages) == 1


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        ({"fail_next": 1, "fail_status": 503, "retry_after": 7}, "answered 503 Service Unavailable"),
        ({"cut_next": 1}, "could not be read: RemoteProtocolError"),
        ({"stall_next": 1}, "could not be read: ReadTimeout"),
        ({"redirect_next": 1, "redirect_to": "http://evil.example/"}, "to another origin, http://evil.example/"),
        ({"redirect_next": 9}, "redirects more than 5 times"),
    ],
)
async def test_a_fault_is_one_feed_error_and_the_next_fetch_succeeds(server, faults, text):
    server.faults.set(**faults)
    limit = httpx2.Timeout(GUARD, read=0.3) if "stall_next" in faults else GUARD
    async with httpx2.AsyncClient(timeout=limit) as client:
        feed = HTTPFeed(server.url, client=client)
        assert text in await refused(feed)
        server.faults.clear()
        client.timeout = GUARD
        assert len((await fetch(feed)).messages) == 3
        assert not client.is_closed


async def test_a_response_that_exceeds_the_timeout_is_a_feed_error(server, client):
    server.faults.stall_next = 1
    feed = HTTPFeed(server.url, client=client, timeout=0.3)
    assert "did not send a whole response within 0.3 seconds" in await refused(feed)


async def test_a_refused_connection_is_a_feed_error(client):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert "could not be read: ConnectError" in await refused(HTTPFeed(f"http://127.0.0.1:{port}/", client=client))


async def test_the_error_names_an_exhausted_connection_pool(server):
    server.faults.stall_next = 1
    limits = httpx2.Limits(max_connections=1)
    async with httpx2.AsyncClient(limits=limits, timeout=httpx2.Timeout(GUARD, pool=0.1)) as client:
        feed = HTTPFeed(server.url, client=client)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed.fetch, FetchRequest())
            await anyio.to_thread.run_sync(lambda: server.stats.wait_for(lambda _: not server.faults.stall_next))
            assert "the client given by client= has no free connection" in await refused(feed)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "auth", ["token", httpx2.BasicAuth("me", "pw"), httpx2.DigestAuth("me", "pw"), ("me", "pw"), None]
)
async def test_credentials_are_taken_from_auth_or_from_the_httpx2_client(server, auth):
    basic = "Basic bWU6cHc="
    server.faults.authorization = "Bearer token" if auth == "token" else basic
    async with httpx2.AsyncClient(timeout=GUARD, auth=("me", "pw")) as client:
        feed = HTTPFeed(server.url, client=client, auth=auth)
        if isinstance(auth, httpx2.DigestAuth):
            assert "answered 401" in await refused(feed, FeedRefused)
        else:
            assert len((await fetch(feed)).messages) == 3


@pytest.mark.parametrize("auth", [httpx.BasicAuth("me", "pw"), httpx2.BasicAuth("me", "pw")])
@pytest.mark.parametrize("module", [None, httpx, httpx2])
async def test_an_auth_of_either_library_serves_with_a_client_of_the_other(server, auth, module):
    server.faults.authorization = "Basic bWU6cHc="
    async with AsyncExitStack() as stack:
        client = None if module is None else await stack.enter_async_context(module.AsyncClient(timeout=GUARD))
        feed = HTTPFeed(server.url, client=client, auth=auth)
        stack.push_async_callback(feed.aclose)
        assert len((await fetch(feed)).messages) == 3


async def test_an_expired_token_is_replaced_within_one_fetch(server, client):
    server.faults.authorization = "Bearer new"
    tokens = iter(["old", "new"])

    async def token():
        return next(tokens)

    assert len((await fetch(HTTPFeed(server.url, client=client, auth=token))).messages) == 3


async def test_a_trusted_origin_gets_no_headers_credentials_or_params_of_the_client():
    asked = []

    def answer(request):
        asked.append(request)
        there = {"location": "https://cdn.example/p"}
        return httpx2.Response(302, headers=there) if request.url.host == "h.example" else httpx2.Response(204)

    async with httpx2.AsyncClient(
        transport=httpx2.MockTransport(answer), auth=("me", "pw"), headers={"x-key": "k"}, params={"k": "v"}
    ) as client:
        feed = HTTPFeed("https://h.example/", client=client, trusted_origins=["https://cdn.example"])
        assert (await fetch(feed)).messages == []
    assert asked[0].headers["user-agent"].startswith("push-to-poll-client/")
    assert asked[0].headers["user-agent"].endswith(f" python-httpx2/{httpx2.__version__}")
    assert str(asked[1].url) == "https://cdn.example/p"
    assert set(asked[1].headers) == {"host", "accept", "accept-encoding", "user-agent"}
