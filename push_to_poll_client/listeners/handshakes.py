"""Answer the handshakes with which servers ask whether their pushes are wanted.

An echo proves nothing, so any sender gets one: it shows only that the vendor's handshake is known here. What is
echoed is short, printable, and declared as text. WebSub's handshake belongs to its subscription, which knows what
was asked for. Others are one function each:

    def okta(request):
        asked = request.headers.get("x-okta-verification-challenge")
        return WebhookResponse(body=msgspec.json.encode({"verification": asked})) if asked else None
"""

from collections.abc import Collection

from push_to_poll_client._http.headers import is_header_value
from push_to_poll_client._validation import check_count
from push_to_poll_client.listeners._webhook.types import Handshake, WebhookRequest, WebhookResponse

__all__ = ["cloudevents_origins", "dropbox_challenge", "graph_validation"]

MAX_ECHO = 2048
"""Characters that are echoed: Graph's tokens are some 250, Dropbox's 50."""

MAX_ORIGIN = 253
"""Characters of a DNS name (RFC 1035 §2.3.4, without the root's dot)."""


def dropbox_challenge() -> Handshake:
    """Answers Dropbox, which asks `GET ?challenge=` when an address is registered in its App Console.

    Source: dropbox.com/developers/reference/webhooks: the challenge, as text, with `nosniff`, within 10 s.
    """
    return lambda request: _echo(request, "GET", "challenge")


def graph_validation() -> Handshake:
    """Answers Microsoft Graph, which asks `POST ?validationToken=` while a subscription is created.

    Source: microsoft-graph-docs, change-notifications-delivery-webhooks: the token, URL-decoded, as text with
    status 200, within 10 s; for `notificationUrl` and `lifecycleNotificationUrl` alike.
    """
    return lambda request: _echo(request, "POST", "validationToken")


def cloudevents_origins(origins: Collection[str], *, rate: int | None = None) -> Handshake:
    """Answers senders of CloudEvents, which ask by `OPTIONS` with `WebHook-Request-Origin`.

    Source: HTTP 1.1 Web Hooks for Event Delivery 1.0.2, §4. Who is not expected gets no answer from it,
    but the webhook's 405, as if there were no such question. A `WebHook-Request-Callback` is not called: anybody
    could have any address called by it.

    Args:
        origins: Those that are expected, as they call themselves, as "eventemitter.example.com".
        rate: Requests a minute that are allowed at most; `None`: any.

    Raises:
        TypeError: `origins` is a text, or holds what is none; `rate` is not a whole number.
        ValueError: An origin cannot stand in a header, there is none, or the rate is below 1.
    """
    if isinstance(origins, str) or not all(isinstance(origin, str) for origin in origins):
        raise TypeError("origins is a collection of texts")
    if not origins or not all(0 < len(origin) <= MAX_ORIGIN and is_header_value(origin) for origin in origins):
        raise ValueError("origins are names of senders, such as eventemitter.example.com")
    expected = frozenset(origin.lower() for origin in origins)
    if rate is not None:
        check_count("rate", rate)

    def answer(request: WebhookRequest) -> WebhookResponse | None:
        origin = request.headers.get("webhook-request-origin", "")
        if request.method != "OPTIONS" or origin.lower() not in expected:
            return None
        allowed = "*" if rate is None else str(rate)
        return WebhookResponse(
            headers={"Allow": "POST", "WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": allowed}
        )

    return answer


def _echo(request: WebhookRequest, method: str, name: str) -> WebhookResponse | None:
    text = request.parameter(name) if request.method == method else None
    if text is None or not 0 < len(text) <= MAX_ECHO or not text.isprintable():
        return None
    return WebhookResponse(body=text.encode())
