"""Hints by declaration: what a push says is read, and whatever else it is, it is a push."""

import json
from types import SimpleNamespace

import pytest

from push_to_poll_client._types import Push
from push_to_poll_client.listeners import ServerSentEvent
from push_to_poll_client.listeners._hints import JSONHint, path_of, texts_at

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
def test_it_reads_texts_bytes_and_what_has_a_body_or_data(message):
    assert READ(message) == Push(cursor="7")


def test_it_reads_all_that_was_declared():
    message = '{"cursor": 7, "changed": ["a", "b", "a", 3], "new": "12", "x": 1}'
    assert READ(message) == Push("7", ("a", "b", "3"), 12)


def test_what_was_not_declared_is_not_read():
    assert JSONHint()('{"cursor": "7"}') == Push()


def test_a_path_leads_through_lists():
    hint = JSONHint(topics="value.resource", cursor="at.0.x")
    message = '{"value": [{"resource": "a"}, {"resource": "b"}, 5, {"other": 1}], "at": {"0": {"x": "c"}}}'
    assert hint(message) == Push("c", ("a", "b"))


@pytest.mark.parametrize(
    "message", ["x", b"\xff", "", "\ud800", "[" * 100_000, "null", '"cursor"', None, 7, object()]
)
def test_what_cannot_be_read_is_a_push_that_says_nothing(message):
    assert READ(message) == Push()


@pytest.mark.parametrize("cursor", ["", "x" * 1025, None, True, 1.5, {}, [["a"]], ["a", "b"]])
def test_what_is_no_cursor_is_none(cursor):
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
def test_a_count_is_a_whole_number_that_can_be_one(count, read):
    assert READ(json.dumps({"new": count})).count == read


def test_a_push_with_too_many_topics_speaks_of_all():
    most = [str(number) for number in range(64)]
    assert READ(json.dumps({"changed": most})).topics == tuple(most)
    assert READ(json.dumps({"changed": [*most, "64"]})).topics == ()


def test_what_is_not_asked_for_is_no_push():
    hint = JSONHint(cursor="at", only={"type": "wake", "of.kind": "order"})
    assert hint('{"type": "wake", "of": {"kind": "order"}, "at": 3}') == Push("3")
    assert hint('{"type": "wake", "of": [{"kind": "user"}, {"kind": "order"}]}') == Push()
    assert hint('{"type": "ping", "of": {"kind": "order"}}') is None
    assert hint('{"type": "wake"}') is None
    assert hint("no json") is None


@pytest.mark.parametrize(
    ("where", "kind"), [("", ValueError), ("a..b", ValueError), (".a", ValueError), (7, TypeError)]
)
def test_a_path_without_a_meaning_is_refused(where, kind):
    with pytest.raises(kind, match="a path is"):
        JSONHint(cursor=where)
    with pytest.raises(kind, match="a path is"):
        JSONHint(only={where: "x"})


def test_no_more_is_taken_than_was_asked_for():
    assert texts_at([{"a": "1"}, {"a": "1"}, {"a": "2"}, {"a": "3"}], path_of("a"), most=2) == ["1", "2"]
    assert texts_at("x", (), most=0) == []
