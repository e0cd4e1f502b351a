"""A topic and its hub by the W3C Recommendation, with the faults of real hubs.

The hub calls a webhook, an ASGI application, at one address. It checks requests as a real hub does, and answers
400 to an invalid one.
"""

import hashlib
import hmac
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import anyio
import httpx

from push_to_poll_client import _event_loop
from tests.support.asgi_calls import asked, scope_of
from tests.vendors.vendor import Wire

TOPIC = "https://blog.example/feed"
SELF = "https://blog.example/feed.atom"
HUB = "https://hub.example/"
CALLBACK = "https://me.example/hooks/blog"


class Hub:
    """The servers of a topic and of its hub.

    Args:
        tasks: A task group, for the work that the hub starts itself.

    Attributes:
        app: The webhook.
        verifies: Time of the verification: "after" the response, "first", "never", "late" by `delay` seconds,
            "twice".
        lease: Granted lease in seconds; None grants the requested lease.
        denies: A reason to deny.
        answers: Responses to the next requests, instead of 202.
        subscriptions: Subscriptions in force: mode, secret and end, by topic and callback.
        requests: All requests to the hub and the topic, as method and address.
        seen: Their headers.
        verified: Status of the webhook's response to each verification.
    """

    def __init__(self, tasks, app=None):
        self.app = app
        self.tasks = tasks
        self.verifies = "after"
        self.delay = 0.1
        self.lease = None
        self.denies = None
        self.asks = {}
        self.answers = []
        self.topic = None
        self.subscriptions = {}
        self.requests = []
        self.forms = []
        self.seen = []
        self.verified = []

    def client(self):
        return httpx.AsyncClient(transport=Wire(self.handle))

    async def handle(self, request):
        self.requests.append((request.method, str(request.url)))
        self.seen.append(request.headers)
        await anyio.sleep(0.01)
        if request.url.host == "blog.example":
            return self.topic or httpx.Response(200, headers=[("link", f'<{HUB}>; rel="hub", <{SELF}>; rel=self')])
        return await self._take(request)

    async def _take(self, request):
        if request.headers["content-type"] != "application/x-www-form-urlencoded":
            return httpx.Response(415)
        form = dict(parse_qsl(request.content.decode(), strict_parsing=True))
        self.forms.append(form)
        if self.answers and (ordered := self.answers.pop(0)) is not None:
            return ordered
        mode, topic, callback = form["hub.mode"], form["hub.topic"], form["hub.callback"]
        if mode not in {"subscribe", "unsubscribe"} or len(form.get("hub.secret", "").encode()) >= 200:
            return httpx.Response(400, text="what is that?")
        if self.verifies == "first":
            await self._verify(mode, topic, callback, form)
        elif self.denies is not None:
            self.tasks.start_soon(self._deny, callback, topic)
        elif self.verifies != "never":
            self.tasks.start_soon(self._later, mode, topic, callback, form)
        return httpx.Response(202)

    async def _later(self, *what):
        await anyio.sleep(self.delay)
        await self._verify(*what)
        if self.verifies == "twice":
            await self._verify(*what)

    async def _verify(self, mode, topic, callback, form):
        lease = self.lease or form.get("hub.lease_seconds")
        challenge = hashlib.sha256(f"{len(self.verified)}".encode()).hexdigest()
        fields = {"hub.mode": mode, "hub.topic": topic, "hub.challenge": challenge, "hub.lease_seconds": lease}
        began = _event_loop.wall_clock()
        answer = await self.call(callback, fields | self.asks)
        self.verified.append(answer.status)
        if answer.status != 200 or answer.body != challenge.encode():
            return
        if mode == "subscribe":
            until = began + float(lease)
            self.subscriptions[topic, callback] = (form.get("hub.secret"), until)
        else:
            self.subscriptions.pop((topic, callback), None)

    async def _deny(self, callback, topic):
        await anyio.sleep(self.delay)
        fields = {"hub.mode": "denied", "hub.topic": topic, "hub.reason": self.denies}
        self.verified.append((await self.call(callback, fields)).status)

    async def deny(self, reason):
        """End all subscriptions with a reason."""
        self.denies = reason
        for topic, callback in list(self.subscriptions):
            del self.subscriptions[topic, callback]
            await self._deny(callback, topic)
        self.denies = None

    async def call(self, callback, fields):
        """Call a callback; its own query stays in front."""
        query = urlencode({name: value for name, value in fields.items() if value is not None}, quote_via=quote)
        return await self._at(callback, "GET", more=query)

    async def _at(self, callback, method, *body, headers=(), more=""):
        parts = urlsplit(callback)
        assert callback.startswith("https://me.example/hooks/")
        query = "&".join(part for part in (parts.query, more) if part)
        path = parts.path.removeprefix("/hooks/blog")
        return await asked(self.app, scope_of(method, path, query=query.encode(), headers=headers), *body)

    async def push(self, body=b"<feed/>", *, method="sha1", callback=None, secret=None):
        """Distribute the topic's content to all subscriptions in force. Return the responses."""
        answers = []
        for (topic, to), (its_secret, until) in list(self.subscriptions.items()):
            if callback not in {None, to} or until <= _event_loop.wall_clock():
                continue
            headers = {"content-type": "application/atom+xml", "content-length": str(len(body))}
            if key := secret or its_secret:
                signature = hmac.new(key.encode(), body, method).hexdigest()
                headers["X-Hub-Signature"] = f"{method}={signature}"
            answers.append((await self._at(to, "POST", body, headers=headers)).status)
            if answers[-1] == 410:
                del self.subscriptions[topic, to]
        return answers
