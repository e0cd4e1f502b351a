"""Microsoft Graph's change notifications: validated at creation, renewed by PATCH, with lifecycle events.

`POST /subscriptions` sends a validation token to the address before it responds, and to the lifecycle address too.
Each must return it URL-decoded within 10 s. Notifications are batches, with the `clientState` in each item.
Lifecycle events report a subscription that ends soon (`reauthorizationRequired`) or was dropped
(`subscriptionRemoved`), or lost notifications (`missed`).
"""

import json
from collections import deque
from datetime import UTC, datetime
from urllib.parse import quote

import anyio
import httpx

from push_to_poll_client import _event_loop
from tests.support.asgi_calls import asked, scope_of
from tests.vendors.vendor import SECRET, Wire

ORIGIN = "https://graph.microsoft.com/v1.0/subscriptions"
HOOK = "https://me.example/hooks/graph"
TOKEN = "Validation: Testing client application reachability for subscription Request-Id: a+b/c=&%20"
LONGEST = 7 * 86_400
PAGE = 2


class GraphPush:
    """Graph, with the addresses that it notifies.

    Attributes:
        app: An ASGI application, at `HOOK`.
        subscriptions: By Graph's ids.
        requests: Method and path of each request.
        script: Responses instead of the right ones; "lost" handles the request and loses the response.
    """

    def __init__(self):
        self.app = None
        self.subscriptions = {}
        self.requests = []
        self.script = deque()
        self.made = 0
        self.notify_first = False
        self.authorization = f"Bearer {SECRET}"

    def client(self):
        return httpx.AsyncClient(transport=Wire(self.handle), headers={"authorization": self.authorization})

    async def handle(self, request):
        self.requests.append(request.method)
        ordered = self.script.popleft() if self.script else None
        if isinstance(ordered, httpx.Response):
            return ordered
        answer = await self._answer(request)
        if ordered == "lost":
            raise httpx.ReadError("connection reset")
        return answer

    async def _answer(self, request):
        self.sweep()
        if request.headers.get("authorization") != self.authorization:
            return httpx.Response(401)
        if request.method == "GET":
            return self._list(int(request.url.params.get("$skiptoken", "0")))
        if request.method == "POST":
            return await self._create(json.loads(request.content))
        name = request.url.path.rpartition("/")[2]
        if name not in self.subscriptions:
            return httpx.Response(404, json={"error": {"code": "ResourceNotFound"}})
        if request.method == "DELETE":
            del self.subscriptions[name]
            return httpx.Response(204)
        self.subscriptions[name]["expirationDateTime"] = self._granted(json.loads(request.content))
        return httpx.Response(200, json=self.subscriptions[name])

    def _list(self, skip):
        rest = list(self.subscriptions.values())[skip:]
        more = {"@odata.nextLink": f"{ORIGIN}?$skiptoken={skip + PAGE}"} if len(rest) > PAGE else {}
        return httpx.Response(200, json={"value": rest[:PAGE], **more})

    async def _create(self, body):
        for address in ("notificationUrl", "lifecycleNotificationUrl"):
            if not await self._is_valid(body[address]):
                return httpx.Response(400, json={"error": {"code": "ValidationError"}})
        self.made += 1
        name = f"graph-{self.made}"
        body |= {"id": name, "expirationDateTime": self._granted(body)}
        self.subscriptions[name] = body
        if self.notify_first:
            await self.notify()
        return httpx.Response(201, json=body)

    async def _is_valid(self, address):
        path = address.removeprefix(HOOK)
        with anyio.move_on_after(10):
            answer = await asked(
                self.app, scope_of("POST", path, query=f"validationToken={quote(TOKEN)}".encode())
            )
            plain = answer.headers["content-type"].startswith("text/plain")
            return answer.status == 200 and answer.body == TOKEN.encode() and plain
        return False

    def _granted(self, body):
        wanted = datetime.fromisoformat(body["expirationDateTime"]).timestamp()
        ends = min(wanted, _event_loop.wall_clock() + LONGEST)
        return datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"  # seven digits

    def sweep(self):
        now = _event_loop.wall_clock()
        self.subscriptions = {
            name: one
            for name, one in self.subscriptions.items()
            if datetime.fromisoformat(one["expirationDateTime"]).timestamp() > now
        }

    async def notify(self, lifecycle=None, *, state=None):
        """Send all pending notifications, in one batch to each address."""
        answers = []
        for one in list(self.subscriptions.values()):
            what = {"lifecycleEvent": lifecycle} if lifecycle else {"changeType": "created"}
            item = {"subscriptionId": one["id"], "clientState": state or one["clientState"], **what}
            body = json.dumps({"value": [item, item]}).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body))}
            path = one["notificationUrl"].removeprefix(HOOK)
            answers.append((await asked(self.app, scope_of("POST", path, headers=headers), body)).status)
        return answers

    async def remove(self):
        """Drop all subscriptions, and send lifecycle events for them."""
        await self.notify("subscriptionRemoved")
        self.subscriptions.clear()
