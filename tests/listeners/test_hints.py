"""Declared hints: the content of a push is read, and malformed content still counts as a push."""

import json
from types import SimpleNamespace

import pytest

from push_to_poll_client._types import Push
from push_to_poll_client.listeners import ServerSentEvent
from push_to_poll_client.listeners._hints import JSONHint, parse_path, strings_at

READ = JSONHint(cursor="cursor", topics="changed", count="new")


@pytest.mark.parametrize(
    "message",
    [
        '{"cursor": "7"}',
        b'{"cursor": "7"}',
        ServerSentEvent("message", '{"cursor": "7"}', ""),
        SimpleNamespace(body=b'{"cursor": "7"}', data=b'{"cursor": "8"}'),
        bytearray(b'{"cursor": 7}'),
    ],
)
def test_a_hint_is_read_from_text_bytes_and_objects_with_a_body_or_data(message):
    assert READ(message) == Push(cursor="7")


def test_a_hint_reads_the_declared_cursor_topics_and_count():
    message = '{"cursor": 7, "changed": ["a", "b", "a", 3], "new": "12", "x": 1}'
    assert READ(message) == Push("7", ("a", "b", "3"), 12)


def test_an_undeclared_field_is_not_read():
    assert JSONHint()('{"cursor": "7"}') == Push()


def test_a_path_reads_values_inside_lists():
    hint = JSONHint(topics="value.resource", cursor="at.0.x")
    message = '{"value": [{"resource": "a"}, {"resource": "b"}, 5, {"other": 1}], "at": {"0": {"x": "c"}}}'
    assert hint(message) == Push("c", ("a", "b"))


@pytest.mark.parametrize(
    "message", ["x", b"\xff", "", "\ud800", "[" * 100_000, "null", '"cursor"', None, 7, object()]
)
def test_an_unreadable_push_becomes_a_push_without_a_hint(message):
    assert READ(message) == Push()


@pytest.mark.parametrize("cursor", ["", "x" * 1025, None, True, 1.5, {}, [["a"]], ["a", "b"]])
def test_an_invalid_cursor_is_ignored(cursor):
    assert READ(json.dumps({"cursor": cursor})) == Push()


@pytest.mark.parametrize(
    ("count", "read"),
    [
        (0, 0),
        ("7", 7),
        (2**63 - 1, 2**63 - 1),
        (2**63, None),
        (-1, None),
        ("1_0", None),
        ("٣", None),
        (True, None),
    ],
)
def test_a_count_that_is_not_a_valid_whole_number_is_ignored(count, read):
    assert READ(json.dumps({"new": count})).count == read


def test_a_list_of_more_than_64_topics_is_ignored():
    most = [str(number) for number in range(64)]
    assert READ(json.dumps({"changed": most})).topics == tuple(most)
    assert READ(json.dumps({"changed": [*most, "64"]})).topics == ()


def test_a_message_that_does_not_match_only_is_not_a_push():
    hint = JSONHint(cursor="at", only={"type": "wake", "of.kind": "order"})
    assert hint('{"type": "wake", "of": {"kind": "order"}, "at": 3}') == Push("3")
    assert hint('{"type": "wake", "of": [{"kind": "user"}, {"kind": "order"}]}') == Push()
    assert hint('{"type": "ping", "of": {"kind": "order"}}') is None
    assert hint('{"type": "wake"}') is None
    assert hint("no json") is None


@pytest.mark.parametrize(
    ("where", "kind"), [("", ValueError), ("a..b", ValueError), (".a", ValueError), (7, TypeError)]
)
def test_an_invalid_path_is_refused(where, kind):
    with pytest.raises(kind, match="path must be"):
        JSONHint(cursor=where)
    with pytest.raises(kind, match="path must be"):
        JSONHint(only={where: "x"})


def test_texts_at_returns_at_most_the_requested_number_of_distinct_texts():
    assert strings_at([{"a": "1"}, {"a": "1"}, {"a": "2"}, {"a": "3"}], parse_path("a"), limit=2) == ["1", "2"]
    assert strings_at("x", (), limit=0) == []
