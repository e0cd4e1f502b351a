"""Which listener is meant by `--push URL`, and may it have the feed's token?"""

from collections.abc import Callable

import httpx

from push_to_poll_client import Listener, SSEListener, WebSocketListener

__all__ = ["listener_for", "same_server"]

_KINDS: dict[str, Callable[..., Listener]] = {
    "ws": WebSocketListener,
    "wss": WebSocketListener,
    "http": SSEListener,
    "https": SSEListener,
}
_SECURE = {"https", "wss"}


def listener_for(push: str, *, feed: str, token: str | None) -> Listener:
    """The listener for a push channel.

    Args:
        push: Its URL; the scheme says which kind it is.
        feed: The URL of the feed.
        token: The feed's, which goes to the same server alone (G12); `None`: there is none.

    Raises:
        ValueError: The URL is none of a push channel. Nothing of it is in the text.
    """
    kind = _KINDS.get(push.partition(":")[0].lower())
    if kind is None:
        raise ValueError("--push must be a websocket (ws://, wss://) or server-sent events (http://, https://)")
    try:
        return kind(push, token=token if token is not None and same_server(push, feed) else None)
    except ValueError as error:
        raise ValueError(f"--push: {error}") from error


def same_server(push: str, feed: str) -> bool:
    """Whether two URLs name the same host and port, and both or neither are encrypted.

    Raises:
        ValueError: One of them is no URL.
    """
    return _server(push) == _server(feed)


def _server(url: str) -> tuple[bool, str, int | None]:
    try:
        parsed = httpx.URL(url)
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError):  # whose text may quote a piece of a password
        raise ValueError("it is no URL") from None
    return parsed.scheme in _SECURE, host, parsed.port
