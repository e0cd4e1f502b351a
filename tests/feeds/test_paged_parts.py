"""The parts of a declaration, each alone: what they read and send, and errors for wrong arguments."""

from dataclasses import replace

import pytest

from push_to_poll_client import CursorExpired, FeedError, FeedGone, PagesChanged
from push_to_poll_client.feeds._paged.body import DeclarationMismatch
from push_to_poll_client.feeds._paged.outcomes import apply_outcomes
from push_to_poll_client.feeds._paged.pagination import PagePosition
from push_to_poll_client.feeds._paged.readers import reader
from push_to_poll_client.feeds._paged.senders import RequestParts
from push_to_poll_client.feeds.paged import (
    Latest,
    LongPoll,
    NewestFirst,
    OldestFirst,
    as_url,
    at_end,
    closed,
    expired,
    from_body,
    from_each,
    from_first,
    from_header,
    from_last,
    from_link,
    full_page,
    gap,
    gone,
    not_ready,
    pause,
    restart,
    status,
    throttled,
    to_body,
    to_header,
    to_query,
)
from tests.support.paged_replies import BODY, reply

# Readers


@pytest.mark.parametrize(
    ("what", "value", "text"),
    [
        (from_body("meta", "next"), "c2", "from_body('meta', 'next')"),
        (from_header("X-Cursor"), "h", "from_header('X-Cursor')"),
        (from_header("other"), None, "from_header('other')"),
        (from_link(), "https://api.vendor.example/v1/p2", "from_link('next')"),
        (from_link("prev"), None, "from_link('prev')"),
        (from_first("id"), 1, "from_first('id')"),
        (from_first("seq"), 10, "from_first('seq')"),
        (from_last("id"), 3, "from_last('id')"),
        (from_last("seq"), 20, "from_last('seq')"),
        (from_last("changes", 0), "x", "from_last('changes', 0)"),
        (from_each("seq"), 20, "from_each('seq')"),
        (from_each("no"), None, "from_each('no')"),
        (status(200, 410), True, "status(200, 410)"),
        (status(410), False, "status(410)"),
        (full_page(3), True, "full_page(3)"),
        (full_page(4), False, "full_page(4)"),
        (~status(410), True, "~status(410)"),
        (status(200) & full_page(4), False, "(status(200) & full_page(4))"),
        (status(200) | full_page(4), True, "(status(200) | full_page(4))"),
        (status(410) | full_page(3), True, "(status(410) | full_page(3))"),
        (from_body("n") & status(200), 0, "(from_body('n') & status(200))"),
        (from_body("n").equals(0), True, "from_body('n').equals(0)"),
        (from_body("n").equals("a", "b"), False, "from_body('n').equals('a', 'b')"),
        (from_body("n").then(str), "0", "from_body('n').then(str)"),
        (from_body("no").then(str), None, "from_body('no').then(str)"),
        (from_each("id").then(lambda last: last + 1), 4, "from_each('id').then(<lambda>)"),
        (from_each("no").then(str), None, "from_each('no').then(str)"),
        (reader(type).then(str), "<class 'push_to_poll_client.feeds._paged.body.Reply'>", "type.then(str)"),
    ],
)
def test_a_reader_returns_its_value_and_has_a_readable_repr(what, value, text):
    entries = [{"id": 1}, {"id": 2, "seq": 10}, {"seq": 20, "id": 3, "changes": ["x"]}]
    link = '<p1>; rel="first", <p2>; rel="next"'
    said = reply(BODY, entries=entries, x_cursor="h", link=link)
    assert repr(what) == text
    assert what(said) == value


def test_an_index_into_a_list_does_not_select_a_character_of_a_string():
    """If the character were the id, many entries would share it and look like duplicates."""
    said = reply({"ids": "abc"}, entries=[{"ids": "abc"}])
    assert from_last("ids", 0)(said) is None
    assert from_body("ids", 0)(said) is None


def test_any_function_of_an_answer_is_a_reader():
    both = from_body("n") | (lambda said: said.status)
    assert both(reply(BODY)) == 200
    assert repr(both) == "(from_body('n') | <lambda>)"


def test_a_callable_object_is_named_by_its_class():
    class Reads:
        def __call__(self, said):
            return said.status

    assert repr(reader(Reads())) == "Reads"
    assert reader(Reads())(reply()) == 200


def test_full_page_counts_unreadable_entries():
    assert full_page(3)(reply(entries=[{"id": 1}], size=3))


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: reader("id"), TypeError, "'id' is not a reader"),
        (lambda: status(200) & "x", TypeError, "'x' is not a reader"),
        (lambda: status(200) | None, TypeError, "None is not a reader"),
        (from_body, ValueError, "empty"),
        (lambda: from_body(""), ValueError, "empty"),
        (lambda: from_each(None), TypeError, "names"),
        (lambda: from_header("a b"), ValueError, "a valid header name such as 'Link', got 'a b'"),
        (lambda: from_header(None), ValueError, "a valid header name such as 'Link', got None"),
        (status, ValueError, "needs HTTP status codes"),
        (lambda: status("410"), ValueError, "needs HTTP status codes"),
        (lambda: status(4100), ValueError, "needs HTTP status codes"),
        (lambda: full_page(0), ValueError, "size must be at least 1, got 0"),
        (lambda: full_page(size=True), TypeError, "size must be a whole number, got True"),
        (lambda: full_page("100"), TypeError, "size must be a whole number, got '100'"),
        (lambda: from_body("a").equals(), ValueError, "needs at least one value"),
    ],
)
def test_invalid_arguments_of_a_reader_are_refused(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        (from_body("meta", "cursor"), "{'next': string, 'list': array of 2} at 'meta'"),
        (from_body("meta", "cursor").then(str), "{'next': string, 'list': array of 2} at 'meta'"),
        (from_header("cursor"), "the headers 'content-type', 'x-a'"),
        (from_link(), "the headers 'content-type', 'x-a'"),
        (from_first("cursor"), "an entry {'id': number}"),
        (from_each("cursor").then(str), "an entry {'seq': number}"),
        (reader(lambda _: None), "{'meta': object, 'n': number, 'no': null, '': string}"),
    ],
)
def test_a_reader_describes_the_part_of_the_answer_that_it_reads(what, shown):
    said = reply(BODY, entries=[{"id": 1}, {"seq": 2}], x_a="secret", content_type="application/json")
    assert what.seen(said) == shown


def test_a_reader_of_entries_describes_a_page_without_readable_entries():
    assert from_each("id").seen(reply(b"[nonsense]", size=1)) == "a page on which no entry can be read"


# Senders


EMPTY = RequestParts(query={"limit": "2"}, headers={"accept": "x"}, body={"a": {"b": 1}, "list": [1]})


@pytest.mark.parametrize(
    ("sender", "value", "changes"),
    [
        (to_query("since"), "c", {"query": {"limit": "2", "since": "c"}}),
        (to_query("limit"), "c", {"query": {"limit": "c"}}),
        (to_query("since"), None, {}),
        (to_query("since", otherwise="0"), None, {"query": {"limit": "2", "since": "0"}}),
        (to_query("since", otherwise="0"), "c", {"query": {"limit": "2", "since": "c"}}),
        (to_query("q", "after:{} {}"), "c", {"query": {"limit": "2", "q": "after:c c"}}),
        (to_query("c", at="more"), "c", {"url": "more", "query": {"limit": "2", "c": "c"}}),
        (to_query("c", at="more"), None, {}),
        (to_header("X-Since"), "c", {"headers": {"accept": "x", "x-since": "c"}}),
        (to_header("Range", "items={}-"), "7", {"headers": {"accept": "x", "range": "items=7-"}}),
        (to_header("X-Since", otherwise="0"), None, {"headers": {"accept": "x", "x-since": "0"}}),
        (to_body("c"), "c", {"body": {"a": {"b": 1}, "list": [1], "c": "c"}}),
        (to_body("a", "c"), "c", {"body": {"a": {"b": 1, "c": "c"}, "list": [1]}}),
        (to_body("list", "c"), "c", {"body": {"a": {"b": 1}, "list": {"c": "c"}}}),
        (to_body("list", 0), "c", {"body": {"a": {"b": 1}, "list": ["c"]}}),
        (to_body("list", 0, "c"), "c", {"body": {"a": {"b": 1}, "list": [{"c": "c"}]}}),
        (to_body("c", alone=True), "c", {"body": {"c": "c"}}),
        (to_body("c", at="more", alone=True), "c", {"url": "more", "body": {"c": "c"}}),
        (to_body("c", as_json=True), "[7]", {"body": {"a": {"b": 1}, "list": [1], "c": [7]}}),
        (to_body("c", as_json=True), "x7", {"body": {"a": {"b": 1}, "list": [1], "c": "x7"}}),
        (to_body("c", as_json=True), "[" * 9999, {"body": {"a": {"b": 1}, "list": [1], "c": "[" * 9999}}),
        (to_body("c", otherwise="0"), None, {"body": {"a": {"b": 1}, "list": [1], "c": "0"}}),
        (as_url(), "https://x/y?z=1", {"url": "https://x/y?z=1", "query": {}}),
        (as_url(), None, {}),
    ],
)
def test_a_sender_puts_the_value_into_the_declared_part_of_the_request(sender, value, changes):
    assert sender.put(EMPTY, value) == replace(EMPTY, **changes)


def test_to_body_creates_a_missing_body():
    assert to_body("a", "b").put(RequestParts(), "c").body == {"a": {"b": "c"}}


@pytest.mark.parametrize(
    ("sender", "value"),
    [
        (to_header("a"), "ä"),
        (to_header("a"), "a\r\nb: c"),
        (to_query("a"), "\ud800"),
        (as_url(), "ftp://x"),
        (as_url(), "x"),
    ],
)
def test_a_value_that_cannot_be_sent_is_refused(sender, value):
    with pytest.raises(ValueError):
        sender.put(RequestParts(), value)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: to_query(""), TypeError, "name must be a non-empty str, got ''"),
        (lambda: to_query(7), TypeError, "name must be a non-empty str, got 7"),
        (lambda: to_query("a", "after"), ValueError, "form must contain"),
        (lambda: to_query("a", 7), TypeError, "form must be a non-empty str, got 7"),
        (lambda: to_query("a", at=""), TypeError, "at must be a non-empty str, got ''"),
        (lambda: to_query("a", otherwise=0), TypeError, "otherwise must be a non-empty str, got 0"),
        (lambda: to_query("a", otherwise=""), TypeError, "otherwise must be a non-empty str, got ''"),
        (lambda: to_header("a b"), ValueError, "a valid header name"),
        (lambda: to_header(""), TypeError, "name must be a non-empty str, got ''"),
        (lambda: to_header("a", "x"), ValueError, "form"),
        (lambda: to_header("a", otherwise=1), TypeError, "otherwise"),
        (to_body, ValueError, "empty"),
        (lambda: to_body("a", None), TypeError, "names"),
        (lambda: to_body("a", at=1), TypeError, "at must be a non-empty str, got 1"),
        (lambda: to_body("a", otherwise=1), TypeError, "otherwise"),
    ],
)
def test_invalid_arguments_of_a_sender_are_refused(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


def test_the_repr_of_a_sender_shows_how_it_was_made():
    senders = [to_query("a"), to_header("B"), to_body("c", "d"), as_url()]
    assert [repr(sender) for sender in senders] == [
        "to_query('a')",
        "to_header('B')",
        "to_body('c', 'd')",
        "as_url()",
    ]


@pytest.mark.parametrize(
    ("hold", "wait", "query", "headers"),
    [
        (LongPoll(to_query("timeout"), longest=50), 50, {"timeout": "50"}, {}),
        (LongPoll(to_query("timeout"), longest=50), 0.2, {"timeout": "1"}, {}),
        (LongPoll(to_query("t"), longest=60, per_second=1000, also={"f": "l"}), 2.5, {"t": "2500", "f": "l"}, {}),
        (LongPoll(to_header("Prefer", "wait={}"), longest=9), 9, {}, {"prefer": "wait=9"}),
        (LongPoll(to_query("timeout"), longest=50, also={"f": "l"}), 0, {}, {}),
        (
            LongPoll(to_query("t", otherwise="0"), longest=60, per_second=1000, also={"f": "l"}),
            2.5,
            {"t": "2500", "f": "l"},
            {},
        ),
        (LongPoll(to_query("t", otherwise="0"), longest=60, per_second=1000, also={"f": "l"}), 0, {"t": "0"}, {}),
        (LongPoll(to_header("Prefer", "wait={}", otherwise="0"), longest=9), 0, {}, {"prefer": "wait=0"}),
    ],
)
def test_a_wait_is_sent_in_the_units_of_the_server(hold, wait, query, headers):
    asking = hold.put(RequestParts(), wait)
    assert (asking.query, asking.headers) == (query, headers)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (("timeout", 50), TypeError, "sender must be to_query"),
        ((to_query("t"), 0), ValueError, "longest"),
        ((to_query("t"), "50"), TypeError, "longest"),
        ((to_query("t"), float("inf")), ValueError, "longest"),
        ((to_query("t"), 50, 0), ValueError, "per_second"),
        ((to_query("t"), 50, 1, {"a": 1}), TypeError, "also must be a mapping of str to str"),
        ((to_query("t"), 50, 1, "a=1"), TypeError, "also must be a mapping of str to str"),
    ],
)
def test_invalid_arguments_of_long_poll_are_refused(arguments, kind, text):
    with pytest.raises(kind, match=text):
        LongPoll(*arguments)


# Outcomes


@pytest.mark.parametrize(
    ("outcome", "kind", "text"),
    [
        (expired(status(410)), CursorExpired, "no longer knows the cursor"),
        (restart(status(410)), PagesChanged, "its pages changed"),
        (throttled(status(410)), FeedError, "asks for a pause"),
        (gone(status(410)), FeedGone, "no longer exists"),
    ],
)
def test_an_error_outcome_becomes_its_exception(outcome, kind, text):
    found = apply_outcomes([outcome], reply(code=410))
    assert type(found.error) is kind
    assert str(found.error).startswith("https://feed.example ")
    assert text in str(found.error)
    assert "410" in str(found.error)
    assert apply_outcomes([outcome], reply()).error is None


@pytest.mark.parametrize(
    ("start", "offered"),
    [
        (None, None),
        (from_header("location"), "https://x/"),
        (from_body("no"), None),
        (lambda said: said.status, "410"),
    ],
)
def test_an_expired_cursor_may_have_a_new_start(start, offered):
    outcome = expired(status(410), start=start)
    found = apply_outcomes([outcome], reply(code=410, location="https://x/"))
    assert found.error.start == offered


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        (None, None),
        (7, 7),
        (0.5, 0.5),
        (from_body("after"), 3),
        (from_body("text"), 4),
        (from_body("ms").then(lambda ms: ms / 1000), 1.5),
        (lambda said: said.status, 200),
        (from_body("true"), None),
        (from_body("nan"), None),
        (from_body("inf"), None),
        (from_body("less"), None),
        (from_body("huge"), None),
        (from_body("object"), None),
        (from_body("missing"), None),
    ],
)
def test_a_pause_is_a_given_number_or_is_read_from_the_answer(after, seconds):
    body = {"after": 3, "text": "4", "ms": 1500, "true": True, "nan": "nan", "inf": "inf", "less": -1}
    said = reply(body | {"object": {}, "huge": 10**400})
    assert apply_outcomes([throttled(status(200), after=after)], said).error.retry_after == seconds
    assert apply_outcomes([not_ready(status(200), after=after)], said).retry_after == seconds
    if callable(after):
        assert apply_outcomes([pause(after)], said).retry_after == seconds


def test_nothing_after_an_error_outcome_is_read():
    found = apply_outcomes(
        [gone(status(200)), throttled(status(200), after=lambda _: 1 / 0), not_ready(lambda _: 1 / 0)],
        reply(),
    )
    assert isinstance(found.error, FeedGone)


def test_the_longest_of_several_pauses_and_the_first_of_several_errors_count():
    said = reply({"a": 3, "b": 5})
    waits = [pause(from_body("a")), pause(from_body("b")), pause(from_body("c")), not_ready(status(200), after=4)]
    assert apply_outcomes(waits, said).retry_after == 5
    found = apply_outcomes([gone(status(200)), restart(status(200))], said)
    assert type(found.error) is FeedGone


def test_outcomes_mark_a_page_as_not_ready_closed_or_with_a_gap():
    outcomes = [not_ready(status(202)), closed(from_body("closed")), gap(from_body("limited"))]
    assert apply_outcomes(outcomes, reply({"closed": True, "limited": True})) == apply_outcomes(
        [closed(status(200)), gap(status(200), "the server says that it left messages out")], reply()
    )
    assert apply_outcomes(outcomes, reply({}, code=202)).empty
    assert apply_outcomes([gap(status(200), "rooms"), gap(status(200), "days")], reply()).gap == "rooms; days"
    nothing = apply_outcomes(outcomes, reply({}))
    assert (nothing.empty, nothing.closed, nothing.gap, nothing.retry_after) == (False, False, "", None)


def test_the_repr_of_an_outcome_shows_how_it_was_made():
    made = [expired(status(410)), gap(from_body("limited")), pause(from_body("s"))]
    assert [repr(outcome) for outcome in made] == [
        "expired(status(410))",
        "gap(from_body('limited'))",
        "pause(<lambda>)",
    ]


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: expired(410), TypeError, "410 is not a reader"),
        (lambda: expired(status(410), start="x"), TypeError, "'x' is not a reader"),
        (lambda: throttled(status(429), after="7"), TypeError, "after must be a number"),
        (lambda: throttled(status(429), after=-1), ValueError, "after must be finite"),
        (lambda: not_ready(status(429), after=float("nan")), ValueError, "after must be finite"),
        (lambda: pause(7), TypeError, "7 is not a reader"),
        (lambda: gap(status(200), ""), TypeError, "what must be a non-empty str, got ''"),
    ],
)
def test_invalid_arguments_of_an_outcome_are_refused(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


# Links between pages


def forward(**options):
    return OldestFirst(**{"cursor": from_body("cursor"), "send": to_query("since")} | options)


FULL = {"entries": [{"id": "1"}, {"id": "2"}]}


@pytest.mark.parametrize(
    ("options", "body", "page", "leads"),
    [
        ({}, {"cursor": "c"}, FULL, ("c", "c")),
        ({}, {"cursor": "c"}, {}, ("c", None)),
        ({}, {"cursor": "s"}, {"size": 1}, ("s", None)),
        ({}, {"cursor": "s"}, FULL, ("s", "s")),  # the URL asks for pages of two
        ({"more": from_body("more")}, {"cursor": "s", "more": True}, FULL, ("s", "s")),
        ({}, {}, {}, (None, None)),
        ({}, {"cursor": "c"}, {"size": 3}, ("c", "c")),
        ({"cursor": from_each("id")}, {}, FULL, ("2", "2")),
        ({"cursor": from_each("id")}, {}, {"size": 3}, (None, None)),
        ({"more": from_body("more")}, {"cursor": "c", "more": True}, {}, ("c", "c")),
        ({"more": from_body("more")}, {"cursor": "c", "more": 0}, FULL, ("c", None)),
        ({"more": full_page(2)}, {"cursor": "c"}, FULL, ("c", "c")),
        ({"more": full_page(3)}, {"cursor": "c"}, FULL, ("c", None)),
        ({"next": from_body("next")}, {"cursor": "c", "next": "n"}, {}, ("c", 'page ["s","n"]')),
        ({"next": from_body("next")}, {"cursor": "c"}, FULL, ("c", None)),
        ({"next": from_body("next")}, {"next": "n"}, FULL, (None, 'page ["s","n"]')),
        (
            {"next": from_body("next"), "more": from_body("more")},
            {"cursor": "c", "next": "n", "more": 0},
            FULL,
            ("c", None),
        ),
        (
            {"next": from_body("next"), "more": from_body("more")},
            {"cursor": "c", "next": "n"},
            FULL,
            ("c", "c"),
        ),
        ({"cursor": at_end(from_body("cursor")), "more": from_body("more")}, {"cursor": "c"}, FULL, ("c", "c")),
        ({"more": from_body("more")}, {"cursor": "c"}, FULL, ("c", "c")),
        ({"more": from_body("more")}, {"cursor": "s"}, FULL, ("s", None)),
        ({"more": from_body("more")}, {"cursor": "c"}, {"size": 1}, ("c", None)),
        ({"cursor": at_end(from_body("cursor"))}, {"cursor": "c"}, FULL, (None, 'page ["s","c"]')),
        ({"cursor": at_end(from_body("cursor"))}, {"cursor": "c"}, {}, ("c", None)),
        (
            {"cursor": at_end(from_body("cursor")), "next": from_body("n")},
            {"cursor": "c", "n": 7},
            {},
            (None, 'page ["s","7"]'),
        ),
        ({"cursor": at_end(from_body("cursor")), "next": from_body("n")}, {"cursor": "c"}, {}, ("c", None)),
    ],
)
def test_a_page_leads_to_the_cursor_to_save_and_the_next_position(options, body, page, leads):
    assert forward(**options).leads_to(reply(body, **page), PagePosition("s")) == leads


@pytest.mark.parametrize(
    ("options", "body", "page", "text"),
    [
        (
            {},
            {"cur": "c"},
            FULL,
            "there is no link to the next page: from_body('cursor') found nothing in {'cur': string}",
        ),
        (
            {"more": from_body("more")},
            {"cur": "c"},
            FULL,
            "there is no cursor: from_body('cursor') found nothing in {'cur': string}",
        ),
        (
            {"more": from_body("more"), "next": from_body("p", "next")},
            {"cursor": "c", "more": True, "p": {"prev": 1}},
            {},
            "there is no link to the next page: from_body('p', 'next') found nothing in {'prev': number} at 'p'",
        ),
        (
            {"cursor": from_each("seq"), "more": status(200)},
            {},
            FULL,
            "there is no link to the next page: from_each('seq') found nothing in an entry {'id': string}",
        ),
        (
            {"cursor": from_header("cursor"), "next": from_body("next")},
            [],
            FULL,
            "there is no cursor: from_header('cursor') found nothing in the headers ",
        ),
        (
            {"cursor": from_each("id"), "more": status(200)},
            {},
            {"size": 2},
            (
                "there is no link to the next page: from_each('id') found nothing "
                "in a page on which no entry can be read"
            ),
        ),
    ],
)
def test_the_error_for_a_missing_cursor_or_next_page_describes_the_answer(options, body, page, text):
    with pytest.raises(DeclarationMismatch) as unfit:
        forward(**options).leads_to(reply(body, **page), PagePosition("s"))
    seen, _, remedy = str(unfit.value).rpartition("; ")
    assert seen == text
    assert remedy.startswith("correct ")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({}, "correct cursor= or declare more="),
        ({"more": status(200)}, "correct cursor= or more="),
        ({"more": status(200), "next": from_body("next")}, "correct next= or more="),
    ],
)
def test_the_error_for_a_missing_next_page_names_the_options_to_correct(options, remedy):
    with pytest.raises(DeclarationMismatch, match=f"found nothing in .*empty string}}; {remedy}$"):
        forward(**options).leads_to(reply({"cursor": "", "next": ""}, **FULL), PagePosition("s"))


def test_a_page_chain_that_ends_without_a_cursor_is_an_error():
    pages = forward(cursor=at_end(from_body("cursor")), next=from_body("next"))
    with pytest.raises(DeclarationMismatch, match="there is no cursor"):
        pages.leads_to(reply({}), PagePosition("s", "p"))
    assert pages.leads_to(reply({}), PagePosition("s")) == (None, None)


@pytest.mark.parametrize(
    ("options", "place", "query"),
    [
        ({}, PagePosition(None), {}),
        ({}, PagePosition("c"), {"since": "c"}),
        (
            {"next": from_body("n"), "send_next": to_query("page")},
            PagePosition("c", "p"),
            {"since": "c", "page": "p"},
        ),
        ({"next": from_body("n"), "send_next": to_query("page")}, PagePosition(None, "p"), {"page": "p"}),
        ({"next": from_body("n")}, PagePosition("c", "p"), {"since": "p"}),
        ({"send": to_query("since", otherwise="0")}, PagePosition(None), {"since": "0"}),
    ],
)
def test_the_cursor_and_the_next_page_are_sent_in_their_query_fields(options, place, query):
    assert forward(**options).put(RequestParts(), place).query == query


@pytest.mark.parametrize(
    ("position", "place"),
    [
        (None, PagePosition(None)),
        ("c", PagePosition("c")),
        ('page ["c","p"]', PagePosition("c", "p")),
        ('page [null,"p"]', PagePosition(None, "p")),
        ("page 7", PagePosition("page 7")),
        ("page " + "[" * 9999, PagePosition("page " + "[" * 9999)),
    ],
)
def test_a_position_is_unchanged_after_decoding_and_encoding(position, place):
    assert PagePosition.of(position) == place
    assert place.as_cursor == position


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"cursor": "id"}, TypeError, "'id' is not a reader"),
        ({"send": "since"}, TypeError, "send must be to_query"),
        ({"send_next": "page", "next": from_body("n")}, TypeError, "send_next must be to_query"),
        ({"next": "n"}, TypeError, "'n' is not a reader"),
        ({"more": True}, TypeError, "True is not a reader"),
        ({"each": from_last("id")}, TypeError, "each must be from_each"),
        ({"each": from_each("id"), "cursor": from_each("seq")}, ValueError, "remove each="),
        ({"each": from_each("id"), "cursor": at_end(from_body("c"))}, ValueError, "remove each="),
        ({"send_next": to_query("page")}, ValueError, "send_next= needs next="),
        ({"cursor": from_each("url"), "send": as_url()}, ValueError, "as_url"),
        ({"each": from_each("url"), "send": as_url()}, ValueError, "as_url"),
    ],
)
def test_invalid_options_of_oldest_first_are_refused(options, kind, text):
    with pytest.raises(kind, match=text):
        forward(**options)


def test_entry_cursors_come_from_each_or_from_a_from_each_cursor():
    seq = from_each("seq")
    assert forward(cursor=seq).each is seq
    assert forward(each=seq).each is seq
    assert forward(cursor=at_end(seq)).each is None
    assert forward().each is None


@pytest.mark.parametrize(
    ("options", "body", "page", "older"),
    [
        ({}, {"next": "n"}, FULL, "n"),
        ({}, {"next": "n"}, {}, None),
        ({}, {"next": "n"}, {"size": 1}, "n"),
        ({}, {}, FULL, None),
        ({"more": from_body("more")}, {"next": "n", "more": False}, FULL, None),
        ({"more": from_body("more")}, {"next": "n"}, {"size": 1}, None),
        ({"more": from_body("more")}, {"next": "n"}, FULL, "n"),
        ({"more": from_body("more")}, {}, FULL, None),
        ({"more": from_body("more")}, {"next": "n", "more": True}, {}, "n"),
        ({"next": from_last("id"), "more": full_page(2)}, {}, FULL, "2"),
        ({"next": from_last("id"), "more": full_page(3)}, {}, FULL, None),
        ({"send": as_url()}, {"next": "?page=2"}, FULL, "https://api.vendor.example/v1/events?page=2"),
    ],
)
def test_newest_first_reads_the_position_of_the_older_page(options, body, page, older):
    pages = NewestFirst(**{"next": from_body("next"), "send": to_query("page")} | options)
    assert pages.older(reply(body, **page)) == older


def test_a_missing_link_to_an_announced_older_page_is_an_error():
    pages = NewestFirst(next=from_body("next"), send=to_query("page"), more=from_body("more"))
    with pytest.raises(
        DeclarationMismatch,
        match=r"there is no link to the next page: from_body.'next'. found nothing in {'more': boolean}",
    ):
        pages.older(reply({"more": True}, **FULL))
    assert pages.kept("c", reply()) is None


@pytest.mark.parametrize("options", [{"next": "n"}, {"send": "page"}, {"more": 1}])
def test_invalid_options_of_newest_first_are_refused(options):
    with pytest.raises(TypeError):
        NewestFirst(**{"next": from_body("n"), "send": to_query("page")} | options)


# End of the feed


@pytest.mark.parametrize(
    ("latest", "body", "page", "end"),
    [
        (Latest(), {"cursor": "c"}, {}, "c"),
        (Latest(cursor=from_body("start")), {"start": 7}, {}, "7"),
        (Latest(cursor=from_last("id")), {}, FULL, "2"),
        (Latest(cursor=from_last("id")), {}, {}, None),
    ],
)
def test_the_cursor_of_the_feeds_end_is_read_from_the_answer(latest, body, page, end):
    assert forward().end(reply(body, **page), latest) == end


@pytest.mark.parametrize("latest", [Latest(), Latest(cursor=from_last("seq"))])
def test_an_answer_without_a_cursor_of_the_feeds_end_is_an_error(latest):
    with pytest.raises(
        DeclarationMismatch,
        match=r"there is no cursor for the end of the feed: .* found nothing in .*; correct latest=",
    ):
        forward().end(reply({"cur": 1}, **FULL), latest)


def test_latest_adds_its_query_or_uses_its_own_url():
    assert Latest({"since": "now"}).put(RequestParts(query={"a": "1"})).query == {"a": "1", "since": "now"}
    assert Latest(at="end").put(RequestParts()).url == "end"
    assert (Latest({"since": "now"}).adds, Latest({"since": "now"}, at="end").adds) == ({"since"}, set())


@pytest.mark.parametrize("options", [{"query": {"a": 1}}, {"query": "a"}, {"at": ""}, {"cursor": "c"}])
def test_invalid_options_of_latest_are_refused(options):
    with pytest.raises(TypeError):
        Latest(**options)
