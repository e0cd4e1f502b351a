"""Microsoft Graph delta: the cursor is a URL, pages in the middle may be empty, an item may come twice.

`@odata.nextLink` leads to the next page and `@odata.deltaLink` ends a chain. Both are whole URLs with all
parameters, to be used unchanged. A reset is 410 with `Location`, or 40x with `syncStateNotFound`.
"""

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, name, read_token, token


class Graph(Vendor):
    origin = "https://graph.vendor.example"
    path = "/v1.0/me/mailFolders/inbox/messages/delta"
    authorization = f"Bearer eyJ.{SECRET}"
    empty_pages = 0
    """Number of empty pages before each page with items."""
    repeats = False
    """True if each page begins with the last item of the page before."""

    def __init__(self, *args, **kwargs):
        self.era = 0
        self.gone = None
        super().__init__(*args, **kwargs)

    def entry(self, number):
        return {
            "@odata.etag": f'W/"{number}"',
            "id": name(number),
            "lastModifiedDateTime": iso(number),
            "subject": f"message {number}",
        }

    def change(self, place):
        """Change an existing item."""
        changed = self.entry(len(self.entries) + 1) | {"id": self.entries[place]["id"]}
        self.entries.append(changed)

    def remove(self, place):
        """Remove an item."""
        self.entries.append({"id": self.entries[place]["id"], "@removed": {"reason": "deleted"}})

    def expire(self, *, status=410, code="resyncRequired", location=True):
        """Forget all tokens; `location` is the URL of the new start."""
        self.era += 1
        fresh = {"location": f"{self.url}?$select=subject&$skiptoken={self._token(0, 0)}"} if location else {}
        self.gone = status, code, fresh

    def unauthorized(self):
        return error(401, "InvalidAuthenticationToken")

    def answer(self, request):
        asked = dict(request.url.params)
        if asked.get("$deltatoken") == "latest":
            return self._page(asked, [], delta=len(self.entries))
        given = asked.get("$skiptoken") or asked.get("$deltatoken")
        what = {"at": 0, "pause": 0, "era": self.era} if given is None else read_token(given)
        if what is None:
            return error(400, "BadRequest")
        if what["era"] != self.era:
            status, code, headers = self.gone
            return error(status, code, headers)
        return self._from(asked, what["at"], what["pause"])

    def _from(self, asked, at, pause):
        if pause < self.empty_pages and at < len(self.entries):
            return self._page(asked, [], skip=(at, pause + 1))
        end = min(at + self.page_size, len(self.entries))
        items = self.entries[max(at - self.repeats, 0) : end]
        more = end < len(self.entries)
        return self._page(asked, items, **({"skip": (end, 0)} if more else {"delta": end}))

    def _page(self, asked, items, *, skip=None, delta=None):
        kept = {name: value for name, value in asked.items() if name not in {"$skiptoken", "$deltatoken"}}
        link = "@odata.deltaLink" if skip is None else "@odata.nextLink"
        there = {"$deltatoken": self._token(delta, 0)} if skip is None else {"$skiptoken": self._token(*skip)}
        context = f"{self.origin}/v1.0/$metadata#Collection(message)"
        url = httpx.URL(self.url, params=kept | there)
        return httpx.Response(200, json={"@odata.context": context, link: str(url), "value": items})

    def _token(self, at, pause):
        return token(at=at, pause=pause, era=self.era)


def error(status, code, headers=None):
    return httpx.Response(status, json={"error": {"code": code, "message": "…"}}, headers=headers)
