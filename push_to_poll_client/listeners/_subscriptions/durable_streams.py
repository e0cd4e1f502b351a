"""WEBHOOKS OF A DURABLE STREAMS SERVER: what it is asked for, who signs them, what they say (PROTOCOL.md §7.1)."""

import logging
import ssl
from collections.abc import Iterable
from typing import Any

import msgspec

from push_to_poll_client._http.credentials import HeaderSource, TokenSource
from push_to_poll_client._http.origins import http_url
from push_to_poll_client._json import decode
from push_to_poll_client._types import Push
from push_to_poll_client.listeners._asking import ANSWER_VERDICTS, Asker
from push_to_poll_client.listeners._http_failures import http_failure_of
from push_to_poll_client.listeners._subscriptions.stream_subscription import (
    CONFIRM_EVERY,
    DurableStreamsSubscription,
    below,
    root_of,
    topics_of,
)
from push_to_poll_client.listeners._verifiers.durable_streams import DurableStreamsSignature
from push_to_poll_client.listeners._webhook.request import WebhookAnswer, WebhookRequest

__all__ = ["DurableStreamsWebhook"]

_log = logging.getLogger("push_to_poll_client.listeners.subscriptions")


class DurableStreamsWebhook(DurableStreamsSubscription):
    """Webhooks of a Durable Streams server. For `WebhookListener(register_with_server=…)`.

        DurableStreamsWebhook(
            "https://streams.example/v1/stream", streams=["orders"], callback="https://me.example/hooks/orders"
        )

    Each push is signed by the server, and answered in such a way that it may push again at once. Its body has a
    token with which a worker would say how far it is: it is not used, and shown nowhere.

    Args:
        root: Where the streams are: the address of a stream without the path that `streams` names it by. A user
            and password in it are sent as Basic credentials.
        callback: Where the server reaches the webhook: `https://`, and for tests `http://127.0.0.1`.
        streams: Paths of streams below the root.
        pattern: Paths of streams, those to come included: in `orders/*` the star is one step of a path, two
            stars are any number of steps. One of `streams` and `pattern` has to be given.
        id: What the subscription's id begins with, for whoever looks at them on the server; the rest is made from
            what is asked for. Those who ask for the same share one. `None`: "push-to-poll".
        lease: Seconds after which the server pushes again what was not answered, 1 to 600.
        confirm_every: Seconds after which the subscription is confirmed, since the server may have lost it. For
            so long it then pushes nothing.
        tolerance: Seconds that the time in a signature may differ from this machine's.
        headers: Sent with each request: a mapping, or a function that returns one. `None`: none.
        token: Sent as `Authorization: Bearer`: a string, or a function as for `headers`.
        tls: Whom to trust for `https://`. `None`: the certificates that the machine trusts.
        client: An `httpx.AsyncClient`, or one of its shape, to ask by; it stays yours.

    Attributes:
        name: By what status and log call it.
        verify: Takes what the server signed: a `DurableStreamsSignature`.
        answer: What a push is answered: that the server need not wait for us (§7.1).

    Raises:
        ImportError: `cryptography` is not installed: `pip install 'push-to-poll-client[crypto]'`.
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning; the text says which and why.
    """

    answer: WebhookAnswer = WebhookAnswer(200, b'{"done":true}', "application/json")

    def __init__(
        self,
        root: str,
        *,
        callback: str,
        streams: Iterable[str] = (),
        pattern: str | None = None,
        id: str | None = None,
        lease: float = 10.0,
        confirm_every: float = CONFIRM_EVERY,
        tolerance: float = 300.0,
        headers: HeaderSource | None = None,
        token: TokenSource | None = None,
        tls: ssl.SSLContext | None = None,
        client: Any = None,
    ) -> None:
        where = root_of(root)
        super().__init__(
            where,
            {"type": "webhook", "webhook": {"url": str(http_url(callback))}},
            streams=streams,
            pattern=pattern,
            id=id,
            lease=lease,
            confirm_every=confirm_every,
            asker=Asker(root, headers=headers, token=token, tls=tls, client=client),
        )
        # Not where an answer says that they are (§6.3): it would be asked with our credentials, and §6.5 demands
        # that they are here.
        self.verify: DurableStreamsSignature = DurableStreamsSignature(
            below(root, "__ds/jwks.json"),
            tolerance=tolerance,
            headers=headers,
            token=token,
            tls=tls,
            client=client,
        )

    async def _made_anew(self) -> None:
        """A server that was started anew may have other keys than those that are known."""
        try:
            await self.verify.refresh()
        except Exception as error:  # noqa: BLE001  # they are asked for again when a push comes
            why = http_failure_of(error, wanted="a set of keys", verdicts=ANSWER_VERDICTS).sentence
            _log.info("%s: %s", self.name, why)

    def hint(self, request: WebhookRequest, /) -> Push | None:
        """The streams that have something new. `None`: it is of another subscription of the same server.

        Their offsets are no cursors: one of `DurableStreamFeed` says also how many messages lie before it.
        """
        try:
            wake = decode(request.body, type=_Wake)
        except (ValueError, RecursionError):
            return Push()  # the server wrote it all the same
        if self.registrations is not None and wake.subscription_id not in {one.id for one in self.registrations}:
            return None
        return Push(topics=topics_of(stream.path for stream in wake.streams if stream.has_pending))


class _Stream(msgspec.Struct):
    path: str
    has_pending: bool = True


class _Wake(msgspec.Struct):
    subscription_id: str
    streams: list[_Stream] = []
