"""A network and a server with one fault at a time, between a feed and its server in memory.

A fault is an async function of one exchange. It may ask the server for the right response. httpx gets the response
that it returns, or the error that it raises. `FAULTS` has all of them, named by the fault. In virtual time.
"""

import gzip
import zlib
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import anyio
import httpx

MIB = 1024 * 1024
BOMB = 16 * MIB
"""Unpacked size of a bomb in bytes; packed it has a thousandth."""

PIECE = 16 * 1024
"""Bytes in a read from the network."""

LATENCY = 0.05
"""Seconds until a response."""

MOST = 3000
"""Maximum number of requests. A feed that sends more is in a loop and gets no response."""

ELSEWHERE = "https://elsewhere.example"
"""An origin that must not receive a secret. It responds like the server, as a mirror does."""

MAINTENANCE = "/maintenance"
"""A maintenance page, which exists only during the fault."""

LONG_AGO = "Sun, 06 Nov 1994 08:49:37 GMT"


class Asked(NamedTuple):
    """A request and its time."""

    at: float
    origin: str
    text: str


class Exchange:
    """One request that meets a fault.

    Args:
        request: The request, with its body read.
        transport: The transport that carries it.

    Attributes:
        number: Number of earlier requests under this fault.
    """

    def __init__(self, request, transport, number):
        self.request = request
        self.number = number
        self.transport = transport

    async def answer(self):
        """The right response: status, headers, body."""
        return await self.transport.right(self.request)

    @property
    def before(self):
        """The earlier right responses, oldest first."""
        return self.transport.answers

    @property
    def server(self):
        return self.transport.server

    @property
    def is_conditional(self):
        return "if-none-match" in self.request.headers or "if-modified-since" in self.request.headers


class Right(NamedTuple):
    """A right response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    content: bytes

    @property
    def is_page(self):
        return self.status == 200 and bool(self.content)


Fault = Callable[[Exchange], Awaitable[Any]]


class FaultyTransport(httpx.AsyncBaseTransport):
    """A transport to a server in memory.

    Args:
        server: Has `origin`, and `handle`, which responds to a request.

    Attributes:
        fault: Fault that each request meets; None for no fault.
        spares: Number of right responses before the fault, and again after each faulty one; None if the fault
            stays once it has begun.
        asked: The requests, oldest first.
        answers: The server's right responses to requests that met no fault, or whose fault asked the server.
        largest: Size in bytes of the largest body, counted as far as it was read.
        met: Number of requests that met the fault.
        harmed: Number of requests that got another response than the right one.
        overrun: True if more than `MOST` requests were sent.
    """

    def __init__(self, server):
        self.server = server
        self.fault = None
        self.spares = 0
        self.every = False
        self.asked = []
        self.answers = []
        self.largest = 0
        self.met = 0
        self.harmed = 0
        self.overrun = False
        self._spared = 0

    def break_with(self, fault, *, spares=0, every=False):
        """Start the fault at the next request, after so many, or after each so many (`every`)."""
        self.fault, self.spares, self.every = fault, spares, every
        self._spared = 0

    def mend(self):
        self.fault = None

    @property
    def elsewhere(self):
        """Requests to other origins than the server's."""
        return [asked for asked in self.asked if asked.origin != origin_of(self.server.origin)]

    async def handle_async_request(self, request):
        await request.aread()
        self.asked.append(Asked(anyio.current_time(), origin_of(str(request.url)), sent(request)))
        if len(self.asked) > MOST:
            self.overrun = True
            await anyio.sleep_forever()
        await anyio.sleep(LATENCY)
        fault = self._next_fault() if self.asked[-1].origin == origin_of(self.server.origin) else None
        if fault is None:
            return self._response(await self.right(request))
        exchange = Exchange(request, self, self.met)
        self.met += 1
        self.harmed += 1
        answer = await fault(exchange)
        if not isinstance(answer, Right):
            return answer
        self.harmed -= any(answer is right for right in self.answers[-1:])
        return self._response(answer)

    async def right(self, request):
        if self.asked[-1].origin != origin_of(self.server.origin):
            request = self._as_mirrored(request)
        response = await self._handled(request)
        await response.aread()
        kept = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-length"]
        answer = Right(response.status_code, kept, response.content)
        self.answers.append(answer)
        return answer

    async def _handled(self, request):
        if request.url.path == MAINTENANCE:
            return httpx.Response(404)
        try:
            return await self.server.handle(request)
        except ValueError:  # the fault looks for a body, and this response has none
            return httpx.Response(400)

    def body(self, parts, *, error=None, pause=0.0):
        return Body(self, parts, error=error, pause=pause)

    def _next_fault(self):
        if self.fault is None or self._spared == self.spares:
            self._spared = 0 if self.every else self._spared
            return self.fault
        self._spared += 1
        return None

    def _response(self, answer):
        length = [(b"content-length", b"%d" % len(answer.content))] if answer.status not in {204, 304} else []
        headers = [*answer.headers, *length]
        return httpx.Response(answer.status, headers=headers, stream=self.body(pieces(answer.content)))

    def _as_mirrored(self, request):
        """Respond as a mirror, which has its own connection to the server."""
        url = self.server.origin + request.url.raw_path.decode()
        own = self.server.headers | {"ocs-apirequest": "true", "host": urlsplit(self.server.origin).netloc}
        headers = dict(request.headers) | own
        return httpx.Request(request.method, url, headers=headers, content=request.content)


class Body(httpx.AsyncByteStream):
    """A body with delays; `error` is raised at its end."""

    def __init__(self, transport, parts, *, error=None, pause=0.0):
        self._transport, self._parts = transport, parts
        self._error, self._pause = error, pause

    async def __aiter__(self):
        size = 0
        for part in self._parts:
            await anyio.sleep(self._pause)
            size += len(part)
            self._transport.largest = max(self._transport.largest, size)
            yield part
        if self._error is FOREVER:
            await anyio.sleep_forever()
        if self._error is not None:
            raise self._error


FOREVER = object()
"""Marks, instead of an error, a body that never ends and sends nothing."""


def origin_of(url):
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def sent(request):
    """Return a whole request as text."""
    head = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
    return f"{request.method} {request.url}\n{head}\n\n{request.content.decode('utf-8', 'replace')}"


def pieces(content):
    return (content[at : at + PIECE] for at in range(0, len(content), PIECE))


FAULTS: dict[str, Fault] = {}
"""The faults by name."""


def fault(name):
    def keep(function):
        assert name not in FAULTS
        FAULTS[name] = function
        return function

    return keep


# No response


def fails(name, error):
    @fault(name)
    async def failed(exchange):
        raise error


fails("no connection", httpx.ConnectError("All connection attempts failed"))
fails("connecting takes too long", httpx.ConnectTimeout(""))
fails("the pool is empty", httpx.PoolTimeout(""))
fails("reset before the answer", httpx.ReadError("[Errno 104] Connection reset by peer"))
fails("hangs up", httpx.RemoteProtocolError("Server disconnected without sending a response."))
fails("no HTTP", httpx.RemoteProtocolError("illegal status line: bytearray(b'SSH-2.0-OpenSSH_9.9')"))


@fault("no headers")
async def no_headers(exchange):
    await anyio.sleep_forever()


@fault("slow headers")
async def slow_headers(exchange):
    """Send headers slowly, but within the limit for a response."""
    await anyio.sleep(12)
    return await exchange.answer()


@fault("reset when all was asked")
async def done_and_reset(exchange):
    """The server handles the request, but the response is lost."""
    await exchange.answer()
    raise httpx.ReadError("[Errno 104] Connection reset by peer")


# Bodies that differ from their headers


def body(name, make):
    """Build a body from the right one: `make` gets the content and returns headers, parts and the end."""

    @fault(name)
    async def made(exchange):
        right = await exchange.answer()
        if not right.is_page:
            return right
        headers, parts, ending = make(right.content)
        stream = exchange.transport.body(parts, **ending)
        return httpx.Response(200, headers=[*right.headers, *headers], stream=stream)


def half(content):
    return content[: len(content) // 2]


def length(number):
    return [(b"content-length", b"%d" % number)]


CHUNKED = [(b"transfer-encoding", b"chunked")]
INCOMPLETE = "peer closed connection without sending complete message body"
IN_CHUNKS = {"error": httpx.RemoteProtocolError(f"{INCOMPLETE} (incomplete chunked read)")}
OF_A_LENGTH = {"error": httpx.RemoteProtocolError(f"{INCOMPLETE} (received 9 bytes, expected 99)")}

body("cut in the middle", lambda right: (length(len(right)), [half(right)], OF_A_LENGTH))
body("half a chunked body", lambda right: (CHUNKED, [half(right)], IN_CHUNKS))
body("cut without a word", lambda right: ([], [half(right)], {}))
body("a length that is too small", lambda right: (length(len(right) // 2), [half(right)], {}))
body("a length that is too large", lambda right: (length(len(right) + 1000), [right], OF_A_LENGTH))
body("a length of terabytes", lambda right: (length(10**15), [right], OF_A_LENGTH))
body("stalls", lambda right: (length(len(right)), [half(right)], {"error": FOREVER}))
body("stalls at once", lambda right: (length(len(right)), [], {"error": FOREVER}))
body("drips", lambda right: (CHUNKED, [b" "] * 1000, {"pause": 1.0}))
body("never ends", lambda right: (CHUNKED, forever(b" " * PIECE), {}))
body("never ends, after the right one", lambda right: (CHUNKED, forever(b" " * PIECE, right), {}))
body("empty chunks", lambda right: (CHUNKED, [b""] * 1000, {"pause": 1.0}))


def forever(part, first=b""):
    """Send data a little longer than a client should read, so that a client without a limit is found."""
    yield first
    for _ in range(500):
        yield part


# Encodings


@cache
def bomb(kind):
    return packed(bytes(BOMB), kind)


def packed(content, kind):
    wbits = {"gzip": 31, "deflate": 15, "raw deflate": -15}[kind]
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(content) + packer.flush()


def encoded(name, encoding, make):
    def of(right):
        content = make(right)
        return [*length(len(content)), (b"content-encoding", encoding)], pieces(content), {}

    body(name, of)


encoded("packed", b"gzip", gzip.compress)
encoded("packed by deflate", b"deflate", lambda right: packed(right, "deflate"))
encoded("packed by raw deflate", b"deflate", lambda right: packed(right, "raw deflate"))
encoded("packed twice", b"gzip, gzip", lambda right: gzip.compress(gzip.compress(right)))
encoded("brotli", b"br", lambda right: b"\x0b\x02\x80" + right)
encoded("an unknown encoding", b"x-secret", lambda right: right)
encoded("no gzip", b"gzip", lambda right: right)
encoded("no deflate", b"deflate", lambda right: b"\x78\x9c" + right)
encoded("truncated gzip", b"gzip", lambda right: half(gzip.compress(right)))
encoded("gzip with a wrong sum", b"gzip", lambda right: gzip.compress(right)[:-8] + bytes(8))
encoded("gzip with more behind it", b"gzip", lambda right: gzip.compress(right) * 2)
encoded("gzip bomb", b"gzip", lambda right: bomb("gzip"))
encoded("deflate bomb", b"deflate", lambda right: bomb("deflate"))
encoded("bomb in a bomb", b"gzip", lambda right: gzip.compress(bomb("gzip")))


@fault("gzip that does not say so")
async def unlabelled(exchange):
    right = await exchange.answer()
    return right._replace(content=gzip.compress(right.content)) if right.is_page else right


# Bodies without a page


def content(name, make, kind=None):
    """Return a fault with other content; `kind` is another content type."""

    @fault(name)
    async def made(exchange):
        right = await exchange.answer()
        if not right.is_page:
            return right
        headers = right.headers if kind is None else typed(right.headers, kind)
        return Right(200, headers, make(right.content) if callable(make) else make)


def typed(headers, kind):
    return [header for header in headers if header[0].lower() != b"content-type"] + [(b"content-type", kind)]


LOGIN = b"<!DOCTYPE html><html><title>Please log in</title><form action='/login'></form></html>"

content("a login page", LOGIN, b"text/html; charset=utf-8")
content("a login page that calls itself JSON", LOGIN, b"application/json")
content("the wrong type", lambda right: right, b"image/png")
content("an invalid type", lambda right: right, b";;;\xff\xfe" * 10)
content("nothing", b"")
content("spaces", b" \r\n\t " * 100)
content("JSON null", b"null")
content("JSON true", b"true")
content("an empty object", b"{}")
content("a number that is huge", b"9" * 10_000)
content("a number that is infinite", b"1e999")
content("deeply nested lists", b"[" * 3_000 + b"]" * 3_000)
content("deeply nested objects", b'{"a":' * 3_000 + b"1" + b"}" * 3_000)
content("deep and never closed", b"[" * 5_000)
content("NUL bytes", bytes(10_000))
content("garbage", bytes(range(256)) * 16)
content("UTF-16", lambda right: b"\xff\xfe" + right.decode().encode("utf-16-le"))
content("invalid UTF-8", lambda right: right + b"\xff\xfe")
content("a BOM", lambda right: b"\xef\xbb\xbf" + right)
content("two pages in one", lambda right: right + right)


# Statuses


def answers(name, status, headers=(), content=b""):
    @fault(name)
    async def answered(exchange):
        return Right(status, [(key.encode(), value.encode()) for key, value in headers], content)


def retry_after(value):
    return [("retry-after", value)]


for status in (206, 401, 403, 404, 410, 418, 429, 500, 502, 503, 599):
    answers(f"status {status}", status)
answers("503 with an endless page", 503, content=b"x" * 2 * MIB)
answers("429 for two minutes", 429, retry_after("120"))
answers("503 until a time that has passed", 503, retry_after(LONG_AGO))
answers("503 for ages", 503, retry_after("9" * 400))
answers("503 until the year 9999", 503, retry_after("Fri, 31 Dec 9999 23:59:59 GMT"))
answers("503 for no time", 503, retry_after("soon; ask again, \x7f-1"))
answers("503 for less than none", 503, retry_after("-5"))
answers("403 that means a limit", 403, [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "600")])
answers("200 with an error in it", 200, [("content-type", "application/json")], b'{"error": "internal"}')
answers("204", 204)


@fault("304 to an unconditional request")
async def unasked_304(exchange):
    return await exchange.answer() if exchange.is_conditional else Right(304, [], b"")


@fault("304 to a conditional request")
async def lying_304(exchange):
    """A broken cache responds with 304 for ever."""
    return Right(304, [], b"") if exchange.is_conditional else await exchange.answer()


@fault("401 to each second one")
async def sometimes_401(exchange):
    return Right(401, [(b"www-authenticate", b"Bearer")], b"") if exchange.number % 2 else await exchange.answer()


@fault("one ETag for everything")
async def one_etag(exchange):
    """The ETag stays the same when the content changes."""
    if exchange.is_conditional:
        return Right(304, [(b"etag", b'"1"')], b"")
    right = await exchange.answer()
    return right._replace(headers=[*right.headers, (b"etag", b'"1"')])


# Redirects


def redirects(name, status, to):
    @fault(name)
    async def redirected(exchange):
        there = to(exchange) if callable(to) else to
        return Right(status, [(b"location", there)], b"")


def there(exchange):
    return (ELSEWHERE + exchange.request.url.raw_path.decode()).encode()


for status in (301, 302, 303, 307, 308):
    redirects(f"{status} to another origin", status, there)
redirects("redirects to itself", 302, lambda exchange: exchange.request.url.raw_path)
redirects("redirects for good to itself", 308, lambda exchange: exchange.request.url.raw_path)
redirects(
    "redirects to itself by plain HTTP",
    301,
    lambda exchange: str(exchange.request.url.copy_with(scheme="http")).encode(),
)
redirects(
    "redirects to another port", 307, lambda exchange: str(exchange.request.url.copy_with(port=8443)).encode()
)
redirects("redirects to a user", 302, b"https://me:you@elsewhere.example/")
redirects("redirects to no URL", 302, b"https://[")
redirects("redirects to no host", 302, b"https:///feed")
redirects("redirects to no web", 302, b"javascript:alert(1)")
redirects("redirects to bytes", 302, b"https://\xff\xfe\x00/")
redirects("redirects to a novel", 302, b"/" + b"x" * 70_000)
redirects("redirects nowhere", 302, b"")


@fault("moves for good to a page for people")
async def moves_to_maintenance(exchange):
    if exchange.request.url.path == MAINTENANCE:
        return Right(200, [(b"content-type", b"text/html")], b"<h1>We are back soon</h1>")
    return Right(308, [(b"location", MAINTENANCE.encode())], b"")


# Pages


@fault("an earlier page again")
async def earlier_page(exchange):
    """Always return the first page of all."""
    right = await exchange.answer()
    return first_page(exchange) or right


def first_page(exchange):
    return next((answer for answer in exchange.before if answer.is_page), None)


@fault("each page twice")
async def page_before(exchange):
    """Every second response is the page before."""
    if exchange.number % 2 and exchange.before and exchange.before[-1].is_page:
        return exchange.before[-1]
    return await exchange.answer()


@fault("pages in a circle")
async def circle(exchange):
    """Repeat the earlier pages for ever."""
    if exchange.number == 0:
        exchange.transport.circle = [answer for answer in exchange.before if answer.is_page][-3:]
    pages = exchange.transport.circle
    return pages[exchange.number % len(pages)] if pages else await exchange.answer()


@fault("endless new pages")
async def endless(exchange):
    """The feed grows faster than the client reads, until the server's disk is full."""
    if len(exchange.server.entries) < 100:
        exchange.server.publish(2)
        await anyio.sleep(1)
    return await exchange.answer()


@fault("leads elsewhere")
async def leads_elsewhere(exchange):
    """A proxy writes its own name into every link."""
    right = await exchange.answer()
    home, there = exchange.server.origin.encode(), ELSEWHERE.encode()
    headers = [(name, value.replace(home, there)) for name, value in right.headers]
    return Right(right.status, headers, right.content.replace(home, there))


# Headers


def header(name, *fields):
    """Return a fault that adds headers to the right response."""

    @fault(name)
    async def added(exchange):
        right = await exchange.answer()
        more = [(key.encode(), value if isinstance(value, bytes) else value.encode()) for key, value in fields]
        return right._replace(headers=[*more, *right.headers])


header("asks for a day of quiet", ("retry-after", "86400"))
header("asks for ages of quiet", ("retry-after", "9" * 400))
header(
    "asks for nonsense",
    ("retry-after", "²"),
    ("backoff", "nan"),
    ("x-poll-interval", "-1"),
    ("ratelimit", '"a";r=0;t='),
)
header("may be kept for ever", ("cache-control", "max-age=99999999999999999999"))
header("a long etag", ("etag", '"' + "x" * 70_000 + '"'))
header("an invalid etag", ("etag", b'"\xff"'))
header("invalid links", ("link", '<https://[>; rel="next"'))
header("links without an end", ("link", "<a>, " * 5_000 + "<b>"))
header("cookies", *[("set-cookie", f"a{number}=b; Max-Age=99999999") for number in range(200)])
