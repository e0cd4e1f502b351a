"""Which listener is meant by `--push URL`, and may it have the feed's token?"""

from urllib.parse import urlsplit

from push_to_poll_client import Listener, WebSocketListener

__all__ = ["listener_for", "same_server"]

_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def listener_for(push: str, *, feed: str, token: str | None) -> Listener:
    """The listener for a push channel.

    Args:
        push: Its URL; the scheme says which kind it is.
        feed: The URL of the feed.
        token: The feed's, which goes to the same server alone (G12); `None`: there is none.

    Raises:
        ValueError: The URL is none of a push channel.
    """
    return WebSocketListener(push, token=token if same_server(push, feed) else None)


def same_server(push: str, feed: str) -> bool:
    """Whether two URLs name the same host and port.

    Raises:
        ValueError: One of them is no URL.
    """
    one, other = urlsplit(push), urlsplit(feed)
    return (one.hostname, one.port or _PORTS.get(one.scheme)) == (
        other.hostname,
        other.port or _PORTS.get(other.scheme),
    )
