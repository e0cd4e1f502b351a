"""Long polls on real sockets, with the library's own client."""

import threading

import pytest
from anyio.to_thread import run_sync

from push_to_poll_client._types import Push
from push_to_poll_client.listeners.long_poll import LongPollListener
from tests.support.channels import HOST, Raw, is_closed, listening
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio

NEWS = b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"at": 77}'


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("https", "http", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


def to(raw, **options):
    return LongPollListener(f"http://{HOST}:{raw.port}/changes?wait=60", **{"open_timeout": 2 * GUARD, **options})


async def test_news_wakes_and_the_next_request_sends_the_position_on_the_same_connection():
    requests, again = [], threading.Event()

    def treat(accepted, number):
        requests.append(accepted.recv(65536))
        accepted.sendall(NEWS)
        requests.append(accepted.recv(65536))
        again.set()

    with Raw(treat) as raw:
        async with listening(to(raw, next={"since": "at"})) as channel:
            await channel.saw("up", Push())
            assert await run_sync(again.wait, GUARD)
        assert is_closed(raw.first())
    assert requests[0].startswith(b"GET /changes?wait=60 HTTP/1.1\r\n")
    assert requests[1].startswith(b"GET /changes?wait=60&since=77 HTTP/1.1\r\n")


async def test_the_channel_is_up_while_a_request_is_held():
    with Raw(lambda accepted, number: accepted.recv(65536)) as raw:
        async with listening(to(raw)) as channel:
            await channel.saw("up")


async def test_a_refused_connection_takes_the_channel_down():
    with Raw(lambda accepted, number: accepted.close()) as raw:
        port = raw.port
    async with listening(LongPollListener(f"http://{HOST}:{port}/")) as channel:
        await channel.saw("down")
    assert "ConnectError" in str(channel.error)


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 1000, b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
async def test_a_response_that_is_not_valid_http_takes_the_channel_down(garbage):
    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(garbage)
        accepted.close()

    with Raw(treat) as raw:
        async with listening(to(raw)) as channel:
            await channel.saw("down")
    assert "RemoteProtocolError" in str(channel.error) or "ReadError" in str(channel.error)
