"""One request of a channel on real sockets: with another library's client, and closing."""

import threading

import anyio
import httpcore
import httpcore2
import httpx
import httpx2
import pytest
from anyio.to_thread import run_sync

from push_to_poll_client._http import direct_client
from push_to_poll_client.listeners._requests import ListenerClient, UnusableResponse
from tests.support.channels import HOST, Raw, is_closed
from tests.support.forms import GUARD

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left_unclosed")]

CANARY = "c4n4ry"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("https", "http", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


async def test_a_client_of_httpx2_works_and_sends_no_credentials_to_another_origin():
    def treat(accepted, number):
        requests.append(accepted.recv(65536))
        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    requests = []
    with Raw(treat) as raw:
        async with httpx2.AsyncClient(timeout=GUARD, headers={"X-Mine": CANARY}) as client:
            asking = ListenerClient(f"http://me:{CANARY}@{HOST}:{raw.port}/", client=client)
            assert (await asking.send_request()).json() == {}
            elsewhere = ListenerClient("https://notify.example/", client=client, auth=CANARY)
            assert (await elsewhere.send_request(url=f"http://{HOST}:{raw.port}/")).json() == {}
    assert b"\r\nauthorization: Basic bWU6YzRuNHJ5\r\n" in requests[0]
    assert CANARY.encode() not in requests[1]


@pytest.mark.parametrize("library", [httpcore, httpcore2])
async def test_the_socket_of_a_request_that_ends_early_is_closed(library, monkeypatch):
    monkeypatch.setattr(direct_client, "httpcore", library)

    def treat(accepted, number):
        accepted.recv(65536)
        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)

    with Raw(treat) as raw:
        with pytest.raises(UnusableResponse, match="more than 100 bytes"):
            await ListenerClient(f"http://{HOST}:{raw.port}/", max_body=100).send_request()
        assert is_closed(raw.first())


@pytest.mark.parametrize("module", [httpx, httpx2])
async def test_a_request_cancelled_while_it_is_sent_leaves_no_unclosed_generator(module):
    """A generator that is not finished causes a warning on trio."""
    begun = threading.Event()

    def treat(accepted, number):
        accepted.recv(1)
        begun.set()  # nothing more is read, so this never ends

    with Raw(treat) as raw:
        async with module.AsyncClient(timeout=GUARD) as client, anyio.create_task_group() as tasks:
            asker = ListenerClient(f"http://{HOST}:{raw.port}/", client=client, timeout=2 * GUARD)
            tasks.start_soon(lambda: asker.send_request("POST", content=bytes(1 << 25)))
            assert await run_sync(begun.wait, GUARD)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("module", [httpx, httpx2])
async def test_a_body_is_sent_whole(module):
    def treat(accepted, number):
        requests.append(b"")
        while not requests[0].endswith(b"\r\n\r\nbody"):
            requests[0] += accepted.recv(65536)
        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    requests = []
    with Raw(treat) as raw:
        async with module.AsyncClient(timeout=GUARD) as client:
            assert (
                await ListenerClient(f"http://{HOST}:{raw.port}/", client=client).send_request(
                    "POST", content=b"body"
                )
            ).status == 200
    assert b"\r\ncontent-length: 4\r\n" in requests[0].lower()
