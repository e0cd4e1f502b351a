"""Base of the simulated vendors: a log of entries, credentials, network latency, recorded requests.

Each vendor follows its protocol exactly; its module docstring describes it. Entries are numbered from 1 in the
order of publication, and some share a second.
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
"""Publication time of the first entry, in seconds since the epoch."""


class Vendor:
    """A server in memory, for one event loop.

    Args:
        count: Number of existing entries.
        page_size: Default and maximum number of entries on a page.
        latency: Seconds from the building of a response to its arrival.

    Attributes:
        requests: The requests, oldest first.
        entries: The published entries, oldest first.
        script: Responses for the next requests, instead of the right ones; None stands for the right one.
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
        """The first URL of the feed."""
        return f"{self.origin}{self.path}"

    @property
    def headers(self):
        """Headers that a client must send."""
        return {} if self.authorization is None else {"authorization": self.authorization}

    def client(self):
        """A client that reaches only this vendor."""
        return httpx.AsyncClient(transport=Wire(self.handle))

    def publish(self, count=1):
        """Publish entries."""
        for _ in range(count):
            self.entries.append(self.entry(len(self.entries) + 1))
        self.published.ring()

    def entry(self, number):
        return {"id": name(number), "created": when(number)}

    async def handle(self, request):
        """Respond. Entries published during the latency are not in the response."""
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
        """Return the refusal of a client without credentials, or None."""
        known = self.authorization is None or request.headers.get("authorization") == self.authorization
        return None if known else self.unauthorized()

    def unauthorized(self):
        return httpx.Response(401, json={"error": "unauthorized"}, headers={"www-authenticate": "Bearer"})

    def hold(self, request):
        """Return the seconds for which a response without news is held."""
        return 0.0

    def has_news(self, request):
        return True

    def answer(self, request):
        raise NotImplementedError


class Wire(httpx.AsyncBaseTransport):
    """Send bodies in pieces, as from a socket; httpx's own mock sends them whole."""

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
    """Return the name of an entry, which does not show the order."""
    return hashlib.sha256(b"%d" % number).hexdigest()[:12]


def when(number):
    """Return the time of an entry, in seconds since the epoch."""
    return BEGAN + number // 2


def iso(number):
    return datetime.fromtimestamp(when(number), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def token(**what):
    """Return an opaque token that a client cannot make up."""
    text = json.dumps(what).encode()
    return urlsafe_b64encode(hashlib.sha256(text).digest()[:6] + text).decode().rstrip("=")


def read_token(text):
    """Return the content of a token, or None if this server did not make it."""
    try:
        read = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        what = json.loads(read[6:])
    except ValueError:
        return None
    return what if token(**what) == text else None


def number_of(text, *, default=None, least=0, most=None):
    """Return the number in a parameter, or None if it is invalid or out of range."""
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        return None
    number = int(text)
    return number if least <= number <= (number if most is None else most) else None
