"""JMAP (RFC 8620 §5.2): changes since a state are ids, which a back-reference of the same request fetches.

A `/changes` response covers the time between two states. With `maxChanges` it may end before the newest state, so
its end depends on the changes in between. An object that was created and then changed is listed as created; one
that was created and then destroyed is not listed. `/get` returns only the current state of a mail.
"""

import json

import httpx

from tests.vendors.vendor import Vendor, iso, name


class JMAP(Vendor):
    origin = "https://jmap.vendor.example"
    path = "/jmap/api"
    oldest = 0
    """States before this one are forgotten."""

    def entry(self, number):
        mail = {"id": name(number), "receivedAt": iso(number), "subject": f"mail {number}", "keywords": {}}
        return "created", mail

    def change(self, place, kind="updated", *, keywords=None):
        """Change a mail: by default its keywords, or destroy it with `destroyed`."""
        mail = self._mails()[self.entries[place][1]["id"]]
        seen = {} if mail["keywords"] else {"$seen": True}
        self.entries.append((kind, {**mail, "keywords": seen if keywords is None else keywords}))
        self.published.ring()

    def _mails(self):
        mails = {}
        for kind, mail in self.entries:
            mails[mail["id"]] = mail
            if kind == "destroyed":
                del mails[mail["id"]]
        return mails

    def answer(self, request):
        said = []
        for method, args, label in json.loads(request.content)["methodCalls"]:
            kind, result = getattr(self, method.replace("/", "_").lower())(args, said)
            said.append([kind, result, label])
        return httpx.Response(200, json={"methodResponses": said, "sessionState": "1"})

    def email_changes(self, args, _said):
        since = int(args["sinceState"]) if args["sinceState"].isdecimal() else -1
        if not self.oldest <= since <= len(self.entries):
            return "error", {"type": "cannotCalculateChanges"}
        limit = min(args.get("maxChanges") or self.page_size, self.page_size)
        end = since
        while end < len(self.entries) and len(self._between(since, end + 1)) <= limit:
            end += 1
        ids = {kind: [] for kind in ("created", "updated", "destroyed")}
        for one, kind in self._between(since, end).items():
            ids[kind].append(one)
        more = end < len(self.entries)
        return "Email/changes", {"oldState": str(since), "newState": str(end), "hasMoreChanges": more, **ids}

    def _between(self, since, end):
        """Return the changes of each mail from one state to another."""
        first, last = {}, {}
        for kind, mail in self.entries[since:end]:
            first.setdefault(mail["id"], kind)
            last[mail["id"]] = kind
        return {
            one: "destroyed" if last[one] == "destroyed" else first[one]
            for one in first
            if (first[one], last[one]) != ("created", "destroyed")
        }

    def email_get(self, args, said):
        if "#ids" in args:
            kind, result, _ = said[int(args["#ids"]["resultOf"])]
            if kind == "error":
                return "error", {"type": "invalidResultReference"}
            args = {"ids": result[args["#ids"]["path"].strip("/")]}
        mails = self._mails()
        found = [mails[one] for one in args["ids"] if one in mails]
        missing = [one for one in args["ids"] if one not in mails]
        return "Email/get", {"state": str(len(self.entries)), "list": found, "notFound": missing}
