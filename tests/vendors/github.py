"""GitHub events: newest first, shifting pages, at most 300 events, late events below newer ones.

`ETag` and `If-None-Match`; `X-Poll-Interval` on 200 and 304; a 304 does not count against the quota. Both rate
limits are 403: one with `x-ratelimit-remaining: 0`, the other with or without `Retry-After`.
"""

import hashlib
import json

import httpx

from tests.vendors.vendor import BEGAN, Vendor, iso, number_of

MOST = 300


class GitHub(Vendor):
    origin = "https://api.github.example"
    path = "/repos/octo/hello/events"
    poll_interval = 60
    quota = 5000
    reset = BEGAN + 3600
    """Time at which the quota is full again, in seconds since the epoch."""

    def entry(self, number):
        return {
            "id": str(40_000_000_000 + number),
            "type": "PushEvent",
            "actor": {"id": 1, "login": "octo"},
            "repo": {"id": 2, "name": "octo/hello"},
            "payload": {"push_id": number},
            "public": True,
            "created_at": iso(number),
        }

    def publish_late(self, below=1):
        """Publish an event that becomes visible below as many newer ones."""
        self.entries.insert(len(self.entries) - below, self.entry(90_000 + len(self.entries)))

    def refusal(self, request):
        if "user-agent" not in request.headers:
            return problem(403, "Request forbidden by administrative rules.")
        return super().refusal(request)

    def unauthorized(self):
        return problem(401, "Bad credentials")

    def secondary_limit(self, retry_after=None):
        """Respond with the secondary rate limit; None leaves out Retry-After."""
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        return problem(403, "You have exceeded a secondary rate limit.", {**self._limits(), **headers})

    def answer(self, request):
        asked = request.url.params
        per_page = min(number_of(asked.get("per_page"), default=30, least=1) or 30, 100, self.page_size)
        page = number_of(asked.get("page"), default=1, least=1) or 1
        if (page - 1) * per_page >= MOST:
            return problem(422, "In order to keep the API fast for everyone, pagination is limited.")
        shown = self.entries[: -MOST - 1 : -1]
        events = shown[(page - 1) * per_page : page * per_page]
        etag = f'W/"{hashlib.sha256(json.dumps(events).encode()).hexdigest()}"'
        headers = {"etag": etag, "x-poll-interval": str(self.poll_interval)}
        if request.headers.get("if-none-match", "").removeprefix("W/") == etag.removeprefix("W/"):
            return httpx.Response(304, headers=headers | self._limits())
        if self.quota == 0:
            return problem(403, "API rate limit exceeded for user ID 1.", self._limits())
        self.quota -= 1
        more = self._link(asked, page, last=-(-len(shown) // per_page))
        return httpx.Response(200, json=events, headers=headers | self._limits() | more)

    def _limits(self):
        return {
            "x-ratelimit-limit": "5000",
            "x-ratelimit-remaining": str(self.quota),
            "x-ratelimit-reset": str(self.reset),
            "x-ratelimit-resource": "core",
        }

    def _link(self, asked, page, last):
        there = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
        told = {rel: to for rel, to in there.items() if (page > 1 if rel in {"prev", "first"} else page < last)}
        # The path differs from the requested one, as at GitHub.
        base = f"{self.origin}/repositories/2/events"
        links = [f'<{base}?{asked.set("page", to)}>; rel="{rel}"' for rel, to in told.items()]
        return {"link": ", ".join(links)} if links else {}


def problem(status, message, headers=None):
    body = {"message": message, "documentation_url": "https://docs.github.example/rest", "status": str(status)}
    return httpx.Response(status, json=body, headers=headers)
