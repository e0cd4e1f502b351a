"""Rows for push channels: event streams, websocket frames, and responses to connection attempts."""

import logging
import re

import h11
import httpx
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.protocol import CONNECTING, OPEN
from websockets.uri import parse_uri

from push_to_poll_client import PushToPollError, ReconnectAction
from push_to_poll_client.listeners._base import StopReconnecting
from push_to_poll_client.listeners._requests import UnusableResponse
from push_to_poll_client.listeners._sse_parser import MAX_RETRY, EventParser, EventTooLarge, ServerSentEvent
from push_to_poll_client.listeners.sse import _check, _fits_header
from push_to_poll_client.listeners.sse import failure_of as sse_failure_of
from push_to_poll_client.listeners.websocket import NoCommonSubprotocol
from push_to_poll_client.listeners.websocket import failure_of as websocket_failure_of
from tests.fuzz.answers import response_of
from tests.fuzz.fuzzed import Fuzzed, around, text_of, words

__all__ = ["ROWS"]

URI = parse_uri("ws://push.example/")
LARGEST = 4096
_quiet = logging.getLogger("fuzzed websockets")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


def read_stream(data):
    """Parse a stream in pieces of any size; the events equal those of a simple parser."""
    whole = EventParser(max_body=LARGEST)
    events = whole.feed(data)
    assert whole.retry is None or 0 <= whole.retry <= MAX_RETRY
    assert events == _slowly(data)
    for size in (1, 3):
        pieces = EventParser(max_body=LARGEST)
        assert [event for at in range(0, len(data), size) for event in pieces.feed(data[at : at + size])] == events
        assert (pieces.last_event_id, pieces.retry) == (whole.last_event_id, whole.retry)
    if _fits_header(whole.last_event_id):
        headers = [(b"host", b"h"), (b"last-event-id", whole.last_event_id.encode())]
        h11.Request(method="GET", target="/", headers=headers)


def _slowly(data):
    """Parse a whole stream by WHATWG HTML §9.2.6, sentence by sentence."""
    lines = re.split("\r\n|\r|\n", data.decode("utf-8", "replace").removeprefix("\ufeff"))[:-1]
    events, text, kind, last = [], [], "", ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            events += [ServerSentEvent(kind or "message", "\n".join(text), last)] if text else []
            text, kind = [], ""
        elif name == "data":
            text.append(value)
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last = value
    return events


def read_answer(data):
    """Read a response to a request for an event stream."""
    response = response_of(data)
    response.request = httpx.Request("GET", "https://push.example/")
    try:
        _check(response)
    except StopReconnecting:
        return
    except (UnusableResponse, httpx.HTTPStatusError) as error:
        _look_at(sse_failure_of(error))


def read_frames(data):
    """Read data on an open websocket."""
    connection = ClientProtocol(URI, state=OPEN, max_size=LARGEST, logger=_quiet)
    connection.receive_data(data)
    connection.receive_eof()
    error = connection.close_exc
    assert isinstance(error, ConnectionClosed)
    _look_at(websocket_failure_of(error))


def read_handshake(data):
    """Read a response to a websocket handshake."""
    connection = ClientProtocol(URI, state=CONNECTING, max_size=LARGEST, logger=_quiet)
    connection.key = "dGhlIHNhbXBsZSBub25jZQ=="
    connection.receive_data(data)
    connection.receive_eof()
    error = connection.handshake_exc
    if error is not None:
        _look_at(websocket_failure_of(error))


def read_failure(data):
    """Classify errors whose text another system wrote."""
    text = text_of(data)
    errors = (
        OSError(text),
        httpx.RemoteProtocolError(text),
        httpx.LocalProtocolError(text),
        EventTooLarge(text.encode("ascii", "replace").decode()),
        NoCommonSubprotocol(text),
        UnicodeDecodeError("utf-8", data or b"x", 0, 1, "x"),
    )
    for error in errors:
        for failure in (sse_failure_of(error), websocket_failure_of(error)):
            if not isinstance(error, PushToPollError):
                _look_at(failure)


def _look_at(failure):
    assert isinstance(failure.action, ReconnectAction)
    assert failure.sentence.isprintable()
    assert len(failure.sentence) < 2500
    assert failure.retry_after is None or failure.retry_after >= 0


SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)

ROWS = (
    Fuzzed(
        name="event streams",
        modules=("listeners._sse_parser", "listeners.sse"),
        read=read_stream,
        errors=(EventTooLarge,),
        examples=(
            b": hello\n\nid: 1\ndata: a\ndata:b\n\nevent: add\rdata\r\rid\r\nretry: 3000\r\n\r\ndata: cut",
            b"\xef\xbb\xbfdata: \xc3\xbc\n\n",
            b"id: a\0b\ndata: x\n\nretry: -1\nretry: 99999999999999999999999999\n\n",
        ),
        tokens=words(
            r"data:\x20 data id:\x20 event:\x20 retry:\x20 : \x20 \n \r \r\n \n\n \x00 \xff "
            r"\xef\xbb\xbf 9 \xe2\x80\xa8 "
        ),
        frame=(b"data: ", b"\n\n"),
        hostile={
            "events": around(b"", b"data: x\n\n"),
            "lines of an event": around(b"", b"data\n", b"\n"),
            "digits": around(b"retry: ", b"9", b"\n\n"),
            "ids": around(b"", b"id: 1\n\n"),
        },
    ),
    Fuzzed(
        name="answers to event streams",
        modules=("listeners.sse", "listeners._failures", "listeners._backoff"),
        read=read_answer,
        examples=(
            b"200\ncontent-type: text/event-stream;charset=utf-8",
            b"200\ncontent-type: text/html",
            b"200\ncontent-type: text/event-stream\ncontent-encoding: gzip",
            b"204\n",
            b"503\nretry-after: 7",
            b"302\nlocation: /",
        ),
        tokens=words(r"200\n 204\n 401\n 429\n content-type:\x20 text/event-stream retry-after:\x20 ; \xff \n"),
        frame=(b"200\ncontent-type: ", b""),
    ),
    Fuzzed(
        name="websocket frames",
        modules=("listeners.websocket",),
        read=read_frames,
        examples=(
            b'\x81\x0f{"cursor": "1"}',
            b"\x89\x01x\x81\x02ok\x88\x07\x03\xf0nobye",
            b"\x88\x02\x0f\xa0",
            b"\x01\x03abc\x00\x03def\x80\x01g",
            b"\x82\x7e\x01\x00" + b"b" * 256,
            b"\x88\x09\x03\xe8\x1b[31m\r\n",
            b"\x88\x00",
            b"\x81\x01\xff",
        ),
        tokens=words(r"\x81 \x88\x02\x03\xe8 \x89\x00 \x8a\x00 \x00\x00 \x01\x00 ~ \x7f \xff \x80 \x1b"),
        hostile={
            "pings": around(b"", b"\x89\x01x"),
            "messages": around(b"", b"\x81\x01x"),
            "fragments": around(b"\x01\x00", b"\x00\x01x"),
        },
    ),
    Fuzzed(
        name="websocket handshakes",
        modules=("listeners.websocket", "listeners._backoff"),
        read=read_handshake,
        examples=(
            SWITCHED,
            SWITCHED.replace(b"xOo=", b"xOo!"),
            SWITCHED.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: a, b\r\n\r\n"),
            b"HTTP/1.1 503 Busy\r\nRetry-After: 9\r\nContent-Length: 2\r\n\r\nno",
            b"HTTP/1.1 302 Found\r\nLocation: ws://elsewhere.example/\r\n\r\n",
            (
                b"HTTP/1.1 429 Slow down\r\nRetry-After: 1\r\nRetry-After: 2\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            b"",
        ),
        tokens=words(
            r"HTTP/1.1\x20 101 429 \r\n :\x20 Retry-After:\x20 Upgrade:\x20 Content-Length:\x20 "
            r'Transfer-Encoding:\x20chunked\r\n 9 , " \xff \x00 '
        ),
        frame=(b"HTTP/1.1 429 x\r\n", b"\r\n\r\n"),
        hostile={
            "a field": around(b"HTTP/1.1 429 x\r\nRetry-After: ", b"9", b"\r\n\r\n"),
            "upgrades": around(b"HTTP/1.1 101 x\r\nUpgrade: ", b"a, ", b"\r\nConnection: Upgrade\r\n\r\n"),
        },
    ),
    Fuzzed(
        name="errors of channels",
        modules=("listeners._failures", "listeners.sse", "listeners.websocket"),
        read=read_failure,
        examples=(b"connection refused", b"\x1b[31m\r\n", b"\xff"),
        tokens=words(r"\x1b \r\n \xff ' \\ \xe2\x80\xae"),
    ),
)
