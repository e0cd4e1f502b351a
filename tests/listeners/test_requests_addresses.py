"""URLs named by a server reach only public addresses, whatever a name resolves to. On real sockets."""

import socket

import httpx
import httpx2
import pytest

from push_to_poll_client._http import addresses
from push_to_poll_client._http.addresses import address_in, came_from_private, is_public, peer_of
from push_to_poll_client.listeners._requests import ListenerClient, UnusableResponse
from tests.support.channels import HOST, Raw
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio

NAME = "hub.example"
PUBLIC = "93.184.216.34"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("https", "http", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@pytest.fixture
def resolver(monkeypatch):
    """Names resolve to the addresses in this list in turn; the last one repeats."""
    found = [HOST]
    real = socket.getaddrinfo

    def resolve(host, *arguments, **options):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in {NAME, "proxy.example"}:
            return real(host, *arguments, **options)
        address = HOST if name == "proxy.example" else found[0]
        if len(found) > 1:
            found.pop(0)
        if address is None:
            raise socket.gaierror("no such name")
        return real(address, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return found


@pytest.fixture
def server():
    requests = []

    def treat(accepted, number):
        while request := accepted.recv(65536):
            requests.append(request)
            accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with Raw(treat) as raw:
        raw.requests = requests
        yield raw


async def refused(client, url):
    with pytest.raises(UnusableResponse, match="is on this machine or in a private network"):
        await client.send_request("POST", url, content=b"hub.secret=c4n4ry", public_only=True)


@pytest.mark.usefixtures("nothing_is_left_unclosed")
@pytest.mark.parametrize("module", [None, httpx, httpx2])
async def test_nothing_is_sent_to_a_name_that_leads_to_this_machine(server, resolver, module):
    client = None if module is None else module.AsyncClient(timeout=GUARD)
    asking = ListenerClient("https://blog.example/", client=client)
    await refused(asking, f"http://{NAME}:{server.port}/")
    await refused(asking, f"https://{NAME}:{server.port}/")
    if client is not None:
        await client.aclose()
    assert server.requests == []


async def test_a_name_that_resolves_to_another_address_later_reaches_nothing(server, resolver):
    """DNS rebinding: a look-up before the request does not count."""
    resolver[:] = [HOST, PUBLIC]  # the first address is connected to
    await refused(ListenerClient("https://blog.example/"), f"http://{NAME}:{server.port}/")
    assert server.requests == []


async def test_a_public_address_that_was_connected_to_is_not_looked_up_again(server, resolver, monkeypatch):
    monkeypatch.setattr(addresses, "is_public", lambda address: address == HOST)
    resolver[:] = [HOST, "10.0.0.1"]  # a second look-up would reject it
    asking = ListenerClient("https://blog.example/")
    response = await asking.send_request("POST", f"http://{NAME}:{server.port}/", content=b"x", public_only=True)
    assert response.status == 200


@pytest.mark.parametrize("module", [httpx, httpx2])
async def test_an_open_connection_of_the_clients_own_is_not_used_for_it(server, resolver, module):
    async with module.AsyncClient(timeout=GUARD) as client:
        url = f"http://{NAME}:{server.port}/"
        await client.get(url)
        asking = ListenerClient("https://blog.example/", client=client)
        await refused(asking, url)
        assert (await asking.send_request("GET", url)).status == 200  # the caller's own URLs still work
    assert len(server.requests) == 2


async def test_a_proxy_may_be_private_and_the_server_behind_it_may_not(server, resolver, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://proxy.example:{server.port}")
    asking = ListenerClient("https://blog.example/")
    await refused(asking, f"http://{NAME}/")
    assert server.requests == []
    for found in ([PUBLIC], [None]):  # a name that only the proxy can resolve is left to the proxy
        resolver[:] = found
        response = await asking.send_request("POST", f"http://{NAME}/", content=b"x", public_only=True)
        assert response.status == 200
        assert not await came_from_private(httpx.URL(f"http://{NAME}/"), response.peer)
    assert b"".join(server.requests).count(b"POST ") == 2


async def test_a_server_at_a_private_address_is_known_by_its_connection(server, resolver):
    url = f"http://{NAME}:{server.port}/"
    response = await ListenerClient(url).send_request()
    assert response.peer == HOST
    assert await came_from_private(httpx.URL(url), response.peer)
    assert not await came_from_private(httpx.URL(url), None)
    assert not await came_from_private(httpx.URL(url), PUBLIC)


def test_the_peer_of_a_connection_that_is_closed_or_of_another_kind_is_not_known():
    class Stream:
        def __init__(self, found):
            self.found = found

        def get_extra_info(self, name):
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

    for found in (OSError(), None, "", (), ("/run/socket",), (None,)):
        assert peer_of(Stream(found)) is None
    assert peer_of(None) is None
    assert peer_of(Stream(("fe80::1%eth0", 80, 0, 3))) == "fe80::1"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),  # noqa: S104
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "::", "::1", "fc00::1", "fe80::1", "ff0e::1"),
        *("::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::", "2001:db8::1", "fe80::1%eth0"),
        *("fec0::1", "64:ff9b:1::a00:1", "::ffff:0:10.0.0.1", "100:0:0:1::1", "5f00::1"),
    ],
)
def test_addresses_that_are_not_of_the_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.32.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"]
)
def test_addresses_of_the_internet(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["hub.example", "localhost.example", "127.0.0.1.example", "1.2.3.4.5"])
def test_a_name_is_not_an_address(host):
    assert address_in(httpx.URL(f"http://{host}/")) is None
