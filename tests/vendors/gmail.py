"""Gmail: history.list, requested with a `startHistoryId`.

The `historyId` to save is on the last page. Ids have gaps. A page without news does not have `history`. An expired
id is 404.
"""

import httpx

from tests.vendors.calendar import error
from tests.vendors.vendor import Vendor, name, number_of, read_token, token


class Gmail(Vendor):
    origin = "https://gmail.googleapis.example"
    path = "/gmail/v1/users/me/history"
    first = 5000
    """The mailbox's history id before all changes."""
    oldest = 0
    """The smallest `startHistoryId` that has not expired."""

    def entry(self, number):
        message = {"id": name(number), "threadId": name(number)}
        added = [{"message": message | {"labelIds": ["INBOX"]}}]
        return {"id": str(self.first + 7 * number), "messages": [message], "messagesAdded": added}

    @property
    def newest(self):
        """The id that a push and the profile show."""
        return self.entries[-1]["id"] if self.entries else str(self.first)

    def unauthorized(self):
        return error(401, "authError")

    def answer(self, request):
        asked = request.url.params
        if request.url.path == "/gmail/v1/users/me/profile":
            return httpx.Response(200, json={"emailAddress": "me@vendor.example", "historyId": self.newest})
        start = number_of(asked.get("startHistoryId"))
        most = number_of(asked.get("maxResults"), default=100, least=1, most=500)
        page = {"at": 0} if "pageToken" not in asked else read_token(asked["pageToken"])
        if start is None or most is None or page is None:
            return error(400, "invalidArgument")
        if start < self.oldest:
            return error(404, "notFound")
        since = [record for record in self.entries if int(record["id"]) > start]
        end = page["at"] + min(most, self.page_size)
        shown, body = since[page["at"] : end], {"historyId": self.newest}
        body |= {"history": shown} if shown else {}
        return httpx.Response(200, json=body | ({"nextPageToken": token(at=end)} if end < len(since) else {}))
