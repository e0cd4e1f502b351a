"""Dropbox: list_folder, then list_folder/continue with a new cursor on every page; POST and JSON.

An invalid cursor is 409 with `reset`. Two concurrent requests are 429. The longpoll is on another host, which must
not get the credentials.
"""

import json

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, name, read_token, token

LONGEST = 480


class Dropbox(Vendor):
    origin = "https://api.dropbox.example"
    path = "/2/files/list_folder"
    authorization = f"Bearer sl.{SECRET}"
    notify = "https://notify.dropbox.example/2/files/list_folder/longpoll"
    backoff = None
    """Seconds that each longpoll response asks to wait before the next one; None if it does not."""

    def __init__(self, *args, **kwargs):
        self.era = 0
        self.busy = 0
        super().__init__(*args, **kwargs)

    def entry(self, number):
        path = f"/file {number}.txt"
        rest = {
            "id": f"id:{name(number)}",
            "rev": f"{number:016x}",
            "size": number,
            "server_modified": iso(number),
        }
        return {".tag": "file", "name": path[1:], "path_lower": path, "path_display": path, **rest}

    def delete(self, place):
        """Delete a file."""
        gone = self.entries[place]
        self.entries.append({".tag": "deleted", **{key: gone[key] for key in ("name", "path_lower")}})

    def expire(self):
        """Forget all cursors."""
        self.era += 1

    def refusal(self, request):
        return None if str(request.url) == self.notify else super().refusal(request)

    def unauthorized(self):
        return error(401, "expired_access_token")

    def throttled(self, seconds):
        return error(429, "too_many_requests", headers={"retry-after": str(seconds)})

    async def handle(self, request):
        if self.busy and str(request.url) != self.notify:
            self.requests.append(request)
            return self.throttled(1)
        self.busy += 1
        try:
            return await super().handle(request)
        finally:
            self.busy -= 1

    def hold(self, request):
        return min(read(request).get("timeout", 30), LONGEST) if str(request.url) == self.notify else 0.0

    def has_news(self, request):
        at = self._at(read(request).get("cursor"))
        return str(request.url) != self.notify or at is None or at < len(self.entries)

    def answer(self, request):
        asked = read(request)
        if request.method != "POST" or (asked is None):
            return httpx.Response(400, text='Error in call to API function "files/list_folder"')
        match request.url.path.removeprefix(self.path):
            case "":
                return self._page(0, min(asked.get("limit", 2000), self.page_size))
            case "/get_latest_cursor":
                return httpx.Response(200, json={"cursor": self._cursor(len(self.entries), self.page_size)})
            case "/continue" if self._at(asked.get("cursor")) is not None:
                what = read_token(asked["cursor"])
                return self._page(what["at"], what["limit"])
            case "/longpoll" if (at := self._at(asked.get("cursor"))) is not None:
                backoff = {} if self.backoff is None else {"backoff": self.backoff}
                return httpx.Response(200, json={"changes": at < len(self.entries), **backoff})
            case _:
                return error(409, "reset")

    def _page(self, at, limit):
        end = min(at + limit, len(self.entries))
        body = {"entries": self.entries[at:end], "cursor": self._cursor(end, limit)}
        return httpx.Response(200, json=body | {"has_more": end < len(self.entries)})

    def _cursor(self, at, limit):
        return token(at=at, limit=limit, era=self.era)

    def _at(self, cursor):
        what = read_token(cursor or "")
        return what["at"] if what is not None and what["era"] == self.era else None


def read(request):
    try:
        said = json.loads(request.content)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def error(status, tag, **more):
    return httpx.Response(status, json={"error_summary": f"{tag}/..", "error": {".tag": tag}}, **more)
