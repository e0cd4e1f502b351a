"""Messages of a page: their selection, their names, and unreadable entries."""

import json

import pytest

from push_to_poll_client import UnreadableMessage
from push_to_poll_client._types import DeadLetter
from push_to_poll_client.feeds._decoding import split_json
from push_to_poll_client.feeds._paged import body as body_module
from push_to_poll_client.feeds._paged import entries as entries_module
from push_to_poll_client.feeds._paged.body import DeclarationMismatch
from push_to_poll_client.feeds._paged.readers import Field
from push_to_poll_client.feeds.paged import (
    CONTENTS,
    LINES,
    Entries,
    Entry,
    from_last,
)
from tests.support.paged_replies import names, read, reply

# Lists


EVENTS = [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize(
    ("where", "body"),
    [
        ([], EVENTS),
        (["data"], {"data": EVENTS}),
        ([("result", "items")], {"result": {"items": EVENTS}}),
        ([("pages", 0)], {"pages": [EVENTS]}),
        ([LINES], b'{"id": "a"}\n{"id": "b"}\n'),
        ([LINES], b'\r\n{"id": "a"}\r\n\n \n{"id": "b"}'),
        ([lambda body: [e for e in body["rooms"] if e["id"]]], {"rooms": [*EVENTS, {"id": ""}]}),
    ],
)
def test_entries_are_read_from_the_declared_list(where, body):
    messages = read(Entries(*where), body)
    assert names(messages) == ["a", "b"]
    assert [json.loads(message.raw) for message in messages] == EVENTS
    assert [message.data for message in messages] == EVENTS


@pytest.mark.parametrize(
    ("where", "body", "text"),
    [
        (["events"], {"data": EVENTS}, "there is no list at 'events'; found {'data': array of 2}"),
        (["data"], {"data": None}, "there is no list at 'data'; found {'data': null}"),
        (["data"], {"data": "x"}, "there is no list at 'data'; found string"),
        (["data"], {"data": {"items": []}}, "there is no list at 'data'; found {'items': array of 0}"),
        (["data"], EVENTS, "there is no list at 'data'; found array of 2"),
        (["data"], b"<html>", "there is no list at 'data'; found no JSON"),
        (["data"], b'{"data": [1, 2}', "there is no list at 'data'; found no JSON"),
        (
            [("r", "items")],
            {"r": {"list": []}},
            "there is no list at 'r' / 'items'; found {'list': array of 0} at 'r'",
        ),
        ([], {"data": EVENTS}, "there is no list of entries; found {'data': array of 2}"),
        ([], b"", "there is no list of entries; found no JSON"),
        ([], b'[{"id": 1}', "there is no list of entries; found no JSON"),
        ([lambda body: body["data"]], {"data": {"a": 1}}, "there is no list by <lambda>; found {'a': number}"),
        (
            [LINES],
            b'[\n{"id": 1},\n{"id": 2}\n]',
            "the body is not NDJSON, or its last line is cut off: array of 2",
        ),
        ([LINES], b'{"id": 1}\n{"id": ', "the body is not NDJSON, or its last line is cut off: no JSON"),
    ],
)
def test_the_error_for_a_missing_list_names_it_and_describes_the_body(where, body, text):
    with pytest.raises(DeclarationMismatch) as unfit:
        read(Entries(*where), body)
    assert str(unfit.value) == text


def test_an_optional_list_may_be_missing_from_an_object():
    entries = Entries("history", optional=True)
    assert read(entries, {"historyId": "7"}) == []
    assert read(entries, {"history": None}) == []
    assert read(entries, {}) == []
    with pytest.raises(DeclarationMismatch):
        read(entries, b"<html>")
    with pytest.raises(DeclarationMismatch):
        read(entries, [])


def test_an_empty_list_has_no_messages():
    said = reply([])
    assert read(Entries(), said) == []
    assert (said.entries, said.size) == ([], 0)
    assert read(Entries(LINES), b"") == read(Entries(LINES), b"\n") == []


@pytest.mark.parametrize(
    ("where", "body"),
    [
        ([], [EVENTS[0]] * 4),
        ([LINES], b'{"id": "a"}\n' * 4),
        ([lambda body: body], [EVENTS[0]] * 4),
        (["a", "b"], {"a": [EVENTS[0]] * 2, "b": [EVENTS[0]] * 2}),
    ],
)
def test_a_page_with_too_many_entries_is_refused(where, body):
    with pytest.raises(
        DeclarationMismatch, match="a page has more than 3 entries; request smaller pages, or raise max_body="
    ):
        read(Entries(*where), body, most=3)


def test_a_page_of_too_many_entries_is_not_decoded(monkeypatch):
    """In memory each entry takes some hundred bytes, on the wire only two."""
    monkeypatch.setattr(body_module, "_decode_list", None)
    with pytest.raises(DeclarationMismatch, match="a page has more than 3 entries"):
        read(Entries(), [{"id": "a" * 60}] * 4, most=3)


def test_commas_within_entries_are_not_counted_as_entries():
    assert len(read(Entries(), [{"id": "a", "b": [1, 2, 3, 4]}] * 3, most=3)) == 3


def test_the_name_of_a_list_is_the_default_type_of_its_messages():
    entries = Entries("added", ("page", "gone"), deletions="gone", type="kind")
    body = {"added": [{"id": "a"}, {"id": "b", "kind": "moved"}], "page": {"gone": [{"id": "a"}]}}
    messages = read(entries, body)
    assert [(m.id, m.type, m.deleted) for m in messages] == [
        ("a", "added", False),
        ("b", "moved", False),
        ("a", "gone", True),
    ]
    assert len({message.dedupe_key for message in messages}) == 3
    assert [json.loads(message.raw) for message in messages][::2] == [
        {"added": {"id": "a"}},
        {"gone": {"id": "a"}},
    ]


def test_lists_with_the_same_name_are_named_by_their_paths():
    messages = read(
        Entries(("users", "items"), ("groups", "items")),
        {"users": {"items": [{"id": 1}]}, "groups": {"items": [{"id": 1}]}},
    )
    assert [message.type for message in messages] == ["users.items", "groups.items"]


def test_a_list_given_by_a_function_or_constant_is_named_after_it():
    def joined(body):
        return body["joined"]

    entries = Entries(joined, LINES)
    assert [*entries._lists] == ["joined", "LINES"]


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: Entries("a", "a"), ValueError, "two lists have the same name"),
        (lambda: Entries(""), ValueError, "empty"),
        (lambda: Entries(None), TypeError, "names"),
        (lambda: Entries(id=""), ValueError, "empty"),
        (lambda: Entries(id=None), TypeError, "names"),
        (lambda: Entries(version=LINES), TypeError, "version must be a path, a function"),
        (lambda: Entries(type=7.5), TypeError, "names"),
        (
            lambda: Entries("added", deletions="removed"),
            ValueError,
            "deletions must be the name of one of several lists, got 'removed'",
        ),
        (lambda: Entries("removed", deletions=""), ValueError, "name of one of several lists"),
        (lambda: Entries("removed", deletions="removed"), ValueError, "name of one of several lists"),
        (lambda: Entries(only="id"), TypeError, "only must be a function of an entry, got 'id'"),
    ],
)
def test_an_invalid_entries_declaration_is_refused(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


# Names


def test_message_fields_are_read_from_the_declared_paths():
    entries = Entries(type=("what", "kind"), time="at", deleted="gone")
    body = [
        {"id": 7, "what": {"kind": "paid"}, "at": 1.5, "gone": {"why": "x"}},
        {"id": "b", "gone": False},
        {"id": "c", "gone": {}},
    ]
    said = [(m.id, m.dedupe_key, m.type, m.time, m.deleted) for m in read(entries, body)]
    assert said == [("7", "7", "paid", 1.5, True), ("b", "b", "", None, False), ("c", "c", "", None, False)]


def test_message_fields_are_read_by_the_declared_functions():
    entries = Entries(
        id=lambda e: e["a"] + e["b"],
        version=lambda e: e["v"],
        type=lambda e: e["t"].lower(),
        deleted=lambda e: e["t"] == "DELETED",
    )
    [message] = read(entries, [{"a": "x", "b": "y", "v": 2, "t": "DELETED"}])
    assert (message.id, message.type, message.deleted) == ("xy@2", "deleted", True)


def test_each_version_of_an_entry_is_a_separate_message():
    messages = read(
        Entries(version="etag"), [{"id": "a", "etag": 1}, {"id": "a", "etag": 2}, {"id": "b", "etag": 1}]
    )
    assert names(messages) == ["a@1", "a@2", "b@1"]
    assert len({message.dedupe_key for message in messages}) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"id": "a:1", "v": "2"}, {"id": "a", "v": "1:2"}),
        ({"id": "a@1", "v": "2"}, {"id": "a", "v": "1@2"}),
        ({"id": "1:a", "v": "2"}, {"id": "1", "v": "a:2"}),
    ],
)
def test_different_pairs_of_id_and_version_have_different_keys(one, other):
    messages = read(Entries(version="v"), [one, other])
    assert messages[0].dedupe_key != messages[1].dedupe_key


def test_an_entry_without_a_version_is_unreadable_unless_it_is_a_deletion():
    entries = Entries(version="etag", deleted="gone")
    body = [{"id": "a", "etag": 1}, {"id": "b"}, {"id": "a", "gone": True}]
    first, unversioned, gone_now = read(entries, body)
    assert first.error is None
    assert "an entry has no version at 'etag'" in str(unversioned.error)
    assert gone_now.deleted
    assert gone_now.dedupe_key not in {first.dedupe_key, "a"}
    assert read(entries, body, start="later")[2].dedupe_key != gone_now.dedupe_key


def test_a_contents_version_changes_only_with_the_contents_or_the_start_cursor():
    entries = Entries(version=CONTENTS)
    [one] = read(entries, [{"id": "a", "x": 1, "y": 2}], start="c")
    [same] = read(entries, b'[{"y":2,  "x":1, "id":"a"}]', start="c")
    [other] = read(entries, [{"id": "a", "x": 2, "y": 2}], start="c")
    [later] = read(entries, [{"id": "a", "x": 1, "y": 2}], start="d")
    assert one.dedupe_key == same.dedupe_key
    assert one.id == same.id
    assert len({one.dedupe_key, other.dedupe_key, later.dedupe_key}) == 3


def test_equal_contents_in_different_lists_are_different_messages():
    entries = Entries("added", "modified", version=CONTENTS)
    one, other = read(entries, {"added": [{"id": "a"}], "modified": [{"id": "a"}]})
    assert one.id != other.id


def test_a_newest_first_page_is_read_oldest_first():
    said = reply({"a": [{"id": 4}, {"id": 3}], "b": [{"id": 2}, {"id": 1}]})
    messages = read(Entries("a", "b", newest_first=True), said)
    assert names(messages) == ["1", "2", "3", "4"]
    assert [json.loads(m.raw) for m in messages] == [
        {"b": {"id": 1}},
        {"b": {"id": 2}},
        {"a": {"id": 3}},
        {"a": {"id": 4}},
    ]
    assert from_last("id")(said) == 4


def test_entries_that_the_only_function_rejects_are_skipped():
    said = reply([{"id": "a", "event": "open"}, {"id": "b", "event": "message"}, {"id": "c", "event": "open"}])
    messages = read(Entries(only=lambda e: e["event"] == "message"), said)
    assert names(messages) == ["b"]
    assert json.loads(messages[0].raw)["id"] == "b"
    assert from_last("id")(said) == "c"


def test_each_entry_may_have_a_cursor():
    messages = read(
        Entries(), [{"id": "a", "seq": 1}, {"id": "b", "seq": None}, {"id": "c", "seq": [3]}], each=Field("seq")
    )
    assert [message.cursor for message in messages] == ["1", None, "[3]"]


# Unreadable entries


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (b'{"id": "x\xff"}', "an entry is not valid JSON: UnicodeDecodeError"),
        (b'{"id": "x", "a": nonsense}', "an entry is not valid JSON: DecodeError"),
        (b'{"id": "x", "a": %b}' % (b"[" * 9999 + b"]" * 9999), "an entry is not valid JSON: RecursionError"),
        (b'{"name": "x"}', "an entry has no id at 'id'"),
        (b'{"id": ""}', "an entry has no id at 'id'"),
        (b'{"id": true}', "an entry has no id at 'id'"),
        (b"7", "an entry has no id at 'id'"),
        (b"null", "an entry has no id at 'id'"),
        (b'["id"]', "an entry has no id at 'id'"),
        (b'{"id": "%b"}' % (b"x" * 1025), "longer than 1024 characters"),
        (b'{"id": "a\\u0000"}', "or contains a zero character"),
    ],
)
def test_an_entry_that_cannot_be_read_fails_alone(entry, why):
    said = reply(b'[{"id": "a"}, %b, {"id": "b"}]' % entry)
    before, broken, after = read(Entries(), said)
    assert (before.id, after.id) == ("a", "b")
    assert isinstance(broken, UnreadableMessage)
    assert broken.raw == entry
    assert broken.dedupe_key.startswith("unreadable:")
    text = str(broken.error)
    assert text.startswith("an entry")
    assert why in text
    assert text.endswith("; correct the declaration, or report it to the publisher")
    assert said.size == 3


def test_a_line_that_cannot_be_read_fails_alone():
    messages = read(Entries(LINES), b'{"id": "a"}\n{"id": "b"} {"id": "c"}\n{"id": "d"}\n')
    assert [message.error is None for message in messages] == [True, False, True]
    assert messages[1].raw == b'{"id": "b"} {"id": "c"}'


def test_an_entry_cannot_continue_on_the_next_line():
    """There are as many values as lines, but each dead letter would have kept the text of another entry."""
    messages = read(Entries(LINES), b'{"id": "a"\n}{"id": "b"}\n{"id": "c"}\n')
    assert [message.error is None for message in messages] == [False, False, True]
    assert [message.raw for message in messages] == [b'{"id": "a"', b'}{"id": "b"}', b'{"id": "c"}']


@pytest.mark.parametrize(
    "options",
    [
        {"version": lambda e: e["v"]},
        {"type": lambda e: e["v"]},
        {"time": lambda e: e["v"]},
        {"deleted": lambda e: e["v"]},
        {"only": lambda e: e["v"]},
        {"id": lambda e: e["v"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_entry_that_a_function_cannot_read_fails_alone(options):
    entries = Entries(**options)
    body = [{"id": "a", "v": "1"}, {"id": "b"}, {"id": "c", "v": "3"}]
    messages = read(entries, body)
    assert [isinstance(message, UnreadableMessage) for message in messages] == [False, True, False]
    assert "an entry cannot be read: KeyError: 'v'; correct the declaration" in str(messages[1].error)


def test_the_error_names_the_exception_that_a_function_raised():
    messages = read(Entries(time=lambda e: e["at"]["s"]), [{"id": "a", "at": {"s": 1}}, {"id": "b", "at": None}])
    assert "TypeError" in str(messages[1].error)


def test_an_unreadable_entry_keeps_its_cursor_if_it_has_one():
    body = b'[{"id": "a", "seq": 1}, {"seq": 2}, nonsense]'
    messages = read(Entries(), body, each=Field("seq"))
    assert [message.cursor for message in messages] == ["1", "2", None]


def test_a_failing_cursor_function_fails_only_its_own_entry():
    each = Field(lambda entry: entry["seq"] + 1)
    messages = read(Entries(), [{"id": "a", "seq": 1}, {"id": "b", "seq": None}], each=each)
    assert [message.cursor for message in messages] == ["2", None]
    assert isinstance(messages[1], UnreadableMessage)


def test_unreadable_entries_with_the_same_bytes_have_the_same_key():
    [_, one] = read(Entries(), b'[{"id": 1}, nonsense]')
    [_, same, other] = read(Entries(), b'[{"id": 1}, nonsense , nonsenses]')
    assert one.dedupe_key == same.dedupe_key != other.dedupe_key


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            [{"uuid": "secret"}],
            (
                "no entry of the first page can be read; the first is {'uuid': "
                "string}: an entry has no id at 'id'; correct the"
            ),
        ),
        (b"[nonsense]", "is no JSON: an entry is not valid JSON: DecodeError"),
        ([[1], [2]], "is array of 1: an entry has no id"),
    ],
)
def test_a_first_page_without_a_readable_entry_is_refused_as_a_wrong_declaration(body, text):
    with pytest.raises(DeclarationMismatch) as unfit:
        read(Entries(), body)
    assert text in str(unfit.value)


def test_a_page_without_a_readable_entry_is_refused_after_an_empty_first_page():
    entries = Entries()
    assert read(entries, []) == []
    with pytest.raises(DeclarationMismatch, match="no entry of the first page can be read"):
        read(entries, [{"uuid": "a"}])


def test_a_later_page_without_a_readable_entry_gives_unreadable_messages():
    entries = Entries()
    assert read(entries, []) == []
    read(entries, [{"id": "a"}])
    [message] = read(entries, [{"uuid": "a"}])
    assert message.error


def test_a_page_with_too_many_unreadable_entries_is_refused(monkeypatch):
    monkeypatch.setattr(entries_module, "MAX_UNREADABLE", 2)
    entries = Entries()
    assert len(read(entries, b'[{"id": 1}, x, y]')) == 3
    with pytest.raises(DeclarationMismatch, match="more than 2 unreadable entries"):
        read(entries, b'[{"id": 1}, x, y, z]')


# Dead letters


def letter(message):
    return DeadLetter(dedupe_key=message.dedupe_key, id=message.id, raw=message.raw, error="broken")


def test_a_dead_letter_is_restored_to_its_original_message():
    entries = Entries("added", "gone", version=CONTENTS, deletions="gone", time="at")
    for message in read(entries, {"added": [{"id": "a", "at": 1, "gone": 7}], "gone": [{"id": "b"}]}, start="c"):
        again = entries.restore(letter(message))
        names_of = ("id", "dedupe_key", "data", "raw", "type", "time", "deleted")
        assert [getattr(again, name) for name in names_of] == [getattr(message, name) for name in names_of]


def test_a_dead_letter_of_an_unreadable_message_stays_unreadable():
    entries = Entries("added", "gone")
    messages = read(entries, b'{"added": [{"id": "a"}, nonsense, {"added": 1}, {}], "gone": []}')
    for message in messages[1:]:
        again = entries.restore(letter(message))
        assert isinstance(again, UnreadableMessage)
        assert (again.id, again.dedupe_key, again.raw) == (message.id, message.dedupe_key, message.raw)
        assert str(again.error) == str(message.error)


@pytest.mark.parametrize("no_space", [b"\x0b", b"\x0c"])
def test_a_dead_letter_beside_characters_that_are_not_json_whitespace_stays_unreadable(no_space):
    entries = Entries("a", "b")
    page = b'{"a": [{"id": "1"}], "b": [' + no_space + b'{"id": "2"}, {"id": "3"}]}'
    [message] = [message for message in read(entries, page) if message.error]
    again = entries.restore(letter(message))
    assert isinstance(again, UnreadableMessage)
    assert (again.id, again.dedupe_key, again.raw) == (message.id, message.dedupe_key, message.raw)


def test_a_dead_letter_that_has_become_readable_gets_its_id_and_keeps_its_key():
    [_, message] = read(Entries(), [{"id": "a"}, {"uuid": "b"}])
    again = Entries(id="uuid").restore(letter(message))
    assert (again.id, again.dedupe_key, again.error) == ("b", message.dedupe_key, None)


def test_a_dead_letter_of_a_single_list_is_not_read_as_one_of_several_lists():
    message = Entries("added", "gone").restore(
        DeadLetter(dedupe_key="k", id="i", raw=b'{"added": 1, "id": 2}', error="")
    )
    assert (message.data, message.type) == ({"added": 1, "id": 2}, "")


def test_a_dead_letter_that_a_function_cannot_read_has_the_error():
    [message] = read(Entries(), [{"id": "a"}])
    again = Entries(type=lambda e: e["t"]).restore(letter(message))
    assert "KeyError" in str(again.error)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ({}, "an entry cannot be read: KeyError: 'kind'; correct the declaration, or report it to the publisher"),
        (
            {"kind": "open"},
            (
                "only= skips this entry now; drop its dead letter; "
                "correct the declaration, or report it to the publisher"
            ),
        ),
        ({"kind": "message"}, "None"),
    ],
)
def test_a_dead_letter_is_restored_with_an_error_unless_the_only_function_selects_it(kind, error):
    entries = Entries(only=lambda entry: entry["kind"] == "message")
    [_, message] = read(Entries(), [{"id": "a"}, {"id": "b", **kind}])
    again = entries.restore(letter(message))
    assert (again.id, again.dedupe_key, again.raw, str(again.error)) == (
        "b",
        message.dedupe_key,
        message.raw,
        error,
    )


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b'{"added": {}}', b'{"other": {"id": 1}}', b'{"added": \xff}', b"\xff"]
)
def test_restoring_a_dead_letter_with_any_raw_bytes_does_not_raise(raw):
    message = Entries("added", "gone").restore(DeadLetter(dedupe_key="k", id="i", raw=raw, error=""))
    assert (message.id, message.dedupe_key) == ("i", "k")


# Single entries


def test_an_entry_can_be_constructed_directly_for_a_handler_test():
    entry = Entry("1", {"a": 1}, type="paid", deleted=True)
    assert (entry.id, entry.dedupe_key, entry.cursor, entry.time) == ("1", "1", None, None)
    assert (entry.raw, entry.type, entry.deleted) == (b'{"a":1}', "paid", True)
    assert repr(entry) == "Entry(id='1')"


def test_a_handler_that_changes_the_data_does_not_change_the_id_type_or_raw_bytes():
    [message] = read(Entries(type="t"), [{"id": "a", "t": "x"}])
    message.data.clear()
    assert (message.id, message.type, json.loads(message.raw)) == ("a", "x", {"id": "a", "t": "x"})


def test_the_text_of_a_page_is_split_only_when_a_raw_message_is_read():
    entries = Entries()
    [part] = entries.find(reply([{"id": "a"}]), 10)
    [message] = entries.read([part], each=None, start=None)
    assert part._raws is None
    assert message.raw == b'{"id": "a"}'
    assert [bytes(raw) for raw in part._raws] == list(split_json(b'[{"id": "a"}]', b"[]"))
