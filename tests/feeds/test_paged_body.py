"""A response as the parts of a declaration see it: places, texts, and its values in errors."""

import pytest

from push_to_poll_client.feeds._decoding import elements, members
from push_to_poll_client.feeds._paged.body import DeclarationMismatch, path_of, text_of
from push_to_poll_client.feeds._paged.readers import Field, texts_of
from tests.support.paged_replies import BODY, reply

# Paths


@pytest.mark.parametrize(
    ("path", "steps"), [("a", ("a",)), (0, (0,)), (("a", 0, "b"), ("a", 0, "b")), ("a.b", ("a.b",))]
)
def test_a_path_is_one_step_or_a_tuple_of_steps(path, steps):
    assert path_of(path) == steps


@pytest.mark.parametrize("path", [True, None, 1.5, ["a"], ("a", None), ("a", False)])
def test_a_path_of_another_type_is_a_type_error(path):
    with pytest.raises(TypeError, match="names"):
        path_of(path)


@pytest.mark.parametrize("path", ["", (), ("a", "")])
def test_a_path_with_an_empty_name_is_a_value_error(path):
    with pytest.raises(ValueError, match="empty"):
        path_of(path)


# Responses


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("meta", "next"), "c2"),
        (("meta", "list", 1, "id"), 2),
        (("meta", "list", -1), {"id": 2}),
        (("meta", "list", 2), None),
        (("meta", 0), None),
        (("n",), 0),
        (("n", "x"), None),
        (("n", 0), None),
        (("x", "y", 0, "z"), None),
        (("x", 0), None),
        (("no",), None),
        ((), BODY),
    ],
)
def test_at_returns_the_value_at_a_path_or_none(path, value):
    assert reply(BODY).at(*path) == value


def test_body_is_the_decoded_json_or_none():
    assert reply(BODY).body == BODY
    assert reply(b"<html>").body is None
    assert reply(b"\xef\xbb\xbf[1]").body == [1]


def test_broken_values_do_not_hide_the_readable_values_of_a_body():
    """One byte is invalid UTF-8, one value is nested too deep."""
    said = reply(
        b'{"bad": "\xff", "deep": %b, "\\u0067ood" : {"a": 1}, "list": [1, "\xff", 3]}'
        % (b"[" * 9999 + b"]" * 9999)
    )
    assert said.at("good", "a") == 1
    assert said.at("bad") is None
    assert said.at("deep") is None
    assert [said.at("list", place) for place in range(3)] == [1, None, 3]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"a" 1}', b'{"a": "\xff", 1: 2}', b'{"\xff": 1}', b'{"a": "\xff"', b"7"]
)
def test_a_text_that_is_not_a_json_object_has_no_members(text):
    assert members(text) == {}
    assert members(None) == {}


def test_elements_are_read_from_an_array_only():
    assert [bytes(raw) for raw in elements(b' [1, {"a": [2]}]')] == [b"1", b'{"a": [2]}']
    assert elements(b'[{"a": "\xff"}, nonsense]') == [b'{"a": "\xff"}', b"nonsense"]
    for text in (b"", b"{}", b"[1", b"7", b"[1]]"):
        with pytest.raises(ValueError):
            elements(text)


def test_members_are_decoded_once():
    said = reply({"a": {"b": 1}})
    assert said.at("a", "b") == said.at("a", "b") == 1
    assert said._members.keys() == {(), ("a",)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("c", "c"),
        ("", None),
        (None, None),
        (True, None),
        (False, None),
        (0, "0"),
        (12345678901234567890123, "12345678901234567890123"),
        (1.5, "1.5"),
        ([1, "a"], '[1,"a"]'),
        ({"a": 1}, '{"a":1}'),
    ],
)
def test_a_json_value_is_converted_to_the_text_of_a_cursor_or_an_id(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (
            {"o": {}, "a": [1, 2], "s": "secret", "t": True, "z": None, "n": 1.5},
            "{'o': object, 'a': array of 2, 's': string, 't': boolean, 'z': null, 'n': number}",
        ),
        ([1, 2, 3], "array of 3"),
        ({}, "object"),
        ("secret", "string"),
        ({"next": ""}, "{'next': empty string}"),
        (b"<html>secret", "no JSON"),
        (b"", "no JSON"),
        (b'{"a": secret, "b": 1}', "{'a': no JSON, 'b': number}"),
        ({"\n" + "x" * 50: 1}, "{'\\n" + "x" * 39 + "...': number}"),
        (
            {f"n{n}": n for n in range(13)},
            "{" + ", ".join(f"'n{n}': number" for n in range(12)) + ", ...}",
        ),
    ],
)
def test_an_error_shows_field_names_and_types_but_no_values(body, shown):
    assert reply(body).outline() == shown


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (("result", "items"), "{'entries': array of 1} at 'result'"),
        (("result", "entries", 0, "id"), "{'idd': number} at 'result' / 'entries' / 0"),
        (("result", "list", "items"), "{'entries': array of 1} at 'result'"),
        (("list",), "{'result': object}"),
        (("list", "items"), "{'result': object}"),
    ],
)
def test_an_error_shows_the_part_that_a_path_leads_to(path, shown):
    assert reply({"result": {"entries": [{"idd": 1}]}}).outline(*path) == shown


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://api.vendor.example/x?c=a%2Bb", "https://api.vendor.example/x?c=a%2Bb"),
        ("/x?c=2", "https://api.vendor.example/x?c=2"),
        ("?c=2", "https://api.vendor.example/v1/events?c=2"),
        ("more", "https://api.vendor.example/v1/more"),
        ("//other.example/x", "https://other.example/x"),
    ],
)
def test_a_link_in_the_body_is_resolved_against_the_url_of_the_answer(text, url):
    assert reply().leads_to(text) == url


@pytest.mark.parametrize("text", ["http://a:b:c/", "https://\0/"])
def test_an_invalid_link_is_an_error(text):
    with pytest.raises(DeclarationMismatch, match="not a URL"):
        reply().leads_to(text)


# Entry fields


@pytest.mark.parametrize(
    ("where", "values"),
    [
        ("id", [1, None, None, None, None]),
        (("changes", 0, "rev"), ["r", None, None, None, None]),
        (0, [None, "first", None, None, None]),
        (str, ["{'id': 1, 'changes': [{'rev': 'r'}]}", "['first']", "7", "text", "None"]),
    ],
)
def test_a_field_reads_the_same_values_from_one_entry_and_from_all(where, values):
    entries = [{"id": 1, "changes": [{"rev": "r"}]}, ["first"], 7, "text", None]
    assert [Field(where)(entry) for entry in entries] == values
    assert Field(where).read_all(entries) == values
    assert Field(where).read_all(entries[:1]) == values[:1]


def test_the_repr_of_a_field_shows_its_path_or_function():
    def named(entry):
        return entry

    assert [repr(Field(where)) for where in ("id", ("a", 0), named)] == ["'id'", "('a', 0)", "named"]


@pytest.mark.parametrize("column", [["a", "b"], [1, 2], [1, True], ["a", 1, None], ["", "b"], []])
def test_texts_converts_a_column_like_single_values(column):
    assert texts_of(column) == [text_of(value) for value in column]
