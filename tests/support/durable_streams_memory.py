"""The read side of a Durable Streams server, in memory, by its PROTOCOL.md (§ are its paragraphs).

For tests that need time, and for cases that the real server does not have: retention, a stalled response, and
offsets that can only be sorted.
"""

from contextlib import contextmanager

import anyio
import anyio.lowlevel
import httpx

HOLD = 30.0
"""Seconds for which a long poll is held."""


class MemoryStream:
    """One stream.

    Args:
        content_type: Content type of the stream. In a JSON stream each piece is a message.
        page_size: Maximum number of pieces in a response.
        token: Token that a reader must send; None if the stream is public.

    Attributes:
        status: Status of every response, such as 404 for a missing stream; None for the normal status.
    """

    def __init__(self, content_type="application/json", *, page_size=2, token=None):
        self.content_type = content_type
        self.page_size = page_size
        self.pieces = []
        self.requests = []
        self.status = None
        self._token = token
        self._closed = False
        self._kept_from = 0
        self._fails = self._hangs = False
        self._changed = anyio.Event()

    @contextmanager
    def _change(self):
        yield
        self._changed.set()
        self._changed = anyio.Event()

    def append(self, *pieces):
        with self._change():
            self.pieces += pieces

    def close(self):
        """Close the stream: nothing is appended any more (§4.1)."""
        with self._change():
            self._closed = True

    def drop(self, count):
        """Drop this many pieces from the beginning, as retention does (§4)."""
        self._kept_from = count

    def fail_next(self):
        self._fails = True

    def hang_next(self):
        self._hangs = True

    def client(self, **settings):
        """Return a client that reaches only this stream."""
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer), **settings)

    async def _answer(self, request):
        await anyio.lowlevel.checkpoint()
        self.requests.append(request)
        status = self._refusal(request)
        if status:
            return httpx.Response(status)
        if request.method == "HEAD":
            return httpx.Response(200, headers=self._headers(len(self.pieces)))
        start = max(self._start(request.url.params["offset"]), self._kept_from)
        if "live" in request.url.params:
            with anyio.move_on_after(HOLD):
                while start >= len(self.pieces) and not self._closed:
                    await self._changed.wait()
        return self._page(start, request)

    def _refusal(self, request):
        fails, self._fails = self._fails, False
        if self._token and request.headers.get("authorization") != f"Bearer {self._token}":
            return 401
        if fails or self.status or request.method == "HEAD":
            return 500 if fails else self.status
        offset = request.url.params["offset"]
        start = self._start(offset)
        if start is None:
            return 400
        return 410 if start < self._kept_from and offset != "-1" else None  # §5.6

    def _start(self, offset):
        if offset == "now":
            return len(self.pieces)
        if offset == "-1":
            return 0
        return int(offset[1:]) if offset[:1] == "o" and offset[1:].isdecimal() and len(offset) < 10 else None

    def _headers(self, end):
        headers = {"Content-Type": self.content_type, "Stream-Next-Offset": f"o{end:06}"}
        if end >= len(self.pieces):
            headers |= {"Stream-Up-To-Date": "true"} | ({"Stream-Closed": "true"} if self._closed else {})
        return headers

    def _page(self, start, request):
        some = [] if request.url.params["offset"] == "now" else self.pieces[start : start + self.page_size]
        end = min(start, len(self.pieces)) + len(some)
        headers = self._headers(end)
        if "live" in request.url.params:
            headers["Stream-Cursor"] = str(len(self.requests))
            if not some:
                return httpx.Response(204, headers=headers)
        else:
            headers["ETag"] = f'"{start}:{end}{":c" if self._closed else ""}"'  # §10.1
            if request.headers.get("if-none-match") == headers["ETag"]:
                return httpx.Response(304, headers={"ETag": headers["ETag"]})
        body = b"[" + b",".join(some) + b"]" if self.content_type == "application/json" else b"".join(some)
        if self._hangs:
            self._hangs = False
            return httpx.Response(200, headers=headers, stream=Stalled(body[:1]))
        return httpx.Response(200, headers=headers, content=body)


class Stalled(httpx.AsyncByteStream):
    """A body that stops in the middle."""

    def __init__(self, beginning):
        self._beginning = beginning

    async def __aiter__(self):
        yield self._beginning
        await anyio.sleep_forever()
