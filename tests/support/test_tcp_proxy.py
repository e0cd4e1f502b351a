"""The proxy does exactly what it is told; the tests of a broken network rely on this."""

import asyncio
import gc
import socket
import socketserver
import threading
import time
import warnings

import pytest

from tests.support.forms import GUARD
from tests.support.tcp_proxy import TCPProxy


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            while data := self.request.recv(65_536):
                self.server.heard += data
                self.request.sendall(data)
        except ConnectionError:
            pass
        self.server.over.release()


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture
def echo():
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        server.heard, server.over = b"", threading.Semaphore(0)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo):
    with TCPProxy(echo.server_address[1]) as proxy:
        yield proxy


@pytest.fixture
def dial(proxy):
    """Open connections, use each once, and close them at the end."""
    clients = []

    def dial(*, say=b"hello"):
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=GUARD)
        clients.append(client)
        if say:
            client.sendall(say)
            assert heard(client, len(say)) == say
        return client

    yield dial
    for client in clients:
        client.close()


def heard(client, count):
    data = b""
    while len(data) < count and (more := client.recv(count - len(data))):
        data += more
    return data


def silent(client):
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(GUARD)
    return True


def test_data_and_the_end_of_the_stream_pass_both_ways(dial, echo, proxy):
    client = dial(say=b"x" * 300_000)
    proxy.wait_for(lambda counts: counts.passed == 600_000)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert echo.over.acquire(timeout=GUARD)
    proxy.wait_for(lambda counts: not counts.open)


def test_delayed_data_arrives_later_and_complete(dial, proxy):
    client = dial()
    proxy.delay(0.1)
    began = time.monotonic()
    client.sendall(b"later")
    assert heard(client, 5) == b"later"
    assert time.monotonic() - began >= 0.2


def test_throttled_data_arrives_slowly_and_complete(dial, proxy):
    client = dial()
    proxy.throttle(10)
    began = time.monotonic()
    client.sendall(b"x" * 100)
    assert heard(client, 100) == b"x" * 100
    assert time.monotonic() - began >= 0.08


@pytest.mark.parametrize("up", [True, False])
def test_a_connection_stays_silent_after_a_blackhole_dropped_its_bytes(dial, echo, proxy, up):
    client = dial()
    proxy.blackhole(up=up, down=not up)
    client.sendall(b"lost")
    proxy.wait_for(lambda counts: counts.swallowed == 4)
    assert echo.heard == (b"hello" if up else b"hellolost")
    proxy.heal()
    client.sendall(b"more")
    assert silent(client)
    dial()


def test_a_blackhole_accepts_connections_and_passes_their_close_on(dial, echo, proxy):
    proxy.blackhole()
    client = dial(say=None)
    client.sendall(b"lost")
    proxy.wait_for(lambda counts: counts.swallowed == 4)
    client.close()
    assert echo.over.acquire(timeout=GUARD)
    assert echo.heard == b""


def test_the_proxy_refuses_new_connections_until_it_is_healed(dial, proxy):
    old = dial()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        dial()
    old.sendall(b"still here")
    assert heard(old, 10) == b"still here"
    proxy.heal()
    dial()


def test_the_proxy_cuts_connections_with_fin_or_rst(dial, proxy):
    client, other = dial(), dial()
    proxy.cut()
    assert client.recv(1) == other.recv(1) == b""
    client = dial()
    proxy.cut(rst=True)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert proxy.counts.cut == 3
    dial()


def test_cut_after_cuts_one_connection_in_the_middle(dial, proxy):
    client = dial()
    proxy.cut_after(3)
    client.sendall(b"middle")
    assert heard(client, 6) == b"mid"
    dial()


def test_a_half_closed_connection_can_still_send(dial, echo, proxy):
    client = dial()
    proxy.half_close()
    assert client.recv(1) == b""
    client.sendall(b"are you there?")
    proxy.wait_for(lambda counts: counts.swallowed == 14)
    assert echo.heard == b"helloare you there?"


def test_a_missing_server_is_a_connection_reset(proxy, echo, dial):
    echo.shutdown()
    echo.server_close()
    with pytest.raises(ConnectionResetError):  # during the dial, or later
        dial(say=None).recv(1)


@pytest.mark.parametrize("end", [TCPProxy._deafen, lambda proxy: proxy._stop.set()], ids=["refuse", "exit"])
def test_no_accepted_socket_is_lost_whenever_the_proxy_refuses_or_ends(echo, end):
    """After each number of turns of its event loop, from the client's connect until both sides are open."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for turns in range(12):
            with TCPProxy(echo.server_address[1]) as proxy, socket.socket() as client:

                async def connect_and_end(proxy=proxy, client=client, turns=turns):
                    client.connect(("127.0.0.1", proxy.port))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    end(proxy)

                proxy._call(connect_and_end)
        gc.collect()
    assert not [str(each.message) for each in caught]


def test_a_cut_closes_a_connection_that_was_only_just_accepted(proxy):
    async def cut_when_accepted():
        while not proxy.counts.accepted:  # noqa: ASYNC110  # in this turn the connection to the server is not open
            await asyncio.sleep(0)
        await proxy._cut_all(rst=False)

    with socket.create_connection(("127.0.0.1", proxy.port), timeout=GUARD) as client:
        proxy._call(cut_when_accepted)
        assert client.recv(1) == b""


def test_wait_for_raises_a_timeout_error_when_nothing_happens(proxy):
    with pytest.raises(TimeoutError, match="accepted=0"):
        proxy.wait_for(lambda counts: counts.accepted, timeout=0.01)
