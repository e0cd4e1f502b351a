"""Google Drive: changes.list, always with a `pageToken`.

The token does not expire and may be saved from every page. Only the last page has `newStartPageToken`. A change
does not have an id.
"""

import httpx

from tests.vendors.calendar import error
from tests.vendors.vendor import Vendor, iso, name, number_of, read_token, token


class Drive(Vendor):
    origin = "https://www.googleapis.example"
    path = "/drive/v3/changes"

    def entry(self, number):
        file = {"kind": "drive#file", "id": name(number), "name": f"file {number}", "mimeType": "text/plain"}
        return self._change(number, {"removed": False, "fileId": file["id"], "file": file})

    def change(self, place):
        """Change a file."""
        changed = {key: self.entries[place][key] for key in ("removed", "fileId", "file")}
        self.entries.append(self._change(len(self.entries) + 1, changed))

    def remove(self, place):
        """Remove a file."""
        gone = {"removed": True, "fileId": self.entries[place]["fileId"]}
        self.entries.append(self._change(len(self.entries) + 1, gone))

    def unauthorized(self):
        return error(401, "authError")

    def answer(self, request):
        asked = request.url.params
        if request.url.path == f"{self.path}/startPageToken":
            return httpx.Response(200, json={"startPageToken": token(at=len(self.entries))})
        size = number_of(asked.get("pageSize"), default=100, least=1, most=1000)
        there = read_token(asked.get("pageToken", ""))
        if size is None or there is None:
            return error(400, "invalid" if "pageToken" in asked else "required")
        end = min(there["at"] + min(size, self.page_size), len(self.entries))
        link = "nextPageToken" if end < len(self.entries) else "newStartPageToken"
        body = {"kind": "drive#changeList", link: token(at=end), "changes": self.entries[there["at"] : end]}
        return httpx.Response(200, json=body)

    def _change(self, number, what):
        return {"kind": "drive#change", "changeType": "file", "type": "file", "time": iso(number), **what}

    @property
    def inception(self):
        """The page token before all changes. Only a test can start there."""
        return token(at=0)
