"""Google's channels: the client chooses the id, channels are not renewed, a stop takes two ids.

`POST .../watch` with a used id is 400 `channelIdNotUnique`. `expiration` is a text, in milliseconds.
`channels/stop` takes the channel's id and the `resourceId`, which belongs to the resource. A message does not have
a body: its headers show its kind and the client's token. A `sync` message may come first.
"""

import json
from collections import deque

import httpx

from push_to_poll_client import _event_loop
from tests.support.asgi_calls import asked, scope_of
from tests.vendors.vendor import SECRET, Wire

LIFETIME = 604_800
RESOURCE = "o3hgv1538sdjfh"


class GooglePush:
    """Google, with the channels that it notifies.

    Attributes:
        app: An ASGI application.
        channels: Token and end, by channel id.
        requests: The last path segment of each request.
        script: Responses instead of the right ones; "lost" handles the request and loses the response.
    """

    def __init__(self):
        self.app = None
        self.channels = {}
        self.used = set()
        self.requests = []
        self.script = deque()
        self.synced = []
        self.authorization = f"Bearer {SECRET}"

    def client(self):
        return httpx.AsyncClient(transport=Wire(self.handle), headers={"authorization": self.authorization})

    async def handle(self, request):
        what = request.url.path.rpartition("/")[2]
        self.requests.append(what)
        ordered = self.script.popleft() if self.script else None
        if request.headers.get("authorization") != self.authorization:
            return httpx.Response(401)
        body = json.loads(request.content)
        answer = await self._watch(body) if what == "watch" else self._stop(body)
        if ordered == "lost":
            raise httpx.ReadError("connection reset")
        return answer

    async def _watch(self, body):
        name = body["id"]
        if name in self.used:
            error = {"errors": [{"reason": "channelIdNotUnique"}], "code": 400}
            return httpx.Response(400, json={"error": error})
        self.used.add(name)
        self.channels[name] = body["token"], _event_loop.wall_clock() + LIFETIME
        self.synced.append(await self._tell(name, "sync"))  # before the response
        ends = f"{int(self.channels[name][1] * 1000)}"
        answer = {"kind": "api#channel", "id": name, "resourceId": RESOURCE, "expiration": ends}
        return httpx.Response(200, json=answer)

    def _stop(self, body):
        self.sweep()
        if body["resourceId"] != RESOURCE or self.channels.pop(body["id"], None) is None:
            return httpx.Response(404)
        return httpx.Response(204)

    def sweep(self):
        now = _event_loop.wall_clock()
        self.channels = {name: one for name, one in self.channels.items() if one[1] > now}

    async def _tell(self, name, state, *, token=None):
        headers = {
            "X-Goog-Channel-ID": name,
            "X-Goog-Channel-Token": token or self.channels[name][0],
            "X-Goog-Resource-ID": RESOURCE,
            "X-Goog-Resource-State": state,
            "Content-Length": "0",
        }
        return (await asked(self.app, scope_of("POST", "/", headers=headers), b"")).status

    async def change(self, *, token=None):
        """Change something, and notify all channels."""
        self.sweep()
        return [await self._tell(name, "exists", token=token) for name in list(self.channels)]
