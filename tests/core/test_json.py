"""The depth limit for foreign JSON is the same on every Python version and in every module."""

import ast
import json
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import push_to_poll_client
from push_to_poll_client import (
    CloudEvent,
    DecodeError,
    FetchRequest,
    HTTPFeed,
    Message,
    UnreadableMessage,
    WebhookRequest,
)
from push_to_poll_client._json import (
    DECODE_ERRORS,
    MAX_DEPTH,
    SAFE_LENGTH,
    Decoder,
    check_depth,
    check_page_depth,
    decode,
)
from push_to_poll_client.feeds._cloudevents import read_batch
from push_to_poll_client.feeds._paged.body import _decode_lines
from push_to_poll_client.feeds.paged import LINES, Entries, OldestFirst, PagedFeed, from_last, to_query
from push_to_poll_client.listeners._requests import ListenerResponse, UnusableResponse

pytestmark = pytest.mark.anyio


def lists(depth):
    return b"[" * depth + b"]" * depth


def objects(depth):
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


def mixed(depth):
    """A deep value with siblings at each level, and with brackets in strings."""
    text = b"1"
    for number in range(depth):
        text = b'{"]\\\\":"}\\"]]",' + b'"a":%b}' % text if number % 2 else b'["[[[{",%b,2]' % text
    return text


def beside(depth):
    """A deep value between objects that end before a comma, which the page check does not find."""
    return b"[{}," * (depth - 1) + b"[1]" + b"]" * (depth - 1)


NESTED = [lists, objects, mixed]


def depth_of(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


def is_too_deep(text, check=check_depth):
    try:
        check(text)
    except RecursionError:
        return True
    return False


def test_the_error_for_json_that_is_too_deep_names_the_limit():
    with pytest.raises(RecursionError, match=f"^nested deeper than {MAX_DEPTH} levels$"):
        decode(lists(MAX_DEPTH + 1))


@pytest.mark.parametrize("nested", [*NESTED, beside])
def test_json_as_deep_as_the_limit_is_read_and_one_level_more_is_refused(nested):
    for given_as in (bytes, bytes.decode, msgspec.Raw):
        assert not is_too_deep(given_as(nested(MAX_DEPTH)))
        assert is_too_deep(given_as(nested(MAX_DEPTH + 1)))
    assert decode(nested(MAX_DEPTH)) == Decoder().decode(nested(MAX_DEPTH)) == json.loads(nested(MAX_DEPTH))
    for read in (decode, Decoder().decode, Decoder(list).decode):
        with pytest.raises(RecursionError, match="nested deeper than"):
            read(nested(MAX_DEPTH + 1))


def test_many_sibling_values_do_not_count_as_depth():
    assert not is_too_deep(b"[" + b",".join([lists(20)] * 1000) + b"]")


def test_brackets_in_strings_do_not_count_as_depth():
    text = json.dumps(["[" * 5000, '\\"{' * 5000, {"[{" * 600: "\\"}]).encode()
    assert decode(text) == json.loads(text)
    assert is_too_deep(b'["' + b"]" * 2000 + b'",' + lists(MAX_DEPTH) + b"]")


@pytest.mark.parametrize("text", [b"[" * 10_000, b'"' + b"[" * 10_000, b"]" * 10_000, b"[}" * 9999, b"\\" * 9999])
def test_invalid_json_is_not_decoded(text):
    with pytest.raises(DECODE_ERRORS):
        decode(text)
    check_page_depth(text) if not is_too_deep(text) else None


values = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('[]{}"\\,x')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('[]{}"\\,x')), inner),
)


@given(value=values, limit=st.integers(1, 6), indent=st.sampled_from([None, 1]))
def test_the_depth_check_agrees_with_the_depth_of_the_decoded_value(value, limit, indent):
    text = json.dumps(value, indent=indent, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("push_to_poll_client._json.MAX_DEPTH", limit)
        patch.setattr("push_to_poll_client._json.SAFE_LENGTH", 2 * limit)
        patch.setattr("push_to_poll_client._json._USUAL_DEPTH", 3)
        try:
            check_depth(text)
            deep = False
        except RecursionError:
            deep = True
    assert deep == (depth_of(value) > limit)


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("before", [0, 1, 100, 999, 5000])
def test_the_page_check_finds_an_entry_that_is_too_deep_anywhere_in_a_page(nested, before):
    page = b'[%b{"id":%%b},{"id":2}]' % (b'{"id":1},' * before)
    assert not is_too_deep(page % nested(MAX_DEPTH - 2), check_page_depth)
    assert is_too_deep(page % nested(MAX_DEPTH + 1), check_page_depth)


def test_a_page_with_long_messages_that_are_not_deep_is_read():
    check_page_depth(json.dumps([{"text": "x" * 3 * SAFE_LENGTH, "list": [[]] * SAFE_LENGTH}] * 3).encode())


# Places that read JSON


def batch(*events):
    return b"[" + b",".join(events) + b"]"


def event(name, data):
    return b'{"id":"%b","data":%b}' % (name, data)


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("member", [b"data", b"more"])
def test_an_event_that_is_too_deep_does_not_fail_its_page(nested, member):
    """The event around the data is one more level."""
    fits, too_deep = (b'{"id":"2","%b":%b}' % (member, nested(depth)) for depth in (MAX_DEPTH - 1, MAX_DEPTH))
    messages = read_batch(batch(event(b"1", b"[1]"), fits, too_deep, event(b"4", b"4")), "x", max_events=9)
    assert [message.id for message in messages if not message.error] == ["1", "2", "4"]
    assert [message.data for message in (messages[0], messages[3])] == [[1], 4]
    assert messages[1].attributes.keys() | {"data"} >= {"id", member.decode()}
    assert isinstance(messages[2], UnreadableMessage)
    assert f"nested deeper than {MAX_DEPTH} levels" in str(messages[2].error)
    assert CloudEvent.from_json(fits).id == "2"
    with pytest.raises(DecodeError, match="nested deeper than"):
        CloudEvent.from_json(too_deep)


def server(body, kind="application/json"):
    def answer(_request):
        return httpx.Response(200, content=body, headers={"content-type": kind})

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("where", ["data", LINES])
async def test_an_entry_that_is_too_deep_does_not_fail_its_page(nested, where):
    entries = [
        b'{"id":"1"}',
        b'{"id":"2","a":%b}' % nested(MAX_DEPTH - 1),
        b'{"id":"3","a":%b}' % nested(MAX_DEPTH),
        b'{"id":"4"}',
    ]
    body = b"\n".join(entries) + b"\n" if where is LINES else b'{"data":' + batch(*entries) + b"}"
    pages = OldestFirst(cursor=from_last("id"), send=to_query("since"))
    feed = PagedFeed("https://feed.example/", entries=Entries(where), pages=pages, client=server(body))
    messages = (await feed.fetch(FetchRequest())).messages
    assert [message.id for message in messages if not message.error] == ["1", "2", "4"]
    assert "nested deeper than" in str(messages[2].error)


async def test_very_deep_events_do_not_fail_a_page_of_an_http_feed():
    body = batch(event(b"1", b"1"), event(b"2", lists(2000)), event(b"3", lists(100_000)))
    feed = HTTPFeed("https://feed.example/", client=server(body, "application/cloudevents-batch+json"))
    messages = (await feed.fetch(FetchRequest())).messages
    assert [message.error is None for message in messages] == [True, False, False]


def test_an_answer_or_webhook_body_that_is_too_deep_is_refused():
    for depth, too_deep in ((MAX_DEPTH, False), (MAX_DEPTH + 1, True)):
        answer = ListenerResponse(200, httpx.Headers(), lists(depth), "https://feed.example/", None)
        request = WebhookRequest(method="POST", path="/", query="", received_at=1e9, body=lists(depth))
        if not too_deep:
            assert answer.json() == request.json() == json.loads(lists(depth))
            continue
        with pytest.raises(UnusableResponse):
            answer.json()
        with pytest.raises(ValueError, match="nested too deep"):
            request.json()


def test_message_data_that_is_too_deep_cannot_be_encoded():
    value = []
    for _ in range(MAX_DEPTH):
        value = [value]
    with pytest.raises(TypeError, match="nested deeper than"):
        Message("1", value).raw  # noqa: B018  # it raises
    assert Message("1", value[0]).raw == lists(MAX_DEPTH)


THEMSELVES = {
    "feeds/_data_decoder.py": "what was decoded before, and written again by it",
    "_json.py": "the limit",
    "feeds/_decoding.py": "where values are left as they stand",
    "feeds/_cloudevents.py": "after the depth of the page or the event was looked at",
    "feeds/_paged/body.py": "after the depth was looked at",
    "cli/_demo.py": "lines that the demo's own handler has written",
}
"""Modules that may use the decoder of msgspec directly, with the reason."""


@pytest.mark.no_cover  # only reads the source
def test_only_the_listed_modules_use_the_json_decoder_of_msgspec_directly():
    root = Path(push_to_poll_client.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        if "msgspec" not in (source := path.read_text()):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {
                "msgspec.json.decode",
                "msgspec.json.Decoder",
            }:
                found.add(path.relative_to(root).as_posix())
    assert found == set(THEMSELVES)


def test_a_long_line_that_is_not_deep_is_read():
    text = b'"%b"\n[1]\n' % (b"x" * 2 * SAFE_LENGTH)
    assert _decode_lines(text) == ["x" * 2 * SAFE_LENGTH, [1]]
