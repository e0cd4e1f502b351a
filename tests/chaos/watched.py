"""Wrap a consumer's feed and listeners, so that a test knows their actions and times."""

from contextlib import suppress
from time import monotonic

import httpx

from push_to_poll_client import HTTPFeed
from tests.chaos.journals import Fetch


class WatchedListener:
    """Wrap a listener and its channel.

    Args:
        listener: The listener.
        told: Called with each report "up", "down" or "pushed"; with the last one from any thread.
        dials: Called when a websocket or an event stream is about to connect.
    """

    def __init__(self, listener, told, dials=lambda: None):
        self.listener, self.told = listener, told
        self.name = listener.name
        if connect := getattr(listener, "_connect", None):
            listener._connect = lambda *connection: (dials(), connect(*connection))[1]

    async def listen(self, channel):
        self.channel = channel
        await self.listener.listen(self)

    def up(self):
        self.channel.up()
        self.told("up")

    def down(self, error=None):
        self.channel.down(error)
        self.told("down")

    def wake(self, push=None, /):
        self.told("pushed")
        self.channel.wake(push)

    def request_poll(self):
        self.channel.request_poll()

    def subscribed(self, until, /):
        self.channel.subscribed(until)

    @property
    def missed_in_a_row(self):
        return self.channel.missed_in_a_row

    @property
    def state(self):
        return self.channel.state

    async def save(self, state, /):
        await self.channel.save(state)


class WatchedFeed(HTTPFeed):
    """Report begin and end of each fetch, by the consumer's own clock.

    Args:
        url: URL of the feed.
        client: Name of the consumer for the server.
        timeout: Seconds for one answer.
        began: Called with each `Fetch` at its begin.
        over: Called with it at its end.
        identity: As for `HTTPFeed`.
    """

    def __init__(self, url, *, client, timeout, began, over, identity=None):
        auth = _Witness(self._hear)
        super().__init__(url, timeout=timeout, headers={"x-client": client}, auth=auth, identity=identity)
        self._client, self._timeout, self._began, self._over = client, timeout, began, over

    async def fetch(self, request):
        fetch = self._fetch = Fetch(self._client, monotonic(), request.cursor, failed=True)
        self._began(fetch)
        try:
            page = await super().fetch(request)
            fetch.next, fetch.failed = page.next_page, False
        finally:
            fetch.ended = monotonic()
            if fetch.ended - fetch.at > self._timeout:
                fetch.retry_after = 0.0  # the feed may have given up just before it could read the answer
            self._over(fetch)
        return page

    def _hear(self, response):
        if response.is_error:
            with suppress(KeyError, ValueError):
                self._fetch.retry_after = float(response.headers["retry-after"])
                self._fetch.heard_at = monotonic()


class _Witness(httpx.Auth):
    """See the head of each answer before the feed does. It sends no credentials."""

    def __init__(self, hear):
        self._hear = hear

    def auth_flow(self, request):
        self._hear((yield request))
