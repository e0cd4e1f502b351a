"""Discord: GET /channels/{id}/messages. `after` goes forward, but each page has its newest message first.

Without `after` a response has the newest messages, so a reader of all messages starts with `after=0`.
"""

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, number_of


class Discord(Vendor):
    origin = "https://discord.vendor.example"
    path = "/api/v10/channels/1/messages"
    authorization = f"Bot {SECRET}"

    def entry(self, number):
        return {"id": str(1_300_000_000_000_000_000 + number), "type": 0, "timestamp": iso(number), "content": "…"}

    def unauthorized(self):
        return httpx.Response(401, json={"message": "401: Unauthorized", "code": 0})

    def throttled(self):
        return httpx.Response(429, json={"retry_after": 1.5, "global": False}, headers={"retry-after": "2"})

    def answer(self, request):
        asked = request.url.params
        limit = number_of(asked.get("limit"), default=50, least=1, most=100)
        if limit is None or not asked.get("after", "0").isdecimal():
            return httpx.Response(400, json={"message": "Invalid Form Body", "code": 50035})
        limit = min(limit, self.page_size)
        if "after" in asked:
            shown = [message for message in self.entries if int(message["id"]) > int(asked["after"])][:limit]
        else:
            shown = self.entries[-limit:]
        return httpx.Response(200, json=shown[::-1])
