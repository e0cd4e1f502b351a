"""Hostile websockets cost latency and polls within the rate, and nothing else."""

import struct

import pytest

from tests.hostile.attackers import ChannelServer, handshake, says, trickles
from tests.hostile.measured import EVIL_BYTES, MIB, Case, attacks, check_channel, matrix, shown
from tests.support.forms import form

pytestmark = pytest.mark.slow

SMALL = 16 * MIB


def frame(opcode, data=b"", *, fin=True, rsv=0, length=None):
    """Return a frame (RFC 6455 §5.2), with any stated length."""
    length = len(data) if length is None else length
    first = bytes([fin << 7 | rsv << 4 | opcode])
    if length < 126:
        return first + bytes([length]) + data
    if length < 1 << 16:
        return first + b"\x7e" + struct.pack("!H", length) + data
    return first + b"\x7f" + struct.pack("!Q", length) + data


def opened(*parts, headers=(), ends=False, **options):
    """Return an attack that follows a correct handshake."""
    return says(*parts, ends=ends, opens=lambda head: handshake(head, *headers), **options)


def case(name, attack, error, *, limit=SMALL, **options):
    return Case(name, attack, error, limit, "listener", options)


TEXT, BINARY, CONTINUED, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
OK = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
HASTE = {"open_timeout": 0.3}
ANY = "."

CASES = [
    case("hangs up", says(), "EOFError|connection closed|InvalidMessage"),
    case("junk", says(EVIL_BYTES * 1000), ANY),
    case("header of 1 MB", says(OK + b"X: " + b"x" * MIB), ANY),
    case("100,000 headers", says(OK + b"X: x\r\n" * 100_000), ANY),
    case("endless head", says(b"HTTP/1.1 101 " + b"x" * MIB, times=100), ANY),
    case("evil phrase", says(b"HTTP/1.1 500 " + EVIL_BYTES + b"\r\n\r\n"), ANY),
    case("evil header", says(OK + b"X: " + EVIL_BYTES + b"\r\n\r\n"), ANY),
    case("evil accept", says(OK + b"Sec-WebSocket-Accept: " + b"x" * 5000 + b"\r\n\r\n"), ANY),
    case("evil upgrade", says(b"HTTP/1.1 101 x\r\nUpgrade: \x9b31m\r\nConnection: x\r\n\r\n"), ANY),
    case("500 of 100 MB", says(b"HTTP/1.1 500 x\r\n\r\n" + b"x" * MIB, times=100), "HTTP 500|too large|Invalid"),
    case("announced 500", says(b"HTTP/1.1 500 x\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 16 * MIB), ANY),
    case(
        "evil Location", says(b"HTTP/1.1 302 x\r\nLocation: " + EVIL_BYTES + b"\r\nContent-Length: 0\r\n\r\n"), ANY
    ),
    case(
        "evil Retry-After",
        says(b"HTTP/1.1 503 x\r\nRetry-After: " + b"z" * 5000 + b"\r\nContent-Length: 0\r\n\r\n"),
        "HTTP 503",
    ),
    case(
        "two Retry-Afters",
        says(b"HTTP/1.1 503 x\r\nRetry-After: 1\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"),
        "HTTP 503",
    ),
    case("unasked protocol", opened(headers=[b"Sec-WebSocket-Protocol: " + EVIL_BYTES]), ANY),
    case("unasked extension", opened(headers=[b"Sec-WebSocket-Extensions: permessage-deflate"]), ANY),
    case("many extensions", opened(headers=[b"Sec-WebSocket-Extensions: " + b"a;" * 4000]), ANY),
    case("stalled handshake", trickles(b"", b""), "handshake|Timeout", **HASTE),
    case("trickling handshake", trickles(OK + b"X: ", b"x"), "handshake|Timeout", **HASTE),
    # Frames
    case("100 MB message", opened(frame(TEXT, b"x" * MIB, length=100 * MIB)), "1009"),
    case("2^63 bytes", opened(frame(TEXT, length=2**63 - 1)), "1009|1002"),
    case(
        "endless fragments",
        opened(frame(TEXT, fin=False), frame(CONTINUED, b"x" * 1000, fin=False) * 1000, times=10),
        "1009|1002",
    ),
    # Empty fragments never reach the limit of bytes: `websockets` 17.3 stored them without a limit, and 17.4 only
    # the frames of one read, on asyncio 131,072 in 256 KiB.
    case(
        "empty fragments",
        opened(frame(TEXT, fin=False) + frame(CONTINUED, fin=False) * 1_000_000),
        "1009.*too many fragments",
        limit=2 * SMALL,
    ),
    case("one byte fragments", opened(frame(TEXT, fin=False) + frame(CONTINUED, b"x", fin=False) * 100_000), ANY),
    case("no UTF-8", opened(frame(TEXT, b"\xff\xfe")), "1007"),
    case("compressed", opened(frame(TEXT, b"x" * 100, rsv=4)), "1002"),
    case("masked", opened(b"\x81\x81\x00\x00\x00\x00x"), "1002"),
    case("reserved opcode", opened(frame(3)), "1002"),
    case("long ping", opened(frame(PING, b"x" * 200)), "1002"),
    case("cut ping", opened(frame(PING, fin=False)), "1002"),
    case("no start", opened(frame(CONTINUED)), "1002"),
    case("junk frames", opened(EVIL_BYTES * 1000), "100"),
    case(
        "evil close",
        opened(frame(CLOSE, b"\x03\xe8" + b"\x1b[31m\r\nERROR all is lost\x00\xe2\x80\xae")),
        "closed the connection with",
    ),
    case("close of one byte", opened(frame(CLOSE, b"\x03")), "1002"),
    case("close code 0", opened(frame(CLOSE, b"\x00\x00")), "1002"),
    case("close without UTF-8", opened(frame(CLOSE, b"\x03\xe8\xff")), "1007|1002"),
    # Floods
    case(
        "20,000 pushes",
        opened(frame(TEXT, b"x") * 1000, times=form(2, 20), ends=True),
        "lost without a close frame",
    ),
    case("100,000 pushes of 64 KB", opened(frame(TEXT, b"x" * 60_000), times=2000, ends=True), "lost without"),
    case("pings, answers read", opened(frame(PING, b"x" * 125) * 1000, times=20, ends=True), ANY),
    case("pongs", opened(frame(PONG, b"x" * 125) * 1000, times=100, ends=True), ANY),
]

PINGS = opened(frame(PING, b"x" * 125) * 1000, times=300, ends=True, patience=0.5)

FLOOD = case("pings, answers unread", PINGS, ANY)
"""38 MB of pings from a server that reads no pongs. On trio TCP blocks it, on asyncio the client hangs up."""

SHORT = {
    "hangs up",
    "junk",
    "header of 1 MB",
    "evil phrase",
    "evil accept",
    "500 of 100 MB",
    "evil Location",
    "evil Retry-After",
    "unasked extension",
    "stalled handshake",
    "trickling handshake",
    "100 MB message",
    "2^63 bytes",
    "endless fragments",
    "empty fragments",
    "no UTF-8",
    "compressed",
    "masked",
    "long ping",
    "no start",
    "evil close",
    "close of one byte",
    "20,000 pushes",
}
"""One case for each kind of response and for each limit."""


@pytest.fixture(scope="module")
def server(well_feed):
    with ChannelServer(attacks([*CASES, FLOOD]), well_feed, handshake) as server:
        yield server


@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=pytest.mark.long_form)])
def test_a_flood_of_pings_with_unread_pongs_does_not_exceed_the_memory_limit(server, victims, tmp_path, backend):
    check_case(server, victims, tmp_path, backend, FLOOD)


@matrix(CASES, SHORT)
def test_a_hostile_websocket_costs_only_latency_and_polls_within_the_rate(
    server, victims, tmp_path, backend, case
):
    check_case(server, victims, tmp_path, backend, case)


def check_case(server, victims, tmp_path, backend, case):
    name = f"ws-{case.path}-{backend}"
    feed, push = server.feed.url(f"well/{name}"), server.url("ws", f"{case.path}/{name}")
    report = victims.attacked(
        "push", backend, url=feed, push=push, state=str(tmp_path / "state.db"), **case.options
    )
    shown(case, report)
    check_channel(report, case)
