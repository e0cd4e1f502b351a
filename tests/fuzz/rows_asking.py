"""Rows for listeners that send requests, and for pushes in JSON."""

import httpx
import msgspec
import psycopg
import redis

from push_to_poll_client import Push
from push_to_poll_client._json import MAX_DEPTH, Decoder, check_page_depth, decode
from push_to_poll_client.listeners._failures import http_failure_of
from push_to_poll_client.listeners._hints import JSONHint
from push_to_poll_client.listeners._requests import ListenerClient, ListenerResponse, UnusableResponse
from push_to_poll_client.listeners.long_poll import LongPollReader
from push_to_poll_client.listeners.long_poll import query_value as text_of_json
from push_to_poll_client.listeners.postgres import failure_of as postgres_failure_of
from push_to_poll_client.listeners.redis import _published
from push_to_poll_client.listeners.redis import failure_of as redis_failure_of
from tests.fuzz.answers import in_loop, response_of
from tests.fuzz.fuzzed import Fuzzed, around, nested, text_of, words

__all__ = ["ROWS"]

LARGEST = 4096
URL = httpx.URL("https://api.vendor.example/changes?since=now")


class _Wire(httpx.AsyncBaseTransport):
    """Transport that sends nothing."""

    def __init__(self) -> None:
        self.answer = b""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return response_of(self.answer)


_wire = _Wire()
_client = httpx.AsyncClient(transport=_wire, trust_env=False)
_asker = ListenerClient("https://api.vendor.example/ask", client=_client, max_body=LARGEST)


def read_answer(data):
    """Read a response as a listener does."""
    _wire.answer = data
    try:
        answer = in_loop(_asker.send_request)
        assert len(answer.body) <= LARGEST
        answer.expect().json()
    except (UnusableResponse, httpx.HTTPStatusError) as error:
        failure = http_failure_of(error, wanted="news")
        assert failure.sentence.isprintable()
        assert len(failure.sentence) < 500
        assert failure.retry_after is None or 0 <= failure.retry_after <= 86_400


HINT = JSONHint(cursor="c", topics="t.n", count="n", only={"k": "w"})


def read_push(data):
    """Read a push; the result has bounded fields, or is None."""
    push = HINT(data)
    if push is not None:
        assert isinstance(push, Push)
        assert push.cursor is None or 0 < len(push.cursor) <= 1024
        assert len(push.topics) <= 64
        assert push.count is None or 0 <= push.count < 2**63
    HINT(text_of(data))


def depth_of(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


def read_json(data):
    """Decode JSON; the depth limit rejects deeper values and nothing else."""
    check_page_depth(data)
    value = decode(data)
    assert depth_of(value) <= MAX_DEPTH
    assert value == Decoder().decode(text_of(data)) == msgspec.json.decode(data)


READERS = (
    LongPollReader(None, None, None),
    LongPollReader("news.changes", {"since": "at.id", "all": "at"}, "backoff"),
)


def read_long_poll(data):
    """Read a response to a long poll and build the next request."""
    for reader in READERS:
        try:
            said = reader.read(ListenerResponse(200, httpx.Headers(), data, "https://api.vendor.example/", None))
        except UnusableResponse as error:
            assert str(error).isprintable()  # noqa: PT017  # it need not be raised
            continue
        assert said.retry_after is None or said.retry_after >= 0
        query = {name: text_of_json(value) for name, value in said.position.items()}
        assert all(len(value) <= 8192 for value in query.values())
        str(URL.copy_merge_params(query)).encode("ascii")


def read_published(data):
    """Read notifications and errors of PostgreSQL and Redis."""
    (heard,) = _published({"type": "message", "channel": data, "data": data})
    assert isinstance(heard.channel, str)
    HINT(heard)
    text = text_of(data)
    errors = (
        (psycopg.OperationalError(text), postgres_failure_of),
        (psycopg.errors.lookup("42501")(text), postgres_failure_of),
        (redis.ConnectionError(text), redis_failure_of),
        (redis.ResponseError(text), redis_failure_of),
    )
    for error, failure_of in errors:
        failure = failure_of(error)
        assert failure.sentence.isprintable()
        assert len(failure.sentence) < 2500


ROWS = (
    Fuzzed(
        name="JSON of others",
        modules=("_json",),
        read=read_json,
        errors=(ValueError, RecursionError),
        examples=(
            b'{"a": [1, {"b": "]}"}], "c": "\\"[\\\\"}',
            b'["' + b"[" * 2000 + b'", ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"]",
            b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
            b"[" + b"{}," * 1000 + b"{}]",
        ),
        tokens=words(r'{ } [ ] " : , \\\" \\ [[[[ ]]]] "a": {}, null \xff'),
        frame=(b"[" * 500, b"]" * 500),
        hostile={
            "nested": nested(b"[", b"]"),
            "objects": nested(b'{"":', b"}", before=b'{"":0,"a":', behind=b"}"),
            "strings": around(b'["', b"[", b'"]'),
            "quotes": around(b"[", b'"[",', b"1]"),
            "backslashes": around(b'["', b"\\\\", b'"]'),
            "short ones": around(b"[", b"[],", b"{}]"),
        },
    ),
    Fuzzed(
        name="answers to a channel",
        modules=("listeners._requests", "listeners._failures"),
        read=read_answer,
        examples=(
            b'200\ncontent-type: application/json\n\n{"changes": true}',
            b"200\ncontent-encoding: gzip\n\n\x1f\x8b",
            b"200\n\n" + b"9" * (LARGEST + 1),
            b"204\n",
            b"429\nretry-after: 7",
            b"302\nlocation: /",
        ),
        tokens=words(r'200\n 429\n content-encoding:\x20 retry-after:\x20 gzip { } [ ] " \\u0000 \xff \n 9 1e9'),
        frame=(b"200\n\n", b""),
        hostile={
            "nested": nested(b"[", b"]", before=b"200\n\n"),
            "a field": around(b"429\nretry-after: ", b"9"),
        },
        found=(
            b"302\nlocation:location: /",
            b"302\nlocation: http://xn--zz/",
            b"302\nlocation: http://a:b/",
            b"302\nlocation: :https://[",
        ),
    ),
    Fuzzed(
        name="answers to long polls",
        modules=("listeners.long_poll",),
        read=read_long_poll,
        examples=(
            b'{"news": {"changes": true}, "at": [{"id": 4}, {"id": [5, "x"]}], "backoff": 60}',
            b'\n\n{"at": {"id": "3-g1AAA+/="}, "backoff": 0.5}',
            b"[]",
            b"not in JSON",
            b'{"at": "' + b"x" * 8193 + b'"}',
        ),
        tokens=words(
            r'{ } [ ] " : , "news": "changes": "at": "id": "backoff": \\ud83d \xff 9 -1 1e999 true null \n'
        ),
        frame=(b'{"at":[', b"]}"),
        hostile={
            "nested": nested(b"[", b"]", before=b'{"at":', behind=b"}"),
            "lists in objects": nested(b'[{"id":', b"}]", before=b'{"at":', behind=b"}"),
            "a list": around(b'{"at":[', b"[],", b"{}]}"),
            "digits": around(b'{"backoff":', b"9", b"}"),
        },
    ),
    Fuzzed(
        name="what databases publish",
        modules=("listeners.redis", "listeners.postgres"),
        read=read_published,
        examples=(b'{"k": "w", "c": "7"}', b'FATAL:  database "x" does not exist\n', b"\xff\x1b[31m"),
        tokens=words(r"FATAL:\x20 \x20 \x1b \r\n \xff ' \\ \xe2\x80\xae"),
    ),
    Fuzzed(
        name="pushes of JSON",
        modules=("listeners._hints",),
        read=read_push,
        examples=(
            b'{"k": "w", "c": "7", "t": [{"n": "a"}, {"n": ["b", 3]}], "n": 5}',
            b'{"k": "hello"}',
            b'{"k": ["w"], "n": "\xd9\xa3", "c": {"c": 1}}',
            b"[]",
        ),
        tokens=words(r'{ } [ ] " : , "k":"w" "c": "t": "n": \\ud83d \xff 9 -1 1e999 true null'),
        frame=(b'{"k":"w","t":[', b"]}"),
        hostile={
            "nested": nested(b"[", b"]"),
            "nested topics": nested(b'{"n":', b"}", before=b'{"k":"w","t":', behind=b"}"),
            "topics": around(b'{"k":"w","t":[', b'{"n":"a"},', b"{}]}"),
            "digits": around(b'{"k":"w","n":', b"9", b"}"),
        },
    ),
)
