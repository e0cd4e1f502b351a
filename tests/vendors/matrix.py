"""Matrix: GET /sync. Events are grouped by room; `timeout` is in milliseconds, `limited` reports a gap.

The first request has no `since`: it gets the newest events of each room, with `limited` if there were others.
Every response has a `next_batch`, also one without events. A filter sets the number of events per room; Synapse
shows 10 without one, and 100 at most.

A homeserver pushes to a gateway, which must respond with JSON that names the rejected pushkeys.
"""

import json

import httpx

from tests.vendors.vendor import SECRET, Vendor, name, number_of, read_token, token, when


class Matrix(Vendor):
    origin = "https://matrix.vendor.example"
    path = "/_matrix/client/v3/sync"
    authorization = f"Bearer syt_{SECRET}"
    default, most = 10, 100
    """Events per room in a response without a filter, and the maximum."""

    def entry(self, number):
        event = {"event_id": f"${name(number)}", "type": "m.room.message", "origin_server_ts": when(number) * 1000}
        return f"!{number % 2}:vendor.example", event | {"content": {"body": f"message {number}"}}

    def unauthorized(self):
        return error(401, "M_UNKNOWN_TOKEN")

    def throttled(self):
        return error(429, "M_LIMIT_EXCEEDED", retry_after_ms=2500)

    def hold(self, request):
        return (number_of(request.url.params.get("timeout"), default=0) or 0) / 1000

    def has_news(self, request):
        return (self._since(request) or 0) < len(self.entries)

    def answer(self, request):
        since = self._since(request)
        if since is None:
            return error(400, "M_INVALID_PARAM")
        limit = json.loads(request.url.params.get("filter", "{}")).get("room", {}).get("timeline", {}).get("limit")
        rooms = dict.fromkeys((room for room, _ in self.entries[since:]), ())
        joined = {room: self._room(room, since, self.default if limit is None else limit) for room in rooms}
        body = {"next_batch": token(at=len(self.entries))} | ({"rooms": {"join": joined}} if joined else {})
        return httpx.Response(200, json=body)

    def _room(self, room, since, most):
        events = [event for where, event in self.entries[since:] if where == room]
        shown = events[len(events) - min(most, self.most, len(events)) :]
        return {"timeline": {"events": shown, "limited": len(shown) < len(events), "prev_batch": "p"}}

    def _since(self, request):
        given = request.url.params.get("since")
        read = {"at": 0} if given is None else read_token(given)
        return None if read is None else read["at"]


async def notify(client, url, pushkey, event="$1"):
    """Push an event to a gateway, as Synapse does. Return True if it counts as sent."""
    device = {"app_id": "orders", "pushkey": pushkey, "pushkey_ts": 12345678, "data": {}, "tweaks": {}}
    notification = {"event_id": event, "room_id": "!1:vendor.example", "prio": "high", "devices": [device]}
    answer = await client.post(url, json={"notification": notification})
    try:
        return answer.is_success and pushkey not in answer.json().get("rejected", [])
    except ValueError:
        return False


def error(status, code, **more):
    return httpx.Response(status, json={"errcode": code, "error": "…"} | more)
