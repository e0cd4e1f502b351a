"""Zendesk's incremental export: `start_time` at first, then `cursor`.

Every page has an `after_cursor`, which may be saved; the last page has `end_of_stream` too.
"""

from base64 import b64encode

import httpx

from tests.vendors.vendor import BEGAN, SECRET, Vendor, iso, number_of, read_token, token, when


class Zendesk(Vendor):
    origin = "https://acme.zendesk.example"
    path = "/api/v2/incremental/tickets/cursor.json"
    authorization = "Basic " + b64encode(f"me@acme.example/token:{SECRET}".encode()).decode()

    def entry(self, number):
        ticket = {"id": number, "subject": f"ticket {number}", "status": "open"}
        return ticket | {"updated_at": iso(number), "generated_timestamp": when(number)}

    def change(self, place, status="pending"):
        """Change a ticket; `status="deleted"` deletes it."""
        changed = self.entry(len(self.entries) + 1)
        self.entries.append(changed | {"id": self.entries[place]["id"], "status": status})

    def unauthorized(self):
        return httpx.Response(401, json={"error": "Couldn't authenticate you"})

    def throttled(self, seconds):
        body = {"error": "APIRateLimitExceeded", "description": "Number of allowed requests exceeded"}
        return httpx.Response(429, json=body, headers={"retry-after": str(seconds)})

    def answer(self, request):
        asked = request.url.params
        size = number_of(asked.get("per_page"), default=1000, least=1, most=1000)
        start = number_of(asked.get("start_time"), most=BEGAN + 10**8)
        if size is None or (start is None) == ("cursor" not in asked):
            return httpx.Response(400, json={"error": "InvalidValue", "description": "start_time or cursor"})
        there = read_token(asked["cursor"]) if start is None else {"at": self._place(start)}
        if there is None:
            return httpx.Response(400, json={"error": "InvalidValue", "description": "Invalid cursor"})
        end = min(there["at"] + min(size, self.page_size), len(self.entries))
        after, more = token(at=end), end < len(self.entries)
        body = {"tickets": self.entries[there["at"] : end], "end_of_stream": not more}
        url = str(httpx.URL(self.url, params={"cursor": after}))
        return httpx.Response(200, json=body | {"after_cursor": after, "after_url": url, "before_cursor": None})

    def _place(self, start):
        return sum(ticket["generated_timestamp"] < start for ticket in self.entries)
