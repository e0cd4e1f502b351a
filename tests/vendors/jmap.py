"""JMAP (RFC 8620 §5.2): changes since a state are ids, which a back-reference of the same request fetches."""

import json

import httpx

from tests.vendors.vendor import Vendor, iso, name


class JMAP(Vendor):
    origin = "https://jmap.vendor.example"
    path = "/jmap/api"
    oldest = 0
    """States before this one are forgotten."""

    def entry(self, number):
        return "created", {"id": name(number), "receivedAt": iso(number), "subject": f"mail {number}"}

    def change(self, place, kind="updated"):
        """Let a mail change, or be `destroyed`."""
        self.entries.append((kind, {"id": self.entries[place][1]["id"]}))

    def answer(self, request):
        said = []
        for method, args, label in json.loads(request.content)["methodCalls"]:
            kind, result = getattr(self, method.replace("/", "_").lower())(args, said)
            said.append([kind, result, label])
        return httpx.Response(200, json={"methodResponses": said, "sessionState": "1"})

    def email_changes(self, args, _said):
        since = int(args["sinceState"])
        if since < self.oldest:
            return "error", {"type": "cannotCalculateChanges"}
        end = min(since + self.page_size, len(self.entries))
        ids = {kind: [] for kind in ("created", "updated", "destroyed")}
        for kind, mail in self.entries[since:end]:
            ids[kind].append(mail["id"])
        more = end < len(self.entries)
        return "Email/changes", {"oldState": str(since), "newState": str(end), "hasMoreChanges": more, **ids}

    def email_get(self, args, said):
        if "#ids" in args:
            kind, result, _ = said[int(args["#ids"]["resultOf"])]
            if kind == "error":
                return "error", {"type": "invalidResultReference"}
            args = {"ids": result[args["#ids"]["path"].strip("/")]}
        mails = {mail["id"]: mail for _, mail in self.entries if "subject" in mail}
        found = [mails[one] for one in args["ids"]]
        return "Email/get", {"state": str(len(self.entries)), "list": found, "notFound": []}
