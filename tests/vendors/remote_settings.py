"""Firefox Remote Settings: a changeset since a timestamp, whole and newest first.

`_expected` is required and only bypasses caches; 204 if it is smaller than `_since`. A `_since` older than 21 days
is 307 to the same URL without `_since`: everything again. `Backoff` comes with success.
"""

import httpx

from tests.vendors.vendor import Vendor, name, number_of, when


class RemoteSettings(Vendor):
    origin = "https://firefox.settings.example"
    path = "/v1/buckets/main/collections/orders/changeset"
    authorization = None  # records are public
    oldest = 0
    """The smallest `_since` that has not expired, in milliseconds."""
    backoff = None
    """Seconds that each response asks to wait; None if it does not."""

    def entry(self, number):
        return {"id": f"record-{name(number)}", "last_modified": 1000 * when(number) + number, "schema": number}

    def change(self, place):
        """Change a record."""
        self.entries.append(self.entry(len(self.entries) + 1) | {"id": self.entries[place]["id"]})

    def delete(self, place):
        """Delete a record."""
        number = len(self.entries) + 1
        gone = {"id": self.entries[place]["id"], "deleted": True}
        self.entries.append(gone | {"last_modified": self.entry(number)["last_modified"]})

    @property
    def timestamp(self):
        """The timestamp that a push carries."""
        return self.entries[-1]["last_modified"] if self.entries else 0

    def answer(self, request):
        asked = request.url.params
        if asked.get("_expected", "").startswith('"'):
            unquoted = asked.set("_expected", asked["_expected"].strip('"'))
            return httpx.Response(307, headers={"location": str(request.url.copy_with(params=unquoted))})
        since, expected = number_of(asked.get("_since", '"0"').strip('"')), number_of(asked.get("_expected"))
        if since is None or expected is None:
            return httpx.Response(400, json={"code": 400, "errno": 107, "error": "Invalid parameters"})
        headers = {} if self.backoff is None else {"backoff": str(self.backoff)}
        if "_since" in asked and 0 < expected < since:
            return httpx.Response(204, headers=headers)
        if "_since" in asked and since < self.oldest:
            there = request.url.copy_with(params=asked.remove("_since"))
            return httpx.Response(307, headers=headers | {"location": str(there)})
        body = {"metadata": {"id": "orders"}, "timestamp": self.timestamp}
        return httpx.Response(200, json=body | {"changes": self._changes(asked, since)}, headers=headers)

    def _changes(self, asked, since):
        """Return each record's newest state; deleted ones only to clients that knew them."""
        newest = {record["id"]: record for record in self.entries}
        seen = [record for record in newest.values() if record["last_modified"] > since]
        if "_since" not in asked:
            seen = [record for record in seen if "deleted" not in record]
        return sorted(seen, key=lambda record: -record["last_modified"])
