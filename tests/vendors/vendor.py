"""What the simulated vendors share: a log of entries, who may read it, how an answer travels, what was asked.

Each vendor answers by the letter of its protocol, and speaks of it in its head. Entries are numbered from 1 in
the order of their publication, and some share a second.
"""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from datetime import UTC, datetime

import anyio
import httpx

from push_to_poll_client.testing._virtual_time import Bell

SECRET = "s3cr3t-c4n4ry"
BEGAN = 1_700_000_000
"""When the first entry was published, in seconds since the epoch."""


class Vendor:
    """A server in memory, for one event loop.

    Args:
        count: Entries that are there.
        page_size: Entries on a page where the client does not say, and at most.
        latency: Seconds between the freezing of an answer and its arrival.

    Attributes:
        requests: What was asked, oldest first.
        entries: What was published, oldest first.
        script: Answers for the next requests, in place of the right ones; `None` is the right one.
    """

    origin = "https://api.vendor.example"
    path = "/events"
    authorization: str | None = f"Bearer {SECRET}"

    def __init__(self, count=0, *, page_size=2, latency=0.0):
        self.page_size = page_size
        self.latency = latency
        self.requests = []
        self.entries = []
        self.script = deque()
        self.published = Bell()
        self.asked = Bell()
        self.publish(count)

    @property
    def url(self):
        """Where the feed begins."""
        return f"{self.origin}{self.path}"

    @property
    def headers(self):
        """What a client has to send."""
        return {} if self.authorization is None else {"authorization": self.authorization}

    def client(self):
        """One that reaches this vendor and nobody else."""
        return httpx.AsyncClient(transport=Wire(self.handle))

    def publish(self, count=1):
        """Let entries appear."""
        for _ in range(count):
            self.entries.append(self.entry(len(self.entries) + 1))
        self.published.ring()

    def entry(self, number):
        return {"id": name(number), "created": when(number)}

    async def handle(self, request):
        """Answer. What is published during the latency is not in it."""
        self.requests.append(request)
        request.extensions["arrived"] = len(self.entries)
        self.asked.ring()
        response = await self._frozen(request)
        await anyio.sleep(self.latency)
        return response

    async def _frozen(self, request):
        if (ordered := self.script.popleft() if self.script else None) is not None:
            return ordered
        if (refused := self.refusal(request)) is not None:
            return refused
        if seconds := self.hold(request):
            with anyio.move_on_after(seconds):
                while not self.has_news(request):
                    await self.published.wait()
        return self.answer(request)

    def refusal(self, request):
        """What a client without credentials gets; `None`: it has them."""
        known = self.authorization is None or request.headers.get("authorization") == self.authorization
        return None if known else self.unauthorized()

    def unauthorized(self):
        return httpx.Response(401, json={"error": "unauthorized"}, headers={"www-authenticate": "Bearer"})

    def hold(self, request):
        """Seconds for which an answer without news is held."""
        return 0.0

    def has_news(self, request):
        return True

    def answer(self, request):
        raise NotImplementedError


class Wire(httpx.AsyncBaseTransport):
    """Answers travel in pieces, as from a socket: httpx's own mock hands them over whole."""

    def __init__(self, handle):
        self.handle = handle

    async def handle_async_request(self, request):
        await request.aread()
        response = await self.handle(request)
        if response.is_stream_consumed:
            headers = [(k, v) for k, v in response.headers.raw if k.lower() != b"content-encoding"]
            response = httpx.Response(response.status_code, headers=headers, stream=Pieces(response.content))
        return response


class Pieces(httpx.AsyncByteStream):
    def __init__(self, content, *, size=1024):
        self.content = content
        self.size = size

    async def __aiter__(self):
        for start in range(0, len(self.content), self.size):
            yield self.content[start : start + self.size]


def name(number):
    """One that says nothing of the order."""
    return hashlib.sha256(b"%d" % number).hexdigest()[:12]


def when(number):
    """Seconds since the epoch."""
    return BEGAN + number // 2


def iso(number):
    return datetime.fromtimestamp(when(number), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def token(**what):
    """An opaque one, which nobody can make up."""
    text = json.dumps(what).encode()
    return urlsafe_b64encode(hashlib.sha256(text).digest()[:6] + text).decode().rstrip("=")


def read_token(text):
    """What a token says; `None`: it is none of ours."""
    try:
        read = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        what = json.loads(read[6:])
    except ValueError:
        return None
    return what if token(**what) == text else None


def number_of(text, *, default=None, least=0, most=None):
    """The number that a parameter is; `None`: it is none, or out of its range."""
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        return None
    number = int(text)
    return number if least <= number <= (number if most is None else most) else None
