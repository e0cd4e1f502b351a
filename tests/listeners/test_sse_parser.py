"""Parsing an event stream by WHATWG HTML §9.2, however it is cut into chunks."""

import contextlib
import itertools
import re
import tracemalloc

import httpx
import httpx_sse
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push_to_poll_client.listeners._sse_parser import MAX_RETRY, EventParser, EventTooLarge, ServerSentEvent

BOM = b"\xef\xbb\xbf"


def parse(*chunks, max_body=None):
    parser = EventParser(max_body=max_body)
    return [event for chunk in chunks for event in parser.feed(chunk)]


def parsed(*chunks):
    """The parser after these chunks."""
    parser = EventParser(max_body=None)
    for chunk in chunks:
        parser.feed(chunk)
    return parser


def message(data, id="", event="message"):
    return ServerSentEvent(event, data, id)


# The examples of the standard (§9.2.6)


def test_data_lines_of_one_event_are_joined_with_a_newline():
    stream = b"data: This is the first message.\n\ndata: This is the second message, it\ndata: has two lines.\n\n"
    assert parse(stream + b"data: This is the third message.\n\n") == [
        message("This is the first message."),
        message("This is the second message, it\nhas two lines."),
        message("This is the third message."),
    ]


def test_the_event_field_sets_the_type_of_an_event():
    assert parse(b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n") == [
        message("73857293", event="add"),
        message("2153", event="remove"),
    ]


def test_comments_and_cut_off_events_are_not_dispatched_and_an_empty_id_resets():
    stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event"
    assert parse(stream) == [message("first event", "1"), message("second event")]
    assert parse(stream + b"\n\n")[-1] == message(" third event")


def test_events_with_empty_data_are_dispatched():
    assert parse(b"data\n\ndata\ndata\n\ndata:") == [message(""), message("\n")]


def test_at_most_one_space_after_the_colon_is_removed():
    assert parse(b"data:test\n\ndata: test\n\ndata:  test\n\ndata:\ttest\n\n") == [
        message("test"),
        message("test"),
        message(" test"),
        message("\ttest"),
    ]


# Lines


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_end_with_lf_cr_or_crlf(end):
    stream = end.join([b"event: e", b"data: 1", b"data: 2", b"", b"data: 3", b"", b""])
    assert parse(stream) == [message("1\n2", event="e"), message("3")]


def test_line_endings_may_be_mixed():
    assert parse(b"data: 1\r\n\ndata: 2\r\rdata: 3\n\r\n") == [message("1"), message("2"), message("3")]


def test_a_lone_cr_at_the_end_of_a_chunk_dispatches_at_once():
    parser = EventParser(max_body=None)
    assert parser.feed(b"data: 1\r\r") == [message("1")]
    assert parser.feed(b"data: 2\r\n\r") == [message("2")]
    assert parser.feed(b"\ndata: 3\n\n") == [message("3")], "the LF belongs to the CR before it"


def test_a_crlf_split_over_chunks_is_one_line_ending():
    assert parse(b"data: 1\r", b"", b"\n", b"data: 2\r", b"\n", b"\r", b"\n") == [message("1\n2")]


def test_only_one_lf_is_skipped_after_a_cr():
    assert parse(b"data: 1\r", b"\n", b"\n") == [message("1")]


@pytest.mark.parametrize("other", ["\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_other_line_breaks_of_unicode_do_not_end_a_line(other):
    assert parse(f"data: a{other}b\n\n".encode()) == [message(f"a{other}b")]


# Characters


@pytest.mark.parametrize("cut", range(5))
def test_a_leading_bom_is_dropped_also_when_chunks_split_it(cut):
    stream = BOM + b"data: 1\n\n"
    assert parse(stream[:cut], stream[cut:]) == [message("1")]


def test_only_one_leading_bom_is_dropped():
    assert parse(BOM + BOM + b"data: 1\n\n", b"data: 2\n\n") == [message("2")]
    assert parse(b"\n" + BOM + b"data: 1\n\n") == []
    assert parse(b"data: " + BOM + b"\n\n") == [message("\ufeff")]


def test_a_bom_is_dropped_before_a_comment_or_an_empty_line():
    assert parse(BOM + b":data: 1\n\n") == []
    assert parse(BOM + b"\ndata: 1\n\n") == [message("1")]


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("é€😀".encode(), "é€😀"),
        (b"\xff", "�"),
        (b"a\xe2\x82", "a�"),
        (b"\xf0\x9f\x98x", "�x"),
        (b"\xed\xa0\x80", "���"),
        (b"\xc0\xaf", "��"),
        (b"\0", "\0"),
    ],
)
def test_invalid_utf_8_is_replaced(raw, read):
    stream = b"data:" + raw + b"\n\n"
    assert parse(*(stream[n : n + 1] for n in range(len(stream)))) == [message(read)]


# Fields


@pytest.mark.parametrize(
    "line", [b"Data: x", b"DATA: x", b" data: x", b"data : x", b"x", b"x:data: y", b":", b": data: x", b"::data"]
)
def test_unknown_fields_and_comments_are_ignored(line):
    assert parse(line + b"\n\n") == []
    assert parse(b"data: 1\n" + line + b"\n\n") == [message("1")]


def test_a_block_without_data_dispatches_nothing_and_forgets_its_type():
    assert parse(b"event: ping\n\nid: 7\n\nretry: 5\n\n\n\n") == []
    assert parse(b"event: ping\n\ndata: 1\n\n") == [message("1")]


def test_keep_alive_comments_after_an_id_dispatch_nothing():
    assert parse(b"id: 1\ndata: x\n\n: ka\n\n: ka\n\n") == [message("x", "1")]


def test_the_last_event_field_counts_and_an_empty_one_means_message():
    assert parse(b"event: a\nevent: b\ndata: 1\n\nevent: a\nevent\ndata: 2\n\n") == [
        message("1", event="b"),
        message("2"),
    ]


# Ids


def test_an_event_without_an_id_has_the_last_id():
    assert parse(b"id: 1\ndata: a\n\ndata: b\n\n") == [message("a", "1"), message("b", "1")]


def test_an_empty_id_resets_the_id_and_an_id_with_nul_is_ignored():
    assert parse(b"id: 1\nid: 2\0\ndata: a\n\nid\ndata: b\n\n") == [message("a", "1"), message("b")]


def test_an_id_takes_effect_at_the_blank_line_also_without_data():
    parser = parsed(b"id: 1\ndata: a\n\nid: 2\n")
    assert parser.last_event_id == "1"
    parser.feed(b"\n")
    assert parser.last_event_id == "2"


def test_the_id_of_a_cut_off_event_is_discarded():
    assert parsed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n").last_event_id == "1"


def test_events_without_an_id_have_the_last_event_id_given_to_the_parser():
    parser = EventParser(max_body=None, last_event_id="7")
    assert parser.feed(b"data: a\n\nid: 8\ndata: b\n\n") == [message("a", "7"), message("b", "8")]


# The time to reconnect


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"5000", 5.0),
        (b"0", 0.0),
        (b"007", 0.007),
        (b"300000", MAX_RETRY),
        (b"86400000", MAX_RETRY),
        (b"9" * 10_000, MAX_RETRY),
    ],
)
def test_the_time_to_reconnect_is_in_milliseconds_and_bounded(value, seconds):
    assert parsed(b"retry:" + value + b"\n").retry == seconds


@pytest.mark.parametrize(
    "value", ["", "-5", "+5", "1_000", "5.0", "1e3", " 5", "5 ", "\u0665", "\uff15", "0x10", "inf"]
)
def test_a_retry_field_with_anything_but_ascii_digits_is_ignored(value):
    assert parsed(b"retry: 7000\n", f"retry: {value}\n".encode()).retry == 7.0
    assert parsed(f"retry: {value}\n".encode()).retry is None


def test_a_retry_field_takes_effect_without_an_event():
    assert parsed(b"data: x\nretry: 9000\n").retry == 9.0


# Limits


def test_a_line_may_have_at_most_max_body_bytes():
    line = b"data:" + b"x" * 95
    assert parse(line + b"\r\n\r\n", max_body=100) == [message("x" * 95)]
    for chunks in ([line + b"x"], [line + b"x\n"], [line, b"x"], [b":" + b"x" * 50, b"x" * 50 + b"\n"]):
        with pytest.raises(EventTooLarge, match=r"a line has more than 100 bytes; .* max_body="):
            parse(*chunks, max_body=100)


def test_the_data_of_an_event_may_have_at_most_max_body_bytes():
    assert len(parse(b"data\n" * 100 + b"\n", max_body=100)[0].data) == 99
    with pytest.raises(EventTooLarge, match="the data of an event has more than 100 bytes"):
        parse(b"data\n" * 101, max_body=100)
    assert len(parse(b"data: x\n\n" * 1000, max_body=100)) == 1000


def test_comments_and_lines_without_data_do_not_count_towards_max_body():
    assert parse(b": keep-alive\nid: 5\nevent: x\nretry: 5\n" * 1000 + b"data\n\n", max_body=20)


def test_an_endless_line_is_refused_at_max_body_and_uses_little_memory():
    parser, fed = EventParser(max_body=65_536), 0
    tracemalloc.start()
    with contextlib.suppress(EventTooLarge):
        while fed < 10_000_000:
            parser.feed(b"x" * 1000)
            fed += 1000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fed <= 66_000
    assert peak < 1_000_000


class Watched(bytearray):
    """Counts the bytes that are read. Appending is not counted."""

    looked_at = 0

    def __getattribute__(self, name):
        if name not in {"clear", "extend", "looked_at"}:
            self.looked_at += len(self)
        return super().__getattribute__(name)

    def __contains__(self, what):
        self.looked_at += len(self)
        return super().__contains__(what)

    def __getitem__(self, place):
        self.looked_at += len(self)
        return super().__getitem__(place)


@pytest.mark.parametrize("start", [b"data:", b"id:", b":", b"retry:"])
def test_a_line_in_small_chunks_is_not_copied_or_searched_again_for_each_chunk(start):
    """For a line of 1 MiB in 8,192 pieces, rescanning or copying would be 4 GiB of work."""
    parser = EventParser(max_body=None)
    line = parser._line = Watched()
    parser.feed(start)
    tracemalloc.start()
    for _ in range(1 << 13):
        parser.feed(b"1" * 128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parser._line is line
    assert (len(line), line.looked_at) == (len(start) + (1 << 20), 0)
    assert peak < 3 << 19  # a copy would add to this
    parser.feed(b"\n\n")
    assert line == b""


# Chunking makes no difference, and two other parsers agree

tokens = st.sampled_from(
    [
        *(
            b"data",
            b"event",
            b"id",
            b"retry",
            b":",
            b": ",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"7",
            b"x",
            b" ",
            b"\0",
        ),
        *(BOM, BOM[:1], BOM[1:], b"\xff", "é😀".encode(), "\u2028".encode(), b"data: y\n", b"id: 3\n"),
    ]
)
streams = st.lists(tokens, max_size=60).map(b"".join)


def cut(stream, places):
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(bounds)]


@given(streams, st.lists(st.integers(0, 1000), max_size=20))
def test_any_division_into_chunks_gives_the_same_events(stream, places):
    whole, pieces = EventParser(max_body=None), EventParser(max_body=None)
    events = whole.feed(stream)
    assert [event for chunk in cut(stream, places) for event in pieces.feed(chunk)] == events
    assert (pieces.last_event_id, pieces.retry) == (whole.last_event_id, whole.retry)


@given(streams)
def test_each_event_is_dispatched_with_its_last_byte(stream):
    """After each byte, the parser has dispatched all events so far."""
    parser, events = EventParser(max_body=None), []
    for end in range(len(stream)):
        events += parser.feed(stream[end : end + 1])
        assert events == plainly(stream[: end + 1])


@given(streams, st.lists(st.integers(0, 1000), max_size=5), st.integers(1, 40))
def test_the_size_limit_does_not_depend_on_the_chunks(stream, places, most):
    assert too_large([stream], most) == too_large(cut(stream, places), most)


def too_large(chunks, most):
    try:
        parse(*chunks, max_body=most)
    except EventTooLarge:
        return True
    return False


def plainly(stream):
    """The standard's text, applied to a complete stream."""
    lines = re.split("\r\n|\n|\r", stream.decode("utf-8", "replace").removeprefix("\ufeff"))[:-1]
    events, data, type_, id_ = [], "", "", ""
    for line in lines:
        field, value = re.fullmatch("([^:]*):? ?(.*)", line, re.DOTALL).groups() if ":" in line else (line, "")
        if line == "":
            if data != "":
                events.append(ServerSentEvent(type_ or "message", data.removesuffix("\n"), id_))
            data, type_ = "", ""
        elif field == "data":
            data += value + "\n"
        elif field == "event":
            type_ = value
        elif field == "id" and "\0" not in value:
            id_ = value
    return events


values = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=8)
blocks = st.builds(
    lambda lines, data: [*lines, f"data: {data}", ""],
    st.lists(st.tuples(st.sampled_from(["data", "event", "id", "x", ""]), values).map(": ".join), max_size=4),
    values,
)
ends = st.sampled_from(["\n", "\r", "\r\n"])


def with_httpx_sse(*chunks, content_type="text/event-stream"):
    def answer(request):
        return httpx.Response(200, headers={"Content-Type": content_type}, content=iter(chunks))

    with (
        httpx.Client(transport=httpx.MockTransport(answer)) as client,
        httpx_sse.connect_sse(client, "GET", "http://test/") as source,
    ):
        return [ServerSentEvent(event.event, event.data, event.id) for event in source.iter_sse()]


@given(st.lists(blocks, max_size=5), ends, st.lists(st.integers(0, 1000), max_size=5))
def test_httpx_sse_reads_the_same_events_from_blocks_with_data(blocks, end, places):
    stream = "".join(line + end for block in blocks for line in block).encode()
    assert with_httpx_sse(*cut(stream, places)) == parse(stream)


@pytest.mark.parametrize(
    ("stream", "ours", "theirs"),
    [
        # It creates an event for each keep-alive after an id: an unneeded poll each.
        (b"id: 1\ndata: x\n\n: ka\n\n", [message("x", "1")], [message("x", "1"), message("", "1")]),
        # It creates an event for a block without data.
        (b"event: ping\n\n", [], [message("", event="ping")]),
        (b"retry: 5\n\n", [], [message("")]),
        # It treats the BOM as part of the first field's name, and loses the first event.
        (BOM + b"data: 1\n\n", [message("1")], []),
    ],
)
def test_httpx_sse_deviates_from_the_standard_in_known_cases(stream, ours, theirs):
    assert parse(stream) == ours
    assert with_httpx_sse(stream) == theirs


def test_httpx_sse_uses_a_charset_although_event_streams_are_always_utf_8():
    stream = "data: é\n\n".encode()
    assert with_httpx_sse(stream, content_type="text/event-stream; charset=iso-8859-1") == [message("Ã©")]
    assert parse(stream) == [message("é")]


@pytest.mark.parametrize(("value", "theirs"), [("-5", -5), ("1_000", 1000), ("\u0665", 5)])
def test_httpx_sse_accepts_retry_fields_with_more_than_ascii_digits(value, theirs):
    stream = f"retry: {value}\n"
    decoder = httpx_sse._decoders.SSEDecoder()
    decoder.decode(stream.strip())
    assert decoder.decode("").retry == theirs
    assert parsed(stream.encode()).retry is None


def test_httpx_sse_delays_an_event_that_ends_with_a_lone_cr():
    lines = httpx_sse._decoders.SSELineDecoder()
    assert lines.decode("data: 1\r\r") == ["data: 1"], "the empty line comes with the next chunk"
    assert EventParser(max_body=None).feed(b"data: 1\r\r") == [message("1")]
