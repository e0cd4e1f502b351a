"""Syncthing: GET /rest/events?since=, held for 60 seconds unless `timeout` changes that.

`since` is the id of the last event that the client saw, 0 for all. Ids start at 1, and again at 1 when Syncthing
restarts. It keeps the last 1,000 events. A `since` beyond the newest id is held until that id is reached. `limit`
returns only the last so many. `timeout=0` responds at once. A held response sends its status and headers at once.
"""

import httpx

from tests.vendors.vendor import SECRET, Pieces, Vendor, iso, number_of

DEFAULT_TIMEOUT = 60.0


class Syncthing(Vendor):
    origin = "https://127.0.0.1:8384"
    path = "/rest/events"
    authorization = SECRET
    buffer = 1_000
    """Number of events kept."""

    @property
    def headers(self):
        return {"x-api-key": SECRET}

    def entry(self, number):
        data = {"folder": "default", "item": f"{number}.txt", "type": "file"}
        return {"id": number, "globalID": number + 7, "time": iso(number), "type": "ItemFinished", "data": data}

    def restart(self):
        """Forget all events and count from 1 again."""
        self.entries = []

    def refusal(self, request):
        known = request.headers.get("x-api-key") == self.authorization
        return None if known else httpx.Response(403, text="CSRF Error\n")

    async def _frozen(self, request):
        if (ordered := self.script.popleft() if self.script else None) is not None:
            return ordered
        if (refused := self.refusal(request)) is not None:
            return refused
        headers = {"content-type": "application/json; charset=utf-8"}
        return httpx.Response(200, headers=headers, stream=HeldBody(self, request))

    def hold(self, request):
        seconds = number_of(request.url.params.get("timeout"))
        return DEFAULT_TIMEOUT if seconds is None else seconds

    def has_news(self, request):
        return bool(self._after(request))

    def answer(self, request):
        shown, limit = self._after(request), number_of(request.url.params.get("limit"))
        return httpx.Response(200, json=shown[-limit:] if limit else shown)

    def _after(self, request):
        since = number_of(request.url.params.get("since")) or 0  # an invalid number counts as 0
        return [event for event in self.entries[-self.buffer :] if event["id"] > since]


class HeldBody(httpx.AsyncByteStream):
    """A body that is held after the headers."""

    def __init__(self, vendor, request):
        self.vendor = vendor
        self.request = request

    async def __aiter__(self):
        response = await Vendor._frozen(self.vendor, self.request)
        async for piece in Pieces(response.content):
            yield piece
