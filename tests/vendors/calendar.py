"""Google Calendar: events.list, first in full and then by sync token.

Only the last page has `nextSyncToken`. All parameters are repeated on each page, and filters cannot be combined
with a `syncToken`. Status 410 means a full sync.
"""

import httpx

from tests.vendors.vendor import Vendor, iso, name, number_of, read_token, token

FILTERS = {"iCalUID", "orderBy", "privateExtendedProperty", "q", "timeMin", "timeMax", "updatedMin"}


class Calendar(Vendor):
    origin = "https://www.googleapis.example"
    path = "/calendar/v3/calendars/primary/events"

    def __init__(self, *args, **kwargs):
        self.era = 0
        super().__init__(*args, **kwargs)

    def entry(self, number):
        event = {"kind": "calendar#event", "etag": f'"{number}"', "id": name(number), "status": "confirmed"}
        return event | {"updated": iso(number), "summary": f"event {number}", "sequence": 0}

    def cancel(self, place):
        """Cancel an event."""
        number = len(self.entries) + 1
        gone = {"id": self.entries[place]["id"], "etag": f'"{number}"', "updated": iso(number)}
        self.entries.append({"kind": "calendar#event", "status": "cancelled", **gone})

    def expire(self):
        """Forget all sync tokens."""
        self.era += 1

    def unauthorized(self):
        return error(401, "authError")

    def throttled(self):
        """Google's rate limits are 403 or 429, both without Retry-After."""
        return error(403, "rateLimitExceeded")

    def answer(self, request):
        asked = dict(request.url.params)
        most = number_of(asked.get("maxResults"), default=250, least=1, most=2500)
        page, sync = asked.pop("pageToken", None), asked.get("syncToken")
        if most is None or ("syncToken" in asked and FILTERS & asked.keys()):
            return error(400, "invalid")
        since = {"at": 0, "era": self.era} if sync is None else read_token(sync)
        if since is None or since.get("era") != self.era:
            return error(410, "fullSyncRequired")
        there = {"at": since["at"], "asked": asked} if page is None else read_token(page)
        if there is None or there.get("asked") != asked:
            return error(400, "invalid")
        end = min(there["at"] + min(most, self.page_size), len(self.entries))
        body = {"kind": "calendar#events", "etag": f'"p{end}"', "items": self.entries[there["at"] : end]}
        more = end < len(self.entries)
        link = {"nextPageToken": token(at=end, asked=asked)} if more else {"nextSyncToken": self._sync(end)}
        return httpx.Response(200, json=body | link)

    def _sync(self, at):
        return token(at=at, era=self.era)


def error(status, reason):
    errors = [{"domain": "global", "reason": reason, "message": "…"}]
    return httpx.Response(status, json={"error": {"code": status, "message": "…", "errors": errors}})
