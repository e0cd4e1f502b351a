"""Telegram: getUpdates, where fetching acknowledges.

A request with an `offset` deletes all updates before it, for every client. The token is in the path. A second
request ends a waiting one with 409.
"""

import json
from itertools import takewhile
from urllib.parse import parse_qs

import httpx

from tests.vendors.vendor import SECRET, Vendor, number_of, when


class Telegram(Vendor):
    origin = "https://api.telegram.example"
    token = f"123456:{SECRET}"
    path = f"/bot{token}/getUpdates"
    authorization = None
    webhook = False
    """True if a webhook is set, which excludes polling."""

    def __init__(self, *args, **kwargs):
        self.first = 800_000_000
        self.deleted = 0
        self.pollers = 0
        super().__init__(*args, **kwargs)

    def entry(self, number):
        chat = {"id": 7, "type": "private"}
        message = {"message_id": number, "date": when(number), "chat": chat, "text": f"update {number}"}
        return {"update_id": self.first + number, "message": message}

    def fall_silent(self):
        """Simulate a week without updates: the next id may then be smaller or larger."""
        self.first = 300_000_000

    def refusal(self, request):
        if request.url.path != self.path:
            return error(401, "Unauthorized")
        if self.webhook:
            return error(409, "Conflict: can't use getUpdates method while webhook is active")
        return None

    def throttled(self, seconds):
        """Only the body says when to retry."""
        again = {"parameters": {"retry_after": seconds}}
        return error(429, f"Too Many Requests: retry after {seconds}", **again)

    async def _frozen(self, request):
        self.pollers += 1
        self.published.ring()  # end a waiting request
        return await super()._frozen(request)

    def hold(self, request):
        request.extensions["poller"] = self.pollers
        self._acknowledge(request)
        return number_of(said(request).get("timeout"), default=0) or 0

    def has_news(self, request):
        return bool(self.entries[self.deleted :]) or request.extensions["poller"] != self.pollers

    def answer(self, request):
        if request.extensions["poller"] != self.pollers:
            return error(409, "Conflict: terminated by other getUpdates request")
        limit = number_of(said(request).get("limit"), default=100, least=1, most=100)
        if limit is None:
            return error(400, "Bad Request: limit must be between 1 and 100")
        shown = self.entries[self.deleted :][: min(limit, self.page_size)]
        return httpx.Response(200, json={"ok": True, "result": shown})

    def _acknowledge(self, request):
        offset = said(request).get("offset", "0")
        offset = int(offset) if offset.removeprefix("-").isdecimal() and len(offset) < 20 else 0
        left = [update["update_id"] for update in self.entries[self.deleted :]]
        if offset < 0:
            self.deleted += max(len(left) + offset, 0)
        elif offset - 1 in left:
            self.deleted += left.index(offset - 1) + 1
        else:
            self.deleted += len(list(takewhile(lambda update_id: update_id < offset, left)))


def said(request):
    """Return the parameters of the query, or of a JSON or form body."""
    kind = request.headers.get("content-type", "")
    if kind.startswith("application/json"):
        return {key: str(value) for key, value in json.loads(request.content).items()}
    form = {key: values[0] for key, values in parse_qs(request.content.decode()).items()}
    return dict(request.url.params) | form


def error(status, description, **more):
    body = {"ok": False, "error_code": status, "description": description, **more}
    return httpx.Response(status, json=body)
