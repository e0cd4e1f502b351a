"""A made-up vendor, whose feed `docs/feeds.md` declares step by step: GET /v2/events, with `token`.

Every page has `events`, `has_more` and `next_token`, also the last one. The key goes into the vendor's own header.
`X-Acme-Wait` gives the seconds until the next request, also on success.
"""

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, name, number_of, read_token, token


class Acme(Vendor):
    origin = "https://api.acme.example"
    path = "/v2/events"
    authorization = SECRET
    wait = None

    def entry(self, number):
        return {"id": name(number), "type": "order.paid", "created_at": iso(number)}

    @property
    def headers(self):
        return {"x-acme-key": self.authorization}

    def refusal(self, request):
        known = request.headers.get("x-acme-key") == self.authorization
        return None if known else httpx.Response(401, json={"message": "unknown key"})

    def throttled(self, seconds):
        return httpx.Response(429, json={"message": "slow down"}, headers={"x-acme-wait": str(seconds)})

    def answer(self, request):
        asked = request.url.params
        limit = number_of(asked.get("limit"), default=100, least=1, most=100)
        there = read_token(asked["token"]) if "token" in asked else {"at": 0}
        if limit is None or there is None:
            return httpx.Response(400, json={"message": "unknown token"})
        end = min(there["at"] + min(limit, self.page_size), len(self.entries))
        body = {"events": self.entries[there["at"] : end], "next_token": token(at=end)}
        waits = {} if self.wait is None else {"x-acme-wait": str(self.wait)}
        return httpx.Response(200, json=body | {"has_more": end < len(self.entries)}, headers=waits)
