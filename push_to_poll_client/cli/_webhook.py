"""WHAT `tail --webhook` means: where a server's pushes arrive, and by what they are known to be the server's."""

import argparse
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client.listeners.handshakes import dropbox_challenge
from push_to_poll_client.listeners.verifiers import anybody, dropbox, github, standard_webhooks, stripe
from push_to_poll_client.listeners.webhook import WebhookListener

__all__ = ["Webhook", "add_webhook", "environment_variable", "webhook_of"]

logger = logging.getLogger("push_to_poll_client")

_ADDRESS = re.compile(r"(?:\[([0-9A-Za-z:.%]+)\]|([^\s:@\[\]]+)):([0-9]{1,5})")
MAX_PORT = 65_535

NONE = "none"

_VERIFIERS: dict[str, Callable[[str], Any]] = {
    "github": github,
    "standard-webhooks": standard_webhooks,
    "stripe": stripe,
    "dropbox": dropbox,
}
"""What is typed for how a server signs."""

_HANDSHAKES = {"dropbox": dropbox_challenge}


def add_webhook(add: Callable[..., object]) -> None:
    """Add the options to a parser."""
    add(
        "--webhook",
        metavar="HOST:PORT",
        help="a push channel: wait there for requests of the server, which say when to poll. Needs "
        "--webhook-verify, and the extra `serve`",
    )
    add(
        "--webhook-verify",
        metavar="HOW",
        help=f"how the server signs its requests: {', '.join(_VERIFIERS)}; or {NONE}: whoever reaches the address "
        "may have the feed polled early, within the rate",
    )
    add(
        "--webhook-secret-env", metavar="NAME", help="the environment variable with the secret of --webhook-verify"
    )


class Webhook:
    """A webhook that is served by this process.

    Args:
        listener: The webhook.
        host: Where, a name or an address.
        port: Likewise; 0 takes a free one.

    Attributes:
        listener: As given.
    """

    def __init__(self, listener: WebhookListener, host: str, port: int) -> None:
        self.listener = listener
        self._address = host, port

    async def serve(self, follow: Callable[[], Awaitable[object]]) -> None:
        """Serve it for as long as something else runs.

        Raises:
            ListenerError: It cannot listen there.
            Exception: What `follow` raised.
        """
        from push_to_poll_client.cli._serve import serve_beside

        with _listening(*self._address) as listening:
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logger.info("%s: listening at http://%s:%d/", self.listener.name, shown, port)
            await serve_beside(self.listener, listening, follow)


def webhook_of(options: argparse.Namespace) -> Webhook | None:
    """The webhook that was asked for; `None`: there is none.

    Raises:
        ValueError: The options have no meaning, or what they need is not there. No value is in the text.
    """
    if options.webhook is None:
        if options.webhook_verify is not None or options.webhook_secret_env is not None:
            raise ValueError("--webhook-verify and --webhook-secret-env are about --webhook, add it")
        return None
    if find_spec("uvicorn") is None:
        raise ValueError("--webhook needs a server: pip install 'push-to-poll-client[serve]'")
    host, port = _address(options.webhook)
    how = options.webhook_verify
    listener = WebhookListener(
        _verifier(how, options.webhook_secret_env),
        handshake=[make() for name, make in _HANDSHAKES.items() if name == how],
    )
    return Webhook(listener, host, port)


def environment_variable(option: str, name: str, what: str) -> str:
    """The value of an environment variable.

    Args:
        option: By which it was named.
        name: Of the variable.
        what: It holds.

    Raises:
        ValueError: There is none.
    """
    if value := os.environ.get(name):
        return value
    raise ValueError(f"{option}: no environment variable has that name; give its name, not the {what}")


def _verifier(how: str | None, name: str | None) -> Any:
    make = _VERIFIERS.get(how or "")
    if make is None and how != NONE:
        raise ValueError(f"--webhook needs --webhook-verify: {', '.join(_VERIFIERS)} or {NONE}, one of them")
    if make is None:
        if name is not None:
            raise ValueError(f"--webhook-verify {NONE} needs no secret, leave out --webhook-secret-env")
        return anybody()
    if name is None:
        raise ValueError("--webhook-verify needs --webhook-secret-env, the variable in which the secret is")
    return make(environment_variable("--webhook-secret-env", name, "secret"))


def _address(text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > MAX_PORT:
        raise ValueError("--webhook must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return match[1] or match[2], int(match[3])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ListenerError: It cannot, and why.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol named, without which asyncio lets small answers wait for acknowledgements (Nagle).
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _unable(error) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise _unable(error) from None
    return listening


def _unable(error: Exception) -> ListenerError:
    why = error.strerror if isinstance(error, OSError) else "it is no name of a host"
    return ListenerError(f"--webhook: cannot listen there: {why}; choose another HOST:PORT")
