"""The webhook on a real socket, served by uvicorn in a thread, while its consumer runs in another thread.

The requests are malformed: truncated, slow, too large, garbage, or one right after another.
"""

import contextlib
import socket
import threading

import anyio
import anyio.to_thread
import httpx
import pytest
import uvicorn

from push_to_poll_client.listeners.webhook import WebhookListener
from push_to_poll_client.testing import FakeFeed
from tests.support.asgi_calls import Signatures, naming, signed
from tests.support.channels import HOST
from tests.support.consumers import Log
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """The consumer's event loop, in real time; uvicorn uses asyncio in its own thread."""
    return request.param


@contextlib.contextmanager
def served(app):
    """Serve an application for the duration of the block; yields the URL."""
    listening = socket.create_server((HOST, 0))
    config = uvicorn.Config(app, log_config=None, log_level="critical", lifespan="on", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join(GUARD)


def hooks_with(**arguments):
    return WebhookListener(Signatures(), **({"max_body": 1000, "body_timeout": GUARD} | arguments))


async def until(condition):
    """An effect of another thread."""
    with anyio.fail_after(GUARD):
        while not condition():  # noqa: ASYNC110  # nothing tells when
            await anyio.sleep(0.01)


def request_of(body=b"", *, length=None, headers=None):
    fields = {"Host": "x", **(signed(body) if headers is None else headers)}
    fields["Content-Length"] = str(len(body) if length is None else length)
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST / HTTP/1.1\r\n{head}\r\n".encode() + body


def talk(address, *parts, end=b""):
    """Send these, and read until the server closes or has sent something."""
    with socket.create_connection(address, timeout=GUARD) as client:
        for part in parts:
            client.sendall(part)
        said = b""
        while (not end or end not in said) and (more := client.recv(65536)):
            said += more
        return said


async def heard(address, *parts, **more):
    return await anyio.to_thread.run_sync(lambda: talk(address, *parts, **more))


async def test_a_request_in_one_thread_wakes_the_consumer_in_another():
    hooks = hooks_with(route="to.names")
    feeds = FakeFeed(), FakeFeed()
    alice, all_of_it = (
        Log(feed, listeners=[listener], fallback_interval=600, patience=GUARD)
        for feed, listener in zip(feeds, (hooks.listener_for("alice"), hooks), strict=True)
    )
    with served(hooks) as (host, port):
        async with anyio.create_task_group() as tasks, httpx.AsyncClient(timeout=GUARD) as client:
            for consumer in (alice, all_of_it):
                tasks.start_soon(consumer.run)
            await until(lambda: all(consumer.status().last_poll for consumer in (alice, all_of_it)))
            for number in range(1, 4):
                for feed in feeds:
                    feed.publish(str(number))
                body = naming("alice", number=number)
                answer = await client.post(f"http://{host}:{port}/", content=body, headers=signed(body))
                assert answer.status_code == 200
                await alice.until(number)
                await all_of_it.until(number)
            tasks.cancel_scope.cancel()
    assert alice.processed == all_of_it.processed == ["1", "2", "3"]
    assert hooks.counters().woken == 3


async def test_a_flood_in_one_thread_takes_the_channel_down_in_another():
    hooks = hooks_with(rate=0.001, burst=1)
    consumer = Log(FakeFeed(), listeners=[hooks], fallback_interval=600)
    with served(hooks) as (host, port):
        async with anyio.create_task_group() as tasks, httpx.AsyncClient(timeout=GUARD) as client:
            tasks.start_soon(consumer.run)
            await until(lambda: consumer.status().listeners[0].up)
            statuses = [
                (await client.post(f"http://{host}:{port}/", headers={"X-Signature": "x"})).status_code
                for _ in range(3)
            ]
            await until(lambda: not consumer.status().listeners[0].up)
            tasks.cancel_scope.cancel()
    assert statuses == [401, 429, 429]
    assert "rate limit reached" in consumer.status().listeners[0].last_error


async def test_pipelined_requests_are_each_answered():
    hooks = hooks_with()
    with served(hooks) as address:
        said = await heard(
            address,
            request_of(b"a") + request_of(b"b", headers={"X-Signature": "x"}) + request_of(b"c"),
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
    assert [line[9:12] for line in said.split(b"\r\n") if line.startswith(b"HTTP/")] == [
        b"200",
        b"401",
        b"200",
        b"405",
    ]


async def test_a_body_with_a_too_large_content_length_closes_the_connection():
    hooks = hooks_with()
    with served(hooks) as address:
        said = await heard(address, request_of(length=1 << 40))
    assert said.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in said.lower()
    assert hooks.counters().too_large == 1


async def test_a_chunked_body_beyond_the_limit_is_answered_413():
    hooks = hooks_with()
    head = b"POST / HTTP/1.1\r\nHost: x\r\nX-Signature: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served(hooks) as address:
        said = await heard(address, head, b"64\r\n" + b"x" * 100 + b"\r\n", b"3E8\r\n" + b"x" * 1000 + b"\r\n")
    assert said.startswith(b"HTTP/1.1 413")


async def test_a_slow_body_is_answered_408():
    hooks = hooks_with(body_timeout=0.2)
    with served(hooks) as address:
        said = await heard(address, request_of(b"half", length=8))
    assert said.startswith(b"HTTP/1.1 408")
    assert hooks.counters().too_slow == 1


async def test_a_truncated_request_is_counted_and_the_next_request_is_answered():
    hooks = hooks_with()
    with served(hooks) as address:
        with socket.create_connection(address, timeout=GUARD) as client:
            client.sendall(request_of(b"half", length=8))
        await until(lambda: hooks.counters().gone)
        assert (await heard(address, request_of(b"x"), end=b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nX-Signature: x\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\n" + b"X: " + b"x" * 100_000,
        b"PO\x00ST / HTTP/1.1\r\n\r\n",
    ],
)
async def test_a_malformed_request_does_not_disturb_the_next_connection(garbage):
    hooks = hooks_with()
    with served(hooks) as address:
        with contextlib.suppress(ConnectionError):
            assert b"200" not in (await heard(address, garbage + b"\r\n\r\n")).split(b"\r\n")[0]
        assert (await heard(address, request_of(b"x"), end=b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
