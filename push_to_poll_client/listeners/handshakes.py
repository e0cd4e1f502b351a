"""Answer the handshakes by which servers verify a webhook's address.

An echo grants nothing: it only shows that this webhook knows the vendor's handshake, so any sender gets one. The
echo is short, printable, and declared as text. WebSub's handshake is part of its subscription. To support another
vendor, write a function:

    def okta(request):
        challenge = request.headers.get("x-okta-verification-challenge")
        return WebhookResponse(body=msgspec.json.encode({"verification": challenge})) if challenge else None
"""

from collections.abc import Collection

from push_to_poll_client._http.headers import is_header_value
from push_to_poll_client._validation import check_count
from push_to_poll_client.listeners._webhook.types import Handshake, WebhookRequest, WebhookResponse

__all__ = ["cloudevents_origins", "dropbox_challenge", "graph_validation"]

MAX_ECHO = 2048
"""Characters that are echoed. Graph's tokens have about 250, Dropbox's 50."""

MAX_ORIGIN = 253
"""Characters of a DNS name (RFC 1035 §2.3.4), without the dot of the root."""


def dropbox_challenge() -> Handshake:
    """Answer Dropbox's `GET ?challenge=`, sent when an address is registered in the App Console.

    Source: dropbox.com/developers/reference/webhooks: the challenge, as text, with `nosniff`, within 10 s.
    """
    return lambda request: _echo(request, "GET", "challenge")


def graph_validation() -> Handshake:
    """Answer Microsoft Graph's `POST ?validationToken=`, sent while a subscription is created.

    Source: microsoft-graph-docs, change-notifications-delivery-webhooks: the token, URL-decoded, as text with
    status 200, within 10 s; for both `notificationUrl` and `lifecycleNotificationUrl`.
    """
    return lambda request: _echo(request, "POST", "validationToken")


def cloudevents_origins(origins: Collection[str], *, rate: int | None = None) -> Handshake:
    """Answer the `OPTIONS` requests of CloudEvents senders with `WebHook-Request-Origin`.

    Source: HTTP 1.1 Web Hooks for Event Delivery 1.0.2, §4. An unexpected origin gets the webhook's normal 405. A
    `WebHook-Request-Callback` is never called, since an attacker could choose any address.

    Args:
        origins: Expected senders, by the names in their requests, such as "eventemitter.example.com".
        rate: Requests per minute that the senders may send; `None` means no limit.

    Raises:
        TypeError: `origins` is a single string or holds something other than strings; `rate` is not an integer.
        ValueError: `origins` is empty, an origin is not a valid header value, or `rate` is below 1.
    """
    if isinstance(origins, str) or not all(isinstance(origin, str) for origin in origins):
        raise TypeError('origins must be a collection of strings, such as ["eventemitter.example.com"]')
    if not origins or not all(0 < len(origin) <= MAX_ORIGIN and is_header_value(origin) for origin in origins):
        raise ValueError(
            "origins must be a list of at least one host name of a sender, such as eventemitter.example.com"
        )
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
