"""Rows for bodies and cursors of feeds: CloudEvents, JSON in parts, Durable Streams, seen entries, whole feeds."""

import json
from functools import partial
from typing import Literal

import msgspec
import pydantic

from push_to_poll_client import (
    CloudEvent,
    CursorExpired,
    DeadLetter,
    DecodeError,
    FeedError,
    HTTPFeed,
    Message,
    ServerSentEvent,
    UnreadableMessage,
)
from push_to_poll_client._json import decode
from push_to_poll_client.durable_streams import DurableStreamFeed
from push_to_poll_client.durable_streams._framing import (
    FRAMINGS,
    ReadStart,
    StreamHeaders,
    StreamPosition,
    StreamResponse,
    echo_of,
    is_offset,
)
from push_to_poll_client.feeds._cloudevents import read_batch
from push_to_poll_client.feeds._data_decoder import DataDecoder
from push_to_poll_client.feeds._decoding import split_json
from push_to_poll_client.feeds._newest_first import _parse_position, _position
from push_to_poll_client.feeds._newest_first_cursor import SeenEntries
from tests.fuzz.answers import SEPARATOR, URL, direct_client, fields, look_at, walk, written
from tests.fuzz.fuzzed import Fuzzed, around, nested, text_of, words

__all__ = ["JSON_HOSTILE", "JSON_TOKENS", "ROWS", "reference", "restored_from"]

NOTHING = object()
DEEPEST = 100
"""Maximum depth that every JSON parser accepts."""

JSON_TOKENS = words(
    r'[ ] { } , : " \\ \x20 \n 0 1e9 - null true "" [] {} "a": \\" \\u0000 \\ud800 '
    r"\\ud83d\\ude00 \xff \xef\xbb\xbf \x00 "
)

JSON_HOSTILE = {
    "arrays in arrays": nested(b"[", b"]"),
    "arrays in an array": nested(b"[", b"]", b"[", b"]"),
    "objects in objects": nested(b'{"a":', b"}", b"[", b"]"),
    "an array that does not end": around(b"[", b"["),
    "objects that do not end": around(b"[", b'{"a":'),
    "quotes": around(b"[", b'"', b"]"),
    "escapes": around(b'["', b"\\", b'"]'),
    "commas": around(b"[", b",", b"]"),
    "closed too often": around(b"[", b"]"),
    "broken ones": around(b"[", b"{,},", b"{}]"),
    "empty ones": around(b"[", b"{},", b"{}]"),
    "a broken one at the end": around(b"[", b"{},", b"{]"),
    "spaces": around(b"[", b" ", b"]"),
    "one long string": around(b'["', b"x", b'"]'),
}


def reference(text):
    """Parse with the standard library. `NOTHING` means that no parser may accept the text."""
    try:
        value = json.loads(
            text.removeprefix(b"\xef\xbb\xbf").decode(),
            parse_constant=_refused,
            parse_float=_finite,
            object_pairs_hook=_members,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return NOTHING
    return NOTHING if text.count(b"[") + text.count(b"{") > DEEPEST else value


def _members(pairs):
    json.dumps(pairs, ensure_ascii=False).encode()  # also for members that a later one replaces
    return dict(pairs)


def _refused(name):
    raise ValueError(name)


def _finite(text):
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise ValueError(text)
    return value


def read_split(data, brackets):
    parts = list(split_json(data, brackets))
    value = reference(data)
    if brackets == b"[]" and isinstance(value, list):
        assert [json.loads(part) for part in parts] == value
    if brackets == b"{}" and isinstance(value, dict):
        assert json.loads(b"{" + b",".join(parts) + b"}") == value
    for part in parts:
        assert part
        assert part.strip(b" \t\r\n") == part


def read_events(data):
    value = reference(data)
    try:
        messages = read_batch(data, "the feed", max_events=200)
    except FeedError:
        assert not isinstance(value, list) or len(value) > 200
        raise
    assert len(messages) <= 200
    if isinstance(value, list):
        assert len(messages) == len(value)
    for number, message in enumerate(messages):
        look_at(message)
        if isinstance(message, CloudEvent):
            look_at_event(message, value[number] if isinstance(value, list) else None)


def look_at_event(event, value):
    assert "\0" not in event.dedupe_key
    assert event.source == event.source.strip("\0")
    _ = event.type, event.subject, event.time, event.method, event.deleted
    try:
        attributes = event.attributes
    except DecodeError:
        attributes = None
    if isinstance(value, dict) and attributes is not None and len(event.raw) < 4000:
        assert event.id == value["id"]
        assert attributes.get("id") == event.id


def read_event(data):
    event = CloudEvent.from_json(data)
    look_at(event)
    assert CloudEvent.from_json(event.raw).dedupe_key == event.dedupe_key


class _Decoded(msgspec.Struct):
    id: str
    kind: Literal["a", "b"] = "a"
    parts: dict[int, list["_Decoded"]] = {}


class _Model(pydantic.BaseModel):
    id: str
    kind: Literal["a", "b"] = "a"
    parts: dict[int, list["_Model"]] = {}


_DECODERS = [DataDecoder(decode) for decode in (_Decoded, _Model, list[_Model], dict[str, object])]


def read_data(data):
    """Decode into several types; each mismatch is reported in one bounded line."""
    value, unfit = decode(data), list[str]()
    for decoder in _DECODERS:
        try:
            decoder.decode(value, Message("1"))
        except DecodeError as error:
            unfit.append(str(error))
    assert all(len(text) < 700 and text.isprintable() for text in unfit)
    if len(unfit) == len(_DECODERS):
        raise DecodeError("it fits nothing")


def read_seen(data):
    start, step = _parse_position(text_of(data))
    assert _parse_position(_position(start, step)) == (start or None, step)
    seen = SeenEntries.parse(start, "the feed")
    assert SeenEntries.parse(seen.cursor(), "the feed") == seen


def read_place(data):
    place = StreamPosition.from_cursor(text_of(data))
    assert StreamPosition.from_cursor(place.cursor) == place
    assert StreamPosition.from_cursor(place.after_reset.cursor) == place.after_reset
    assert place.message_id(1) != place.message_id(2)


def read_said(data):
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in fields(data)}
    echo = echo_of(headers)
    assert echo is None or echo.isascii()
    head = StreamHeaders.from_headers(headers, "the stream", StreamPosition("5"))
    assert is_offset(head.offset)


def read_framing(data, name):
    """Read pages of any size; the messages and their ids are the same."""
    framing, head = FRAMINGS[name], StreamHeaders("9", up_to_date=True, closed=True)
    begin = ReadStart(StreamPosition("1"))
    whole = framing.read(StreamResponse(data, begin, head, "the stream", (framing.decode, None)), 10_000)
    assert not whole.cut
    for message in whole.messages:
        look_at(message)
    if name == "json" and isinstance(value := reference(data), list):
        assert [message.data for message in whole.messages] == value
    if name == "bytes":
        assert b"".join(message.raw for message in whole.messages) == data
    if name == "lines":
        lines = data.removesuffix(b"\n").split(b"\n") if data else []
        assert [message.raw for message in whole.messages] == [line.removesuffix(b"\r") for line in lines]
    if len(data) < 500 and name != "bytes":
        assert [_named(message) for message in _in_parts(framing, data, head)] == [*map(_named, whole.messages)]


def _in_parts(framing, data, head):
    place, messages = StreamPosition("1"), []
    while True:
        begin = ReadStart(StreamPosition.from_cursor(place.cursor))
        read = framing.read(StreamResponse(data, begin, head, "the stream", (framing.decode, None)), 3)
        messages += read.messages
        if not read.cut:
            return messages
        assert read.messages or read.end.settled > place.settled
        place = read.end


def _named(message):
    return message.id, message.dedupe_key, message.raw


def restored_from(feed, message):
    """Restore a message from its dead letter; it must equal the original."""
    letter = DeadLetter(dedupe_key=message.dedupe_key, id=message.id, raw=message.raw, error="failed")
    again = feed.restore(letter)
    assert (again.dedupe_key, again.raw) == (message.dedupe_key, message.raw)
    if not isinstance(message, UnreadableMessage):  # an unreadable message may be readable now, with an id
        assert again.id == message.id
        assert not isinstance(again, UnreadableMessage)


def read_http_feed(data):
    feed = HTTPFeed(URL, client=direct_client(data), max_body=4096)
    for message in walk(feed):
        restored_from(feed, message)


def read_stream(data, messages):
    cursor, separator, rest = data.partition(SEPARATOR)
    feed = DurableStreamFeed(URL, messages=messages, client=direct_client(rest), max_body=4096)
    for message in walk(feed, text_of(cursor) if separator and cursor else None):
        restored_from(feed, message)


def read_hint(data):
    event, _, text = text_of(data).partition("\n")
    DurableStreamFeed.hint(ServerSentEvent(event, text, ""))


EVENTS = (
    b'[{"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {"a": [1, 2.5, "\\u00fc"]}}]',
    b'\xef\xbb\xbf [{"id": "1"}, {"id": 7, "source": "s"}, {"id": "3", "data_base64": "aGVsbG8="}, {]}]',
    b'[{"id": "a\\u0000"}, {"id": "", "x": 1}, {"id": "1", "data": [[[}, {"id": "1", "method": "DELETE"}]',
    b'[{"id": "1", "source": "https://a.source.example/that/is/long", "subject": null, "ext": 1, "time": "t"}]',
    b"[]",
)

STREAM = b"200\nstream-next-offset: 9\nstream-up-to-date: true\ncontent-type: application/json\n\n"

ROWS = (
    Fuzzed(
        name="split arrays",
        modules=("feeds._decoding",),
        read=partial(read_split, brackets=b"[]"),
        errors=(ValueError,),
        examples=(b'[1, "a,]", {"b": [2]}, [] ]', b"[]", b'["\\"", nonsense, {]'),
        tokens=JSON_TOKENS,
        frame=(b"[", b"]"),
        hostile=JSON_HOSTILE,
    ),
    Fuzzed(
        name="split objects",
        modules=("feeds._decoding",),
        read=partial(read_split, brackets=b"{}"),
        errors=(ValueError,),
        examples=(b'{"a": 1, "b,}": {"c": "}"}}', b" {} "),
        tokens=JSON_TOKENS,
        frame=(b"{", b"}"),
        hostile={"members": around(b"{", b'"a": 1,', b'"b": 2}'), "objects": nested(b'{"a":', b"}")},
    ),
    Fuzzed(
        name="cloudevents",
        modules=("feeds._cloudevents", "feeds._decoding"),
        read=read_events,
        errors=(FeedError,),
        examples=EVENTS,
        tokens=(
            *words(r'"id" "source" "data" "data_base64" {"id":"1"}, "push_to_poll_client\x20batch"'),
            *JSON_TOKENS,
        ),
        frame=(b'[{"id":"1","data":', b"}]"),
        hostile={
            "events": around(b"[", b'{"id":"1"},', b'{"id":"2"}]'),
            "events and a broken one": around(b"[", b'{"id":"1"},', b"{]"),
            "ids in a broken one": around(b"[{", b'"id":"1",', b'"x":}]'),
            "attributes": around(b'[{"id":"1",', b'"a":1,', b'"b":2}]'),
            **JSON_HOSTILE,
        },
    ),
    Fuzzed(
        name="a cloudevent",
        modules=("feeds._cloudevents",),
        read=read_event,
        errors=(DecodeError,),
        examples=(b'{"id": "1", "source": "s", "data": null}', b'{"id": "1", "data_base64": "aGk="}'),
        tokens=(
            *words(r'"id" "source" "data" "data_base64"'),
            *JSON_TOKENS,
        ),
        frame=(b'{"id":"1","data":', b"}"),
        hostile={"nested": nested(b"[", b"]", b'{"id":"1","data":', b"}")},
    ),
    Fuzzed(
        name="data of messages",
        modules=("feeds._data_decoder",),
        read=read_data,
        errors=(DecodeError, ValueError, RecursionError),
        examples=(
            b'{"id": "1", "kind": "b", "parts": {"7": [{"id": "2"}]}}',
            b'[{"id": "1", "kind": "c - at `$.kind`"}]',
            b'[{"id": 1, "parts": {"x": 1, "y": 2}}, {}, {}, 3]',
        ),
        tokens=(*words(r'"id" "kind" "parts" "7" \x20-\x20at\x20`$'), *JSON_TOKENS),
        frame=(b'{"id":"1","kind":', b"}"),
        hostile={
            "nested": nested(b'{"id":"1","parts":{"1":[', b"]}}"),
            "a long value": around(b'{"id":"1","kind":"', b"x", b'"}'),
            "places in a value": around(b'{"id":"1","kind":"', b" - at `$", b'"}'),
            "faults": around(b"[", b"1,", b"1]"),
        },
    ),
    Fuzzed(
        name="what was seen",
        modules=("feeds._newest_first_cursor", "feeds._newest_first"),
        read=read_seen,
        errors=(CursorExpired,),
        examples=(
            b'{"seen":"abcdefghijklABCDEFGHIJKL","read":"mnopqrstuvwx","etag":"\\"1\\"","note":"n"} 7',
            b'{"seen":""}',
            b" 12",
        ),
        tokens=(
            *words(r'"seen" "read" "etag" "modified" "note" abcdefghijkl _'),
            *JSON_TOKENS,
        ),
        frame=(b'{"seen":"', b'"}'),
        hostile={"nested": nested(b"[", b"]", b'{"seen":', b"}"), "spaces": around(b'{"seen":""}', b" ", b"1")},
    ),
    Fuzzed(
        name="places in a stream",
        modules=("durable_streams._framing",),
        read=read_place,
        errors=(CursorExpired,),
        examples=(b"0_42/17", b"0_42/17/3", b"0_42/0_40+2", b"0_42/1:2", b"0_42", b"-1/0", b"-1"),
        tokens=words(r"/ + : 0 9 _ -1 now a ? & \xc3\xbc"),
        frame=(b"0_42/", b"/3"),
        hostile={
            "digits": around(b"1/", b"9"),
            "slashes": around(b"1", b"/1"),
            "counts": around(b"1/", b"1+", b"2"),
        },
    ),
    Fuzzed(
        name="what a stream says",
        modules=("durable_streams._framing",),
        read=read_said,
        errors=(FeedError,),
        examples=(
            b"stream-next-offset: 9\nstream-up-to-date: True\nstream-cursor: 123",
            b"stream-next-offset: 4\nstream-closed: true",
        ),
        tokens=words(
            r"stream-next-offset:\x20 stream-up-to-date:\x20 stream-closed:\x20 stream-cursor:\x20 "
            r"true -1 now \n , \xff "
        ),
        frame=(b"stream-next-offset: ", b""),
    ),
    *(
        Fuzzed(
            name=f"a stream of {name}",
            modules=("durable_streams._framing",),
            read=partial(read_framing, name=name),
            errors=(FeedError,),
            examples=(*EVENTS, b'{"a": 1}\n\n{"b": 2}\r\nhalf', b"\xff\n\0", b"1\n2\n3\n4\n5", b""),
            tokens=JSON_TOKENS,
            frame=(b"[", b"]"),
            hostile={"lines": around(b"", b"1\n"), "blank lines": around(b"", b"\r\n"), **JSON_HOSTILE},
        )
        for name in FRAMINGS
    ),
    Fuzzed(
        name="http feeds",
        modules=("feeds.http_feed", "feeds._cloudevents", "_http.client"),
        read=read_http_feed,
        examples=(
            written(b"200\ncontent-type: application/cloudevents-batch+json\n\n" + EVENTS[0], b"200\n\n[]"),
            written(b"200\n\n" + EVENTS[1], b"204\n"),
            b"200\ncontent-type: text/html\n\n<html>",
            b"429\nretry-after: 3\n",
        ),
        tokens=(
            *words(r'200\n 304\n content-type:\x20 application/json \n\n \n=====\n "id" "1"'),
            *JSON_TOKENS,
        ),
        frame=(b"200\n\n[", b"]"),
    ),
    *(
        Fuzzed(
            name=f"stream feeds of {name}",
            modules=("durable_streams._feed", "durable_streams._framing"),
            read=partial(read_stream, messages=name),
            examples=(
                written(b"1/2", STREAM + b"[1, 2]"),
                written(b"", STREAM.replace(b"/json", b"/x-ndjson") + b"1\n2"),
                written(
                    b"",
                    STREAM.replace(b"stream-up-to-date: true\ncontent-type: application/json\n", b"") + b"1\nx",
                ),
                written(b"-1", b"200\nstream-next-offset: 9\nstream-closed: true\n\n1\n2\n", STREAM),
                written(b"9/0", b"410\n", b"200\n"),
                written(b"", b"404\n"),
            ),
            tokens=(
                *words(
                    r"200\n 410\n stream-next-offset:\x20 stream-closed:\x20true\n "
                    r"stream-up-to-date:\x20true\n content-type:\x20 text/plain \n=====\n \n\n "
                ),
                *JSON_TOKENS,
            ),
            frame=(b"\n=====\n200\nstream-next-offset: 9\n\n", b""),
        )
        for name in FRAMINGS
    ),
    Fuzzed(
        name="hints of a stream",
        modules=("durable_streams._feed",),
        read=read_hint,
        examples=(b'control\n{"streamNextOffset": "1", "streamClosed": true}', b"data\n[]"),
        tokens=words(r'control\n "streamClosed" data\n \xff'),
    ),
)
