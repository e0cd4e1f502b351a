"""PagerDuty: GET /log_entries. Newest first, pages by number: `offset`, `limit`, `more` if others follow."""

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, name, number_of

MOST = 10_000


class PagerDuty(Vendor):
    origin = "https://api.pagerduty.example"
    path = "/log_entries"
    authorization = f"Token token={SECRET}"

    def entry(self, number):
        return {"id": name(number).upper(), "type": "trigger_log_entry", "created_at": iso(number)}

    def unauthorized(self):
        return httpx.Response(401, json={"error": {"message": "Unauthorized", "code": 2006}})

    def answer(self, request):
        asked = request.url.params
        offset = number_of(asked.get("offset"), default=0)
        limit = number_of(asked.get("limit"), default=25, least=1, most=100)
        if offset is None or limit is None or offset + limit > MOST:
            return httpx.Response(400, json={"error": {"message": "Invalid Input Provided", "code": 2001}})
        limit = min(limit, self.page_size)
        shown = self.entries[::-1][offset : offset + limit]
        more = offset + limit < len(self.entries)
        body = {"log_entries": shown, "limit": limit, "offset": offset, "more": more, "total": None}
        return httpx.Response(200, json=body)
