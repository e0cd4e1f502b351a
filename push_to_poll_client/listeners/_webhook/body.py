"""HOW A BODY IS READ that anybody may send: not beyond what is wanted, and not for longer."""

from collections.abc import Mapping

import anyio

from push_to_poll_client.listeners._webhook.answers import TOO_LARGE, TOO_SLOW, Refusal
from push_to_poll_client.listeners._webhook.asgi import Receive

__all__ = ["ClientGone", "check_length", "read_body"]

MAX_DIGITS = 18
"""Of a length; one with more is no smaller."""


class ClientGone(Exception):
    """The client hung up before its request was whole: there is nobody to answer."""


def check_length(headers: Mapping[str, str], most: int) -> None:
    """Refuse a body that is said to be too large. One whose length is said badly is measured as it comes.

    Args:
        headers: Of the request.
        most: Bytes.

    Raises:
        Refusal: It is too large.
    """
    length = headers.get("content-length", "").strip()
    if not length.isascii() or not length.isdigit():
        return
    if len(length) > MAX_DIGITS or int(length) > most:
        raise Refusal(TOO_LARGE, "too_large")


async def read_body(receive: Receive, *, most: int, within: float) -> bytes:
    """The whole body.

    Args:
        receive: Of ASGI.
        most: Bytes.
        within: Seconds.

    Raises:
        ClientGone: It hung up.
        Refusal: It is too large, or comes too slowly.
    """
    body, more = bytearray(), True
    with anyio.move_on_after(within):
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            part = message.get("body", b"")
            if len(body) + len(part) > most:
                raise Refusal(TOO_LARGE, "too_large")
            body += part
            more = message.get("more_body", False)
        return bytes(body)
    raise Refusal(TOO_SLOW, "too_slow")
