"""Hostile event streams cost latency and polls within the rate, and nothing else."""

import zlib

import pytest

from tests.hostile.attackers import ChannelServer, says, trickles
from tests.hostile.measured import EVIL_BYTES, MIB, Case, attacks, check_channel, matrix, shown
from tests.support.forms import form

pytestmark = pytest.mark.slow

SMALL = 16 * MIB
"""Memory for any stream: the parser keeps a line and the data of one event, 64 KiB each."""

OPEN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = OPEN + b"Transfer-Encoding: chunked\r\n\r\n"


def stream(*parts, times=1, ends=True, headers=b"\r\n"):
    return says(*parts, times=times, ends=ends, opens=lambda head: OPEN + headers)


def answer(*parts, times=1):
    return says(*parts, times=times)


def case(name, attack, error, *, limit=SMALL, **options):
    return Case(name, attack, error, limit, "listener", {"kind": "SSEListener", **options})


def packed():
    """Make the attack only when it is needed: it takes half a second."""
    return zlib.compress(bytes(100 * MIB))


TOO_LARGE = "has more than 65536 bytes"
ENDED = "the server ended the stream"
PUSHED = "None"
"""Error of a stream that sent an event and ended, which is not a failure."""
SILENT = {"max_silence": 0.3}
HASTE = {"open_timeout": 0.3}

CASES = [
    case("hangs up", answer(), "RemoteProtocolError"),
    case("junk", answer(EVIL_BYTES * 1000), "RemoteProtocolError"),
    case("header of 1 MB", answer(OPEN + b"X: " + b"x" * MIB), "RemoteProtocolError"),
    case("100,000 headers", answer(OPEN + b"X: x\r\n" * 100_000), "RemoteProtocolError"),
    case("evil phrase", answer(b"HTTP/1.1 500 " + EVIL_BYTES + b"\r\n\r\n"), "HTTP 500|RemoteProtocolError"),
    case("evil type", answer(b"HTTP/1.1 200 x\r\nContent-Type: text/" + EVIL_BYTES + b"\r\n\r\n"), "Content-Type"),
    case(
        "long type", answer(b"HTTP/1.1 200 x\r\nContent-Type: text/" + b"x" * 90_000 + b"\r\n\r\n"), "Content-Type"
    ),
    case("no type", answer(b"HTTP/1.1 200 x\r\n\r\n" + b"x" * MIB), "Content-Type"),
    case("500 of 100 MB", answer(b"HTTP/1.1 500 x\r\n\r\n" + b"x" * MIB, times=100), "HTTP 500"),
    case(
        "evil Location",
        answer(b"HTTP/1.1 302 x\r\nLocation: " + EVIL_BYTES + b"\r\n\r\n"),
        "redirects are not followed|redirected to an invalid URL",
    ),
    case("evil Retry-After", answer(b"HTTP/1.1 503 x\r\nRetry-After: " + EVIL_BYTES + b"\r\n\r\n"), "HTTP 503"),
    case("endless 100", answer(b"HTTP/1.1 100 x\r\n\r\n" * 1000, times=10_000), "no response within", **HASTE),
    case("stalled", trickles(b"", b""), "no response within", **HASTE),
    case("trickling head", trickles(OPEN + b"X: ", b"x"), "no response within", **HASTE),
    case("stalled stream", trickles(OPEN + b"\r\n", b""), "0.3 s", **SILENT),
    # Packed
    case(
        "bomb",
        stream(packed, headers=b"Content-Encoding: deflate\r\n\r\n"),
        "Content-Encoding",
    ),
    case(
        "evil encoding",
        stream(b"data\n\n", headers=b"Content-Encoding: " + EVIL_BYTES + b"\r\n\r\n"),
        "Content-Encoding",
    ),
    # Lines
    case("endless line", stream(b"x" * MIB, times=100), TOO_LARGE),
    case("endless data", stream(b"data: " + b"x" * MIB, times=100), TOO_LARGE),
    case("endless data lines", stream(b"data\n" * 10_000, times=1000), TOO_LARGE),
    case("endless comment", stream(b":" + b"x" * MIB, times=100), TOO_LARGE),
    case("100 MB of comments", stream(b":" + b"x" * 1000 + b"\n", times=100_000), ENDED),
    case("comments of a byte", stream(b":\n" * 100_000, times=10), ENDED),
    case("blank lines", stream(b"\n" * 100_000, times=10), ENDED),
    case("endless ids", stream(b"id: " + b"x" * 60_000 + b"\n", times=1000), ENDED),
    case("huge id", stream(b"id: " + b"x" * MIB + b"\ndata\n\n"), TOO_LARGE),
    case("huge type", stream(b"event: " + b"x" * MIB + b"\ndata\n\n"), TOO_LARGE),
    case("evil id", stream(b"id: " + EVIL_BYTES + b"\ndata\n\n"), PUSHED, last_event_id=True),
    case("long id", stream(b"id: " + b"x" * 60_000 + b"\ndata\n\n"), PUSHED, last_event_id=True),
    case("NULs", stream(bytes(60_000) + b"\ndata\x00: x\n\nid: \x00\ndata: \x00\n\n"), PUSHED),
    case("no UTF-8", stream(b"data: \xff\xfe\xc3\n\n" * 1000), PUSHED),
    case("UTF-16", stream("data: x\n\n".encode("utf-16")), ENDED),
    # Numbers
    case(
        "retry", stream(b"retry: -5\nretry: \xd9\xa3\nretry: 1e9\nretry: 0x10\nretry: \nretry\ndata\n\n"), PUSHED
    ),
    case("retry of 0", stream(b"retry: 0\ndata\n\n"), PUSHED),
    # Framing
    case("no chunk", answer(CHUNKED + b"zz\x1b[31m\r\n"), "RemoteProtocolError"),
    case("huge chunk", answer(CHUNKED + b"F" * 17 + b"\r\nx"), "RemoteProtocolError"),
    case("one byte chunks", answer(CHUNKED + b"1\r\nx\r\n" * 100_000), TOO_LARGE),
    case("cut chunks", answer(CHUNKED + b"5\r\ndata\n\r\n"), "RemoteProtocolError"),
    case("cut body", answer(OPEN + b"Content-Length: 99\r\n\r\ndata\n"), "RemoteProtocolError"),
    # Floods
    case("100,000 events", stream(b"data\n\n" * form(2_000, 10_000), times=form(1, 10)), PUSHED),
    case("large events", stream(b"data: " + b"x" * 60_000 + b"\n\n", times=1000), PUSHED),
]

SHORT = {
    "hangs up",
    "junk",
    "header of 1 MB",
    "evil phrase",
    "evil type",
    "500 of 100 MB",
    "evil Location",
    "evil Retry-After",
    "stalled",
    "stalled stream",
    "evil encoding",
    "endless line",
    "endless data lines",
    "huge id",
    "evil id",
    "NULs",
    "no UTF-8",
    "retry",
    "no chunk",
    "cut body",
    "100,000 events",
}
"""One case for each kind of response and for each limit."""


@pytest.fixture(scope="module")
def server(well_feed):
    with ChannelServer(attacks(CASES), well_feed, lambda head: OPEN + b"\r\n") as server:
        yield server


@matrix(CASES, SHORT)
def test_a_hostile_event_stream_costs_only_latency_and_polls_within_the_rate(
    server, victims, tmp_path, backend, case
):
    name = f"http-{case.path}-{backend}"
    feed, push = server.feed.url(f"well/{name}"), server.url("http", f"{case.path}/{name}")
    report = victims.attacked(
        "push", backend, url=feed, push=push, state=str(tmp_path / "state.db"), **case.options
    )
    shown(case, report)
    check_channel(report, case)
