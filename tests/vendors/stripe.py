"""Stripe: GET /v1/events. Newest first; `starting_after` leads to older events, `ending_before` to newer ones."""

import httpx

from tests.vendors.vendor import SECRET, Vendor, name, number_of, when


class Stripe(Vendor):
    origin = "https://api.stripe.example"
    path = "/v1/events"
    authorization = f"Bearer sk_test_{SECRET}"
    kept = None
    """Number of events kept, the newest; None for all. Stripe keeps them for 30 days."""

    def entry(self, number):
        return {
            "id": f"evt_{name(number)}",
            "object": "event",
            "api_version": "2026-10-29",
            "created": when(number),
            "data": {"object": {"id": f"in_{number}", "object": "invoice"}},
            "livemode": False,
            "pending_webhooks": 0,
            "request": {"id": None, "idempotency_key": None},
            "type": ("invoice.paid", "customer.updated")[number % 2],
        }

    def unauthorized(self):
        return error(401, "Invalid API Key provided")

    def throttled(self):
        """Respond with 429 without Retry-After."""
        return error(429, "Request rate limit exceeded", code="rate_limit")

    def answer(self, request):
        asked = request.url.params
        limit = number_of(asked.get("limit"), default=10, least=1, most=100)
        if limit is None:
            return error(400, "Invalid integer: must be between 1 and 100", param="limit")
        if {"starting_after", "ending_before"} <= asked.keys():
            return error(400, "You may only specify one of these parameters: starting_after, ending_before.")
        newest_first = [e for e in reversed(self.entries) if asked.get("type") in {None, e["type"]}][: self.kept]
        places = {event["id"]: place for place, event in enumerate(newest_first)}
        for param in asked.keys() & {"starting_after", "ending_before"}:
            if asked[param] not in places:
                return error(400, f"No such event: '{asked[param]}'", code="resource_missing", param=param)
        if "ending_before" in asked:
            place = places[asked["ending_before"]]
            return listed(newest_first[max(place - limit, 0) : place], has_more=place > limit)
        start = places[asked["starting_after"]] + 1 if "starting_after" in asked else 0
        return listed(newest_first[start : start + limit], has_more=len(newest_first) > start + limit)


def listed(events, *, has_more):
    body = {"object": "list", "url": "/v1/events", "has_more": has_more, "data": events}
    return httpx.Response(200, json=body)


def error(status, message, **more):
    return httpx.Response(status, json={"error": {"type": "invalid_request_error", "message": message, **more}})
