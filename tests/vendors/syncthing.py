"""Syncthing: GET /rest/events?since=, which is held for 60 seconds unless `timeout` says otherwise.

`since` is the id of the last event that was seen, 0 for all. Ids begin at 1, and again at 1 when Syncthing starts.
It keeps the last 1,000 events. A `since` that lies ahead is held, too, until that id is reached. `limit` gives the
last so many. `timeout=0` answers at once. The status and the headers of a held answer come at once.
"""

import httpx

from tests.vendors.vendor import SECRET, Pieces, Vendor, iso, number_of

DEFAULT_TIMEOUT = 60.0


class Syncthing(Vendor):
    origin = "https://127.0.0.1:8384"
    path = "/rest/events"
    authorization = SECRET
    buffer = 1_000
    """Events that are kept."""

    @property
    def headers(self):
        return {"x-api-key": SECRET}

    def entry(self, number):
        data = {"folder": "default", "item": f"{number}.txt", "type": "file"}
        return {"id": number, "globalID": number + 7, "time": iso(number), "type": "ItemFinished", "data": data}

    def restart(self):
        """Events are forgotten, and counted from 1 again."""
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
        since = number_of(request.url.params.get("since")) or 0  # what is no number is 0
        return [event for event in self.entries[-self.buffer :] if event["id"] > since]


class HeldBody(httpx.AsyncByteStream):
    """The body of an answer, held after its headers."""

    def __init__(self, vendor, request):
        self.vendor = vendor
        self.request = request

    async def __aiter__(self):
        response = await Vendor._frozen(self.vendor, self.request)
        async for piece in Pieces(response.content):
            yield piece
