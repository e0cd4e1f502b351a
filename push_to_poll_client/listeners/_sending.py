"""BY WHAT A CHANNEL SENDS: a client of its own for as long as a block, or one that it was given."""

import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.errors import BAD_REDIRECT, module_of
from push_to_poll_client._http.transport import CLOSE_TIMEOUT, open_client

__all__ = ["ProxyUnusable", "SocksUnusable", "UnusableRedirect", "closing", "open_sender", "send"]


class ProxyUnusable(PushToPollError):
    """The environment names a proxy that cannot be one."""


class SocksUnusable(PushToPollError):
    """The environment names a SOCKS proxy, for which a library is missing."""


class UnusableRedirect(PushToPollError):
    """The server answered a redirect to something that is not a URL."""


@contextlib.asynccontextmanager
async def open_sender(client: Any, tls: ssl.SSLContext | None) -> AsyncIterator[Any]:
    """What to send by, within the block.

    Args:
        client: An `httpx.AsyncClient` or one of its shape, which stays open; `None` opens one.
        tls: Whom one that is opened trusts; `None`: the certificates that the machine trusts.

    Raises:
        ProxyUnusable: None can be opened in this environment.
        SocksUnusable: Likewise.
    """
    if client is not None:
        yield client
        return
    async with closing(_own_client(tls)) as own:
        yield own


@contextlib.asynccontextmanager
async def closing(thing: Any) -> AsyncIterator[Any]:
    """Close it at the end of the block, with its `aclose()`."""
    try:
        yield thing
    finally:
        # Shielded: a close that is cancelled leaves its socket to the garbage collector.
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await thing.aclose()


async def send(sender: Any, request: Any, **options: Any) -> Any:
    """Send a request without following redirects; its answer is streamed.

    Raises:
        UnusableRedirect: httpx reads the `Location` of every redirect, also of one that is not followed.
        Exception: There is no answer.
    """
    module = module_of(sender)
    try:
        return await sender.send(request, stream=True, follow_redirects=False, **options)
    except (httpx.InvalidURL, module.InvalidURL, UnicodeError):  # whose text may quote a piece of a secret
        pass
    except OSError:  # a certificate that cannot be trusted is a ValueError, too
        raise
    except ValueError as error:  # of urllib, by which httpx joins URLs; or of a hook of the user's client
        raise UnusableRedirect(
            f"the client raised {type(error).__name__}, as httpx does when a server answers a redirect to "
            "something that is not a URL"
        ) from None
    except module.RemoteProtocolError as error:
        if not str(error).startswith((BAD_REDIRECT, "Invalid URL in location header")):
            raise
    raise UnusableRedirect("the server answered a redirect to something that is not a URL")


def _own_client(tls: ssl.SSLContext | None) -> httpx.AsyncClient:
    """A client for one channel: no pool can be left in an ill state, and a changed environment counts."""
    try:
        return open_client(httpx.Timeout(None), tls=tls)
    except ImportError:
        raise SocksUnusable(
            "the environment names a SOCKS proxy, for which httpx needs socksio: pip install 'httpx[socks]'"
        ) from None
    except (ValueError, httpx.InvalidURL):  # whose text quotes the address, and with it perhaps a password
        raise ProxyUnusable("the address of the proxy in the environment is not valid; correct it") from None
