"""From bytes to messages: unreadable events are set apart, and nothing is lost."""

import base64
import json
import tracemalloc
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from push_to_poll_client import _types
from push_to_poll_client._exceptions import DecodeError, FeedError
from push_to_poll_client._secrets import Secrets, hidden
from push_to_poll_client.feeds import CloudEvent
from push_to_poll_client.feeds import _cloudevents as cloudevents
from push_to_poll_client.feeds._decoding import split_json
from tests.fuzz.work import counting_calls, work_of
from tests.support.forms import form

WHERE = "https://shop.example/orders"
SPEC_EXAMPLE = b"""{
  "specversion" : "1.0",
  "type" : "org.http-feeds.example.inventory",
  "source" : "https://example.http-feeds.org/inventory",
  "id" : "1c6b8c6e-d8d0-4a91-b51c-1f56bd04c758",
  "time" : "2021-01-01T00:00:01Z",
  "subject" : "9521234567899",
  "traceparent" : "00-4bf9-00f0-01",
  "sequence" : 7,
  "partitionkey" : null,
  "data" : {"sku": "9521234567899", "quantity": 5}
}"""
DEEP = b"[" * 100_000 + b"]" * 100_000


def event(**members):
    return json.dumps({"id": "1", "source": "s", **members}).encode()


def read_batch(body, where, most=100_000):
    return cloudevents.read_batch(body, where, max_events=most)


def page(*events):
    return b"[" + b",".join(events) + b"]"


def is_unreadable(message):
    return isinstance(message, _types.UnreadableMessage)


class TestAnEvent:
    def test_has_the_attributes_and_data_of_the_specification_example(self):
        message = CloudEvent.from_json(SPEC_EXAMPLE)
        assert message.id == message.cursor == "1c6b8c6e-d8d0-4a91-b51c-1f56bd04c758"
        assert message.type == "org.http-feeds.example.inventory"
        assert message.source == "https://example.http-feeds.org/inventory"
        assert message.subject == "9521234567899"
        assert message.time == "2021-01-01T00:00:01Z"
        assert message.data == {"sku": "9521234567899", "quantity": 5}
        assert message.error is None

    def test_keeps_its_extensions(self):
        attributes = CloudEvent.from_json(SPEC_EXAMPLE).attributes
        assert attributes["traceparent"] == "00-4bf9-00f0-01"
        assert attributes["sequence"] == 7
        assert attributes["specversion"] == "1.0"
        assert "data" not in attributes
        assert "partitionkey" not in attributes  # null counts as missing

    def test_needs_nothing_but_an_id(self):
        message = CloudEvent.from_json(b'{"id":"1"}')
        assert (message.source, message.type, message.subject, message.time, message.data) == (
            "",
            "",
            None,
            None,
            None,
        )
        assert (message.method, message.deleted) == ("PUT", False)

    def test_takes_null_for_missing(self):
        message = CloudEvent.from_json(
            event(source=None, type=None, subject=None, time=None, method=None, data=None)
        )
        assert (message.source, message.type, message.subject, message.time, message.data) == (
            "",
            "",
            None,
            None,
            None,
        )
        assert (message.method, message.deleted) == ("PUT", False)

    @pytest.mark.parametrize("method", ["DELETE", "delete", "Delete"])
    def test_is_a_deletion_if_its_method_is_delete_in_any_case(self, method):
        message = CloudEvent.from_json(event(method=method))
        assert message.deleted
        assert message.method == method

    @pytest.mark.parametrize("data", [0, False, "", [], {}, "text", 1.5, [None]])
    def test_may_have_data_of_any_json_type(self, data):
        assert CloudEvent.from_json(event(data=data)).data == data

    def test_has_data_base64_decoded_to_bytes(self):
        assert CloudEvent.from_json(event(data_base64=base64.b64encode(b"\x00\xff").decode())).data == b"\x00\xff"
        assert CloudEvent.from_json(event(data=None, data_base64="AP8=")).data == b"\x00\xff"
        assert CloudEvent.from_json(event(data_base64=None)).data is None
        assert "data_base64" not in CloudEvent.from_json(event(data_base64="AP8=")).attributes

    def test_decodes_its_data_only_once(self):
        message = CloudEvent.from_json(SPEC_EXAMPLE)
        assert message.data is message.data

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"id":"1","data":"\xff"}',
            b'{"id":"1","data":1e999}',
            b'{"id":"1","data_base64":"?"}',
            b'{"id":"1","data_base64":7}',
        ],
    )
    def test_raises_undecodable_message_when_its_invalid_data_is_read(self, raw):
        message = CloudEvent.from_json(raw)
        for _ in range(2):
            with pytest.raises(DecodeError, match="data of event '1' cannot be read"):
                _ = message.data

    def test_raises_undecodable_message_when_its_invalid_attributes_are_read(self):
        message = CloudEvent.from_json(b'{"id":"1","odd":"\xff","data":5}')
        with pytest.raises(DecodeError, match="attributes of event '1' cannot be read"):
            _ = message.attributes
        assert message.data == 5

    def test_does_not_show_its_data_in_its_repr(self):
        assert "secret" not in repr(CloudEvent.from_json(event(data="secret")))

    def test_is_refused_when_it_has_no_id(self):
        with pytest.raises(DecodeError, match="missing required field `id`"):
            CloudEvent.from_json(b"{}")

    def test_has_the_same_key_as_in_earlier_releases(self):
        # Stores keep the key: a changed key would make every message new after an upgrade.
        assert CloudEvent.from_json(event(id="7", source="/a")).dedupe_key == "2:/a7"
        assert CloudEvent.from_json(b'{"id":"7"}').dedupe_key == "0:7"
        assert CloudEvent.from_json(event(id="7", source="/as/long/as/can/")).dedupe_key == "16:/as/long/as/can/7"
        assert (
            CloudEvent.from_json(event(id="7", source="https://shop.example/")).dedupe_key == "#Cb-lXve3xUjX0WbU7"
        )

    def test_has_a_short_key_even_with_a_long_source(self):
        """Each record stores the key twice."""
        one, other = (CloudEvent.from_json(event(id="7", source=char * 1000)).dedupe_key for char in "ab")
        assert one != other
        assert CloudEvent.from_json(event(id="7", source="/longer/than/can/")).dedupe_key.startswith("#")
        assert len(one) == len("#") + 16 + len("7")

    def test_keeps_a_bounded_number_of_sources_in_memory(self):
        sources = [str(number) for number in range(2_000)]
        for _ in range(2):
            keys = [CloudEvent.from_json(event(id="7", source=source)).dedupe_key for source in sources]
            assert keys == [f"{len(source)}:{source}7" for source in sources]
        assert cloudevents._source_prefix.cache_info().currsize == 1_024

    @given(st.tuples(st.text(), st.text(min_size=1)), st.tuples(st.text(), st.text(min_size=1)))
    @example(("a", "bc"), ("ab", "c"))
    @example(("", "1:ab"), ("a", "b"))
    @example(("https://shop.example/", "7"), ("https://shop.example/7", "7"))
    def test_is_a_duplicate_only_if_source_and_id_are_both_equal(self, one, other):
        keys = [
            message.dedupe_key
            for source, name in (one, other)
            for message in read_batch(page(event(source=source, id=name)), WHERE)
            if not is_unreadable(message)
        ]
        if len(keys) == 2:
            assert (keys[0] == keys[1]) == (one == other)


BROKEN = [
    (b'{"id":"7","source":5}', "7"),
    (b'{"source":"s","id" :\n"7","type":[]}', "7"),
    (b'{"id":"7","subject":{}}', "7"),
    (b'{"id":"7","data":' + DEEP + b"}", "7"),
    (b'{"data":' + DEEP + b',"id":"7"}', "7"),
    (b'{"data":' + b'{"a":' * 100_000 + b"0" + b"}" * 100_000 + b',"id":"7"}', "7"),
    (b'{"id":"7","data":nul}', "7"),
    (b'{"id":"7","source":"\xff"}', "7"),
    (b'{"id":"7","data":"\\ud800"}', "7"),
    (b'{"id":"7","data":"a\x01"}', "7"),
    (b'{"id":"7","source":"a\\u0000"}', "7"),
    (b'{"id":"7","source":"' + b"s" * 2000 + b'"}', "7"),
    (b'{"id":"\\"7\\u0041,","type":0}', '"7A,'),
    (b'{"id":"7","id":"8","type":0}', "8"),
    (b'{"data":{"id":"9"},"type":0}', None),
    (b'{"id":"\xff"}', None),
    (b'{"id":"\\ud800"}', None),
    (b'{"id":"a\\u0000"}', None),
    (b'{"id":"' + b"7" * 1025 + b'"}', None),
    (b'{"id":""}', None),
    (b'{"id":7}', None),
    (b'{"id":null}', None),
    (b'{"type":"t"}', None),
    (b"{}", None),
    (b'{"id":"7"} {"id":"8"}', None),
    (b'{"id":"7",,"type":0}', None),
    (b"null", None),
    (b"[]", None),
    (b'"id"', None),
    (b"12", None),
    (b"nonsense", None),
    (DEEP, None),
]
"""Unreadable events, with the id that can still be read."""


def in_places(broken):
    """Put each event at each of four places of a page; in the short form at one of them, in turn."""
    places = [(0, 0), (0, 2), (1, 2), (2, 2)]
    for number, (raw, readable_id) in enumerate(broken):
        for position, others in form([places[number % 4]], places):
            name = f"{raw[:30]}-{readable_id}-{position}-{others}"
            yield pytest.param(raw, readable_id, position, others, id=name)


class TestAPage:
    def test_may_be_empty(self):
        assert read_batch(b"[]", WHERE) == []
        assert read_batch(b" [ ]\n", WHERE) == []

    def test_keeps_the_order_of_the_feed(self):
        messages = read_batch(page(*(event(id=str(n)) for n in (3, 1, 2))), WHERE)
        assert [message.id for message in messages] == ["3", "1", "2"]

    def test_may_begin_with_a_byte_order_mark(self):
        assert len(read_batch(b"\xef\xbb\xbf" + page(event()), WHERE)) == 1

    @pytest.mark.parametrize(("raw", "readable_id", "position", "others"), list(in_places(BROKEN)))
    def test_separates_an_unreadable_event_from_the_readable_events(self, raw, readable_id, position, others):
        events = [event(id=f"good {n}") for n in range(others)]
        events.insert(position, raw)
        messages = read_batch(page(*events), WHERE)
        bad = messages.pop(position)
        assert [message.id for message in messages] == [f"good {n}" for n in range(others)]
        assert not any(is_unreadable(message) for message in messages)
        assert is_unreadable(bad)
        assert bad.cursor == readable_id
        assert bad.id == (readable_id or bad.dedupe_key)
        assert str(bad.error).startswith(WHERE)
        assert len(str(bad.error)) < 500
        with pytest.raises(DecodeError):
            _ = bad.data

    def test_gives_an_unreadable_event_a_key_made_from_its_bytes(self):
        one, other, again = read_batch(
            page(b'{"id":"7","type":1}', b'{"id":"7","type":2}', b'{"id":"7","type":1}'), WHERE
        )
        assert one.dedupe_key == again.dedupe_key != other.dedupe_key
        # Stores keep the key. It must not depend on the rest of the page.
        assert one.dedupe_key == "unreadable:9508525e6b2c898efa4d14e74f9d28db"
        (slow,) = (m for m in read_batch(page(b'{"id":"7","type":1}', b"nul"), WHERE) if m.id == "7")
        assert slow.dedupe_key == one.dedupe_key

    def test_accepts_an_event_id_of_1024_characters(self):
        (message,) = read_batch(page(event(id="7" * 1024)), WHERE)
        assert message.id == message.cursor == "7" * 1024

    def test_reads_the_good_events_when_another_is_nested_too_deep(self):
        messages = read_batch(page(SPEC_EXAMPLE, b'{"id":"7","data":' + DEEP + b"}", SPEC_EXAMPLE), WHERE)
        assert [message.data for message in (messages[0], messages[2])] == [
            {"sku": "9521234567899", "quantity": 5}
        ] * 2
        assert messages[0].attributes["sequence"] == 7

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"<html>",
            b'{"error":"no"}',
            b"null",
            b'"[]"',
            b"[",
            b"]",
            b"[1",
            b'[{"id":"1"}',
            b'[{"id":"1"},',
            b'[{"id":"1"},]',
            b"[,]",
            b"[1,,2]",
            b"[1]]",
            b"[1] [2]",
            b'[{"id":"1}]',
            b'["\\',
            b"[{]",
            b"[1}",
            b"\xff\xfe[\x00]\x00",
            DEEP[:-1],
            DEEP + b"]",
        ],
        ids=lambda body: body[:20],
    )
    def test_is_a_feed_error_unless_it_is_a_complete_json_array(self, body):
        with pytest.raises(FeedError, match="did not send a JSON array of events") as failed:
            read_batch(body, WHERE)
        assert str(failed.value).startswith(WHERE)
        assert len(str(failed.value)) < 300

    def test_does_not_show_its_messages_in_the_error_when_it_is_truncated(self):
        with pytest.raises(FeedError) as failed:
            read_batch(b'[{"id":"1","data":"secret"},', WHERE)
        assert "secret" not in str(failed.value)

    def test_shows_its_first_bytes_in_the_error_when_it_is_not_an_array(self):
        with pytest.raises(FeedError, match=r"14 bytes that begins with '\{\"error\":\"no\"\}'"):
            read_batch(b'{"error":"no"}', WHERE)

    def test_masks_a_secret_before_it_cuts_the_first_bytes(self):
        secrets = Secrets()
        secrets.add("canary-secret")
        with hidden(secrets), pytest.raises(FeedError) as failed:
            read_batch(b'{"error":"your token is not good: canary-secret"}', WHERE)
        assert "canary" not in str(failed.value)

    def test_is_refused_with_too_many_unreadable_events(self, monkeypatch):
        monkeypatch.setattr(cloudevents, "MAX_UNREADABLE", 3)
        assert len(read_batch(b"[1,1,1]", WHERE)) == 3
        with pytest.raises(FeedError, match="more than 3 unreadable"):
            read_batch(b"[1,1,1,1]", WHERE)

    @pytest.mark.parametrize("one", [b"0", b"{}", b'{"id":"1"}', b'{"id":"1","data":[0,0,0,0,0,0,0,0,0,0]}', b"x"])
    @pytest.mark.parametrize("surplus", [0, 1])
    def test_is_refused_with_more_events_than_allowed(self, one, surplus):
        body = page(*[one] * (100 + surplus)) + b" " * 10_000
        if surplus:
            with pytest.raises(FeedError, match="a page of more than 100 events; request smaller pages"):
                read_batch(body, WHERE, most=100)
        else:
            assert len(read_batch(body, WHERE, most=100)) == 100

    def test_with_millions_of_events_is_refused_using_little_memory(self):
        most, body = form(10_000, 100_000), b"[" + b"0," * 8_000_000 + b"0]"
        tracemalloc.start()
        try:
            with pytest.raises(FeedError, match=f"more than {most} events"):
                read_batch(body, WHERE, most=most)
            assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
        finally:
            tracemalloc.stop()

    def test_is_not_kept_in_memory_by_an_unreadable_event(self):
        tracemalloc.start()
        try:
            kept = read_batch(page(b'{"id":"7","type":5}', event(data="x" * 4_000_000)), WHERE)[0]
            assert tracemalloc.get_traced_memory()[0] < 100_000
            assert kept.id == "7"
        finally:
            tracemalloc.stop()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
SPACE = st.text(" \t\r\n", max_size=3)


few = settings(max_examples=form(15, 100))
"""Nested JSON takes long to draw."""


class TestTheSplitter:
    @few
    @given(st.lists(JSON), st.sampled_from([None, 1]), st.booleans(), SPACE)
    def test_splits_an_array_into_the_same_values_as_json(self, values, indent, ascii_only, space):
        text = space + json.dumps(values, indent=indent, ensure_ascii=ascii_only) + space
        parts = split_json(text.encode(errors="surrogatepass"), b"[]")
        assert [json.loads(part) for part in parts] == values

    @few
    @given(st.dictionaries(st.text(), JSON), SPACE)
    def test_splits_an_object_into_the_same_members_as_json(self, value, space):
        parts = split_json((space + json.dumps(value)).encode(), b"{}")
        assert json.loads(b"{" + b",".join(parts) + b"}") == value

    @given(st.binary() | st.text('[]{},:"\\ 1a').map(str.encode))
    def test_keeps_every_byte_except_whitespace_and_commas(self, text):
        try:
            parts = list(split_json(b"[" + text + b"]", b"[]"))
        except ValueError:
            return
        assert len(b"".join(parts).translate(None, b" \t\r\n,")) == len(text.translate(None, b" \t\r\n,"))

    @pytest.mark.parametrize(
        "unit",
        [b"[", b"[]", b"[],", b'"",', b'\\"', b'"', b"{", b"]", b"\\", b",", b'"\\', b'{"":'],
    )
    def test_does_at_most_about_twice_the_work_for_twice_the_input(self, unit):
        def whole(text):
            with suppress(ValueError):
                list(split_json(text, b"[]"))

        with counting_calls():
            once, twice = (
                work_of(partial(whole, b"[" + unit * (size // len(unit)) + b"]")) for size in (2_000, 4_000)
            )
        assert twice < 2.2 * once


@given(st.binary() | st.text('[]{},:"\\ 1ad').map(str.encode))
def test_bytes_become_messages_or_a_feed_error(body):
    for text in (body, b"[" + body + b"]", b'[{"id":"1",' + body + b"}]"):
        try:
            messages = read_batch(text, WHERE)
        except FeedError:
            continue
        for message in messages:
            assert message.id
            assert message.dedupe_key
            (message.id + message.dedupe_key + (message.cursor or "")).encode()


EVENTS = st.dictionaries(
    st.sampled_from(["id", "source", "type", "subject", "time", "method", "data", "data_base64", "ext"]), JSON
)


@few
@given(st.lists(EVENTS | JSON), st.booleans())
def test_every_event_becomes_a_message(events, deep):
    body = json.dumps(events).encode()
    if deep:
        body = page(*split_json(body, b"[]"), b'{"id":"deep","data":' + DEEP[98_000:102_000] + b"}")
    messages = read_batch(body, WHERE)
    assert len(messages) == len(events) + deep
    for given_event, message in zip(events, messages, strict=False):
        if not is_unreadable(message):
            assert message.id == given_event["id"]
            assert "data" not in given_event or given_event["data"] is None or message.data == given_event["data"]


def test_the_work_to_read_a_page_is_at_most_about_four_times_its_size():
    """Two passes check the depth, one finds the events, one decodes them. Data is decoded on first access."""
    body = page(*[SPEC_EXAMPLE] * 100)
    with counting_calls():
        assert work_of(lambda: read_batch(body, WHERE)) < 4.4 * len(body)
