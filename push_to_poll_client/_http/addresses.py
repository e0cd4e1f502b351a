"""Keep requests that an internet server led to away from this machine and from private networks.

A server may name or redirect to any URL, including URLs that only this machine can reach: its own services, the
network behind the firewall, the metadata service of a cloud. Such a request is checked three times:

1. by its URL, if it contains an address, in any form;
2. by the connected address, before anything is sent. A look-up is not enough: a name may resolve to another
   address each time (DNS rebinding);
3. by a look-up, if no connection was opened for the request: it goes through a proxy, or over an open
   connection of the caller's client.

Not covered: a proxy that resolves names differently, and a client whose transport does not report its connections.
There only the first check works.
"""

import ipaddress
import socket
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

import anyio
import httpx

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.transport import CLOSE_TIMEOUT


class PrivateAddress(PushToPollError):
    """The server is on this machine or in a private network, and must not be asked."""


_LOOPBACK = "127.0.0.1"

_EMBEDDING = (IPv6Network("64:ff9b::/96"), IPv6Network("::/96"))
"""Networks whose last 32 bits are an IPv4 address: NAT64 (RFC 6052 §2.1), and the former IPv4-compatible one."""

_UNICAST = IPv6Network("2000::/3")
"""The assigned part of the IPv6 internet. `is_global` is also true for unassigned and site networks."""


def is_public(address: str) -> bool:
    """Return True for an IP address of the internet; an IPv4 address embedded in an IPv6 address decides."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        embedded = _embedded(ip)
        if embedded is None and ip not in _UNICAST:
            return False
        ip = ip if embedded is None else embedded
    return ip.is_global and not ip.is_multicast


def _embedded(ip: IPv6Address) -> IPv4Address | None:
    if any(ip in network for network in _EMBEDDING) and int(ip) > 1:  # :: and ::1 are IPv6
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour


def address_in(url: httpx.URL) -> str | None:
    """Return the IP address in a URL, also for "localhost" (RFC 6761 §6.3); None if it has another name."""
    host = url.raw_host.decode("ascii").lower().removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return _LOOPBACK
    with suppress(ValueError):
        return str(ipaddress.ip_address(host.partition("%")[0]))
    # Resolvers read 127.1, 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1.
    with suppress(OSError):
        return socket.inet_ntoa(socket.inet_aton(host))
    return None


def peer_of(stream: Any) -> str | None:
    """Return the IP address at the other end of a connection; None if unknown."""
    try:
        address, *_ = stream.get_extra_info("server_addr")
        return str(ipaddress.ip_address(address.partition("%")[0]))
    except (OSError, AttributeError, TypeError, ValueError):  # closed already, or of another kind
        return None


async def came_from_private(url: httpx.URL, peer: str | None) -> bool:
    """Return True if the response came from a private address, and may lead to another one."""
    if (literal := address_in(url)) is not None:
        return not is_public(literal)
    # The address of a proxy says nothing about the server behind it.
    return peer is not None and not is_public(peer) and peer in await _resolve(url)


def only_public(url: httpx.URL, extensions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add an httpcore "trace" to the extensions of a request, to let it reach public addresses only."""
    if (literal := address_in(url)) is not None and not is_public(literal):
        raise PrivateAddress(_REFUSED)
    host = url.raw_host.decode("ascii")
    is_direct = is_checked = False

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal is_direct, is_checked
        if "trace" in extensions:
            await extensions["trace"](event, info)
        if event.endswith("connect_tcp.started"):
            is_direct = info["host"] == host  # not the address of a proxy
        elif event.endswith("connect_tcp.complete") and is_direct:
            peer = peer_of(info["return_value"])
            if peer is not None and not is_public(peer):
                with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await info["return_value"].aclose()  # httpcore would forget it
                raise PrivateAddress(_REFUSED)
            is_checked = peer is not None
        elif event.endswith("send_request_headers.started") and not is_checked:
            if not all(map(is_public, await _resolve(url))):
                raise PrivateAddress(_REFUSED)
            is_checked = True

    return {**extensions, "trace": trace}


_REFUSED = "is on this machine or in a private network; an internet server must not link or redirect to it"


async def _resolve(url: httpx.URL) -> list[str]:
    """Look up a host as a request does; empty if unknown."""
    with suppress(OSError, UnicodeError):
        found = await anyio.getaddrinfo(url.raw_host.decode("ascii"), None, type=socket.SOCK_STREAM)
        return [str(address[0]).partition("%")[0] for *_, address in found]
    return []
