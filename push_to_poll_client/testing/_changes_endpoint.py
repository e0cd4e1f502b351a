"""GET /changes of the reference server: a long poll that says whether there is something new, like Dropbox's."""

from urllib.parse import parse_qs

import anyio
import msgspec

from push_to_poll_client.testing._asgi import Receive, Scope, Send, respond, while_there
from push_to_poll_client.testing._event_log import EventLog
from push_to_poll_client.testing._faults import Faults
from push_to_poll_client.testing._push_log import PushLog, Subscription
from push_to_poll_client.testing._stats import Stats

__all__ = ["ChangesEndpoint"]

WAIT = "30"
"""Seconds for which an answer is held if nobody says for how long, Dropbox's default."""

LONGEST_WAIT = 480.0
"""Seconds for which an answer is held at most, Dropbox's limit."""


class ChangesEndpoint:
    """The push channel as a long poll. Who does not say after which event waits for the next one.

    Args:
        events: What is in the feed.
        log: The pushes.
        faults: The switches.
        stats: The counters.
    """

    def __init__(self, events: EventLog, log: PushLog, faults: Faults, stats: Stats) -> None:
        self._events = events
        self._log = log
        self._faults = faults
        self._stats = stats
        self._holds: set[anyio.CancelScope] = set()

    def shut(self) -> None:
        """Answer what is held, for a server that ends."""
        for hold in self._holds:
            hold.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self._stats.count(long_polls=1)
        refusal = self._log.refusal(scope)
        if refusal is not None:
            status, headers = refusal
            await respond(send, status, b"", headers)
            return
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        after = query.get("after", [self._events.newest])[0]
        early = self._faults.accept_and_close is not None or self._faults.takes("early_next")
        if not early and (self._faults.half_open or not self._is_news(after)):
            await self._hold(receive, _seconds(query.get("wait", [WAIT])[0]))
        await self._answer(send, after, news=not early and self._is_news(after))

    def _is_news(self, after: str) -> bool:
        return bool(self._events.page(after, 1))

    async def _hold(self, receive: Receive, wait: float) -> None:
        """Return at a push, when the wait ends, the client goes or the server ends."""
        hold, subscription = anyio.CancelScope(), Subscription(self._log)
        self._holds.add(hold)
        self._stats.count(long_polls_held=1)
        try:
            with hold:
                await while_there(receive, lambda: self._until_push(subscription, wait))
        finally:
            self._holds.remove(hold)
            self._stats.count(long_polls_held=-1)

    async def _until_push(self, subscription: Subscription, wait: float) -> None:
        with anyio.move_on_after(wait):
            await subscription.next()
        if self._faults.half_open:
            await anyio.sleep_forever()

    async def _answer(self, send: Send, after: str, *, news: bool) -> None:
        said: dict[str, object] = {"changes": news, "cursor": self._events.newest if news else after}
        if self._faults.backoff is not None:
            said["backoff"] = self._faults.backoff
        await respond(send, 200, msgspec.json.encode(said), [(b"content-type", b"application/json")])


def _seconds(wait: str) -> float:
    """What is no number asks for nothing."""
    return min(float(wait), LONGEST_WAIT) if wait.replace(".", "", 1).isdecimal() else 0.0
