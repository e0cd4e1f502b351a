"""Keep requests to which a server on the internet led away from this machine and from private networks.

A server may name or redirect to any URL, also one that only this machine can reach: of its own services, of the
network behind the firewall, of the metadata service of a cloud. Such a request is refused three times over:

1. by its URL, if that has an address in it, in whatever form;
2. by the address that was connected to, before anything is sent. A name may resolve to another address each time
   it is looked up (DNS rebinding), so what a look-up says is not enough;
3. by a look-up, if no connection to the server was opened for the request: it is sent through a proxy, or over a
   connection that a client of the user had open.

What is left: a proxy that resolves the name in another way than this machine, and a client whose transport does
not report its connections as httpx's own does. There the first check remains.
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
    """The server is on this machine or in a private network, and it must not be asked."""


_LOOPBACK = "127.0.0.1"

_EMBEDDING = (IPv6Network("64:ff9b::/96"), IPv6Network("::/96"))
"""Networks whose last 32 bits are an IPv4 address: NAT64 (RFC 6052 §2.1), and the former IPv4-compatible one."""

_UNICAST = IPv6Network("2000::/3")
"""All that is assigned of the IPv6 internet. `is_global` is true of what is not assigned at all, and of networks
of a site: of fec0::/10, and in older versions of Python of the local NAT64 (RFC 8215)."""


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the internet. An IPv4 address within an IPv6 one is what counts."""
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
    """Return the IP address that a URL has as its host, in its usual form; `None` if it has a name.

    "localhost" and the names below it are this machine, whatever a resolver says (RFC 6761 §6.3).
    """
    host = url.raw_host.decode("ascii").lower().removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return _LOOPBACK
    with suppress(ValueError):
        return str(ipaddress.ip_address(host.partition("%")[0]))
    # As resolvers read an address: 127.1, 2130706433, 0x7f.1 and 0177.0.0.1 are all 127.0.0.1.
    with suppress(OSError):
        return socket.inet_ntoa(socket.inet_aton(host))
    return None


def peer_of(stream: Any) -> str | None:
    """Return the IP address at the other end of a connection; `None` if it is not known."""
    try:
        address, *_ = stream.get_extra_info("server_addr")
        return str(ipaddress.ip_address(address.partition("%")[0]))
    except (OSError, AttributeError, TypeError, ValueError):  # closed already, or of another kind
        return None


async def came_from_private(url: httpx.URL, peer: str | None) -> bool:
    """Return whether a response came from this machine or a private network, so that it may lead there.

    Args:
        url: What was asked.
        peer: The other end of the connection; `None` if it is not known.
    """
    if (literal := address_in(url)) is not None:
        return not is_public(literal)
    # The address of a proxy says nothing about the server behind it.
    return peer is not None and not is_public(peer) and peer in await _resolve(url)


def only_public(url: httpx.URL, extensions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add to the extensions of a request a "trace" of httpcore that lets it reach public addresses only.

    Args:
        url: Where the request goes.
        extensions: Of the request.

    Raises:
        PrivateAddress: The URL has an address that is not public. While the request is sent: the server has.
    """
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


_REFUSED = "is on this machine or in a private network, where a server on the internet must not lead"


async def _resolve(url: httpx.URL) -> list[str]:
    """Look up a host as a request does; no address if it is unknown, which is for the request to find out."""
    with suppress(OSError, UnicodeError):
        found = await anyio.getaddrinfo(url.raw_host.decode("ascii"), None, type=socket.SOCK_STREAM)
        return [str(address[0]).partition("%")[0] for *_, address in found]
    return []
