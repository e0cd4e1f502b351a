"""Plaid: POST /transactions/sync. Each page has three lists and a cursor, but a chain is all or nothing.

A change between two pages of a chain is 400 with `TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION`: the client starts
the chain again at the cursor of its first page. `next_cursor` is empty while no transactions are ready.
"""

import json

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, name, read_token, token


class Plaid(Vendor):
    origin = "https://production.plaid.example"
    path = "/transactions/sync"
    authorization = None
    body = {"client_id": "client", "secret": SECRET, "access_token": f"access-{SECRET}"}  # noqa: RUF012
    """Fields that every request must have."""
    ready = True
    mutate_next = 0
    """Number of the next requests within a chain that fail because of a change."""

    def entry(self, number):
        amounts = {"amount": number + 0.5, "iso_currency_code": "USD", "date": iso(number)[:10]}
        return "added", {"transaction_id": name(number), "account_id": "a", "pending": False, **amounts}

    def modify(self, place):
        self.entries.append(("modified", self.entries[place][1] | {"amount": float(len(self.entries))}))

    def remove(self, place):
        """Remove a transaction."""
        gone = self.entries[place][1]
        self.entries.append(("removed", {name: gone[name] for name in ("transaction_id", "account_id")}))

    def refusal(self, request):
        asked = read(request)
        if not isinstance(asked, dict):
            return error("INVALID_REQUEST", "INVALID_BODY")
        if any(asked.get(name) != self.body[name] for name in ("client_id", "secret")):
            return error("INVALID_INPUT", "INVALID_API_KEYS")
        if asked.get("access_token") != self.body["access_token"]:
            return error("INVALID_INPUT", "INVALID_ACCESS_TOKEN")
        return None

    def throttled(self):
        return error("RATE_LIMIT_EXCEEDED", "TRANSACTIONS_SYNC_LIMIT", status=429)

    def answer(self, request):
        asked = read(request)
        count = asked.get("count", 100)
        if request.method != "POST" or not isinstance(count, int) or not 1 <= count <= 500:
            return error("INVALID_REQUEST", "INVALID_FIELD")
        given = asked.get("cursor") or token(at=0, of=None)
        cursor = read_token(given)
        if cursor is None:
            return error("INVALID_INPUT", "INVALID_CURSOR")
        if not self.ready:
            return self._page([], "", has_more=False)
        if cursor["of"] is not None and (self._mutates() or cursor["of"] != len(self.entries)):
            return error("TRANSACTIONS_ERROR", "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION")
        end = min(cursor["at"] + min(count, self.page_size), len(self.entries))
        more = end < len(self.entries)
        cursor = token(at=end, of=len(self.entries) if more else None)
        return self._page(self.entries[read_token(given)["at"] : end], cursor, has_more=more)

    def _mutates(self):
        self.mutate_next -= 1
        return self.mutate_next >= 0

    def _page(self, changes, cursor, *, has_more):
        body = {kind: [what for of, what in changes if of == kind] for kind in ("added", "modified", "removed")}
        status = "HISTORICAL_UPDATE_COMPLETE" if self.ready else "NOT_READY"
        body |= {"next_cursor": cursor, "has_more": has_more, "transactions_update_status": status}
        return httpx.Response(200, json=body | {"accounts": [], "request_id": f"r{len(self.requests)}"})


def read(request):
    try:
        return json.loads(request.content)
    except ValueError:
        return None


def error(kind, code, *, status=400):
    body = {"error_type": kind, "error_code": code, "error_message": "…", "display_message": None}
    return httpx.Response(status, json=body)
