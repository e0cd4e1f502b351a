"""CouchDB: GET /db/_changes. Sequences are opaque and may be null; only a document's newest change is listed.

`feed=longpoll` holds the response for `timeout` milliseconds, or for ever with `heartbeat`, which has priority. A
shard that fails over repeats earlier changes. The normal feed has an `ETag`. `pending` is `null` if a cluster
could not count, and CouchDB 1 does not send it.

A sequence belongs to one database. After the database is deleted and made again, an old sequence reads everything.
After it is restored from a backup, a sequence from the future gets an empty response with the same sequence.
"""

import hashlib
import json
from base64 import b64encode

import httpx

from tests.vendors.vendor import SECRET, Vendor, name, number_of, read_token, token


class CouchDB(Vendor):
    origin = "https://couch.vendor.example:6984"
    path = "/orders/_changes"
    authorization = "Basic " + b64encode(f"reader:{SECRET}".encode()).decode()
    failovers = 0
    database = 1
    pending = "counted"
    """Or "null", or "missing"."""
    repeat_next = 0

    def entry(self, number):
        return {"id": f"order-{number}", "changes": [{"rev": f"1-{name(number)}"}]}

    def change(self, place, **more):
        """Change a document, or delete it (`deleted=True`). Only its newest change stays."""
        number = len(self.entries) + 1
        rev = f"2-{name(number)}"
        self.entries.append({"id": self.entries[place]["id"], "changes": [{"rev": rev}], **more})
        self.published.ring()

    def fail_over(self, count):
        """Let the next response repeat so many changes before its cursor; sequences look different afterwards."""
        self.failovers += 1
        self.repeat_next = count

    def make_again(self):
        """Delete the database, and create one of the same name."""
        self.entries = []
        self.database += 1

    def restore(self, count):
        """Restore a backup with so many changes."""
        del self.entries[count:]

    def unauthorized(self):
        return error(401, "unauthorized", "You are not authorized to access this db.")

    def hold(self, request):
        asked = request.url.params
        if asked.get("feed") != "longpoll" or self._since(request) is None:
            return 0.0
        timeout = number_of(asked.get("timeout"), default=60_000) or 0
        return float("inf") if "heartbeat" in asked else timeout / 1000

    def has_news(self, request):
        return bool(self._rows(self._since(request)))

    def answer(self, request):
        asked = request.url.params
        since, limit = self._since(request), number_of(asked.get("limit"), default=10**9)
        if since is None or limit is None:
            return error(400, "bad_request", "Malformed sequence supplied in 'since' parameter.")
        since, self.repeat_next = max(since - self.repeat_next, 0), 0
        rows, interval = self._rows(since), number_of(asked.get("seq_interval"), default=1, least=1)
        shown = rows[: max(limit, 1)]
        results = [
            {"seq": self._seq(seq) if place % interval == 0 else None, **change}
            for place, (seq, change) in enumerate(shown, 1)
        ]
        last = shown[-1][0] if shown else max(since, len(self.entries))
        pending = {"pending": None if self.pending == "null" else len(rows) - len(shown)}
        body = {"results": results, "last_seq": self._seq(last)} | (pending if self.pending != "missing" else {})
        etag = f'"{hashlib.sha256(json.dumps([len(self.entries), str(asked)]).encode()).hexdigest()[:20]}"'
        if asked.get("feed", "normal") != "normal":
            return httpx.Response(200, json=body)
        if request.headers.get("if-none-match") == etag:
            return httpx.Response(304, headers={"etag": etag})
        return httpx.Response(200, json=body, headers={"etag": etag})

    def _since(self, request):
        """Return the number behind a sequence, or None if it is invalid."""
        match request.url.params.get("since", "0"):
            case "0":
                return 0
            case "now":
                return request.extensions["arrived"]
            case given:
                read = read_token(given.partition("-")[2])
                return None if read is None else read["at"] if read["of"] == self.database else 0

    def _rows(self, since):
        newest = {change["id"]: seq for seq, change in enumerate(self.entries, 1)}
        rows = enumerate(self.entries[since:], since + 1)
        return [(seq, change) for seq, change in rows if newest[change["id"]] == seq]

    def _seq(self, number):
        return f"{number}-{token(at=number, by=self.failovers, of=self.database)}"


def error(status, kind, reason):
    return httpx.Response(status, json={"error": kind, "reason": reason})
