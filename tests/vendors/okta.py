"""Okta's system log: GET /api/v1/logs, where `Link rel="next"` is the cursor.

The link is always there, also on an empty page; a client requests it again until it returns entries.
"""

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, name, number_of, read_token, token, when


class Okta(Vendor):
    origin = "https://acme.okta.example"
    path = "/api/v1/logs"
    authorization = f"SSWS {SECRET}"
    left = 60
    """Requests left in this minute."""

    def entry(self, number):
        event = {"uuid": name(number), "published": iso(number), "eventType": "user.session.start"}
        return event | {"version": "0", "severity": "INFO", "outcome": {"result": "SUCCESS"}}

    def unauthorized(self):
        return error(401, "E0000011", "Invalid token provided")

    def answer(self, request):
        asked = request.url.params
        limit = number_of(asked.get("limit"), default=100, least=0, most=1000)
        there = {"at": 0} if "after" not in asked else read_token(asked["after"])
        if limit is None or there is None or asked.get("sortOrder", "ASCENDING") != "ASCENDING":
            return error(400, "E0000001", "Api validation failed")
        if self.left == 0:
            return error(429, "E0000047", "API call exceeded rate limit", self._limits())
        self.left -= 1
        end = min(there["at"] + min(limit, self.page_size), len(self.entries))
        following = httpx.URL(self.url, params=asked.set("after", token(at=end)))
        links = [("link", f'<{request.url}>; rel="self"'), ("link", f'<{following}>; rel="next"')]
        return httpx.Response(200, json=self.entries[there["at"] : end], headers=[*links, *self._limits()])

    def _limits(self):
        reset = when(len(self.entries)) + 60
        limits = {"limit": 60, "remaining": self.left, "reset": reset}
        return [(f"x-rate-limit-{name}", str(value)) for name, value in limits.items()]


def error(status, code, summary, headers=None):
    body = {"errorCode": code, "errorSummary": summary, "errorCauses": []}
    return httpx.Response(status, json=body, headers=headers)
