"""Hostile feeds: one clear error, bounded memory, an unmoved cursor, and recovery after any response.

The consumer runs in its own process; see `victim.py`. Memory is measured, not estimated.
"""

import gzip
import json
import random
import time

import pytest

from tests.hostile.attackers import HEAD, Server
from tests.hostile.measured import EVIL, EVIL_BYTES, MIB, Case, attacks, check_feed, matrix, shown
from tests.support.forms import form

pytestmark = pytest.mark.slow

SMALL = 16 * MIB
"""Memory for a small response: the import of a codec, a traceback, and chance in the allocator."""

BODY = 64 * MIB
"""Memory for a response above the limit of 16 MiB: the buffer, its copy while it grows, and one read."""

PAGE = 64 * MIB
"""Memory for a response of 16 MiB that is read to its end: twice the body, and the objects made of its events."""

ESCAPED = json.dumps(EVIL).encode()
BIG = 16 * MIB

SIZE = form(BIG // 4, BIG)
"""Bytes of a page with one kind of element. Decoded at once, a quarter of `{}` or `0` would exceed the limit."""


def answer(body, *headers, status=b"200 OK"):
    """Return a whole response."""

    def attack(send):
        made = body() if callable(body) else body
        head = b"".join(header + b"\r\n" for header in (b"Content-Type: application/json", *headers))
        send(b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n" % (status, head, len(made)))
        send(made)

    return attack


def raw(*parts):
    """Send bytes, then hang up."""

    def attack(send):
        for part in parts:
            send(part)

    return attack


def endless(start, part, times=1_000_000):
    """Send the same again and again, until the client hangs up."""

    def attack(send):
        send(start)
        for _ in range(times):
            send(part)

    return attack


def trickle(start, part):
    def attack(send):
        send(start)
        for _ in range(1_000):
            time.sleep(0.02)  # it is the server that is slow
            send(part)

    return attack


def packed(data, size, level=9):
    """Return this many equal bytes, compressed with gzip."""
    return lambda: gzip.compress(data * size, level)


def of_elements(element, size=BIG):
    return lambda: b"[" + b",".join([element] * ((size - 2) // (len(element) + 1))) + b"]"


def of_events(size=BIG, count=None):
    """Return as many valid events as fit."""

    def make():
        events, length, number = [], 2, 0
        while count is None or number < count:
            event = b'{"id":"%x"}' % number
            length += len(event) + 1
            if length > size:
                break
            events.append(event)
            number += 1
        return b"[" + b",".join(events) + b"]"

    return make


def event(**attributes):
    return json.dumps([{"id": "4", "source": "s", **attributes}]).encode()


def case(name, attack, error, *, limit=SMALL, kind="FeedError", **options):
    return Case(name, attack, error, limit, kind, options)


JUNK = random.Random(0).randbytes(100_000)  # noqa: S311
HASTE = {"answer_within": 0.3}
ROOM = {"max_body": 128 * MIB}
UNREADABLE = {"kind": "ProcessError"}
DEEP = b'{"data":' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}"
CLOSE = b"Connection: close\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

CASES = [
    # Not HTTP
    case("hangs up", raw(), "RemoteProtocolError"),
    case("junk", raw(JUNK), "RemoteProtocolError"),
    case("no HTTP", raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "RemoteProtocolError"),
    case(
        "evil status line", raw(b"HTTP/1.1 200 " + EVIL_BYTES + b"\r\n\r\n"), "RemoteProtocolError|not send a JSON"
    ),
    case("evil header", raw(HEAD + EVIL_BYTES + b": x\r\n\r\n"), "RemoteProtocolError"),
    case("version", raw(b"HTTP/9.9 200 OK\r\n\r\n"), "not send a JSON array"),
    case("negative length", raw(HEAD + b"Content-Length: -5\r\n\r\n[]"), "RemoteProtocolError"),
    case("two lengths", raw(HEAD + b"Content-Length: 5\r\nContent-Length: 2\r\n\r\n[]"), "RemoteProtocolError"),
    case(
        "length of a novel", raw(HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n[]"), "RemoteProtocolError"
    ),
    case("no chunk", raw(CHUNKED + b"zz\x1b[31m\r\n[]\r\n"), "RemoteProtocolError"),
    case("huge chunk", raw(CHUNKED + b"F" * 17 + b"\r\n[]"), "RemoteProtocolError"),
    case("long chunk head", endless(CHUNKED, b"0" * 65536, 1000), "RemoteProtocolError"),
    case(
        "one byte chunks",
        endless(CHUNKED, b"1\r\n[\r\n" * 10_000),
        "answer within 0.3 sec|more than",
        **HASTE,
        limit=BODY,
    ),
    case(
        "endless 100", endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "response within 0.3 seconds", **HASTE
    ),
    case(
        "endless 103",
        endless(b"", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 100),
        "answer within 0.3 sec",
        **HASTE,
    ),
    # Heads
    case("header of 1 MB", raw(HEAD + b"X: " + b"x" * MIB + b"\r\n\r\n[]"), "RemoteProtocolError"),
    case(
        "100,000 headers",
        raw(HEAD + b"".join(b"X-%d: x\r\n" % n for n in range(100_000)) + b"\r\n[]"),
        "RemoteProtocolError",
    ),
    case("10,000 headers", answer(b"{}", *[b"a:b"] * 10_000), "not send a JSON array"),
    case("evil type", answer(b"[]", b"Content-Type: text/" + EVIL_BYTES), r"sent .*not application/cloudevents"),
    case(
        "long type", answer(b"[]", b"Content-Type: text/" + b"x" * 90_000), r"sent .*not application/cloudevents"
    ),
    case("evil encoding", answer(b"[]", b"Content-Encoding: " + EVIL_BYTES), "Content-Encoding"),
    case("long encoding", answer(b"[]", b"Content-Encoding: " + b"gzip," * 15_000), "Content-Encoding"),
    case(
        "cookies",
        answer(b"{}", *[b"Set-Cookie: a%d=b; Max-Age=9999999" % n for n in range(2_000)]),
        "a JSON array",
    ),
    # Asking for time
    *[
        case(f"Retry-After {number}", answer(b"", b"Retry-After: " + text, status=b"503 No"), "answered 503")
        for number, text in enumerate(
            [
                b"-1",
                b"nan",
                b"inf",
                b"1e3",
                b"\xd9\xa3",
                EVIL_BYTES,
                b"Mon, 99 Foo 2099",
                b"0x10",
                b"5, 6",
                b"A" * 60_000,
            ]
        )
    ],
    case("RateLimit", answer(b"", b"RateLimit: " + b'"a";r=0;t=;' * 6_000, status=b"429 No"), "answered 429"),
    # Statuses
    case("500 of 100 MB", endless(b"HTTP/1.1 500 No\r\n" + CLOSE, b"x" * MIB, 100), "answered 500"),
    case(
        "401 of 100 MB",
        endless(b"HTTP/1.1 401 No\r\n" + CLOSE, b"x" * MIB, 100),
        "answered 401",
        kind="FeedRefused",
    ),
    case("evil phrase", answer(b"", status=b"500 " + EVIL_BYTES), "answered 500|RemoteProtocolError"),
    case("status 999", answer(b"", status=b"999 x"), "answered 999|RemoteProtocolError"),
    # Redirects
    case("circle", answer(b"", b"Location: hop/x", status=b"302 x"), "redirects more than 5 times"),
    case(
        "elsewhere",
        answer(b"", b"Location: http://evil.example/" + EVIL_BYTES, status=b"302 x"),
        "redirects to another|could not be read",
    ),
    case(
        "evil host",
        answer(b"", b"Location: http://" + EVIL_BYTES + b"/", status=b"302 x"),
        "redirects to another|could not be read",
    ),
    case("no URL", answer(b"", b"Location: http://[", status=b"302 x"), "could not be read|another origin"),
    case(
        "long URL",
        answer(b"", b"Location: http://x/" + b"y" * 90_000, status=b"302 x"),
        "could not be read|another origin",
    ),
    case(
        "script",
        answer(b"", b"Location: javascript:alert(1)", status=b"302 x"),
        "redirects to another origin|could not be read",
    ),
    # Size
    case("100 MB announced", answer(lambda: b" " * 100 * MIB), "more than 16777216 bytes", limit=BODY),
    case("100 MB unannounced", endless(HEAD + CLOSE, b" " * MIB, 100), "more than 16777216 bytes", limit=BODY),
    case(
        "100 MB in chunks",
        endless(CHUNKED, b"100000\r\n" + b" " * MIB + b"\r\n", 100),
        "more than 16777",
        limit=BODY,
    ),
    case("16 MB of space", answer(lambda: b" " * BIG), "not send a JSON array", limit=BODY),
    case("16 MB of zeros", answer(lambda: bytes(BIG)), "not send a JSON array", limit=BODY),
    # Packed
    case(
        "bomb",
        answer(packed(bytes(MIB), form(20, 100)), b"Content-Encoding: gzip"),
        "more than 16777216 bytes",
        limit=BODY,
    ),
    case(
        "bomb in a bomb",
        answer(lambda: gzip.compress(packed(bytes(MIB), 100)()), b"Content-Encoding: gzip"),
        "not send a JSON array",
        limit=BODY,
    ),
    case(
        "twice packed",
        answer(lambda: gzip.compress(packed(b"[]", 1)()), b"Content-Encoding: gzip, gzip"),
        "Content-Encoding",
    ),
    case(
        "many members",
        answer(lambda: gzip.compress(b"{}") * 100_000, b"Content-Encoding: gzip"),
        "extra data after its end",
    ),
    case("cut gzip", answer(lambda: gzip.compress(JUNK)[:-9], b"Content-Encoding: gzip"), "cut off"),
    case(
        "gzip with a wrong sum",
        answer(lambda: gzip.compress(b"[]")[:-8] + bytes(8), b"Content-Encoding: gzip"),
        "no gzip",
    ),
    case("no gzip", answer(b"[]", b"Content-Encoding: gzip"), "not valid gzip"),
    case("gzip unlabelled", answer(lambda: gzip.compress(b"[]")), "not send a JSON array"),
    case("brotli", answer(b"[]", b"Content-Encoding: br"), "Content-Encoding"),
    # Not a page
    case("empty", answer(b""), "not send a JSON array"),
    case("evil body", answer(EVIL_BYTES * 1000), "not send a JSON array"),
    case("no UTF-8", answer(b"\xff\xfe" * 1000), "not send a JSON array"),
    case("UTF-16", answer(b"\xff\xfe" + "[]".encode("utf-16-le")), "not send a JSON array"),
    *[
        case(f"is {n}", answer(text), "a JSON array")
        for n, text in enumerate([b"{}", b'"x"', b"1", b"null", b"true"])
    ],
    case("cut page", answer(b'[{"id":"4"},'), "not send a JSON array"),
    case("deep", answer(b"[" * 100_000), "not send a JSON array"),
    case("16 MB deep", answer(lambda: b"[" * BIG), "not send a JSON array", limit=PAGE),
    case("deep and closed", answer(b"[" * 100_000 + b"]" * 100_000), "cannot be read", **UNREADABLE),
    # Events that cannot be read: G9, the message fails
    *[
        case(f"event {number}", answer(b"[" + text + b"]"), "cannot be read", **UNREADABLE)
        for number, text in enumerate(
            [
                *(
                    b"1",
                    b"null",
                    b'"x"',
                    b"[]",
                    b"{}",
                    b'{"id":4}',
                    b'{"id":null}',
                    b'{"id":""}',
                    b'{"id":"\xff"}',
                ),
                *(b'{"id":"4","source":[]}', b'{"id":"4","type":{}}', b'{"id":"\\ud800"}', b'{"id":"\\u0000"}'),
                b"{" + ESCAPED + b":}",
                b'{"id":"4",' + ESCAPED + b":" + b"[" * 2000 + b"]" * 2000 + b"}",
            ]
        )
    ],
    case("id of 1 MB", answer(event(id="x" * MIB)), "length <= 1024|more than", **UNREADABLE, limit=32 * MIB),
    case("evil id of 1 MB", answer(event(id=EVIL * MIB)), "more than 16777216", limit=BODY),
    case(
        "source of 1 MB",
        answer(event(source=EVIL * 30_000)),
        "length <= 1024|more than",
        **UNREADABLE,
        limit=32 * MIB,
    ),
    case(
        "deep data",
        answer(b'[{"id":"4","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}]"),
        "cannot be read",
        **UNREADABLE,
    ),
    case(
        "deep object",
        answer(b'[{"id":"4","data":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}]"),
        "cannot be read",
        **UNREADABLE,
    ),
    case("no base64", answer(event(data_base64=EVIL)), "cannot be read", **UNREADABLE),
    case(
        "evil handler error",
        answer(event(id=EVIL.replace("\x00", ""), data=EVIL * 1000)),
        "failed and stops",
        **UNREADABLE,
        fails=True,
    ),
    # Many events
    *[
        case(f"a page of {what}", answer(of_elements(text, SIZE)), "sent a page|not send a JSON array", limit=PAGE)
        for what, text in {
            "digits": b"0",
            "objects": b"{}",
            "arrays": b"[]",
            "strings": b'""',
            "empty ids": b'{"id":""}',
            "odd sources": b'{"id":"1","source":1}',
            "cut objects": b'{"id":"4"',
            "half pairs": b'"\\ud800"',
        }.items()
    ],
    case(
        "deep events",
        answer(of_elements(DEEP, SIZE // 2)),
        "cannot be read",
        **UNREADABLE,
        limit=PAGE,
    ),
    case("16 MB of events", answer(of_events()), "more than", limit=PAGE),
    case("two million objects", answer(of_elements(b"{}", 3 * 2_000_000)), "more than", limit=PAGE),
    case("two million events", answer(of_events(10**9, 2_000_000)), "more than", **ROOM, limit=256 * MIB),
    # Slow
    case("stalled", trickle(b"", b""), "response within 0.3 seconds", **HASTE),
    case("stalled head", trickle(HEAD, b""), "response within 0.3 seconds", **HASTE),
    case(
        "stalled body", trickle(HEAD + b"Content-Length: 9\r\n\r\n[", b""), "response within 0.3 seconds", **HASTE
    ),
    case("trickling head", trickle(HEAD + b"X: ", b"x"), "response within 0.3 seconds", **HASTE),
    case(
        "trickling body",
        trickle(HEAD + b"Content-Length: 9999\r\n\r\n", b"["),
        "response within 0.3 seconds",
        **HASTE,
    ),
    case("trickling chunks", trickle(CHUNKED, b"1\r\n[\r\n"), "response within 0.3 seconds", **HASTE),
    case(
        "trickling gzip",
        trickle(HEAD + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x00" + bytes(6), b"\x00\x00\x00\xff\xff"),
        "response within 0.3 seconds",
        **HASTE,
    ),
]

SHORT = {
    "hangs up",
    "junk",
    "evil status line",
    "evil header",
    "two lengths",
    "no chunk",
    "long chunk head",
    "endless 100",
    "header of 1 MB",
    "10,000 headers",
    "evil type",
    "long type",
    "evil encoding",
    "Retry-After 1",
    "Retry-After 5",
    "Retry-After 9",
    "RateLimit",
    "500 of 100 MB",
    "401 of 100 MB",
    "evil phrase",
    "circle",
    "elsewhere",
    "evil host",
    "no URL",
    "100 MB unannounced",
    "bomb",
    "many members",
    "cut gzip",
    "no gzip",
    "brotli",
    "empty",
    "evil body",
    "no UTF-8",
    "is 0",
    "deep",
    "event 1",
    "event 9",
    "event 13",
    "event 14",
    "id of 1 MB",
    "deep data",
    "no base64",
    "evil handler error",
    "a page of digits",
    "two million objects",
    "stalled",
    "stalled body",
    "trickling body",
    "trickling gzip",
}
"""One case for each kind of response and for each limit."""


@pytest.fixture(scope="module")
def server():
    with Server(attacks(CASES)) as server:
        yield server


@matrix(CASES, SHORT)
def test_a_hostile_answer_raises_a_clear_error_and_a_later_poll_recovers(server, victims, tmp_path, backend, case):
    url, state = server.url(f"{case.path}/{backend}"), str(tmp_path / "state.db")
    report = victims.attacked("feed", backend, url=url, state=state, **case.options)
    shown(case, report)
    check_feed(report, case)
